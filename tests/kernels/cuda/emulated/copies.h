/* tests/kernels/cuda/emulated/copies.h - bulk and tensor copies of the emulated GPU. */
#ifndef TESTS_KERNELS_CUDA_EMULATED_COPIES_H
#define TESTS_KERNELS_CUDA_EMULATED_COPIES_H

#include "machine.h"

#include <cuda.h>

namespace emulated
{

/* To the same place, and the same barrier, of every block of the cluster whose bit is set. */
void tensor_load(void *target, const CUtensorMap *map, uint64_t *barrier, int col, int row,
                 int plane, uint32_t blocks);
void bulk_load(void *target, const void *source, uint32_t bytes, uint64_t *barrier);
void tensor_store(const CUtensorMap *map, const void *source, int col, int row);
void store_commit();
void store_wait(uint32_t left);

} // namespace emulated

#endif
