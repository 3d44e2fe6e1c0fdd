/* tests/kernels/checks_table.h - every op of a table, for the tests and the self-test. */
#ifndef TESTS_KERNELS_CHECKS_TABLE_H
#define TESTS_KERNELS_CHECKS_TABLE_H

#include "checks_attention.h"
#include "checks_gemm.h"
#include "checks_rows.h"

#include <string.h>

/* Everything, on a queue of its own; the hash must not depend on the threads. */
static inline check_t check_table(const ops_t *ops, uint32_t threads)
{
    int is_bf16 = strcmp(ops->name, "avx512_bf16") == 0, is_amx = strcmp(ops->name, "amx") == 0;
    check_t self = { .ops = ops,
                     .q = queue_new_cpu((size_t)8 << 20, threads),
                     .random = 42,
                     .hash = 0xcbf29ce484222325U,
                     .gemm_tolerance = is_bf16  ? 5e-3
                                       : is_amx ? 1e-5
                                                : 2e-6 };
    check_gemms(&self);
    check_grouped_gemms(&self);
    check_attention(&self);
    check_rows(&self);
    queue_destroy(&self.q);
    return self;
}

#endif
