/* tests/kernels/cuda/harness.cu - memory, random tensors, comparisons and timings for checks of
 * CUDA ops. */
#include "harness.cuh"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <vector>

/* ---- errors ---- */

void cuda_demand(cudaError_t status, const char *call, const char *file, int line)
{
    if (status == cudaSuccess) return;
    printf("FATAL %s:%d: %s: %s\n", file, line, call, cudaGetErrorString(status));
    fflush(stdout);
    exit(1);
}

void queue_demand(harness_t *self, const char *what)
{
    cudaError_t status = cudaStreamSynchronize(self->q->stream);
    if (status == cudaSuccess) return;
    printf("FATAL %s: %s\n", what, cudaGetErrorString(status));
    fflush(stdout);
    exit(1);
}

void expect(harness_t *self, bool is_good, const char *what, double found, double allowed)
{
    self->checks++;
    if (is_good) return;
    self->failures++;
    if (self->failures <= 40) printf("FAILED %s: found %g, allowed %g\n", what, found, allowed);
}

/* ---- memory ---- */

static std::vector<void *> allocations;

void memory_poison(void *memory, size_t bytes)
{
    CUDA(cudaMemset(memory, 0xff, bytes));
    CUDA(cudaDeviceSynchronize());
}

void *memory_new(size_t bytes)
{
    void *memory = nullptr;
    CUDA(cudaMalloc(&memory, bytes + 16));
    memory_poison(memory, bytes + 16);
    allocations.push_back(memory);
    CUDA(cudaDeviceSynchronize()); /* the queue's stream does not wait for the default one */
    return memory;
}

void memory_free_all(void)
{
    CUDA(cudaDeviceSynchronize());
    for (void *memory : allocations) CUDA(cudaFree(memory));
    allocations.clear();
}

void *memory_upload(const void *host, size_t bytes)
{
    void *memory = memory_new(bytes);
    CUDA(cudaMemcpy(memory, host, bytes, cudaMemcpyHostToDevice));
    CUDA(cudaDeviceSynchronize()); /* the last of it may still be on its way */
    return memory;
}

void memory_download(void *host, const void *device, size_t bytes)
{
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}

/* ---- random numbers ---- */

__host__ __device__ static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* About N(0, 1): the sum of four uniform numbers, scaled. */
__host__ __device__ static float normal_from(uint64_t bits)
{
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += (float)((bits >> (16 * i)) & 0xffff) * 0x1p-16f;
    return (sum - 2.0f) * 1.7320508f;
}

static uint64_t next_random(harness_t *self)
{
    self->random += 0x9e3779b97f4a7c15u;
    return mix(self->random);
}

uint32_t random_below(harness_t *self, uint32_t limit)
{
    return (uint32_t)((next_random(self) >> 32) * limit >> 32);
}

float random_normal(harness_t *self)
{
    return normal_from(next_random(self));
}

/* ---- tensors ---- */

static uint32_t blocks_of(uint32_t count)
{
    return (count + 127) / 128;
}

/* Activations on the device: scale_stride covers the rows; weights: blocks of columns. */
static size_t scale_count(const tensor_t *x, bool is_weight)
{
    return (size_t)x->scale_stride * (is_weight ? blocks_of(x->rows) : blocks_of(x->cols));
}

tensor_t tensor_new(dtype_t dtype, uint32_t rows, uint32_t cols, bool is_weight)
{
    tensor_t x = {};
    x.dtype = dtype;
    x.rows = rows;
    x.cols = cols;
    x.stride = cols;
    x.data = memory_new((size_t)rows * cols * dtype_bytes(dtype));
    if (dtype != DTYPE_F8E4M3) return x;
    x.scale_stride = is_weight ? blocks_of(cols) : (rows + 3) / 4 * 4;
    x.scales = (float *)memory_new(scale_count(&x, is_weight) * sizeof(float));
    return x;
}

__global__ static void fill_random(void *data, int dtype, size_t count, uint64_t seed)
{
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += step) {
        float value = normal_from(mix(seed + i * 0x9e3779b97f4a7c15u));
        if (dtype == DTYPE_F32) ((float *)data)[i] = value;
        if (dtype == DTYPE_BF16) ((__nv_bfloat16 *)data)[i] = __float2bfloat16(value);
        if (dtype == DTYPE_F8E4M3) ((__nv_fp8_e4m3 *)data)[i] = __nv_fp8_e4m3(value * 128.0f);
    }
}

/* Scales differ by up to a factor of two, so that a wrong one shows. */
__global__ static void fill_scales(float *scales, size_t count, uint64_t seed)
{
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += step)
        scales[i] = (1.0f + (float)(mix(seed + i) >> 40) * 0x1p-24f) / 192.0f;
}

tensor_t tensor_random(harness_t *self, dtype_t dtype, uint32_t rows, uint32_t cols, bool is_weight)
{
    tensor_t x = tensor_new(dtype, rows, cols, is_weight);
    size_t count = (size_t)rows * cols;
    if (count == 0) return x;
    LAUNCH(fill_random, (1024, 256), x.data, dtype, count, next_random(self));
    if (dtype == DTYPE_F8E4M3)
        LAUNCH(fill_scales, (256, 256), x.scales, scale_count(&x, is_weight), next_random(self));
    CUDA(cudaGetLastError());
    CUDA(cudaDeviceSynchronize());
    return x;
}

tensor_t tensor_host_new(dtype_t dtype, uint32_t rows, uint32_t cols)
{
    tensor_t x = {};
    x.dtype = dtype;
    x.rows = rows;
    x.cols = cols;
    x.stride = cols;
    x.data = calloc((size_t)rows * cols + 1, dtype_bytes(dtype));
    if (dtype != DTYPE_F8E4M3) return x;
    x.scale_stride = blocks_of(cols);
    x.scales = (float *)calloc((size_t)rows * x.scale_stride + 1, sizeof(float));
    return x;
}

void tensor_host_free(tensor_t *x)
{
    free(x->data);
    free(x->scales);
    *x = tensor_t{};
}

tensor_t tensor_to_host(const tensor_t *x, bool is_weight)
{
    tensor_t host = tensor_host_new(x->dtype, x->rows, x->cols);
    size_t size = dtype_bytes(x->dtype);
    CUDA(cudaDeviceSynchronize());
    if (x->rows)
        CUDA(cudaMemcpy2D(host.data, x->cols * size, x->data, x->stride * size, x->cols * size,
                          x->rows, cudaMemcpyDeviceToHost));
    if (x->dtype != DTYPE_F8E4M3 || x->rows == 0) return host;
    std::vector<float> scales(scale_count(x, is_weight));
    memory_download(scales.data(), x->scales, scales.size() * sizeof(float));
    if (is_weight) {
        for (uint32_t r = 0; r < blocks_of(x->rows); r++)
            memcpy(host.scales + (size_t)r * host.scale_stride,
                   scales.data() + (size_t)r * x->scale_stride, host.scale_stride * sizeof(float));
    } else {
        for (uint32_t b = 0; b < blocks_of(x->cols); b++)
            for (uint32_t r = 0; r < x->rows; r++)
                host.scales[(size_t)r * host.scale_stride + b] =
                    scales[(size_t)b * x->scale_stride + r];
    }
    return host;
}

float tensor_host_value(const tensor_t *x, uint32_t row, uint32_t col)
{
    size_t at = (size_t)row * x->stride + col;
    if (x->dtype == DTYPE_F32) return ((const float *)x->data)[at];
    if (x->dtype == DTYPE_BF16) return __bfloat162float(((const __nv_bfloat16 *)x->data)[at]);
    return (float)((const __nv_fp8_e4m3 *)x->data)[at] *
           x->scales[(size_t)row * x->scale_stride + col / 128];
}

/* ---- comparisons ---- */

struct sums_t {
    double xx, yy, xy, dd;
};

static sums_t sum_products(const tensor_t *x, const tensor_t *y)
{
    sums_t sums = {};
    for (uint32_t r = 0; r < x->rows; r++)
        for (uint32_t c = 0; c < x->cols; c++) {
            double a = tensor_host_value(x, r, c), b = tensor_host_value(y, r, c);
            sums.xx += a * a;
            sums.yy += b * b;
            sums.xy += a * b;
            sums.dd += (a - b) * (a - b);
        }
    return sums;
}

double difference_cosine(const tensor_t *x, const tensor_t *y)
{
    sums_t sums = sum_products(x, y);
    double total = sums.xx + sums.yy;
    if (!isfinite(total)) return INFINITY;
    return total == 0 ? 0 : 1 - 2 * sums.xy / total;
}

double difference_relative(const tensor_t *x, const tensor_t *y)
{
    sums_t sums = sum_products(x, y);
    if (!isfinite(sums.dd)) return INFINITY;
    return sums.dd == 0 ? 0 : sqrt(sums.dd / sums.yy);
}

bool is_same_bits(const tensor_t *x, const tensor_t *y)
{
    size_t size = dtype_bytes(x->dtype);
    for (uint32_t r = 0; r < x->rows; r++)
        if (memcmp((char *)x->data + (size_t)r * x->stride * size,
                   (char *)y->data + (size_t)r * y->stride * size, x->cols * size) != 0)
            return false;
    return true;
}

/* ---- timings ---- */

/* Of replays of at least SAMPLE_US, the first ones warm up.  Before them the GPU rests: long
 * products draw all the power there is, and the clock falls within tens of milliseconds. */
enum { WARM = 2, SAMPLES = 10 };
static const double SAMPLE_US = 2000;
static const struct timespec rest = { 0, 100 * 1000 * 1000 };

static double replay_us(harness_t *self, cudaGraphExec_t graph, cudaEvent_t *events)
{
    float milliseconds = 0;
    CUDA(cudaEventRecord(events[0], self->q->stream));
    CUDA(cudaGraphLaunch(graph, self->q->stream));
    CUDA(cudaEventRecord(events[1], self->q->stream));
    CUDA(cudaEventSynchronize(events[1]));
    CUDA(cudaEventElapsedTime(&milliseconds, events[0], events[1]));
    return milliseconds * 1e3;
}

/* 0 calls: the op refused. */
static cudaGraphExec_t capture(harness_t *self, timed_call_t call, void *context, uint32_t variants,
                               int calls)
{
    cudaGraph_t graph;
    cudaGraphExec_t executable = nullptr;
    int status = 0;
    CUDA(cudaStreamBeginCapture(self->q->stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < calls && status == 0; i++) status = call(context, (uint32_t)i % variants);
    CUDA(cudaStreamEndCapture(self->q->stream, &graph));
    if (status == 0) CUDA(cudaGraphInstantiate(&executable, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    return executable;
}

double time_call(harness_t *self, timed_call_t call, void *context, uint32_t variants)
{
    cudaEvent_t events[2];
    for (cudaEvent_t &event : events) CUDA(cudaEventCreate(&event));
    double result = NAN;
    int calls = (int)variants;
    cudaGraphExec_t graph = capture(self, call, context, variants, calls);
    if (graph) {
        replay_us(self, graph, events);
        double round_us = std::max(replay_us(self, graph, events), 1.0);
        CUDA(cudaGraphExecDestroy(graph));
        calls *= std::min(200 / calls + 1, (int)(SAMPLE_US / round_us) + 1);
        graph = capture(self, call, context, variants, calls);
    }
    if (graph) {
        nanosleep(&rest, nullptr);
        std::vector<double> samples;
        for (int i = 0; i < WARM + SAMPLES; i++) {
            double us = replay_us(self, graph, events);
            if (i >= WARM) samples.push_back(us);
        }
        std::sort(samples.begin(), samples.end());
        result = samples[samples.size() / 2] / calls;
        CUDA(cudaGraphExecDestroy(graph));
    }
    for (cudaEvent_t &event : events) CUDA(cudaEventDestroy(event));
    return result;
}

/* Roofs of an H100 SXM by its datasheet, and the copy measured in this run. */
static const double fp8_operations_per_s = 1979e12, bf16_operations_per_s = 989e12;

void report(harness_t *self, const timing_t *timing)
{
    double seconds = timing->us * 1e-6;
    double operations_per_s = timing->is_fp8 ? fp8_operations_per_s : bf16_operations_per_s;
    double bytes_roof = self->copy_bytes_per_s > 0 ? self->copy_bytes_per_s : 3.0e12;
    double roof = std::max(timing->bytes / bytes_roof, timing->operations / operations_per_s);
    printf("%-16s %-30s %9.1f us %7.0f GB/s %7.0f TFLOPS %4.0f%% of roof", timing->op,
           timing->shape, timing->us, timing->bytes / seconds * 1e-9,
           timing->operations / seconds * 1e-12, 100 * roof / seconds);
    if (timing->anchor_us > 0)
        printf("  anchor %.1f us: x%.3f", timing->anchor_us, timing->anchor_us / timing->us);
    printf("\n");
    fflush(stdout);
    if (self->table)
        fprintf(self->table, "%s,\"%s\",%.0f,%.0f,%.2f,%.0f,%.0f,%.2f\n", timing->op, timing->shape,
                timing->rows, timing->keys, timing->us, timing->bytes, timing->operations,
                timing->anchor_us);
    if (self->table) fflush(self->table);
}
