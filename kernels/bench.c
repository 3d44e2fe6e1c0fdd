/* kernels/bench.c - kernels_bench: time, GB/s, GFLOP/s and share of the roof of every op, for a
 * table chosen by name.
 *
 *   kernels_bench [TABLE] [THREADS] [ROWS]                 by default: auto 1 64
 *   kernels_bench cuda [--table FILE] [FAMILY...]          on a Hopper GPU, DeepSeek-V3's own
 * shapes
 *
 * Shapes are DeepSeek-V3's per layer, with fewer heads and experts, so that a laptop has room for
 * them.  The roof for bytes is memory: shares above 100 % come out of a cache.
 */
#include "cpu/number.h"
#include "cpu/roof.h"
#include "ops.h"

#ifdef WITH_CUDA
#include "../tests/kernels/cuda/families.h"
#endif

#include <stdio.h>
#include <stdlib.h>

enum {
    HIDDEN = 2048,
    INNER = 1408,
    EXPERTS = 64,
    TOP_K = 8,
    CONTEXT = 1024,
    BLOCK_TOKENS = 64,
    ROWS_MAX = 4096,
    SAMPLES = 7,
    READ_BYTES = 192 << 20,
};

static const heads_t heads = {
    .heads = 16, .nope = 128, .rope = 64, .value = 128, .latent = 512, .scale = 0.1352F
};

typedef struct {
    const ops_t *ops;
    queue_t *q;
    uint32_t rows;
    tensor_t hidden, residual, norm, query, absorbed, latents, values, kv, k_rope, kv_latent, kv_in,
        gate_up, inner;
    tensor_t w_square, w_kv_b, w_gate, w_experts[EXPERTS], table, routed, routed_out;
    cache_t cache;
    sequence_t *sequences;
    uint32_t *blocks, *positions, *ids, *index, *chosen, *offsets;
    float *rope, *weights, *bias;
    double operations, read_bytes; /* the roofs, per second */
} bench_t;

typedef struct {
    const char *name;
    int (*call)(bench_t *bench);
    double bytes, operations;
} bench_case_t;

static void *fill(size_t bytes, int byte)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) {
        fprintf(stderr, "kernels_bench: not enough memory for %zu bytes\n", bytes);
        exit(1);
    }
    memset(memory, byte, bytes);
    return memory;
}

static tensor_t new_tensor(dtype_t dtype, uint32_t rows, uint32_t cols)
{
    tensor_t x = { .dtype = dtype, .rows = rows, .cols = cols, .stride = cols };
    size_t count = (size_t)rows * cols;
    x.data = fill(count * dtype_bytes(dtype), 0);
    for (size_t i = 0; i < count; i++) {
        float value = (float)((i * 2654435761U >> 7) % 2001) * 0.001F - 1.0F;
        if (dtype == DTYPE_F32) ((float *)x.data)[i] = value;
        if (dtype == DTYPE_BF16) ((uint16_t *)x.data)[i] = bf16_from_f32(value);
        if (dtype == DTYPE_F8E4M3) ((uint8_t *)x.data)[i] = e4m3_from_f32(value);
    }
    if (dtype != DTYPE_F8E4M3) return x;
    x.scale_stride = (cols + BLOCK_COLS - 1) / BLOCK_COLS;
    size_t scales = (size_t)((rows + BLOCK_COLS - 1) / BLOCK_COLS) * x.scale_stride;
    x.scales = fill(scales * sizeof(float), 0);
    for (size_t i = 0; i < scales; i++) x.scales[i] = 0.02F;
    return x;
}

static tensor_t new_weights(const ops_t *ops, dtype_t dtype, uint32_t rows, uint32_t cols)
{
    tensor_t w = new_tensor(dtype, rows, cols);
    size_t bytes = 0;
    if (ops->prepare_size(&w, &bytes) != 0) exit(1);
    if (bytes == 0) return w;
    void *packed = fill(bytes, 0);
    if (ops->prepare(&w, packed) != 0) exit(1);
    w.packed = packed;
    return w;
}

static void make_tensors(bench_t *self)
{
    uint32_t rows = self->rows, h = heads.heads;
    self->hidden = new_tensor(DTYPE_F32, rows, HIDDEN);
    self->residual = new_tensor(DTYPE_F32, rows, HIDDEN);
    self->norm = new_tensor(DTYPE_BF16, 1, HIDDEN);
    self->query = new_tensor(DTYPE_F32, rows, h * (heads.nope + heads.rope));
    self->absorbed = new_tensor(DTYPE_F32, rows, h * (heads.latent + heads.rope));
    self->latents = new_tensor(DTYPE_F32, rows, h * heads.latent);
    self->values = new_tensor(DTYPE_F32, rows, h * heads.value);
    self->kv = new_tensor(DTYPE_F32, CONTEXT + rows, h * (heads.nope + heads.value));
    self->k_rope = new_tensor(DTYPE_F32, CONTEXT + rows, heads.rope);
    self->kv_latent = new_tensor(DTYPE_F32, CONTEXT, heads.latent);
    self->kv_in = new_tensor(DTYPE_F32, rows, heads.latent + heads.rope);
    self->gate_up = new_tensor(DTYPE_F32, rows, 2 * INNER);
    self->inner = new_tensor(DTYPE_F32, rows, INNER);
    self->routed = new_tensor(DTYPE_F32, rows * TOP_K, HIDDEN);
    self->routed_out = new_tensor(DTYPE_F32, rows * TOP_K, 2 * INNER);
    self->w_square = new_weights(self->ops, DTYPE_F8E4M3, HIDDEN, HIDDEN);
    self->w_kv_b =
        new_weights(self->ops, DTYPE_F8E4M3, h * (heads.nope + heads.value), heads.latent);
    self->w_gate = new_tensor(DTYPE_BF16, EXPERTS, HIDDEN);
    self->table = new_tensor(DTYPE_BF16, 4096, HIDDEN);
    for (uint32_t e = 0; e < EXPERTS; e++)
        self->w_experts[e] = new_weights(self->ops, DTYPE_F8E4M3, 2 * INNER, HIDDEN);
}

/* Every row is a sequence of its own at the end of CONTEXT tokens; they share the same pages. */
static void make_cache(bench_t *self)
{
    uint32_t cols = heads.latent + heads.rope, pages = CONTEXT / BLOCK_TOKENS + 1;
    self->cache = (cache_t){ .dtype = DTYPE_BF16,
                             .layers = 1,
                             .block_tokens = BLOCK_TOKENS,
                             .latent = heads.latent,
                             .rope = heads.rope,
                             .block_stride = (size_t)BLOCK_TOKENS * cols };
    tensor_t pool = new_tensor(DTYPE_BF16, pages * BLOCK_TOKENS, cols);
    self->cache.data = pool.data;
    self->blocks = fill(pages * sizeof(uint32_t), 0);
    for (uint32_t i = 0; i < pages; i++) self->blocks[i] = i;
    self->sequences = fill(self->rows * sizeof *self->sequences, 0);
    self->positions = fill(self->rows * sizeof(uint32_t), 0);
    for (uint32_t t = 0; t < self->rows; t++) {
        self->positions[t] = CONTEXT - 1;
        self->sequences[t] = (sequence_t){
            .first_row = t, .rows = 1, .first_position = CONTEXT - 1, .blocks = self->blocks
        };
    }
    self->rope = fill((size_t)CONTEXT * heads.rope * sizeof(float), 0);
}

static void make_routes(bench_t *self)
{
    uint32_t routed = self->rows * TOP_K;
    self->ids = fill(self->rows * sizeof(uint32_t), 0);
    self->index = fill(routed * sizeof(uint32_t), 0);
    self->chosen = fill(routed * sizeof(uint32_t), 0);
    self->offsets = fill((EXPERTS + 1) * sizeof(uint32_t), 0);
    self->weights = fill(routed * sizeof(float), 0);
    self->bias = fill(EXPERTS * sizeof(float), 0);
    for (uint32_t i = 0; i < routed; i++) self->index[i] = i * 7 % self->rows;
    for (uint32_t e = 0; e <= EXPERTS; e++)
        self->offsets[e] = (uint32_t)((uint64_t)routed * e / EXPERTS);
}

/* clang-format off */
static int call_embed(bench_t *b) { return b->ops->embed(b->q, &b->hidden, &b->table, b->ids); }
static int call_rmsnorm(bench_t *b) { return b->ops->rmsnorm(b->q, &b->hidden, &b->residual, &b->norm, 1e-6F); }
static int call_add_rmsnorm(bench_t *b) { return b->ops->add_rmsnorm(b->q, &b->hidden, NULL, &b->residual, &b->hidden, &b->norm, 1e-6F); }
static int call_gemm(bench_t *b) { return b->ops->gemm(b->q, &b->residual, &b->hidden, &b->w_square); }
static int call_grouped_gemm(bench_t *b) { return b->ops->grouped_gemm(b->q, &b->routed_out, &b->routed, b->w_experts, &(groups_t){ .first = b->offsets, .count = EXPERTS }); }
static int call_rope(bench_t *b) { return b->ops->rope(b->q, &b->query, heads.heads, heads.nope + heads.rope, heads.nope, heads.rope, b->rope, b->positions); }
static int call_kv_write(bench_t *b) { tensor_t w = b->norm; w.cols = heads.latent; return b->ops->kv_write(b->q, &b->cache, &b->kv_in, &w, 1e-6F, b->rope, b->positions, b->sequences, b->rows); }
static int call_kv_gather(bench_t *b) { return b->ops->kv_gather(b->q, &b->kv_latent, &b->k_rope, &b->cache, &b->sequences[0], 1); }
static int call_mha_prefill(bench_t *b) { return b->ops->mha_prefill(b->q, &b->values, &b->query, &b->kv, &b->k_rope, &heads, &(sequence_t){ .rows = b->rows, .first_position = CONTEXT }, 1); }
static int call_absorb_query(bench_t *b) { return b->ops->absorb_query(b->q, &b->absorbed, &b->query, &b->w_kv_b, &heads); }
static int call_mla_decode(bench_t *b) { return b->ops->mla_decode(b->q, &b->latents, &b->absorbed, &b->cache, &heads, b->sequences, b->rows); }
static int call_absorb_value(bench_t *b) { return b->ops->absorb_value(b->q, &b->values, &b->latents, &b->w_kv_b, &heads); }
static int call_silu_mul(bench_t *b) { return b->ops->silu_mul(b->q, &b->inner, &b->gate_up); }
static int call_gather_rows(bench_t *b) { return b->ops->gather_rows(b->q, &b->routed, &b->hidden, b->index); }
static int call_combine(bench_t *b) { return b->ops->combine(b->q, &b->hidden, &b->routed, b->index, b->weights, TOP_K); }
/* clang-format on */

static int call_gate(bench_t *b)
{
    static const gate_t gate = { .experts = EXPERTS,
                                 .top_k = TOP_K,
                                 .groups = 8,
                                 .top_groups = 4,
                                 .is_normalised = 1,
                                 .scale = 2.5F };
    return b->ops->gate(b->q, b->chosen, b->weights, &b->hidden, &b->w_gate, b->bias, &gate);
}

static int compare_seconds(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* The median of a few samples of at least 3 ms each. */
static double time_case(bench_t *self, const bench_case_t *one)
{
    double samples[SAMPLES];
    uint32_t repeats = 1;
    for (int i = -2; i < SAMPLES; i++) {
        double begin = roof_seconds();
        for (uint32_t r = 0; r < repeats; r++)
            if (one->call(self) != 0) {
                fprintf(stderr, "kernels_bench: %s refused its arguments\n", one->name);
                exit(1);
            }
        double seconds = (roof_seconds() - begin) / repeats;
        if (i < 0)
            repeats = seconds < 0.003 ? (uint32_t)(0.003 / seconds) + 1 : 1;
        else
            samples[i] = seconds;
    }
    qsort(samples, SAMPLES, sizeof *samples, compare_seconds);
    return samples[SAMPLES / 2];
}

/* Bytes are those that must be read and written once; the roof is the nearer of reading them and
 * computing. */
static void run_cases(bench_t *self)
{
    double t = self->rows, h = heads.heads, cols = heads.latent + heads.rope,
           kv_b = h * 256 * heads.latent;
    double queries = h * (heads.nope + heads.rope), keys = CONTEXT + (t + 1) / 2;
    const bench_case_t cases[] = {
        { "embed", call_embed, t * HIDDEN * 6, 0 },
        { "rmsnorm", call_rmsnorm, t * HIDDEN * 8, t * HIDDEN * 4 },
        { "add_rmsnorm", call_add_rmsnorm, t * HIDDEN * 16, t * HIDDEN * 5 },
        { "gemm", call_gemm, t * HIDDEN * 8 + (double)HIDDEN * HIDDEN, 2 * t * HIDDEN * HIDDEN },
        { "grouped_gemm", call_grouped_gemm,
          t * TOP_K * (HIDDEN + 2 * INNER) * 4 + (double)EXPERTS * 2 * INNER * HIDDEN,
          2 * t * TOP_K * HIDDEN * 2 * INNER },
        { "rope", call_rope, t * h * heads.rope * 8, t * h * heads.rope * 3 },
        { "kv_write", call_kv_write, t * cols * 6, t * cols * 4 },
        { "kv_gather", call_kv_gather, CONTEXT * cols * 6, 0 },
        { "mha_prefill", call_mha_prefill, (CONTEXT + t) * h * 256 * 4,
          2 * t * keys * (queries + h * heads.value) },
        { "absorb_query", call_absorb_query, kv_b / 2 + t * (queries + h * cols) * 4,
          2 * t * h * 128 * heads.latent },
        { "mla_decode", call_mla_decode, t * CONTEXT * cols * 2,
          2 * t * CONTEXT * h * (cols + heads.latent) },
        { "absorb_value", call_absorb_value, kv_b / 2 + t * h * (heads.latent + 128) * 4,
          2 * t * h * 128 * heads.latent },
        { "gate", call_gate, t * HIDDEN * 4 + (double)EXPERTS * HIDDEN * 2,
          2 * t * EXPERTS * HIDDEN },
        { "silu_mul", call_silu_mul, t * INNER * 12, t * INNER * 20 },
        { "gather_rows", call_gather_rows, t * TOP_K * HIDDEN * 8, 0 },
        { "combine", call_combine, t * (TOP_K + 2) * HIDDEN * 4, t * TOP_K * HIDDEN * 2 },
    };
    printf("%-14s %11s %8s %9s %8s\n", "op", "us", "GB/s", "GFLOP/s", "of roof");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double seconds = time_case(self, &cases[i]);
        double read = cases[i].bytes / self->read_bytes,
               compute = cases[i].operations / self->operations;
        printf("%-14s %11.1f %8.1f %9.1f %7.0f%%\n", cases[i].name, seconds * 1e6,
               cases[i].bytes / seconds * 1e-9, cases[i].operations / seconds * 1e-9,
               100 * (read > compute ? read : compute) / seconds);
    }
}

/* The timings of the CUDA ops' families; the word `cuda` gives way to --timings. */
static int bench_cuda(int argc, char **argv)
{
#ifdef WITH_CUDA
    argv[1] = "--timings";
    return cuda_families_run(argc, argv);
#else
    (void)argc;
    (void)argv;
    fprintf(stderr, "kernels_bench: built without CUDA; cmake -DWITH_CUDA=ON\n");
    return 2;
#endif
}

int main(int argc, char **argv)
{
    static bench_t self;
    const char *name = argc > 1 ? argv[1] : "auto";
    if (strcmp(name, "cuda") == 0) return bench_cuda(argc, argv);
    uint32_t threads = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1;
    self.rows = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 64;
    self.ops = ops_find(name);
    if (!self.ops || threads == 0 || self.rows == 0 || self.rows > ROWS_MAX) {
        fprintf(stderr,
                "usage: kernels_bench [TABLE] [THREADS] [ROWS, at most %d]\n"
                "'%s' must be auto or a table that this machine can run: judge, avx2, avx512, "
                "avx512_bf16, amx, cuda\n",
                ROWS_MAX, name);
        return 2;
    }
    self.q = queue_new_cpu((size_t)128 << 20, threads);
    if (!self.q) return 1;
    void *buffer = fill(READ_BYTES, 1);
    self.read_bytes = roof_read_bytes(buffer, READ_BYTES);
    free(buffer);
    int is_judge = self.ops == &ops_judge;
    self.operations = threads * roof_operations(is_judge ? "avx2" : self.ops->name);
    printf("table %s, %u threads, %u rows; roof %.1f GFLOP/s, %.1f GB/s read by one thread\n",
           self.ops->name, threads, self.rows, self.operations * 1e-9, self.read_bytes * 1e-9);
    make_tensors(&self);
    make_cache(&self);
    make_routes(&self);
    run_cases(&self);
    queue_destroy(&self.q);
    return 0;
}
