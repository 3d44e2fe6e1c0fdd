/* kernels/ops.c - which tables there are, and which of them this machine can run. */
#include "ops.h"

#include "cpu/fast.h"

#include <string.h>

static int is_always(void)
{
    return 1;
}

const ops_choice_t ops_cpu_choices[] = {
    { &ops_judge, is_always, 0 },
    { &ops_avx2, avx2_is_supported, 0 },
    { &ops_avx512, avx512_is_supported, 0 },
    { &ops_avx512_bf16, avx512_bf16_is_supported, 1 },
    { &ops_amx, amx_is_supported, 0 },
};
const size_t ops_cpu_choice_count = sizeof ops_cpu_choices / sizeof ops_cpu_choices[0];

const ops_t *ops_find(const char *name)
{
    if (strcmp(name, "judge") == 0) return &ops_judge;
    int is_auto = strcmp(name, "auto") == 0;
    for (size_t i = ops_cpu_choice_count; i-- > 0;) {
        const ops_choice_t *choice = &ops_cpu_choices[i];
        if (is_auto && choice->is_rounding) continue;
        if ((is_auto || strcmp(name, choice->ops->name) == 0) && choice->is_supported())
            return choice->ops;
    }
    return NULL;
}
