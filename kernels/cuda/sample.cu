/* kernels/cuda/sample.cu - launches the kernel of sample.cuh: a cluster per row. */
#include "ops_cuda.h"
#include "queue.cuh"
#include "sample.cuh"

namespace
{

enum : uint32_t { THREADS = 256, BLOCKS_PER_SM = 3 };

bool is_supported(const tensor_t *logits)
{
    return logits->dtype == DTYPE_F32 && logits->cols > 0 &&
           logits->cols <= sample::BLOCKS * sample::BLOCK_IDS_MAX && logits->stride % 4 == 0 &&
           logits->stride >= logits->cols && (uintptr_t)logits->data % 16 == 0;
}

} // namespace

extern "C" int cuda_sample(queue_t *q, sample_result_t *results, const tensor_t *logits,
                           const sample_row_t *rows)
{
    if (!is_supported(logits)) return EINVAL;
    if (logits->rows == 0) return 0;
    const uint32_t unit = sample::BLOCKS * THREADS * sample::SEGMENT_UNIT;
    uint32_t segment = (logits->cols + unit - 1) / unit * sample::SEGMENT_UNIT;
    uint32_t held = (logits->cols + segment - 1) / segment * segment;
    if (held > THREADS * segment) held = THREADS * segment;
    size_t bytes = held * sizeof(uint32_t) + 2 * sample::BINS * sizeof(uint32_t);
    auto kernel = sample::sample_rows<THREADS, BLOCKS_PER_SM>;
    if (allow_shared(kernel, bytes)) return EIO;
    launch_t launch;
    launch_init(&launch, q, dim3(logits->rows * sample::BLOCKS), dim3(THREADS), bytes,
                sample::BLOCKS, true);
    cudaLaunchKernelEx(&launch.config, kernel, results, (const float *)logits->data, logits->stride,
                       logits->cols, segment, rows);
    return launch_status();
}
