/* runtime/zmq/directory.c - the directory of sockets and pools, and the lock that makes an identity
 * unique on a host. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

/* A socket's path must fit sockaddr_un: 107 bytes with the longest name,
 * "/prefill_worker-255.sock". */
enum { DIRECTORY_MAX = 107 - 24 };

static int print_path(const config_t *config, char *buf, size_t cap)
{
    if (config->wire.directory[0]) return snprintf(buf, cap, "%s", config->wire.directory);
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (runtime && runtime[0] == '/') return snprintf(buf, cap, "%s/troupe", runtime);
    return snprintf(buf, cap, "/tmp/troupe-%u", (unsigned)getuid());
}

static err_t refuse(const char *path, const char *why)
{
    (void)fprintf(stderr, "WIRE-DIRECTORY %s: %s\n", path, why);
    return ERR_CONFIG;
}

err_t world_directory(const config_t *config, char *buf, size_t cap)
{
    int length = print_path(config, buf, cap);
    if (length < 0 || (size_t)length >= cap || length > DIRECTORY_MAX)
        return refuse(buf, "wire.directory is too long; at most 83 bytes fit a socket's address");
    if (mkdir(buf, 0700) && errno != EEXIST) return refuse(buf, strerror(errno));
    struct stat found;
    if (lstat(buf, &found)) return refuse(buf, strerror(errno));
    if (!S_ISDIR(found.st_mode)) return refuse(buf, "found something that is not a directory");
    if (found.st_uid != geteuid()) return refuse(buf, "it belongs to another user");
    if (found.st_mode & 077)
        return refuse(buf, "others can enter it; mode 0700 is needed (chmod 700)");
    return ERR_OK;
}

err_t identity_lock(actor_t *world)
{
    char path[PATH_BYTES + 64];
    const char *role = role_names[world->self.role];
    (void)snprintf(path, sizeof path, "%s/%s-%u.lock", world->directory, role, world->self.index);
    int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (descriptor < 0) {
        actor_log(world, LOG_ERROR, "WIRE-LOCK", "%s: %s", path, strerror(errno));
        return ERR_IO;
    }
    if (flock(descriptor, LOCK_EX | LOCK_NB)) {
        char owner[32] = "";
        if (read(descriptor, owner, sizeof owner - 1) < 0) owner[0] = 0;
        actor_log(
            world, LOG_ERROR, "WIRE-IDENTITY",
            "%s.%u already runs as process %s; its lock is %s. Stop it first, or choose another "
            "wire.directory",
            role, world->self.index, owner, path);
        (void)close(descriptor);
        return ERR_CONFIG;
    }
    if (ftruncate(descriptor, 0) || dprintf(descriptor, "%d", (int)getpid()) < 0)
        actor_log(world, LOG_WARN, "WIRE-LOCK", "%s: %s", path, strerror(errno));
    world->lock_descriptor = descriptor;
    return ERR_OK;
}

void identity_unlock(actor_t *world)
{
    if (world->lock_descriptor >= 0) (void)close(world->lock_descriptor);
    world->lock_descriptor = -1;
}
