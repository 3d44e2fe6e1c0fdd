/* tests/kernels/cuda/families.h - what every family of families.def defines, and who runs them all.
 */
#ifndef TESTS_KERNELS_CUDA_FAMILIES_H
#define TESTS_KERNELS_CUDA_FAMILIES_H

#ifdef __cplusplus
struct harness_t;

#define FAMILY(name)                                                                               \
    void run_small_checks_##name(harness_t *self);                                                 \
    void run_checks_##name(harness_t *self);                                                       \
    void run_timings_##name(harness_t *self);
#include "families.def"
#undef FAMILY

extern "C" {
#endif

/* Arguments: [--small | --checks | --timings] [--table FILE] [FAMILY...].  --small: only checks
 * small enough for compute-sanitizer; --table: timings as CSV.  By default every family's checks,
 * then its timings.  Returns an exit status: 1 when a check failed or there is no such GPU, 2 for
 * arguments that are not understood. */
int cuda_families_run(int argc, char **argv);

#ifdef __cplusplus
}
#endif
#endif
