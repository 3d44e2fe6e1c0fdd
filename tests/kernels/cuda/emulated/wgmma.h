/* tests/kernels/cuda/emulated/wgmma.h - kernels/cuda/wgmma.cuh on the emulated GPU. */
#ifndef TESTS_KERNELS_CUDA_EMULATED_WGMMA_H
#define TESTS_KERNELS_CUDA_EMULATED_WGMMA_H

#define KERNELS_CUDA_WGMMA_CUH /* the guard of what this stands in for */

static inline void wgmma_fence()
{
}

static inline void wgmma_commit()
{
    emulated::thread_t *self = emulated::current;
    self->product_groups.push_back(self->products_issued);
}

static inline bool emulated_are_products_done(const emulated::thread_t *self)
{
    return self->block->warpgroups[self->number / emulated::WARPGROUP].done >= self->wanted;
}

template <int left> static inline void wgmma_wait()
{
    emulated::thread_t *self = emulated::current;
    if (self->product_groups.size() <= left) return;
    self->wanted = self->product_groups[self->product_groups.size() - 1 - left];
    emulated::wait(emulated_are_products_done, "products");
}

template <int count> static inline void wgmma_hold(float (&d)[count])
{
}

static inline uint64_t wgmma_operand(const void *tile, uint32_t lead = 16)
{
    return (uint64_t)((shared_address(tile) & 0x3ffff) >> 4) | (uint64_t)(lead >> 4) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

static inline uint64_t wgmma_operand_at(uint32_t low)
{
    return (uint64_t)low | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

template <int n> struct wgmma_e4m3 {
    static inline void multiply(float (&d)[n / 2], uint64_t a, uint64_t b, int scale_d)
    {
        emulated::product_issue(d, nullptr, a, b, n, true, false, scale_d);
    }
};

template <int n, int is_b_mn> struct wgmma_bf16 {
    static inline void multiply(float (&d)[n / 2], uint64_t a, uint64_t b, int scale_d)
    {
        emulated::product_issue(d, nullptr, a, b, n, false, is_b_mn, scale_d);
    }
    static inline void multiply(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b, int scale_d)
    {
        emulated::product_issue(d, a, 0, b, n, false, is_b_mn, scale_d);
    }
};

#endif
