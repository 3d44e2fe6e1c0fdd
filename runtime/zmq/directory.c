/* runtime/zmq/directory.c - the directory of sockets and pools, and the lock that makes an identity
 * unique on a host.
 *
 *   .                       held by `troupe up`: a lock without a name that could be deleted
 *   ROLE-INDEX.lock         held while that actor lives, removed by itself
 *   ROLE-INDEX.sock         its ROUTER; libzmq leaves the file behind, we do not
 *   ROLE-INDEX-EPOCH.pool   its blocks (runtime/net/wire_shm.c)
 *   ROLE-INDEX.why          what it died of, until its supervisor has read it
 *   ep-...                  memory of an expert-parallel group; no rank knows whether it is the
 * last, so the supervisor removes it
 */
#include <dirent.h>
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

/* Somebody who only looks whether an identity is taken holds its lock for a moment. */
enum { LOCK_TRIES = 10, LOCK_PAUSE_US = 10000 };

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

/* ---- the lock ---- */

static void print_own_path(const char *directory, address_t who, const char *suffix, char *buf)
{
    (void)snprintf(buf, ACTOR_PATH_BYTES, "%s/%s-%u.%s", directory, role_names[who.role], who.index,
                   suffix);
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

/* Whoever leaves removes the file while it holds the lock; whoever then gets the lock of the
 * removed file sees that it is not current, and tries again with a new one. */
err_t identity_lock(actor_t *world)
{
    char path[ACTOR_PATH_BYTES];
    print_own_path(world->directory, world->self, "lock", path);
    for (int tries = 0;;) {
        int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (descriptor < 0) {
            actor_log(world, LOG_ERROR, "WIRE-LOCK", "%s: %s", path, strerror(errno));
            return ERR_IO;
        }
        bool is_held = flock(descriptor, LOCK_EX | LOCK_NB) == 0;
        world->lock_descriptor = descriptor;
        if (is_held && is_current(descriptor, path)) break;
        world->lock_descriptor = -1;
        err_t error =
            is_held || ++tries < LOCK_TRIES ? ERR_OK : refuse_second(world, descriptor, path);
        (void)close(descriptor);
        if (error) return error;
        if (!is_held) (void)usleep(LOCK_PAUSE_US);
    }
    if (ftruncate(world->lock_descriptor, 0) ||
        dprintf(world->lock_descriptor, "%d", (int)getpid()) < 0)
        actor_log(world, LOG_WARN, "WIRE-LOCK", "%s: %s", path, strerror(errno));
    if (world->self.role == ROLE_supervisor) directory_sweep(world);
    return ERR_OK;
}

/* The socket's file first: while we hold the lock nobody else has bound it. */
void identity_unlock(actor_t *world)
{
    char path[ACTOR_PATH_BYTES];
    if (world->lock_descriptor < 0) return;
    if (world->self.role == ROLE_supervisor) directory_sweep(world);
    print_own_path(world->directory, world->self, "sock", path);
    if (world->config->wire.carrier == 0) (void)unlink(path);
    print_own_path(world->directory, world->self, "lock", path);
    (void)unlink(path);
    (void)close(world->lock_descriptor);
    world->lock_descriptor = -1;
}

/* ---- what others left behind ---- */

static bool has_suffix(const char *name, const char *suffix)
{
    const char *found = strrchr(name, '.');
    return found && strcmp(found + 1, suffix) == 0;
}

/* The lock of somebody who is gone, held; -1: its owner lives, or left just now. */
static int take_lock(int directory, const char *name, bool *is_alive)
{
    int descriptor = openat(directory, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (descriptor < 0) return -1;
    if (flock(descriptor, LOCK_EX | LOCK_NB) == 0) return descriptor;
    *is_alive = *is_alive || errno == EWOULDBLOCK;
    (void)close(descriptor);
    return -1;
}

/* Whether a lock other than `own` (NULL: any) is held. */
static bool is_inhabited(const char *path, const char *own)
{
    bool is_alive = false;
    DIR *directory = opendir(path);
    if (!directory) return false;
    for (const struct dirent *entry; (entry = readdir(directory));) {
        if (!has_suffix(entry->d_name, "lock") || (own && strcmp(entry->d_name, own) == 0))
            continue;
        int lock = take_lock(dirfd(directory), entry->d_name, &is_alive);
        if (lock >= 0) (void)close(lock);
    }
    (void)closedir(directory);
    return is_alive;
}

bool world_is_inhabited(const config_t *config)
{
    char path[PATH_BYTES];
    return world_directory(config, path, sizeof path) == ERR_OK && is_inhabited(path, NULL);
}

/* A lock is removed by who holds it, as its owner would. */
static void remove_leftover(int directory, const char *name)
{
    bool is_alive = false;
    int lock = has_suffix(name, "lock") ? take_lock(directory, name, &is_alive) : -1;
    bool is_ours = has_suffix(name, "sock") || has_suffix(name, "pool") ||
                   has_suffix(name, "why") || strncmp(name, "ep-", 3) == 0 || lock >= 0;
    if (is_ours) (void)unlinkat(directory, name, 0);
    if (lock >= 0) (void)close(lock);
}

/* Only while no other actor lives here: nobody but us would start one. */
void directory_sweep(const actor_t *world)
{
    char own[64];
    (void)snprintf(own, sizeof own, "%s-%u.lock", role_names[world->self.role], world->self.index);
    if (is_inhabited(world->directory, own)) return;
    DIR *directory = opendir(world->directory);
    if (!directory) return;
    for (const struct dirent *entry; (entry = readdir(directory));)
        if (strcmp(entry->d_name, own) != 0) remove_leftover(dirfd(directory), entry->d_name);
    (void)closedir(directory);
}

/* ---- last words ---- */

void why_leave(const actor_t *world)
{
    char path[ACTOR_PATH_BYTES];
    if (!world->directory[0] || !world->why.text[0]) return;
    print_own_path(world->directory, world->self, "why", path);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0) return;
    (void)dprintf(file, "%s", world->why.text);
    (void)close(file);
}

void why_take(const actor_t *world, address_t who, world_why_t *why)
{
    char path[ACTOR_PATH_BYTES];
    print_own_path(world->directory, who, "why", path);
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t size = file < 0 ? 0 : read(file, why->text, sizeof why->text - 1);
    why->text[size > 0 ? size : 0] = 0;
    if (file < 0) return;
    (void)close(file);
    (void)unlink(path);
}
