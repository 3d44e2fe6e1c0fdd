/* tests/kernels/cuda/harness.cuh - what checks and timings of CUDA ops share: memory on the device,
 * random numbers, comparisons, graph replays over rotating inputs, lines of results.
 *
 * A family of ops is one file that defines checks (run_checks_FAMILY) and timings
 * (run_timings_FAMILY); cuda_selftest.cu lists them.
 */
#ifndef TESTS_KERNELS_CUDA_HARNESS_CUH
#define TESTS_KERNELS_CUDA_HARNESS_CUH

#include "../../../kernels/cuda/queue.cuh"
#include "../../../kernels/ops.h"

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <stdio.h>

struct harness_t {
    queue_t *q;
    const ops_t *ops; /* ops_cuda */
    queue_t *cpu;     /* for ops_judge on copies in host memory */
    uint64_t random;
    int checks, failures;
    FILE *table; /* timings as CSV: op,shape,rows,keys,us,bytes,operations,anchor_us; or NULL */
    double copy_bytes_per_s; /* measured before the timings */
};

/* Every CUDA call: prints where and why, and ends the program. */
#define CUDA(call) cuda_demand((call), #call, __FILE__, __LINE__)
void cuda_demand(cudaError_t status, const char *call, const char *file, int line);

/* A kernel on the default stream: LAUNCH(kernel, (grid, block), argument, ...).  The emulation has
 * its own. */
#ifndef LAUNCH
#define LAUNCH_SHAPE(...)          __VA_ARGS__
#define LAUNCH(kernel, shape, ...) kernel<<<LAUNCH_SHAPE shape>>>(__VA_ARGS__)
#endif

/* Device memory, filled with 0xff bytes (NaN); it lives until memory_free_all. */
void *memory_new(size_t bytes);
void memory_free_all(void);
/* 0xff bytes, written when it returns: the queue's stream does not wait for the default one. */
void memory_poison(void *memory, size_t bytes);
void *memory_upload(const void *host, size_t bytes);
void memory_download(void *host, const void *device, size_t bytes);

/* A tensor on the device, NaN everywhere; scales laid as CUDA's ops expect them (activations
 * block-major, weights per 128 x 128).  random: values about N(0, 1) (BF16, F32); F8E4M3: bytes of
 * quantised N(0, 1) with their scales. */
tensor_t tensor_new(dtype_t dtype, uint32_t rows, uint32_t cols, bool is_weight);
tensor_t tensor_random(harness_t *self, dtype_t dtype, uint32_t rows, uint32_t cols,
                       bool is_weight);

/* The same tensor in host memory with the CPU's layout of scales, for the judge and for comparing.
 */
tensor_t tensor_to_host(const tensor_t *x, bool is_weight);
tensor_t tensor_host_new(dtype_t dtype, uint32_t rows, uint32_t cols);
void tensor_host_free(tensor_t *x);
float tensor_host_value(const tensor_t *x, uint32_t row, uint32_t col); /* activations */

uint32_t random_below(harness_t *self, uint32_t limit);
float random_normal(harness_t *self);

/* Ends the program when the queue reports an error; prints it. */
void queue_demand(harness_t *self, const char *what);

/* One check: counted, printed when it failed. */
void expect(harness_t *self, bool is_good, const char *what, double found, double allowed);

/* DeepGEMM's gate: 1 - 2<x,y> / (<x,x> + <y,y>), of host tensors; and ||x - y|| / ||y||.  NaN in x
 * gives infinity. */
double difference_cosine(const tensor_t *x, const tensor_t *y);
double difference_relative(const tensor_t *x, const tensor_t *y);
bool is_same_bits(const tensor_t *x, const tensor_t *y);

/* Microseconds of one call: the median of replays of a CUDA graph that holds `calls` calls over
 * variants 0 .. variants - 1 in turn (rotate over more bytes than the L2 holds). call returns what
 * the op returned. */
typedef int (*timed_call_t)(void *context, uint32_t variant);
double time_call(harness_t *self, timed_call_t call, void *context, uint32_t variants);

/* One line: time, GB/s, TFLOPS, share of the nearer roof, ratio to the anchor (anchor_us 0: none).
 */
struct timing_t {
    const char *op;
    char shape[64];
    double us, bytes, operations, anchor_us;
    bool is_fp8;       /* which roof for operations */
    double rows, keys; /* of a whole layer, for the simulator's table; else 0 */
};
void report(harness_t *self, const timing_t *timing);

#endif
