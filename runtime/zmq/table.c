/* runtime/zmq/table.c - who is there by configuration, who may talk to whom, and under which
 * address. */
#include <stdio.h>
#include <string.h>

#include "../base/company.h"
#include "state.h"

/* clang-format off */
static const link_t links[] = {
#define LINK(connector, binder, mark, doc) { ROLE_##connector, ROLE_##binder, mark },
#include "../../proto/links.def"
#undef LINK
};
/* clang-format on */

const link_t *link_between(role_t a, role_t b)
{
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++) {
        if (links[i].connector == a && links[i].binder == b) return &links[i];
        if (links[i].connector == b && links[i].binder == a) return &links[i];
    }
    return NULL;
}

/* Measured: about 20 of its own, up to 16 pools of others; four for a peer that it connects to, one
 * or, while that reconnects, two for one that connects to it. */
uint32_t role_descriptors(const config_t *config, role_t role)
{
    enum { OWN = 48, PER_PEER = 4 };
    uint32_t peers = 0;
    for (role_t other = 0; other < ROLES_MAX; other++)
        if (link_between(role, other)) peers += company_count(config, other);
    return OWN + PER_PEER * peers;
}

/* tcp: actors take ports in the order of roles.def. */
static uint32_t port_of(const config_t *config, address_t who)
{
    uint32_t port = (uint32_t)config->wire.base_port;
    for (role_t role = 0; role < who.role; role++) port += company_count(config, role);
    return port + who.index;
}

size_t world_endpoint(const config_t *config, address_t who, char *buf, size_t cap)
{
    char directory[PATH_BYTES];
    if (config->wire.carrier == 0) {
        if (world_directory(config, directory, sizeof directory)) return 0;
        return (size_t)snprintf(buf, cap, "ipc://%s/%s-%u.sock", directory, role_names[who.role],
                                who.index);
    }
    return (size_t)snprintf(buf, cap, "tcp://%s:%u", config->wire.host, port_of(config, who));
}
