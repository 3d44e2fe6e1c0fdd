/* runtime/openai/parse.c - the table of fields of a request's body, and the reader of each. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"

/* ---- sampling: ranges come from sampling.def ---- */

typedef struct {
    const char *name;
    size_t offset;
    char type; /* f, u or U: f32, u32, u64 */
    range_t range;
} sample_field_t;

#define SAMPLE_TYPE_f32 'f'
#define SAMPLE_TYPE_u32 'u'
#define SAMPLE_TYPE_u64 'U'
/* clang-format off */
static const sample_field_t sample_fields[] = {
#define SAMPLE(type, field, fallback, least, most, doc) \
    { #field, offsetof(sampling_t, field), SAMPLE_TYPE_##type, { (double)(least), (double)(most) } },
#include "../../proto/sampling.def"
#undef SAMPLE
};
/* clang-format on */

static err_t on_sample(parser_t *self, const char *name, const cJSON *value)
{
    const sample_field_t *field = sample_fields;
    while (strcmp(field->name, name) != 0)
        field++; /* the table of fields names only those of sampling.def here */
    double number;
    bool is_integer = field->type != 'f';
    err_t error = is_integer ? read_integer(self, name, value, field->range, &number)
                             : read_number(self, name, value, field->range, &number);
    if (error != ERR_OK) return error;
    char *at = (char *)&self->call->sampling + field->offset;
    if (is_integer)
        *(u32 *)(void *)at = (u32)number;
    else
        *(f32 *)(void *)at = (f32)number;
    return ERR_OK;
}

/* vLLM says -1 where others say 0: all tokens. */
static err_t on_top_k(parser_t *self, const char *name, const cJSON *value)
{
    double number;
    err_t error = read_integer(self, name, value, (range_t){ -1, (double)UINT32_MAX }, &number);
    if (error == ERR_OK) self->call->sampling.top_k = number < 0 ? 0 : (u32)number;
    return error;
}

static err_t on_seed(parser_t *self, const char *name, const cJSON *value)
{
    double number = 0;
    int64_t seed;
    if (!cJSON_IsNumber(value) || !guard_find_integer(self->body, name, &seed)) {
        const range_t range = { -9223372036854774784.0, 9223372036854774784.0 };
        err_t error = read_integer(self, name, value, range, &number);
        if (error != ERR_OK) return error;
        seed = (int64_t)number;
    }
    self->call->has_seed = true;
    self->call->sampling.seed = (u64)seed;
    return ERR_OK;
}

static err_t on_ignore_eos(parser_t *self, const char *name, const cJSON *value)
{
    bool is_set = false;
    err_t error = read_bool(self, name, value, &is_set);
    if (error == ERR_OK) self->call->sampling.ignore_eos = is_set;
    return error;
}

static err_t on_logprobs(parser_t *self, const char *name, const cJSON *value)
{
    sampling_t *sampling = &self->call->sampling;
    if (self->call->kind == OPENAI_CHAT) {
        bool is_set = false;
        err_t error = read_bool(self, name, value, &is_set);
        if (error == ERR_OK) sampling->logprobs = is_set;
        return error;
    }
    double number;
    err_t error = read_integer(self, name, value, (range_t){ 0, TOP_LOGPROBS_MAX }, &number);
    if (error != ERR_OK) return error;
    sampling->logprobs = 1;
    sampling->top_logprobs = (u32)number;
    return ERR_OK;
}

static err_t on_top_logprobs(parser_t *self, const char *name, const cJSON *value)
{
    self->call->has_top_logprobs = true;
    return on_sample(self, name, value);
}

/* ---- counts, stops, biases ---- */

static err_t on_max_tokens(parser_t *self, const char *name, const cJSON *value)
{
    double number, least = self->call->kind == OPENAI_COMPLETION ? 0 : 1;
    err_t error = read_integer(self, name, value, (range_t){ least, CONTEXT_MAX }, &number);
    if (error != ERR_OK) return error;
    self->call->max_tokens = (u32)number;
    self->call->has_max_tokens = true;
    return ERR_OK;
}

static err_t on_n(parser_t *self, const char *name, const cJSON *value)
{
    double number;
    err_t error = read_integer(self, name, value, (range_t){ 1, OPENAI_CHOICES_MAX }, &number);
    if (error == ERR_OK) self->call->n = (u32)number;
    return error;
}

static err_t on_best_of(parser_t *self, const char *name, const cJSON *value)
{
    double number;
    err_t error = read_integer(self, name, value, (range_t){ 1, OPENAI_CHOICES_MAX }, &number);
    if (error == ERR_OK) self->call->best_of = (u32)number;
    return error;
}

static err_t add_stop(parser_t *self, const cJSON *value)
{
    openai_call_t *call = self->call;
    if (!cJSON_IsString(value))
        return refuse_type(self, "stop", "a string or an array of strings", value);
    size_t size = strlen(value->valuestring);
    if (size == 0 || size > OPENAI_STOP_BYTES_MAX)
        return openai_refuse(self->why, ERR_INVALID, "stop",
                             "A string in 'stop' must have 1 to %d bytes, but one has %zu.",
                             OPENAI_STOP_BYTES_MAX, size);
    if (call->stop_count == OPENAI_STOPS_MAX)
        return openai_refuse(self->why, ERR_INVALID, "stop", "'stop' must hold at most %d strings.",
                             OPENAI_STOPS_MAX);
    openai_text_t *stop = &call->stops[call->stop_count];
    err_t error = copy_text(self, value->valuestring, &stop->text, &stop->size);
    if (error == ERR_OK) call->stop_count++;
    return error;
}

static err_t on_stop(parser_t *self, const char *name, const cJSON *value)
{
    self->call->stop_count = 0;
    if (!cJSON_IsArray(value)) return add_stop(self, value);
    const cJSON *item;
    err_t error = ERR_OK;
    cJSON_ArrayForEach(item, value)
    {
        if (error == ERR_OK) error = add_stop(self, item);
    }
    return error;
}

static err_t on_stop_token_ids(parser_t *self, const char *name, const cJSON *value)
{
    openai_call_t *call = self->call;
    openai_prompt_t ids;
    if (!cJSON_IsArray(value)) return refuse_type(self, name, "an array of token ids", value);
    if (cJSON_GetArraySize(value) > STOP_IDS_MAX)
        return openai_refuse(self->why, ERR_INVALID, name,
                             "'%s' must hold at most %d ids, but it holds %d.", name, STOP_IDS_MAX,
                             cJSON_GetArraySize(value));
    err_t error = read_ids(self, name, value, &ids);
    if (error != ERR_OK) return error;
    call->stop_id_count = ids.count;
    if (ids.count > 0) memcpy(call->stop_ids, ids.ids, ids.count * sizeof *ids.ids);
    return ERR_OK;
}

static err_t on_logit_bias(parser_t *self, const char *name, const cJSON *value)
{
    openai_call_t *call = self->call;
    if (!cJSON_IsObject(value))
        return refuse_type(self, name, "an object of token id to bias", value);
    call->bias_count = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, value)
    {
        char *end;
        double bias;
        unsigned long id = strtoul(item->string, &end, 10);
        bool is_written_so = item->string[0] != '0' || item->string[1] == 0; /* "05" is 5 again */
        if (item->string[0] < '0' || item->string[0] > '9' || *end != 0 || id >= self->vocab ||
            !is_written_so)
            return openai_refuse(
                self->why, ERR_INVALID, name,
                "The keys of '%s' must be token ids from 0 to %u, but one is '%.40s'.", name,
                self->vocab - 1, item->string);
        if (call->bias_count == LOGIT_BIAS_MAX)
            return openai_refuse(self->why, ERR_INVALID, name, "'%s' must hold at most %d tokens.",
                                 name, LOGIT_BIAS_MAX);
        err_t error = read_number(self, name, item, (range_t){ -100, 100 }, &bias);
        if (error != ERR_OK) return error;
        call->bias_ids[call->bias_count] = (u32)id;
        call->bias_values[call->bias_count++] = (float)bias;
    }
    return ERR_OK;
}

/* ---- switches ---- */

static err_t on_model(parser_t *self, const char *name, const cJSON *value)
{
    if (!cJSON_IsString(value)) return refuse_type(self, name, "a string", value);
    if (strlen(value->valuestring) >= sizeof self->call->model) {
        openai_refuse(self->why, ERR_NOT_FOUND, name, "The model '%.60s...' does not exist.",
                      value->valuestring);
        self->why->code = "model_not_found";
        return ERR_NOT_FOUND;
    }
    snprintf(self->call->model, sizeof self->call->model, "%s", value->valuestring);
    return ERR_OK;
}

static err_t on_stream(parser_t *self, const char *name, const cJSON *value)
{
    return read_bool(self, name, value, &self->call->is_stream);
}

static err_t on_echo(parser_t *self, const char *name, const cJSON *value)
{
    return read_bool(self, name, value, &self->call->is_echo);
}

/* vLLM's way to have the last message continued; DeepSeek's is "prefix" in the message itself. */
static err_t on_continue(parser_t *self, const char *name, const cJSON *value)
{
    return read_bool(self, name, value, &self->call->is_continued);
}

static err_t on_generation_prompt(parser_t *self, const char *name, const cJSON *value)
{
    bool is_set = true;
    err_t error = read_bool(self, name, value, &is_set);
    self->call->has_no_prompt = !is_set;
    return error;
}

/* vLLM's switch for the begin token of text prompts. */
static err_t on_add_special(parser_t *self, const char *name, const cJSON *value)
{
    bool is_set = true;
    err_t error = read_bool(self, name, value, &is_set);
    self->call->is_bare = !is_set;
    return error;
}

enum { USAGE_CHUNK, USAGE_ALWAYS };

static const char *stream_option_names(uint32_t index)
{
    static const char *const names[] = { [USAGE_CHUNK] = "include_usage",
                                         [USAGE_ALWAYS] = "continuous_usage_stats",
                                         "include_obfuscation" };
    return index < sizeof names / sizeof *names ? names[index] : NULL;
}

static err_t on_stream_options(parser_t *self, const char *name, const cJSON *value)
{
    if (!cJSON_IsObject(value)) return refuse_type(self, name, "an object", value);
    self->call->has_stream_options = true;
    const cJSON *option;
    cJSON_ArrayForEach(option, value)
    {
        bool is_set = false;
        uint32_t known = 0;
        while (stream_option_names(known) != NULL &&
               strcmp(stream_option_names(known), option->string) != 0)
            known++;
        if (stream_option_names(known) == NULL) {
            err_t refused = refuse_unknown(self->why, option->string, stream_option_names);
            snprintf(self->why->param, sizeof self->why->param, "stream_options.%.40s",
                     option->string);
            return refused;
        }
        if (cJSON_IsNull(option)) continue;
        char param[64];
        snprintf(param, sizeof param, "stream_options.%s", option->string);
        err_t error = read_bool(self, param, option, &is_set);
        if (error != ERR_OK) return error;
        if (known == USAGE_CHUNK) self->call->has_usage_chunk = is_set;
        if (known == USAGE_ALWAYS) self->call->has_usage_always = is_set;
    }
    return ERR_OK;
}

/* DeepSeek's {"type": "enabled"} and the template arguments of vLLM and SGLang. */
static err_t on_thinking(parser_t *self, const char *name, const cJSON *value)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(value, "type");
    if (!cJSON_IsString(type))
        return openai_refuse(self->why, ERR_INVALID, name,
                             "'%s' must be {\"type\": \"enabled\"} or {\"type\": \"disabled\"}.",
                             name);
    bool is_on = strcmp(type->valuestring, "enabled") == 0;
    if (!is_on && strcmp(type->valuestring, "disabled") != 0)
        return openai_refuse(self->why, ERR_INVALID, name,
                             "'%s' must be of type enabled or disabled, but it is '%.40s'.", name,
                             type->valuestring);
    self->call->thinking = is_on;
    return ERR_OK;
}

static err_t on_template_kwargs(parser_t *self, const char *name, const cJSON *value)
{
    if (!cJSON_IsObject(value)) return refuse_type(self, name, "an object", value);
    const cJSON *item;
    cJSON_ArrayForEach(item, value)
    {
        bool is_on = false;
        if (strcmp(item->string, "thinking") != 0 && strcmp(item->string, "enable_thinking") != 0)
            return openai_refuse(self->why, ERR_INVALID, name,
                                 "'%s' may hold thinking or enable_thinking, but it holds '%.40s'.",
                                 name, item->string);
        err_t error = read_bool(self, name, item, &is_on);
        if (error != ERR_OK) return error;
        self->call->thinking = is_on;
    }
    return ERR_OK;
}

static err_t on_ignored(parser_t *self, const char *name, const cJSON *value)
{
    return ERR_OK;
}

/* ---- what this server cannot do is refused unless it asks for nothing ---- */

static err_t refuse_feature(parser_t *self, const char *name, const char *allowed)
{
    return openai_refuse(self->why, ERR_UNPROCESSABLE, name,
                         "'%s' is not supported by this server; %s.", name, allowed);
}

static err_t on_absent(parser_t *self, const char *name, const cJSON *value)
{
    bool is_empty = cJSON_IsFalse(value) || (cJSON_IsString(value) && value->valuestring[0] == 0) ||
                    (cJSON_IsNumber(value) && value->valuedouble == 0) ||
                    ((cJSON_IsArray(value) || cJSON_IsObject(value)) && value->child == NULL);
    return is_empty ? ERR_OK : refuse_feature(self, name, "leave it out");
}

static err_t on_tool_choice(parser_t *self, const char *name, const cJSON *value)
{
    bool is_harmless = cJSON_IsString(value) && (strcmp(value->valuestring, "none") == 0 ||
                                                 strcmp(value->valuestring, "auto") == 0);
    return is_harmless ? ERR_OK : refuse_feature(self, name, "it may be none or auto");
}

static err_t on_response_format(parser_t *self, const char *name, const cJSON *value)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(value, "type");
    if (!cJSON_IsString(type))
        return openai_refuse(self->why, ERR_INVALID, name, "'%s' must be an object with a type.",
                             name);
    return strcmp(type->valuestring, "text") == 0
               ? ERR_OK
               : refuse_feature(self, name, "its type may be text");
}

static err_t on_modalities(parser_t *self, const char *name, const cJSON *value)
{
    const cJSON *item;
    if (!cJSON_IsArray(value)) return refuse_type(self, name, "an array", value);
    cJSON_ArrayForEach(item, value)
    {
        if (!cJSON_IsString(item) || strcmp(item->valuestring, "text") != 0)
            return refuse_feature(self, name, "it may be [\"text\"]");
    }
    return ERR_OK;
}

static err_t on_messages(parser_t *self, const char *name, const cJSON *value)
{
    return read_messages(self, value);
}

static err_t on_prompt(parser_t *self, const char *name, const cJSON *value)
{
    return read_prompt(self, name, value);
}

/* ---- the table ---- */

enum {
    CHAT = 1 << OPENAI_CHAT,
    TEXT = 1 << OPENAI_COMPLETION,
    BOTH = CHAT | TEXT,
    SPLIT = 1 << OPENAI_TOKENIZE,
    JOIN = 1 << OPENAI_DETOKENIZE,
    ALL = BOTH | SPLIT | JOIN
};

/* clang-format off */
static const struct {
    const char *name;
    unsigned kinds;
    err_t (*read)(parser_t *self, const char *name, const cJSON *value);
} fields[] = {
    { "model",                 ALL,          on_model },
    { "messages",              CHAT | SPLIT, on_messages },
    { "prompt",                TEXT | SPLIT, on_prompt },
    { "tokens",                JOIN,         on_prompt },
    { "max_tokens",            BOTH,         on_max_tokens },
    { "max_completion_tokens", CHAT,         on_max_tokens },
    { "temperature",           BOTH,         on_sample },
    { "top_p",                 BOTH,         on_sample },
    { "min_p",                 BOTH,         on_sample },
    { "top_k",                 BOTH,         on_top_k },
    { "presence_penalty",      BOTH,         on_sample },
    { "frequency_penalty",     BOTH,         on_sample },
    { "repetition_penalty",    BOTH,         on_sample },
    { "seed",                  BOTH,         on_seed },
    { "n",                     BOTH,         on_n },
    { "best_of",               TEXT,         on_best_of },
    { "stop",                  BOTH,         on_stop },
    { "stop_token_ids",        BOTH,         on_stop_token_ids },
    { "ignore_eos",            BOTH,         on_ignore_eos },
    { "logit_bias",            BOTH,         on_logit_bias },
    { "logprobs",              BOTH,         on_logprobs },
    { "top_logprobs",          CHAT,         on_top_logprobs },
    { "stream",                BOTH,         on_stream },
    { "stream_options",        BOTH,         on_stream_options },
    { "echo",                  TEXT,         on_echo },
    { "thinking",              CHAT | SPLIT, on_thinking },
    { "chat_template_kwargs",  CHAT | SPLIT, on_template_kwargs },
    { "suffix",                TEXT,         on_absent },
    { "tools",                 CHAT,         on_absent },
    { "functions",             CHAT,         on_absent },
    { "tool_choice",           CHAT,         on_tool_choice },
    { "function_call",         CHAT,         on_tool_choice },
    { "response_format",       BOTH,         on_response_format },
    { "modalities",            CHAT,         on_modalities },
    { "audio",                 CHAT,         on_absent },
    { "web_search_options",    CHAT,         on_absent },
    { "use_beam_search",       BOTH,         on_absent },
    { "min_tokens",            BOTH,         on_absent },
    { "prompt_logprobs",       BOTH,         on_absent },
    { "user",                  BOTH,         on_ignored },
    { "metadata",              BOTH,         on_ignored },
    { "store",                 BOTH,         on_ignored },
    { "service_tier",          BOTH,         on_ignored },
    { "safety_identifier",     BOTH,         on_ignored },
    { "prompt_cache_key",      BOTH,         on_ignored },
    { "prompt_cache_retention",BOTH,         on_ignored },
    { "parallel_tool_calls",   CHAT,         on_ignored },
    { "prediction",            CHAT,         on_ignored },
    { "reasoning_effort",      CHAT,         on_ignored },
    { "verbosity",             CHAT,         on_ignored },
    { "add_special_tokens",    TEXT | SPLIT, on_add_special },
    { "add_generation_prompt", CHAT | SPLIT, on_generation_prompt },
    { "continue_final_message",CHAT | SPLIT, on_continue },
    { NULL, 0, NULL },
};
/* clang-format on */

static const char *field_names(uint32_t index)
{
    return fields[index].name;
}

/* Names of other paths are no suggestion here: a name that is known there is known to be wrong. */
static err_t refuse_field(parser_t *self, const char *name)
{
    for (size_t i = 0; fields[i].name != NULL; i++) {
        if (strcmp(fields[i].name, name) != 0) continue;
        openai_refuse(self->why, ERR_INVALID, name, "'%s' is not a field of this path.", name);
        self->why->code = "unknown_parameter";
        return ERR_INVALID;
    }
    return refuse_unknown(self->why, name, field_names);
}

static err_t read_field(parser_t *self, const cJSON *value)
{
    for (size_t i = 0; fields[i].name != NULL; i++) {
        if ((fields[i].kinds & 1u << self->call->kind) == 0 ||
            strcmp(fields[i].name, value->string) != 0)
            continue;
        if (cJSON_IsNull(value)) return ERR_OK; /* as if it were absent */
        return fields[i].read(self, fields[i].name, value);
    }
    return refuse_field(self, value->string);
}

/* The last message is continued, or answered: nothing between. */
static err_t check_end(parser_t *self)
{
    openai_call_t *call = self->call;
    uint32_t last = call->message_count - 1;
    if (call->message_count == 0) return ERR_OK;
    if (call->has_no_prompt && !call->is_continued && !call->messages[last].is_prefix)
        return openai_refuse(self->why, ERR_UNPROCESSABLE, "add_generation_prompt",
                             "'add_generation_prompt': false is not supported by this server "
                             "without 'continue_final_message': true.");
    if (!call->is_continued) return ERR_OK;
    if (call->messages[last].role != CHAT_ASSISTANT)
        return openai_refuse(self->why, ERR_INVALID, "continue_final_message",
                             "'continue_final_message' needs a last message of the assistant.");
    call->messages[last].is_prefix = 1;
    return ERR_OK;
}

/* What no single field can tell. */
static err_t check_together(parser_t *self)
{
    openai_call_t *call = self->call;
    if ((call->kind == OPENAI_CHAT) && call->message_count == 0)
        return openai_refuse(self->why, ERR_INVALID, "messages", "'messages' is missing.");
    if (call->kind == OPENAI_COMPLETION && call->prompt_count == 0)
        return openai_refuse(self->why, ERR_INVALID, "prompt", "'prompt' is missing.");
    if (call->kind == OPENAI_DETOKENIZE && call->prompt_count == 0)
        return openai_refuse(self->why, ERR_INVALID, "tokens", "'tokens' is missing.");
    if (call->kind == OPENAI_TOKENIZE && call->prompt_count + call->message_count == 0)
        return openai_refuse(self->why, ERR_INVALID, "prompt",
                             "'prompt' or 'messages' is missing.");
    if (call->has_top_logprobs && call->sampling.logprobs == 0)
        return openai_refuse(self->why, ERR_INVALID, "top_logprobs",
                             "'top_logprobs' is allowed only with 'logprobs': true.");
    if (call->has_stream_options && !call->is_stream)
        return openai_refuse(self->why, ERR_INVALID, "stream_options",
                             "'stream_options' is allowed only with 'stream': true.");
    if (call->best_of != 0 && call->best_of != call->n)
        return openai_refuse(
            self->why, ERR_UNPROCESSABLE, "best_of",
            "'best_of' other than 'n' is not supported by this server: it is %u, n is %u.",
            call->best_of, call->n);
    if ((uint64_t)call->n * call->prompt_count > OPENAI_CHOICES_MAX)
        return openai_refuse(self->why, ERR_INVALID, call->n > 1 ? "n" : "prompt",
                             "'n' times the number of prompts must be at most %d.",
                             OPENAI_CHOICES_MAX);
    if (call->has_max_tokens && call->max_tokens == 0 && !call->is_echo)
        return openai_refuse(self->why, ERR_INVALID, "max_tokens",
                             "'max_tokens' must be at least 1; 0 is allowed only with 'echo'.");
    if (call->is_echo && call->sampling.logprobs) call->sampling.prompt_logprobs = 1;
    return check_end(self);
}

static void reset(openai_call_t *call)
{
    openai_kind_t kind = call->kind;
    memset(call, 0, sizeof *call);
    call->kind = kind;
    call->sampling = sampling_default;
    call->n = 1;
    call->thinking = -1;
}

static err_t read_body(parser_t *self, const cJSON *root)
{
    if (!cJSON_IsObject(root))
        return openai_refuse(self->why, ERR_INVALID, "", "The body must be a JSON object.");
    const cJSON *value;
    cJSON_ArrayForEach(value, root)
    {
        err_t error = read_field(self, value);
        if (error != ERR_OK) return error;
    }
    return check_together(self);
}

err_t openai_parse(openai_call_t *call, bytes_t body, uint32_t vocab, arena_t *arena,
                   openai_error_t *why)
{
    parser_t self = { call, arena, why, vocab, body };
    cJSON *root = NULL;
    reset(call);
    err_t error = guard_check(body, why);
    if (error == ERR_OK) error = guard_parse(body, &root, why);
    if (error != ERR_OK) return error;
    error = read_body(&self, root);
    cJSON_Delete(root);
    return error;
}

err_t openai_parse_messages(openai_call_t *call, bytes_t json, arena_t *arena, openai_error_t *why)
{
    parser_t self = { call, arena, why, VOCAB_MAX, json };
    cJSON *root = NULL;
    call->kind = OPENAI_CHAT;
    reset(call);
    err_t error = guard_check(json, why);
    if (error == ERR_OK) error = guard_parse(json, &root, why);
    if (error != ERR_OK) return error;
    error = read_messages(&self, root);
    cJSON_Delete(root);
    return error;
}
