/* cli/company.h - the company that runs on this machine, as a command sees it. */
#ifndef CLI_COMPANY_H
#define CLI_COMPANY_H

#include <cjson/cJSON.h>

#include "client.h"

/* The file where a running company keeps its effective configuration; false: no directory. */
bool company_file(const config_t *config, char *path, size_t cap);

/* Whether a `troupe up` holds the configuration's directory: of its locks the one that nobody can
 * delete. */
bool company_is_running(const config_t *config);

/* Say that the director does not answer, and whether a company runs; returns the exit code. */
int company_unreachable(const config_t *config);

/* Ask the director.  NULL: no answer within timeout_ms.  The caller deletes the object. */
cJSON *company_status(client_t *director, int timeout_ms);

/* How many actors of a status are up. */
uint32_t company_up_count(const cJSON *status);

/* Where clients on this machine reach a company with this http.listen, "host:port": the loopback
 * address is in the place of a wildcard. */
typedef struct {
    char text[272];
} company_address_t;
company_address_t company_address(const char *listen);

/* Whether GET /ready at http.listen is answered 200 within a second. */
bool company_is_ready(const config_t *config);

#endif
