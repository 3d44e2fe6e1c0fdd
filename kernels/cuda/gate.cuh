/* kernels/cuda/gate.cuh - logits of the gate, [T, k] times [experts, k], as sums of 16 ranges of k.
 *
 * One order of additions for any number of rows: k is cut in GATE_RANGES ranges, each a chain of
 * wgmma; the first half of the ranges is added up in order, so is the second, then the two halves.
 * Few rows: a block per range and tile of 64 x 64 leaves its range's sums in scratch, so that even
 * one tile of rows keeps the whole machine reading.  Many rows: a block walks all ranges of one
 * half and adds in registers; clusters share what they read of w.  gate_choose.cuh's kernel adds
 * the rest.
 */
#ifndef KERNELS_CUDA_GATE_CUH
#define KERNELS_CUDA_GATE_CUH

#include "hopper.cuh"
#include "wgmma.cuh"

enum {
    GATE_RANGES = 16,
    GATE_K = 64,           /* of one stage: 128 bytes */
    GATE_ROWS = 64,        /* tokens of a tile */
    GATE_FEW_EXPERTS = 64, /* experts of a tile, few rows */
    GATE_FEW_STAGES = 7,   /* 448 k, all that a range of V3 has, are in flight at once */
    GATE_FEW_THREADS = 128,
    GATE_MANY_EXPERTS = 256,
    GATE_MANY_STAGES = 5,
    GATE_ROW_BYTES = GATE_K * 2,
    GATE_FEW_STAGE = (GATE_ROWS + GATE_FEW_EXPERTS) * GATE_ROW_BYTES,
    GATE_MANY_STAGE = (GATE_ROWS + GATE_MANY_EXPERTS) * GATE_ROW_BYTES,
    GATE_FEW_SHARED = GATE_FEW_STAGES * (GATE_FEW_STAGE + 8),
    GATE_MANY_SHARED = GATE_MANY_STAGES * (GATE_MANY_STAGE + 16),
    GATE_MANY_THREADS = 384,
};

struct gate_logits_t {
    float *sums;     /* [tokens][parts][stride] */
    uint32_t parts;  /* ranges (few rows), 2 (many) */
    uint32_t stride; /* experts, rounded up to whole 16 bytes */
    uint32_t tokens;
    uint32_t blocks;       /* of GATE_K in k */
    uint32_t range_blocks; /* of one range; the last may have fewer */
    uint32_t half_ranges;  /* in the first half */
};

/* A warpgroup's sums of 64 tokens x 2 * count experts. */
template <int count>
__device__ __forceinline__ void gate_store(const gate_logits_t &args, const float (&sums)[count],
                                           uint32_t part, uint32_t token, uint32_t expert)
{
    token += threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    expert += threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t row = token + 8 * half;
        if (row >= args.tokens) return;
        float *to = args.sums + ((size_t)row * args.parts + part) * args.stride;
#pragma unroll
        for (int j = 0; j < count / 4; j++) {
            uint32_t at = expert + 8 * j;
            float first = sums[4 * j + 2 * half], second = sums[4 * j + 2 * half + 1];
            if (at < args.stride) *(float2 *)(to + at) = make_float2(first, second);
        }
    }
}

__device__ __forceinline__ void gate_few_fill(const CUtensorMap *map, char *stage, uint64_t *full,
                                              uint32_t block, uint32_t row, bool is_x)
{
    tensor_load_2d(stage + (is_x ? 0 : GATE_ROWS * GATE_ROW_BYTES), map, full,
                   (int)(block * GATE_K), (int)row);
}

/* Grid [tiles of experts][ranges][tiles of tokens], one warpgroup, whose first thread copies.
 *
 *   shared memory: [stages]{ x [64][64], w [64][64] }, full [stages]
 */
__global__ static void __launch_bounds__(GATE_FEW_THREADS, 2)
    gate_few_kernel(const __grid_constant__ CUtensorMap x_map,
                    const __grid_constant__ CUtensorMap w_map, const gate_logits_t args)
{
    DYNAMIC_SHARED(char, shared, 1024);
    uint64_t *full = (uint64_t *)(shared + GATE_FEW_STAGES * GATE_FEW_STAGE);
    uint32_t expert = blockIdx.x * GATE_FEW_EXPERTS, token = blockIdx.z * GATE_ROWS;
    uint32_t first = blockIdx.y * args.range_blocks;
    uint32_t steps = min(args.range_blocks, args.blocks - first);
    uint32_t early = min(steps, (uint32_t)GATE_FEW_STAGES);
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < early; i++) barrier_init(&full[i], 1);
        fence_barrier_init();
        /* Weights do not depend on earlier kernels. */
        for (uint32_t i = 0; i < early; i++) {
            barrier_arrive_expect(&full[i], GATE_FEW_STAGE);
            gate_few_fill(&w_map, shared + i * GATE_FEW_STAGE, &full[i], first + i, expert, false);
        }
        let_next_start();
        wait_for_previous();
        for (uint32_t i = 0; i < early; i++)
            gate_few_fill(&x_map, shared + i * GATE_FEW_STAGE, &full[i], first + i, token, true);
    } else {
        wait_for_previous();
    }
    __syncthreads();
    float sums[GATE_FEW_EXPERTS / 2];
    for (uint32_t i = 0; i < steps; i++) {
        uint32_t place = i % GATE_FEW_STAGES;
        char *stage = shared + place * GATE_FEW_STAGE;
        barrier_wait(&full[place], i / GATE_FEW_STAGES & 1);
        uint64_t a = wgmma_operand(stage), b = wgmma_operand(stage + GATE_ROWS * GATE_ROW_BYTES);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < GATE_K / 16; k++)
            wgmma_bf16<GATE_FEW_EXPERTS, 0>::multiply(sums, a + 2 * k, b + 2 * k, i + k > 0);
        wgmma_commit();
        if (i + GATE_FEW_STAGES >= steps) continue;
        wgmma_wait<0>();
        __syncthreads();
        if (threadIdx.x != 0) continue;
        uint32_t block = first + i + GATE_FEW_STAGES;
        barrier_arrive_expect(&full[place], GATE_FEW_STAGE);
        gate_few_fill(&w_map, stage, &full[place], block, expert, false);
        gate_few_fill(&x_map, stage, &full[place], block, token, true);
    }
    wgmma_wait<0>();
    wgmma_hold(sums);
    gate_store(args, sums, blockIdx.y, token, expert);
}

/* One thread fills stages: its block's x, and its share of w for the whole cluster. */
template <int cluster>
__device__ __forceinline__ void
gate_many_produce(const CUtensorMap *x_map, const CUtensorMap *w_map, char *shared, uint64_t *full,
                  uint64_t *empty, uint32_t first, uint32_t count, uint32_t token, uint32_t expert)
{
    constexpr uint32_t share = GATE_MANY_EXPERTS / cluster;
    uint32_t rank = cluster_rank();
    wait_for_previous();
    for (uint32_t i = 0; i < count; i++) {
        uint32_t place = i % GATE_MANY_STAGES;
        char *x = shared + place * GATE_MANY_STAGE;
        char *w = x + (GATE_ROWS + rank * share) * GATE_ROW_BYTES;
        int at = (int)((first + i) * GATE_K);
        barrier_wait(&empty[place], (i / GATE_MANY_STAGES & 1) ^ 1);
        barrier_arrive_expect(&full[place], GATE_MANY_STAGE);
        tensor_load_2d(x, x_map, &full[place], at, (int)token, cache_evict_first);
        tensor_load_2d_multicast(w, w_map, &full[place], at, (int)(expert + rank * share),
                                 (1 << cluster) - 1, cache_evict_last);
    }
}

/* Each warp tells every block whose copies fill this stage. */
template <int cluster> __device__ __forceinline__ void gate_many_release(uint64_t *empty)
{
    if (threadIdx.x % 32 < cluster) barrier_free_at(empty, threadIdx.x % 32);
}

/* A warpgroup multiplies 64 tokens by its 128 experts; at the end of a range its sums join the
 * total. */
template <int cluster>
__device__ __forceinline__ void gate_many_consume(const gate_logits_t &args, const char *shared,
                                                  uint64_t *full, uint64_t *empty, uint32_t count,
                                                  uint32_t token, uint32_t expert)
{
    uint32_t group = threadIdx.x / 128, place = 0, before = 0, parity = 0;
    float sums[64], total[64];
#pragma unroll
    for (int i = 0; i < 64; i++) total[i] = 0;
    for (uint32_t i = 0; i < count;) {
        uint32_t left = min(args.range_blocks, count - i);
        for (uint32_t step = 0; step < left; step++) {
            const char *x = shared + place * GATE_MANY_STAGE;
            const char *w = x + (GATE_ROWS + group * 128) * GATE_ROW_BYTES;
            barrier_wait(&full[place], parity);
            uint64_t a = wgmma_operand(x), b = wgmma_operand(w);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < GATE_K / 16; k++)
                wgmma_bf16<128, 0>::multiply(sums, a + 2 * k, b + 2 * k, step + k > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0) gate_many_release<cluster>(&empty[before]);
            before = place;
            if (++place == GATE_MANY_STAGES) place = 0, parity ^= 1;
        }
        wgmma_wait<0>();
        wgmma_hold(sums);
        gate_many_release<cluster>(&empty[before]);
#pragma unroll
        for (int j = 0; j < 64; j++) total[j] += sums[j];
        i += left;
    }
    gate_store(args, total, blockIdx.y, token, expert + group * 128);
}

/* Grid [tiles of tokens, whole clusters][2 halves of k][tiles of experts].  Warpgroups 0 and 1
 * multiply 128 experts each, one thread of warpgroup 2 copies.
 *
 *   shared memory: [stages]{ x [64][64], w [256][64] }, full [stages], empty [stages]
 */
template <int cluster>
__global__ void __launch_bounds__(GATE_MANY_THREADS, 1)
    gate_many_kernel(const __grid_constant__ CUtensorMap x_map,
                     const __grid_constant__ CUtensorMap w_map, const gate_logits_t args)
{
    DYNAMIC_SHARED(char, shared, 1024);
    uint64_t *full = (uint64_t *)(shared + GATE_MANY_STAGES * GATE_MANY_STAGE);
    uint64_t *empty = full + GATE_MANY_STAGES;
    uint32_t token = blockIdx.x * GATE_ROWS, expert = blockIdx.z * GATE_MANY_EXPERTS;
    uint32_t half_blocks = args.half_ranges * args.range_blocks;
    uint32_t first = min(blockIdx.y * half_blocks, args.blocks);
    uint32_t count = min(half_blocks, args.blocks - first);
    if (threadIdx.x == 0) {
        for (int i = 0; i < GATE_MANY_STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 8 * cluster);
        }
        fence_barrier_init();
    }
    cluster_sync();
    let_next_start();
    if (threadIdx.x >= 256) {
        registers_decrease<40>();
        if (threadIdx.x == 256)
            gate_many_produce<cluster>(&x_map, &w_map, shared, full, empty, first, count, token,
                                       expert);
        __syncwarp();
    } else {
        registers_increase<232>();
        wait_for_previous();
        gate_many_consume<cluster>(args, shared, full, empty, count, token, expert);
    }
    /* Barriers and stages must outlive what partners send there. */
    cluster_sync();
}

#endif
