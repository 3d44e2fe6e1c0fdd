/* runtime/net/wire_shm.c - regions in the shared memory of one host.
 *
 * A region is a sealed memfd; a symbolic link ROLE-INDEX-EPOCH.pool in the wire directory leads to
 * it through /proc.  So the memory goes with the process however it ends, nothing is ever written
 * back to a disk, and a link that is left over leads nowhere.  Readers copy with pread: a region
 * that vanishes is an error, not a signal.
 */
#include "wire.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 256, SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL };

typedef struct {
    char path[PATH_BYTES];
    int descriptor;
    void *base;
    size_t size;
} region_t;

typedef struct {
    int descriptor;
    uint64_t size;
    char path[PATH_BYTES];
} reader_t;

/* Where the link lies; false: the directory's name is too long. */
static bool print_path(const wire_name_t *name, char *buf)
{
    int size = snprintf(buf, PATH_BYTES, "%s/%s-%u-%016" PRIx64 ".pool", name->directory,
                        role_names[name->owner.role], name->owner.index, name->epoch);
    return size > 0 && size < PATH_BYTES;
}

/* Links of earlier lives; the owner holds the lock of its identity, so none of them is in use. */
static void remove_stale(const wire_name_t *name)
{
    char prefix[64];
    int length =
        snprintf(prefix, sizeof prefix, "%s-%u-", role_names[name->owner.role], name->owner.index);
    DIR *directory = opendir(name->directory);
    if (!directory) return;
    for (const struct dirent *entry; (entry = readdir(directory));) {
        const char *suffix = strrchr(entry->d_name, '.');
        if (strncmp(entry->d_name, prefix, (size_t)length) != 0) continue;
        if (suffix && strcmp(suffix, ".pool") == 0)
            (void)unlinkat(dirfd(directory), entry->d_name, 0);
    }
    (void)closedir(directory);
}

/* MemAvailable of /proc/meminfo; the memory of a memfd is taken only when it is touched, which is
 * too late to refuse. */
static bool is_available(size_t size)
{
    unsigned long long available_kib = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    if (!file) return true;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %llu", &available_kib) == 1) break;
    (void)fclose(file);
    return available_kib == 0 || size / 1024 < available_kib;
}

static err_t make_memory(region_t *self, size_t size)
{
    if (!is_available(size)) return ERR_NO_SPACE;
    self->size = size;
    self->descriptor = memfd_create("troupe-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (self->descriptor < 0) return ERR_IO;
    if (ftruncate(self->descriptor, (off_t)size)) return ERR_NO_SPACE;
    if (fcntl(self->descriptor, F_ADD_SEALS, SEALS)) return ERR_IO;
    self->base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->descriptor, 0);
    if (self->base != MAP_FAILED) return ERR_OK;
    self->base = NULL;
    return ERR_NO_SPACE;
}

static void region_close(void **region)
{
    region_t *self = *region;
    if (!self) return;
    if (self->path[0]) (void)unlink(self->path);
    if (self->base) (void)munmap(self->base, self->size);
    if (self->descriptor >= 0) (void)close(self->descriptor);
    free(self);
    *region = NULL;
}

static int make_link(const region_t *self, const char *path)
{
    char target[64];
    (void)snprintf(target, sizeof target, "/proc/%d/fd/%d", (int)getpid(), self->descriptor);
    return symlink(target, path);
}

static err_t publish(region_t *self, const wire_name_t *name)
{
    char path[PATH_BYTES];
    if (!print_path(name, path)) return ERR_IO;
    remove_stale(name);
    if (make_link(self, path)) return ERR_IO;
    memcpy(self->path, path, sizeof path);
    return ERR_OK;
}

/* The name bears our life's epoch, so what exists under it is ours.  A look waits for nobody;
 * making a link may wait for whoever changes the directory. */
static err_t region_keep(void *region, bool *was_gone)
{
    const region_t *self = region;
    struct stat found;
    *was_gone = lstat(self->path, &found) != 0;
    return *was_gone && make_link(self, self->path) ? ERR_IO : ERR_OK;
}

static err_t region_open(void **region, const wire_name_t *name, size_t size, void **base)
{
    region_t *self = calloc(1, sizeof *self);
    if (!self) return ERR_NO_SPACE;
    self->descriptor = -1;
    err_t error = make_memory(self, size);
    if (!error) error = publish(self, name);
    void *made = self;
    if (error) {
        region_close(&made);
        return error;
    }
    *region = made;
    *base = self->base;
    return ERR_OK;
}

static void reader_close(void **reader)
{
    reader_t *self = *reader;
    if (!self) return;
    if (self->descriptor >= 0) (void)close(self->descriptor);
    free(self);
    *reader = NULL;
}

/* What the link leads to must be a sealed memory of ours: a process id may have been given to
 * somebody else since. */
static bool is_region(int descriptor, uint64_t *size)
{
    struct stat found;
    int seals = fcntl(descriptor, F_GET_SEALS);
    if (seals < 0 || (seals & SEALS) != SEALS) return false;
    if (fstat(descriptor, &found) || found.st_uid != geteuid()) return false;
    *size = (uint64_t)found.st_size;
    return true;
}

static err_t reader_open(void **reader, const wire_name_t *name)
{
    reader_t *self = calloc(1, sizeof *self);
    if (!self) return ERR_NO_SPACE;
    void *made = self;
    self->descriptor = -1;
    if (print_path(name, self->path))
        self->descriptor = open(self->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (self->descriptor < 0 || !is_region(self->descriptor, &self->size)) {
        reader_close(&made);
        return ERR_LOST;
    }
    *reader = made;
    return ERR_OK;
}

/* The descriptor would keep the memory of a dead owner readable; its link says whether it lives. */
static bool is_alive(const reader_t *self)
{
    struct stat here, there;
    if (fstat(self->descriptor, &here) || stat(self->path, &there)) return false;
    return here.st_ino == there.st_ino && here.st_dev == there.st_dev;
}

static err_t read_bytes(void *reader, uint64_t offset, void *target, size_t size)
{
    reader_t *self = reader;
    if (offset > self->size || size > self->size - offset || !is_alive(self)) return ERR_LOST;
    for (size_t done = 0; done < size;) {
        ssize_t got =
            pread(self->descriptor, (char *)target + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return ERR_LOST;
        done += (size_t)got;
    }
    return ERR_OK;
}

const wire_t wire_shm = { .name = "shm",
                          .region_open = region_open,
                          .region_close = region_close,
                          .region_keep = region_keep,
                          .reader_open = reader_open,
                          .reader_close = reader_close,
                          .read = read_bytes };
