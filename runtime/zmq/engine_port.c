/* runtime/zmq/engine_port.c - the engine port: the configured core on a thread, its news as
 * messages. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../engine/engine_thread.h"
#include "../engine/stub.h"
#include "ports.h"

typedef struct {
    engine_thread_t *thread;
    struct event *event;
    uint32_t end_tokens[STOP_IDS_MAX];
    uint32_t end_token_count;
} engine_port_t;

const engine_class_t *world_engine_class(const config_t *config)
{
    return config->engine.kind == 0 ? &engine_ops_class : &engine_stub_class;
}

/* A worker without an engine serves nobody: it ends, so that its supervisor can say why. */
static void give_up(actor_t *world, const engine_news_t *news)
{
    actor_log(world, LOG_ERROR, "ENGINE-OPEN", "%s",
              news->why[0] ? news->why : error_descs[news->error].doc);
    world_fail(world, news->error);
}

static void deliver_news(actor_t *world, const engine_news_t *news)
{
    msg_t m;
    msg_init(&m, news->is_ready ? MSG_engine_ready : MSG_engine_done);
    m.header.from = world->self;
    if (news->is_ready) {
        world->is_loading = false;
        m.engine_ready.error = (u32)news->error;
    } else {
        m.engine_done.step = news->step;
        m.engine_done.error = (u32)news->error;
        m.engine_done.elapsed_us = news->elapsed_us;
        m.engine_done.results.data = news->results;
        m.engine_done.results.size = news->result_count * sizeof *news->results;
    }
    deliver(world, &m);
}

/* A step is no longer outstanding when its end is told: the handler submits the next one. */
static void on_news(evutil_socket_t descriptor, short what, void *arg)
{
    actor_t *world = arg;
    engine_port_t *self = world->ports[PORT_ENGINE].state;
    engine_news_t news;
    uint64_t count;
    if (read(descriptor, &count, sizeof count) < 0) return;
    while (engine_thread_poll(self->thread, &news)) {
        engine_thread_accept(self->thread);
        if (news.is_ready && news.error)
            give_up(world, &news);
        else
            deliver_news(world, &news);
    }
}

static void close_port(actor_t *world)
{
    engine_port_t *self = world->ports[PORT_ENGINE].state;
    if (!self) return;
    engine_thread_destroy(&self->thread);
    if (self->event) event_free(self->event);
    free(self);
    world->ports[PORT_ENGINE].state = NULL;
}

/* Known before the weights are: the actor asks for them in init. */
static err_t read_end_tokens(actor_t *world, engine_port_t *self)
{
    const config_t *config = world->config;
    model_config_t model;
    error_text_t why = { "" };
    uint32_t vocab;
    self->end_token_count = 1;
    if (config->engine.kind != 0) {
        engine_stub_vocabulary(config, &vocab, self->end_tokens);
        return ERR_OK;
    }
    err_t error = model_config_read(&model, config->model.path, &why);
    if (error) {
        actor_log(world, LOG_ERROR, "ENGINE-MODEL", "%s", why.text);
        return error;
    }
    self->end_token_count = model.end_token_count;
    memcpy(self->end_tokens, model.end_tokens, sizeof self->end_tokens);
    return ERR_OK;
}

static err_t open_thread(actor_t *world, engine_port_t *self, const engine_limits_t *limits)
{
    world_pool_t pool = world_pool(world);
    const engine_core_options_t options = { .config = world->config,
                                            .self = world->self,
                                            .limits = *limits,
                                            .pool = pool.base,
                                            .blocks = pool.blocks,
                                            .block_bytes = pool.block_bytes,
                                            .directory = world->directory };
    self->thread = engine_thread_new(world_engine_class(world->config), &options);
    if (!self->thread) return ERR_NO_SPACE;
    self->event = event_new(world->base, engine_thread_descriptor(self->thread),
                            EV_READ | EV_PERSIST, on_news, world);
    return self->event && !event_add(self->event, NULL) ? ERR_OK : ERR_IO;
}

err_t actor_engine_open(actor_t *world, const engine_limits_t *limits)
{
    invariant(world->is_in_init && !world->ports[PORT_ENGINE].state);
    invariant(limits->slots > 0 && limits->rows_max > 0 && limits->sequences_max > 0);
    engine_port_t *self = calloc(1, sizeof *self);
    if (!self) return ERR_NO_SPACE;
    world->ports[PORT_ENGINE].state = self;
    world->ports[PORT_ENGINE].hooks.close = close_port;
    err_t error = read_end_tokens(world, self);
    if (!error) error = open_thread(world, self, limits);
    world->is_loading = error == ERR_OK;
    return error;
}

static engine_thread_t *thread_of(const actor_t *world)
{
    const engine_port_t *self = world->ports[PORT_ENGINE].state;
    invariant(self != NULL);
    return self->thread;
}

err_t actor_engine_start(actor_t *world, uint32_t slot, const engine_open_t *sequence)
{
    return engine_thread_start(thread_of(world), slot, sequence);
}

void actor_engine_extend(actor_t *world, uint32_t slot, const uint32_t *blocks, uint32_t count)
{
    engine_thread_extend(thread_of(world), slot, blocks, count);
}

void actor_engine_append(actor_t *world, uint32_t slot, uint32_t token)
{
    engine_thread_append(thread_of(world), slot, token);
}

err_t actor_engine_step(actor_t *world, uint64_t step, const engine_row_t *rows, uint32_t row_count)
{
    return engine_thread_step(thread_of(world), step, rows, row_count);
}

void actor_engine_close(actor_t *world, uint32_t slot)
{
    engine_thread_release(thread_of(world), slot);
}

uint32_t actor_engine_end_tokens(const actor_t *world, const uint32_t **ids)
{
    const engine_port_t *self = world->ports[PORT_ENGINE].state;
    invariant(self != NULL);
    *ids = self->end_tokens;
    return self->end_token_count;
}
