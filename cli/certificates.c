/* cli/certificates.c - CURVE certificates of the company: one file pair per actor in a private
 * directory. */
#include "certificates.h"

#include <czmq.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "../runtime/base/company.h"
#include "cli.h"

static const address_t client_address = { ROLE_client, 0 };

static bool certificate_path(char path[4096], const char *dir, address_t who)
{
    return snprintf(path, 4096, "%s/%s-%u.cert", dir, role_names[who.role], who.index) < 4096;
}

/* The directory, ours alone; made when missing. */
static bool open_directory(const char *dir)
{
    struct stat found;
    if (mkdir(dir, 0700) != 0 && errno != EEXIST) {
        complain("%s cannot be made: %s", dir, strerror(errno));
        return false;
    }
    if (stat(dir, &found) == 0 && S_ISDIR(found.st_mode) && found.st_uid == geteuid() &&
        (found.st_mode & 077) == 0)
        return true;
    complain("%s must be a directory of yours that nobody else can enter (mode 0700)", dir);
    return false;
}

static bool make_one(const char *dir, address_t who, uint32_t *made)
{
    char path[4096];
    if (!certificate_path(path, dir, who)) return false;
    if (access(path, F_OK) == 0) return true;
    zcert_t *certificate = zcert_new();
    if (certificate) zcert_set_meta(certificate, "name", "%s.%u", role_names[who.role], who.index);
    bool is_saved = certificate && zcert_save(certificate, path) == 0;
    zcert_destroy(&certificate);
    if (!is_saved) complain("%s cannot be written", path);
    *made += is_saved;
    return is_saved;
}

bool certificates_make(const config_t *config, const char *dir, uint32_t *made)
{
    *made = 0;
    if (!open_directory(dir) || !make_one(dir, client_address, made)) return false;
    for (role_t role = 0; role < ROLES_MAX; role++)
        for (uint32_t index = 0; index < company_count(config, role); index++)
            if (!make_one(dir, (address_t){ role, index }, made)) return false;
    return true;
}

static zcert_t *load(const char *dir, address_t who)
{
    char path[4096];
    zcert_t *certificate = certificate_path(path, dir, who) ? zcert_load(path) : NULL;
    if (!certificate)
        complain("%s: no certificate of %s.%u; `troupe keys` makes them", dir, role_names[who.role],
                 who.index);
    return certificate;
}

bool certificates_use(const config_t *config, void *socket, address_t server)
{
    static const int carrier_tcp = 1; /* the second word of wire.carrier */
    if (config->wire.carrier != carrier_tcp || config->wire.insecure) return true;
    zsys_handler_set(NULL); /* CZMQ would take Ctrl-C for itself */
    zcert_t *own = load(config->wire.keys, client_address),
            *other = own ? load(config->wire.keys, server) : NULL;
    if (other) {
        zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, zcert_public_key(other), 32);
        zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, zcert_public_key(own), 32);
        zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, zcert_secret_key(own), 32);
    }
    bool is_done = other != NULL;
    zcert_destroy(&own);
    zcert_destroy(&other);
    return is_done;
}
