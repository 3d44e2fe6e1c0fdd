/* actors/ingress.h - the actor that owns a request from its arrival to its one terminal event. */
#ifndef ACTORS_INGRESS_H
#define ACTORS_INGRESS_H

#include "../runtime/actor.h"

extern const actor_class_t ingress_class;

#endif
