/* actors/decode_worker.h - pulls a prompt's KV and generates, one step of all its requests at a
 * time. */
#ifndef ACTORS_DECODE_WORKER_H
#define ACTORS_DECODE_WORKER_H

#include "../runtime/actor.h"

extern const actor_class_t decode_worker_class;

#endif
