/* actors/decode_lb.h - chooses the decode worker for each prompt. */
#ifndef ACTORS_DECODE_LB_H
#define ACTORS_DECODE_LB_H

#include "../runtime/actor.h"

extern const actor_class_t decode_lb_class;

#endif
