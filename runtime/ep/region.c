/* runtime/ep/region.c - shared memory, generations, phases and the futexes under them. */
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../base/log.h"
#include "../invariant.h"

enum {
    SPINS = 200, /* about 10 us: most phases are that close together, and cores are few */
    SLEEP_SLICE_US = 100000,  /* a wake-up lost with a dying rank costs at most this */
    POLL_SLICE_US = 500,      /* where the kernel cannot wait for two words at once */
    INIT_BYTE = EP_RANKS_MAX, /* byte of the file that is locked while its layout is written */
};

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* ---- bell and generation ---- */

/* Partner: a sleeper counts itself before it compares the bell (in the kernel), so either it sees
 * the new bell or we see the sleeper.  Both are sequentially consistent for that reason. */
static void ring_bell(region_t *self)
{
    atomic_fetch_add(&self->head->bell, 1);
    if (atomic_load(&self->head->sleepers))
        syscall(SYS_futex, &self->head->bell, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void next_generation(region_t *self, uint32_t from)
{
    uint32_t next = from + 1 ? from + 1 : 1;
    atomic_compare_exchange_strong(&self->head->generation, &from, next);
    ring_bell(self);
}

/* ---- the file ---- */

/* FNV-1a over what all ranks must agree on. */
static uint64_t layout_of(const ep_options_t *options, size_t bytes)
{
    const uint64_t words[] = { 1,
                               options->ranks,
                               options->rows_max,
                               options->hidden,
                               options->top_k,
                               options->experts,
                               (uint64_t)options->carrier,
                               bytes };
    const unsigned char *from = (const unsigned char *)words;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof words; i++) hash = (hash ^ from[i]) * 0x100000001b3u;
    return hash | 1;
}

/* Locks of the open file description: they go with the process, however it ends, and hold between
 * threads too. */
static bool lock_byte(int file, short type, int command, off_t byte)
{
    struct flock lock = { .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
    return fcntl(file, command, &lock) == 0;
}

static bool is_used_by_others(const region_t *self)
{
    for (uint32_t rank = 0; rank < EP_RANKS_MAX; rank++) {
        struct flock lock = {
            .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = rank, .l_len = 1
        };
        if (rank != self->rank && fcntl(self->file, F_OFD_GETLK, &lock) == 0 &&
            lock.l_type != F_UNLCK)
            return true;
    }
    return false;
}

static err_t fail(const region_t *self, const char *path, const char *what)
{
    log_write(self->who, LOG_ERROR, "EP-REGION", "%s, rank %u: %s", path, self->rank, what);
    return ERR_IO;
}

static bool map(region_t *self)
{
    int flags = self->file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
    void *base = mmap(NULL, self->bytes, PROT_READ | PROT_WRITE, flags, self->file, 0);
    if (base == MAP_FAILED) return false;
    self->base = base;
    self->head = base;
    self->slots = (region_slot_t *)(void *)(self->base + sizeof(region_slot_t));
    self->data = self->base + (1 + (size_t)self->ranks) * sizeof(region_slot_t);
    return true;
}

/* Under the init lock: a file of another layout is left over from an earlier company, unless its
 * ranks live. */
static err_t lay_out(region_t *self, const char *path, uint64_t layout)
{
    struct stat status;
    uint64_t found = 0;
    if (fstat(self->file, &status)) return fail(self, path, strerror(errno));
    bool is_same = (size_t)status.st_size == self->bytes &&
                   pread(self->file, &found, sizeof found, 0) == sizeof found && found == layout;
    if (is_same) return ERR_OK;
    if (is_used_by_others(self))
        return fail(self, path, "the other ranks have another model or layout");
    if (ftruncate(self->file, 0)) return fail(self, path, strerror(errno));
    /* A file with holes would end its ranks by a signal when the disk is full. */
    int refused = posix_fallocate(self->file, 0, (off_t)self->bytes);
    if (refused) return fail(self, path, strerror(refused));
    const uint32_t generation = 1;
    if (pwrite(self->file, &generation, sizeof generation, offsetof(region_head_t, generation)) <
            0 ||
        pwrite(self->file, &layout, sizeof layout, 0) < 0)
        return fail(self, path, strerror(errno));
    return ERR_OK;
}

/* Slot and layout under one lock: who holds a slot has seen the layout, so a rank of the same new
 * company is never taken for one of the old. */
static err_t try_slot(region_t *self, const char *path, uint64_t layout, bool *is_taken)
{
    *is_taken = false;
    if (!lock_byte(self->file, F_WRLCK, F_OFD_SETLKW, INIT_BYTE))
        return fail(self, path, strerror(errno));
    err_t error = ERR_OK;
    if (lock_byte(self->file, F_WRLCK, F_OFD_SETLK, self->rank)) {
        *is_taken = true;
        error = lay_out(self, path, layout);
    }
    lock_byte(self->file, F_UNLCK, F_OFD_SETLK, INIT_BYTE);
    return error;
}

/* A predecessor in this slot may still be dying: give it as long as a rank may stay silent. */
static err_t open_file(region_t *self, const char *path, uint64_t layout)
{
    uint64_t deadline = now_us() + self->wait_ms * (uint64_t)1000;
    self->file = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (self->file < 0) return fail(self, path, strerror(errno));
    for (;;) {
        bool is_taken;
        err_t error = try_slot(self, path, layout, &is_taken);
        if (error || is_taken) return error;
        if (now_us() >= deadline) return fail(self, path, "another process holds this rank's slot");
        usleep(1000);
    }
}

/* The last life of this slot may have ended inside a step, and other slots may be left over from a
 * company long gone: whatever generation they are ready for, it is not the one that begins now. */
static void retire_predecessors(region_t *self)
{
    atomic_store(&self->slots[self->rank].joined, 0);
    next_generation(self, atomic_load(&self->head->generation));
}

err_t region_open(region_t *self, const ep_options_t *options, size_t data_bytes)
{
    *self = (region_t){ .file = -1,
                        .rank = options->rank,
                        .ranks = options->ranks,
                        .wait_ms = options->wait_ms,
                        .who = options->who };
    invariant(options->ranks >= 1 && options->ranks <= EP_RANKS_MAX &&
              options->rank < options->ranks);
    invariant(options->path || options->ranks == 1);
    self->bytes = (1 + (size_t)self->ranks) * sizeof(region_slot_t) + data_bytes;
    err_t error = ERR_OK;
    if (options->path) error = open_file(self, options->path, layout_of(options, self->bytes));
    if (!error && !map(self))
        error = fail(self, options->path ? options->path : "memory", strerror(errno));
    if (error) {
        region_close(self);
        return error;
    }
    if (!options->path) atomic_store(&self->head->generation, 1);
    retire_predecessors(self);
    return ERR_OK;
}

void region_close(region_t *self)
{
    if (self->base) {
        region_break(self);
        atomic_store(&self->slots[self->rank].joined, 0);
        munmap(self->base, self->bytes);
    }
    if (self->file >= 0) close(self->file);
    *self = (region_t){ .file = -1 };
}

bool region_is_current(const region_t *self, const char *path)
{
    struct stat ours, named;
    if (self->file < 0 || fstat(self->file, &ours) || stat(path, &named)) return true;
    return ours.st_ino == named.st_ino && ours.st_dev == named.st_dev;
}

/* ---- sleeping and waking ---- */

uint32_t region_bell(const region_t *self)
{
    return atomic_load(&self->head->bell);
}

static void sleep_on_bell(region_t *self, uint32_t seen, uint64_t wait_us)
{
    struct timespec wait = { .tv_sec = (time_t)(wait_us / 1000000),
                             .tv_nsec = (long)(wait_us % 1000000) * 1000 };
    syscall(SYS_futex, &self->head->bell, FUTEX_WAIT, seen, &wait, NULL, 0);
}

/* False: this kernel cannot (before Linux 5.16, or forbidden). */
static bool sleep_on_both(region_t *self, const region_sleep_t *sleep, uint64_t wait_us)
{
    struct futex_waitv waits[2] = {
        { .val = sleep->bell_seen, .uaddr = (uintptr_t)&self->head->bell, .flags = FUTEX_32 },
        { .val = sleep->word_seen,
          .uaddr = (uintptr_t)sleep->word,
          .flags = FUTEX_32 | FUTEX_PRIVATE_FLAG },
    };
    uint64_t until = now_us() + wait_us;
    struct timespec deadline = { .tv_sec = (time_t)(until / 1000000),
                                 .tv_nsec = (long)(until % 1000000) * 1000 };
    return syscall(SYS_futex_waitv, waits, 2, 0, &deadline, CLOCK_MONOTONIC) >= 0 ||
           (errno != ENOSYS && errno != EPERM);
}

void region_sleep(region_t *self, const region_sleep_t *sleep)
{
    atomic_fetch_add(&self->head->sleepers, 1);
    if (!sleep->word)
        sleep_on_bell(self, sleep->bell_seen, sleep->wait_us);
    else if (!sleep_on_both(self, sleep, sleep->wait_us))
        sleep_on_bell(self, sleep->bell_seen,
                      sleep->wait_us < POLL_SLICE_US ? sleep->wait_us : POLL_SLICE_US);
    atomic_fetch_sub(&self->head->sleepers, 1);
}

/* ---- generations ---- */

bool region_is_joined(const region_t *self)
{
    return self->generation && atomic_load(&self->head->generation) == self->generation;
}

void region_break(region_t *self)
{
    if (self->generation) next_generation(self, self->generation);
    self->generation = 0;
}

static bool is_anybody_ready(const region_t *self, uint32_t generation)
{
    for (uint32_t rank = 0; rank < self->ranks; rank++)
        if (rank != self->rank && atomic_load(&self->slots[rank].joined) == generation) return true;
    return false;
}

static bool are_all_ready(const region_t *self, uint32_t generation)
{
    for (uint32_t rank = 0; rank < self->ranks; rank++)
        if (atomic_load(&self->slots[rank].joined) != generation) return false;
    return atomic_load(&self->head->generation) == generation;
}

static uint64_t post_of(uint32_t generation, uint32_t phase)
{
    return (uint64_t)generation << 32 | phase;
}

/* posted and rung are cleared before joined says so: who sees the new generation in joined sees
 * nothing old. */
static void get_ready(region_t *self, uint32_t generation)
{
    region_slot_t *slot = &self->slots[self->rank];
    atomic_store(&slot->posted, post_of(generation, 0));
    atomic_store(&slot->rung, 0);
    atomic_store(&slot->joined, generation);
    ring_bell(self);
}

static uint32_t find_absent(const region_t *self, uint32_t generation)
{
    for (uint32_t rank = 0; rank < self->ranks; rank++)
        if (rank != self->rank && atomic_load(&self->slots[rank].joined) != generation) return rank;
    return self->ranks;
}

/* Where all others are ready by now they may have seen this rank ready too, and begun: their
 * generation ends. */
static err_t give_up(region_t *self, uint32_t generation)
{
    atomic_store(&self->slots[self->rank].joined, 0);
    uint32_t absent = find_absent(self, generation);
    if (absent == self->ranks)
        next_generation(self, generation);
    else if (self->missed != absent + 1)
        log_write(self->who, LOG_WARN, "EP-JOIN", "rank %u is not there after %u ms", absent,
                  self->wait_ms);
    self->missed = absent + 1;
    return ERR_EP_PEER;
}

err_t region_join(region_t *self)
{
    region_slot_t *slot = &self->slots[self->rank];
    uint64_t deadline = now_us() + self->wait_ms * (uint64_t)1000;
    self->generation = 0;
    uint32_t generation = atomic_load(&self->head->generation);
    if (atomic_load(&slot->joined) == generation) next_generation(self, generation);
    for (;;) {
        uint32_t bell = region_bell(self);
        generation = atomic_load(&self->head->generation);
        if (atomic_load(&slot->joined) != generation) {
            get_ready(self, generation);
            continue;
        }
        if (are_all_ready(self, generation)) break;
        uint64_t now = now_us();
        if (now >= deadline) return give_up(self, generation);
        uint64_t left = deadline - now;
        region_sleep(self,
                     &(region_sleep_t){ .bell_seen = bell,
                                        .wait_us = left < SLEEP_SLICE_US ? left : SLEEP_SLICE_US });
    }
    self->generation = generation;
    self->phase = self->rung = self->missed = 0;
    return ERR_OK;
}

/* ---- steps and phases ---- */

void region_ring(region_t *self)
{
    atomic_store(&self->slots[self->rank].rung, ++self->rung);
    if (self->ranks > 1) ring_bell(self);
}

bool region_is_rung(const region_t *self)
{
    if (!region_is_joined(self))
        return is_anybody_ready(self, atomic_load(&self->head->generation));
    for (uint32_t rank = 0; rank < self->ranks; rank++)
        if ((int32_t)(atomic_load(&self->slots[rank].rung) - self->rung) > 0) return true;
    return false;
}

static bool has_posted(const region_t *self, uint32_t rank)
{
    uint64_t posted = atomic_load(&self->slots[rank].posted);
    return posted >> 32 == self->generation && (int32_t)((uint32_t)posted - self->phase) >= 0;
}

/* The first rank that has not posted the phase; self->ranks: none. */
static uint32_t find_missing(const region_t *self)
{
    for (uint32_t rank = 0; rank < self->ranks; rank++)
        if (!has_posted(self, rank)) return rank;
    return self->ranks;
}

static void spin(const region_t *self)
{
    for (uint32_t i = 0; i < SPINS && find_missing(self) < self->ranks; i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

/* A phase that all have posted is over, even if one has left since: what it had to say is there. */
err_t region_meet(region_t *self)
{
    if (!region_is_joined(self)) return ERR_EP_PEER;
    self->phase++;
    if (self->ranks == 1) return ERR_OK;
    atomic_store(&self->slots[self->rank].posted, post_of(self->generation, self->phase));
    ring_bell(self);
    spin(self);
    uint64_t deadline = now_us() + self->wait_ms * (uint64_t)1000;
    for (;;) {
        uint32_t bell = region_bell(self), missing = find_missing(self);
        if (missing == self->ranks) return ERR_OK;
        if (!region_is_joined(self)) break;
        uint64_t now = now_us();
        if (now >= deadline) {
            log_write(self->who, LOG_WARN, "EP-PEER-SILENT", "rank %u did not answer for %u ms",
                      missing, self->wait_ms);
            break;
        }
        uint64_t left = deadline - now;
        region_sleep(self,
                     &(region_sleep_t){ .bell_seen = bell,
                                        .wait_us = left < SLEEP_SLICE_US ? left : SLEEP_SLICE_US });
    }
    region_break(self);
    return ERR_EP_PEER;
}
