/* kernels/cuda/fp8_gemm_few.h - how a product of few rows is cut into tiles: between the host's
 * choice (fp8_gemm_few.cu) and the kernels (fp8_gemm_few.cuh, one file of inst/ each). */
#ifndef KERNELS_CUDA_FP8_GEMM_FEW_H
#define KERNELS_CUDA_FP8_GEMM_FEW_H

#include "queue.cuh"

#include <cuda.h>

enum {
    FEW_GROUPS_MAX = 512,
    FEW_SHARED_MAX = 227 * 1024,
    FEW_SKEW = 4, /* rows of scales copied beyond those of a tile of groups */
};

struct few_arguments_t {
    CUtensorMap x, x_scales, w;
    const float *w_scales;
    void *out;
    const uint32_t *first, *rows; /* of groups; first NULL: dense, all_rows rows */
    size_t out_stride;
    uint32_t group_count, all_rows;
    uint32_t weight_rows, k_blocks; /* of one group */
    uint32_t w_scale_rows, w_scale_stride;
    uint32_t cluster_tokens, cluster_weights;
    uint32_t w_slots, x_slots;
    uint32_t x_scale_rows; /* of one copy of scales of x */
    uint32_t x_box;        /* rows of one copy of x; divides 64 */
    bool is_f32;
};

struct few_plan_t;

/* An instantiation: its tile, and what launches it. */
struct few_kernel_t {
    int (*launch)(queue_t *q, const few_arguments_t *arguments, const few_plan_t *plan);
    uint32_t tokens, weights, depth; /* depth: blocks of 128 k in a slot of a ring */
};

/* A kernel and what it takes at run time; none of it changes a bit of the result. */
struct few_plan_t {
    const few_kernel_t *kernel;
    uint32_t cluster_tokens, cluster_weights;
    uint32_t w_slots, x_slots; /* of the rings */
    uint32_t blocks_per_sm;
};

/* The product by a given plan; fp8_gemm_few with a choice of one. */
int fp8_gemm_few_by(const few_plan_t *plan, queue_t *q, const tensor_t *out, const tensor_t *x,
                    const tensor_t *w, const groups_t *groups);

/* All plans that fp8_gemm_few chooses from; fits: whether one can do a product of k columns. */
uint32_t few_plan_count(void);
const few_plan_t *few_plan_at(uint32_t index);
bool few_plan_fits(const few_plan_t *plan, uint32_t k);

/* Named by warpgroups of 64 tokens, warpgroups side by side along the weights, weights, depth. */
extern const few_kernel_t few_kernel_1_1_16_4, few_kernel_1_1_32_4, few_kernel_1_1_56_4,
    few_kernel_1_1_64_1, few_kernel_1_1_64_4, few_kernel_1_2_128_2, few_kernel_2_1_56_2,
    few_kernel_2_1_64_1, few_kernel_2_1_64_2;

#endif
