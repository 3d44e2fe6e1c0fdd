/* kernels/cpu/support.c - what this processor can do, and what its kernel lets us use. */
#include "fast.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM_CODE = 0x1023, XFEATURE_TILE_DATA = 18 };
enum { F16C_BIT = 29, AMX_BF16_BIT = 22, AMX_TILE_BIT = 24 };

int avx2_is_supported(void)
{
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> F16C_BIT & 1U)) return 0;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

int avx512_is_supported(void)
{
    return avx2_is_supported() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

int avx512_bf16_is_supported(void)
{
    return avx512_is_supported() && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512bf16");
}

int amx_is_supported(void)
{
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!avx512_bf16_is_supported() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 0;
    if (!(edx >> AMX_BF16_BIT & 1U) || !(edx >> AMX_TILE_BIT & 1U)) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM_CODE, XFEATURE_TILE_DATA) == 0;
}
