/* runtime/base/company.h - who belongs to the company, by configuration. */
#ifndef RUNTIME_BASE_COMPANY_H
#define RUNTIME_BASE_COMPANY_H

#include "../../proto/config.h"
#include "../../proto/messages.h"

/* Actors of a role; 0 for clients, who are no part of it. */
uint32_t company_count(const config_t *config, role_t role);

/* All of them: the sum over roles. */
uint32_t company_size(const config_t *config);

#endif
