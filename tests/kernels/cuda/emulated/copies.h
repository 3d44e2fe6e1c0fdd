/* tests/kernels/cuda/emulated/copies.h - bulk and tensor copies of the emulated GPU. */
#ifndef TESTS_KERNELS_CUDA_EMULATED_COPIES_H
#define TESTS_KERNELS_CUDA_EMULATED_COPIES_H

#include "machine.h"

#include <cuda.h>

namespace emulated
{

/* 16-byte pieces of an address change places by the address bits above those of a row. */
inline uint32_t swizzle(uint32_t offset, uint32_t swizzle_bytes)
{
    uint32_t mask = swizzle_bytes == 128  ? 7
                    : swizzle_bytes == 64 ? 3
                    : swizzle_bytes == 32 ? 1
                                          : 0;
    return offset ^ (offset >> 7 & mask) << 4;
}

/* To the same place, and the same barrier, of every block of the cluster whose bit is set. */
void tensor_load(void *target, const CUtensorMap *map, uint64_t *barrier, int col, int row,
                 int plane, uint32_t blocks);
void bulk_load(void *target, const void *source, uint32_t bytes, uint64_t *barrier);
void tensor_store(const CUtensorMap *map, const void *source, int col, int row);
void store_commit();
void store_wait(uint32_t left);

} // namespace emulated

#endif
