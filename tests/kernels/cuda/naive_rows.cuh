/* tests/kernels/cuda/naive_rows.cuh - the memory-bound ops in the plainest form, a thread per value
 * and sums in double, and how their results are compared on the device at full size. */
#ifndef TESTS_KERNELS_CUDA_NAIVE_ROWS_CUH
#define TESTS_KERNELS_CUDA_NAIVE_ROWS_CUH

#include "harness.cuh"

#include <math.h>

/* ---- values ---- */

__device__ inline float naive_value(const tensor_t &x, uint32_t row, uint32_t col)
{
    size_t at = (size_t)row * x.stride + col;
    if (x.dtype == DTYPE_F32) return ((const float *)x.data)[at];
    if (x.dtype == DTYPE_BF16) return __bfloat162float(((const __nv_bfloat16 *)x.data)[at]);
    return (float)((const __nv_fp8_e4m3 *)x.data)[at] *
           x.scales[(size_t)(col / 128) * x.scale_stride + row];
}

__device__ inline void naive_round(const tensor_t &x, uint32_t row, uint32_t col, float value)
{
    size_t at = (size_t)row * x.stride + col;
    if (x.dtype == DTYPE_F32) ((float *)x.data)[at] = value;
    if (x.dtype == DTYPE_BF16) ((__nv_bfloat16 *)x.data)[at] = __float2bfloat16(value);
}

/* ---- what outputs should be, as F32 [rows][cols]; a thread per value ---- */

struct naive_t {
    float *wanted;
    uint32_t rows, cols;
};

#define NAIVE_INDEX(self)                                                                          \
    size_t at = blockIdx.x * (size_t)blockDim.x + threadIdx.x;                                     \
    if (at >= (size_t)(self).rows * (self).cols) return;                                           \
    uint32_t row = (uint32_t)(at / (self).cols), col = (uint32_t)(at % (self).cols)

#define NAIVE_LAUNCH(self) ((unsigned)(((size_t)(self).rows * (self).cols + 255) / 256 + 1), 256)

static __global__ void naive_factors(double *factors, tensor_t x, float eps)
{
    uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= x.rows) return;
    double sum = 0;
    for (uint32_t col = 0; col < x.cols; col++) {
        double value = naive_value(x, row, col);
        sum += value * value;
    }
    factors[row] = 1 / sqrt(sum / x.cols + (double)eps);
}

static __global__ void naive_norm(naive_t self, const double *factors, tensor_t x, tensor_t weight)
{
    NAIVE_INDEX(self);
    self.wanted[at] =
        (float)(naive_value(x, row, col) * factors[row] * naive_value(weight, 0, col));
}

static __global__ void naive_add(naive_t self, tensor_t residual, tensor_t x)
{
    NAIVE_INDEX(self);
    naive_round(residual, row, col, naive_value(residual, row, col) + naive_value(x, row, col));
}

static __global__ void naive_silu(naive_t self, tensor_t gate_up)
{
    NAIVE_INDEX(self);
    double gate = naive_value(gate_up, row, col);
    self.wanted[at] = (float)(gate / (1 + exp(-gate)) * naive_value(gate_up, row, self.cols + col));
}

/* index NULL: the same row.  What is not there is NaN; NO_ROW in a partial gather is infinity,
 * which `compare_values` takes as: not written. */
static __global__ void naive_gather(naive_t self, tensor_t x, const uint32_t *index,
                                    bool is_partial)
{
    NAIVE_INDEX(self);
    uint32_t from = index ? index[row] : row;
    self.wanted[at] = from < x.rows ? naive_value(x, from, col) : NAN;
    if (is_partial && from == NO_ROW) self.wanted[at] = INFINITY;
}

static __global__ void naive_combine(naive_t self, tensor_t out, tensor_t rows,
                                     const uint32_t *index, const float *weights, uint32_t top_k)
{
    NAIVE_INDEX(self);
    float sum = naive_value(out, row, col);
    for (uint32_t k = 0; k < top_k; k++) {
        uint32_t from = index[row * top_k + k];
        if (from == NO_ROW) continue;
        float value = from < rows.rows ? naive_value(rows, from, col) : NAN;
        sum = __fadd_rn(sum, __fmul_rn(weights[row * top_k + k], value));
    }
    self.wanted[at] = sum;
}

__device__ inline float naive_turned(const tensor_t &x, uint32_t row, uint32_t col, uint32_t pair,
                                     const float *angles)
{
    uint32_t even = col - (pair & 1);
    double real = naive_value(x, row, even), imaginary = naive_value(x, row, even + 1);
    double cosine = angles[pair & ~1u], sine = angles[pair | 1];
    return (float)(pair & 1 ? real * sine + imaginary * cosine : real * cosine - imaginary * sine);
}

static __global__ void naive_rope(naive_t self, tensor_t x, uint32_t heads, uint32_t head_stride,
                                  uint32_t offset, uint32_t dim, const float *table,
                                  const uint32_t *positions)
{
    NAIVE_INDEX(self);
    uint32_t head = col / head_stride, in_head = col % head_stride;
    bool is_turned = head < heads && in_head >= offset && in_head < offset + dim;
    self.wanted[at] = is_turned ? naive_turned(x, row, col, in_head - offset,
                                               table + (size_t)positions[row] * dim)
                                : naive_value(x, row, col);
}

/* The cache row that kv_write should have written for each row. */
static __global__ void naive_kv(naive_t self, const double *factors, tensor_t kv, tensor_t weight,
                                const float *table, const uint32_t *positions)
{
    NAIVE_INDEX(self);
    uint32_t latent = weight.cols, rope = kv.cols - latent;
    if (col < latent)
        self.wanted[at] =
            (float)(naive_value(kv, row, col) * factors[row] * naive_value(weight, 0, col));
    else
        self.wanted[at] =
            naive_turned(kv, row, col, col - latent, table + (size_t)positions[row] * rope);
}

/* Cache rows of all tokens that the sequences have, first_key on, in one tensor; is_new: only those
 * of their rows of this step, first_row on. */
static __global__ void naive_cache_rows(tensor_t out, cache_t cache, const sequence_t *sequences,
                                        bool is_new)
{
    sequence_t own = sequences[blockIdx.x];
    uint32_t from = is_new ? own.first_position : 0, end = own.first_position + own.rows;
    for (uint32_t position = from; position < end; position++)
        for (uint32_t col = threadIdx.x; col < out.cols; col += blockDim.x) {
            size_t token = (size_t)cache.layer * cache.block_tokens + position % cache.block_tokens;
            size_t at = own.blocks[position / cache.block_tokens] * cache.block_stride +
                        token * (cache.latent + cache.rope) + col;
            uint32_t row = is_new ? own.first_row + position - from : own.first_key + position;
            ((__nv_bfloat16 *)out.data)[(size_t)row * out.stride + col] =
                ((const __nv_bfloat16 *)cache.data)[at];
        }
}

/* ---- comparing on the device ---- */

struct verdict_t {
    uint32_t bad, touched; /* values too far off; bytes written that should not be */
    float worst;           /* the largest error, in units of what is allowed */
};

struct tolerance_t {
    float relative, absolute; /* of the value before it is rounded to the output's dtype */
};

/* Half the distance of neighbouring numbers of `bits` explicit mantissa bits at value. */
__device__ inline double half_step(double value, int bits, int least_exponent)
{
    int exponent = value == 0 ? least_exponent : ilogb(value);
    return ldexp(1.0, (exponent < least_exponent ? least_exponent : exponent) - bits - 1);
}

__device__ inline double allowed_error(const tensor_t &out, double wanted, double scale,
                                       tolerance_t tolerance)
{
    double exact = tolerance.relative * fabs(wanted) + tolerance.absolute + 1e-37;
    if (out.dtype == DTYPE_BF16) return exact + half_step(wanted, 7, -126);
    if (out.dtype == DTYPE_F8E4M3) return exact + scale * half_step(wanted / scale, 3, -6);
    return exact;
}

__device__ inline bool is_untouched(const tensor_t &out, uint32_t row, uint32_t col)
{
    uint32_t size = out.dtype == DTYPE_F32 ? 4 : out.dtype == DTYPE_BF16 ? 2 : 1;
    const uint8_t *bytes = (const uint8_t *)out.data + ((size_t)row * out.stride + col) * size;
    for (uint32_t i = 0; i < size; i++)
        if (bytes[i] != 0xff) return false;
    return true;
}

/* The scale of a block must be its amax's. */
static __global__ void compare_scales(verdict_t *verdict, tensor_t out, const float *wanted,
                                      tolerance_t tolerance)
{
    uint32_t row = blockIdx.x, block = threadIdx.x;
    if (block >= (out.cols + 127) / 128) return;
    float amax = 1e-4f;
    const float *values = wanted + (size_t)row * out.cols;
    for (uint32_t col = block * 128; col < out.cols && col < block * 128 + 128; col++)
        amax = fmaxf(amax, fabsf(values[col]));
    float found = out.scales[(size_t)block * out.scale_stride + row], scale = amax / 448.0f;
    if (isinf(amax)) return;
    float error = fabsf(found - scale) / scale;
    if (!(error <= tolerance.relative + tolerance.absolute / amax + 1e-7f))
        atomicAdd(&verdict->bad, 1);
}

static __global__ void compare_values(verdict_t *verdict, tensor_t out, const float *wanted,
                                      tolerance_t tolerance)
{
    size_t at = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (at >= (size_t)out.rows * out.stride) return;
    uint32_t row = (uint32_t)(at / out.stride), col = (uint32_t)(at % out.stride);
    float value = col < out.cols ? wanted[(size_t)row * out.cols + col] : INFINITY;
    if (isinf(value)) {
        if (!is_untouched(out, row, col)) atomicAdd(&verdict->touched, 1);
        return;
    }
    float found = naive_value(out, row, col);
    if (isnan(value)) {
        if (!isnan(found)) atomicAdd(&verdict->bad, 1);
        return;
    }
    double scale =
        out.dtype == DTYPE_F8E4M3 ? out.scales[(size_t)(col / 128) * out.scale_stride + row] : 1;
    double error = fabs((double)found - value) / allowed_error(out, value, scale, tolerance);
    if (!(error <= 1)) atomicAdd(&verdict->bad, 1);
    if (error > 0) atomicMax((int *)&verdict->worst, __float_as_int((float)error));
}

/* Every value of out is the nearest to what is wanted, as far as the tolerance tells, and nothing
 * beside its columns was written. */
inline void expect_wanted(harness_t *self, const tensor_t *out, const naive_t *naive,
                          tolerance_t tolerance, const char *what)
{
    verdict_t *device = (verdict_t *)memory_new(sizeof *device), verdict;
    if (out->rows == 0) return;
    CUDA(cudaMemset(device, 0, sizeof *device));
    CUDA(cudaDeviceSynchronize());
    size_t count = (size_t)out->rows * out->stride;
    LAUNCH(compare_values, ((unsigned)((count + 255) / 256), 256), device, *out, naive->wanted,
           tolerance);
    if (out->dtype == DTYPE_F8E4M3)
        LAUNCH(compare_scales, (out->rows, (out->cols + 127) / 128), device, *out, naive->wanted,
               tolerance);
    CUDA(cudaGetLastError());
    memory_download(&verdict, device, sizeof verdict);
    char line[200];
    snprintf(line, sizeof line, "%s: %u values off, worst error", what, verdict.bad);
    expect(self, verdict.bad == 0, line, verdict.worst, 1);
    snprintf(line, sizeof line, "%s: values written that are not its own", what);
    expect(self, verdict.touched == 0, line, verdict.touched, 0);
}

inline naive_t naive_new(uint32_t rows, uint32_t cols)
{
    return naive_t{ (float *)memory_new((size_t)rows * cols * sizeof(float)), rows, cols };
}

/* ---- tensors ---- */

/* Rows further apart than they are long, by at least stride - cols; all NaN. */
inline tensor_t strided_new(dtype_t dtype, uint32_t rows, uint32_t cols, uint32_t stride)
{
    tensor_t x = tensor_new(dtype, rows, (stride + 15) / 16 * 16, false);
    x.cols = cols;
    return x;
}

inline tensor_t strided_random(harness_t *self, dtype_t dtype, uint32_t rows, uint32_t cols,
                               uint32_t stride)
{
    tensor_t x = tensor_random(self, dtype, rows, (stride + 15) / 16 * 16, false);
    x.cols = cols;
    return x;
}

inline size_t bytes_of_value(dtype_t dtype)
{
    return dtype == DTYPE_F32 ? 4 : dtype == DTYPE_BF16 ? 2 : 1;
}

/* Rows first .. first + rows - 1. */
inline tensor_t rows_of(const tensor_t *x, uint32_t first, uint32_t rows)
{
    tensor_t part = *x;
    part.data = (char *)x->data + (size_t)first * x->stride * bytes_of_value(x->dtype);
    part.rows = rows;
    if (x->scales) part.scales = x->scales + first;
    return part;
}

/* A copy on the device, gaps included. */
inline tensor_t tensor_copy(const tensor_t *x)
{
    tensor_t copy = *x;
    size_t bytes = (size_t)x->rows * x->stride * bytes_of_value(x->dtype);
    copy.data = memory_new(bytes);
    CUDA(cudaMemcpy(copy.data, x->data, bytes, cudaMemcpyDeviceToDevice));
    return copy;
}

/* The bits of two tensors on the device are equal, scales included. */
inline bool is_same_on_device(const tensor_t *x, const tensor_t *y)
{
    tensor_t a = tensor_to_host(x, false), b = tensor_to_host(y, false);
    bool is_same = is_same_bits(&a, &b);
    if (x->dtype == DTYPE_F8E4M3)
        for (size_t i = 0; i < (size_t)x->rows * a.scale_stride; i++)
            is_same &= a.scales[i] == b.scales[i];
    tensor_host_free(&a);
    tensor_host_free(&b);
    return is_same;
}

/* A number's place among those of its dtype, so that neighbours differ by one. */
inline int64_t place_of(const tensor_t *x, uint32_t row, uint32_t col)
{
    size_t at = (size_t)row * x->stride + col, size = bytes_of_value(x->dtype);
    uint32_t bits = 0;
    for (size_t i = 0; i < size; i++)
        bits |= (uint32_t)((const uint8_t *)x->data)[at * size + i] << (8 * i);
    uint32_t sign = 1u << (8 * size - 1);
    return bits & sign ? -(int64_t)(bits ^ sign) : (int64_t)bits;
}

/* Against the judge's result in host memory: the same number or its neighbour, and nearly always
 * the same (F32: within `steps`); rows that the judge did not write are not asked for. */
inline void expect_judged(harness_t *self, const tensor_t *out, const tensor_t *judged,
                          int64_t steps, const char *what)
{
    tensor_t found = tensor_to_host(out, false);
    uint32_t different = 0, limit = out->rows * out->cols / 100 + 1;
    int64_t worst = 0;
    for (uint32_t r = 0; r < out->rows; r++)
        for (uint32_t c = 0; c < out->cols; c++) {
            int64_t distance = llabs(place_of(&found, r, c) - place_of(judged, r, c));
            different += distance != 0;
            if (distance > worst) worst = distance;
        }
    char line[200];
    snprintf(line, sizeof line, "%s: steps from the judge's", what);
    expect(self, worst <= steps, line, (double)worst, (double)steps);
    snprintf(line, sizeof line, "%s: values unlike the judge's", what);
    if (out->dtype != DTYPE_F32) expect(self, different <= limit, line, different, limit);
    for (size_t i = 0; out->dtype == DTYPE_F8E4M3 && i < (size_t)out->rows * found.scale_stride;
         i++)
        if (!(fabsf(found.scales[i] - judged->scales[i]) <= 2e-6f * judged->scales[i]))
            expect(self, false, "a scale unlike the judge's", found.scales[i], judged->scales[i]);
    tensor_host_free(&found);
}

#endif
