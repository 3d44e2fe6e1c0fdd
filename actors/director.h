/* actors/director.h - knows who is alive and how they do, and tells who asks. */
#ifndef ACTORS_DIRECTOR_H
#define ACTORS_DIRECTOR_H

#include "../runtime/actor.h"

extern const actor_class_t director_class;

#endif
