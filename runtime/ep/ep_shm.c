/* runtime/ep/ep_shm.c - dispatch and combine through memory that all ranks of a host share.
 *
 * A rank lays its rows into its own part of `sent`; every rank picks there what its experts need.
 * Expert outputs lie in the computing rank's part of `results`, and the rank that asked reads them
 * from there: every rank knows all chosen expert ids, so it knows the place of each output without
 * being told.  Two meetings per layer make that safe without a second copy: outputs of the next
 * layer are written only after the next dispatch, which nobody reaches before it has read those of
 * this one.
 */
#include "group.h"

#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/log.h"
#include "../invariant.h"
#include "region.h"

enum { SCALE_COLS = 128, ALIGNMENT = 128 };

struct ep_group {
    ep_options_t options;
    region_t region;
    uint32_t experts_here, work_max;
    uint32_t *shared_ids; /* [ranks][rows_max][top_k], in the region */
    tensor_t sent;        /* [ranks * rows_max, hidden], in the region */
    tensor_t results;     /* [ranks * work_max, hidden], in the region */
    /* What one layer's exchange looks like, worked out from private copies: a peer may scribble in
     * its own part. */
    uint32_t *ids;          /* [ranks][rows_max][top_k] */
    uint32_t *rows;         /* [ranks] */
    uint32_t *places;       /* [experts][ranks]: next place in the order of the expert's rank */
    uint32_t *work_index;   /* [work_max]: row of sent */
    uint32_t *result_index; /* [rows_max][top_k]: row of results */
    uint32_t *offsets;      /* [experts_here + 1] */
    tensor_t work;          /* [work_max, hidden] */
    void *memory;
};

/* ---- memory ---- */

typedef struct {
    char *base; /* NULL: only count */
    size_t used;
} carver_t;

static void *carve(carver_t *carver, size_t count, size_t size)
{
    void *piece = carver->base ? carver->base + carver->used : NULL;
    carver->used += (count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return piece;
}

static tensor_t carve_rows(carver_t *carver, dtype_t dtype, uint32_t rows, uint32_t cols)
{
    uint32_t blocks = (cols + SCALE_COLS - 1) / SCALE_COLS;
    tensor_t made = { .dtype = dtype, .rows = rows, .cols = cols, .stride = cols };
    made.data = carve(carver, (size_t)rows * cols, dtype_bytes(dtype));
    if (dtype != DTYPE_F8E4M3) return made;
    made.scales = carve(carver, (size_t)rows * blocks, sizeof(float));
    made.scale_stride = blocks;
    return made;
}

uint32_t ep_work_max(const ep_options_t *options)
{
    uint32_t here = options->experts / options->ranks;
    return options->ranks * options->rows_max * (options->top_k < here ? options->top_k : here);
}

/* What all ranks share, behind the slots. */
static size_t carve_shared(ep_group_t *self, char *base)
{
    const ep_options_t *options = &self->options;
    carver_t carver = { base, 0 };
    dtype_t back = options->carrier == DTYPE_F32 ? DTYPE_F32 : DTYPE_BF16;
    uint32_t rows = options->ranks * options->rows_max;
    self->shared_ids = carve(&carver, (size_t)rows * options->top_k, sizeof(uint32_t));
    self->sent = carve_rows(&carver, options->carrier, rows, options->hidden);
    self->results = carve_rows(&carver, back, options->ranks * self->work_max, options->hidden);
    return carver.used;
}

static size_t carve_private(ep_group_t *self, char *base)
{
    const ep_options_t *options = &self->options;
    carver_t carver = { base, 0 };
    dtype_t type = options->carrier == DTYPE_F8E4M3 ? DTYPE_F32 : options->carrier;
    size_t entries = (size_t)options->rows_max * options->top_k;
    self->ids = carve(&carver, options->ranks * entries, sizeof(uint32_t));
    self->rows = carve(&carver, options->ranks, sizeof(uint32_t));
    self->places = carve(&carver, (size_t)options->experts * options->ranks, sizeof(uint32_t));
    self->work_index = carve(&carver, self->work_max, sizeof(uint32_t));
    self->result_index = carve(&carver, entries, sizeof(uint32_t));
    self->offsets = carve(&carver, self->experts_here + (size_t)1, sizeof(uint32_t));
    self->work = carve_rows(&carver, type, self->work_max, options->hidden);
    return carver.used;
}

ep_group_t *ep_group_new(const ep_options_t *options)
{
    invariant(options->ranks && options->experts % options->ranks == 0);
    ep_group_t *self = calloc(1, sizeof *self);
    if (!self) return NULL;
    self->options = *options;
    self->options.path = options->path ? strdup(options->path) : NULL;
    self->region.file = -1;
    self->experts_here = options->experts / options->ranks;
    self->work_max = ep_work_max(options);
    size_t bytes = carve_private(self, NULL);
    self->memory = aligned_alloc(ALIGNMENT, bytes);
    if (!self->memory || region_open(&self->region, options, carve_shared(self, NULL))) {
        ep_group_destroy(&self);
        return NULL;
    }
    carve_private(self, self->memory);
    carve_shared(self, self->region.data);
    return self;
}

void ep_group_destroy(ep_group_t **self)
{
    ep_group_t *closing = *self;
    *self = NULL;
    if (!closing) return;
    region_close(&closing->region);
    free((char *)(uintptr_t)closing->options.path);
    free(closing->memory);
    free(closing);
}

/* ---- meeting ---- */

static bool is_alone(const ep_group_t *self)
{
    return !region_is_current(&self->region, self->options.path);
}

/* Where it cannot, which has been logged, the others are waited for here, in vain. */
static void follow_others(ep_group_t *self)
{
    region_t theirs;
    size_t bytes = self->region.bytes - (size_t)(self->region.data - self->region.base);
    if (region_open(&theirs, &self->options, bytes)) return;
    region_close(&self->region);
    self->region = theirs;
    carve_shared(self, self->region.data);
}

err_t ep_group_join(ep_group_t *self)
{
    if (is_alone(self)) follow_others(self);
    return region_join(&self->region);
}

bool ep_group_is_joined(const ep_group_t *self)
{
    return region_is_joined(&self->region) && !is_alone(self);
}

void ep_group_break(ep_group_t *self)
{
    region_break(&self->region);
}

void ep_group_ring(ep_group_t *self)
{
    region_ring(&self->region);
}

bool ep_group_is_rung(const ep_group_t *self)
{
    return region_is_rung(&self->region) || is_alone(self);
}

static bool has_changed(const uint32_t *word, uint32_t seen)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE) != seen;
}

void ep_group_wait(ep_group_t *self, const uint32_t *word, uint32_t seen, uint64_t wait_us)
{
    struct timespec wait = { .tv_sec = (time_t)(wait_us / 1000000),
                             .tv_nsec = (long)(wait_us % 1000000) * 1000 };
    if (!self || self->options.ranks == 1) {
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, &wait, NULL, 0);
        return;
    }
    uint32_t bell = region_bell(&self->region);
    if (has_changed(word, seen) || ep_group_is_rung(self)) return;
    region_sleep(&self->region, &(region_sleep_t){ bell, word, seen, wait_us });
}

/* Two words by parity: a rank that is one phase ahead must not overwrite what another still reads.
 */
err_t ep_group_agree(ep_group_t *self, uint32_t mine, uint32_t *all)
{
    region_t *region = &self->region;
    uint32_t parity = (region->phase + 1) % 2, sum = 0;
    atomic_store(&region->slots[region->rank].word[parity], mine);
    err_t error = region_meet(region);
    if (error) return error;
    for (uint32_t rank = 0; rank < region->ranks; rank++)
        sum |= atomic_load(&region->slots[rank].word[parity]);
    *all = sum;
    return ERR_OK;
}

/* ---- dispatch ---- */

static tensor_t part_of(const tensor_t *x, uint32_t first, uint32_t rows)
{
    tensor_t part = *x;
    part.data = (char *)x->data + first * x->stride * dtype_bytes(x->dtype);
    if (x->scales) part.scales = x->scales + (size_t)first * x->scale_stride;
    part.rows = rows;
    return part;
}

static bool send(ep_group_t *self, const ops_t *ops, queue_t *q, const tensor_t *x,
                 const uint32_t *ids)
{
    const ep_options_t *options = &self->options;
    invariant(x->rows <= options->rows_max && x->cols == options->hidden);
    size_t entries = (size_t)options->rows_max * options->top_k;
    tensor_t mine = part_of(&self->sent, options->rank * options->rows_max, x->rows);
    memcpy(self->shared_ids + options->rank * entries, ids,
           (size_t)x->rows * options->top_k * sizeof *ids);
    atomic_store(&self->region.slots[options->rank].rows, x->rows);
    return !x->rows || !ops->cast(q, &mine, x);
}

/* Copy what the ranks chose and count; false: a peer sent nonsense. */
static bool receive(ep_group_t *self)
{
    const ep_options_t *options = &self->options;
    size_t entries = (size_t)options->rows_max * options->top_k;
    memset(self->places, 0, (size_t)options->experts * options->ranks * sizeof *self->places);
    for (uint32_t rank = 0; rank < options->ranks; rank++) {
        uint32_t rows = atomic_load(&self->region.slots[rank].rows);
        if (rows > options->rows_max) return false;
        uint32_t *ids = self->ids + rank * entries;
        memcpy(ids, self->shared_ids + rank * entries, (size_t)rows * options->top_k * sizeof *ids);
        self->rows[rank] = rows;
        for (size_t i = 0; i < (size_t)rows * options->top_k; i++) {
            if (ids[i] >= options->experts) return false;
            self->places[(size_t)ids[i] * options->ranks + rank]++;
        }
    }
    return true;
}

/* From counts to first places: within a rank by expert, then by source; false: more rows than a
 * rank can take. */
static bool place(ep_group_t *self)
{
    const ep_options_t *options = &self->options;
    for (uint32_t owner = 0; owner < options->ranks; owner++) {
        uint32_t next = 0;
        for (uint32_t i = 0; i < self->experts_here; i++) {
            uint32_t *counts =
                self->places + ((size_t)owner * self->experts_here + i) * options->ranks;
            if (owner == options->rank) self->offsets[i] = next;
            for (uint32_t source = 0; source < options->ranks; source++) {
                uint32_t count = counts[source];
                counts[source] = next;
                next += count;
            }
        }
        if (next > self->work_max) return false;
        if (owner == options->rank) self->offsets[self->experts_here] = next;
    }
    return true;
}

/* Where each row that my experts compute comes from. */
static void index_work(ep_group_t *self)
{
    const ep_options_t *options = &self->options;
    uint32_t first = options->rank * self->experts_here;
    for (uint32_t source = 0; source < options->ranks; source++) {
        const uint32_t *ids = self->ids + (size_t)source * options->rows_max * options->top_k;
        for (uint32_t i = 0; i < self->rows[source] * options->top_k; i++) {
            if (ids[i] - first >= self->experts_here) continue;
            uint32_t place_index = self->places[(size_t)ids[i] * options->ranks + source]++;
            self->work_index[place_index] = source * options->rows_max + i / options->top_k;
        }
    }
}

/* Where the outputs for my rows will lie.  Before index_work, which moves the places of my own
 * experts on. */
static void index_results(ep_group_t *self)
{
    const ep_options_t *options = &self->options;
    const uint32_t *ids = self->ids + (size_t)options->rank * options->rows_max * options->top_k;
    uint32_t count = self->rows[options->rank] * options->top_k;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t *next = &self->places[(size_t)ids[i] * options->ranks + options->rank];
        self->result_index[i] = ids[i] / self->experts_here * self->work_max + (*next)++;
    }
    for (uint32_t i = 0; i < count; i++)
        self->places[(size_t)ids[i] * options->ranks + options->rank]--;
}

static err_t break_off(ep_group_t *self, err_t error)
{
    if (error == ERR_EP_PEER)
        log_write(self->options.who, LOG_WARN, "EP-PEER-NONSENSE",
                  "a rank sent rows that make no sense");
    region_break(&self->region);
    return error;
}

err_t ep_dispatch(ep_group_t *self, const ops_t *ops, queue_t *q, const tensor_t *x,
                  const uint32_t *ids, ep_work_t *work)
{
    if (!send(self, ops, q, x, ids)) return break_off(self, ERR_ENGINE);
    err_t error = region_meet(&self->region);
    if (error) return error;
    if (!receive(self) || !place(self)) return break_off(self, ERR_EP_PEER);
    index_results(self);
    index_work(self);
    uint32_t count = self->offsets[self->experts_here];
    *work =
        (ep_work_t){ .rows = part_of(&self->work, 0, count),
                     .outputs = part_of(&self->results, self->options.rank * self->work_max, count),
                     .offsets = self->offsets,
                     .count = count };
    if (count && ops->gather_rows(q, &work->rows, &self->sent, self->work_index))
        return break_off(self, ERR_ENGINE);
    return ERR_OK;
}

err_t ep_combine(ep_group_t *self, tensor_t *rows, const uint32_t **index)
{
    err_t error = region_meet(&self->region);
    if (error) return error;
    *rows = self->results;
    *index = self->result_index;
    return ERR_OK;
}
