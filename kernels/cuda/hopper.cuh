/* kernels/cuda/hopper.cuh - the instructions of compute capability 9.0 that C++ has no words for:
 * barriers in shared memory, bulk tensor copies, clusters, register budgets, fences.
 *
 * Names follow the PTX ISA (8.x), sections "mbarrier", "cp.async.bulk.tensor", "wgmma",
 * "setmaxnreg".
 */
#ifndef KERNELS_CUDA_HOPPER_CUH
#define KERNELS_CUDA_HOPPER_CUH

#include <cuda.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* The block's dynamic shared memory, as an array. */
#define DYNAMIC_SHARED(type, name, alignment)                                                      \
    extern __shared__ __align__(alignment)                                                         \
    type name[]

/* One lane of the warp, always the same. */
__device__ __forceinline__ bool is_elected()
{
    uint32_t is_chosen;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(is_chosen));
    return is_chosen != 0;
}

__device__ __forceinline__ float shared_load(uint32_t address)
{
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
    return value;
}

/* The same value in every lane, in a way that the compiler sees: branches are then the warp's, and
 * addresses and descriptors stay in uniform registers.  By whole warps. */
__device__ __forceinline__ uint32_t warp_uniform(uint32_t value)
{
    return __reduce_or_sync(0xffffffff, value);
}

/* A value that stays in a register rather than being computed again where it is used. */
__device__ __forceinline__ uint32_t kept(uint32_t value)
{
    asm volatile("" : "+r"(value));
    return value;
}

/* ---- barriers in shared memory (uint64_t, 8-byte aligned) ---- */

__device__ __forceinline__ void barrier_init(uint64_t *barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(arrivals));
}

/* After barrier_init, before the barriers are used by bulk copies or other blocks of the cluster.
 */
__device__ __forceinline__ void fence_barrier_init()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
}

/* Arrive at the barrier in the same place of another block of the cluster, where nothing but room
 * is handed over: what this thread wrote before need not be seen there.  A release to the cluster
 * would cost a fence of the whole GPU (MEMBAR.ALL.GPU in SASS), which a ring's loop cannot afford.
 */
__device__ __forceinline__ void barrier_free_at(uint32_t barrier, uint32_t block)
{
    asm volatile("{\n.reg .b32 remote;\n"
                 "mapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
                 "r"(block)
                 : "memory");
}

__device__ __forceinline__ void barrier_free_at(uint64_t *barrier, uint32_t block)
{
    barrier_free_at(shared_address(barrier), block);
}

__device__ __forceinline__ void barrier_arrive_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
}

/* Barriers are named by their address in shared memory where a loop keeps it in a uniform register.
 */
__device__ __forceinline__ bool barrier_is_past(uint32_t barrier, uint32_t parity)
{
    uint32_t is_past;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(is_past)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return is_past != 0;
}

__device__ __forceinline__ bool barrier_is_past(uint64_t *barrier, uint32_t parity)
{
    return barrier_is_past(shared_address(barrier), parity);
}

/* A new barrier is in the phase of parity 0: waiting for parity 1 returns at once.  The loop is
 * inside, where it is known to be the warp's: one in C would count as divergent. */
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

__device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity)
{
    barrier_wait(shared_address(barrier), parity);
}

/* Also sees what other blocks of the cluster wrote before they arrived. */
__device__ __forceinline__ void barrier_wait_cluster(uint64_t *barrier, uint32_t parity)
{
    uint32_t is_past = 0;
    while (!is_past)
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(is_past)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
}

/* Named barriers: `threads` of the block, a multiple of 32; id 0 is __syncthreads. */
__device__ __forceinline__ void named_barrier_wait(uint32_t id, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* ---- clusters ---- */

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

/* Nothing that this thread wrote need be seen by others. */
__device__ __forceinline__ void cluster_arrive_relaxed()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_sync()
{
    cluster_arrive();
    cluster_wait();
}

/* The address, for ld/st.shared::cluster, of the same variable in another block of the cluster. */
__device__ __forceinline__ uint32_t cluster_address(const void *pointer, uint32_t block)
{
    uint32_t address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(address)
                 : "r"(shared_address(pointer)), "r"(block));
    return address;
}

/* 16 bytes to another block of the cluster, at addresses from cluster_address; completes on a
 * barrier there by bytes. */
__device__ __forceinline__ void store_async(uint32_t target, uint32_t barrier, uint4 value)
{
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%2, %3, %4, %5}, "
        "[%1];" ::"r"(target),
        "r"(barrier), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
        : "memory");
}

__device__ __forceinline__ void store_async(uint32_t target, uint32_t barrier, uint64_t value)
{
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(target),
        "l"(value), "r"(barrier)
        : "memory");
}

__device__ __forceinline__ uint32_t cluster_load(uint32_t address)
{
    uint32_t value;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

/* What was there before. */
__device__ __forceinline__ uint32_t cluster_add(uint32_t address, uint32_t value)
{
    uint32_t before;
    asm volatile("atom.shared::cluster.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "r"(address), "r"(value)
                 : "memory");
    return before;
}

/* ---- bulk tensor copies: a box of a tensor map to shared memory and back ---- */

/* L2 policies of createpolicy, as CUTLASS names them (cute/arch/copy_sm90_desc.hpp). */
static const uint64_t cache_evict_normal = 0x1000000000000000;
static const uint64_t cache_evict_first = 0x12f0000000000000;
static const uint64_t cache_evict_last = 0x14f0000000000000;

__device__ __forceinline__ void tensor_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* col, row in elements; one thread; completes on the barrier by bytes. */
__device__ __forceinline__ void tensor_load_2d(void *target, const CUtensorMap *map,
                                               uint64_t *barrier, int col, int row,
                                               uint64_t policy = cache_evict_normal)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(target)),
                 "l"(map), "r"(shared_address(barrier)), "r"(col), "r"(row), "l"(policy)
                 : "memory");
}

/* To the same place, and the same barrier, of every block whose bit is set. */
__device__ __forceinline__ void tensor_load_2d_multicast(void *target, const CUtensorMap *map,
                                                         uint64_t *barrier, int col, int row,
                                                         uint16_t blocks,
                                                         uint64_t policy = cache_evict_normal)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(
                     shared_address(target)),
                 "l"(map), "r"(shared_address(barrier)), "r"(col), "r"(row), "h"(blocks),
                 "l"(policy)
                 : "memory");
}

__device__ __forceinline__ void tensor_load_3d(void *target, const CUtensorMap *map,
                                               uint64_t *barrier, int col, int row, int plane,
                                               uint64_t policy = cache_evict_normal)
{
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared_address(target)),
        "l"(map), "r"(shared_address(barrier)), "r"(col), "r"(row), "r"(plane), "l"(policy)
        : "memory");
}

/* Contiguous bytes: addresses and count multiples of 16. */
__device__ __forceinline__ void bulk_load(void *target, const void *source, uint32_t bytes,
                                          uint64_t *barrier)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
        "[%3];" ::"r"(shared_address(target)),
        "l"(source), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}

/* Four bytes; they arrive at the barrier, one of whose arrivals they are, when they are there. */
__device__ __forceinline__ void copy_async_4(void *target, const void *source, uint64_t *barrier)
{
    asm volatile(
        "cp.async.ca.shared.global [%0], [%1], 4;\n"
        "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%2];" ::"r"(shared_address(target)),
        "l"(source), "r"(shared_address(barrier))
        : "memory");
}

__device__ __forceinline__ void tensor_store_2d(const CUtensorMap *map, const void *source, int col,
                                                int row)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
        "r"(shared_address(source)), "r"(col), "r"(row)
        : "memory");
}

__device__ __forceinline__ void store_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Until at most `left` of this thread's groups of stores still read shared memory. */
template <int left> __device__ __forceinline__ void store_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(left) : "memory");
}

/* Ordinary writes of shared memory become visible to bulk copies and wgmma; by each writing thread,
 * before the barrier. */
__device__ __forceinline__ void fence_async_shared()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- registers; programmatic dependent launch ---- */

template <int count> __device__ __forceinline__ void registers_increase()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

template <int count> __device__ __forceinline__ void registers_decrease()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

/* Before anything is read that an earlier kernel of the stream wrote, and before anything is
 * written. */
__device__ __forceinline__ void wait_for_previous()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* The next kernel of the stream may start; what it may read is still decided by its own wait. */
__device__ __forceinline__ void let_next_start()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* ---- moves between registers and shared memory ---- */

/* Four 8x8 matrices of 16-bit elements; each lane gives the address of one row of 16 bytes. */
__device__ __forceinline__ void store_matrix_x4(void *row, uint32_t a, uint32_t b, uint32_t c,
                                                uint32_t d)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address(row)),
                 "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

/* ---- global memory ---- */

/* Past L1: rows that are read once, while what stays there is read again. */
__device__ __forceinline__ uint4 load_streamed(const void *from)
{
    uint4 bits;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                 : "l"(from));
    return bits;
}

/* Sees what another block wrote before it counted. */
__device__ __forceinline__ uint32_t load_acquire(const uint32_t *from)
{
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

/* ---- arithmetic: 2^x and 1 / x to some 22 bits, denormal results are zero ---- */

__device__ __forceinline__ float exp2_approximate(float x)
{
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ __forceinline__ float reciprocal_approximate(float x)
{
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ __forceinline__ uint32_t multiply_bf16_pair(uint32_t a, uint32_t b)
{
    uint32_t result;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

#endif
