/* kernels/cuda/gate.cu - cuda_gate: checks, sums of logits, the choice. */
#include "gate.cuh"
#include "gate_choose.cuh"
#include "ops_cuda.h"
#include "queue.cuh"
#include "tensor_map.cuh"

enum {
    FEW_ROWS_MAX = 896, /* beyond, 16 sums per logit through memory cost more than they win */
    CLUSTER = 2,        /* four do not fit every GPC without a rest: two waves */
    EXPERTS_MAX = 512,
};

static uint32_t divide_up(uint32_t count, uint32_t by)
{
    return (count + by - 1) / by;
}

static int map_rows(CUtensorMap *map, const tensor_t *x, uint32_t box_rows)
{
    const tensor_view_t view = { x->data, x->dtype, x->cols,  x->rows, 0,  x->stride,
                                 0,       GATE_K,   box_rows, 0,       128 };
    return tensor_map_init(map, &view);
}

static bool is_supported(const tensor_t *x, const tensor_t *w, const gate_t *gate)
{
    if (gate->experts == 0 || gate->experts > EXPERTS_MAX || gate->groups == 0 ||
        gate->experts % gate->groups)
        return false;
    if (gate->top_groups == 0 || gate->top_groups > gate->groups ||
        (gate->top_groups < gate->groups && gate->groups > GATE_GROUPS_MAX))
        return false;
    if (gate->top_k == 0 || gate->top_k > GATE_TOP_MAX ||
        gate->top_k > gate->experts / gate->groups * gate->top_groups)
        return false;
    for (const tensor_t *tensor : { x, w })
        if (tensor->dtype != DTYPE_BF16 || (uintptr_t)tensor->data % 16 || tensor->stride % 8)
            return false;
    return w->rows == gate->experts && x->cols == w->cols && x->cols > 0;
}

static int launch_few(queue_t *q, const tensor_t *x, const tensor_t *w, const gate_logits_t *args)
{
    CUtensorMap x_map, w_map;
    int status = map_rows(&x_map, x, GATE_ROWS);
    if (status == 0) status = map_rows(&w_map, w, GATE_FEW_EXPERTS);
    if (status == 0) status = allow_shared(gate_few_kernel, GATE_FEW_SHARED);
    if (status != 0) return status;
    dim3 grid(divide_up(args->stride, GATE_FEW_EXPERTS),
              divide_up(args->blocks, args->range_blocks), divide_up(args->tokens, GATE_ROWS));
    launch_t launch;
    launch_init(&launch, q, grid, dim3(GATE_FEW_THREADS), GATE_FEW_SHARED, 0, true);
    cudaLaunchKernelEx(&launch.config, gate_few_kernel, x_map, w_map, *args);
    return launch_status();
}

static int launch_many(queue_t *q, const tensor_t *x, const tensor_t *w, const gate_logits_t *args)
{
    CUtensorMap x_map, w_map;
    int status = map_rows(&x_map, x, GATE_ROWS);
    if (status == 0) status = map_rows(&w_map, w, GATE_MANY_EXPERTS / CLUSTER);
    if (status == 0) status = allow_shared(gate_many_kernel<CLUSTER>, GATE_MANY_SHARED);
    if (status != 0) return status;
    dim3 grid(divide_up(args->tokens, GATE_ROWS * CLUSTER) * CLUSTER, 2,
              divide_up(args->stride, GATE_MANY_EXPERTS));
    launch_t launch;
    launch_init(&launch, q, grid, dim3(GATE_MANY_THREADS), GATE_MANY_SHARED, CLUSTER, true);
    cudaLaunchKernelEx(&launch.config, gate_many_kernel<CLUSTER>, x_map, w_map, *args);
    return launch_status();
}

template <int count, int warps>
static int launch_choose(queue_t *q, const gate_choose_t *args, const gate_t *gate)
{
    uint32_t tokens = GATE_CHOOSE_THREADS / 32 / warps; /* of a block */
    launch_t launch;
    launch_init(&launch, q, dim3(divide_up(args->tokens, tokens)), dim3(GATE_CHOOSE_THREADS),
                tokens * args->parts * args->stride * sizeof(float), 0, true);
    cudaLaunchKernelEx(&launch.config, gate_choose_kernel<count, warps>, *args, *gate);
    return launch_status();
}

template <int warps> static int choose(queue_t *q, const gate_choose_t *args, const gate_t *gate)
{
    if (gate->experts <= 32) return launch_choose<1, warps>(q, args, gate);
    if (gate->experts <= 256) return launch_choose<8, warps>(q, args, gate);
    return launch_choose<16, warps>(q, args, gate);
}

extern "C" int cuda_gate(queue_t *q, uint32_t *ids, float *weights, const tensor_t *x,
                         const tensor_t *w, const float *bias, const gate_t *gate)
{
    if (!is_supported(x, w, gate)) return EINVAL;
    if (x->rows == 0) return 0;
    gate_logits_t logits = {};
    logits.sums = (float *)q->scratch;
    logits.tokens = x->rows;
    logits.stride = divide_up(gate->experts, 4) * 4;
    logits.blocks = divide_up(x->cols, GATE_K);
    logits.range_blocks = divide_up(logits.blocks, GATE_RANGES);
    uint32_t ranges = divide_up(logits.blocks, logits.range_blocks);
    logits.half_ranges = (ranges + 1) / 2;
    bool is_few = x->rows <= FEW_ROWS_MAX;
    logits.parts = is_few ? ranges : 2;
    if ((size_t)logits.parts * x->rows * logits.stride * sizeof(float) > q->scratch_bytes)
        return ENOMEM;
    int status = is_few ? launch_few(q, x, w, &logits) : launch_many(q, x, w, &logits);
    if (status != 0) return status;
    uint32_t lanes = 1;
    while (2 * lanes * gate->groups <= 32) lanes *= 2;
    gate_choose_t args = {};
    args.sums = logits.sums;
    args.parts = logits.parts;
    args.half = is_few ? logits.half_ranges : 1;
    args.stride = logits.stride;
    args.tokens = x->rows;
    args.bias = bias;
    args.ids = ids;
    args.weights = weights;
    args.group_size = gate->experts / gate->groups;
    args.group_lanes = lanes;
    return is_few ? choose<4>(q, &args, gate) : choose<1>(q, &args, gate);
}
