/* runtime/base/company.c - who belongs to the company, by configuration. */
#include "company.h"

uint32_t company_count(const config_t *config, role_t role)
{
    switch (role) {
    case ROLE_client:
        return 0;
    case ROLE_ingress:
        return (uint32_t)config->company.ingresses;
    case ROLE_prefill_worker:
        return (uint32_t)config->company.prefill_workers;
    case ROLE_decode_worker:
        return (uint32_t)config->company.decode_workers;
    default:
        return role < ROLES_MAX ? 1 : 0;
    }
}

uint32_t company_size(const config_t *config)
{
    uint32_t size = 0;
    for (role_t role = 0; role < ROLES_MAX; role++) size += company_count(config, role);
    return size;
}
