/* actors/supervisor.h - starts, watches and restarts the processes of one host. */
#ifndef ACTORS_SUPERVISOR_H
#define ACTORS_SUPERVISOR_H

#include "../runtime/actor.h"

extern const actor_class_t supervisor_class;

#endif
