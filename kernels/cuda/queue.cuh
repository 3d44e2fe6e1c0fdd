/* kernels/cuda/queue.cuh - a stream, its scratch, and how ops launch kernels on it. */
#ifndef KERNELS_CUDA_QUEUE_CUH
#define KERNELS_CUDA_QUEUE_CUH

#include "../ops.h"

#include <cuda_runtime.h>

#include <errno.h>

enum { COUNTERS_MAX = 1024 };

/* Scratch belongs to the op that runs now; the next op on the stream overwrites it.  Counters are
 * zero when an op's kernels begin, and every op leaves them so (work queues, last-one-out
 * reductions). */
struct queue {
    cudaStream_t stream;
    int device, sm_count;
    char *scratch;
    size_t scratch_bytes;
    uint32_t *counters; /* [COUNTERS_MAX] */
};

/* Programmatic dependent launch: the next kernel of the stream may start before this one has ended,
 * and waits with wait_for_previous before it reads or writes what others share.  Launchers use it
 * for kernels that call both. */
struct launch_t {
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
};

/* cluster 0: none. */
inline void launch_init(launch_t *self, const queue_t *q, dim3 grid, dim3 block,
                        size_t shared_bytes, unsigned cluster, bool is_overlapped)
{
    *self = launch_t{};
    self->config.gridDim = grid;
    self->config.blockDim = block;
    self->config.dynamicSmemBytes = shared_bytes;
    self->config.stream = q->stream;
    self->config.attrs = self->attributes;
    if (cluster > 1) {
        cudaLaunchAttribute *attribute = &self->attributes[self->config.numAttrs++];
        attribute->id = cudaLaunchAttributeClusterDimension;
        attribute->val.clusterDim.x = cluster;
        attribute->val.clusterDim.y = 1;
        attribute->val.clusterDim.z = 1;
    }
    if (is_overlapped) {
        cudaLaunchAttribute *attribute = &self->attributes[self->config.numAttrs++];
        attribute->id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute->val.programmaticStreamSerializationAllowed = 1;
    }
}

/* Raises the kernel's limit of shared memory where it needs more than the default 48 KiB. 0 or EIO.
 */
template <typename kernel_t> inline int allow_shared(kernel_t kernel, size_t bytes)
{
    if (bytes <= 48 * 1024) return 0;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes) ==
                   cudaSuccess
               ? 0
               : EIO;
}

/* What a launcher returns: an error of the launch itself; errors of the kernel show at the next
 * wait. */
inline int launch_status(void)
{
    return cudaPeekAtLastError() == cudaSuccess ? 0 : EIO;
}

#endif
