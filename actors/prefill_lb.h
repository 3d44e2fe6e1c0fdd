/* actors/prefill_lb.h - chooses the prefill worker for each prompt. */
#ifndef ACTORS_PREFILL_LB_H
#define ACTORS_PREFILL_LB_H

#include "../runtime/actor.h"

extern const actor_class_t prefill_lb_class;

#endif
