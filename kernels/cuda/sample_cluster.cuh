/* kernels/cuda/sample_cluster.cuh - a row of logits in the shared memory of a cluster: which thread
 * holds what, how blocks tell each other what they found, sums over threads, walks over values.
 */
#ifndef KERNELS_CUDA_SAMPLE_CLUSTER_CUH
#define KERNELS_CUDA_SAMPLE_CLUSTER_CUH

#include "../ops.h"
#include "hopper.cuh"

namespace sample
{

enum : uint32_t {
    BLOCKS = 8, /* of a cluster */
    MESSAGES = 4
};

struct sample_shared_t {
    uint64_t slots[2][BLOCKS];      /* exchange */
    uint64_t messages[MESSAGES][2]; /* tell */
    uint64_t sums[32];              /* of warps */
    /* Barriers of bytes that arrive: the range, slots, messages, the list. */
    uint64_t loaded, exchanged[2], told[MESSAGES], listed;
    double log_total; /* of the raw logits */
    uint32_t list_count, lowest;
    sample_row_t row;
};

/* What a thread knows of its place; the same in all threads of the block but `thread` and `quad`.
 */
struct place_t {
    sample_shared_t *shared;
    uint32_t *counts, *lacks; /* [BINS] */
    uint64_t *list;           /* over counts */
    uint32_t *values;
    const float *raw;                    /* this block's range in global memory */
    uint32_t thread, rank;               /* of the block in its cluster */
    uint32_t first, count;               /* ids of this block */
    uint32_t segment;                    /* ids of a thread */
    uint32_t quad;                       /* where a thread begins to visit its segment */
    uint32_t exchanges, messages, lists; /* so far: which slots, which phase of a barrier */
};

/* ---- the cluster ---- */

/* Stores into another block tell its barrier when they arrive: nobody needs a fence, which costs as
 * much as a trip to the L2 cache. */
__device__ __forceinline__ void send(void *target, uint64_t *barrier, uint32_t block,
                                     uint64_t value)
{
    store_async(cluster_address(target, block), cluster_address(barrier, block), value);
}

__device__ __forceinline__ uint32_t load_from(const uint32_t *source, uint32_t block)
{
    return cluster_load(cluster_address(source, block));
}

__device__ __forceinline__ uint32_t add_to(uint32_t *target, uint32_t block, uint32_t value)
{
    return cluster_add(cluster_address(target, block), value);
}

/* What all blocks wrote to their own shared memory becomes visible to all.  The fence is one
 * warp's: it covers what the block's barrier has ordered before it. */
__device__ __forceinline__ void publish(const place_t &at)
{
    __syncthreads();
    if (at.thread < 32)
        cluster_arrive();
    else
        cluster_arrive_relaxed();
    cluster_wait();
}

/* For the whole block: one warp asks the barrier, the others leave it the SM's issue slots. */
__device__ __forceinline__ void await(const place_t &at, uint64_t *barrier, uint32_t phase)
{
    if (at.thread < 32) barrier_wait(barrier, phase);
    __syncthreads();
}

/* Every block's value in every block.  Two sets of slots in turn: nobody writes a set that another
 * block may still read, because it has that block's later value first. */
__device__ __forceinline__ const uint64_t *exchange(place_t &at, uint64_t mine)
{
    uint32_t set = at.exchanges % 2, phase = at.exchanges / 2 % 2;
    uint64_t *slots = at.shared->slots[set], *barrier = &at.shared->exchanged[set];
    at.exchanges++;
    __syncthreads();
    if (at.thread == 0) barrier_arrive_expect(barrier, BLOCKS * sizeof *slots);
    if (at.thread < BLOCKS) send(&slots[at.rank], barrier, at.thread, mine);
    await(at, barrier, phase);
    return slots;
}

__device__ __forceinline__ uint64_t exchange_sum(place_t &at, uint64_t mine, uint64_t *before)
{
    const uint64_t *slots = exchange(at, mine);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        if (i == at.rank) *before = sum;
        sum += slots[i];
    }
    return sum;
}

__device__ __forceinline__ uint64_t exchange_max(place_t &at, uint64_t mine)
{
    const uint64_t *slots = exchange(at, mine);
    uint64_t most = 0;
    for (uint32_t i = 0; i < BLOCKS; i++) most = slots[i] > most ? slots[i] : most;
    return most;
}

/* One thread of the cluster has something to say to all blocks.  There are as many messages as can
 * be on their way between two exchanges. */
__device__ __forceinline__ void tell(const place_t &at, uint64_t first, uint64_t second)
{
    uint32_t turn = at.messages % MESSAGES;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        send(&at.shared->messages[turn][0], &at.shared->told[turn], block, first);
        send(&at.shared->messages[turn][1], &at.shared->told[turn], block, second);
    }
}

/* All threads of all blocks, also the one that told. */
__device__ __forceinline__ void listen(place_t &at, uint64_t *first, uint64_t *second)
{
    uint32_t turn = at.messages % MESSAGES, phase = at.messages / MESSAGES % 2;
    at.messages++;
    if (at.thread == 0) barrier_arrive_expect(&at.shared->told[turn], 16);
    await(at, &at.shared->told[turn], phase);
    *first = at.shared->messages[turn][0];
    *second = at.shared->messages[turn][1];
    __syncthreads();
}

/* ---- the block ---- */

template <uint32_t threads>
__device__ __forceinline__ uint32_t block_max(place_t &at, uint32_t mine)
{
    uint32_t *most = (uint32_t *)at.shared->sums, lane = at.thread % 32;
    mine = __reduce_max_sync(0xffffffff, mine);
    __syncthreads();
    if (lane == 0) most[at.thread / 32] = mine;
    __syncthreads();
    return __reduce_max_sync(0xffffffff, lane < threads / 32 ? most[lane] : 0);
}

/* The sum of the threads before this one; *total that of all. */
template <uint32_t threads>
__device__ __forceinline__ uint64_t block_scan(place_t &at, uint64_t mine, uint64_t *total)
{
    uint32_t lane = at.thread % 32, warp = at.thread / 32;
    uint64_t sum = mine, before = 0, all = 0;
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint64_t other = __shfl_up_sync(0xffffffff, sum, step);
        sum += lane >= step ? other : 0;
    }
    __syncthreads();
    if (lane == 31) at.shared->sums[warp] = sum;
    __syncthreads();
    for (uint32_t i = 0; i < threads / 32; i++) {
        if (i == warp) before = all;
        all += at.shared->sums[i];
    }
    *total = all;
    return before + sum - mine;
}

/* Quads of values, from quad to quad; the first is at.quad. */
__device__ __forceinline__ uint32_t next_quad(const place_t &at, uint32_t quad)
{
    return quad + 1 == at.segment / 4 ? 0 : quad + 1;
}

__device__ __forceinline__ uint4 *quad_at(const place_t &at, uint32_t quad)
{
    return (uint4 *)&at.values[at.thread * at.segment + 4 * quad];
}

/* Each value of this thread's segment with its place in the block's range.  Threads of a warp begin
 * at different quads, so that their reads meet all banks.  The next quad is read before this one is
 * worked on; more is not unrolled: the kernel's many walks must fit the instruction cache together.
 */
template <typename visit_t>
__device__ __forceinline__ void visit(const place_t &at, visit_t visitor)
{
    if (at.thread * at.segment >= at.count) return;
    uint32_t quad = at.quad;
    uint4 next = *quad_at(at, quad);
#pragma unroll 1
    for (uint32_t i = at.segment / 4; i > 0; i--) {
        uint4 four = next;
        uint32_t index = at.thread * at.segment + 4 * quad;
        quad = next_quad(at, quad);
        next = *quad_at(at, quad);
        visitor(four.x, index);
        visitor(four.y, index + 1);
        visitor(four.z, index + 2);
        visitor(four.w, index + 3);
    }
}

/* The same; what the visitor returns takes the value's place. */
template <typename visit_t>
__device__ __forceinline__ void rewrite(const place_t &at, visit_t visitor)
{
    if (at.thread * at.segment >= at.count) return;
    uint32_t quad = at.quad;
    uint4 next = *quad_at(at, quad);
#pragma unroll 1
    for (uint32_t i = at.segment / 4; i > 0; i--) {
        uint4 four = next, *place = quad_at(at, quad);
        uint32_t index = at.thread * at.segment + 4 * quad;
        quad = next_quad(at, quad);
        next = *quad_at(at, quad);
        four.x = visitor(four.x, index);
        four.y = visitor(four.y, index + 1);
        four.z = visitor(four.z, index + 2);
        four.w = visitor(four.w, index + 3);
        *place = four;
    }
}

} // namespace sample

#endif
