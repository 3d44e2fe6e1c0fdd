/* kernels/cuda/bf16_gemm.cuh - out = x w^T of BF16 with one F32 chain over k per element.
 *
 * Every element is a chain of wgmma of k = 16 in ascending order whatever the tile, so a row's bits
 * depend neither on the other rows nor on which tile shape was chosen for their number.
 *
 * Blocks stay and take one tile after the other (persistent).  Two blocks of a cluster work on
 * tiles that share an operand, of which each loads half for both: w for many rows (two tiles one
 * above the other), x for few rows (two tiles side by side), where x read again and again from L2
 * would cost more than w from memory.
 */
#ifndef KERNELS_CUDA_BF16_GEMM_CUH
#define KERNELS_CUDA_BF16_GEMM_CUH

#include "hopper.cuh"
#include "wgmma.cuh"

#include <cuda_bf16.h>

enum {
    BF16_GEMM_K = 64,       /* of one stage: 128 bytes */
    BF16_GEMM_CHUNK = 8192, /* of results: 64 rows of 128 bytes */
};

enum bf16_gemm_share_t { SHARE_NOTHING, SHARE_X, SHARE_W };

struct bf16_gemm_t {
    void *out;
    size_t out_stride;
    uint32_t rows, cols, is_ragged; /* a row of out is no multiple of 16 bytes */
    uint32_t k_blocks;
    uint32_t units_m, units_n; /* tiles, counted in units of a cluster */
    uint32_t group_m;          /* units of rows that share what L2 holds of w */
};

template <int tile_m, int tile_n, int stages> constexpr uint32_t bf16_gemm_shared()
{
    return stages * (tile_m + tile_n) * BF16_GEMM_K * 2 + tile_m / 32 * BF16_GEMM_CHUNK +
           stages * 16;
}

template <int tile_m> constexpr uint32_t bf16_gemm_threads()
{
    return tile_m / 64 * 128 + 128;
}

/* Unit `index` of the walk: groups of group_m units of rows; within a group all rows of one column
 * of units before the next. */
__device__ __forceinline__ void bf16_gemm_unit(const bf16_gemm_t &args, uint32_t index, uint32_t *m,
                                               uint32_t *n)
{
    uint32_t group = index / (args.group_m * args.units_n), first = group * args.group_m;
    uint32_t height = min(args.group_m, args.units_m - first);
    uint32_t inside = index - first * args.units_n;
    *m = first + inside % height;
    *n = inside / height;
}

__device__ __forceinline__ uint32_t bf16_gemm_pack(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

/* Where 16 bytes of a swizzled chunk of results (64 rows of 128 bytes) lie. */
__device__ __forceinline__ uint32_t bf16_gemm_place(uint32_t row, uint32_t part)
{
    return row * 128 + ((part ^ (row & 7)) << 4);
}

/* 64 columns of BF16, or 32 of F32, of a warpgroup's sums. */
__device__ __forceinline__ void bf16_gemm_fill(char *chunk, const float *sums, __nv_bfloat16)
{
    uint32_t row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 16;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        const float *d = sums + 4 * j;
        store_matrix_x4(chunk + bf16_gemm_place(row, j + threadIdx.x % 32 / 16),
                        bf16_gemm_pack(d[0], d[1]), bf16_gemm_pack(d[2], d[3]),
                        bf16_gemm_pack(d[4], d[5]), bf16_gemm_pack(d[6], d[7]));
    }
}

__device__ __forceinline__ void bf16_gemm_fill(char *chunk, const float *sums, float)
{
    uint32_t row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            *(float2 *)(chunk + bf16_gemm_place(row + 8 * half, 2 * j + pair / 2) + pair % 2 * 8) =
                make_float2(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]);
}

/* Copies to tensors end at whole 16 bytes.  Where out's rows do not, their last chunk is copied by
 * hand. */
template <typename out_t>
__device__ __forceinline__ void bf16_gemm_copy(const bf16_gemm_t &args, const char *chunk,
                                               uint32_t row, uint32_t col)
{
    constexpr uint32_t width = 128 / sizeof(out_t), part = 16 / sizeof(out_t);
    for (uint32_t i = threadIdx.x % 128; i < 64 * width; i += 128) {
        uint32_t r = i / width, c = i % width;
        if (row + r >= args.rows || col + c >= args.cols) continue;
        ((out_t *)args.out)[(size_t)(row + r) * args.out_stride + col + c] =
            ((const out_t *)(chunk + bf16_gemm_place(r, c / part)))[c % part];
    }
}

/* A warpgroup's 64 x tile_n sums leave in chunks through two buffers; the copies cut what lies
 * outside of out, and go on while the next tile begins. */
template <int tile_n, typename out_t>
__device__ __forceinline__ void bf16_gemm_store(const CUtensorMap *out_map, const bf16_gemm_t &args,
                                                char *buffers, const float (&sums)[tile_n / 2],
                                                uint32_t row, uint32_t col)
{
    constexpr int width = 128 / sizeof(out_t);
    uint32_t group = threadIdx.x / 128;
    bool is_copying = threadIdx.x % 128 == 0;
    row += 64 * group;
#pragma unroll
    for (int i = 0; i < tile_n / width; i++) {
        char *chunk = buffers + i % 2 * BF16_GEMM_CHUNK;
        if (is_copying) store_wait_read<1>();
        named_barrier_wait(1 + group, 128);
        bf16_gemm_fill(chunk, sums + i * width / 2, out_t());
        fence_async_shared();
        named_barrier_wait(1 + group, 128);
        bool is_ragged = args.is_ragged && col + (i + 1) * width > args.cols;
        if (is_ragged) bf16_gemm_copy<out_t>(args, chunk, row, col + i * width);
        if (!is_copying) continue;
        if (!is_ragged) tensor_store_2d(out_map, chunk, (int)(col + i * width), (int)row);
        store_commit(); /* also of nothing: waiting counts chunks */
    }
}

/* One thread of the cluster's block fills stages; both blocks wait until both have emptied them. */
template <int tile_m, int tile_n, int stages, int share>
__device__ __forceinline__ void bf16_gemm_produce(const CUtensorMap *x_map,
                                                  const CUtensorMap *w_map, const bf16_gemm_t &args,
                                                  char *x, char *w, uint64_t *full, uint64_t *empty)
{
    constexpr uint32_t blocks = share == SHARE_NOTHING ? 1 : 2;
    constexpr uint32_t x_bytes = tile_m * BF16_GEMM_K * 2, w_bytes = tile_n * BF16_GEMM_K * 2;
    const uint32_t rank = blocks == 1 ? 0 : cluster_rank();
    const uint64_t w_policy = args.units_m == 1 ? cache_evict_first : cache_evict_normal;
    uint32_t stage = 0, parity = 1, units = args.units_m * args.units_n;
    wait_for_previous();
    for (uint32_t unit = blockIdx.x / blocks; unit < units; unit += gridDim.x / blocks) {
        uint32_t m, n;
        bf16_gemm_unit(args, unit, &m, &n);
        int row = (int)((share == SHARE_W ? 2 * m + rank : m) * tile_m);
        int col = (int)((share == SHARE_X ? 2 * n + rank : n) * tile_n);
        for (uint32_t k = 0; k < args.k_blocks; k++) {
            barrier_wait(&empty[stage], parity);
            barrier_arrive_expect(&full[stage], x_bytes + w_bytes);
            char *x_stage = x + stage * x_bytes, *w_stage = w + stage * w_bytes;
            int at = (int)(k * BF16_GEMM_K);
            if (share == SHARE_X)
                tensor_load_2d_multicast(x_stage + rank * (x_bytes / 2), x_map, &full[stage], at,
                                         row + (int)rank * (tile_m / 2), 3);
            else
                tensor_load_2d(x_stage, x_map, &full[stage], at, row);
            if (share == SHARE_W)
                tensor_load_2d_multicast(w_stage + rank * (w_bytes / 2), w_map, &full[stage], at,
                                         col + (int)rank * (tile_n / 2), 3, w_policy);
            else
                tensor_load_2d(w_stage, w_map, &full[stage], at, col, w_policy);
            if (++stage == stages) stage = 0, parity ^= 1;
        }
    }
}

/* Each warp tells every block whose copies fill this stage. */
template <uint32_t blocks> __device__ __forceinline__ void bf16_gemm_release(uint64_t *empty)
{
    if (threadIdx.x % 32 >= blocks) return;
    if (blocks == 1)
        barrier_arrive(empty);
    else
        barrier_free_at(empty, threadIdx.x % 32);
}

/* A warpgroup multiplies its 64 rows.  One product stays in flight: the stage before it is emptied.
 */
template <int tile_m, int tile_n, int stages, int share, typename out_t>
__device__ __forceinline__ void
bf16_gemm_consume(const CUtensorMap *out_map, const bf16_gemm_t &args, const char *x, const char *w,
                  char *results, uint64_t *full, uint64_t *empty)
{
    constexpr uint32_t blocks = share == SHARE_NOTHING ? 1 : 2;
    constexpr uint32_t x_bytes = tile_m * BF16_GEMM_K * 2, w_bytes = tile_n * BF16_GEMM_K * 2;
    const uint32_t rank = blocks == 1 ? 0 : cluster_rank();
    uint32_t stage = 0, parity = 0, units = args.units_m * args.units_n;
    x += threadIdx.x / 128 * 64 * BF16_GEMM_K * 2;
    results += threadIdx.x / 128 * 2 * BF16_GEMM_CHUNK;
    for (uint32_t unit = blockIdx.x / blocks; unit < units; unit += gridDim.x / blocks) {
        float sums[tile_n / 2];
        uint32_t before = 0;
        for (uint32_t k = 0; k < args.k_blocks; k++) {
            barrier_wait(&full[stage], parity);
            uint64_t a = wgmma_operand(x + stage * x_bytes);
            uint64_t b = wgmma_operand(w + stage * w_bytes);
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < BF16_GEMM_K / 16; step++)
                wgmma_bf16<tile_n, 0>::multiply(sums, a + 2 * step, b + 2 * step, k + step > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (k > 0) bf16_gemm_release<blocks>(&empty[before]);
            before = stage;
            if (++stage == stages) stage = 0, parity ^= 1;
        }
        wgmma_wait<0>();
        wgmma_hold(sums);
        bf16_gemm_release<blocks>(&empty[before]);
        uint32_t m, n;
        bf16_gemm_unit(args, unit, &m, &n);
        bf16_gemm_store<tile_n, out_t>(out_map, args, results, sums,
                                       (share == SHARE_W ? 2 * m + rank : m) * tile_m,
                                       (share == SHARE_X ? 2 * n + rank : n) * tile_n);
    }
    if (threadIdx.x % 128 == 0) store_wait_read<0>();
}

/* Warpgroups 0 .. tile_m / 64 - 1 multiply 64 rows each; one thread of the last one copies.
 *
 *   shared memory: x [stages][tile_m][64], w [stages][tile_n][64], results [groups][2][64] of 128
 *   bytes, full [stages], empty [stages]
 */
template <int tile_m, int tile_n, int stages, int share, typename out_t>
__global__ void __launch_bounds__(bf16_gemm_threads<tile_m>(), 1)
    bf16_gemm_kernel(const __grid_constant__ CUtensorMap x_map,
                     const __grid_constant__ CUtensorMap w_map,
                     const __grid_constant__ CUtensorMap out_map, const bf16_gemm_t args)
{
    static_assert(tile_m == 64 || tile_m == 128, "one or two warpgroups");
    static_assert(tile_n % 64 == 0 && tile_n <= 256, "one wgmma, whole chunks of results");
    constexpr uint32_t groups = tile_m / 64, blocks = share == SHARE_NOTHING ? 1 : 2;
    DYNAMIC_SHARED(char, shared, 1024);
    char *x = shared, *w = x + stages * tile_m * BF16_GEMM_K * 2;
    char *results = w + stages * tile_n * BF16_GEMM_K * 2;
    uint64_t *full = (uint64_t *)(results + groups * 2 * BF16_GEMM_CHUNK), *empty = full + stages;
    if (threadIdx.x == 0) {
        tensor_prefetch(&x_map);
        tensor_prefetch(&w_map);
        for (int i = 0; i < stages; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 4 * groups * blocks);
        }
        fence_barrier_init();
    }
    if (blocks > 1)
        cluster_sync();
    else
        __syncthreads();
    let_next_start();
    if (threadIdx.x / 128 == groups) {
        if (groups > 1) registers_decrease<40>();
        if (threadIdx.x % 128 == 0)
            bf16_gemm_produce<tile_m, tile_n, stages, share>(&x_map, &w_map, args, x, w, full,
                                                             empty);
        __syncwarp();
    } else {
        if (groups > 1) registers_increase<232>();
        wait_for_previous();
        bf16_gemm_consume<tile_m, tile_n, stages, share, out_t>(&out_map, args, x, w, results, full,
                                                                empty);
    }
    /* A block's barriers and stages must outlive what its partner sends there. */
    if (blocks > 1) cluster_sync();
}

#endif
