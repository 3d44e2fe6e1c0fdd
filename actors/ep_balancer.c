/* actors/ep_balancer.c - gathers how busy the experts are.
 *
 *   prefill_worker, decode_worker --expert_load--> ep_balancer
 *
 * Loads of all workers are added per layer and expert and fade by half every period, so that the
 * picture is that of the last minute.  It is shown (gauge and log); experts are not moved yet.
 */
#include "ep_balancer.h"

enum {
    PERIOD_US = 10 * 1000 * 1000,
    PERIODS_PER_LINE = 6,
    TOKENS_LEAST = 1024, /* below it a ratio is noise */
};

typedef struct {
    uint32_t expert_count; /* largest number of experts reported; 0: never heard of */
    double *tokens;        /* EXPERTS_MAX of them, faded */
} layer_t;

typedef struct {
    layer_t *layers; /* LAYERS_MAX of them */
    uint32_t periods;
} ep_balancer_t;

/* The busiest expert against the mean of its layer. */
typedef struct {
    uint32_t layer, expert;
    double ratio, tokens;
} peak_t;

static err_t init(void *state, actor_t *world)
{
    ep_balancer_t *self = state;
    self->layers = actor_alloc(world, LAYERS_MAX, sizeof *self->layers);
    double *tokens = actor_alloc(world, (size_t)LAYERS_MAX * EXPERTS_MAX, sizeof *tokens);
    for (uint32_t i = 0; i < LAYERS_MAX; i++) {
        self->layers[i].tokens = tokens + (size_t)i * EXPERTS_MAX;
    }
    actor_wake_at(world, actor_now_us(world) + PERIOD_US);
    return ERR_OK;
}

static peak_t peak_of(const layer_t *layer, uint32_t number)
{
    peak_t peak = { .layer = number };
    double most = 0;
    for (uint32_t i = 0; i < layer->expert_count; i++) {
        peak.tokens += layer->tokens[i];
        if (layer->tokens[i] <= most) continue;
        most = layer->tokens[i];
        peak.expert = i;
    }
    if (peak.tokens >= TOKENS_LEAST) peak.ratio = most * layer->expert_count / peak.tokens;
    return peak;
}

static peak_t worst_peak(const ep_balancer_t *self)
{
    peak_t worst = { .ratio = 0 };
    for (uint32_t i = 0; i < LAYERS_MAX; i++) {
        peak_t peak = peak_of(&self->layers[i], i);
        if (peak.ratio > worst.ratio) worst = peak;
    }
    return worst;
}

static void fade(ep_balancer_t *self)
{
    for (uint32_t i = 0; i < LAYERS_MAX; i++) {
        for (uint32_t j = 0; j < self->layers[i].expert_count; j++) self->layers[i].tokens[j] /= 2;
    }
}

static void on_expert_load(void *state, actor_t *world, const msg_t *m)
{
    ep_balancer_t *self = state;
    const msg_expert_load_t *load = &m->expert_load;
    invariant(load->layer < LAYERS_MAX && load->counts_count <= EXPERTS_MAX);
    layer_t *layer = &self->layers[load->layer];
    if (load->counts_count > layer->expert_count) layer->expert_count = load->counts_count;
    for (uint32_t i = 0; i < load->counts_count; i++) layer->tokens[i] += load->counts[i];
}

static void wake(void *state, actor_t *world)
{
    ep_balancer_t *self = state;
    peak_t worst = worst_peak(self);
    actor_gauge(world, METRIC_expert_load_ratio, worst.ratio);
    self->periods++;
    if (worst.ratio > 0 && self->periods % PERIODS_PER_LINE == 0) {
        actor_log(world, LOG_INFO, "EP-BALANCER-LOAD",
                  "busiest is expert %u of layer %u with %.2f times the mean of %.0f tokens",
                  worst.expert, worst.layer, worst.ratio, worst.tokens);
    }
    fade(self);
    actor_wake_at(world, actor_now_us(world) + PERIOD_US);
}

static void check(const void *state)
{
    const ep_balancer_t *self = state;
    for (uint32_t i = 0; i < LAYERS_MAX; i++) {
        invariant(self->layers[i].expert_count <= EXPERTS_MAX);
        invariant(self->layers[i].tokens[0] >= 0);
    }
}

const actor_class_t ep_balancer_class = {
    .name = "ep_balancer",
    .role = ROLE_ep_balancer,
    .state_size = sizeof(ep_balancer_t),
    .init = init,
    .wake = wake,
    .check = check,
    .on = { [MSG_expert_load] = on_expert_load },
};
