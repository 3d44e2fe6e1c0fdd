/* kernels/cuda/queue.cu - queues of a GPU are made and destroyed; nothing else here allocates. */
#include "queue.cuh"

#include <stdlib.h>

static bool is_hopper(int device)
{
    int major = 0, minor = 0;
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) ==
               cudaSuccess &&
           major == 9 && minor == 0;
}

queue_t *queue_new_cuda(int device, size_t scratch_bytes)
{
    if (!is_hopper(device) || cudaSetDevice(device) != cudaSuccess) return nullptr;
    queue_t *q = (queue_t *)calloc(1, sizeof *q);
    if (!q) return nullptr;
    q->device = device;
    q->scratch_bytes = scratch_bytes;
    size_t counter_bytes = COUNTERS_MAX * sizeof *q->counters;
    if (cudaDeviceGetAttribute(&q->sm_count, cudaDevAttrMultiProcessorCount, device) !=
            cudaSuccess ||
        cudaStreamCreateWithFlags(&q->stream, cudaStreamNonBlocking) != cudaSuccess ||
        cudaMalloc((void **)&q->scratch, scratch_bytes) != cudaSuccess ||
        cudaMalloc((void **)&q->counters, counter_bytes) != cudaSuccess ||
        cudaMemset(q->counters, 0, counter_bytes) != cudaSuccess)
        queue_destroy_cuda(&q);
    return q;
}

void queue_destroy_cuda(queue_t **self)
{
    queue_t *q = *self;
    *self = nullptr;
    if (!q) return;
    if (q->stream) cudaStreamDestroy(q->stream);
    cudaFree(q->scratch);
    cudaFree(q->counters);
    free(q);
}
