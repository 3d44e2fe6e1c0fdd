/* runtime/base/metrics.c - counters, gauges and histograms of one actor, and their exposition. */
#include "../metrics.h"

#include "../../proto/messages.h"
#include "../invariant.h"
#include "page.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>

/* From half a millisecond (a decode step on a GPU) to a minute (a long prompt that waited). */
const double histogram_bounds[HISTOGRAM_BUCKETS] = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
};

/* Slots of a histogram: one count per bucket (not cumulative), then sum, then count. */
enum { SLOT_SUM = HISTOGRAM_BUCKETS, SLOT_COUNT, HISTOGRAM_SLOTS };

/* clang-format off */
/* Never made: its members' offsets are the slot numbers. */
typedef struct {
#define COUNTER(name, doc)   double name;
#define GAUGE(name, doc)     double name;
#define HISTOGRAM(name, doc) double name[HISTOGRAM_SLOTS];
#include "../../proto/metrics.def"
#undef COUNTER
#undef GAUGE
#undef HISTOGRAM
} layout_t;
static_assert(sizeof(layout_t) / sizeof(double) <= METRIC_SLOTS_MAX, "a report holds every slot");

#define SLOT(name) (uint32_t)(offsetof(layout_t, name) / sizeof(double))
const metric_desc_t metric_descs[METRICS_MAX] = {
#define COUNTER(name, doc)   { #name, METRIC_COUNTER, doc, SLOT(name) },
#define GAUGE(name, doc)     { #name, METRIC_GAUGE, doc, SLOT(name) },
#define HISTOGRAM(name, doc) { #name, METRIC_HISTOGRAM, doc, SLOT(name) },
#include "../../proto/metrics.def"
#undef COUNTER
#undef GAUGE
#undef HISTOGRAM
};
/* clang-format on */

uint32_t metrics_slot_count(void)
{
    return sizeof(layout_t) / sizeof(double);
}

static double *slot_of(metrics_t *self, metric_t metric, metric_kind_t kind)
{
    invariant(metric < METRICS_MAX);
    invariant(metric_descs[metric].kind == kind);
    return self->slots + metric_descs[metric].slot;
}

void metrics_count(metrics_t *self, metric_t counter, uint64_t by)
{
    *slot_of(self, counter, METRIC_COUNTER) += (double)by;
}

void metrics_gauge(metrics_t *self, metric_t gauge, double value)
{
    invariant(!isnan(value));
    *slot_of(self, gauge, METRIC_GAUGE) = value;
}

void metrics_observe(metrics_t *self, metric_t histogram, double value)
{
    invariant(isfinite(value));
    double *slots = slot_of(self, histogram, METRIC_HISTOGRAM);
    uint32_t bucket = 0;
    while (bucket < HISTOGRAM_BUCKETS && value > histogram_bounds[bucket]) bucket++;
    if (bucket < HISTOGRAM_BUCKETS) slots[bucket] += 1;
    slots[SLOT_SUM] += value;
    slots[SLOT_COUNT] += 1;
}

/* ---- exposition ---- */

static void print_histogram(page_t *page, const metric_desc_t *metric, const metrics_subject_t *of)
{
    const double *slots = of->slots + metric->slot;
    double sum = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        sum += slots[i];
        page_print(page, "troupe_%s_bucket{role=\"%s\",index=\"%u\",le=\"%g\"} %.17g\n",
                   metric->name, of->role, of->index, histogram_bounds[i], sum);
    }
    page_print(page, "troupe_%s_bucket{role=\"%s\",index=\"%u\",le=\"+Inf\"} %.17g\n", metric->name,
               of->role, of->index, slots[SLOT_COUNT]);
    page_print(page, "troupe_%s_sum{role=\"%s\",index=\"%u\"} %.17g\n", metric->name, of->role,
               of->index, slots[SLOT_SUM]);
    page_print(page, "troupe_%s_count{role=\"%s\",index=\"%u\"} %.17g\n", metric->name, of->role,
               of->index, slots[SLOT_COUNT]);
}

static void print_metric(page_t *page, const metric_desc_t *metric, const metrics_subject_t *of)
{
    if (metric->kind == METRIC_HISTOGRAM) {
        print_histogram(page, metric, of);
        return;
    }
    page_print(page, "troupe_%s{role=\"%s\",index=\"%u\"} %.17g\n", metric->name, of->role,
               of->index, of->slots[metric->slot]);
}

size_t metrics_print(const metrics_subject_t *subjects, size_t count, char *buf, size_t cap)
{
    static const char *const kinds[] = { "counter", "gauge", "histogram" };
    page_t page = { .buf = buf, .cap = cap };
    if (cap > 0) buf[0] = 0;
    for (size_t i = 0; i < METRICS_MAX; i++) {
        const metric_desc_t *metric = &metric_descs[i];
        page_print(&page, "# HELP troupe_%s %s\n# TYPE troupe_%s %s\n", metric->name, metric->doc,
                   metric->name, kinds[metric->kind]);
        for (size_t j = 0; j < count; j++) print_metric(&page, metric, &subjects[j]);
    }
    return page.need;
}
