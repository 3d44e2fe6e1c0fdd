/* tests/actors/test_ingress_faults.c - what ingress does when others die, restart, fall silent or
 * speak too late. */
#include "tests/actors/ingress_harness.h"

/* ---- what is not heard ---- */

/* What nobody who does not hold the current attempt may change. */
typedef struct {
    size_t size;
    uint32_t ends, submits;
    double finished, failed, generated;
} seen_t;

static seen_t see(const actor_t *world)
{
    return (seen_t){ http.size,
                     http.ends,
                     count_sent(world, MSG_submit),
                     world->metrics[METRIC_requests_finished_total],
                     world->metrics[METRIC_requests_failed_total],
                     world->metrics[METRIC_generation_tokens_total] };
}

static void assert_unmoved(const actor_t *world, seen_t before)
{
    seen_t now = see(world);
    assert_true(now.size == before.size && now.ends == before.ends &&
                now.submits == before.submits);
    assert_true(now.finished == before.finished && now.failed == before.failed &&
                now.generated == before.generated);
}

/* Everything that a worker or balancer can say of an attempt, as if it were the next thing to say.
 */
static void say_all(actor_t *world, uint32_t attempt, uint32_t next)
{
    static const msg_type_t types[] = { MSG_tokens, MSG_prompt_logprobs, MSG_failed, MSG_finished };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        msg_t m = about(world, types[i]);
        m.header.attempt = attempt;
        if (types[i] == MSG_tokens) {
            m.tokens.first_index = next;
            m.tokens.ids_count = 1;
            m.tokens.ids[0] = 66;
        }
        if (types[i] == MSG_failed) m.failed.error = ERR_INVALID;
        if (types[i] == MSG_finished) m.finished.tokens = next;
        fake_tell(world, worker, &m);
    }
}

static void test_ingress_duplicates_and_old_attempts_change_nothing(void **state)
{
    /* I2 and I8: the first token comes twice by design, and the dead sometimes speak. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    uint32_t ids[2];
    assert_int_equal(tokenizer_encode(tokenizer, "ab", 2, false, ids, 2) > 0, 1);
    give_ids(world, 0, ids, 1);
    size_t size = http.size;
    give_ids(world, 0, ids, 1);
    assert_int_equal(http.size, size);
    msg_t old = about(world, MSG_tokens);
    give_error(world, ERR_LOST);
    fake_run(world, 1000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    old.tokens.first_index = 1;
    old.tokens.ids_count = 1;
    old.tokens.ids[0] = ids[0];
    fake_tell(world, worker, &old);
    assert_int_equal(http.size, size);
    assert_int_equal(last(world, MSG_cancel)->message.header.attempt, 0);
    finish(world, FINISH_LENGTH, 1);
    assert_int_equal(http.ends, 1);
    destroy(world);
}

static void test_ingress_only_the_current_attempt_is_heard(void **state)
{
    /* I8: tokens, ends, failures of an attempt that was given up, or was never made, change
     * nothing: neither while the next attempt runs nor while it waits to be submitted. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    uint32_t next = give_text(world, 0, "one");
    say_all(world, 1, next);
    give_error(world, ERR_LOST);
    seen_t waiting = see(world);
    for (uint32_t attempt = 0; attempt < 4; attempt++) say_all(world, attempt, next);
    assert_unmoved(world, waiting);
    fake_run(world, 1000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    seen_t running = see(world);
    say_all(world, 0, next);
    say_all(world, 2, next);
    assert_unmoved(world, running);
    assert_true(world->metrics[METRIC_messages_stale_total] == 4 * 7);
    next = give_text(world, next, " two</think>three");
    finish(world, FINISH_STOP, next);
    assert_string_equal(streamed("reasoning_content"), "one two");
    assert_string_equal(streamed("content"), "three");
    destroy(world);
}

static void test_ingress_answers_to_probes_of_old_attempts_are_not_believed(void **state)
{
    /* I8: a balancer that says it does not hold attempt 0 says nothing of attempt 1. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    give_error(world, ERR_LOST);
    fake_run(world, 1000);
    for (uint32_t second = 0; second < 4; second++) {
        fake_run(world, 1000000);
        msg_t m = about(world, MSG_request_held);
        m.header.attempt = second % 2 ? 0 : 2;
        fake_tell(world, prefill_lb, &m);
        fake_tell(world, decode_lb, &m);
        m.header.attempt = 1; /* right, but of nobody who keeps a ledger */
        fake_tell(world, worker, &m);
    }
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    finish(world, FINISH_STOP, 0);
    assert_int_equal(http.ends, 1);
    destroy(world);
}

static void test_ingress_nothing_follows_the_end(void **state)
{
    /* I4: a second end, or tokens that come after the first, reach no client and no counter;
     * whoever still sends tokens is told to stop. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    uint32_t next = give_text(world, 0, "one");
    finish(world, FINISH_STOP, next);
    assert_int_equal(http.ends, 1);
    uint32_t cancels = count_sent(world, MSG_cancel);
    seen_t over = see(world);
    say_all(world, 0, next);
    say_all(world, 1, next);
    assert_unmoved(world, over);
    assert_true(world->metrics[METRIC_messages_unexpected_total] == 8);
    assert_int_equal(count_sent(world, MSG_cancel), cancels + 4);
    destroy(world);
}

/* ---- losses ---- */

static void test_ingress_lost_worker_resumes_where_it_stopped(void **state)
{
    /* Failover: the same seed, the prompt, every streamed token as one to compute again, and no
     * token lost or doubled; nor is what the second attempt found of the first one's a cache hit.
     */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, ",\"max_tokens\":50,\"stream_options\":{\"include_usage\":true}");
    msg_t first = last(world, MSG_submit)->message;
    uint32_t next = give_text(world, 0, "one two");
    give_error(world, ERR_LOST);
    fake_run(world, 1000);
    const msg_t *second = &last(world, MSG_submit)->message;
    assert_int_equal(second->header.attempt, 1);
    assert_true(request_id_equal(second->header.request, first.header.request));
    assert_int_equal(second->submit.generated, next);
    assert_int_equal(second->submit.prompt_count, first.submit.prompt_count);
    assert_int_equal(second->submit.tokens.size, 4 * (first.submit.prompt_count + next));
    assert_int_equal(second->submit.keys.size, first.submit.keys.size);
    assert_true(second->submit.sampling.seed == first.submit.sampling.seed);
    assert_int_equal(second->submit.max_tokens, 50);
    next = give_text(world, next, " three</think>four");
    finish(world, FINISH_STOP, next);
    assert_string_equal(streamed("reasoning_content"), "one two three");
    assert_string_equal(streamed("content"), "four");
    assert_has("\"prompt_cache_hit_tokens\":1,");
    assert_true(world->metrics[METRIC_requests_resubmitted_total] == 1);
    destroy(world);
}

static void test_ingress_gap_in_tokens_starts_the_next_attempt(void **state)
{
    /* A message that was lost between two others must not shift the text. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    uint32_t ids[1] = { 100 };
    give_ids(world, 0, ids, 1);
    give_ids(world, 2, ids, 1);
    fake_run(world, 1000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    assert_int_equal(last(world, MSG_submit)->message.submit.generated, 1);
    finish(world, FINISH_STOP, 9); /* tokens are missing here, too */
    fake_run(world, 1000000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 2);
    finish(world, FINISH_STOP, 1);
    destroy(world);
}

static void test_ingress_attempts_run_out_with_one_error(void **state)
{
    /* A request that kills workers must end, and say so in the stream. */
    actor_t *world = new_ingress("limits.attempts_max=3");
    ask_stream(world, "");
    give_text(world, 0, "x");
    for (int i = 0; i < 3; i++) {
        give_error(world, ERR_ENGINE);
        fake_run(world, 200000);
    }
    assert_int_equal(http.ends, 1);
    assert_has("data: {\"error\":{\"message\":\"The request failed after 3 of 3 attempts");
    assert_null(strstr(http.text, "[DONE]"));
    assert_true(world->metrics[METRIC_requests_failed_total] == 1);
    destroy(world);
}

static void test_ingress_lost_word_of_the_end_is_found(void **state)
{
    /* All tokens came, only `finished` did not: another attempt would generate past the end. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, ",\"max_tokens\":2");
    uint32_t ids[2] = { 66, 67 };
    give_ids(world, 0, ids, 2);
    give_error(world, ERR_LOST);
    assert_int_equal(http.ends, 1);
    assert_has("\"finish_reason\":\"length\"");
    destroy(world);
}

static void test_ingress_failing_choice_ends_the_whole_call(void **state)
{
    /* A client cannot use an answer with a hole: it gets one error, the other choices are stopped,
     * and each of them is counted once. */
    actor_t *world = new_ingress(NULL);
    for (int is_stream = 0; is_stream < 2; is_stream++) {
        double failed = world->metrics[METRIC_requests_failed_total];
        uint32_t first = world->sent_count;
        ask(world, "POST", "/v1/completions",
            is_stream ? "{\"prompt\":\"The\",\"n\":3,\"stream\":true}"
                      : "{\"prompt\":\"The\",\"n\":3}");
        msg_t submits[3];
        for (uint32_t i = 0; i < 3; i++) submits[i] = world->sent[first + i].message;
        give_text(world, 0, "w");
        world->sent[world->sent_count - 1] = (fake_sent_t){ prefill_lb, submits[0] };
        finish(world, FINISH_STOP, give_text(world, 0, "v"));
        world->sent[world->sent_count - 1] = (fake_sent_t){ prefill_lb, submits[1] };
        uint32_t cancels = count_sent(world, MSG_cancel);
        give_error(world, ERR_CONTEXT);
        assert_int_equal(http.ends, 1);
        assert_int_equal(http.status, is_stream ? 200 : 400);
        assert_has("\"error\":{\"message\":");
        assert_null(strstr(http.text, "[DONE]"));
        assert_true(world->metrics[METRIC_requests_failed_total] == failed + 2);
        assert_int_equal(count_sent(world, MSG_cancel) >= cancels + 3, 1);
    }
    assert_true(world->metrics[METRIC_requests_accepted_total] ==
                world->metrics[METRIC_requests_finished_total] +
                    world->metrics[METRIC_requests_failed_total]);
    destroy(world);
}

/* ---- silence ---- */

static void answer_probe(actor_t *world, bool is_held)
{
    msg_t m = about(world, MSG_request_held);
    m.request_held.is_held = is_held;
    fake_tell(world, prefill_lb, &m);
    m.request_held.is_held = 0;
    fake_tell(world, decode_lb, &m);
}

static void test_ingress_silence_is_probed_and_twice_nobody_means_lost(void **state)
{
    /* A balancer that restarts forgets its queue: nobody else would ever ask for the request again.
     */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    fake_run(world, 1000000);
    assert_int_equal(count_sent(world, MSG_request_probe), 2);
    answer_probe(world, true);
    fake_run(world, 1000000);
    answer_probe(world, false);
    fake_run(world, 1000000);
    answer_probe(world, false);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 0);
    fake_run(world, 1100000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    finish(world, FINISH_STOP, 0);
    destroy(world);
}

static void test_ingress_new_request_waits_for_a_balancer_that_restarts(void **state)
{
    /* A restart takes a second: clients must not see it, and the request goes as soon as it is
     * over. */
    actor_t *world = new_ingress(NULL);
    world->send_answer = ERR_LOST;
    tell_peer(world, MSG_peer_down, ROLE_prefill_lb);
    ask_stream(world, ",\"n\":2");
    fake_run(world, 2000000);
    assert_int_equal(http.status, 0);
    assert_int_equal(count_sent(world, MSG_submit), 0);
    world->send_answer = ERR_OK;
    tell_peer(world, MSG_peer_up, ROLE_prefill_lb);
    fake_run(world, 1000);
    assert_int_equal(count_sent(world, MSG_submit), 2);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 0);
    fake_run(world, 4000000); /* what was borne before counts no more */
    assert_int_equal(http.status, 0);
    give_error(world, ERR_CONTEXT);
    assert_int_equal(http.status, 400);
    destroy(world);
}

static void test_ingress_balancer_that_stays_away_ends_in_503(void **state)
{
    /* Waiting has an end that a client can act on; the deadline, where it is sooner. */
    actor_t *world = new_ingress(NULL);
    world->send_answer = ERR_LOST;
    ask_stream(world, "");
    fake_run(world, 4900000);
    assert_int_equal(http.status, 0);
    fake_run(world, 500000);
    assert_int_equal(http.status, 503);
    assert_int_equal(http.retry_after, 1);
    assert_has("no worker can take the request now");
    destroy(world);
    world = new_ingress("limits.deadline_seconds=2");
    world->send_answer = ERR_LOST;
    ask_stream(world, "");
    fake_run(world, 2100000);
    assert_int_equal(http.status, 504);
    destroy(world);
}

static void test_ingress_running_request_outlives_a_short_fault_but_not_a_long_one(void **state)
{
    /* The queue of a balancer whose workers are all gone would hold a request until its deadline.
     * What is decoding does not need prefill, but what waits for decode needs decode. */
    actor_t *world = new_ingress(NULL);
    static const role_t absent[] = { ROLE_prefill_worker, ROLE_decode_worker, ROLE_prefill_worker };
    for (uint32_t i = 0; i < 3; i++) {
        bool is_at_decode = i > 0, is_decoding = i == 2;
        ask_stream(world, "");
        tell_peer(world, MSG_peer_down, absent[i]);
        for (uint32_t second = 0; second < 9; second++) {
            fake_run(world, 1000000);
            if (http.ends > 0) break;
            if (second < 4) assert_int_equal(http.status, 0);
            msg_t m = about(world, MSG_request_held);
            m.request_held.is_held = !is_at_decode;
            fake_tell(world, prefill_lb, &m);
            m.request_held.is_held = is_at_decode;
            fake_tell(world, decode_lb, &m);
        }
        assert_int_equal(http.status, is_decoding ? 0 : 503);
        if (!is_decoding) assert_int_equal(http.retry_after, 1);
        tell_peer(world, MSG_peer_up, absent[i]);
    }
    finish(world, FINISH_STOP, 0);
    assert_int_equal(http.ends, 1);
    destroy(world);
}

static void test_ingress_words_of_a_ledger_before_its_restart_do_not_count(void **state)
{
    /* A balancer that just came up knows nothing yet: its "not held" is no proof of a loss. */
    actor_t *world = new_ingress(NULL);
    ask_stream(world, "");
    fake_run(world, 1000000);
    answer_probe(world, false);
    fake_run(world, 1000000);
    answer_probe(world, false);
    tell_peer(world, MSG_peer_up, ROLE_decode_lb);
    fake_run(world, 1000000);
    answer_probe(world, false);
    fake_run(world, 1000000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 0);
    answer_probe(world, false);
    fake_run(world, 1100000);
    assert_int_equal(last(world, MSG_submit)->message.header.attempt, 1);
    finish(world, FINISH_STOP, 0);
    destroy(world);
}

static void test_ingress_deadline_ends_a_silent_request(void **state)
{
    /* I1: one terminal event before the deadline plus a second, whatever happens. */
    actor_t *world = new_ingress("limits.deadline_seconds=3");
    ask_stream(world, "");
    assert_true(last(world, MSG_submit)->message.submit.deadline_us == 3000000);
    fake_run(world, 3100000);
    assert_int_equal(http.status, 504);
    assert_int_equal(http.ends, 1);
    assert_int_equal(count_sent(world, MSG_cancel), 2); /* each balancer, once */
    destroy(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ingress_duplicates_and_old_attempts_change_nothing),
        cmocka_unit_test(test_ingress_only_the_current_attempt_is_heard),
        cmocka_unit_test(test_ingress_answers_to_probes_of_old_attempts_are_not_believed),
        cmocka_unit_test(test_ingress_nothing_follows_the_end),
        cmocka_unit_test(test_ingress_lost_worker_resumes_where_it_stopped),
        cmocka_unit_test(test_ingress_gap_in_tokens_starts_the_next_attempt),
        cmocka_unit_test(test_ingress_attempts_run_out_with_one_error),
        cmocka_unit_test(test_ingress_lost_word_of_the_end_is_found),
        cmocka_unit_test(test_ingress_failing_choice_ends_the_whole_call),
        cmocka_unit_test(test_ingress_silence_is_probed_and_twice_nobody_means_lost),
        cmocka_unit_test(test_ingress_new_request_waits_for_a_balancer_that_restarts),
        cmocka_unit_test(test_ingress_balancer_that_stays_away_ends_in_503),
        cmocka_unit_test(test_ingress_running_request_outlives_a_short_fault_but_not_a_long_one),
        cmocka_unit_test(test_ingress_words_of_a_ledger_before_its_restart_do_not_count),
        cmocka_unit_test(test_ingress_deadline_ends_a_silent_request),
    };
    return cmocka_run_group_tests(tests, load_tokenizer, unload_tokenizer);
}
