/* runtime/engine/timings.h - measured times of a layer, as `kernels_bench cuda --table FILE` writes
 * them, for engines that only say how long a step takes. */
#ifndef RUNTIME_ENGINE_TIMINGS_H
#define RUNTIME_ENGINE_TIMINGS_H

#include "../model/config.h"
#include "../policy/step_time.h"

typedef struct {
    step_table_t prefill, decode; /* lines layer_prefill and layer_decode; others are passed over */
} timings_t;

/* ERR_MODEL with file, line and what is wrong; *self is only written on success. */
MUST_CHECK err_t timings_read(timings_t *self, const char *path, error_text_t *why);

#endif
