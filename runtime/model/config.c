/* runtime/model/config.c - reads config.json key by key; what is missing gets the published
 * default. */
#include "config.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "digest.h"
#include "json.h"
#include "tokenizer_utf8.h"

enum { CONFIG_BYTES_MAX = 1 << 20, SCALE_BLOCK = 128, PATH_BYTES = 4352 };

/* U+0080 to U+009F steer terminals as the bytes below a space do. */
static bool is_control(const uint8_t *bytes, uint32_t size)
{
    return size == 1 ? bytes[0] < 0x20 || bytes[0] == 0x7f
                     : size == 2 && bytes[0] == 0xc2 && bytes[1] < 0xa0;
}

void error_text_write(error_text_t *self, const char *format, va_list arguments)
{
    uint8_t *at = (uint8_t *)self->text;
    vsnprintf(self->text, sizeof self->text, format, arguments);
    for (size_t left = strlen(self->text); left > 0;) {
        utf8_step_t step = utf8_step(at, left);
        if (step.state != UTF8_VALID)
            memset(at, '?', step.size);
        else if (is_control(at, step.size))
            memset(at, ' ', step.size);
        at += step.size;
        left -= step.size;
    }
}

err_t model_refuse(error_text_t *why, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    error_text_write(why, format, arguments);
    va_end(arguments);
    return ERR_MODEL;
}

/* A key that is null counts as left out: older configurations write null where newer ones leave
 * out. */
static const cJSON *find(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

/* What was found, for people: short, on one line. */
static const char *show(const cJSON *item, char *buffer, size_t size)
{
    cJSON *copy = cJSON_Duplicate(item, 1);
    if (!copy || !cJSON_PrintPreallocated(copy, buffer, (int)size, 0))
        snprintf(buffer, size, "a value too long to show");
    cJSON_Delete(copy);
    return buffer;
}

enum { SHOWN_BYTES = 96 };

/* ---- integers ---- */

typedef struct {
    const char *key;
    size_t offset;
    uint32_t least, most;
    bool is_optional;
    uint32_t fallback;
} integer_key_t;

#define NEEDED(key, field, least, most)                                                            \
    {                                                                                              \
        key, offsetof(model_config_t, field), least, most, false, 0                                \
    }
#define OPTIONAL(key, field, least, most, fallback)                                                \
    {                                                                                              \
        key, offsetof(model_config_t, field), least, most, true, fallback                          \
    }

/* clang-format off */
static const integer_key_t integer_keys[] = {
    NEEDED("vocab_size", vocab, 2, VOCAB_MAX),
    NEEDED("hidden_size", hidden, 1, 65536),
    NEEDED("num_hidden_layers", layers, 1, LAYERS_MAX),
    OPTIONAL("first_k_dense_replace", dense_layers, 0, LAYERS_MAX, 0),
    NEEDED("intermediate_size", dense_intermediate, 1, 1 << 20),
    NEEDED("moe_intermediate_size", expert_intermediate, 1, 1 << 20),
    NEEDED("n_routed_experts", experts, 1, EXPERTS_MAX),
    NEEDED("n_shared_experts", shared_experts, 1, 64),
    NEEDED("num_experts_per_tok", top_k, 1, 64),
    NEEDED("num_attention_heads", heads, 1, 1024),
    OPTIONAL("q_lora_rank", q_lora, 0, 65536, 0),
    NEEDED("kv_lora_rank", kv_lora, 1, 65536),
    NEEDED("qk_nope_head_dim", nope, 1, 4096),
    NEEDED("qk_rope_head_dim", rope, 2, 4096),
    NEEDED("v_head_dim", value, 1, 4096),
    NEEDED("max_position_embeddings", context, 1, 1 << 24),
    OPTIONAL("num_nextn_predict_layers", mtp_layers, 0, 16, 0),
    OPTIONAL("bos_token_id", begin_token, 0, VOCAB_MAX - 1, 0),
};
/* clang-format on */

static err_t read_integer(uint32_t *out, const cJSON *root, const integer_key_t *key,
                          error_text_t *why)
{
    const cJSON *item = find(root, key->key);
    char shown[SHOWN_BYTES];
    if (!item && key->is_optional) {
        *out = key->fallback;
        return ERR_OK;
    }
    if (!item)
        return model_refuse(why, "%s is missing; allowed: an integer from %u to %u", key->key,
                            key->least, key->most);
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble) ||
        item->valuedouble < key->least || item->valuedouble > key->most)
        return model_refuse(why, "%s is %s; allowed: an integer from %u to %u", key->key,
                            show(item, shown, sizeof shown), key->least, key->most);
    *out = (uint32_t)item->valuedouble;
    return ERR_OK;
}

static err_t read_integers(model_config_t *self, const cJSON *root, error_text_t *why)
{
    for (size_t i = 0; i < sizeof integer_keys / sizeof *integer_keys; i++) {
        uint32_t *out = (uint32_t *)(void *)((char *)self + integer_keys[i].offset);
        err_t error = read_integer(out, root, &integer_keys[i], why);
        if (error) return error;
    }
    return ERR_OK;
}

/* ---- other types ---- */

typedef struct {
    const char *key;
    double least, most, fallback;
} number_key_t;

static err_t read_number(float *out, const cJSON *object, number_key_t key, error_text_t *why)
{
    const cJSON *item = find(object, key.key);
    char shown[SHOWN_BYTES];
    if (!item) {
        *out = (float)key.fallback;
        return ERR_OK;
    }
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= key.least) ||
        !(item->valuedouble <= key.most))
        return model_refuse(why, "%s is %s; allowed: a number from %g to %g", key.key,
                            show(item, shown, sizeof shown), key.least, key.most);
    *out = (float)item->valuedouble;
    return ERR_OK;
}

static err_t read_bool(int *out, const cJSON *object, const char *key, int fallback,
                       error_text_t *why)
{
    const cJSON *item = find(object, key);
    char shown[SHOWN_BYTES];
    *out = fallback;
    if (!item) return ERR_OK;
    if (!cJSON_IsBool(item))
        return model_refuse(why, "%s is %s; allowed: true or false", key,
                            show(item, shown, sizeof shown));
    *out = cJSON_IsTrue(item);
    return ERR_OK;
}

/* Index of a text among NULL-terminated `words`; `fallback` where the key is left out. */
static err_t read_choice(int *out, const cJSON *object, const char *key, const char *const *words,
                         int fallback, error_text_t *why)
{
    const cJSON *item = find(object, key);
    char shown[SHOWN_BYTES], allowed[256] = "";
    *out = fallback;
    if (!item) return ERR_OK;
    for (int i = 0; words[i]; i++) {
        if (cJSON_IsString(item) && strcmp(item->valuestring, words[i]) == 0) {
            *out = i;
            return ERR_OK;
        }
        size_t used = strlen(allowed);
        snprintf(allowed + used, sizeof allowed - used, "%s%s", i ? ", " : "", words[i]);
    }
    return model_refuse(why, "%s is %s; allowed: %s", key, show(item, shown, sizeof shown),
                        allowed);
}

/* The architecture has no other form of these; a config that asks for one is another architecture.
 */
static err_t check_fixed(const model_config_t *self, const cJSON *root, error_text_t *why)
{
    static const char *const activations[] = { "silu", NULL };
    static const integer_key_t frequency = { "moe_layer_freq", 0, 1, 1, true, 1 };
    const integer_key_t kv_heads = { "num_key_value_heads", 0,    self->heads,
                                     self->heads,           true, self->heads };
    char shown[SHOWN_BYTES];
    int choice, has_bias, is_interleaved;
    uint32_t ignored;
    err_t error = read_choice(&choice, root, "hidden_act", activations, 0, why);
    if (!error) error = read_bool(&has_bias, root, "attention_bias", 0, why);
    if (!error && has_bias) error = model_refuse(why, "attention_bias is true; allowed: false");
    if (!error) error = read_bool(&is_interleaved, root, "rope_interleave", 1, why);
    if (!error && !is_interleaved) /* another order of the rows that rope turns */
        error = model_refuse(why, "rope_interleave is false; allowed: true");
    if (!error) error = read_integer(&ignored, root, &frequency, why);
    if (!error) error = read_integer(&ignored, root, &kv_heads, why);
    const cJSON *index = find(root, "index_topk");
    if (!error && index)
        error = model_refuse(why, "index_topk is %s (sparse attention); allowed: models without it",
                             show(index, shown, sizeof shown));
    return error;
}

/* ---- how experts are chosen ---- */

enum { TYPE_V3, TYPE_KIMI, TYPE_V2 };
enum { METHOD_NOAUX, METHOD_LIMITED, METHOD_GREEDY };

static err_t read_groups(model_config_t *self, const cJSON *root, int method, error_text_t *why)
{
    static const integer_key_t group_keys[] = { { "n_group", 0, 1, EXPERTS_MAX, true, 1 },
                                                { "topk_group", 0, 1, EXPERTS_MAX, true, 1 } };
    gate_t *gate = &self->gate;
    err_t error = read_integer(&gate->groups, root, &group_keys[0], why);
    if (!error) error = read_integer(&gate->top_groups, root, &group_keys[1], why);
    if (error) return error;
    if (method == METHOD_GREEDY) gate->groups = gate->top_groups = 1;
    if (gate->experts % gate->groups)
        return model_refuse(why, "n_group is %u with %u experts; allowed: a divisor", gate->groups,
                            gate->experts);
    if (gate->group_score == GATE_TOP2_SUM && gate->experts / gate->groups < 2)
        return model_refuse(why,
                            "n_group is %u with %u experts; allowed with topk_method noaux_tc: "
                            "groups of two and more, whose best two scores it adds",
                            gate->groups, gate->experts);
    if (gate->top_groups > gate->groups)
        return model_refuse(why, "topk_group is %u; allowed: 1 to n_group, %u", gate->top_groups,
                            gate->groups);
    uint32_t eligible = gate->experts / gate->groups * gate->top_groups;
    if (gate->top_k > eligible)
        return model_refuse(
            why, "num_experts_per_tok is %u; allowed: 1 to %u, the experts of topk_group groups",
            gate->top_k, eligible);
    return ERR_OK;
}

static err_t read_gate(model_config_t *self, const cJSON *root, int type, error_text_t *why)
{
    static const char *const scores[] = { "sigmoid", "softmax", NULL };
    static const char *const methods[] = { "noaux_tc", "group_limited_greedy", "greedy", NULL };
    static const number_key_t scale = { "routed_scaling_factor", 1e-6, 1e6, 1.0 };
    gate_t *gate = &self->gate;
    int score, method;
    bool is_v2 = type == TYPE_V2;
    err_t error = read_choice(&score, root, "scoring_func", scores, is_v2, why);
    if (!error)
        error = read_choice(&method, root, "topk_method", methods,
                            is_v2 ? METHOD_GREEDY : METHOD_NOAUX, why);
    if (!error) error = read_bool(&gate->is_normalised, root, "norm_topk_prob", !is_v2, why);
    if (!error) error = read_number(&gate->scale, root, scale, why);
    if (error) return error;
    gate->experts = self->experts;
    gate->top_k = self->top_k;
    gate->score = score == 0 ? GATE_SIGMOID : GATE_SOFTMAX;
    gate->group_score = method == METHOD_NOAUX ? GATE_TOP2_SUM : GATE_MAX;
    self->has_gate_bias = method == METHOD_NOAUX;
    return read_groups(self, root, method, why);
}

/* ---- rope ---- */

static double yarn_scale(double factor, double mscale)
{
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static err_t read_yarn(model_config_t *self, const cJSON *scaling, error_text_t *why)
{
    const integer_key_t original = {
        "original_max_position_embeddings", 0, 1, 1 << 24, true, self->context
    };
    static const number_key_t keys[] = { { "factor", 1.0, 1e6, 1.0 },
                                         { "beta_fast", 1e-3, 1e6, 32.0 },
                                         { "beta_slow", 1e-3, 1e6, 1.0 },
                                         { "mscale", 0.0, 1e3, 1.0 },
                                         { "mscale_all_dim", 0.0, 1e3, 0.0 } };
    float *targets[] = { &self->rope_factor, &self->beta_fast, &self->beta_slow, &self->mscale,
                         &self->mscale_all_dim };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        err_t error = read_number(targets[i], scaling, keys[i], why);
        if (error) return error;
    }
    if (self->beta_fast < self->beta_slow)
        return model_refuse(why, "beta_fast is %g; allowed: at least beta_slow, %g",
                            (double)self->beta_fast, (double)self->beta_slow);
    return read_integer(&self->rope_original_context, scaling, &original, why);
}

/* rope_theta lies beside the scaling in older files, inside it in newer ones; the scaling's is read
 * after the other and must not contradict it. */
static err_t read_theta(model_config_t *self, const cJSON *root, const cJSON *scaling,
                        error_text_t *why)
{
    number_key_t theta = { "rope_theta", 1.0, 1e12, 10000.0 };
    err_t error = read_number(&self->rope_theta, root, theta, why);
    if (error) return error;
    float beside = self->rope_theta;
    theta.fallback = (double)beside;
    error = read_number(&self->rope_theta, scaling, theta, why);
    if (!error && find(root, theta.key) && self->rope_theta != beside)
        error = model_refuse(why, "rope_theta is %g and, in the scaling, %g; allowed: the same",
                             (double)beside, (double)self->rope_theta);
    return error;
}

/* Newer files say rope_type, older ones type; both may be there.  Names are YaRN's paper's (arXiv
 * 2309.00071). */
static err_t read_scaling(model_config_t *self, const cJSON *root, const char *name,
                          error_text_t *why)
{
    static const char *const types[] = { "yarn", "default", NULL };
    const cJSON *scaling = find(root, name);
    char shown[SHOWN_BYTES];
    err_t error = read_theta(self, root, scaling, why);
    if (error) return error;
    self->rope_factor = self->rope_cos_scale = self->mscale = 1.0f;
    self->rope_original_context = self->context;
    double scale = 1.0 / sqrt((double)self->nope + self->rope);
    self->softmax_scale = (float)scale;
    if (!scaling) return ERR_OK;
    if (!cJSON_IsObject(scaling))
        return model_refuse(why, "%s is %s; allowed: null or an object with type yarn", name,
                            show(scaling, shown, sizeof shown));
    const char *key = find(scaling, "rope_type") ? "rope_type" : "type";
    int type;
    if (!find(scaling, key))
        return model_refuse(why, "%s has no type; allowed: type yarn or default", name);
    error = read_choice(&type, scaling, key, types, 0, why);
    if (error || type == 1) return error;
    error = read_yarn(self, scaling, why);
    if (error) return error;
    double all = yarn_scale(self->rope_factor, self->mscale_all_dim);
    self->rope_cos_scale = (float)(yarn_scale(self->rope_factor, self->mscale) / all);
    self->softmax_scale = (float)(scale * all * all);
    return ERR_OK;
}

static bool is_same_rope(const model_config_t *a, const model_config_t *b)
{
    return a->rope_theta == b->rope_theta && a->rope_factor == b->rope_factor &&
           a->beta_fast == b->beta_fast && a->beta_slow == b->beta_slow && a->mscale == b->mscale &&
           a->mscale_all_dim == b->mscale_all_dim &&
           a->rope_original_context == b->rope_original_context;
}

/* transformers 5 writes rope_parameters where older files have rope_scaling.  A file with both says
 * the same twice. */
static err_t read_rope(model_config_t *self, const cJSON *root, error_text_t *why)
{
    if (!find(root, "rope_parameters")) return read_scaling(self, root, "rope_scaling", why);
    model_config_t older = *self;
    err_t error = read_scaling(self, root, "rope_parameters", why);
    if (error || !find(root, "rope_scaling")) return error;
    error = read_scaling(&older, root, "rope_scaling", why);
    /* rope_theta stands once where only the newer object has it. */
    if (!find(root, "rope_theta") && !find(find(root, "rope_scaling"), "rope_theta"))
        older.rope_theta = self->rope_theta;
    if (!error && !is_same_rope(self, &older))
        error = model_refuse(why, "rope_parameters and rope_scaling differ; allowed: one of them");
    return error;
}

/* ---- quantisation, end tokens ---- */

static bool is_block(const cJSON *item)
{
    const cJSON *first = cJSON_GetArrayItem(item, 0), *second = cJSON_GetArrayItem(item, 1);
    return cJSON_IsArray(item) && cJSON_GetArraySize(item) == 2 && cJSON_IsNumber(first) &&
           cJSON_IsNumber(second) && first->valuedouble == SCALE_BLOCK &&
           second->valuedouble == SCALE_BLOCK;
}

static err_t read_quantisation(model_config_t *self, const cJSON *root, error_text_t *why)
{
    static const char *const methods[] = { "fp8", NULL };
    static const char *const formats[] = { "e4m3", NULL };
    static const char *const schemes[] = { "dynamic", NULL };
    static const char *const scales[] = { "float", "ue8m0", NULL };
    const cJSON *quantisation = find(root, "quantization_config");
    char shown[SHOWN_BYTES];
    int ignored;
    if (!quantisation) return ERR_OK;
    if (!cJSON_IsObject(quantisation) || !find(quantisation, "quant_method"))
        return model_refuse(why, "quantization_config has no quant_method; allowed: fp8");
    err_t error = read_choice(&ignored, quantisation, "quant_method", methods, 0, why);
    if (!error) error = read_choice(&ignored, quantisation, "fmt", formats, 0, why);
    if (!error) error = read_choice(&ignored, quantisation, "activation_scheme", schemes, 0, why);
    if (!error) error = read_choice(&ignored, quantisation, "scale_fmt", scales, 0, why);
    if (error) return error;
    const cJSON *block = find(quantisation, "weight_block_size");
    if (!block) return model_refuse(why, "weight_block_size is missing; allowed: [128,128]");
    if (!is_block(block))
        return model_refuse(why, "weight_block_size is %s; allowed: [128,128]",
                            show(block, shown, sizeof shown));
    self->is_fp8 = 1;
    return ERR_OK;
}

static err_t add_end_token(model_config_t *self, const cJSON *item, error_text_t *why)
{
    char shown[SHOWN_BYTES];
    if (!cJSON_IsNumber(item) || item->valuedouble < 0 || item->valuedouble >= self->vocab ||
        item->valuedouble != floor(item->valuedouble))
        return model_refuse(why, "eos_token_id has %s; allowed: token ids below vocab_size, %u",
                            show(item, shown, sizeof shown), self->vocab);
    uint32_t id = (uint32_t)item->valuedouble;
    for (uint32_t i = 0; i < self->end_token_count; i++)
        if (self->end_tokens[i] == id) return ERR_OK;
    if (self->end_token_count == STOP_IDS_MAX)
        return model_refuse(why, "eos_token_id has more ids; allowed: at most %d", STOP_IDS_MAX);
    self->end_tokens[self->end_token_count++] = id;
    return ERR_OK;
}

static err_t read_end_tokens(model_config_t *self, const cJSON *root, error_text_t *why)
{
    const cJSON *item = find(root, "eos_token_id"), *element;
    if (!item) return ERR_OK;
    if (!cJSON_IsArray(item)) return add_end_token(self, item, why);
    cJSON_ArrayForEach(element, item)
    {
        err_t error = add_end_token(self, element, why);
        if (error) return error;
    }
    return ERR_OK;
}

/* ---- the whole ---- */

static err_t check_whole(const model_config_t *self, error_text_t *why)
{
    if (self->rope % 2)
        return model_refuse(why, "qk_rope_head_dim is %u; allowed: even", self->rope);
    if (self->dense_layers > self->layers)
        return model_refuse(why, "first_k_dense_replace is %u; allowed: 0 to num_hidden_layers, %u",
                            self->dense_layers, self->layers);
    if (self->begin_token >= self->vocab)
        return model_refuse(why, "bos_token_id is %u; allowed: below vocab_size, %u",
                            self->begin_token, self->vocab);
    if (self->is_fp8 &&
        (self->dense_intermediate % SCALE_BLOCK || self->expert_intermediate % SCALE_BLOCK))
        return model_refuse(
            why,
            "intermediate_size %u and moe_intermediate_size %u with fp8 weights; allowed: "
            "multiples of %d, since gate and up share blocks of scales",
            self->dense_intermediate, self->expert_intermediate, SCALE_BLOCK);
    return ERR_OK;
}

static err_t read_type(model_config_t *self, const cJSON *root, int *type, error_text_t *why)
{
    static const char *const types[] = { "deepseek_v3", "kimi_k2", "deepseek_v2", NULL };
    if (!find(root, "model_type"))
        return model_refuse(why,
                            "model_type is missing; allowed: deepseek_v3, kimi_k2, deepseek_v2");
    err_t error = read_choice(type, root, "model_type", types, 0, why);
    if (!error) snprintf(self->model_type, sizeof self->model_type, "%s", types[*type]);
    return error;
}

static err_t read_root(model_config_t *self, const cJSON *root, error_text_t *why)
{
    int type;
    memset(self, 0, sizeof *self);
    err_t error = read_type(self, root, &type, why);
    const number_key_t epsilon = { "rms_norm_eps", 0.0, 1.0, 1e-6 };
    if (!error) error = read_integers(self, root, why);
    if (!error) error = check_fixed(self, root, why);
    if (!error) error = read_number(&self->rms_eps, root, epsilon, why);
    if (!error) error = read_bool(&self->has_tied_head, root, "tie_word_embeddings", 0, why);
    if (!error) error = read_gate(self, root, type, why);
    if (!error) error = read_rope(self, root, why);
    if (!error) error = read_quantisation(self, root, why);
    if (!error) error = read_end_tokens(self, root, why);
    if (!error) error = check_whole(self, why);
    return error;
}

err_t model_config_parse(model_config_t *self, const char *json, size_t size, error_text_t *why)
{
    model_config_t parsed;
    if (size > CONFIG_BYTES_MAX)
        return model_refuse(why, "config.json has %zu bytes; allowed: %d", size, CONFIG_BYTES_MAX);
    json_fault_t fault;
    cJSON *root = json_parse_object(json, size, &fault);
    if (!root) return model_refuse(why, "config.json %s", fault.text);
    err_t error = read_root(&parsed, root, why);
    cJSON_Delete(root);
    if (!error) *self = parsed;
    return error;
}

/* The whole of a small file; NULL with errno set where it cannot be read. */
static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    char *bytes = malloc(CONFIG_BYTES_MAX + 1);
    *size = bytes ? fread(bytes, 1, CONFIG_BYTES_MAX + 1, file) : 0;
    int error = ferror(file) ? errno : 0; /* EISDIR: a directory can be opened */
    fclose(file);
    if (!error) return bytes;
    free(bytes);
    errno = error;
    return NULL;
}

/* generation_config.json may name further end tokens; the file may be missing. */
static err_t read_generation(model_config_t *self, const char *dir, error_text_t *why)
{
    char path[PATH_BYTES];
    size_t size;
    snprintf(path, sizeof path, "%s/generation_config.json", dir);
    char *bytes = read_file(path, &size);
    if (!bytes && errno == ENOENT) return ERR_OK;
    if (!bytes) return model_refuse(why, "generation_config.json: %s", strerror(errno));
    json_fault_t fault;
    cJSON *root = json_parse_object(bytes, size, &fault);
    free(bytes);
    if (!root) return model_refuse(why, "generation_config.json %s", fault.text);
    err_t error = read_end_tokens(self, root, why);
    cJSON_Delete(root);
    return error;
}

/* Say which directory it was about, in front. */
static err_t name_dir(err_t error, const char *dir, error_text_t *why)
{
    error_text_t inner = *why;
    if (error) snprintf(why->text, sizeof why->text, "%.200s: %.300s", dir, inner.text);
    return error;
}

err_t model_config_read(model_config_t *self, const char *dir, error_text_t *why)
{
    char path[PATH_BYTES];
    size_t size;
    model_config_t parsed;
    snprintf(path, sizeof path, "%s/config.json", dir);
    char *bytes = read_file(path, &size);
    if (!bytes) return model_refuse(why, "%.300s: %s", path, strerror(errno));
    err_t error = model_config_parse(&parsed, bytes, size, why);
    free(bytes);
    if (!error) error = read_generation(&parsed, dir, why);
    if (!error) error = weights_digest(&parsed.weights, dir, why);
    if (!error) *self = parsed;
    return name_dir(error, dir, why);
}

/* Frequency pair at which a wave turns `rotations` times within the original context. */
static double correction(const model_config_t *self, double rotations)
{
    return self->rope * log(self->rope_original_context / (rotations * 2.0 * M_PI)) /
           (2.0 * log(self->rope_theta));
}

/* Pairs below `low` keep their frequency, pairs above `high` are slowed by the factor, those
 * between are blended. */
static double frequency(const model_config_t *self, uint32_t pair)
{
    double plain = pow(self->rope_theta, -2.0 * pair / self->rope);
    if (self->rope_factor <= 1.0f) return plain;
    double low = fmax(floor(correction(self, self->beta_fast)), 0.0);
    double high = fmin(ceil(correction(self, self->beta_slow)), self->rope - 1.0);
    if (low == high) high += 0.001;
    double ramp = fmin(fmax((pair - low) / (high - low), 0.0), 1.0);
    return plain / self->rope_factor * ramp + plain * (1.0 - ramp);
}

void model_rope_table(const model_config_t *self, float *table, uint32_t positions)
{
    uint32_t pairs = self->rope / 2;
    for (uint32_t pair = 0; pair < pairs; pair++) {
        double turn = frequency(self, pair);
        for (uint32_t position = 0; position < positions; position++) {
            float *out = table + ((size_t)position * pairs + pair) * 2;
            out[0] = (float)(cos(position * turn) * self->rope_cos_scale);
            out[1] = (float)(sin(position * turn) * self->rope_cos_scale);
        }
    }
}

size_t model_block_bytes(const model_config_t *self)
{
    return (size_t)self->layers * BLOCK_TOKENS * (self->kv_lora + self->rope) * 2;
}

/* FNV-1a: names a configuration, guards against mistakes, not against malice. */
static uint64_t mix(uint64_t hash, const void *data, size_t size)
{
    const unsigned char *bytes = data;
    for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

uint64_t model_key(const model_config_t *self)
{
    const uint32_t shape[] = { self->vocab,
                               self->hidden,
                               self->layers,
                               self->dense_layers,
                               self->experts,
                               self->top_k,
                               self->heads,
                               self->q_lora,
                               self->kv_lora,
                               self->nope,
                               self->rope,
                               self->value,
                               BLOCK_TOKENS,
                               DTYPE_BF16,
                               self->dense_intermediate,
                               self->expert_intermediate,
                               self->shared_experts,
                               self->gate.groups,
                               self->gate.top_groups,
                               self->rope_original_context,
                               (uint32_t)self->is_fp8 };
    const float numbers[] = { self->rms_eps,     self->softmax_scale,  self->rope_theta,
                              self->rope_factor, self->beta_fast,      self->beta_slow,
                              self->mscale,      self->rope_cos_scale, self->gate.scale };
    uint64_t hash = mix(0xcbf29ce484222325u, self->model_type, strlen(self->model_type));
    hash = mix(hash, shape, sizeof shape);
    hash = mix(hash, numbers, sizeof numbers);
    hash = mix(hash, &self->weights, sizeof self->weights);
    return hash ? hash : 1;
}
