/* tests/kernels/rates.h - how fast the matrix products of a table are, beside the machine's roofs
 * and OpenBLAS. */
#ifndef TESTS_KERNELS_RATES_H
#define TESTS_KERNELS_RATES_H

#include "kernels/cpu/number.h"
#include "kernels/cpu/roof.h"
#include "kernels/ops.h"

#include <stdio.h>
#include <stdlib.h>

#ifdef HAVE_OPENBLAS
#include <cblas.h>
#endif

/* Weights rotate through this much memory, so that they are read from where a model's weights are.
 */
enum { ROTATION_BYTES = 192 << 20, COPIES_MAX = 512 };

typedef struct {
    uint32_t m, n, k;
} rate_shape_t;

typedef struct {
    tensor_t x, out, w;
    void *copies[COPIES_MAX];
    size_t packed_bytes;
    uint32_t copy_count;
} rate_data_t;

static inline float pseudo_random(uint32_t i)
{
    i = (i ^ (i >> 15)) * 0x2c1b3c6dU;
    i = (i ^ (i >> 12)) * 0x297a2d39U;
    return (float)(i ^ (i >> 15)) * 0x1p-31F - 1.0F;
}

static inline void *aligned(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) exit(1);
    return memory;
}

static inline rate_data_t rate_data_new(const ops_t *ops, const rate_shape_t *shape, dtype_t dtype)
{
    rate_data_t data = {
        .x = { .dtype = DTYPE_F32, .rows = shape->m, .cols = shape->k, .stride = shape->k },
        .out = { .dtype = DTYPE_F32, .rows = shape->m, .cols = shape->n, .stride = shape->n },
        .w = { .dtype = dtype, .rows = shape->n, .cols = shape->k, .stride = shape->k }
    };
    size_t count = (size_t)shape->n * shape->k,
           scales = ((size_t)shape->n / 128 + 1) * (shape->k / 128 + 1);
    data.w.data = aligned(count * 2);
    data.w.scales = aligned(scales * sizeof(float));
    data.w.scale_stride = shape->k / 128 + 1;
    data.x.data = aligned((size_t)shape->m * shape->k * sizeof(float));
    data.out.data = aligned((size_t)shape->m * shape->n * sizeof(float));
    for (size_t i = 0; i < count; i++) {
        float value = pseudo_random((uint32_t)i);
        if (dtype == DTYPE_BF16)
            ((uint16_t *)data.w.data)[i] = bf16_from_f32(value);
        else
            ((uint8_t *)data.w.data)[i] = e4m3_from_f32(value * 400);
    }
    for (size_t i = 0; i < scales; i++) data.w.scales[i] = 0.002F;
    for (size_t i = 0; i < (size_t)shape->m * shape->k; i++)
        ((float *)data.x.data)[i] = pseudo_random((uint32_t)i + 77);
    if (ops->prepare_size(&data.w, &data.packed_bytes) != 0 || data.packed_bytes == 0) return data;
    size_t copies = ROTATION_BYTES / data.packed_bytes + 1;
    data.copy_count = copies > COPIES_MAX ? COPIES_MAX : (uint32_t)copies;
    for (uint32_t i = 0; i < data.copy_count; i++) {
        data.copies[i] = aligned(data.packed_bytes);
        if (i == 0 && ops->prepare(&data.w, data.copies[0]) != 0) exit(1);
        if (i > 0) memcpy(data.copies[i], data.copies[0], data.packed_bytes);
    }
    return data;
}

static inline void rate_data_free(rate_data_t *data)
{
    for (uint32_t i = 0; i < data->copy_count; i++) free(data->copies[i]);
    free(data->w.data);
    free(data->w.scales);
    free(data->x.data);
    free(data->out.data);
}

static inline int compare_seconds(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

enum { SAMPLES = 9 };

/* Seconds of one product.  Roofs are the best of a few tries, so shares of them are the best's; the
 * median says how much neighbours take. */
typedef struct {
    double best, median;
} rate_time_t;

static inline rate_time_t time_of_samples(double *samples)
{
    qsort(samples, SAMPLES, sizeof *samples, compare_seconds);
    return (rate_time_t){ .best = samples[0], .median = samples[SAMPLES / 2] };
}

/* Each sample lasts at least 4 ms. */
static inline rate_time_t time_gemm(const ops_t *ops, queue_t *q, rate_data_t *data)
{
    double samples[SAMPLES];
    uint32_t turn = 0, repeats = 1;
    for (int i = -2; i < SAMPLES; i++) {
        double begin = roof_seconds();
        for (uint32_t r = 0; r < repeats; r++) {
            if (data->copy_count) data->w.packed = data->copies[turn++ % data->copy_count];
            if (ops->gemm(q, &data->out, &data->x, &data->w) != 0) exit(1);
        }
        double seconds = (roof_seconds() - begin) / repeats;
        if (i < 0)
            repeats = seconds < 0.004 ? (uint32_t)(0.004 / seconds) + 1 : 1;
        else
            samples[i] = seconds;
    }
    return time_of_samples(samples);
}

/* OpenBLAS on F32 weights of the same shape, rotating alike; 0 where it is not linked in. */
static inline rate_time_t time_openblas(const rate_shape_t *shape)
{
#ifdef HAVE_OPENBLAS
    size_t count = (size_t)shape->n * shape->k,
           copies = ROTATION_BYTES / (count * sizeof(float)) + 1;
    float *w = aligned(copies * count * sizeof *w),
          *x = aligned((size_t)shape->m * shape->k * sizeof *x);
    float *out = aligned((size_t)shape->m * shape->n * sizeof *out);
    for (size_t i = 0; i < copies * count; i++) w[i] = 0.5F;
    for (size_t i = 0; i < (size_t)shape->m * shape->k; i++) x[i] = 0.25F;
    double samples[SAMPLES];
    uint32_t repeats = 1;
    size_t turn = 0;
    for (int i = -2; i < SAMPLES; i++) {
        double begin = roof_seconds();
        for (uint32_t r = 0; r < repeats; r++)
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)shape->m,
                        (blasint)shape->n, (blasint)shape->k, 1.0F, x, (blasint)shape->k,
                        w + turn++ % copies * count, (blasint)shape->k, 0.0F, out,
                        (blasint)shape->n);
        double seconds = (roof_seconds() - begin) / repeats;
        if (i < 0)
            repeats = seconds < 0.004 ? (uint32_t)(0.004 / seconds) + 1 : 1;
        else
            samples[i] = seconds;
    }
    free(w);
    free(x);
    free(out);
    return time_of_samples(samples);
#else
    (void)shape;
    return (rate_time_t){ 0 };
#endif
}

/* One table, all shapes: the share of the roof is the useful work's of the nearer one: arithmetic,
 * measured beside each figure because clocks and neighbours change, or reading the packed weights.
 * `issued` is the share of arithmetic that the products of the loop take: AMX multiplies both parts
 * of x. */
static inline void print_rates(const ops_t *ops, double read_bytes)
{
    static const rate_shape_t shapes[] = {
        { 1, 1536, 2048 }, { 8, 1536, 2048 }, { 64, 1536, 2048 }, { 512, 1536, 2048 },
        { 1, 7168, 2048 }, { 8, 7168, 2048 }, { 64, 7168, 2048 }, { 512, 7168, 2048 },
        { 1, 256, 768 },   { 8, 256, 768 },   { 64, 256, 768 },   { 512, 256, 768 }
    };
    queue_t *q = queue_new_cpu((size_t)8 << 20, 1);
    double products = strcmp(ops->name, "amx") == 0 ? 2 : 1;
    printf("%s: roof %.1f GB/s read; %.0f products issued for a useful one\n", ops->name,
           read_bytes * 1e-9, products);
    printf("%-12s %5s %5s %5s %6s %9s %9s %8s %8s %7s %8s %7s %9s %7s\n", "table", "M", "N", "K",
           "dtype", "us", "median us", "GFLOP/s", "roof", "issued", "GB/s", "of roof", "OpenBLAS",
           "speedup");
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        double openblas = time_openblas(&shapes[i]).best;
        for (dtype_t dtype = DTYPE_BF16; dtype <= DTYPE_F8E4M3; dtype++) {
            rate_data_t data = rate_data_new(ops, &shapes[i], dtype);
            double operations = roof_operations(ops->name), bytes = (double)data.packed_bytes;
            rate_time_t time = time_gemm(ops, q, &data);
            double work = 2.0 * shapes[i].m * shapes[i].n * shapes[i].k;
            double floor = work / operations, read = bytes / read_bytes;
            printf(
                "%-12s %5u %5u %5u %6s %9.1f %9.1f %8.1f %8.1f %6.0f%% %8.1f %6.0f%% %9.1f %7.2f\n",
                ops->name, shapes[i].m, shapes[i].n, shapes[i].k,
                dtype == DTYPE_BF16 ? "bf16" : "fp8", time.best * 1e6, time.median * 1e6,
                work / time.best * 1e-9, operations * 1e-9, 100 * products * floor / time.best,
                bytes / time.best * 1e-9, 100 * (floor > read ? floor : read) / time.best,
                openblas * 1e6, openblas / time.best);
            rate_data_free(&data);
        }
    }
    queue_destroy(&q);
}

/* Every supported fast table. */
static inline void print_all_rates(const char *only)
{
    char *buffer = aligned(ROTATION_BYTES);
    memset(buffer, 1, ROTATION_BYTES);
    double read_bytes = roof_read_bytes(buffer, ROTATION_BYTES);
    free(buffer);
    for (size_t i = 1; i < ops_cpu_choice_count; i++) {
        const ops_t *ops = ops_cpu_choices[i].ops;
        if (!ops_cpu_choices[i].is_supported() || (only && strcmp(only, ops->name) != 0)) continue;
        print_rates(ops, read_bytes);
    }
}

#endif
