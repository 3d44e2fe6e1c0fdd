/* tests/model/test_model_config.c - config.json of every published variant, and of what is none. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/model/config.h"

/* The published shapes, with the keys that their files have. */
/* clang-format off */
#define V3_SHAPE \
    "\"model_type\":\"deepseek_v3\",\"vocab_size\":129280,\"hidden_size\":7168,\"intermediate_size\":18432,\"moe_intermediate_size\":2048," \
    "\"num_hidden_layers\":61,\"first_k_dense_replace\":3,\"num_attention_heads\":128,\"num_key_value_heads\":128,\"q_lora_rank\":1536," \
    "\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":256,\"n_shared_experts\":1," \
    "\"num_experts_per_tok\":8,\"n_group\":8,\"topk_group\":4,\"norm_topk_prob\":true,\"routed_scaling_factor\":2.5,\"scoring_func\":\"sigmoid\"," \
    "\"topk_method\":\"noaux_tc\",\"moe_layer_freq\":1,\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-06,\"attention_bias\":false," \
    "\"tie_word_embeddings\":false,\"max_position_embeddings\":163840,\"num_nextn_predict_layers\":1,\"bos_token_id\":0,\"eos_token_id\":1"
#define V3_REST V3_SHAPE ",\"rope_theta\":10000"
#define V3_YARN "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1.0,\"mscale_all_dim\":1.0}"
#define V3_FP8 "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}"

static const char v3[] = "{" V3_REST "," V3_YARN "," V3_FP8 "}";
static const char v3_1[] = "{" V3_REST "," V3_YARN ",\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"scale_fmt\":\"ue8m0\",\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}}";
static const char kimi_k2[] =
    "{\"model_type\":\"kimi_k2\",\"vocab_size\":163840,\"hidden_size\":7168,\"intermediate_size\":18432,\"moe_intermediate_size\":2048,"
    "\"num_hidden_layers\":61,\"first_k_dense_replace\":1,\"num_attention_heads\":64,\"num_key_value_heads\":64,\"q_lora_rank\":1536,\"kv_lora_rank\":512,"
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":384,\"n_shared_experts\":1,\"num_experts_per_tok\":8,"
    "\"n_group\":1,\"topk_group\":1,\"norm_topk_prob\":true,\"routed_scaling_factor\":2.827,\"scoring_func\":\"sigmoid\",\"topk_method\":\"noaux_tc\","
    "\"max_position_embeddings\":131072,\"rope_theta\":50000.0,\"num_nextn_predict_layers\":0,\"bos_token_id\":163584,\"eos_token_id\":163585,"
    "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":32.0,\"original_max_position_embeddings\":4096,\"beta_fast\":1.0,\"beta_slow\":1.0,\"mscale\":1.0,\"mscale_all_dim\":1.0}," V3_FP8 "}";
static const char moonlight[] =
    "{\"model_type\":\"deepseek_v3\",\"vocab_size\":163840,\"hidden_size\":2048,\"intermediate_size\":11264,\"moe_intermediate_size\":1408,"
    "\"num_hidden_layers\":27,\"first_k_dense_replace\":1,\"num_attention_heads\":16,\"num_key_value_heads\":16,\"q_lora_rank\":null,\"kv_lora_rank\":512,"
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":64,\"n_shared_experts\":2,\"num_experts_per_tok\":6,"
    "\"n_group\":1,\"topk_group\":1,\"norm_topk_prob\":true,\"routed_scaling_factor\":2.446,\"scoring_func\":\"sigmoid\",\"topk_method\":\"noaux_tc\","
    "\"max_position_embeddings\":8192,\"rope_theta\":50000.0,\"rope_scaling\":null,\"eos_token_id\":[163585,163586]}";
static const char v2[] =
    "{\"model_type\":\"deepseek_v2\",\"vocab_size\":102400,\"hidden_size\":5120,\"intermediate_size\":12288,\"moe_intermediate_size\":1536,"
    "\"num_hidden_layers\":60,\"first_k_dense_replace\":1,\"num_attention_heads\":128,\"num_key_value_heads\":128,\"q_lora_rank\":1536,\"kv_lora_rank\":512,"
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":160,\"n_shared_experts\":2,\"num_experts_per_tok\":6,"
    "\"n_group\":8,\"topk_group\":3,\"norm_topk_prob\":false,\"routed_scaling_factor\":16.0,\"scoring_func\":\"softmax\",\"topk_method\":\"group_limited_greedy\","
    "\"max_position_embeddings\":163840,\"rope_theta\":10000,\"bos_token_id\":100000,\"eos_token_id\":100001,"
    "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,\"beta_fast\":32,\"beta_slow\":1,\"mscale\":0.707,\"mscale_all_dim\":0.707}}";
static const char v2_lite[] =
    "{\"model_type\":\"deepseek_v2\",\"vocab_size\":102400,\"hidden_size\":2048,\"intermediate_size\":10944,\"moe_intermediate_size\":1408,"
    "\"num_hidden_layers\":27,\"first_k_dense_replace\":1,\"num_attention_heads\":16,\"q_lora_rank\":null,\"kv_lora_rank\":512,"
    "\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":64,\"n_shared_experts\":2,\"num_experts_per_tok\":6,"
    "\"n_group\":null,\"topk_group\":null,\"max_position_embeddings\":163840,\"rope_scaling\":null}";
/* clang-format on */

static model_config_t parse(const char *json)
{
    model_config_t config;
    error_text_t why = { "" };
    if (model_config_parse(&config, json, strlen(json), &why)) fail_msg("refused: %s", why.text);
    return config;
}

/* If this failed, DeepSeek-V3 would be computed with another shape or softmax scale than it was
 * trained with. */
static void test_config_v3_has_its_published_values(void **state)
{
    model_config_t c = parse(v3);
    assert_true(c.hidden == 7168 && c.layers == 61 && c.dense_layers == 3 && c.mtp_layers == 1);
    assert_true(c.experts == 256 && c.shared_experts == 1 && c.top_k == 8 && c.q_lora == 1536);
    assert_true(c.gate.groups == 8 && c.gate.top_groups == 4 && c.gate.score == GATE_SIGMOID);
    assert_true(c.gate.group_score == GATE_TOP2_SUM && c.gate.is_normalised && c.has_gate_bias &&
                c.is_fp8);
    assert_true(fabs((double)c.softmax_scale - 0.13523378) < 1e-8);
    assert_true(c.rope_cos_scale == 1.0f && c.end_token_count == 1 && c.end_tokens[0] == 1);
    assert_int_equal(model_block_bytes(&c), (size_t)64 * 70272);
    assert_true(parse(v3_1).is_fp8);
}

/* If this failed, the frequencies of long contexts would differ from YaRN's: pairs up to 10 keep
 * theirs, from 23 on they are divided by the factor, those between are blended. */
static void test_config_v3_rope_table_follows_yarn(void **state)
{
    enum { POSITIONS = 1001, PAIRS = 32 };
    model_config_t c = parse(v3);
    float *table = malloc(POSITIONS * PAIRS * 2 * sizeof *table);
    model_rope_table(&c, table, POSITIONS);
    for (int pair = 0; pair < PAIRS; pair++) {
        double plain = pow(10000.0, -2.0 * pair / 64.0);
        double share = fmin(fmax((pair - 10.0) / 13.0, 0.0), 1.0);
        double frequency = plain / 40.0 * share + plain * (1.0 - share);
        for (int position = 0; position < POSITIONS; position += 500) {
            const float *entry = table + ((size_t)position * PAIRS + (size_t)pair) * 2;
            assert_true(fabs((double)entry[0] - cos(position * frequency)) < 1e-6);
            assert_true(fabs((double)entry[1] - sin(position * frequency)) < 1e-6);
        }
    }
    free(table);
}

/* v3 with `from` replaced by `to`. */
static const char *changed(const char *from, const char *to)
{
    static char json[4096];
    const char *at = strstr(v3, from);
    assert_non_null(at);
    snprintf(json, sizeof json, "%.*s%s%s", (int)(at - v3), v3, to, at + strlen(from));
    return json;
}

/* If this failed, a checkpoint saved by transformers 5, which writes rope_parameters, would be
 * computed without YaRN. */
static void test_config_rope_parameters_are_read_as_rope_scaling(void **state)
{
#define V5_YARN                                                                                    \
    "\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":50000,\"factor\":40,"              \
    "\"original_max_position_embeddings\":4096,\"beta_fast\":32,\"beta_slow\":1,"                  \
    "\"mscale\":1.0,\"mscale_all_dim\":1.0}"
    model_config_t old = parse(changed("\"rope_theta\":10000", "\"rope_theta\":50000"));
    model_config_t new =
        parse(changed("\"rope_theta\":10000", V5_YARN ",\"rope_interleave\":true"));
    assert_true(model_key(&old) == model_key(&new)); /* both objects, saying the same */
    new = parse(changed(V3_YARN, "\"rope_parameters\":{\"rope_type\":\"default\"}"));
    assert_true(new.rope_factor == 1.0f && new.rope_theta == 10000.0f);
    new = parse("{" V3_SHAPE "," V5_YARN "," V3_FP8 "}"); /* nothing beside it */
    assert_true(model_key(&old) == model_key(&new));
    assert_true(new.rope_theta == 50000.0f && new.rope_factor == 40.0f);
}

/* If this failed, Kimi-K2 (one group, equal betas) could not be served. */
static void test_config_kimi_k2_has_its_published_values(void **state)
{
    float table[64 * 2];
    model_config_t c = parse(kimi_k2);
    double mscale = 0.1 * log(32.0) + 1.0;
    assert_true(c.experts == 384 && c.heads == 64 && c.gate.groups == 1 && c.dense_layers == 1);
    assert_true(fabs((double)c.gate.scale - 2.827) < 1e-6);
    assert_true(fabs((double)c.softmax_scale - mscale * mscale / sqrt(192.0)) < 1e-7);
    model_rope_table(&c, table, 2);
    for (int i = 0; i < 128; i++) assert_true(isfinite(table[i]));
}

/* If this failed, models without q_lora, YaRN or groups would be refused or scaled wrongly. */
static void test_config_moonlight_has_its_published_values(void **state)
{
    model_config_t c = parse(moonlight);
    assert_true(c.q_lora == 0 && c.shared_experts == 2 && c.expert_intermediate == 1408 &&
                !c.is_fp8);
    assert_true(c.rope_factor == 1.0f && c.rope_theta == 50000.0f);
    assert_true(fabs((double)c.softmax_scale - 1.0 / sqrt(192.0)) < 1e-8);
    assert_true(c.end_token_count == 2 && c.end_tokens[1] == 163586);
}

/* If this failed, DeepSeek-V2's gate and its scaled cosines would be V3's. */
static void test_config_v2_has_its_published_values(void **state)
{
    model_config_t c = parse(v2);
    double mscale = 0.1 * 0.707 * log(40.0) + 1.0;
    assert_true(c.gate.score == GATE_SOFTMAX && c.gate.group_score == GATE_MAX && !c.has_gate_bias);
    assert_true(c.gate.groups == 8 && c.gate.top_groups == 3 && !c.gate.is_normalised &&
                c.gate.scale == 16.0f);
    assert_true(fabs((double)c.softmax_scale - mscale * mscale / sqrt(192.0)) < 1e-7);
    assert_true(c.rope_cos_scale == 1.0f);
}

/* If this failed, keys that V2-Lite's file leaves out or sets to null would get V3's defaults. */
static void test_config_v2_lite_gets_the_defaults_of_its_family(void **state)
{
    model_config_t c = parse(v2_lite);
    assert_true(c.q_lora == 0 && c.gate.groups == 1 && c.gate.top_groups == 1 &&
                c.gate.scale == 1.0f);
    assert_true(c.gate.score == GATE_SOFTMAX && !c.gate.is_normalised && !c.has_gate_bias);
    assert_true(c.end_token_count == 0 && c.mtp_layers == 0 &&
                fabs((double)c.rms_eps - 1e-6) < 1e-12);
}

/* If this failed, a fixture's directory could not be read, or generation_config.json would be
 * overlooked. */
static void test_config_shipped_models_are_read(void **state)
{
    static const char *const dirs[] = { SOURCE_DIR "/models/tiny",
                                        SOURCE_DIR "/tests/golden/variants/v3",
                                        SOURCE_DIR "/tests/golden/variants/moonlight",
                                        SOURCE_DIR "/tests/golden/variants/v2",
                                        SOURCE_DIR "/tests/golden/variants/v2_lite" };
    uint64_t keys[5];
    for (int i = 0; i < 5; i++) {
        model_config_t c;
        error_text_t why;
        if (model_config_read(&c, dirs[i], &why)) fail_msg("%s", why.text);
        assert_true(c.end_token_count == 1 && c.end_tokens[0] == 1);
        keys[i] = model_key(&c);
        for (int k = 0; k < i; k++) assert_true(keys[k] != keys[i]);
    }
}

/* If this failed, the KV of differing models could be exchanged. */
static void test_config_key_differs_with_every_shape(void **state)
{
    model_config_t a = parse(v3), b = a;
    assert_true(model_key(&a) == model_key(&b));
    b.rope_factor = 20;
    assert_true(model_key(&a) != model_key(&b));
    b = a;
    b.heads++;
    assert_true(model_key(&a) != model_key(&b));
}

typedef struct {
    const char *from, *to; /* a change of v3 */
    const char *named;     /* what the refusal must name */
    const char *allowed;   /* and what it must offer */
} wrong_t;

/* clang-format off */
static const wrong_t wrongs[] = {
    { "deepseek_v3", "llama", "model_type", "deepseek_v2" },
    { "\"hidden_size\":7168,", "", "hidden_size", "1 to 65536" },
    { "\"hidden_size\":7168", "\"hidden_size\":-1", "hidden_size", "1 to 65536" },
    { "\"hidden_size\":7168", "\"hidden_size\":71.5", "hidden_size", "integer" },
    { "\"hidden_size\":7168", "\"hidden_size\":\"big\"", "hidden_size", "integer" },
    { "\"vocab_size\":129280", "\"vocab_size\":1e18", "vocab_size", "integer" },
    { "\"silu\"", "\"gelu\"", "hidden_act", "silu" },
    { "\"attention_bias\":false", "\"attention_bias\":true", "attention_bias", "false" },
    { "\"attention_bias\":false", "\"rope_interleave\":false", "rope_interleave", "true" },
    { "\"moe_layer_freq\":1", "\"moe_layer_freq\":2", "moe_layer_freq", "1" },
    { "\"num_key_value_heads\":128", "\"num_key_value_heads\":8", "num_key_value_heads", "128" },
    { "\"n_group\":8", "\"n_group\":7", "n_group", "divisor" },
    { "\"n_group\":8", "\"n_group\":256", "n_group", "two" },
    { "\"topk_group\":4", "\"topk_group\":9", "topk_group", "n_group" },
    { "\"num_experts_per_tok\":8,\"n_group\":8,\"topk_group\":4", "\"num_experts_per_tok\":60,\"n_group\":8,\"topk_group\":1", "num_experts_per_tok", "1 to 32" },
    { "\"noaux_tc\"", "\"hash\"", "topk_method", "noaux_tc" },
    { "\"sigmoid\"", "\"sqrtsoftplus\"", "scoring_func", "sigmoid" },
    { "\"type\":\"yarn\"", "\"type\":\"linear\"", "type", "yarn" },
    { "\"type\":\"yarn\",", "", "rope_scaling", "yarn" },
    { "\"rope_scaling\":{\"type\":\"yarn\"", "\"rope_parameters\":{\"rope_theta\":1e4", "rope_parameters has no type", "yarn" },
    { "\"rope_scaling\":{\"type\":\"yarn\"", "\"rope_parameters\":{\"type\":\"yarn\",\"rope_theta\":50000", "rope_theta", "the same" },
    { "\"rope_scaling\":{", "\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":40},\"rope_scaling\":{", "rope_parameters and rope_scaling", "one of them" },
    { "\"rope_scaling\":{", "\"rope_parameters\":{\"rope_type\":\"default\"},\"rope_scaling\":{", "rope_parameters and rope_scaling", "one of them" },
    { "\"rope_scaling\":{", "\"rope_parameters\":[],\"rope_scaling\":{", "rope_parameters is []", "yarn" },
    { "\"beta_fast\":32", "\"beta_fast\":0.5", "beta_fast", "beta_slow" },
    { "\"factor\":40", "\"factor\":0.5", "factor", "from 1" },
    { "\"quant_method\":\"fp8\"", "\"quant_method\":\"awq\"", "quant_method", "fp8" },
    { "\"fmt\":\"e4m3\"", "\"fmt\":\"e5m2\"", "fmt", "e4m3" },
    { "[128,128]", "[64,128]", "weight_block_size", "[128,128]" },
    { "\"moe_intermediate_size\":2048", "\"moe_intermediate_size\":2000", "moe_intermediate_size", "128" },
    { "\"qk_rope_head_dim\":64", "\"qk_rope_head_dim\":63", "qk_rope_head_dim", "even" },
    { "\"first_k_dense_replace\":3", "\"first_k_dense_replace\":62", "first_k_dense_replace", "61" },
    { "\"eos_token_id\":1", "\"eos_token_id\":[1,129280]", "eos_token_id", "129280" },
    { "\"eos_token_id\":1", "\"eos_token_id\":1,\"index_topk\":2048", "index_topk", "without" },
};
/* clang-format on */

/* If this failed, a model that we would compute wrongly would be served in silence, or refused
 * without a reason. */
static void test_config_what_it_does_not_know_is_refused_by_name(void **state)
{
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        model_config_t c;
        error_text_t why = { "" };
        const char *json = changed(wrongs[i].from, wrongs[i].to);
        if (model_config_parse(&c, json, strlen(json), &why) != ERR_MODEL)
            fail_msg("accepted: %s", wrongs[i].to);
        if (!strstr(why.text, wrongs[i].named) || !strstr(why.text, wrongs[i].allowed))
            fail_msg("%s: says %s", wrongs[i].to, why.text);
    }
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

/* If this failed, a model whose end tokens could not be read would never stop. */
static void test_config_generation_config_is_an_object_or_missing(void **state)
{
    static const char *const wrong[][2] = {
        { "[]", "is JSON, but no object" },
        { "null", "is JSON, but no object" },
        { "1", "is JSON, but no object" },
        { "", "is not JSON: it is empty" },
        { "{\"eos_token_id\":[2]", "is not JSON: error at byte" },
        { "{\"eos_token_id\":[2]} x", "is not JSON: something follows it at byte 21 of 22" },
    };
    char directory[] = "/tmp/troupe-test-config-XXXXXX", config[64], generation[64];
    model_config_t c;
    error_text_t why;
    assert_non_null(mkdtemp(directory));
    snprintf(config, sizeof config, "%s/config.json", directory);
    snprintf(generation, sizeof generation, "%s/generation_config.json", directory);
    write_text(config, v3);
    assert_int_equal(model_config_read(&c, directory, &why), ERR_OK);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_text(generation, wrong[i][0]);
        assert_int_equal(model_config_read(&c, directory, &why), ERR_MODEL);
        assert_non_null(strstr(why.text, "generation_config.json "));
        assert_non_null(strstr(why.text, wrong[i][1]));
    }
    write_text(generation, "{\"eos_token_id\":[2]}");
    assert_int_equal(model_config_read(&c, directory, &why), ERR_OK);
    assert_int_equal(c.end_token_count, 2);
    assert_int_equal(unlink(generation), 0);
    assert_int_equal(mkdir(generation, 0700), 0);
    assert_int_equal(model_config_read(&c, directory, &why), ERR_MODEL);
    assert_non_null(strstr(why.text, "generation_config.json: Is a directory"));
    assert_int_equal(rmdir(generation) | unlink(config) | rmdir(directory), 0);
}

/* If this failed, a model's file could steer the terminal of whoever reads why it is refused. */
static void test_config_refusals_show_no_control_characters(void **state)
{
    model_config_t c;
    error_text_t why;
    const char *json = changed("\"deepseek_v3\"", "\"\x7f\xc2\x9b]0;m\x9b\xe6\xb7\xb1\xe6\xb7\"");
    assert_int_equal(model_config_parse(&c, json, strlen(json), &why), ERR_MODEL);
    if (!strstr(why.text, "\"   ]0;m?\xe6\xb7\xb1??\"")) fail_msg("says %s", why.text);
    assert_int_equal(model_refuse(&why, "%s", "a\x1b[31m\nb"), ERR_MODEL);
    assert_string_equal(why.text, "a [31m b");
}

/* If this failed, a damaged file would crash the loader. */
static void test_config_damaged_text_is_refused(void **state)
{
    model_config_t c;
    error_text_t why;
    assert_int_equal(model_config_parse(&c, "[]", 2, &why), ERR_MODEL);
    assert_int_equal(model_config_parse(&c, "", 0, &why), ERR_MODEL);
    for (size_t size = 0; size + 1 < sizeof v3; size += 7) {
        char *cut = malloc(size + 1);
        memcpy(cut, v3, size);
        assert_int_equal(model_config_parse(&c, cut, size, &why), ERR_MODEL);
        free(cut);
    }
    static const char *const around[] = { "%s}", "%s{}", "%s null", "%s\v", "\xef\xbb\xbf%s" };
    char longer[4096];
    for (size_t i = 0; i < sizeof around / sizeof *around; i++) {
        const char *mark = strstr(around[i], "%s");
        snprintf(longer, sizeof longer, "%.*s%s%s", (int)(mark - around[i]), around[i], v3,
                 mark + 2);
        assert_int_equal(model_config_parse(&c, longer, strlen(longer), &why), ERR_MODEL);
    }
    snprintf(longer, sizeof longer, " \n%s \r\n\t", v3);
    assert_int_equal(model_config_parse(&c, longer, strlen(longer), &why), ERR_OK);
    assert_int_equal(model_config_parse(&c, v3, sizeof v3, &why), ERR_MODEL); /* a NUL behind it */
    assert_int_equal(model_config_read(&c, "/nowhere", &why), ERR_MODEL);
    assert_non_null(strstr(why.text, "/nowhere"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_v3_has_its_published_values),
        cmocka_unit_test(test_config_v3_rope_table_follows_yarn),
        cmocka_unit_test(test_config_rope_parameters_are_read_as_rope_scaling),
        cmocka_unit_test(test_config_kimi_k2_has_its_published_values),
        cmocka_unit_test(test_config_moonlight_has_its_published_values),
        cmocka_unit_test(test_config_v2_has_its_published_values),
        cmocka_unit_test(test_config_v2_lite_gets_the_defaults_of_its_family),
        cmocka_unit_test(test_config_shipped_models_are_read),
        cmocka_unit_test(test_config_key_differs_with_every_shape),
        cmocka_unit_test(test_config_what_it_does_not_know_is_refused_by_name),
        cmocka_unit_test(test_config_generation_config_is_an_object_or_missing),
        cmocka_unit_test(test_config_refusals_show_no_control_characters),
        cmocka_unit_test(test_config_damaged_text_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
