/* runtime/process.h - the process port of the supervisor: children of this host. */
#ifndef RUNTIME_PROCESS_H
#define RUNTIME_PROCESS_H

#include "actor.h"

/* Room for the children; only inside init. */
MUST_CHECK err_t actor_process_open(actor_t *world);

/* Start one actor as a process of its own (a thread with --one-process); its epoch is the one
 * given, which must be larger than that of its last life.  Its end comes back as
 * MSG_process_exited.  *pid is set on success. */
MUST_CHECK err_t actor_process_start(actor_t *world, address_t who, uint64_t epoch, uint32_t *pid);

/* The process id of the supervisor itself. */
uint32_t actor_process_self(const actor_t *world);

/* Ask it to stop (SIGTERM), or make it (SIGKILL).  Pid 0 is the supervisor itself, which then ends
 * with ERR_INTERNAL: what it watched cannot be helped by restarts.  A pid that
 * is gone: nothing happens. */
void actor_process_stop(actor_t *world, uint32_t pid, bool is_forced);

/* Wall clock, for epochs that grow across restarts of the whole company; us since 1970. */
uint64_t actor_wall_us(const actor_t *world);

#endif
