/* actors/ep_balancer.h - gathers how busy the experts are. */
#ifndef ACTORS_EP_BALANCER_H
#define ACTORS_EP_BALANCER_H

#include "../runtime/actor.h"

extern const actor_class_t ep_balancer_class;

#endif
