/* kernels/cuda/mha_prefill.cuh - causal attention of prompt rows over keys and values of every head
 * (192 and 128 columns): queries stay, blocks of keys stream past them.
 *
 * A tile is 128 query rows of one head.  Its key blocks are counted from the sequence's own token 0
 * and taken in ascending order, so the bits of a row do not depend on the tile that holds it: a
 * block that a row does not see adds nothing to it.  That is also why token 0, which every row
 * sees, comes first: no maximum is ever minus infinity.
 *
 * Both math warpgroups run one endless pipeline over the blocks of all their tiles: the scores of a
 * block are in the tensor cores while the block before is weighed, and the first scores of the next
 * tile are there while this one is written.
 *
 *   Method: FlashAttention-3 (Shah et al. 2024); threshold for rescaling: FlashAttention-4.
 */
#ifndef KERNELS_CUDA_MHA_PREFILL_CUH
#define KERNELS_CUDA_MHA_PREFILL_CUH

#include "hopper.cuh"
#include "prefill_tiles.h"
#include "queue.cuh"
#include "wgmma.cuh"

#include <cuda_bf16.h>

enum {
    PREFILL_GROUPS = PREFILL_ROWS / 64, /* math warpgroups */
    PREFILL_THREADS = 128 * (PREFILL_GROUPS + 1),
    PREFILL_SEQUENCES_MAX = 1024,
};

struct prefill_task_t {
    const sequence_t *sequences;
    uint32_t count, heads;
    float scale; /* of scores, times log2(e): weights are powers of two */
    __nv_bfloat16 *out;
    size_t out_stride;
    uint32_t *counters; /* [0]: tiles taken beyond each block's first, [1]: blocks that ended */
};

/* What the math warpgroups know of a tile.  blocks 0: there are no more. */
struct prefill_tile_t {
    uint32_t blocks, head;
    uint32_t first_row, rows; /* of out */
    uint32_t position;        /* of the first row in its sequence */
    uint32_t first_key, keys; /* of the sequence */
};

/* 128 keys, two stages: 48 KiB queries + 96 KiB keys + 64 KiB values; 64 columns of a tile are rows
 * of 128 bytes under the 128-byte swizzle. */
template <int block_keys, int stages> struct prefill_shared_t {
    __nv_bfloat16 query[PREFILL_GROUPS][3][64 * 64];
    __nv_bfloat16 key[stages][3][block_keys * 64]; /* nope, nope, rope */
    __nv_bfloat16 value[stages][2][block_keys * 64];
    uint64_t query_full[PREFILL_GROUPS], query_empty[PREFILL_GROUPS];
    uint64_t key_full[stages], key_empty[stages], value_full[stages], value_empty[stages];
    uint64_t value_tail; /* the last values of a sequence, before what follows them is cleared */
    uint64_t tile_full[2], tile_empty[2];
    prefill_tile_t tiles[2];
    uint32_t order[PREFILL_SEQUENCES_MAX]; /* sequences, most keys first */
    uint32_t ends[PREFILL_SEQUENCES_MAX];  /* tiles of these and all before them */
};

/* A place in a ring of buffers; parity as the waiting side of a full barrier sees it. */
template <int stages> struct prefill_ring_t {
    uint32_t stage = 0, parity = 0;
    __device__ __forceinline__ void advance()
    {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/* ---- the order of tiles ---- */

/* Most keys first, so that short sequences fill the end; ties in the caller's order. */
template <typename shared_t>
__device__ void prefill_sort(shared_t *shared, const prefill_task_t &task)
{
    uint32_t *keys = shared->ends;
    for (uint32_t i = threadIdx.x; i < task.count; i += PREFILL_THREADS)
        keys[i] = task.sequences[i].first_position + task.sequences[i].rows;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < task.count; i += PREFILL_THREADS) {
        uint32_t rank = 0, own = keys[i];
        for (uint32_t other = 0; other < task.count; other++)
            rank += keys[other] > own || (keys[other] == own && other < i);
        shared->order[rank] = i;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        uint32_t before = 0;
        for (uint32_t first = 0; first < task.count; first += 32) {
            uint32_t at = first + threadIdx.x, sum = 0;
            if (at < task.count) sum = prefill_tiles(task.sequences[shared->order[at]].rows);
            for (uint32_t step = 1; step < 32; step *= 2) {
                uint32_t left = __shfl_up_sync(0xffffffff, sum, step);
                if (threadIdx.x >= step) sum += left;
            }
            if (at < task.count) shared->ends[at] = before + sum;
            before += __shfl_sync(0xffffffff, sum, 31);
        }
    }
    __syncthreads();
}

template <int block_keys, typename shared_t>
__device__ prefill_tile_t prefill_find(const shared_t *shared, const prefill_task_t &task,
                                       uint32_t index)
{
    prefill_tile_t tile = {};
    uint32_t at = prefill_sequence(shared->ends, task.count, index / task.heads);
    if (at == task.count) return tile;
    const sequence_t *sequence = &task.sequences[shared->order[at]];
    uint32_t before = at ? shared->ends[at - 1] : 0, rows = sequence->rows;
    tile.first_key = sequence->first_key;
    tile.keys = sequence->first_position + rows;
    prefill_place_t place = prefill_place(index - before * task.heads, shared->ends[at] - before,
                                          task.heads, prefill_group_heads(task.heads, tile.keys));
    uint32_t row = place.tile * PREFILL_ROWS;
    tile.head = place.head;
    tile.first_row = sequence->first_row + row;
    tile.rows = rows - row < PREFILL_ROWS ? rows - row : (uint32_t)PREFILL_ROWS;
    tile.position = sequence->first_position + row;
    tile.blocks = prefill_blocks(tile.position, tile.rows, block_keys);
    return tile;
}

template <typename shared_t>
__device__ __forceinline__ prefill_tile_t prefill_next_tile(shared_t *shared,
                                                            prefill_ring_t<2> &slot)
{
    barrier_wait(&shared->tile_full[slot.stage], slot.parity);
    prefill_tile_t tile = shared->tiles[slot.stage];
    /* Of one lane, so that the compiler knows branches on them to be uniform. */
    tile.blocks = __shfl_sync(0xffffffff, tile.blocks, 0);
    tile.position = __shfl_sync(0xffffffff, tile.position, 0);
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&shared->tile_empty[slot.stage]);
    slot.advance();
    return tile;
}

/* ---- the loading warps ---- */

/* Takes tiles, tells the other warps, loads queries and keys. */
template <int block_keys, int stages>
__device__ __forceinline__ void
prefill_load_keys(prefill_shared_t<block_keys, stages> *shared, const prefill_task_t &task,
                  const CUtensorMap *query, const CUtensorMap *kv, const CUtensorMap *k_rope)
{
    uint32_t lane = threadIdx.x % 32, index = blockIdx.x;
    prefill_ring_t<stages> ring;
    prefill_ring_t<2> slot;
    for (uint32_t query_parity = 1;; query_parity ^= 1) {
        prefill_tile_t tile = prefill_find<block_keys>(shared, task, index);
        barrier_wait(&shared->tile_empty[slot.stage], slot.parity ^ 1);
        if (lane == 0) {
            shared->tiles[slot.stage] = tile;
            barrier_arrive(&shared->tile_full[slot.stage]);
        }
        slot.advance();
        if (tile.blocks == 0) break;
        uint32_t next = lane == 0 ? gridDim.x + atomicAdd(&task.counters[0], 1) : 0;
        for (uint32_t block = 0; block < tile.blocks; block++) {
            barrier_wait(&shared->key_empty[ring.stage], ring.parity ^ 1);
            if (lane == 0) {
                uint64_t *full = &shared->key_full[ring.stage];
                int row = (int)(tile.first_key + block * block_keys);
                barrier_arrive_expect(full, sizeof shared->key[0]);
                tensor_load_3d(shared->key[ring.stage], kv, full, 0, row, (int)tile.head * 4);
                tensor_load_2d(shared->key[ring.stage][2], k_rope, full, 0, row);
            }
            ring.advance();
            for (uint32_t group = 0; block == 0 && group < PREFILL_GROUPS; group++) {
                barrier_wait(&shared->query_empty[group], query_parity);
                if (lane != 0) continue;
                uint64_t *full = &shared->query_full[group];
                barrier_arrive_expect(full, sizeof shared->query[0]);
                tensor_load_3d(shared->query[group], query, full, 0,
                               (int)(tile.first_row + group * 64), (int)tile.head * 3,
                               cache_evict_first);
            }
        }
        index = __shfl_sync(0xffffffff, next, 0);
    }
    if (lane != 0) return;
    __threadfence();
    if (atomicAdd(&task.counters[1], 1) == gridDim.x - 1) task.counters[0] = task.counters[1] = 0;
}

/* Rows behind the sequence's last key may hold anything, NaN too, and a weight of zero would not
 * silence them: they are cleared before the math warpgroups hear of the block. */
template <int block_keys, int stages>
__device__ __forceinline__ void prefill_load_values(prefill_shared_t<block_keys, stages> *shared,
                                                    const CUtensorMap *kv)
{
    uint32_t lane = threadIdx.x % 32, tail_parity = 0;
    prefill_ring_t<stages> ring;
    prefill_ring_t<2> slot;
    while (true) {
        prefill_tile_t tile = prefill_next_tile(shared, slot);
        if (tile.blocks == 0) return;
        for (uint32_t block = 0; block < tile.blocks; block++) {
            uint32_t left = tile.keys - block * block_keys;
            uint64_t *full = &shared->value_full[ring.stage];
            uint64_t *loaded = left < block_keys ? &shared->value_tail : full;
            barrier_wait(&shared->value_empty[ring.stage], ring.parity ^ 1);
            if (lane == 0) {
                barrier_arrive_expect(loaded, sizeof shared->value[0]);
                tensor_load_3d(shared->value[ring.stage], kv, loaded, 0,
                               (int)(tile.first_key + block * block_keys), (int)tile.head * 4 + 2);
            }
            if (left < block_keys) {
                barrier_wait(loaded, tail_parity);
                tail_parity ^= 1;
                for (uint32_t half = 0; half < 2; half++) {
                    uint4 *rows = (uint4 *)shared->value[ring.stage][half];
                    for (uint32_t i = left * 8 + lane; i < block_keys * 8; i += 32)
                        rows[i] = uint4{};
                }
                fence_async_shared();
                __syncwarp();
                if (lane == 0) barrier_arrive(full);
            }
            ring.advance();
        }
    }
}

/* ---- the math warpgroups ---- */

template <int count> __device__ __forceinline__ void prefill_hold(uint32_t (&p)[count][4])
{
#pragma unroll
    for (int j = 0; j < count; j++)
        asm volatile("" : "+r"(p[j][0]), "+r"(p[j][1]), "+r"(p[j][2]), "+r"(p[j][3])::"memory");
}

/* query, key: wgmma_operand of tiles of 64 columns that follow each other. */
template <int count>
__device__ __forceinline__ void prefill_multiply_keys(float (&s)[count], uint64_t query,
                                                      uint64_t key)
{
    enum { KEYS = 2 * count };
    wgmma_hold(s);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 12; i++)
        wgmma_bf16<KEYS, 0>::multiply(s, query + (i / 4 * 8192 + i % 4 * 32 >> 4),
                                      key + (i / 4 * KEYS * 128 + i % 4 * 32 >> 4), i > 0);
    wgmma_commit();
}

/* is_first: o is overwritten. */
template <int steps>
__device__ __forceinline__ void prefill_multiply_values(float (&o)[64], uint32_t (&p)[steps][4],
                                                        uint64_t value, bool is_first)
{
    wgmma_hold(o);
    prefill_hold(p);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < steps; j++)
        wgmma_bf16<128, 1>::multiply(o, p[j], value + (j * 2048 >> 4), j > 0 || !is_first);
    wgmma_commit();
}

/* limit: the last column that the thread's first row sees, from the thread's first column on. */
template <int count> __device__ __forceinline__ void prefill_mask(float (&s)[count], int limit)
{
#pragma unroll
    for (int i = 0; i < count; i++)
        if (i / 4 * 8 + i % 2 > limit + 8 * (i / 2 % 2)) s[i] = -INFINITY;
}

/* Of a thread's two rows (8 apart): the score that weights refer to, and the sum of this thread's
 * weights. */
struct prefill_rows_t {
    float max[2], sum[2];
};

/* From scores to weights.  The reference moves only when it would let weights grow past 2^8, which
 * F32 and BF16 hold as well as 1: `factor` is by what earlier sums shrink, 1 nearly always. */
template <int count>
__device__ __forceinline__ void prefill_weigh(float (&s)[count], prefill_rows_t &rows,
                                              float (&factor)[2], float scale)
{
    float top[2][2];
#pragma unroll
    for (int i = 0; i < 4; i++) top[i / 2][i % 2] = s[i];
#pragma unroll
    for (int i = 4; i < count; i++) {
        float &chain = top[i / 2 % 2][i % 2];
        chain = fmaxf(chain, s[i]);
    }
    float base[2], sum[2][2] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = fmaxf(top[half][0], top[half][1]);
        max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, 1));
        max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, 2));
        bool is_grown = (max - rows.max[half]) * scale > 8.0f;
        factor[half] = is_grown ? exp2_approximate((rows.max[half] - max) * scale) : 1.0f;
        if (is_grown) rows.max[half] = max;
        base[half] = rows.max[half] * scale;
    }
#pragma unroll
    for (int i = 0; i < count; i++) {
        s[i] = exp2_approximate(fmaf(s[i], scale, -base[i / 2 % 2]));
        sum[i / 2 % 2][i % 2] += s[i];
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
        rows.sum[half] = fmaf(rows.sum[half], factor[half], sum[half][0] + sum[half][1]);
}

template <int count>
__device__ __forceinline__ void prefill_pack(uint32_t (&p)[count / 8][4], const float (&s)[count])
{
#pragma unroll
    for (int i = 0; i < count; i += 2) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(s[i], s[i + 1]);
        p[i / 8][i % 8 / 2] = *(uint32_t *)&pair;
    }
}

/* Four lanes hold pairs of columns of a row; they exchange them so that each writes 16 bytes. */
__device__ __forceinline__ void prefill_turn(uint32_t (&x)[4], uint32_t lane)
{
    bool is_odd = lane & 1, is_high = lane & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        uint32_t other = __shfl_xor_sync(0xffffffff, is_odd ? x[i] : x[i + 1], 1);
        if (is_odd)
            x[i] = other;
        else
            x[i + 1] = other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t other = __shfl_xor_sync(0xffffffff, is_high ? x[i] : x[i + 2], 2);
        if (is_high)
            x[i] = other;
        else
            x[i + 2] = other;
    }
}

__device__ __forceinline__ void prefill_store(const prefill_task_t &task,
                                              const prefill_tile_t &tile, const float (&o)[64],
                                              const prefill_rows_t &rows)
{
    uint32_t lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = first + 8 * half;
        float sum = rows.sum[half];
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        float factor = 1.0f / sum;
        __nv_bfloat16 *out = task.out + (size_t)(tile.first_row + row) * task.out_stride +
                             tile.head * 128 + lane % 4 * 8;
#pragma unroll
        for (int part = 0; part < 4; part++) {
            uint32_t x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = &o[part * 16 + i * 4 + half * 2];
                __nv_bfloat162 packed = __floats2bfloat162_rn(pair[0] * factor, pair[1] * factor);
                x[i] = *(uint32_t *)&packed;
            }
            prefill_turn(x, lane);
            if (row < tile.rows) *(uint4 *)(out + part * 32) = uint4{ x[0], x[1], x[2], x[3] };
        }
    }
}

/* One lane a warp, after the warp's own products have read the buffer. */
__device__ __forceinline__ void prefill_release(uint64_t *empty)
{
    if (threadIdx.x % 32 == 0) barrier_arrive(empty);
}

/* long: the pipeline's order is the point. */
template <int block_keys, int stages>
__device__ __forceinline__ void prefill_attend(prefill_shared_t<block_keys, stages> *shared,
                                               const prefill_task_t &task)
{
    uint32_t group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
    uint64_t query = wgmma_operand(shared->query[group]);
    uint64_t first_key = wgmma_operand(shared->key[0]);
    uint64_t first_value = wgmma_operand(shared->value[0], block_keys * 128);
    prefill_ring_t<stages> keys, values;
    prefill_ring_t<2> slot;
    uint32_t query_parity = 0;
    int own_column = 2 * (int)(lane % 4);
    float s[block_keys / 2], o[64], factor[2] = { 1, 1 };
    uint32_t p[block_keys / 16][4];

    auto key = [&]() { return first_key + keys.stage * (sizeof shared->key[0] >> 4); };
    auto value = [&]() { return first_value + values.stage * (sizeof shared->value[0] >> 4); };
    auto wait_keys = [&]() { barrier_wait(&shared->key_full[keys.stage], keys.parity); };
    auto wait_values = [&]() { barrier_wait(&shared->value_full[values.stage], values.parity); };
    auto release_keys = [&]() {
        prefill_release(&shared->key_empty[keys.stage]);
        keys.advance();
    };
    /* The sums so far are complete. */
    auto release_values = [&]() {
        wgmma_hold(o);
        prefill_hold(p);
        prefill_release(&shared->value_empty[values.stage]);
        values.advance();
    };
    auto rescale = [&]() {
        if (__any_sync(0xffffffff, factor[0] != 1.0f || factor[1] != 1.0f))
#pragma unroll
            for (int i = 0; i < 64; i++) o[i] *= factor[i / 2 % 2];
    };

    prefill_tile_t tile = prefill_next_tile(shared, slot);
    if (tile.blocks == 0) return;
    barrier_wait(&shared->query_full[group], query_parity);
    wait_keys();
    prefill_multiply_keys(s, query, key());
    wgmma_wait<0>();
    while (true) {
        prefill_rows_t rows = { { -INFINITY, -INFINITY }, { 0, 0 } };
        int first_row = (int)(tile.position + group * 64);
        int own_limit = first_row + (int)(threadIdx.x % 128 / 32 * 16 + lane / 4) - own_column;
        uint32_t last = tile.blocks - 1, block = 0;
        for (;; block++) {
            wgmma_hold(s);
            release_keys();
            if (block == last) prefill_release(&shared->query_empty[group]);
            if ((int)(block + 1) * block_keys > first_row + 1)
                prefill_mask(s, own_limit - (int)block * block_keys);
            prefill_weigh(s, rows, factor, task.scale);
            if (block > 0) {
                wgmma_wait<0>();
                release_values();
                rescale();
            }
            prefill_pack(p, s);
            if (block == last) break;
            wait_keys();
            prefill_multiply_keys(s, query, key());
            wait_values();
            prefill_multiply_values(o, p, value(), block == 0);
            wgmma_wait<1>();
        }
        wait_values();
        prefill_multiply_values(o, p, value(), last == 0);
        /* The first scores of the next tile; behind the last tile, products that nobody reads. */
        prefill_tile_t next = prefill_next_tile(shared, slot);
        query_parity ^= 1;
        if (next.blocks) {
            barrier_wait(&shared->query_full[group], query_parity);
            wait_keys();
        }
        prefill_multiply_keys(s, query, key());
        wgmma_wait<1>();
        release_values();
        prefill_store(task, tile, o, rows);
        tile = next;
        wgmma_wait<0>();
        wgmma_hold(s);
        if (tile.blocks == 0) break;
    }
}

/* ---- the kernel ---- */

/*   warps        | role
 *   0-3, 4-7     | 64 query rows each: scores, weights, sums
 *   8            | order of tiles, loads of queries and keys
 *   9            | loads of values
 *   10, 11       | none: setmaxnreg counts by warpgroups
 */
template <int block_keys, int stages>
__global__ void __launch_bounds__(PREFILL_THREADS, 1)
    mha_prefill(const __grid_constant__ CUtensorMap query, const __grid_constant__ CUtensorMap kv,
                const __grid_constant__ CUtensorMap k_rope,
                const __grid_constant__ prefill_task_t task)
{
    static_assert(block_keys % 16 == 0 && block_keys <= 128, "wgmma's k, registers");
    typedef prefill_shared_t<block_keys, stages> shared_t;
    static_assert(sizeof(shared_t) <= 227 * 1024, "shared memory of a block");
    DYNAMIC_SHARED(char, prefill_memory, 1024);
    shared_t *shared = (shared_t *)prefill_memory;
    if (threadIdx.x == 0) {
        for (int i = 0; i < PREFILL_GROUPS; i++) {
            barrier_init(&shared->query_full[i], 1);
            barrier_init(&shared->query_empty[i], 4);
        }
        for (int i = 0; i < stages; i++) {
            barrier_init(&shared->key_full[i], 1);
            barrier_init(&shared->key_empty[i], 4 * PREFILL_GROUPS);
            barrier_init(&shared->value_full[i], 1);
            barrier_init(&shared->value_empty[i], 4 * PREFILL_GROUPS);
        }
        for (int i = 0; i < 2; i++) {
            barrier_init(&shared->tile_full[i], 1);
            barrier_init(&shared->tile_empty[i], 4 * PREFILL_GROUPS + 1);
        }
        barrier_init(&shared->value_tail, 1);
        fence_barrier_init();
        tensor_prefetch(&query);
        tensor_prefetch(&kv);
        tensor_prefetch(&k_rope);
    }
    wait_for_previous();
    prefill_sort(shared, task);
    if (threadIdx.x / 128 == PREFILL_GROUPS) {
        registers_decrease<24>();
        if (threadIdx.x / 32 == 4 * PREFILL_GROUPS)
            prefill_load_keys(shared, task, &query, &kv, &k_rope);
        else if (threadIdx.x / 32 == 4 * PREFILL_GROUPS + 1)
            prefill_load_values(shared, &kv);
    } else {
        registers_increase<240>();
        prefill_attend<block_keys, stages>(shared, task);
    }
    let_next_start();
}

#endif
