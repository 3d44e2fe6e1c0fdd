/* runtime/base/config_check.c - what no single key can tell: combinations that cannot work. */
#include "config.h"

#include "../../proto/messages.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PORT_MAX = 65535 };

/* Names the place of a key, for the begin of an error. */
#define AT(key) config_place(self, CONFIG_##key).text

static err_t check_group(config_loaded_t *self, config_index_t key, int64_t workers, int64_t ranks)
{
    if (workers % ranks == 0) return ERR_OK;
    return config_refuse(self,
                         "%s: company.%s is %" PRId64 ", but company.%s is %" PRId64
                         "; allowed are divisors of the number of workers",
                         config_place(self, key).text, config_keys[key].key, ranks,
                         config_keys[key - 1].key, workers);
}

static err_t check_company(config_loaded_t *self)
{
    const config_t *config = &self->config;
    err_t error = check_group(self, CONFIG_company_prefill_ep, config->company.prefill_workers,
                              config->company.prefill_ep);
    if (error != ERR_OK) return error;
    return check_group(self, CONFIG_company_decode_ep, config->company.decode_workers,
                       config->company.decode_ep);
}

static err_t check_timing(config_loaded_t *self)
{
    int64_t heartbeat_ms = self->config.timing.heartbeat_ms;
    int64_t dead_ms = self->config.timing.dead_ms, lease_ms = self->config.timing.lease_ms;
    if (dead_ms < 3 * heartbeat_ms) {
        return config_refuse(self,
                             "%s: timing.dead_ms is %" PRId64
                             ", but timing.heartbeat_ms is %" PRId64
                             "; allowed are at least three heartbeats (%" PRId64 ")",
                             AT(timing_dead_ms), dead_ms, heartbeat_ms, 3 * heartbeat_ms);
    }
    if (lease_ms < 3 * heartbeat_ms) {
        return config_refuse(self,
                             "%s: timing.lease_ms is %" PRId64 ", but leases are renewed every "
                             "timing.heartbeat_ms (%" PRId64 "); allowed are at least %" PRId64,
                             AT(timing_lease_ms), lease_ms, heartbeat_ms, 3 * heartbeat_ms);
    }
    return ERR_OK;
}

/* A longest request must fit a worker's pool, or no worker could ever take it. */
static err_t check_pool(config_loaded_t *self, config_index_t key, int64_t blocks)
{
    int64_t context = self->config.limits.context_max;
    int64_t need = (context + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    if (blocks >= need) return ERR_OK;
    return config_refuse(self,
                         "%s: %s.kv_blocks is %" PRId64 ", but limits.context_max is %" PRId64
                         " tokens; allowed are at least %" PRId64 " blocks",
                         config_place(self, key).text, config_keys[key].section, blocks, context,
                         need);
}

uint32_t config_context_max(const config_t *config)
{
    int64_t blocks = config->prefill.kv_blocks < config->decode.kv_blocks
                         ? config->prefill.kv_blocks
                         : config->decode.kv_blocks;
    int64_t context = blocks * BLOCK_TOKENS, allowed = config->limits.context_max;
    if (allowed == 0) allowed = CONTEXT_MAX;
    return (uint32_t)(context < allowed ? context : allowed);
}

static err_t check_limits(config_loaded_t *self)
{
    const config_t *config = &self->config;
    int64_t context = config->limits.context_max, output = config->limits.output_default;
    if (context > 0 && output >= context) {
        return config_refuse(self,
                             "%s: limits.output_default is %" PRId64
                             "; allowed is less than limits.context_max (%" PRId64 ")",
                             AT(limits_output_default), output, context);
    }
    err_t error = check_pool(self, CONFIG_prefill_kv_blocks, config->prefill.kv_blocks);
    if (error != ERR_OK) return error;
    return check_pool(self, CONFIG_decode_kv_blocks, config->decode.kv_blocks);
}

/* Port behind the last colon; -1 if there is none. */
static int64_t port_of(const char *listen)
{
    const char *colon = strrchr(listen, ':');
    if (colon == NULL || colon == listen || colon[1] == 0 || strlen(colon) > 6) return -1;
    if (strspn(colon + 1, "0123456789") != strlen(colon + 1)) return -1;
    bool is_v6 = memchr(listen, ':', (size_t)(colon - listen)) != NULL;
    if (is_v6 && (listen[0] != '[' || colon[-1] != ']')) return -1;
    return strtol(colon + 1, NULL, 10);
}

static err_t check_http(config_loaded_t *self)
{
    const config_t *config = &self->config;
    int64_t port = port_of(config->http.listen);
    if (port < 0 || port > PORT_MAX) {
        return config_refuse(self,
                             "%s: http.listen is '%s'; allowed is ADDRESS:PORT or [IPv6]:PORT",
                             AT(http_listen), config->http.listen);
    }
    if (port == 0) {
        return config_refuse(self,
                             "%s: http.listen is '%s'; allowed are ports from 1 to %d, since "
                             "clients could not know which one port 0 becomes",
                             AT(http_listen), config->http.listen, PORT_MAX);
    }
    int64_t last = port + config->company.ingresses - 1;
    if (last > PORT_MAX) {
        return config_refuse(self,
                             "%s: http.listen is '%s', but company.ingresses is %" PRId64
                             "; each takes the next port, and allowed are 1 to %d",
                             AT(http_listen), config->http.listen, config->company.ingresses,
                             PORT_MAX);
    }
    return ERR_OK;
}

/* One port per actor that binds. */
static int64_t actor_count(const config_t *config)
{
    int64_t single = 6; /* both balancers, store, ep_balancer, director, supervisor */
    return single + config->company.ingresses + config->company.prefill_workers +
           config->company.decode_workers;
}

static err_t check_wire(config_loaded_t *self)
{
    const config_t *config = &self->config;
    bool is_tcp = strcmp(config_word(CONFIG_wire_carrier, config->wire.carrier).text, "tcp") == 0;
    bool has_keys = config->wire.keys[0] != 0;
    if (!is_tcp) return ERR_OK;
    if (!has_keys && !config->wire.insecure) {
        return config_refuse(self,
                             "%s: wire.carrier is tcp, but wire.keys is empty; allowed is tcp with "
                             "keys (troupe keys DIRECTORY), or wire.insecure: true",
                             AT(wire_carrier));
    }
    if (has_keys && config->wire.insecure) {
        return config_refuse(
            self, "%s: wire.insecure is true, but wire.keys names '%s'; allowed is one of them",
            AT(wire_insecure), config->wire.keys);
    }
    int64_t last = config->wire.base_port + actor_count(config) - 1;
    if (last <= PORT_MAX) return ERR_OK;
    return config_refuse(self,
                         "%s: wire.base_port is %" PRId64 ", but %" PRId64
                         " actors take a port each; allowed are at most %" PRId64,
                         AT(wire_base_port), config->wire.base_port, actor_count(config),
                         PORT_MAX + 1 - actor_count(config));
}

static err_t check_model(config_loaded_t *self)
{
    if (self->config.model.path[0] != 0) return ERR_OK;
    return config_refuse(self, "%s: model.path is empty; allowed is a directory with a model",
                         AT(model_path));
}

err_t config_check(config_loaded_t *self)
{
    static err_t (*const checks[])(config_loaded_t *) = {
        check_model, check_company, check_timing, check_limits, check_http, check_wire,
    };
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        err_t error = checks[i](self);
        if (error != ERR_OK) return error;
    }
    return ERR_OK;
}
