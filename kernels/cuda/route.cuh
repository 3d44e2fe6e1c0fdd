/* kernels/cuda/route.cuh - rows ordered by expert: a stable counting sort of the gate's choices. */
#ifndef KERNELS_CUDA_ROUTE_CUH
#define KERNELS_CUDA_ROUTE_CUH

#include "hopper.cuh"
#include "queue.cuh"

enum {
    ROUTE_THREADS = 1024,
    ROUTE_WARPS = ROUTE_THREADS / 32,
    ROUTE_EXPERTS_MAX = 512,
    ROUTE_TURNS_MAX = 2, /* choices of a thread where one block does it all: 256 tokens of eight */
    ROUTE_PART_TURNS = 2,
    ROUTE_PART = ROUTE_PART_TURNS * ROUTE_THREADS, /* choices of a block where there are several */
};

struct route_task_t {
    uint32_t *first, *rows, *source, *index;
    const uint32_t *ids;
    route_t route;
    uint32_t choices; /* tokens * top_k */
    uint32_t *counts; /* several blocks: [block][expert], by count_choices */
};

/* The expert of this rank that a choice names, or NO_ROW. */
__device__ __forceinline__ uint32_t expert_of(const route_task_t &task, uint32_t choice)
{
    if (choice >= task.choices) return NO_ROW;
    uint32_t expert = task.ids[choice] - task.route.first_expert;
    return expert < task.route.experts ? expert : NO_ROW;
}

/* What no choice will fill. */
__device__ __forceinline__ void clear_source(const route_task_t &task)
{
    uint32_t step = gridDim.x * ROUTE_THREADS;
    for (uint32_t i = blockIdx.x * ROUTE_THREADS + threadIdx.x; i < task.route.capacity; i += step)
        task.source[i] = NO_ROW;
}

/* How many choices of each block's part name each expert. */
static __global__ void __launch_bounds__(ROUTE_THREADS)
    count_choices(const __grid_constant__ route_task_t task)
{
    __shared__ uint32_t counts[ROUTE_EXPERTS_MAX];
    if (threadIdx.x < ROUTE_EXPERTS_MAX) counts[threadIdx.x] = 0;
    wait_for_previous();
    let_next_start();
    __syncthreads();
    clear_source(task);
    for (int turn = 0; turn < ROUTE_PART_TURNS; turn++) {
        uint32_t choice = blockIdx.x * ROUTE_PART + turn * ROUTE_THREADS + threadIdx.x;
        uint32_t expert = expert_of(task, choice);
        if (expert != NO_ROW) atomicAdd(&counts[expert], 1);
    }
    __syncthreads();
    if (threadIdx.x < task.route.experts)
        task.counts[blockIdx.x * task.route.experts + threadIdx.x] = counts[threadIdx.x];
}

/* The sum of `value` over the threads before this one. */
__device__ __forceinline__ uint32_t sum_before(uint32_t value, uint32_t *warp_sums)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        uint32_t other = __shfl_up_sync(0xffffffff, sum, distance);
        if (lane >= distance) sum += other;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    uint32_t before = lane < warp ? warp_sums[lane] : 0;
    return sum - value + __reduce_add_sync(0xffffffff, before);
}

/* Choices of the blocks before this one that name each expert, and of all blocks; zero at first. */
__device__ __forceinline__ void sum_blocks(const route_task_t &task, uint32_t *befores,
                                           uint32_t *totals)
{
    uint32_t experts = task.route.experts, before = blockIdx.x * experts;
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < gridDim.x * experts; i += ROUTE_THREADS) {
        uint32_t count = task.counts[i];
        atomicAdd(&totals[i % experts], count);
        if (i < before) atomicAdd(&befores[i % experts], count);
    }
}

/* The lanes that name the same expert; ten votes, where match.any takes one step for each of them.
 */
__device__ __forceinline__ uint32_t lanes_with(uint32_t expert)
{
    static_assert(ROUTE_EXPERTS_MAX <= 1 << 9, "bit 9 tells NO_ROW from the experts");
    uint32_t same = 0xffffffff;
#pragma unroll
    for (int bit = 0; bit < 10; bit++) {
        bool is_set = expert >> bit & 1;
        uint32_t set = __ballot_sync(0xffffffff, is_set);
        same &= is_set ? set : ~set;
    }
    return same;
}

/* A warp owns a run of choices: the order of warps, turns and lanes is the order of choices.
 *
 *   shared: choices of each warp that name each expert, then how many come before them; choices of
 *           other blocks and of all; where each expert's rows begin, and this block's among them
 *   warps:  count their choices; a thread per expert sums over warps, then over experts; each warp
 *           places its choices
 *
 * long: three short steps that share nearly all of it. */
template <int turns, bool is_split>
__global__ void __launch_bounds__(ROUTE_THREADS)
    route_choices(const __grid_constant__ route_task_t task)
{
    __shared__ uint16_t counts[ROUTE_WARPS][ROUTE_EXPERTS_MAX];
    __shared__ uint32_t firsts[ROUTE_EXPERTS_MAX + 1], starts[ROUTE_EXPERTS_MAX];
    __shared__ uint32_t befores[ROUTE_EXPERTS_MAX], totals[ROUTE_EXPERTS_MAX];
    __shared__ uint32_t warp_sums[ROUTE_WARPS];
    const route_t &route = task.route;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, expert = threadIdx.x;
    for (uint32_t i = lane; i < ROUTE_EXPERTS_MAX / 2; i += 32) ((uint32_t *)counts[warp])[i] = 0;
    if (is_split && expert < ROUTE_EXPERTS_MAX) befores[expert] = totals[expert] = 0;
    wait_for_previous();
    let_next_start();
    uint32_t part = is_split ? ROUTE_PART : task.choices;
    uint32_t each = (part + ROUTE_THREADS - 1) / ROUTE_THREADS; /* turns that have choices */
    uint32_t begin = blockIdx.x * part + warp * each * 32 + lane;
    uint32_t experts[turns], ranks[turns];
#pragma unroll
    for (int turn = 0; turn < turns; turn++)
        experts[turn] = turn < each ? expert_of(task, begin + turn * 32) : NO_ROW;
    if (is_split) __syncthreads();
    if (is_split)
        sum_blocks(task, befores, totals);
    else
        clear_source(task);
    __syncwarp();
#pragma unroll
    for (int turn = 0; turn < turns; turn++) {
        if (turn >= each) break;
        uint32_t same = lanes_with(experts[turn]);
        uint32_t own = experts[turn] == NO_ROW ? 0 : counts[warp][experts[turn]];
        ranks[turn] = own + __popc(same & ((1u << lane) - 1));
        __syncwarp();
        if (experts[turn] != NO_ROW && lane == __ffs(same) - 1)
            counts[warp][experts[turn]] = (uint16_t)(own + __popc(same));
        __syncwarp();
    }
    __syncthreads();
    uint32_t before = 0, total = 0, sum = 0;
    if (expert < route.experts) {
#pragma unroll
        for (int i = 0; i < ROUTE_WARPS; i++) {
            uint32_t count = counts[i][expert];
            counts[i][expert] = (uint16_t)sum;
            sum += count;
        }
        before = is_split ? befores[expert] : 0;
        total = is_split ? totals[expert] : sum;
    }
    uint32_t first = sum_before((total + route.align - 1) / route.align * route.align, warp_sums);
    if (expert <= route.experts) firsts[expert] = min(first, route.capacity);
    if (expert < route.experts) starts[expert] = min(first, route.capacity) + before;
    __syncthreads();
    if (blockIdx.x == 0 && expert <= route.experts) task.first[expert] = firsts[expert];
    if (expert < route.experts && blockIdx.x == 0)
        task.rows[expert] = min(total, firsts[expert + 1] - firsts[expert]);
#pragma unroll
    for (int turn = 0; turn < turns; turn++) {
        uint32_t choice = begin + turn * 32;
        if (turn >= each || choice >= task.choices) break;
        uint32_t mine = experts[turn], row = NO_ROW;
        if (mine != NO_ROW) {
            row = starts[mine] + counts[warp][mine] + ranks[turn];
            if (row >= firsts[mine + 1]) row = NO_ROW;
        }
        task.index[choice] = row;
        if (row != NO_ROW) task.source[row] = choice / route.top_k;
    }
}

#endif
