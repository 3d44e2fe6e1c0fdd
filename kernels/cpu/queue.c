/* kernels/cpu/queue.c - a scratch arena and a few threads that take pieces of one op at a time. */
#include "queue.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { THREADS_MAX = 256, ALIGNMENT = 64 };

typedef struct {
    queue_t *queue;
    uint32_t thread;
    pthread_t handle;
} helper_t;

struct queue {
    char *scratch;
    size_t scratch_bytes, scratch_used;
    uint32_t threads, helpers_started;
    helper_t *helpers;

    /* The work shared now; written by the owner under the lock before `turn` moves. */
    queue_part_t part;
    void *context;
    uint32_t count, grain;
    atomic_uint next;
    pthread_mutex_t lock;
    pthread_cond_t work_came, work_done;
    uint64_t turn;
    uint32_t helpers_busy;
    int is_stopping;
};

/* Pieces are taken in any order by anybody: every item is computed by itself, so results do not
 * depend on it. */
static void take_pieces(queue_t *q, uint32_t thread)
{
    for (;;) {
        uint32_t first = atomic_fetch_add_explicit(&q->next, q->grain, memory_order_relaxed);
        if (first >= q->count) return;
        uint32_t last = q->count - first < q->grain ? q->count : first + q->grain;
        q->part(q->context, thread, first, last);
    }
}

static void *help(void *argument)
{
    helper_t *self = argument;
    queue_t *q = self->queue;
    uint64_t seen = 0;
    pthread_mutex_lock(&q->lock);
    for (;;) {
        while (q->turn == seen && !q->is_stopping) pthread_cond_wait(&q->work_came, &q->lock);
        if (q->is_stopping) break;
        seen = q->turn;
        pthread_mutex_unlock(&q->lock);
        take_pieces(q, self->thread);
        pthread_mutex_lock(&q->lock);
        q->helpers_busy--;
        if (q->helpers_busy == 0) pthread_cond_signal(&q->work_done);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

static int start_helpers(queue_t *q)
{
    for (uint32_t i = 0; i + 1 < q->threads; i++) {
        q->helpers[i] = (helper_t){ .queue = q, .thread = i + 1 };
        if (pthread_create(&q->helpers[i].handle, NULL, help, &q->helpers[i]) != 0) return -1;
        q->helpers_started++;
    }
    return 0;
}

queue_t *queue_new_cpu(size_t scratch_bytes, uint32_t threads)
{
    if (threads == 0) threads = 1;
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    queue_t *q = calloc(1, sizeof *q);
    if (!q) return NULL;
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->work_came, NULL);
    pthread_cond_init(&q->work_done, NULL);
    q->threads = threads;
    q->scratch_bytes = (scratch_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    q->scratch = aligned_alloc(ALIGNMENT, q->scratch_bytes ? q->scratch_bytes : ALIGNMENT);
    q->helpers = calloc(threads, sizeof *q->helpers);
    if (!q->scratch || !q->helpers || start_helpers(q) != 0) queue_destroy(&q);
    return q;
}

void queue_destroy(queue_t **self)
{
    queue_t *q = *self;
    if (!q) return;
    pthread_mutex_lock(&q->lock);
    q->is_stopping = 1;
    pthread_cond_broadcast(&q->work_came);
    pthread_mutex_unlock(&q->lock);
    for (uint32_t i = 0; i < q->helpers_started; i++) pthread_join(q->helpers[i].handle, NULL);
    pthread_cond_destroy(&q->work_done);
    pthread_cond_destroy(&q->work_came);
    pthread_mutex_destroy(&q->lock);
    free(q->helpers);
    free(q->scratch);
    free(q);
    *self = NULL;
}

void queue_reset(queue_t *q)
{
    q->scratch_used = 0;
}

size_t queue_left(const queue_t *q)
{
    return q->scratch_bytes - q->scratch_used;
}

void *queue_take(queue_t *q, size_t bytes)
{
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (rounded < bytes || rounded > queue_left(q)) return NULL;
    void *taken = q->scratch + q->scratch_used;
    q->scratch_used += rounded;
    return taken;
}

uint32_t queue_threads(const queue_t *q)
{
    return q->threads;
}

void queue_share(queue_t *q, uint32_t count, uint32_t grain, queue_part_t part, void *context)
{
    if (count == 0) return;
    if (grain == 0) grain = 1;
    if (q->threads == 1 || count <= grain) {
        part(context, 0, 0, count);
        return;
    }
    pthread_mutex_lock(&q->lock);
    q->part = part;
    q->context = context;
    q->count = count;
    q->grain = grain;
    atomic_store_explicit(&q->next, 0, memory_order_relaxed);
    q->helpers_busy = q->threads - 1;
    q->turn++;
    pthread_cond_broadcast(&q->work_came);
    pthread_mutex_unlock(&q->lock);
    take_pieces(q, 0);
    pthread_mutex_lock(&q->lock);
    while (q->helpers_busy != 0) pthread_cond_wait(&q->work_done, &q->lock);
    pthread_mutex_unlock(&q->lock);
}
