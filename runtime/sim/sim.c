/* runtime/sim/sim.c - the seeded world as a test sees it: made, run, looked at. */
#include "parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- random numbers: splitmix64 (Steele, Lea, Flood 2014) ----------------------------------- */

uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t sim_random(sim_t *self)
{
    return random_next(&self->random_state);
}

bool random_chance(sim_t *self, double rate)
{
    return rate > 0 && (double)(sim_random(self) >> 11) * 0x1p-53 < rate;
}

uint64_t random_below(sim_t *self, uint64_t below)
{
    return below ? sim_random(self) % below : 0;
}

uint64_t random_exponential(sim_t *self, uint64_t mean)
{
    if (mean == 0) return 0;
    double unit = ((double)(sim_random(self) >> 11) + 1) * 0x1p-53;
    return (uint64_t)(-log(unit) * (double)mean);
}

/* ---- made ----------------------------------------------------------------------------------- */

sim_options_t sim_options_default(uint64_t seed, const config_t *config)
{
    return (sim_options_t){
        .seed = seed, .config = config, .delay_least_us = 20, .delay_mean_us = 100, .turn_us = 5
    };
}

sim_t *sim_new(const sim_options_t *options)
{
    sim_t *self = calloc(1, sizeof *self);
    invariant(self && options->config);
    self->options = *options;
    self->config = *options->config;
    self->random_state = options->seed;
    self->now_us = 1000000; /* nothing happens at time 0, which means "never" to many */
    self->encode_buffer = malloc(MESSAGE_BYTES_MAX);
    invariant(self->encode_buffer);
    if (options->engine) {
        error_text_t why = { { 0 } };
        self->block_bytes = options->engine->block_bytes(&self->config, &why);
        invariant(self->block_bytes > 0);
    }
    self->model_key = 1;
    return self;
}

static void free_link(link_t *link)
{
    for (int i = 0; i < 2; i++) link_drop_flight(&link->ways[i]);
    free(link);
}

void sim_destroy(sim_t **self_pointer)
{
    sim_t *self = *self_pointer;
    if (!self) return;
    for (uint32_t i = 0; i < self->node_count; i++)
        if (self->nodes[i]->is_alive) node_end(self, self->nodes[i]);
    for (uint32_t i = 0; i < self->link_count; i++) free_link(self->links[i]);
    for (uint32_t i = 0; i < self->kept_count; i++) frame_free(self->kept[i]);
    for (uint32_t i = 0; i < self->node_count; i++) {
        free(self->nodes[i]->allocations.items);
        free(self->nodes[i]->exchanges);
        free(self->nodes[i]);
    }
    free(self->links);
    free(self->queue.events);
    free(self->encode_buffer);
    free(self);
    *self_pointer = NULL;
}

err_t sim_add(sim_t *self, const actor_class_t *class, uint32_t index)
{
    invariant(self->node_count < SIM_NODES_MAX);
    invariant(!node_find(self, (address_t){ class->role, index }));
    actor_t *node = calloc(1, sizeof *node);
    invariant(node);
    node->sim = self;
    node->class = class;
    node->address = (address_t){ class->role, index };
    node->number = self->node_count;
    self->nodes[self->node_count++] = node;
    link_make_all(self, node);
    return node_start(self, node);
}

/* ---- run ------------------------------------------------------------------------------------ */

static void tick(sim_t *self, actor_t *node)
{
    events_push(&self->queue, (event_t){ .at_us = self->now_us +
                                                  (uint64_t)self->config.timing.heartbeat_ms * 1000,
                                         .kind = EVENT_TICK,
                                         .stamp = node->stamp,
                                         .subject = node });
    if (!node->is_paused) link_tick(self, node);
}

static void run_link_event(sim_t *self, const event_t *event)
{
    link_t *link = event->subject;
    if (event->stamp != link->stamp) return;
    if (event->kind == EVENT_CONNECT)
        link_connect(self, link);
    else
        link_notice(self, link);
}

static void run_node_event(sim_t *self, const event_t *event)
{
    actor_t *node = event->subject;
    if (event->kind == EVENT_START) {
        sim_restart(self, node->address);
        return;
    }
    if (event->stamp != node->stamp) return;
    switch (event->kind) {
    case EVENT_TURN:
        node_turn(self, node);
        break;
    case EVENT_TICK:
        tick(self, node);
        break;
    case EVENT_REPORT:
        node_report(self, node);
        break;
    case EVENT_ENGINE:
        engine_port_end_step(self, node);
        break;
    case EVENT_LOADED:
        engine_port_loaded(self, node);
        break;
    case EVENT_POOL:
        pool_port_end_job(self, node);
        break;
    case EVENT_STOP:
        sim_kill(self, node->address, true);
        break;
    default:
        invariant(false);
    }
}

static void run_event(sim_t *self, const event_t *event)
{
    invariant(event->at_us >= self->now_us);
    self->now_us = event->at_us;
    switch (event->kind) {
    case EVENT_ARRIVE: {
        direction_t *way = event->subject;
        if (event->stamp == way->stamp) link_arrive(self, way);
        break;
    }
    case EVENT_CONNECT:
    case EVENT_NOTICE:
        run_link_event(self, event);
        break;
    case EVENT_ACT:
        event->act(event->subject, event->argument);
        break;
    default:
        run_node_event(self, event);
        break;
    }
}

bool sim_run_until(sim_t *self, uint64_t at_us)
{
    event_t event;
    while (!self->is_failed && events_pop(&self->queue, at_us, &event)) run_event(self, &event);
    if (!self->is_failed && self->now_us < at_us) self->now_us = at_us;
    return !self->is_failed;
}

bool sim_run_while(sim_t *self, uint64_t at_us, bool (*is_over)(void *context), void *context)
{
    while (!is_over(context)) {
        if (self->now_us >= at_us) return false;
        uint64_t next_us = self->now_us + 1000 < at_us ? self->now_us + 1000 : at_us;
        if (!sim_run_until(self, next_us)) return false;
    }
    return true;
}

void sim_at(sim_t *self, uint64_t at_us, void (*act)(void *context, uint64_t argument),
            void *context, uint64_t argument)
{
    events_push(&self->queue, (event_t){ .at_us = at_us > self->now_us ? at_us : self->now_us,
                                         .kind = EVENT_ACT,
                                         .subject = context,
                                         .act = act,
                                         .argument = argument });
}

/* ---- looked at ------------------------------------------------------------------------------ */

uint64_t sim_now_us(const sim_t *self)
{
    return self->now_us;
}

void *sim_state(sim_t *self, address_t who)
{
    actor_t *node = node_find(self, who);
    return node && node->is_alive ? node->state : NULL;
}

actor_t *sim_actor(sim_t *self, address_t who)
{
    actor_t *node = node_find(self, who);
    if (!node || !node->is_alive || node->is_paused) return NULL;
    node->is_turn_wanted = true;
    node_want_turn(self, node);
    return node;
}

const actor_class_t *sim_class(const sim_t *self, address_t who)
{
    const actor_t *node = node_find(self, who);
    return node ? node->class : NULL;
}

bool sim_is_alive(const sim_t *self, address_t who)
{
    const actor_t *node = node_find(self, who);
    return node && node->is_alive;
}

bool sim_is_paused(const sim_t *self, address_t who)
{
    const actor_t *node = node_find(self, who);
    return node && node->is_paused;
}

uint64_t sim_epoch(const sim_t *self, address_t who)
{
    const actor_t *node = node_find(self, who);
    return node ? node->epoch : 0;
}

double sim_metric(const sim_t *self, address_t who, metric_t metric)
{
    const actor_t *node = node_find(self, who);
    if (!node || !node->is_alive) return 0;
    return node->metrics.slots[metric_descs[metric].slot];
}

uint32_t sim_count(const sim_t *self)
{
    return self->node_count;
}

address_t sim_address(const sim_t *self, uint32_t number)
{
    invariant(number < self->node_count);
    return self->nodes[number]->address;
}
