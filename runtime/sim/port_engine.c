/* runtime/sim/port_engine.c - the engine port: a queue of commands that a core runs in order.
 *
 * A step touches KV when it ends, not when it begins: who reads or gives away its blocks too early
 * is found out.
 */
#include "parts.h"

#include <stdlib.h>
#include <string.h>

#include "../engine/stub.h"

enum { LOAD_US = 20000, LEAST_STEP_US = 50 };

typedef enum {
    COMMAND_START,
    COMMAND_EXTEND,
    COMMAND_APPEND,
    COMMAND_CLOSE,
    COMMAND_STEP
} command_kind_t;

typedef struct command {
    struct command *next;
    command_kind_t kind;
    uint32_t slot, token, count;
    uint64_t step;
    err_t error; /* a step whose predecessor failed fails with it */
    engine_open_t open;
    sampling_t sampling;
    void *array; /* tokens, blocks or rows */
    uint32_t *bias_ids;
    float *bias_values;
} command_t;

struct engine_port {
    void *core;
    engine_limits_t limits;
    command_t *head, *tail;
    uint32_t steps;
    bool is_running;
    uint64_t began_us, run;
    engine_result_t *results;
    uint32_t results_max;
};

static void *copy_of(const void *data, size_t size)
{
    void *copy = malloc(size ? size : 1);
    invariant(copy);
    if (size) memcpy(copy, data, size);
    return copy;
}

static void command_free(command_t *command)
{
    free(command->array);
    free(command->bias_ids);
    free(command->bias_values);
    free(command);
}

static command_t *command_add(engine_port_t *port, command_kind_t kind, uint32_t slot)
{
    command_t *command = calloc(1, sizeof *command);
    invariant(command && slot < port->limits.slots);
    command->kind = kind;
    command->slot = slot;
    if (port->tail)
        port->tail->next = command;
    else
        port->head = command;
    port->tail = command;
    return command;
}

static void command_pop(engine_port_t *port)
{
    command_t *command = port->head;
    port->head = command->next;
    if (!port->head) port->tail = NULL;
    command_free(command);
}

static void begin_step(sim_t *self, actor_t *node)
{
    engine_port_t *port = node->engine;
    command_t *command = port->head;
    uint64_t step_us =
        self->options.engine->step_us(port->core, command->array, command->count) + LEAST_STEP_US;
    step_us += random_below(self, step_us / 4 + 1);
    if (random_chance(self, self->options.engine_slow_rate)) step_us *= 1 + random_below(self, 50);
    if (command->error == ERR_OK && random_chance(self, self->options.engine_failure_rate)) {
        command->error = sim_random(self) & 1 ? ERR_ENGINE : ERR_EP_PEER;
        if (command->error == ERR_EP_PEER)
            step_us += (uint64_t)self->config.timing.ep_wait_ms * 1000;
    }
    port->is_running = true;
    port->began_us = self->now_us;
    events_push(&self->queue, (event_t){ .at_us = self->now_us + step_us,
                                         .kind = EVENT_ENGINE,
                                         .stamp = node->stamp,
                                         .subject = node });
}

static void apply(sim_t *self, engine_port_t *port, const command_t *command)
{
    const engine_class_t *class = self->options.engine;
    err_t error = ERR_OK;
    switch (command->kind) {
    case COMMAND_START:
        error = class->start(port->core, command->slot, &command->open);
        break;
    case COMMAND_EXTEND:
        class->extend(port->core, command->slot, command->array, command->count);
        break;
    case COMMAND_APPEND:
        class->append(port->core, command->slot, command->token);
        break;
    case COMMAND_CLOSE:
        class->release(port->core, command->slot);
        break;
    case COMMAND_STEP:
        invariant(false);
    }
    invariant(error == ERR_OK);
}

static void pump(sim_t *self, actor_t *node)
{
    engine_port_t *port = node->engine;
    while (port->head && !port->is_running) {
        if (port->head->kind == COMMAND_STEP) {
            begin_step(self, node);
            return;
        }
        apply(self, port, port->head);
        command_pop(port);
    }
}

/* What the core makes of a step that nothing disturbed. */
static err_t run_step(sim_t *self, actor_t *node, const command_t *command, uint32_t *count)
{
    engine_port_t *port = node->engine;
    uint64_t model_us = 0;
    err_t error = self->options.engine->step(port->core, command->array, command->count,
                                             port->results, port->results_max, count, &model_us);
    if (error != ERR_OK)
        sim_fail(self, "I3",
                 "the engine of %s.%u refused step %llu with error %u: KV or rows are wrong",
                 role_names[node->address.role], node->address.index,
                 (unsigned long long)command->step, (unsigned)error);
    return error;
}

void engine_port_end_step(sim_t *self, actor_t *node)
{
    engine_port_t *port = node->engine;
    if (node->is_paused) { /* its engine thread stands still too */
        events_push(&self->queue, (event_t){ .at_us = self->now_us + 1000,
                                             .kind = EVENT_ENGINE,
                                             .stamp = node->stamp,
                                             .subject = node });
        return;
    }
    invariant(port && port->is_running);
    command_t *command = port->head;
    uint32_t count = 0;
    if (command->error == ERR_OK) command->error = run_step(self, node, command, &count);
    msg_t m;
    msg_init(&m, MSG_engine_done);
    m.header = (header_t){ .from = node->address };
    m.engine_done.step = command->step;
    m.engine_done.error = (u32)command->error;
    m.engine_done.elapsed_us = self->now_us - port->began_us;
    for (command_t *next = command->next; next && command->error; next = next->next)
        next->error = command->error;
    port->is_running = false;
    port->steps--;
    command_pop(port);
    node_tell(self, node, &m, port->results, count * sizeof *port->results);
    pump(self, node);
}

void engine_port_loaded(sim_t *self, actor_t *node)
{
    msg_t m;
    msg_init(&m, MSG_engine_ready);
    m.header = (header_t){ .from = node->address };
    m.engine_ready.error = ERR_OK;
    node_tell(self, node, &m, NULL, 0);
}

static bool is_same_group(const sim_t *self, const actor_t *a, const actor_t *b)
{
    if (a == b || a->address.role != b->address.role) return false;
    int64_t ranks = a->address.role == ROLE_prefill_worker ? self->config.company.prefill_ep
                                                           : self->config.company.decode_ep;
    return (int64_t)a->address.index / ranks == (int64_t)b->address.index / ranks;
}

void engine_port_lose_peer(sim_t *self, actor_t *node)
{
    if (!node->engine) return;
    for (uint32_t i = 0; i < self->node_count; i++) {
        actor_t *other = self->nodes[i];
        if (!other->engine || !is_same_group(self, node, other) || !other->engine->is_running)
            continue;
        other->engine->head->error = ERR_EP_PEER;
    }
}

void engine_port_free(engine_port_t **self)
{
    engine_port_t *port = *self;
    if (!port) return;
    while (port->head) command_pop(port);
    free(port->results);
    invariant(!port->core);
    free(port);
    *self = NULL;
}

void engine_port_close(const sim_t *self, actor_t *node)
{
    if (node->engine && node->engine->core) self->options.engine->close(&node->engine->core);
}

/* ---- runtime/engine.h ----------------------------------------------------------------------- */

err_t actor_engine_open(actor_t *world, const engine_limits_t *limits)
{
    sim_t *self = world->sim;
    invariant(world->is_in_init && self->options.engine && world->pool.bytes && !world->engine);
    engine_port_t *port = calloc(1, sizeof *port);
    invariant(port);
    port->limits = *limits;
    port->results_max = limits->rows_max + limits->sequences_max;
    port->results = calloc(port->results_max, sizeof *port->results);
    invariant(port->results);
    engine_core_options_t options = { .config = &self->config,
                                      .self = world->address,
                                      .limits = *limits,
                                      .pool = world->pool.bytes,
                                      .blocks = world->pool.blocks,
                                      .block_bytes = world->pool.block_bytes,
                                      .directory = "" };
    error_text_t why = { { 0 } };
    err_t error = self->options.engine->open(&port->core, &options, &why);
    if (error != ERR_OK) {
        actor_log(world, LOG_ERROR, "SIM-ENGINE", "%s", why.text);
        engine_port_free(&port);
        return error;
    }
    world->engine = port;
    events_push(&self->queue, (event_t){ .at_us = self->now_us + 1 + random_below(self, LOAD_US),
                                         .kind = EVENT_LOADED,
                                         .stamp = world->stamp,
                                         .subject = world });
    return ERR_OK;
}

err_t actor_engine_start(actor_t *world, uint32_t slot, const engine_open_t *sequence)
{
    engine_port_t *port = world->engine;
    if (sequence->token_count == 0 || sequence->token_count > port->limits.context_max)
        return ERR_INVALID;
    command_t *command = command_add(port, COMMAND_START, slot);
    command->open = *sequence;
    command->sampling = *sequence->sampling;
    command->open.sampling = &command->sampling;
    command->array = copy_of(sequence->tokens, sequence->token_count * sizeof *sequence->tokens);
    command->open.tokens = command->array;
    command->bias_ids =
        copy_of(sequence->bias_ids, sequence->bias_count * sizeof *sequence->bias_ids);
    command->open.bias_ids = command->bias_ids;
    command->bias_values = copy_of(sequence->bias_values, sequence->bias_count * sizeof(float));
    command->open.bias_values = command->bias_values;
    pump(world->sim, world);
    return ERR_OK;
}

void actor_engine_extend(actor_t *world, uint32_t slot, const uint32_t *blocks, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) invariant(blocks[i] < world->pool.blocks);
    command_t *command = command_add(world->engine, COMMAND_EXTEND, slot);
    command->array = copy_of(blocks, count * sizeof *blocks);
    command->count = count;
    pump(world->sim, world);
}

void actor_engine_append(actor_t *world, uint32_t slot, uint32_t token)
{
    command_add(world->engine, COMMAND_APPEND, slot)->token = token;
    pump(world->sim, world);
}

err_t actor_engine_step(actor_t *world, uint64_t step, const engine_row_t *rows, uint32_t row_count)
{
    engine_port_t *port = world->engine;
    invariant(row_count > 0 && row_count <= port->limits.sequences_max);
    uint64_t total = 0;
    for (uint32_t i = 0; i < row_count; i++) total += rows[i].count;
    invariant(total > 0 && total <= port->limits.rows_max);
    if (port->steps == ENGINE_STEPS_MAX) return ERR_OVERLOAD;
    command_t *command = command_add(port, COMMAND_STEP, rows[0].slot);
    command->array = copy_of(rows, row_count * sizeof *rows);
    command->count = row_count;
    command->step = step;
    port->steps++;
    pump(world->sim, world);
    return ERR_OK;
}

void actor_engine_close(actor_t *world, uint32_t slot)
{
    command_add(world->engine, COMMAND_CLOSE, slot);
    pump(world->sim, world);
}

uint32_t actor_engine_end_tokens(const actor_t *world, const uint32_t **ids)
{
    return world->sim->options.engine->end_tokens(world->engine->core, ids);
}
