/* runtime/ep/group.h - an expert-parallel group: fixed rank slots that step together.
 *
 * Dispatch sends each row to the ranks that host its experts, combine brings the expert outputs
 * back; they are summed in the order k = 0..top_k-1 by the caller, so the result does not depend on
 * who hosts what. A row is rounded to the carrier's dtype also when its expert is at home, and a
 * group of one rank does the same in private memory: EP1, EP2 and EP4 give equal bits. Every wait
 * is bounded; ERR_EP_PEER names no culprit to the caller but logs it.  After an error the group is
 * broken for this epoch: ranks call ep_group_join again and redo the interrupted step from its
 * start. Carriers: shared memory between processes of one host (ep_shm.c); NCCL later behind the
 * same calls.
 */
#ifndef RUNTIME_EP_GROUP_H
#define RUNTIME_EP_GROUP_H

#include "../../kernels/ops.h"
#include "../../proto/messages.h"

enum { EP_RANKS_MAX = 256 };

typedef struct ep_group ep_group_t;

typedef struct {
    const char *path; /* file of the shared region, mode 0600, in wire.directory; NULL: one rank,
                         private memory */
    uint32_t rank, ranks;
    uint32_t rows_max; /* rows that one rank may bring into a step */
    uint32_t hidden, top_k, experts;
    dtype_t carrier;  /* F32, BF16 or F8E4M3 of dispatched rows; outputs come back F32 where that is
                         F32, else BF16 */
    uint32_t wait_ms; /* longest wait for the others */
    address_t who;    /* for the log */
} ep_options_t;

/* NULL, with the reason logged: the file cannot be used, or another process holds this rank's slot.
 * All ranks must give equal options (rank apart). */
ep_group_t *ep_group_new(const ep_options_t *options);
void ep_group_destroy(ep_group_t **self);

/* (Re)enter the group; waits up to wait_ms for all ranks.  ERR_EP_PEER: not all are there yet. */
MUST_CHECK err_t ep_group_join(ep_group_t *self);

/* Entered, and not broken since as far as this rank knows. */
bool ep_group_is_joined(const ep_group_t *self);

/* This rank cannot go on with the step: the others' waits end now, with ERR_EP_PEER. */
void ep_group_break(ep_group_t *self);

/* Ring: the other ranks learn that a step begins.  Every rank rings once per step, those that
 * follow a ring too. Poll from an idle rank: did a step begin that I am not part of, or is somebody
 * waiting for me to join? */
void ep_group_ring(ep_group_t *self);
bool ep_group_is_rung(const ep_group_t *self);

/* A descriptor-free wait for a ring or for *word to differ from `seen` (the engine's own command
 * counter), at most wait_us.  Returns at once when either already holds.  Who changes *word calls
 * ep_word_wake after it. self NULL: no ring, just the word. */
void ep_group_wait(ep_group_t *self, const uint32_t *word, uint32_t seen, uint64_t wait_us);
void ep_word_wake(const uint32_t *word);

/* All ranks call it together: *all becomes the bitwise or of every rank's word. */
MUST_CHECK err_t ep_group_agree(ep_group_t *self, uint32_t mine, uint32_t *all);

/* Rows this rank must compute, grouped by its experts. */
typedef struct {
    tensor_t rows; /* [count, hidden], ordered by expert, source rank, row; rounded to the carrier's
                    * dtype, which it has too, except that FP8 has been widened to F32 */
    tensor_t outputs; /* [count, hidden]: where the expert outputs belong; ep_combine sends them
                         from there */
    const uint32_t *offsets; /* [experts here + 1] */
    uint32_t count;
} ep_work_t;

/* Most rows that ep_dispatch can give one rank. */
uint32_t ep_work_max(const ep_options_t *options);

/* x [rows, hidden], ids [rows, top_k] logical experts.  Every rank calls it once per MoE layer,
 * rows may be 0. */
MUST_CHECK err_t ep_dispatch(ep_group_t *self, const ops_t *ops, queue_t *q, const tensor_t *x,
                             const uint32_t *ids, ep_work_t *work);

/* What was written to work.outputs goes back; *rows and *index (rows x top_k) are set so that the
 * op `combine` can sum them: rows[index[t * top_k + k]] is the output of expert ids[t][k] for row
 * t.  They stay until the next ep_dispatch. */
MUST_CHECK err_t ep_combine(ep_group_t *self, tensor_t *rows, const uint32_t **index);

#endif
