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

static void print_lock_path(const actor_t *world, char *buf, size_t cap)
{
    (void)snprintf(buf, cap, "%s/%s-%u.lock", world->directory, role_names[world->self.role],
                   world->self.index);
}

/* Whether the file that we locked is still the one under that name: its last owner removed it on
 * leaving. */
static bool is_current(int descriptor, const char *path)
{
    struct stat held, named;
    return fstat(descriptor, &held) == 0 && stat(path, &named) == 0 &&
           held.st_ino == named.st_ino && held.st_dev == named.st_dev;
}

static err_t refuse_second(actor_t *world, int descriptor, const char *path)
{
    char owner[32] = "";
    if (read(descriptor, owner, sizeof owner - 1) < 0) owner[0] = 0;
    actor_log(world, LOG_ERROR, "WIRE-IDENTITY",
              "%s.%u already runs as process %s; its lock is %s. Stop it first, or choose another "
              "wire.directory",
              role_names[world->self.role], world->self.index, owner, path);
    return ERR_CONFIG;
}

err_t identity_lock(actor_t *world)
{
    char path[PATH_BYTES + 64];
    print_lock_path(world, path, sizeof path);
    for (;;) {
        int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (descriptor < 0) {
            actor_log(world, LOG_ERROR, "WIRE-LOCK", "%s: %s", path, strerror(errno));
            return ERR_IO;
        }
        if (flock(descriptor, LOCK_EX | LOCK_NB)) {
            err_t error = refuse_second(world, descriptor, path);
            (void)close(descriptor);
            return error;
        }
        world->lock_descriptor = descriptor;
        if (is_current(descriptor, path)) break;
        (void)close(descriptor);
        world->lock_descriptor = -1;
    }
    if (ftruncate(world->lock_descriptor, 0) ||
        dprintf(world->lock_descriptor, "%d", (int)getpid()) < 0)
        actor_log(world, LOG_WARN, "WIRE-LOCK", "%s: %s", path, strerror(errno));
    return ERR_OK;
}

/* The socket's file first: while we hold the lock nobody else has bound it. */
void identity_unlock(actor_t *world)
{
    static const char ipc[] = "ipc://";
    char path[PATH_BYTES + 64];
    if (world->lock_descriptor < 0) return;
    size_t size = world_endpoint(world->config, world->self, path, sizeof path);
    if (size > 0 && strncmp(path, ipc, sizeof ipc - 1) == 0) (void)unlink(path + sizeof ipc - 1);
    print_lock_path(world, path, sizeof path);
    (void)unlink(path);
    (void)close(world->lock_descriptor);
    world->lock_descriptor = -1;
}
