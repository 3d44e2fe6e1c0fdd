/* kernels/cuda/mla_products.cuh - steps of a warpgroup of mla_decode: products, softmax, fragments.
 */
#ifndef KERNELS_CUDA_MLA_PRODUCTS_CUH
#define KERNELS_CUDA_MLA_PRODUCTS_CUH

#include "mla_shared.cuh"
#include "wgmma.cuh"

/* Low words for a page: keys K-major from a chunk on; values N-major, from the half's columns on.
 */
__device__ __forceinline__ uint32_t mla_keys_operand(const mla_math_t &self, uint32_t buffer,
                                                     uint32_t chunk)
{
    return self.query + (uint32_t)(offsetof(mla_shared_t, keys) + buffer * MLA_MATRIX_BYTES +
                                   chunk * MLA_CHUNK_BYTES) /
                            16;
}

__device__ __forceinline__ uint32_t mla_values_operand(const mla_math_t &self, uint32_t buffer,
                                                       uint32_t half)
{
    return mla_keys_operand(self, buffer, half * 4) + ((uint32_t)(MLA_CHUNK_BYTES - 16) / 16 << 16);
}

/* S = Q K^T over pairs of chunks in the order in which they come.  Whether the next has come is
 * asked before this one's products are issued: an answer takes as long as they. */
template <int... pairs>
__device__ __forceinline__ void mla_multiply(mla_math_t &self, float (&s)[32], uint32_t buffer)
{
    constexpr int order[] = { pairs... }, count = sizeof...(pairs);
    uint64_t *full = self.shared->keys_full[buffer];
    bool is_past = barrier_is_past(&full[order[0]], self.keys_parity[buffer]);
#pragma unroll
    for (int i = 0; i < count; i++) {
        if (!is_past) barrier_wait(&full[order[i]], self.keys_parity[buffer]);
        if (i + 1 < count)
            is_past =
                barrier_is_past(&full[order[i + 1 < count ? i + 1 : i]], self.keys_parity[buffer]);
        wgmma_fence();
        uint32_t chunk = 2 * (uint32_t)order[i];
        uint32_t query = self.query + chunk * (MLA_CHUNK_BYTES / 16),
                 keys = mla_keys_operand(self, buffer, chunk);
#pragma unroll
        for (uint32_t k = 0; k < (order[i] == 4 ? 4 : 8); k++) {
            uint32_t offset = k / 4 * (MLA_CHUNK_BYTES / 16) + k % 4 * 2;
            wgmma_bf16<64, 0>::multiply(s, wgmma_operand_at(query + offset),
                                        wgmma_operand_at(keys + offset), i > 0 || k > 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(s);
    self.keys_parity[buffer] ^= 1;
}

/* O += P V over a page, P in registers. */
__device__ __forceinline__ void mla_begin_values(float (&o)[128], const uint32_t (&p)[4][4],
                                                 uint32_t values)
{
    wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < 4; k++)
        wgmma_bf16<256, 1>::multiply(o, p[k], wgmma_operand_at(values + k * 128), 1);
    wgmma_commit();
}

/* The same with P in shared memory. */
__device__ __forceinline__ void mla_begin_values(float (&o)[128], uint32_t p, uint32_t values)
{
    wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < 4; k++)
        wgmma_bf16<256, 1>::multiply(o, wgmma_operand_at(p + k * 2),
                                     wgmma_operand_at(values + k * 128), 1);
    wgmma_commit();
}

__device__ __forceinline__ void mla_end_values(float (&o)[128])
{
    wgmma_wait<0>();
    wgmma_hold(o);
}

template <typename weights_t>
__device__ __forceinline__ void mla_add_values(float (&o)[128], const weights_t &p, uint32_t values)
{
    mla_begin_values(o, p, values);
    mla_end_values(o);
}

/* Each warp that has read a part says so. */
__device__ __forceinline__ void mla_free_part(const mla_math_t &self, uint32_t buffer,
                                              uint32_t part)
{
    if (self.thread % 32 == 0) barrier_arrive(&self.shared->keys_free[buffer][part]);
}

__device__ __forceinline__ void mla_free_query(const mla_math_t &self)
{
    if (self.thread % 32 == 0) barrier_arrive(&self.shared->query_free);
}

/* Columns of keys that do not exist. */
__device__ __forceinline__ void mla_mask(const mla_math_t &self, float (&s)[32], uint32_t keys)
{
#pragma unroll
    for (uint32_t i = 0; i < 32; i++)
        if (i / 4 * 8 + self.thread % 4 * 2 + i % 2 >= keys) s[i] = -INFINITY;
}

/* Their rows of V are whatever was in memory, and zero times NaN is NaN. */
__device__ __forceinline__ void mla_clear_values(const mla_math_t &self, uint32_t buffer,
                                                 uint32_t half, uint32_t keys)
{
    char *values = self.shared->keys[buffer] + half * 4 * MLA_CHUNK_BYTES;
    for (uint32_t i = self.thread; i < (64 - keys) * 32; i += 128)
        *(uint4 *)(values + i / 8 % 4 * MLA_CHUNK_BYTES + (keys + i / 32) * 128 + i % 8 * 16) =
            uint4{ 0, 0, 0, 0 };
    fence_async_shared();
    named_barrier_wait(NAMED_LEFT + half, 128);
}

__device__ __forceinline__ void mla_row_max(const mla_math_t &self, const float (&s)[32],
                                            float (&max)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float found = s[2 * r];
#pragma unroll
        for (int i = 0; i < 32; i += 4) found = fmaxf(found, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
        found = fmaxf(found, __shfl_xor_sync(0xffffffff, found, 1));
        found = fmaxf(found, __shfl_xor_sync(0xffffffff, found, 2));
        max[r] = found * self.scale;
    }
}

/* The maximum that powers of two are relative to is the old one until a score is 2^8 times as
 * large, so that sums are rarely scaled: by `factor`.  A row decides for itself. */
__device__ __forceinline__ void mla_raise(mla_math_t &self, const float (&found)[2],
                                          float (&factor)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float max = found[r] > self.max[r] + 8.0F ? found[r] : self.max[r];
        factor[r] = exp2_approximate(self.max[r] - max);
        self.sum[r] *= factor[r];
        self.max[r] = max;
    }
}

/* s becomes powers of two relative to the maximum, and is summed. */
__device__ __forceinline__ void mla_exponentials(mla_math_t &self, float (&s)[32])
{
#pragma unroll
    for (int i = 0; i < 32; i++) {
        s[i] = exp2_approximate(fmaf(s[i], self.scale, -self.max[i / 2 % 2]));
        self.sum[i / 2 % 2] += s[i];
    }
}

__device__ __forceinline__ void mla_scale_rows(float (&o)[128], const float (&factor)[2])
{
    if (__all_sync(0xffffffff, factor[0] == 1.0F && factor[1] == 1.0F)) return;
#pragma unroll
    for (int i = 0; i < 128; i++) o[i] *= factor[i / 2 % 2];
}

/* Fragments of 64 rows and 16 columns, column block k, into a swizzled chunk. */
__device__ __forceinline__ void mla_store_fragment(const mla_math_t &self, char *chunk, uint32_t k,
                                                   const uint32_t (&words)[4])
{
    uint32_t lane = self.thread % 32, row = self.thread / 32 * 16 + lane % 16,
             piece = 2 * k + lane / 16;
    store_matrix_x4(chunk + row * 128 + ((piece ^ row % 8) << 4), words[0], words[1], words[2],
                    words[3]);
}

/* Weights of this warpgroup's page, for its own product and for the other's: P lies in the rope
 * columns of the page, which nobody needs any more. */
__device__ __forceinline__ void mla_give_weights(const mla_math_t &self, const float (&s)[32],
                                                 uint32_t (&p)[4][4], uint32_t page)
{
    mla_shared_t *shared = self.shared;
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) p[k][i] = mla_pack(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
        mla_store_fragment(self, shared->keys[page] + 8 * MLA_CHUNK_BYTES, k, p[k]);
    }
    if (self.thread % 4 == 0) {
        shared->max[page][self.row] = self.max[0];
        shared->max[page][self.row + 8] = self.max[1];
    }
    fence_async_shared();
    barrier_arrive(&shared->weights_full[page]);
}

/* Waits for the other's weights; sums are to be relative to their maximum from here on. */
__device__ __forceinline__ void mla_take_weights(mla_math_t &self, uint32_t page,
                                                 float (&factor)[2])
{
    mla_shared_t *shared = self.shared;
    barrier_wait(&shared->weights_full[page], self.weights_parity[page]);
    self.weights_parity[page] ^= 1;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float max = shared->max[page][self.row + 8 * r];
        factor[r] = exp2_approximate(self.max[r] - max);
        self.sum[r] *= factor[r];
        self.max[r] = max;
    }
}

/* The keys of the last page of the block, 64 where the next block goes on. */
__device__ __forceinline__ uint32_t mla_last_keys(const mla_unit_t &unit, mla_pages_t pages)
{
    uint32_t last = pages.first + pages.count - 1;
    return min(unit.keys - last * MLA_PAGE_KEYS, (uint32_t)MLA_PAGE_KEYS);
}

#endif
