/* actors/prefill_worker.h - computes prompts in chunks and offers their KV. */
#ifndef ACTORS_PREFILL_WORKER_H
#define ACTORS_PREFILL_WORKER_H

#include "../runtime/actor.h"

extern const actor_class_t prefill_worker_class;

#endif
