/* kernels/cpu/queue.h - the CPU's queue: scratch memory for one op at a time, and threads that
 * share its work. */
#ifndef KERNELS_CPU_QUEUE_H
#define KERNELS_CPU_QUEUE_H

#include "../ops.h"

/* Scratch of the op that runs now, aligned to 64 bytes, until the next reset; NULL when the queue
 * was made with too little.  The contents are whatever the last op left. */
void *queue_take(queue_t *q, size_t bytes);

/* Every op that takes scratch begins with this. */
void queue_reset(queue_t *q);

/* How much queue_take can still give. */
size_t queue_left(const queue_t *q);

/* Calls part(context, thread, first, last) so that the items 0..count-1 are each done once, by any
 * thread, in pieces of `grain` items (the last may be shorter).  Returns when all are done.
 * `thread` is below queue_threads(q). */
typedef void (*queue_part_t)(void *context, uint32_t thread, uint32_t first, uint32_t last);
void queue_share(queue_t *q, uint32_t count, uint32_t grain, queue_part_t part, void *context);
uint32_t queue_threads(const queue_t *q);

#endif
