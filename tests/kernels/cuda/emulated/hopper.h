/* tests/kernels/cuda/emulated/hopper.h - kernels/cuda/hopper.cuh on the emulated GPU; that header
 * says what the functions do. */
#ifndef TESTS_KERNELS_CUDA_EMULATED_HOPPER_H
#define TESTS_KERNELS_CUDA_EMULATED_HOPPER_H

#define KERNELS_CUDA_HOPPER_CUH /* the guard of what this stands in for */

#include "copies.h"

#define DYNAMIC_SHARED(type, name, alignment) type *name = (type *)emulated::current->block->shared

static inline uint32_t shared_address(const void *pointer)
{
    return emulated::shared_address_of(pointer);
}

static inline float shared_load(uint32_t address)
{
    return *(const float *)emulated::shared_pointer(address);
}

static inline uint32_t warp_uniform(uint32_t value)
{
    return __reduce_or_sync(0xffffffff, value);
}

static inline uint32_t kept(uint32_t value)
{
    return value;
}

static inline bool is_elected()
{
    emulated::exchange(0xffffffff, 0);
    return emulated::current->lane == 0;
}

/* ---- barriers ---- */

static inline void barrier_init(uint64_t *barrier, uint32_t arrivals)
{
    emulated::barrier_init(barrier, arrivals);
}

static inline void fence_barrier_init()
{
}

static inline void barrier_arrive(uint64_t *barrier)
{
    emulated::barrier_arrive(barrier);
}

static inline uint32_t cluster_address(const void *pointer, uint32_t block)
{
    return (emulated::shared_address_of(pointer) & 0xffffff) | block << 24;
}

static inline void barrier_free_at(uint64_t *barrier, uint32_t block)
{
    emulated::barrier_arrive((uint64_t *)emulated::shared_pointer(cluster_address(barrier, block)));
}

static inline uint64_t *emulated_barrier(uint32_t address)
{
    return (uint64_t *)emulated::shared_pointer(address);
}

static inline void barrier_free_at(uint32_t barrier, uint32_t block)
{
    barrier_free_at(emulated_barrier(barrier), block);
}

static inline void barrier_arrive_expect(uint64_t *barrier, uint32_t bytes)
{
    emulated::barrier_expect(barrier, bytes);
    emulated::barrier_arrive(barrier);
}

static inline bool barrier_is_past(uint64_t *barrier, uint32_t parity)
{
    return emulated::barrier_is_past(barrier, parity);
}

static inline bool barrier_is_past(uint32_t barrier, uint32_t parity)
{
    return barrier_is_past(emulated_barrier(barrier), parity);
}

static inline bool emulated_is_barrier_past(const emulated::thread_t *self)
{
    return emulated::barrier_is_past((const uint64_t *)self->address, self->wanted);
}

static inline void barrier_wait(uint64_t *barrier, uint32_t parity)
{
    emulated::current->address = barrier;
    emulated::current->wanted = parity;
    emulated::wait(emulated_is_barrier_past, "a barrier in shared memory");
}

static inline void barrier_wait(uint32_t barrier, uint32_t parity)
{
    barrier_wait(emulated_barrier(barrier), parity);
}

static inline void barrier_wait_cluster(uint64_t *barrier, uint32_t parity)
{
    barrier_wait(barrier, parity);
}

static inline void named_barrier_wait(uint32_t id, uint32_t threads)
{
    emulated::named_barrier(id, threads);
}

/* ---- clusters ---- */

static inline uint32_t cluster_rank()
{
    return emulated::current->block->rank;
}

static inline void cluster_arrive()
{
    emulated::cluster_arrive();
}

static inline void cluster_arrive_relaxed()
{
    emulated::cluster_arrive();
}

static inline void cluster_wait()
{
    emulated::cluster_wait();
}

static inline void cluster_sync()
{
    emulated::cluster_arrive();
    emulated::cluster_wait();
}

template <typename value_t>
static inline void store_async(uint32_t target, uint32_t barrier, value_t value)
{
    char *to = emulated::shared_pointer(target);
    uint64_t *word = (uint64_t *)emulated::shared_pointer(barrier);
    emulated::later([to, word, value] {
        memcpy(to, &value, sizeof value);
        emulated::barrier_complete(word, sizeof value);
    });
}

static inline uint32_t cluster_load(uint32_t address)
{
    return *(const uint32_t *)emulated::shared_pointer(address);
}

static inline uint32_t cluster_add(uint32_t address, uint32_t value)
{
    return atomicAdd((uint32_t *)emulated::shared_pointer(address), value);
}

/* ---- copies ---- */

static const uint64_t cache_evict_normal = 0, cache_evict_first = 1, cache_evict_last = 2;

static inline void tensor_prefetch(const CUtensorMap *map)
{
}

static inline void tensor_load_2d(void *target, const CUtensorMap *map, uint64_t *barrier, int col,
                                  int row, uint64_t policy = cache_evict_normal)
{
    emulated::tensor_load(target, map, barrier, col, row, 0, 1u << cluster_rank());
}

static inline void tensor_load_2d_multicast(void *target, const CUtensorMap *map, uint64_t *barrier,
                                            int col, int row, uint16_t blocks,
                                            uint64_t policy = cache_evict_normal)
{
    emulated::tensor_load(target, map, barrier, col, row, 0, blocks);
}

static inline void tensor_load_3d(void *target, const CUtensorMap *map, uint64_t *barrier, int col,
                                  int row, int plane, uint64_t policy = cache_evict_normal)
{
    emulated::tensor_load(target, map, barrier, col, row, plane, 1u << cluster_rank());
}

static inline void bulk_load(void *target, const void *source, uint32_t bytes, uint64_t *barrier)
{
    emulated::bulk_load(target, source, bytes, barrier);
}

static inline void copy_async_4(void *target, const void *source, uint64_t *barrier)
{
    emulated::later([=] {
        memcpy(target, source, 4);
        emulated::barrier_arrive(barrier);
    });
}

static inline void tensor_store_2d(const CUtensorMap *map, const void *source, int col, int row)
{
    emulated::tensor_store(map, source, col, row);
}

static inline void store_commit()
{
    emulated::store_commit();
}

template <int left> static inline void store_wait_read()
{
    emulated::store_wait(left);
}

static inline void fence_async_shared()
{
    emulated::fence_async();
}

/* ---- registers, launches ---- */

template <int count> static inline void registers_increase()
{
}

template <int count> static inline void registers_decrease()
{
}

static inline void wait_for_previous()
{
    emulated::launch_wait_for_previous();
}

static inline void let_next_start()
{
    emulated::launch_let_next_start();
}

/* Lane l's row holds what four lanes have of row l % 8 of matrix l / 8: lane 4r + c has columns 2c
 * and 2c + 1. */
static inline void store_matrix_x4(void *row, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    const uint32_t words[4] = { a, b, c, d };
    uint32_t lane = emulated::current->lane;
    for (uint32_t matrix = 0; matrix < 4; matrix++) {
        uint64_t rows[32], values[32];
        memcpy(rows, emulated::exchange(0xffffffff, (uint64_t)row), sizeof rows);
        memcpy(values, emulated::exchange(0xffffffff, words[matrix]), sizeof values);
        char *to = (char *)rows[matrix * 8 + lane / 4];
        memcpy(to + lane % 4 * 4, &values[lane], 4);
    }
    emulated::exchange(0xffffffff, 0);
}

/* ---- global memory ---- */

static inline uint4 load_streamed(const void *from)
{
    return *(const uint4 *)from;
}

static inline bool emulated_is_changed(const emulated::thread_t *self)
{
    return *(const uint32_t *)self->address != self->wanted;
}

/* Who asks again for a value that he has seen waits until it changes. */
static inline uint32_t load_acquire(const uint32_t *from)
{
    emulated::thread_t *self = emulated::current;
    if (self->seen == (uint64_t)from && self->address == from && self->wanted == *from)
        emulated::wait(emulated_is_changed, "a word in memory");
    self->address = from;
    self->seen = (uint64_t)from;
    return self->wanted = *from;
}

/* ---- arithmetic ---- */

static inline float exp2_approximate(float x)
{
    return exp2f(x);
}

static inline float reciprocal_approximate(float x)
{
    return 1.0F / x;
}

static inline uint32_t multiply_bf16_pair(uint32_t a, uint32_t b)
{
    uint32_t result = 0;
    for (int i = 0; i < 2; i++) {
        float product = __uint_as_float(a >> 16 * i << 16) * __uint_as_float(b >> 16 * i << 16);
        result |= (__float_as_uint(__bfloat162float(__float2bfloat16(product))) >> 16) << 16 * i;
    }
    return result;
}

#endif
