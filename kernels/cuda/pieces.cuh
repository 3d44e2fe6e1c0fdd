/* kernels/cuda/pieces.cuh - eight neighbouring values of a row: what a thread of the memory-bound
 * ops loads, holds and stores.
 *
 * These ops let the next kernel start when their own wait is over: earlier, kernel after kernel
 * would wait on the multiprocessors, and a cast of 128 rows took 3.0 us instead of 2.4.
 */
#ifndef KERNELS_CUDA_PIECES_CUH
#define KERNELS_CUDA_PIECES_CUH

#include "hopper.cuh"
#include "queue.cuh"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <stdint.h>

enum { PIECE = 8 };

typedef __nv_bfloat16 bf16_t;
typedef __nv_fp8_e4m3 e4m3_t;

template <typename value_t> struct dtype_of;
template <> struct dtype_of<float> {
    static const dtype_t dtype = DTYPE_F32;
};
template <> struct dtype_of<bf16_t> {
    static const dtype_t dtype = DTYPE_BF16;
};
template <> struct dtype_of<e4m3_t> {
    static const dtype_t dtype = DTYPE_F8E4M3;
};

/* A piece as it lies in memory: half the registers of eight floats while loads are under way. */
template <typename value_t> struct piece_t;
template <> struct piece_t<float> {
    uint4 low, high;
};
template <> struct piece_t<bf16_t> {
    uint4 bits;
};
template <> struct piece_t<e4m3_t> {
    uint2 bits;
};

__device__ __forceinline__ void piece_load(piece_t<bf16_t> *self, const bf16_t *from)
{
    self->bits = load_streamed(from);
}

/* Both halves lie in one sector of 32 bytes, so L1 keeps it for the second. */
__device__ __forceinline__ void piece_load(piece_t<float> *self, const float *from)
{
    self->low = *(const uint4 *)from;
    self->high = *(const uint4 *)(from + 4);
}

__device__ __forceinline__ void piece_load(piece_t<e4m3_t> *self, const e4m3_t *from)
{
    self->bits = *(const uint2 *)from;
}

__device__ __forceinline__ void piece_clear(piece_t<bf16_t> *self)
{
    self->bits = make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void piece_clear(piece_t<float> *self)
{
    self->low = self->high = make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ void piece_clear(piece_t<e4m3_t> *self)
{
    self->bits = make_uint2(0, 0);
}

__device__ __forceinline__ void unpack_pair(float *values, uint32_t bits)
{
    values[0] = __uint_as_float(bits << 16);
    values[1] = __uint_as_float(bits & 0xffff0000u);
}

__device__ __forceinline__ void piece_unpack(const piece_t<bf16_t> &self, float *values)
{
    unpack_pair(values, self.bits.x);
    unpack_pair(values + 2, self.bits.y);
    unpack_pair(values + 4, self.bits.z);
    unpack_pair(values + 6, self.bits.w);
}

__device__ __forceinline__ void piece_unpack(const piece_t<float> &self, float *values)
{
    values[0] = __uint_as_float(self.low.x), values[1] = __uint_as_float(self.low.y);
    values[2] = __uint_as_float(self.low.z), values[3] = __uint_as_float(self.low.w);
    values[4] = __uint_as_float(self.high.x), values[5] = __uint_as_float(self.high.y);
    values[6] = __uint_as_float(self.high.z), values[7] = __uint_as_float(self.high.w);
}

/* Every e4m3 is a float16 too. */
__device__ __forceinline__ void unpack_codes(float *values, uint32_t bits)
{
    for (int i = 0; i < 2; i++) {
        __half2_raw pair =
            __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(bits >> (16 * i)), __NV_E4M3);
        float2 both = __half22float2((__half2)pair);
        values[2 * i] = both.x;
        values[2 * i + 1] = both.y;
    }
}

/* Without the scale. */
__device__ __forceinline__ void piece_unpack(const piece_t<e4m3_t> &self, float *values)
{
    unpack_codes(values, self.bits.x);
    unpack_codes(values + 4, self.bits.y);
}

__device__ __forceinline__ uint32_t pack_pair(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

/* Rounds. */
__device__ __forceinline__ void piece_pack(piece_t<bf16_t> *self, const float *values)
{
    self->bits = make_uint4(pack_pair(values[0], values[1]), pack_pair(values[2], values[3]),
                            pack_pair(values[4], values[5]), pack_pair(values[6], values[7]));
}

__device__ __forceinline__ void piece_pack(piece_t<float> *self, const float *values)
{
    self->low = make_uint4(__float_as_uint(values[0]), __float_as_uint(values[1]),
                           __float_as_uint(values[2]), __float_as_uint(values[3]));
    self->high = make_uint4(__float_as_uint(values[4]), __float_as_uint(values[5]),
                            __float_as_uint(values[6]), __float_as_uint(values[7]));
}

__device__ __forceinline__ void piece_store(bf16_t *to, const piece_t<bf16_t> &self)
{
    *(uint4 *)to = self.bits;
}

__device__ __forceinline__ void piece_store(float *to, const piece_t<float> &self)
{
    *(uint4 *)to = self.low;
    *(uint4 *)(to + 4) = self.high;
}

__device__ __forceinline__ void piece_store(e4m3_t *to, const piece_t<e4m3_t> &self)
{
    *(uint2 *)to = self.bits;
}

template <typename value_t>
__device__ __forceinline__ value_t *piece_of(const tensor_t &x, uint32_t row, uint32_t piece)
{
    return (value_t *)x.data + (size_t)row * x.stride + piece * PIECE;
}

/* ---- on the host ---- */

/* What the kernels of whole pieces ask of a tensor of activations. */
inline bool has_pieces(const tensor_t *x)
{
    bool is_aligned = (uintptr_t)x->data % 16 == 0 && x->stride * dtype_bytes(x->dtype) % 16 == 0;
    bool has_scales = x->dtype != DTYPE_F8E4M3 || (x->scales && x->scale_stride >= x->rows);
    return is_aligned && has_scales && x->cols > 0 && x->cols % PIECE == 0 &&
           (x->stride >= x->cols || x->rows <= 1);
}

/* Blocks of threads over rows: a row has `width` threads side by side, each with up to `pieces`
 * pieces, and `chunks` blocks where it is too wide for one.  All of this follows from the columns
 * alone: so does the order of every sum. */
struct row_grid_t {
    dim3 grid, block;
};

enum { ROW_THREADS = 256 };

inline row_grid_t row_grid(uint32_t rows, uint32_t cols, uint32_t pieces, uint32_t width_max)
{
    uint32_t each = (cols / PIECE + pieces - 1) / pieces;
    uint32_t chunks = (each + width_max - 1) / width_max;
    uint32_t width = ((each + chunks - 1) / chunks + 31) / 32 * 32;
    uint32_t high = width < ROW_THREADS ? ROW_THREADS / width : 1;
    return row_grid_t{ dim3((rows + high - 1) / high, chunks), dim3(width, high) };
}

/* The piece of a thread's turn. */
__device__ __forceinline__ uint32_t turn_piece(uint32_t turn, uint32_t turns)
{
    return (blockIdx.y * turns + turn) * blockDim.x + threadIdx.x;
}

__device__ __forceinline__ uint32_t block_row()
{
    return blockIdx.x * blockDim.y + threadIdx.y;
}

#endif
