/* tests/model/test_weights.c - checkpoints as they should be, and as they should not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/model/safetensors.h"
#include "runtime/model/weights.h"

#define TINY SOURCE_DIR "/models/tiny"

/* ---- files made up here ---- */

static char directory[64];

static int make_directory(void **state)
{
    snprintf(directory, sizeof directory, "/tmp/troupe-test-weights-XXXXXX");
    assert_non_null(mkdtemp(directory));
    return 0;
}

static const char *path_of(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static int remove_directory(void **state)
{
    static const char *const names[] = { "config.json", "model.safetensors",
                                         "model.safetensors.index.json", "one.safetensors",
                                         "two.safetensors" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(path_of(names[i]));
    return rmdir(directory);
}

typedef struct {
    char *bytes;
    size_t size;
} file_t;

static file_t read_file(const char *path)
{
    struct stat status;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &status)) fail_msg("%s is missing", path);
    file_t out = { malloc((size_t)status.st_size), (size_t)status.st_size };
    assert_int_equal(fread(out.bytes, 1, out.size, file), out.size);
    fclose(file);
    return out;
}

static void write_file(const char *name, const void *bytes, size_t size)
{
    FILE *file = fopen(path_of(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* A safetensors file in memory: header text and so many bytes of data. */
static file_t make_file(const char *header, size_t data_bytes)
{
    uint64_t size = strlen(header);
    file_t out = { calloc(1, 8 + size + data_bytes + 1), 8 + size + data_bytes };
    memcpy(out.bytes, &size, 8);
    memcpy(out.bytes + 8, header, size);
    return out;
}

/* ---- headers ---- */

typedef struct {
    const char *header;
    size_t data_bytes;
    const char *says; /* NULL: it is sound */
} header_case_t;

/* clang-format off */
static const header_case_t header_cases[] = {
    { "{}", 0, NULL },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}  ", 16, NULL },
    { "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}", 1, NULL },
    { "{\"b\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[4,6]},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 6, NULL },
    { "[]", 0, "header is JSON, but no object" },
    { "\xef\xbb\xbf{}", 0, "header is not JSON: a byte order mark" },
    { "{\"a\":", 0, "header is not JSON: error at byte" },
    { "{\"a\":3}", 0, "dtype" },
    { "{\"a\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[0,1]}}", 1, "dtype" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", 8, "shape" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, "dimension" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,6]}}", 6, "dimension" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,16]}}", 16, "dimension" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "dimensions" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, "data_offsets" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, "data_offsets" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,12]}}", 12, "data_offsets" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7, "truncated" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, "follow" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12, "hole" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[2,6]}}", 6, "overlap" },
    { "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, "twice" },
    { "{\"a\":[[[[[[]]]]]]}", 0, "nested" },
};
/* clang-format on */

/* If this failed, a hostile file could make the loader read outside of it. */
static void test_weights_header_is_checked_before_use(void **state)
{
    for (size_t i = 0; i < sizeof header_cases / sizeof *header_cases; i++) {
        const header_case_t *c = &header_cases[i];
        error_text_t why = { "" };
        file_t file = make_file(c->header, c->data_bytes);
        err_t error = safetensors_check(file.bytes, file.size, &why);
        if (!c->says && error) fail_msg("%s: refused: %s", c->header, why.text);
        if (c->says && (error != ERR_MODEL || !strstr(why.text, c->says)))
            fail_msg("%s: should say %s, says %s", c->header, c->says,
                     error ? why.text : "nothing");
        free(file.bytes);
    }
}

/* If this failed, bytes in a header that nobody reads, or a second header, would pass as a sound
 * file. */
static void test_weights_header_is_followed_by_spaces_only(void **state)
{
    static const struct {
        const char *rest;
        size_t size;
        err_t error;
    } cases[] = { { " \t\r\n ", 5, ERR_OK }, { "x", 1, ERR_MODEL },   { "  {}", 4, ERR_MODEL },
                  { "\0\0", 2, ERR_MODEL },  { " \0", 2, ERR_MODEL }, { "\v", 1, ERR_MODEL } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error_text_t why = { "" };
        file_t file = make_file("{}", cases[i].size);
        uint64_t size = 2 + cases[i].size;
        memcpy(file.bytes, &size, sizeof size);
        memcpy(file.bytes + 10, cases[i].rest, cases[i].size);
        assert_int_equal(safetensors_check(file.bytes, file.size, &why), cases[i].error);
        free(file.bytes);
    }
}

/* If this failed, a header of a few megabytes could take gigabytes before it is refused. */
static void test_weights_header_has_a_bounded_number_of_values(void **state)
{
    enum { VALUES = 3 << 20 };
    static const char begin[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[";
    static const char end[] = "1],\"data_offsets\":[0,4]}}";
    char *header = malloc(sizeof begin + sizeof end + (size_t)VALUES * 2), *at = header;
    error_text_t why = { "" };
    at = stpcpy(at, begin);
    for (int i = 0; i < VALUES; i++) at = stpcpy(at, "1,");
    stpcpy(at, end);
    file_t file = make_file(header, 4);
    assert_int_equal(safetensors_check(file.bytes, file.size, &why), ERR_MODEL);
    if (!strstr(why.text, "more values than")) fail_msg("says %s", why.text);
    free(file.bytes);
    free(header);
}

/* If this failed, a header size beyond the file would be believed. */
static void test_weights_header_size_is_bounded(void **state)
{
    error_text_t why;
    const uint64_t sizes[] = { 1, 100000001, UINT64_MAX, (uint64_t)1 << 63 };
    for (int i = 0; i < 4; i++) assert_int_equal(safetensors_check(&sizes[i], 8, &why), ERR_MODEL);
    for (size_t size = 0; size < 8; size++)
        assert_int_equal(safetensors_check(sizes, size, &why), ERR_MODEL);
}

/* If this failed, a file cut anywhere in its header or data would be loaded. */
static void test_weights_truncation_anywhere_is_noticed(void **state)
{
    error_text_t why;
    file_t file = make_file(header_cases[3].header, header_cases[3].data_bytes);
    assert_int_equal(safetensors_check(file.bytes, file.size, &why), ERR_OK);
    for (size_t size = 0; size < file.size; size++) {
        char *cut = malloc(size + 1);
        memcpy(cut, file.bytes, size);
        assert_int_equal(safetensors_check(cut, size, &why), ERR_MODEL);
        free(cut);
    }
    free(file.bytes);
}

/* ---- shards ---- */

static void write_shard(const char *name, const char *header, size_t data_bytes)
{
    file_t file = make_file(header, data_bytes);
    write_file(name, file.bytes, file.size);
    free(file.bytes);
}

static void write_text(const char *name, const char *text)
{
    write_file(name, text, strlen(text));
}

/* If this failed, models in several files could not be found, or an index could lead out of its
 * directory. */
static void test_weights_shards_are_found_by_their_index(void **state)
{
    error_text_t why;
    write_shard("one.safetensors",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8);
    write_shard("two.safetensors",
                "{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3);
    write_text("model.safetensors.index.json", "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":"
                                               "\"two.safetensors\",\"c\":\"one.safetensors\"}}");
    safetensors_t *files = safetensors_open(directory, &why);
    if (!files) fail_msg("%s", why.text);
    assert_int_equal(safetensors_count(files), 2);
    assert_int_equal(safetensors_find(files, "b")->bytes, 3);
    assert_non_null(
        strstr(safetensors_file(files, safetensors_find(files, "a")), "one.safetensors"));
    assert_null(safetensors_find(files, "c"));
    safetensors_close(&files);
    unlink(path_of("model.safetensors.index.json"));
}

/* If this failed, whoever has a damaged download or index would not learn which part it is. */
static void test_weights_index_is_refused_by_what_is_wrong(void **state)
{
    static const char *const cases[][2] = {
        { "", "index.json is not JSON: it is empty" },
        { "{\"weight_map\":{\"a\":\"one", "index.json is not JSON: error at byte" },
        { "{\"weight_map\":{}} {}",
          "index.json is not JSON: something follows it at byte 18 of 20" },
        { "\xef\xbb\xbf{}", "index.json is not JSON: a byte order mark" },
        { "[]", "index.json is JSON, but no object" },
        { "{\"metadata\":{}}", "index.json: no weight_map" },
        { "{\"weight_map\":[]}", "index.json: weight_map is no object" },
        { "{\"weight_map\":{}}", "index.json: weight_map is empty" },
        { "{\"weight_map\":{\"a\":[[[[1]]]]}}", "index.json: its JSON is nested deeper" },
        { "{\"weight_map\":{\"a\":1,\"b\":\"one.safetensors\"}}",
          "index.json: the file of a is no string" },
        { "{\"weight_map\":{\"a\":\"../one.safetensors\",\"b\":\"one.safetensors\"}}",
          "index.json: the file of a is \"../one.safetensors\"; allowed: a plain file name" },
        { "{\"weight_map\":{\"a\":\"\"}}", "index.json: the file of a is \"\"" },
        { "{\"weight_map\":{\"a\":\"none.safetensors\"}}",
          "none.safetensors: No such file or directory, but model.safetensors.index.json names "
          "it" },
    };
    write_shard("one.safetensors",
                "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error_text_t why = { "" };
        write_text("model.safetensors.index.json", cases[i][0]);
        assert_null(safetensors_open(directory, &why));
        if (!strstr(why.text, cases[i][1])) fail_msg("%s: says %s", cases[i][0], why.text);
    }
    unlink(path_of("model.safetensors.index.json"));
}

/* If this failed, one tensor in two shards would be taken from either. */
static void test_weights_tensor_in_two_shards_is_refused(void **state)
{
    error_text_t why;
    write_shard("one.safetensors",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2);
    write_shard("two.safetensors",
                "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3);
    write_text("model.safetensors.index.json",
               "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    assert_null(safetensors_open(directory, &why));
    assert_non_null(strstr(why.text, "twice"));
    unlink(path_of("model.safetensors.index.json"));
}

/* ---- models ---- */

static model_t *load(const char *dir, uint32_t rank, uint32_t ranks, error_text_t *why)
{
    weights_options_t options = { .dir = dir, .ops = &ops_judge, .rank = rank, .ranks = ranks };
    return model_load(&options, why);
}

/* If this failed, gate and up would be exchanged, or get each other's scales. */
static void test_weights_gate_and_up_are_fused_with_their_scales(void **state)
{
    error_text_t why;
    model_t *model = load(TINY, 0, 1, &why);
    safetensors_t *files = safetensors_open(TINY, &why);
    if (!model || !files) fail_msg("%s", why.text);
    const tensor_t *fused = &model->layers[2].expert_gate_up[9];
    const safetensor_t *gate =
        safetensors_find(files, "model.layers.2.mlp.experts.9.gate_proj.weight");
    const safetensor_t *up = safetensors_find(files, "model.layers.2.mlp.experts.9.up_proj.weight");
    const safetensor_t *scale =
        safetensors_find(files, "model.layers.2.mlp.experts.9.up_proj.weight_scale_inv");
    assert_true(fused->rows == 256 && fused->cols == 256 && fused->dtype == DTYPE_F8E4M3);
    assert_memory_equal(fused->data, gate->data, gate->bytes);
    assert_memory_equal((char *)fused->data + gate->bytes, up->data, up->bytes);
    assert_memory_equal(fused->scales + fused->scale_stride, scale->data, scale->bytes);
    safetensors_close(&files);
    model_destroy(&model);
}

/* If this failed, a rank would hold (and compute) another rank's experts. */
static void test_weights_each_rank_takes_its_experts(void **state)
{
    error_text_t why;
    model_t *whole = load(TINY, 0, 1, &why), *part = load(TINY, 3, 4, &why);
    if (!whole || !part) fail_msg("%s", why.text);
    assert_true(part->experts_here == 8 && part->first_expert == 24 && whole->experts_here == 32);
    for (uint32_t e = 0; e < 8; e++) {
        const tensor_t *mine = &part->layers[4].expert_down[e],
                       *same = &whole->layers[4].expert_down[24 + e];
        assert_memory_equal(mine->data, same->data, (size_t)mine->rows * mine->cols);
    }
    model_destroy(&part);
    model_destroy(&whole);
    assert_null(load(TINY, 0, 5, &why));
    assert_non_null(strstr(why.text, "divisor"));
}

/* A copy of the tiny model in which `from` is replaced by `to` (as long) in the header, or in
 * config.json. */
static void expect_refused(const char *from, const char *to, const char *says)
{
    error_text_t why = { "" };
    file_t config = read_file(TINY "/config.json"), weights = read_file(TINY "/model.safetensors");
    assert_int_equal(strlen(from), strlen(to));
    char *at = memmem(weights.bytes, 200000, from, strlen(from));
    file_t *changed = &weights;
    if (!at) {
        at = memmem(config.bytes, config.size, from, strlen(from));
        changed = &config;
    }
    assert_true(at && at < changed->bytes + changed->size);
    memcpy(at, to, strlen(to));
    write_file("config.json", config.bytes, config.size);
    write_file("model.safetensors", weights.bytes, weights.size);
    assert_null(load(directory, 0, 1, &why));
    if (!strstr(why.text, says)) fail_msg("%s: should say %s, says %s", to, says, why.text);
    free(config.bytes);
    free(weights.bytes);
}

/* If this failed, a checkpoint that does not fit its config.json would be computed with, or refused
 * without a name. */
static void test_weights_what_does_not_fit_is_refused_by_name(void **state)
{
    expect_refused("model.layers.3.mlp.experts.7.up_proj.weight\"",
                   "model.layers.3.mlp.experts.7.op_proj.weight\"",
                   "model.layers.3.mlp.experts.7.up_proj.weight is missing");
    expect_refused("model.layers.2.self_attn.o_proj.weight_scale_inv",
                   "model.layers.2.self_attn.o_proj.weight_scale_non",
                   "model.layers.2.self_attn.o_proj.weight_scale_inv is missing");
    expect_refused("\"hidden_size\": 256", "\"hidden_size\": 128",
                   "shape [4096, 256]; allowed: [4096, 128]");
    expect_refused("\"num_hidden_layers\": 5", "\"num_hidden_layers\": 9", "model.layers.");
    expect_refused("\"num_hidden_layers\": 5", "\"num_hidden_layers\": 6",
                   "model.layers.5 predicts further tokens");
    expect_refused("\"num_hidden_layers\": 5", "\"num_hidden_layers\": 4",
                   "is tensor model.layers.4.");
    expect_refused("\"num_hidden_layers\": 5", "\"num_hidden_layers\": 3",
                   "is tensor model.layers.3.");
    expect_refused("\"quantization_config\"", "\"quantisation_config\"", "no quantization_config");
    expect_refused("\"lm_head.weight\":{\"dtype\":\"BF16\"",
                   "\"lm_head.weight\":{\"dtype\":\"F16\" ",
                   "lm_head.weight is F16; allowed: F8_E4M3, BF16, F32");
}

/* If this failed, a half-copied checkpoint would be served. */
static void test_weights_truncated_file_is_refused(void **state)
{
    error_text_t why;
    file_t config = read_file(TINY "/config.json"), weights = read_file(TINY "/model.safetensors");
    write_file("config.json", config.bytes, config.size);
    write_file("model.safetensors", weights.bytes, weights.size - 1);
    assert_null(load(directory, 0, 1, &why));
    assert_non_null(strstr(why.text, "truncated"));
    write_file("model.safetensors", weights.bytes, 1000);
    assert_null(load(directory, 0, 1, &why));
    unlink(path_of("model.safetensors"));
    assert_null(load(directory, 0, 1, &why));
    assert_non_null(strstr(why.text, "model.safetensors"));
    free(config.bytes);
    free(weights.bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_header_is_checked_before_use),
        cmocka_unit_test(test_weights_header_is_followed_by_spaces_only),
        cmocka_unit_test(test_weights_header_has_a_bounded_number_of_values),
        cmocka_unit_test(test_weights_header_size_is_bounded),
        cmocka_unit_test(test_weights_truncation_anywhere_is_noticed),
        cmocka_unit_test(test_weights_shards_are_found_by_their_index),
        cmocka_unit_test(test_weights_index_is_refused_by_what_is_wrong),
        cmocka_unit_test(test_weights_tensor_in_two_shards_is_refused),
        cmocka_unit_test(test_weights_gate_and_up_are_fused_with_their_scales),
        cmocka_unit_test(test_weights_each_rank_takes_its_experts),
        cmocka_unit_test(test_weights_what_does_not_fit_is_refused_by_name),
        cmocka_unit_test(test_weights_truncated_file_is_refused),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
