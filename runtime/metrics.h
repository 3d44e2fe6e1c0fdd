/* runtime/metrics.h - counters, gauges and histograms of one actor, from proto/metrics.def. */
#ifndef RUNTIME_METRICS_H
#define RUNTIME_METRICS_H

#include <stddef.h>
#include <stdint.h>

/* Upper bounds of every histogram's buckets, seconds; +Inf is implied. */
enum { HISTOGRAM_BUCKETS = 16 };
extern const double histogram_bounds[HISTOGRAM_BUCKETS];

typedef enum {
#define COUNTER(name, doc)   METRIC_##name,
#define GAUGE(name, doc)     METRIC_##name,
#define HISTOGRAM(name, doc) METRIC_##name,
#include "../proto/metrics.def"
#undef COUNTER
#undef GAUGE
#undef HISTOGRAM
    METRICS_MAX
} metric_t;

typedef enum { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM } metric_kind_t;

typedef struct {
    const char *name;
    metric_kind_t kind;
    const char *doc;
    uint32_t slot; /* first slot in a report */
} metric_desc_t;

extern const metric_desc_t metric_descs[METRICS_MAX];

/* Slots of all metrics together; at most METRIC_SLOTS_MAX. */
uint32_t metrics_slot_count(void);

typedef struct {
    double *slots; /* metrics_slot_count() of them; owned by whoever made it */
} metrics_t;

void metrics_count(metrics_t *self, metric_t counter, uint64_t by);
void metrics_gauge(metrics_t *self, metric_t gauge, double value);
void metrics_observe(metrics_t *self, metric_t histogram, double value);

/* One subject of an exposition: the slots of one actor and its labels. */
typedef struct {
    const char *role;
    uint32_t index;
    const double *slots;
} metrics_subject_t;

/* Prometheus text format 0.0.4 of all subjects, names prefixed with troupe_, grouped by metric with
 * HELP and TYPE once.  Returns the bytes needed; writes at most cap, NUL-terminated. */
size_t metrics_print(const metrics_subject_t *subjects, size_t count, char *buf, size_t cap);

#endif
