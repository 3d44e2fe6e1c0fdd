/* tests/base/test_metrics.c - counting, and the text that Prometheus reads; also the JSON writer.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "proto/messages.h"
#include "runtime/base/json_text.h"
#include "runtime/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double slots[METRIC_SLOTS_MAX], others[METRIC_SLOTS_MAX];
static char page[1 << 20];

static void clear(void)
{
    memset(slots, 0, sizeof slots);
    memset(others, 0, sizeof others);
}

/* If it failed, two metrics would share a slot, or a report would not hold them all. */
static void test_metrics_slots_do_not_overlap(void **state)
{
    uint32_t next = 0;
    for (size_t i = 0; i < METRICS_MAX; i++) {
        assert_int_equal(metric_descs[i].slot, next);
        next += metric_descs[i].kind == METRIC_HISTOGRAM ? HISTOGRAM_BUCKETS + 2 : 1;
    }
    assert_int_equal(metrics_slot_count(), next);
    assert_true(next <= METRIC_SLOTS_MAX);
}

/* If it failed, an observation on a bound would be counted in the wrong bucket. */
static void test_metrics_observations_fall_into_their_buckets(void **state)
{
    metrics_t metrics = { .slots = slots };
    const double *histogram = slots + metric_descs[METRIC_step_seconds].slot;
    clear();
    metrics_observe(&metrics, METRIC_step_seconds, 0);
    metrics_observe(&metrics, METRIC_step_seconds, histogram_bounds[0]);
    metrics_observe(&metrics, METRIC_step_seconds, histogram_bounds[0] * 1.01);
    metrics_observe(&metrics, METRIC_step_seconds, histogram_bounds[HISTOGRAM_BUCKETS - 1]);
    metrics_observe(&metrics, METRIC_step_seconds, 1000);
    assert_true(histogram[0] == 2);
    assert_true(histogram[1] == 1);
    assert_true(histogram[HISTOGRAM_BUCKETS - 1] == 1);
    assert_true(histogram[HISTOGRAM_BUCKETS + 1] == 5);
    assert_true(fabs(histogram[HISTOGRAM_BUCKETS] - 1060.001005) < 1e-9);
}

static size_t occurrences(const char *text, const char *what)
{
    size_t count = 0;
    for (const char *at = strstr(text, what); at != NULL; at = strstr(at + 1, what)) count++;
    return count;
}

/* If it failed, Prometheus would refuse the page or show wrong values. */
static void test_metrics_page_is_grouped_with_help_and_type_once(void **state)
{
    metrics_t metrics = { .slots = slots };
    metrics_subject_t subjects[] = { { "ingress", 0, slots }, { "decode_worker", 1, others } };
    clear();
    metrics_count(&metrics, METRIC_requests_accepted_total, 3);
    metrics_count(&metrics, METRIC_requests_accepted_total, 1ull << 53);
    metrics_gauge(&metrics, METRIC_requests_running, 2.5);
    metrics_observe(&metrics, METRIC_request_seconds, 0.003);
    metrics_observe(&metrics, METRIC_request_seconds, 100);
    size_t size = metrics_print(subjects, 2, page, sizeof page);
    assert_int_equal(size, strlen(page));
    assert_non_null(strstr(
        page, "# TYPE troupe_requests_accepted_total counter\n"
              "troupe_requests_accepted_total{role=\"ingress\",index=\"0\"} 9007199254740996\n"
              "troupe_requests_accepted_total{role=\"decode_worker\",index=\"1\"} 0\n"));
    assert_non_null(strstr(page, "troupe_requests_running{role=\"ingress\",index=\"0\"} 2.5\n"));
    assert_non_null(strstr(
        page, "troupe_request_seconds_bucket{role=\"ingress\",index=\"0\",le=\"0.0025\"} 0\n"));
    assert_non_null(strstr(
        page, "troupe_request_seconds_bucket{role=\"ingress\",index=\"0\",le=\"0.005\"} 1\n"));
    assert_non_null(
        strstr(page, "troupe_request_seconds_bucket{role=\"ingress\",index=\"0\",le=\"60\"} 1\n"));
    assert_non_null(strstr(
        page, "troupe_request_seconds_bucket{role=\"ingress\",index=\"0\",le=\"+Inf\"} 2\n"));
    assert_non_null(strstr(page, "troupe_request_seconds_count{role=\"ingress\",index=\"0\"} 2\n"));
    assert_int_equal(occurrences(page, "# HELP "), METRICS_MAX);
    assert_int_equal(occurrences(page, "# TYPE troupe_request_seconds histogram\n"), 1);
    assert_int_equal(page[size - 1], '\n');
}

/* If it failed, a page larger than its buffer would be written past it. */
static void test_metrics_small_buffer_tells_what_it_needs(void **state)
{
    metrics_subject_t subject = { "ingress", 0, slots };
    clear();
    size_t size = metrics_print(&subject, 1, page, sizeof page);
    for (size_t cap = 0; cap < size; cap += 97) {
        char *exact = malloc(cap > 0 ? cap : 1);
        assert_int_equal(metrics_print(&subject, 1, exact, cap), size);
        if (cap > 0) assert_true(strlen(exact) < cap);
        if (cap > 0) assert_memory_equal(exact, page, cap - 1);
        free(exact);
    }
}

/* If it failed, status would not be JSON. */
static void test_json_text_writes_nested_values(void **state)
{
    json_text_t out;
    json_text_init(&out, page, sizeof page);
    json_text_open(&out, NULL, '{');
    json_text_string(&out, "a\"b", "x\\y\n\"\xc3\xbc");
    json_text_open(&out, "list", '[');
    json_text_uint(&out, NULL, UINT64_MAX);
    json_text_number(&out, NULL, 0.5);
    json_text_number(&out, NULL, NAN);
    json_text_open(&out, NULL, '{');
    json_text_close(&out, '}');
    json_text_open(&out, NULL, '[');
    json_text_close(&out, ']');
    json_text_close(&out, ']');
    json_text_bool(&out, "yes", true);
    json_text_bool(&out, "no", false);
    json_text_close(&out, '}');
    assert_string_equal(
        page,
        "{\"a\\\"b\":\"x\\\\y\\u000a\\\"\xc3\xbc\",\"list\":[18446744073709551615,0.5,null,{},[]],"
        "\"yes\":true,\"no\":false}");
    assert_int_equal(out.size, strlen(page));
    assert_false(out.is_full);
}

/* If it failed, a text value that ends in a bracket would lose the comma behind it, or a full
 * buffer be overrun. */
static void test_json_text_odd_values_and_full_buffers(void **state)
{
    char small[16];
    json_text_t out;
    json_text_init(&out, page, sizeof page);
    json_text_open(&out, NULL, '[');
    json_text_string(&out, NULL, "[");
    json_text_string(&out, NULL, "{");
    json_text_close(&out, ']');
    assert_string_equal(page, "[\"[\",\"{\"]");
    json_text_init(&out, small, sizeof small);
    json_text_open(&out, NULL, '[');
    for (int i = 0; i < 10; i++) json_text_uint(&out, NULL, 1000);
    json_text_close(&out, ']');
    assert_true(out.is_full);
    assert_true(strlen(small) < sizeof small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metrics_slots_do_not_overlap),
        cmocka_unit_test(test_metrics_observations_fall_into_their_buckets),
        cmocka_unit_test(test_metrics_page_is_grouped_with_help_and_type_once),
        cmocka_unit_test(test_metrics_small_buffer_tells_what_it_needs),
        cmocka_unit_test(test_json_text_writes_nested_values),
        cmocka_unit_test(test_json_text_odd_values_and_full_buffers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
