/* kernels/cuda/fp8_gemm_few.cuh - FP8 block-scaled product of few rows with streamed weights.
 *
 * out[row][n] = sum over blocks of 128 k, ascending: sum = fmaf(x[row] . w[n], sx * sw, sum).  The
 * rows of x (tokens) are wgmma's 64 x k operand and rows of w its n, so a tile may be as narrow as
 * 8 weights and every SM gets its share of them.  What bounds it is the reading of weights: a ring
 * of weights deep enough to cover the memory's latency fills while the previous kernel still runs,
 * for weights never depend on it; rows of x come through a ring of their own, out of L2.
 *
 * A cluster is cluster_tokens x cluster_weights blocks: blocks of the same weights load a part of
 * them each and multicast it to the others, and so do blocks of the same tokens.
 *
 * Small n is bound by the instructions of the multiplying warps, not by memory: with one warp on
 * each scheduler, waiting for and handing back a slot costs more than its products.  Hence slots of
 * several blocks of k, and descriptors kept in uniform registers.
 *
 * Warps of a block (`groups` warpgroups of 64 tokens x `columns` weights):
 *   0 .. 4 * groups - 1   products, scaling, stores
 *   4 * groups            loads weights and their scales
 *   4 * groups + 1        waits for the previous kernel, loads rows of x and their scales
 *
 * Blocks walk over tiles in steps of the grid, the loading warps ahead of the others.
 */
#ifndef KERNELS_CUDA_FP8_GEMM_FEW_CUH
#define KERNELS_CUDA_FP8_GEMM_FEW_CUH

#include "fp8_gemm_few.h"
#include "hopper.cuh"
#include "wgmma.cuh"

#include <cuda_bf16.h>

/* One of the rows' groups, as the walk over tiles needs it. */
struct few_group_t {
    uint32_t first, rows, units; /* a unit is one tile for each block of a cluster */
};

/* Offsets in shared memory. */
struct few_shared_t {
    uint32_t w, x, x_scales, w_scales, staging, groups, barriers, bytes;
};

enum {
    FEW_SCALES = 4,       /* floats of weights' scales of one block of k */
    FEW_STAGE_PITCH = 80, /* bytes: 32 columns of BF16, and 16 so that 8 rows hit different banks */
    FEW_STAGE_BYTES = 16 * FEW_STAGE_PITCH, /* of one warp */
};

template <int token_groups, int weight_groups, int n, int k_step> struct few_shape {
    static constexpr int weights = n, depth = k_step; /* blocks of k in a slot */
    static constexpr int tokens = 64 * token_groups, columns = weights / weight_groups;
    static constexpr int groups = token_groups * weight_groups, threads = 128 * groups + 64;
    static constexpr int x_bytes = tokens * 128, w_bytes = weights * 128; /* of one block of k */
    /* Copies of x's scales must begin at a multiple of four rows (16 bytes), rows of a group need
     * not: up to three rows more come along.  Dense products do without, which is faster. */
    static constexpr int x_scale_bytes = (depth * (tokens + FEW_SKEW) * 4 + 127) / 128 * 128;
    /* Blocks of 128 weights, with a scale each, that a tile can touch. */
    static constexpr int spans = 128 % weights == 0   ? 1
                                 : weights % 128 == 0 ? weights / 128
                                                      : (weights + 126) / 128 + 1;
    static constexpr bool is_split = 128 % columns != 0;
    /* Blocks of k under way at once: where registers allow, so that adding one hides the next. */
    static constexpr int
        ahead = depth > 1 && (groups == 1 || token_groups == groups && columns <= 96) ? 2 : 1;
    /* So few registers that the next kernel fits beside this one. */
    static constexpr int residents = groups * columns * (1 + ahead) <= 256 ? 2 : 1;
    static_assert(weights % 8 == 0 && weights <= 256 && weights % weight_groups == 0);
    static_assert(columns % 8 == 0 && columns <= 128 && spans <= FEW_SCALES);

    __host__ __device__ static few_shared_t map(uint32_t w_slots, uint32_t x_slots,
                                                uint32_t group_count)
    {
        few_shared_t at = {};
        at.x = w_slots * depth * w_bytes;
        at.x_scales = at.x + x_slots * depth * x_bytes;
        at.w_scales = at.x_scales + x_slots * x_scale_bytes;
        at.staging = at.w_scales + w_slots * depth * FEW_SCALES * 4;
        at.barriers = at.staging + 4 * groups * FEW_STAGE_BYTES;
        at.groups = at.barriers + 2 * (w_slots + x_slots) * 8;
        at.bytes = at.groups + group_count * (uint32_t)sizeof(few_group_t);
        return at;
    }
};

/* A place in a ring of slots.  Full barriers are waited for with `phase`, empty ones with its
 * inverse. */
struct few_ring_t {
    uint32_t slot, phase;

    __device__ __forceinline__ void advance(uint32_t slots)
    {
        if (++slot < slots) return;
        slot = 0;
        phase ^= 1;
    }
};

struct few_tile_t {
    uint32_t group, weight, first_row, rows; /* rows of the group from first_row on, 0: none */
};

/* This block's tiles, in the same order for each of its warps. */
struct few_walk_t {
    const few_arguments_t *arguments;
    const few_group_t *groups;
    uint32_t unit, base, group; /* next unit, the first unit of `group` */
    uint32_t token_rank, weight_rank;

    __device__ __forceinline__ few_walk_t(const few_arguments_t *arguments,
                                          const few_group_t *groups)
        : arguments(arguments), groups(groups), base(0), group(0)
    {
        uint32_t blocks = arguments->cluster_tokens * arguments->cluster_weights;
        uint32_t rank = blocks > 1 ? warp_uniform(cluster_rank()) : 0;
        unit = blockIdx.x / blocks;
        token_rank = rank % arguments->cluster_tokens;
        weight_rank = rank / arguments->cluster_tokens;
    }

    template <typename shape> __device__ __forceinline__ bool next(few_tile_t *tile)
    {
        uint32_t units = 0;
        while (group < arguments->group_count) {
            units = warp_uniform(groups[group].units);
            if (unit - base < units) break;
            base += units;
            group++;
        }
        if (group == arguments->group_count) return false;
        uint32_t tokens_step = shape::tokens * arguments->cluster_tokens;
        uint32_t rows = warp_uniform(groups[group].rows);
        uint32_t token_units = (rows + tokens_step - 1) / tokens_step;
        uint32_t weight_unit = (unit - base) / token_units;
        uint32_t token_unit = (unit - base) % token_units;
        uint32_t skipped = token_unit * tokens_step + token_rank * shape::tokens;
        tile->group = group;
        tile->weight = (weight_unit * arguments->cluster_weights + weight_rank) * shape::weights;
        tile->first_row = warp_uniform(groups[group].first) + skipped;
        tile->rows = skipped < rows ? rows - skipped : 0;
        unit += gridDim.x / (arguments->cluster_tokens * arguments->cluster_weights);
        return true;
    }
};

struct few_memory_t {
    unsigned char *shared;
    few_shared_t at;
    uint64_t *w_full, *w_empty, *x_full, *x_empty;
};

template <typename shape>
__device__ __forceinline__ void few_load_weights(const few_arguments_t *arguments,
                                                 const few_memory_t &memory, few_walk_t walk)
{
    uint32_t lane = threadIdx.x % 32, sharers = arguments->cluster_tokens;
    uint32_t part_bytes = shape::w_bytes / sharers, part = walk.token_rank;
    uint16_t blocks = (uint16_t)(((1u << sharers) - 1) << (walk.weight_rank * sharers));
    few_ring_t ring = {};
    few_tile_t tile;
    while (walk.template next<shape>(&tile)) {
        int row =
            (int)(tile.group * arguments->weight_rows + tile.weight + part * part_bytes / 128);
        uint32_t span = min(tile.weight / 128 + lane % FEW_SCALES, arguments->w_scale_rows - 1);
        const float *scales =
            arguments->w_scales +
            (size_t)(tile.group * arguments->w_scale_rows + span) * arguments->w_scale_stride;
        for (uint32_t k = 0; k < arguments->k_blocks; k += shape::depth) {
            uint64_t *full = &memory.w_full[ring.slot];
            barrier_wait(&memory.w_empty[ring.slot], ring.phase ^ 1);
            if (lane == 0) {
                unsigned char *target = memory.shared + memory.at.w + part * part_bytes +
                                        ring.slot * shape::depth * shape::w_bytes;
                barrier_arrive_expect(full, shape::depth * shape::w_bytes);
#pragma unroll
                for (int i = 0; i < shape::depth; i++, target += shape::w_bytes) {
                    int column = (int)(k + i) * 128;
                    if (sharers == 1)
                        tensor_load_2d(target, &arguments->w, full, column, row, cache_evict_first);
                    else
                        tensor_load_2d_multicast(target, &arguments->w, full, column, row, blocks,
                                                 cache_evict_first);
                }
            }
            if (lane < shape::depth * FEW_SCALES)
                copy_async_4((float *)(memory.shared + memory.at.w_scales) +
                                 ring.slot * shape::depth * FEW_SCALES + lane,
                             scales + k + lane / FEW_SCALES, full);
            ring.advance(arguments->w_slots);
        }
    }
}

template <typename shape>
__device__ __forceinline__ void few_load_rows(const few_arguments_t *arguments,
                                              const few_memory_t &memory, few_walk_t walk)
{
    uint32_t sharers = arguments->cluster_weights, box = arguments->x_box;
    uint16_t blocks = 0;
    for (uint32_t i = 0; i < sharers; i++)
        blocks |= (uint16_t)(1u << (i * arguments->cluster_tokens + walk.token_rank));
    few_ring_t ring = {};
    few_tile_t tile;
    while (walk.template next<shape>(&tile)) {
        uint32_t boxes = (min(tile.rows, (uint32_t)shape::tokens) + box - 1) / box;
        for (uint32_t k = 0; k < arguments->k_blocks; k += shape::depth) {
            uint64_t *full = &memory.x_full[ring.slot];
            barrier_wait(&memory.x_empty[ring.slot], ring.phase ^ 1);
            if (threadIdx.x % 32 == 0) {
                unsigned char *slot =
                    memory.shared + memory.at.x + ring.slot * shape::depth * shape::x_bytes;
                barrier_arrive_expect(full, shape::depth *
                                                (boxes * box * 128 + arguments->x_scale_rows * 4));
                tensor_load_2d(memory.shared + memory.at.x_scales +
                                   ring.slot * shape::x_scale_bytes,
                               &arguments->x_scales, full, (int)(tile.first_row & ~3u), (int)k,
                               cache_evict_last);
                for (int i = 0; i < shape::depth; i++, slot += shape::x_bytes)
                    for (uint32_t b = walk.weight_rank; b < boxes; b += sharers) {
                        int column = (int)(k + i) * 128, row = (int)(tile.first_row + b * box);
                        unsigned char *target = slot + b * box * 128;
                        if (sharers == 1)
                            tensor_load_2d(target, &arguments->x, full, column, row,
                                           cache_evict_last);
                        else
                            tensor_load_2d_multicast(target, &arguments->x, full, column, row,
                                                     blocks, cache_evict_last);
                    }
            }
            __syncwarp();
            ring.advance(arguments->x_slots);
        }
    }
}

/* The scales of one block of k: of this thread's two rows, of one or two blocks of weights. */
struct few_scales_t {
    float x[2], w[2];
};

/* What the multiplying warps carry from slot to slot. */
struct few_reader_t {
    few_ring_t w, x;
};

__device__ __forceinline__ void few_wait(const few_memory_t &memory, const few_reader_t &reader)
{
    barrier_wait(&memory.w_full[reader.w.slot], reader.w.phase);
    barrier_wait(&memory.x_full[reader.x.slot], reader.x.phase);
}

__device__ __forceinline__ void few_next_slot(const few_arguments_t *arguments,
                                              few_reader_t *reader)
{
    reader->w.advance(arguments->w_slots);
    reader->x.advance(arguments->x_slots);
}

/* Where a warpgroup's part of a tile lies: first token and first weight; its scales' block of
 * weights; the first column, in eights, of the next block of weights; rows of scales before the
 * first token's. */
struct few_part_t {
    uint32_t token, column, span, split, skew, pitch;
};

/* Starts the four products of block `step` of a slot. */
template <typename shape>
__device__ __forceinline__ void few_issue(const few_memory_t &memory, const few_reader_t &reader,
                                          float (&partial)[shape::columns / 2],
                                          few_scales_t *scales, const few_part_t &part, int step)
{
    uint32_t w_block = reader.w.slot * shape::depth + step;
    uint32_t x_block = reader.x.slot * shape::depth + step;
    uint64_t a =
        wgmma_operand(memory.shared + memory.at.x + x_block * shape::x_bytes + part.token * 128);
    uint64_t b =
        wgmma_operand(memory.shared + memory.at.w + w_block * shape::w_bytes + part.column * 128);
    wgmma_hold(partial);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma_e4m3<shape::columns>::multiply(partial, a + i * 2, b + i * 2, i > 0);
    wgmma_commit();
    uint32_t row = part.token + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const float *x_scales =
        (const float *)(memory.shared + memory.at.x_scales + reader.x.slot * shape::x_scale_bytes) +
        step * part.pitch + part.skew + row;
    const float *w_scales =
        (const float *)(memory.shared + memory.at.w_scales) + w_block * FEW_SCALES + part.span;
    scales->x[0] = x_scales[0];
    scales->x[1] = x_scales[8];
    scales->w[0] = w_scales[0];
    scales->w[1] = shape::is_split ? w_scales[1] : 0;
}

/* Hands the slots back to all blocks that fill them, by each warp: wgmma's reads are over only for
 * the warp that has waited. */
__device__ __forceinline__ void few_release(const few_arguments_t *arguments,
                                            const few_memory_t &memory, few_reader_t *reader,
                                            const few_walk_t &walk)
{
    uint32_t lane = threadIdx.x % 32;
    uint64_t *w_empty = &memory.w_empty[reader->w.slot];
    uint64_t *x_empty = &memory.x_empty[reader->x.slot];
    uint32_t cluster_tokens = arguments->cluster_tokens;
    if (cluster_tokens * arguments->cluster_weights == 1) {
        if (lane == 0) barrier_arrive(w_empty);
        if (lane == 0) barrier_arrive(x_empty);
    } else {
        if (lane < cluster_tokens)
            barrier_free_at(w_empty, walk.weight_rank * cluster_tokens + lane);
        if (lane < arguments->cluster_weights)
            barrier_free_at(x_empty, lane * cluster_tokens + walk.token_rank);
    }
    few_next_slot(arguments, reader);
}

/* split: the first column, in eights, of the second block of weights. */
template <typename shape>
__device__ __forceinline__ void few_add(float (&sums)[shape::columns / 2],
                                        float (&partial)[shape::columns / 2],
                                        const few_scales_t &scales, uint32_t split)
{
    wgmma_hold(partial);
    float low = scales.x[0] * scales.w[0], high = scales.x[1] * scales.w[0];
    float second_low = scales.x[0] * scales.w[1], second_high = scales.x[1] * scales.w[1];
#pragma unroll
    for (int i = 0; i < shape::columns / 8; i++) {
        bool is_second = shape::is_split && i >= split;
        float a = is_second ? second_low : low, b = is_second ? second_high : high;
        sums[4 * i] = fmaf(partial[4 * i], a, sums[4 * i]);
        sums[4 * i + 1] = fmaf(partial[4 * i + 1], a, sums[4 * i + 1]);
        sums[4 * i + 2] = fmaf(partial[4 * i + 2], b, sums[4 * i + 2]);
        sums[4 * i + 3] = fmaf(partial[4 * i + 3], b, sums[4 * i + 3]);
    }
}

__device__ __forceinline__ uint32_t few_pair(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

/* 16 rows of one warp through shared memory, 32 columns at a time, so that stores are whole
 * sectors. */
template <int columns>
__device__ __forceinline__ void
few_store_bf16(const few_arguments_t *arguments, unsigned char *stage,
               const float (&sums)[columns / 2], uint32_t row, uint32_t rows, uint32_t column)
{
    uint32_t lane = threadIdx.x % 32;
    __nv_bfloat16 *out = (__nv_bfloat16 *)arguments->out + row * arguments->out_stride + column;
#pragma unroll
    for (int from = 0; from < columns; from += 32) {
        constexpr int step = 32;
        const int width = columns - from < step ? columns - from : step, chunks = width / 8;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < width; i += 16) {
            const int a = (from + i) / 2, b = i + 8 < width ? a + 4 : a;
            uint32_t at = (uint32_t)i / 8 + (b > a ? lane / 16 : 0);
            store_matrix_x4(stage + lane % 16 * FEW_STAGE_PITCH + at * 16,
                            few_pair(sums[a], sums[a + 1]), few_pair(sums[a + 2], sums[a + 3]),
                            few_pair(sums[b], sums[b + 1]), few_pair(sums[b + 2], sums[b + 3]));
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 16 * chunks; i += 32) {
            uint32_t at = i + lane, r = at / chunks, c = at % chunks;
            if (r < min(rows, 16u) && column + from + c * 8 < arguments->weight_rows)
                *(uint4 *)(out + r * arguments->out_stride + from + c * 8) =
                    *(const uint4 *)(stage + r * FEW_STAGE_PITCH + c * 16);
        }
    }
}

/* Stores of 8 bytes would ask for sums in even and odd registers as the partial sums are, and every
 * fmaf would read one bank of them twice. */
template <int columns>
__device__ __forceinline__ void few_store_f32(const few_arguments_t *arguments,
                                              const float (&sums)[columns / 2], uint32_t row,
                                              uint32_t rows, uint32_t column)
{
    uint32_t lane = threadIdx.x % 32;
    float *out =
        (float *)arguments->out + (row + lane / 4) * arguments->out_stride + column + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < columns / 8; i++) {
        if (column + i * 8 >= arguments->weight_rows) break;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (lane / 4 + 8 * half >= rows) continue;
            out[8 * half * arguments->out_stride + i * 8] = sums[4 * i + 2 * half];
            out[8 * half * arguments->out_stride + i * 8 + 1] = sums[4 * i + 2 * half + 1];
        }
    }
}

/* One tile of one warpgroup.  Where registers allow, the next block of k is multiplied while one is
 * scaled and added; else the warpgroups of the block take turns by themselves. */
template <typename shape>
__device__ __forceinline__ void
few_multiply(const few_arguments_t *arguments, const few_memory_t &memory, few_reader_t *reader,
             const few_walk_t &walk, float (&sums)[shape::columns / 2], const few_part_t &part)
{
    constexpr int depth = shape::depth, ahead = shape::ahead;
    float partial[ahead][shape::columns / 2];
    few_scales_t scales[ahead];
    for (uint32_t k = 0; k < arguments->k_blocks; k += depth) {
        few_reader_t slots = *reader;
        slots.w.slot = warp_uniform(slots.w.slot);
        slots.x.slot = warp_uniform(slots.x.slot);
        few_wait(memory, *reader);
#pragma unroll
        for (int step = 0; step < ahead - 1; step++)
            few_issue<shape>(memory, slots, partial[step], &scales[step], part, step);
#pragma unroll
        for (int step = 0; step < depth; step++) {
            const int last = step + ahead - 1; /* the last block of k under way */
            if (last < depth)
                few_issue<shape>(memory, slots, partial[last % ahead], &scales[last % ahead], part,
                                 last);
            if (last < depth)
                wgmma_wait<ahead - 1>();
            else
                wgmma_wait<0>();
            if (step == depth - 1) few_release(arguments, memory, reader, walk);
            few_add<shape>(sums, partial[step % ahead], scales[step % ahead], part.split);
        }
    }
}

template <typename shape>
__device__ __forceinline__ void few_compute(const few_arguments_t *arguments,
                                            const few_memory_t &memory, few_walk_t walk)
{
    constexpr int columns = shape::columns;
    uint32_t warp = warp_uniform(threadIdx.x / 32), group = shape::groups > 1 ? warp / 4 : 0;
    uint32_t first_token = group % (shape::tokens / 64) * 64;
    uint32_t first_column = group / (shape::tokens / 64) * columns;
    uint32_t warp_row = first_token + warp % 4 * 16;
    few_reader_t reader = {};
    few_tile_t tile;
    wait_for_previous();
    while (walk.template next<shape>(&tile)) {
        if (first_token >= tile.rows) { /* no token of this warpgroup: it only keeps step */
            for (uint32_t k = 0; k < arguments->k_blocks; k += shape::depth) {
                few_wait(memory, reader);
                few_release(arguments, memory, &reader, walk);
            }
            continue;
        }
        float sums[columns / 2];
#pragma unroll
        for (int i = 0; i < columns / 2; i++) sums[i] = 0;
        uint32_t column = tile.weight + first_column;
        few_part_t part = { first_token,
                            first_column,
                            column / 128 - tile.weight / 128,
                            (128 - column % 128) / 8,
                            tile.first_row % 4,
                            arguments->x_scale_rows };
        few_multiply<shape>(arguments, memory, &reader, walk, sums, part);
        if (tile.rows <= warp_row) continue;
        if (arguments->is_f32)
            few_store_f32<columns>(arguments, sums, tile.first_row + warp_row, tile.rows - warp_row,
                                   column);
        else
            few_store_bf16<columns>(arguments,
                                    memory.shared + memory.at.staging + warp * FEW_STAGE_BYTES,
                                    sums, tile.first_row + warp_row, tile.rows - warp_row, column);
    }
}

template <typename shape>
__global__ void __launch_bounds__(shape::threads, shape::residents)
    fp8_gemm_few_kernel(const __grid_constant__ few_arguments_t arguments)
{
    DYNAMIC_SHARED(unsigned char, few_shared, 1024);
    uint32_t w_slots = arguments.w_slots, x_slots = arguments.x_slots;
    uint32_t cluster_tokens = arguments.cluster_tokens, cluster_weights = arguments.cluster_weights;
    few_memory_t memory = { few_shared, shape::map(w_slots, x_slots, arguments.group_count) };
    memory.w_full = (uint64_t *)(few_shared + memory.at.barriers);
    memory.w_empty = memory.w_full + w_slots;
    memory.x_full = memory.w_empty + w_slots;
    memory.x_empty = memory.x_full + x_slots;
    few_group_t *groups = (few_group_t *)(few_shared + memory.at.groups);

    let_next_start();
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < w_slots; i++) {
            barrier_init(&memory.w_full[i], 1 + shape::depth * FEW_SCALES);
            barrier_init(&memory.w_empty[i], 4 * shape::groups * cluster_tokens);
        }
        for (uint32_t i = 0; i < x_slots; i++) {
            barrier_init(&memory.x_full[i], 1);
            barrier_init(&memory.x_empty[i], 4 * shape::groups * cluster_weights);
        }
        fence_barrier_init();
    }
    if (arguments.first) wait_for_previous();
    for (uint32_t g = threadIdx.x; g < arguments.group_count; g += shape::threads) {
        uint32_t first = 0, rows = arguments.all_rows;
        if (arguments.first) {
            first = arguments.first[g];
            rows = arguments.rows ? arguments.rows[g] : arguments.first[g + 1] - first;
        }
        uint32_t step = shape::tokens * cluster_tokens;
        uint32_t weight_step = shape::weights * cluster_weights;
        groups[g] = { first, rows,
                      (rows + step - 1) / step *
                          ((arguments.weight_rows + weight_step - 1) / weight_step) };
    }
    if (cluster_tokens * cluster_weights > 1)
        cluster_sync();
    else
        __syncthreads();

    few_walk_t walk(&arguments, groups);
    uint32_t warp = warp_uniform(threadIdx.x / 32);
    if (warp == 4 * shape::groups) {
        few_load_weights<shape>(&arguments, memory, walk);
    } else if (warp == 4 * shape::groups + 1) {
        wait_for_previous();
        few_load_rows<shape>(&arguments, memory, walk);
    } else {
        few_compute<shape>(&arguments, memory, walk);
    }
    /* No block leaves while another may still reach into its shared memory. */
    if (cluster_tokens * cluster_weights > 1) cluster_sync();
}

template <typename shape>
static int few_launch(queue_t *q, const few_arguments_t *arguments, const few_plan_t *plan)
{
    uint32_t cluster = plan->cluster_tokens * plan->cluster_weights;
    few_arguments_t fitted = *arguments;
    uint32_t bytes = shape::map(plan->w_slots, plan->x_slots, arguments->group_count).bytes;
    while (bytes > FEW_SHARED_MAX && fitted.w_slots > 2) /* a long table of groups */
        bytes = shape::map(--fitted.w_slots, plan->x_slots, arguments->group_count).bytes;
    if (bytes > FEW_SHARED_MAX || arguments->k_blocks % shape::depth != 0) return EINVAL;
    if (allow_shared(fp8_gemm_few_kernel<shape>, bytes) != 0) return EIO;
    uint32_t clusters = (uint32_t)q->sm_count * plan->blocks_per_sm / cluster;
    if (!arguments->first) {
        uint32_t token_step = shape::tokens * plan->cluster_tokens;
        uint32_t weight_step = shape::weights * plan->cluster_weights;
        uint32_t units = (arguments->all_rows + token_step - 1) / token_step *
                         ((arguments->weight_rows + weight_step - 1) / weight_step);
        if (units < clusters) clusters = units;
    }
    launch_t launch;
    launch_init(&launch, q, dim3(clusters * cluster), dim3(shape::threads), bytes, cluster, true);
    cudaLaunchKernelEx(&launch.config, fp8_gemm_few_kernel<shape>, fitted);
    return launch_status();
}

#define FEW_KERNEL(token_groups, weight_groups, weights, depth)                                    \
    const few_kernel_t few_kernel_##token_groups##_##weight_groups##_##weights##_##depth = {       \
        few_launch<few_shape<token_groups, weight_groups, weights, depth>>, 64 * token_groups,     \
        weights, depth                                                                             \
    };

#endif
