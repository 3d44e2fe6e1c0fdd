/* kernels/cuda/kv_copy.cuh - rows and whole blocks of the paged cache are copied. */
#ifndef KERNELS_CUDA_KV_COPY_CUH
#define KERNELS_CUDA_KV_COPY_CUH

#include "hopper.cuh"
#include "sequences.cuh"

struct gather_task_t {
    tensor_t latent, rope;
    cache_t cache;
    const sequence_t *sequences;
};

enum { GATHER_TURNS = 4 };

/* blockIdx.y: the sequence.  Threads side by side hold a token's pieces; GATHER_TURNS tokens of
 * each thread are under way at once.  Keys that the targets have no rows for are left out. */
static __global__ void gather_keys(const __grid_constant__ gather_task_t task)
{
    wait_for_previous();
    let_next_start();
    sequence_t sequence = task.sequences[blockIdx.y];
    uint32_t latent = task.cache.latent / PIECE, piece = threadIdx.x;
    uint32_t keys = sequence.first_position + sequence.rows;
    uint32_t rows = min(task.latent.rows, task.rope.rows);
    if (sequence.first_key >= rows) return;
    keys = min(keys, rows - sequence.first_key);
    bool is_latent = piece < latent;
    bf16_t *target = is_latent ? piece_of<bf16_t>(task.latent, sequence.first_key, piece)
                               : piece_of<bf16_t>(task.rope, sequence.first_key, piece - latent);
    size_t stride = is_latent ? task.latent.stride : task.rope.stride;
    uint32_t step = GATHER_TURNS * blockDim.y;
    for (uint32_t base = blockIdx.x * step; base < keys; base += gridDim.x * step) {
        piece_t<bf16_t> pieces[GATHER_TURNS];
#pragma unroll
        for (int i = 0; i < GATHER_TURNS; i++) {
            uint32_t key = base + i * blockDim.y + threadIdx.y;
            if (key < keys)
                piece_load(&pieces[i], cache_row(task.cache, sequence.blocks, key) + piece * PIECE);
        }
#pragma unroll
        for (int i = 0; i < GATHER_TURNS; i++) {
            uint32_t key = base + i * blockDim.y + threadIdx.y;
            if (key < keys) piece_store(target + key * stride, pieces[i]);
        }
    }
}

struct copy_task_t {
    char *target;
    const char *source;
    const uint32_t *target_blocks, *source_blocks;
    size_t block_bytes;
};

enum { COPY_THREADS = 256, COPY_TURNS = 4, COPY_BYTES = COPY_THREADS * COPY_TURNS * 16 };

/* blockIdx.x: a part of COPY_BYTES, of the block number blockIdx.y. */
static __global__ void __launch_bounds__(COPY_THREADS)
    copy_parts(const __grid_constant__ copy_task_t task)
{
    wait_for_previous();
    let_next_start();
    const char *source = task.source + task.source_blocks[blockIdx.y] * task.block_bytes;
    char *target = task.target + task.target_blocks[blockIdx.y] * task.block_bytes;
    size_t first = (size_t)blockIdx.x * COPY_BYTES + threadIdx.x * 16;
    uint4 parts[COPY_TURNS];
#pragma unroll
    for (int i = 0; i < COPY_TURNS; i++) {
        size_t at = first + i * COPY_THREADS * 16;
        if (at < task.block_bytes) parts[i] = load_streamed(source + at);
    }
#pragma unroll
    for (int i = 0; i < COPY_TURNS; i++) {
        size_t at = first + i * COPY_THREADS * 16;
        if (at < task.block_bytes) *(uint4 *)(target + at) = parts[i];
    }
}

#endif
