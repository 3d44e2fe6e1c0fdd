/* tests/kernels/cuda/emulated/device.h - included before everything else where kernels are compiled
 * for the emulated GPU: the words and functions that CUDA C++ has and C++ lacks.  hopper.h and
 * wgmma.h beside it stand in for the headers of kernels/cuda with PTX in them, whose include guards
 * they take. */
#ifndef TESTS_KERNELS_CUDA_EMULATED_DEVICE_H
#define TESTS_KERNELS_CUDA_EMULATED_DEVICE_H

#include "machine.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <device_launch_parameters.h>

#include <algorithm>
#include <math.h>
#include <string.h>
#include <tuple>
#include <type_traits>

#define EMULATED

#undef __shared__
#undef __launch_bounds__
#define __shared__ static thread_local
#define __launch_bounds__(...)

#define threadIdx (emulated::current->index)
#define blockIdx  (emulated::current->block->index)

/* ---- launches ---- */

template <typename... parameters_t, typename... arguments_t>
static inline cudaError_t emulated_launch(const cudaLaunchConfig_t *config,
                                          void (*kernel)(parameters_t...),
                                          const arguments_t &...arguments)
{
    unsigned cluster = 1;
    bool is_overlapped = false;
    for (unsigned i = 0; i < config->numAttrs; i++) {
        const cudaLaunchAttribute &attribute = config->attrs[i];
        if (attribute.id == cudaLaunchAttributeClusterDimension)
            cluster = attribute.val.clusterDim.x;
        if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization)
            is_overlapped = attribute.val.programmaticStreamSerializationAllowed;
    }
    std::tuple<std::decay_t<parameters_t>...> values((std::decay_t<parameters_t>)arguments...);
    emulated::launch(config->gridDim, config->blockDim, cluster, config->dynamicSmemBytes,
                     is_overlapped, [kernel, values] { std::apply(kernel, values); });
    return cudaSuccess;
}
#define cudaLaunchKernelEx emulated_launch
#define cudaFuncSetAttribute(function, attribute, value)                                           \
    cudaFuncSetAttribute((const void *)(function), attribute, value)

template <typename... parameters_t, typename... arguments_t>
static inline void emulated_launch_plain(void (*kernel)(parameters_t...), dim3 grid, dim3 block,
                                         size_t shared_bytes, const arguments_t &...arguments)
{
    std::tuple<std::decay_t<parameters_t>...> values((std::decay_t<parameters_t>)arguments...);
    emulated::launch(grid, block, 1, shared_bytes, false,
                     [kernel, values] { std::apply(kernel, values); });
}

struct emulated_shape_t {
    dim3 grid, block;
    size_t shared_bytes = 0;
};
#define LAUNCH_SHAPE(...)                                                                          \
    emulated_shape_t                                                                               \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }
#define LAUNCH(kernel, shape, ...)                                                                 \
    emulated_launch_plain(kernel, (LAUNCH_SHAPE shape).grid, (LAUNCH_SHAPE shape).block,           \
                          (LAUNCH_SHAPE shape).shared_bytes, __VA_ARGS__)

/* ---- the block and the warp ---- */

static inline void __syncthreads()
{
    emulated::named_barrier(0, emulated::current->block->threads_count);
}

template <typename value_t> static inline uint64_t emulated_bits(value_t value)
{
    uint64_t bits = 0;
    static_assert(sizeof value <= sizeof bits, "what a shuffle can carry");
    memcpy(&bits, &value, sizeof value);
    return bits;
}

template <typename value_t> static inline value_t emulated_value(uint64_t bits)
{
    value_t value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void __syncwarp(unsigned mask = 0xffffffff)
{
    emulated::exchange(mask, 0);
}

template <typename value_t>
static inline value_t __shfl_sync(unsigned mask, value_t value, int lane, int width = 32)
{
    int own = (int)emulated::current->lane, from = own / width * width + (lane & (width - 1));
    return emulated_value<value_t>(emulated::exchange(mask, emulated_bits(value))[from]);
}

template <typename value_t>
static inline value_t __shfl_xor_sync(unsigned mask, value_t value, int bits, int width = 32)
{
    int own = (int)emulated::current->lane, from = own ^ bits;
    const uint64_t *values = emulated::exchange(mask, emulated_bits(value));
    return from / width == own / width ? emulated_value<value_t>(values[from]) : value;
}

template <typename value_t>
static inline value_t __shfl_up_sync(unsigned mask, value_t value, unsigned step, int width = 32)
{
    int own = (int)emulated::current->lane, from = own - (int)step;
    const uint64_t *values = emulated::exchange(mask, emulated_bits(value));
    return from >= own / width * width ? emulated_value<value_t>(values[from]) : value;
}

/* By lane, of the lanes in mask: f(so far, value). */
template <typename value_t, typename function_t>
static inline value_t emulated_reduce(unsigned mask, value_t value, value_t start, function_t f)
{
    const uint64_t *values = emulated::exchange(mask, emulated_bits(value));
    for (int lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) start = f(start, emulated_value<value_t>(values[lane]), lane);
    return start;
}

static inline unsigned __ballot_sync(unsigned mask, int is_true)
{
    return emulated_reduce<unsigned>(
        mask, is_true != 0, 0u, [](unsigned sum, unsigned v, int lane) { return sum | v << lane; });
}

static inline int __any_sync(unsigned mask, int is_true)
{
    return __ballot_sync(mask, is_true) != 0;
}

static inline int __all_sync(unsigned mask, int is_true)
{
    return __ballot_sync(mask, is_true) == mask;
}

template <typename value_t> static inline unsigned __match_any_sync(unsigned mask, value_t value)
{
    const uint64_t *values = emulated::exchange(mask, emulated_bits(value));
    unsigned alike = 0;
    for (int lane = 0; lane < 32; lane++)
        if ((mask >> lane & 1) && values[lane] == emulated_bits(value)) alike |= 1u << lane;
    return alike;
}

template <typename value_t> static inline value_t __reduce_add_sync(unsigned mask, value_t value)
{
    return emulated_reduce<value_t>(mask, value, 0,
                                    [](value_t a, value_t b, int) { return (value_t)(a + b); });
}

template <typename value_t> static inline value_t __reduce_or_sync(unsigned mask, value_t value)
{
    return emulated_reduce<value_t>(mask, value, 0,
                                    [](value_t a, value_t b, int) { return (value_t)(a | b); });
}

template <typename value_t> static inline value_t __reduce_max_sync(unsigned mask, value_t value)
{
    return emulated_reduce<value_t>(mask, value, value,
                                    [](value_t a, value_t b, int) { return a > b ? a : b; });
}

template <typename value_t> static inline value_t __reduce_min_sync(unsigned mask, value_t value)
{
    return emulated_reduce<value_t>(mask, value, value,
                                    [](value_t a, value_t b, int) { return a < b ? a : b; });
}

/* How many of the block say so. */
static inline int __syncthreads_count(int is_true)
{
    static thread_local int count;
    __syncthreads();
    if (emulated::current->number == 0) count = 0;
    __syncthreads();
    count += is_true != 0;
    __syncthreads();
    return count;
}

static inline int __syncthreads_or(int is_true)
{
    return __syncthreads_count(is_true) != 0;
}

/* ---- memory ---- */

static inline void __threadfence()
{
}

template <typename value_t> static inline value_t __ldg(const value_t *from)
{
    return *from;
}

template <typename value_t> static inline value_t __ldcg(const value_t *from)
{
    return *from;
}

template <typename value_t> static inline void __stcg(value_t *to, value_t value)
{
    *to = value;
}

template <typename value_t, typename other_t>
static inline value_t atomicAdd(value_t *to, other_t value)
{
    if (emulated::random_below(4) == 0) emulated::yield();
    value_t before = *to;
    *to = (value_t)(before + (value_t)value);
    return before;
}

template <typename value_t> static inline value_t atomicMax(value_t *to, value_t value)
{
    value_t before = *to;
    *to = std::max(before, value);
    return before;
}

template <typename value_t> static inline value_t atomicMin(value_t *to, value_t value)
{
    value_t before = *to;
    *to = std::min(before, value);
    return before;
}

/* ---- arithmetic ---- */

template <typename a_t, typename b_t> static inline std::common_type_t<a_t, b_t> min(a_t a, b_t b)
{
    std::common_type_t<a_t, b_t> x = a, y = b;
    return y < x ? y : x;
}

template <typename a_t, typename b_t> static inline std::common_type_t<a_t, b_t> max(a_t a, b_t b)
{
    std::common_type_t<a_t, b_t> x = a, y = b;
    return x < y ? y : x;
}

static inline unsigned __float_as_uint(float value)
{
    return emulated_value<unsigned>(emulated_bits(value));
}

static inline int __float_as_int(float value)
{
    return emulated_value<int>(emulated_bits(value));
}

static inline float __uint_as_float(unsigned value)
{
    return emulated_value<float>(emulated_bits(value));
}

static inline float __int_as_float(int value)
{
    return emulated_value<float>(emulated_bits(value));
}

static inline int __popc(unsigned value)
{
    return __builtin_popcount(value);
}

static inline int __ffs(int value)
{
    return __builtin_ffs(value);
}

static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned which = selector >> 4 * i & 15, byte = (unsigned)(bytes >> 8 * (which & 7)) & 255;
        if (which & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}

static inline float __fmul_rn(float a, float b)
{
    return a * b;
}

static inline float __fadd_rn(float a, float b)
{
    return a + b;
}

static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}

static inline float __fdividef(float a, float b)
{
    return a / b;
}

static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}

static inline float __frcp_rn(float a)
{
    return 1.0F / a;
}

#define __expf expf /* declared, but not there */

#include "hopper.h"
#include "wgmma.h"

#endif
