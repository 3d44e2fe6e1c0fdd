/* runtime/world.h - how a program starts actors in the real world (actor_zmq.c). */
#ifndef RUNTIME_WORLD_H
#define RUNTIME_WORLD_H

#include "actor.h"

/* Why a world ended as it did: one line for people. */
typedef struct {
    char text[512];
} world_why_t;

typedef struct {
    const actor_class_t *class;
    uint32_t index;
    uint64_t epoch;          /* 0: from the wall clock; else a supervisor that gave it wants to know
                                why this life failed */
    const config_t *config;  /* must outlive the world */
    const char *program;     /* supervisor: path of the troupe binary to start children with */
    const char *config_file; /* supervisor: what children read; NULL: defaults */
    bool is_one_process;     /* supervisor: children are threads of this process */
    int stop_descriptor; /* an eventfd: readable means stop; 0: SIGTERM and SIGINT do, in one actor
                            of a process */
    uint64_t model_key; /* sent in hello: two ends with different keys refuse to pair; 0: pairs with
                           any */
    world_why_t *why;   /* set when world_run fails; may be NULL */
} world_options_t;

/* Run one actor until it is told to stop (SIGTERM, SIGINT, MSG_stop), then drain and return.
 * Owns the calling thread; opens its sockets in it.  An error: it could not start, its engine could
 * not, or (supervisor) restarts did not help; what was wrong has been logged and is in *why. */
MUST_CHECK err_t world_run(const world_options_t *options);

/* Raise the limit of open files as far as it goes.  ERR_CONFIG: an actor of the company (where all
 * are threads of one process: all of them together) may need more, and *why says how many. */
MUST_CHECK err_t world_raise_descriptors(const config_t *config, bool is_one_process,
                                         world_why_t *why);

/* Every class, in the order of roles.def; NULL where a role is not an actor of ours.  Defined in
 * actors/main.c's table. */
extern const actor_class_t *const actor_classes[ROLES_MAX];

/* Endpoint of an actor as the configuration says: "ipc://DIR/role-index.sock" or "tcp://host:port".
 */
size_t world_endpoint(const config_t *config, address_t who, char *buf, size_t cap);

/* Directory of sockets and pools; made with mode 0700 when missing, refused when it is not ours or
 * others can enter. */
MUST_CHECK err_t world_directory(const config_t *config, char *buf, size_t cap);

/* Whether any actor runs in that directory: those of a supervisor that was killed drain first. */
bool world_is_inhabited(const config_t *config);

#endif
