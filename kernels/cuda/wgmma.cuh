/* kernels/cuda/wgmma.cuh - warpgroup matrix products: a warpgroup of 128 threads adds a [64, k]
 * times b [n, k]^T to 64 x n sums in F32, spread over its registers.
 *
 * Thread t of the warpgroup holds d[i]: row 16 * (t / 32) + (t % 32) / 4 + 8 * (i / 2 % 2), column
 * 8 * (i / 4) + 2 * (t % 4) + i % 2.  a in registers (BF16, k = 16): a[0..3] are pairs of columns
 * 2 * (t % 4) of the same rows, a[0] row r, a[1] row r + 8, a[2], a[3] the same 8 columns further.
 * PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
 *
 *   E4M3: k = 32, both operands from shared memory, K-major.
 *   BF16: k = 16, b from shared memory, K-major or (`is_b_mn`) N-major; a from shared memory or
 *         registers.
 */
#ifndef KERNELS_CUDA_WGMMA_CUH
#define KERNELS_CUDA_WGMMA_CUH

#include "hopper.cuh"

__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int left> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

/* Keeps the compiler from moving reads or writes of sums across this point. */
template <int count> __device__ __forceinline__ void wgmma_hold(float (&d)[count])
{
#pragma unroll
    for (int i = 0; i < count; i++) asm volatile("" : "+f"(d[i])::"memory");
}

/* Shared memory as rows of 128 bytes under the 128-byte swizzle (what tensor maps of that swizzle
 * write; tiles begin at multiples of 1024 bytes): 8 rows are 1024 bytes, and the next 8 rows
 * follow. A step along K inside the 128 bytes adds its bytes >> 4 to the descriptor. For an N-major
 * b (BF16): rows are k, 64 n of one 128-byte row; `lead` is the distance in bytes to the next 64 n,
 * 1024 the distance from 8 k to the next 8. */
__device__ __forceinline__ uint64_t wgmma_operand(const void *tile, uint32_t lead = 16)
{
    return (uint64_t)((shared_address(tile) & 0x3ffff) >> 4) | (uint64_t)(lead >> 4) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* The same from its low word, for a K-major tile or, where the low word holds another `lead`, an
 * N-major one: the high word is the same for all.  Sums of low words never carry, and 64-bit sums
 * would take longer than the products of 64 columns. */
__device__ __forceinline__ uint64_t wgmma_operand_at(uint32_t low)
{
    return (uint64_t)low | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* scale_d 0: d is overwritten, 1: added to. */
template <int n> struct wgmma_e4m3;
template <int n, int is_b_mn> struct wgmma_bf16;

/* clang-format off */
#define SUMS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_8(d, i) SUMS_4(d, i), SUMS_4(d, i + 4)
#define SUMS_16(d, i) SUMS_8(d, i), SUMS_8(d, i + 8)
#define SUMS_32(d, i) SUMS_16(d, i), SUMS_16(d, i + 16)
#define SUMS_64(d, i) SUMS_32(d, i), SUMS_32(d, i + 32)
#define LIST_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define LIST_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define LIST_28 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27"
#define LIST_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LIST_56 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "\
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55"
#define LIST_64 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "\
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LIST_88 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "\
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "\
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87"
#define LIST_96 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "\
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "\
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define LIST_128 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "\
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "\
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "\
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

/* r0.. name the operands that follow the sums. */
#define WGMMA(n, count, sums, r0, r1, r2, r3, r4, r5, r6)                                          \
    template <> struct wgmma_e4m3<n> {                                                             \
        __device__ static __forceinline__ void multiply(float (&d)[count], uint64_t a, uint64_t b, \
                                                        int scale_d)                               \
        {                                                                                          \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " r2 ", 0;\n"                           \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" LIST_##count \
                         "}, " r0 ", " r1 ", p, 1, 1;\n}"                                          \
                         : sums : "l"(a), "l"(b), "r"(scale_d));                                   \
        }                                                                                          \
    };                                                                                             \
    template <int is_b_mn> struct wgmma_bf16<n, is_b_mn> {                                         \
        __device__ static __forceinline__ void multiply(float (&d)[count], uint64_t a, uint64_t b, \
                                                        int scale_d)                               \
        {                                                                                          \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " r2 ", 0;\n"                           \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" LIST_##count \
                         "}, " r0 ", " r1 ", p, 1, 1, 0, " r3 ";\n}"                               \
                         : sums : "l"(a), "l"(b), "r"(scale_d), "n"(is_b_mn));                     \
        }                                                                                          \
        __device__ static __forceinline__ void multiply(float (&d)[count], const uint32_t (&a)[4], \
                                                        uint64_t b, int scale_d)                   \
        {                                                                                          \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " r5 ", 0;\n"                           \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" LIST_##count \
                         "}, {" r0 ", " r1 ", " r2 ", " r3 "}, " r4 ", p, 1, 1, " r6 ";\n}"         \
                         : sums : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),              \
                         "r"(scale_d), "n"(is_b_mn));                                              \
        }                                                                                          \
    };

#define SUMS_OF_8 SUMS_8(d, 0)
WGMMA(16, 8, SUMS_OF_8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
#define SUMS_OF_16 SUMS_16(d, 0)
WGMMA(32, 16, SUMS_OF_16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
#define SUMS_OF_28 SUMS_16(d, 0), SUMS_8(d, 16), SUMS_4(d, 24)
WGMMA(56, 28, SUMS_OF_28, "%28", "%29", "%30", "%31", "%32", "%33", "%34")
#define SUMS_OF_32 SUMS_32(d, 0)
WGMMA(64, 32, SUMS_OF_32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
#define SUMS_OF_56 SUMS_32(d, 0), SUMS_16(d, 32), SUMS_8(d, 48)
WGMMA(112, 56, SUMS_OF_56, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
#define SUMS_OF_64 SUMS_64(d, 0)
WGMMA(128, 64, SUMS_OF_64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
#define SUMS_OF_88 SUMS_64(d, 0), SUMS_16(d, 64), SUMS_8(d, 80)
WGMMA(176, 88, SUMS_OF_88, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
#define SUMS_OF_96 SUMS_64(d, 0), SUMS_32(d, 64)
WGMMA(192, 96, SUMS_OF_96, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
#define SUMS_OF_128 SUMS_64(d, 0), SUMS_64(d, 64)
WGMMA(256, 128, SUMS_OF_128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef WGMMA
/* clang-format on */

#endif
