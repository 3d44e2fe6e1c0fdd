/* tests/kernels/cuda/emulated/products.cc - what a warpgroup's product does when it happens. */
#include "copies.h"

#include <cuda_fp8.h>

#include <string.h>

namespace emulated
{

enum { K_BYTES = 32 }; /* of one product: 16 of BF16, 32 of FP8 */

/* K-major: 8 rows of 128 bytes are 1024, the next 8 follow at the operand's stride. */
static const char *operand_row(const char *shared, uint64_t operand, uint32_t row, uint32_t byte)
{
    uint32_t start = (uint32_t)(operand & 0x3fff) << 4, stride = (uint32_t)(operand >> 32 & 0x3fff)
                                                                 << 4;
    return shared + swizzle(start + row / 8 * stride + row % 8 * 128 + byte, 128);
}

/* N-major, BF16: rows are k, 64 n of one row of 128 bytes. */
static const char *operand_column(const char *shared, uint64_t operand, uint32_t n, uint32_t k)
{
    uint32_t start = (uint32_t)(operand & 0x3fff) << 4,
             lead = (uint32_t)(operand >> 16 & 0x3fff) << 4,
             stride = (uint32_t)(operand >> 32 & 0x3fff) << 4;
    return shared + swizzle(start + n / 64 * lead + k / 8 * stride + k % 8 * 128 + n % 64 * 2, 128);
}

static float bf16_value(const void *at)
{
    uint16_t bits;
    memcpy(&bits, at, 2);
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static float fp8_value(const void *at)
{
    static float values[256];
    if (values[1] == 0)
        for (int i = 0; i < 256; i++) {
            __nv_fp8_e4m3 code;
            code.__x = (__nv_fp8_storage_t)i;
            values[i] = (float)code;
        }
    return values[*(const uint8_t *)at];
}

/* x [rows][k] of an operand that lies K-major. */
static void gather_rows(const char *shared, uint64_t operand, uint32_t rows, bool is_fp8, float *x)
{
    uint32_t size = is_fp8 ? 1 : 2, depth = K_BYTES / size;
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t k = 0; k < depth; k++) {
            const char *at = operand_row(shared, operand, r, k * size);
            x[r * depth + k] = is_fp8 ? fp8_value(at) : bf16_value(at);
        }
}

/* Rows and columns that a thread's register i belongs to: wgmma.cuh. */
static uint32_t row_of(uint32_t t, uint32_t i)
{
    return 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2);
}

static uint32_t column_of(uint32_t t, uint32_t i)
{
    return 8 * (i / 4) + 2 * (t % 4) + i % 2;
}

static void gather_registers(const product_t *product, float *x)
{
    for (uint32_t t = 0; t < WARPGROUP; t++)
        for (uint32_t i = 0; i < 8; i++) { /* words 0, 1: rows r and r + 8; 2, 3: 8 columns on */
            uint16_t half = (uint16_t)(product->a_registers[t][i / 2] >> 16 * (i % 2));
            x[row_of(t, i) * 16 + column_of(t, i)] = bf16_value(&half);
        }
}

void product_happen(block_t *block, const product_t *product)
{
    static float a[64 * 32], b[256 * 32];
    uint32_t depth = product->is_fp8 ? 32 : 16;
    if (product->has_registers)
        gather_registers(product, a);
    else
        gather_rows(block->async, product->a, 64, product->is_fp8, a);
    if (!product->is_b_mn)
        gather_rows(block->async, product->b, product->n, product->is_fp8, b);
    else
        for (uint32_t n = 0; n < product->n; n++)
            for (uint32_t k = 0; k < 16; k++)
                b[n * 16 + k] = bf16_value(operand_column(block->async, product->b, n, k));
    for (uint32_t t = 0; t < WARPGROUP; t++)
        for (uint32_t i = 0; i < product->n / 2; i++) {
            const float *x = a + row_of(t, i) * depth, *y = b + column_of(t, i) * depth;
            float sum = 0;
            for (uint32_t k = 0; k < depth; k++) sum += x[k] * y[k];
            product->sums[t][i] = product->is_added ? product->sums[t][i] + sum : sum;
        }
}

} // namespace emulated
