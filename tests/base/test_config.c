/* tests/base/test_config.c - what a configuration file may say, and how it is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "proto/messages.h"
#include "runtime/base/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static config_loaded_t loaded;

static err_t read_text(const char *text)
{
    config_init(&loaded);
    return config_read_text(&loaded, "t.yaml", text, strlen(text));
}

static void assert_refused(const char *text, const char *why)
{
    assert_int_equal(read_text(text), ERR_CONFIG);
    if (strstr(loaded.error, why) == NULL) {
        fail_msg("the error is '%s'; it lacks '%s'", loaded.error, why);
    }
}

/* If it failed, the company could not start without a configuration file. */
static void test_config_defaults_pass_the_check(void **state)
{
    config_init(&loaded);
    assert_int_equal(config_check(&loaded), ERR_OK);
    assert_string_equal(loaded.config.http.listen, "127.0.0.1:8000");
    assert_int_equal(loaded.config.http.body_bytes_max, 8388608);
    assert_int_equal(loaded.config.engine.kind, 0);
    assert_string_equal(config_word(CONFIG_engine_kind, 1).text, "stub");
    assert_string_equal(config_word(CONFIG_engine_ops, 5).text, "amx");
    assert_int_equal(loaded.config.http.api_keys_count, 0);
    assert_false(loaded.config.wire.insecure);
}

/* If it failed, a value of the file would not reach the program, or its origin would be wrong. */
static void test_config_every_kind_of_value_is_read(void **state)
{
    assert_int_equal(read_text("# a comment\n"
                               "http:\n"
                               "  listen: \"[::1]:9000\"\n"
                               "  api_keys: [one, 'two']\n"
                               "  idle_seconds: 7 # short\n"
                               "wire: {insecure: true, carrier: tcp}\n"
                               "log:\n"
                               "engine:\n"
                               "  kind: stub\n"
                               "model:\n"
                               "  name: 8\n"),
                     ERR_OK);
    assert_string_equal(loaded.config.http.listen, "[::1]:9000");
    assert_int_equal(loaded.config.http.api_keys_count, 2);
    assert_string_equal(loaded.config.http.api_keys[0], "one");
    assert_string_equal(loaded.config.http.api_keys[1], "two");
    assert_int_equal(loaded.config.http.idle_seconds, 7);
    assert_true(loaded.config.wire.insecure);
    assert_int_equal(loaded.config.wire.carrier, 1);
    assert_int_equal(loaded.config.engine.kind, 1);
    assert_string_equal(loaded.config.model.name, "8");
    assert_int_equal(loaded.config.http.receive_seconds, 30);
    assert_string_equal(config_place(&loaded, CONFIG_http_idle_seconds).text, "t.yaml:5");
    assert_string_equal(config_place(&loaded, CONFIG_http_receive_seconds).text, "default");
    assert_int_equal(config_check(&loaded), ERR_OK);
}

/* If it failed, an empty file or one of comments would be an error. */
static void test_config_empty_files_are_all_defaults(void **state)
{
    assert_int_equal(read_text(""), ERR_OK);
    assert_int_equal(read_text("# nothing\n"), ERR_OK);
    assert_int_equal(read_text("---\n"), ERR_OK);
    assert_string_equal(loaded.config.http.listen, "127.0.0.1:8000");
}

/* If it failed, a typing error would be ignored, and its author would wonder. */
static void test_config_unknown_names_are_refused_with_the_nearest(void **state)
{
    assert_refused("http:\n  listn: a\n",
                   "t.yaml:2: section 'http' has no key 'listn'; did you mean 'listen'?");
    assert_refused("http:\n  listn: a\n", "api_keys, body_bytes_max");
    assert_refused("\nhtpp:\n  listen: a\n", "t.yaml:2: no section 'htpp'; did you mean 'http'?");
    assert_refused("banana:\n  listen: a\n", "sections are: model, http, limits");
    assert_int_equal(strstr(loaded.error, "did you mean") == NULL, 1);
    assert_refused("http:\n  kv_blocks: 7\n", "section 'http' has no key 'kv_blocks'");
}

/* If it failed, wrong types and impossible values would be taken for something else. */
static void test_config_wrong_values_say_what_is_allowed(void **state)
{
    assert_refused("http:\n  idle_seconds: 0\n",
                   "t.yaml:2: http.idle_seconds is 0; allowed are whole numbers from 1 to 86400");
    assert_refused("http:\n  idle_seconds: soon\n", "is soon; allowed");
    assert_refused("http:\n  idle_seconds: '7'\n", "is the text '7'; allowed");
    assert_refused("http:\n  idle_seconds: 7.5\n", "is 7.5; allowed");
    assert_refused("http:\n  idle_seconds: 99999999999999999999\n", "allowed are whole numbers");
    assert_refused("http:\n  idle_seconds:\n", "allowed are whole numbers");
    assert_refused("http:\n  idle_seconds: [7]\n", "is a list; allowed is a single value");
    assert_refused("http:\n  idle_seconds: {a: 7}\n", "is a map; allowed is a value");
    assert_refused("http:\n  api_keys: one\n", "is a single value; allowed is a list");
    assert_refused("http:\n  api_keys: [[one]]\n", "holds a list; allowed are texts");
    assert_refused("http:\n  api_keys: ['']\n", "entry 1 of http.api_keys is empty");
    assert_refused("wire:\n  insecure: yes\n", "is 'yes'; allowed are true and false");
    assert_refused("wire:\n  carrier: udp\n", "is 'udp'; allowed are: ipc|tcp");
    assert_refused("wire:\n  carrier: ip\n", "is 'ip'; allowed are");
    assert_refused("wire:\n  directory: \""
                   "0123456789012345678901234567890123456789012345678901234567890123"
                   "0123456789012345678901234567890123\"\n",
                   "has 98 bytes; allowed are at most 83");
    assert_refused("model:\n  path: \"a\\nb\"\n", "control character");
    assert_refused("model:\n  path: \"a\\0b\"\n", "NUL");
    assert_refused("model:\n  path: \"a\\Nb\"\n", "control character"); /* U+0085, a line's end */
}

/* If it failed, the second of two values would silently win. */
static void test_config_duplicates_are_refused(void **state)
{
    assert_refused("http:\n  idle_seconds: 7\n  idle_seconds: 8\n",
                   "t.yaml:3: http.idle_seconds was already set in line 2");
    assert_refused("http:\n  idle_seconds: 7\nlog:\n  level: warn\nhttp:\n  receive_seconds: 8\n",
                   "t.yaml:5: section 'http' was already begun in line 1");
}

/* If it failed, YAML's further features would crash the reader or be half understood. */
static void test_config_other_yaml_is_refused(void **state)
{
    assert_refused("- a\n- b\n", "the file is a list");
    assert_refused("just text\n", "the file is a single value");
    assert_refused("http: 7\n", "section 'http' is a single value");
    assert_refused("http:\n  listen: &a b\nlog:\n  file: *a\n", "anchors and tags");
    assert_refused("http:\n  listen: !!str b\n", "anchors and tags");
    assert_refused("http: &a\n  listen: b\n", "anchors and tags");
    assert_refused("&a http:\n  listen: b\n", "anchors and tags");
    assert_refused("http:\n  &a listen: b\n", "anchors and tags");
    assert_refused("http:\n  api_keys: !!seq [b]\n", "anchors and tags");
    assert_refused("!!map\nhttp:\n  listen: b\n", "anchors and tags");
    assert_refused("log: \"\"\n", "section 'log' is a single value");
    assert_refused("log:\n  \"level\\0x\": info\n", "a name holds a NUL character");
    assert_refused("http:\n  <<: *a\n", "t.yaml:2: section 'http' has no key '<<'");
    assert_refused("log:\n  level: warn\n---\nlog:\n", "found another document");
    assert_refused("http:\n\tlisten: b\n", "t.yaml:2: not YAML");
    assert_refused("http: {listen: b\n", "not YAML");
    assert_refused("? [a]\n: b\n", "allowed is a name");
    assert_refused("http:\n  listen: \"\xff\xfe\"\n", "not YAML");
}

static void assert_impossible(const char *text, const char *why)
{
    assert_int_equal(read_text(text), ERR_OK);
    assert_int_equal(config_check(&loaded), ERR_CONFIG);
    if (strstr(loaded.error, why) == NULL) {
        fail_msg("the error is '%s'; it lacks '%s'", loaded.error, why);
    }
}

/* If it failed, a company that cannot work would start. */
static void test_config_impossible_combinations_are_refused(void **state)
{
    assert_impossible("company:\n  prefill_workers: 3\n",
                      "company.prefill_ep is 2, but company.prefill_workers is 3");
    assert_impossible("company:\n  decode_ep: 4\n", "t.yaml:2: company.decode_ep is 4");
    assert_impossible("timing:\n  dead_ms: 500\n", "allowed are at least three heartbeats (600)");
    assert_impossible("timing:\n  lease_ms: 500\n", "timing.lease_ms is 500");
    assert_impossible("wire:\n  carrier: tcp\n", "wire.insecure: true");
    assert_impossible("wire:\n  carrier: tcp\n  keys: k\n  insecure: true\n", "one of them");
    assert_impossible("http:\n  listen: nowhere\n", "allowed is ADDRESS:PORT");
    assert_impossible("http:\n  listen: a:70000\n", "allowed is ADDRESS:PORT");
    assert_impossible("http:\n  listen: '::1:80'\n", "allowed is ADDRESS:PORT");
    assert_impossible("http:\n  listen: a:0\n", "allowed are ports from 1 to 65535");
    assert_impossible("http:\n  listen: a:65535\ncompany:\n  ingresses: 2\n", "next port");
    assert_impossible("limits:\n  context_max: 20000\n", "prefill.kv_blocks is 256");
    assert_impossible("limits:\n  context_max: 100\n  output_default: 100\n", "less than");
    assert_impossible("model:\n  path: ''\n", "model.path is empty");
}

/* If it failed, a text would be let in that no worker's pool can hold. */
static void test_config_context_is_what_the_smaller_pool_holds(void **state)
{
    config_init(&loaded);
    config_t *config = &loaded.config;
    config->prefill.kv_blocks = 3;
    config->decode.kv_blocks = 2;
    assert_int_equal(config_context_max(config), 128);
    config->decode.kv_blocks = 16777216;
    assert_int_equal(config_context_max(config), 192);
    config->limits.context_max = 100;
    assert_int_equal(config_context_max(config), 100);
    config->limits.context_max = 0;
    config->prefill.kv_blocks = 16777216;
    assert_int_equal(config_context_max(config), CONTEXT_MAX);
}

/* If it failed, --set would not do what it says. */
static void test_config_options_win_over_the_file(void **state)
{
    assert_int_equal(read_text("http:\n  idle_seconds: 7\n  listen: a:1\n"), ERR_OK);
    assert_int_equal(config_set(&loaded, "http.idle_seconds=9"), ERR_OK);
    assert_int_equal(config_set(&loaded, "http.api_keys=one,two,three"), ERR_OK);
    assert_int_equal(config_set(&loaded, "model.path=/a=b.c"), ERR_OK);
    assert_int_equal(config_set(&loaded, "wire.insecure=true"), ERR_OK);
    assert_int_equal(loaded.config.http.idle_seconds, 9);
    assert_int_equal(loaded.config.http.api_keys_count, 3);
    assert_string_equal(loaded.config.http.api_keys[2], "three");
    assert_string_equal(loaded.config.model.path, "/a=b.c");
    assert_string_equal(config_place(&loaded, CONFIG_http_idle_seconds).text, "--set");
    assert_string_equal(config_place(&loaded, CONFIG_http_listen).text, "t.yaml:3");
    assert_int_equal(config_set(&loaded, "http.api_keys="), ERR_OK);
    assert_int_equal(loaded.config.http.api_keys_count, 0);
}

/* If it failed, an API key would be one that nobody wrote, and the one that was written would be
 * refused. */
static void test_config_lists_as_options_are_read_as_they_are_shown(void **state)
{
    static const char *const same[] = { "a b,c\"d\\",       " a b , c\"d\\ ",
                                        "[a b, c\"d\\]",    "[ \"a b\" , \"c\\\"d\\\\\" ] ",
                                        "['a b','c\"d\\']", "\"a b\",c\"d\\" };
    static const char *const bad[] = { "[",         "[a",      "[a, [b]]", "[\"a, b]", "[\"a\" b]",
                                       "[\"\\n\"]", "'it''s'", "\"a",      "\"a\\",    "[a,]",
                                       "[,a]",      "a,,b",    "\"\"" };
    char assignment[64];
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        config_init(&loaded);
        snprintf(assignment, sizeof assignment, "http.api_keys=%s", same[i]);
        assert_int_equal(config_set(&loaded, assignment), ERR_OK);
        assert_int_equal(loaded.config.http.api_keys_count, 2);
        assert_string_equal(loaded.config.http.api_keys[0], "a b");
        assert_string_equal(loaded.config.http.api_keys[1], "c\"d\\");
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        config_init(&loaded);
        snprintf(assignment, sizeof assignment, "http.api_keys=%s", bad[i]);
        assert_int_equal(config_set(&loaded, assignment), ERR_CONFIG);
        assert_int_equal(loaded.config.http.api_keys_count, 0);
    }
    assert_int_equal(config_set(&loaded, "http.api_keys=[ ]"), ERR_OK);
    assert_int_equal(loaded.config.http.api_keys_count, 0);
}

/* If it failed, a wrong --set would be ignored. */
static void test_config_wrong_options_are_refused(void **state)
{
    static const char *const bad[] = { "",
                                       "http",
                                       "http.listen",
                                       "=",
                                       "http=a.b",
                                       "http.listn=a",
                                       "htp.listen=a",
                                       "http.idle_seconds=",
                                       "log.level=",
                                       "http.idle_seconds=+7",
                                       "wire.insecure=1" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        config_init(&loaded);
        assert_int_equal(config_set(&loaded, bad[i]), ERR_CONFIG);
        assert_true(strstr(loaded.error, "--set") == loaded.error);
    }
}

/* If it failed, `troupe config show` would show something else than what is in force. */
static void test_config_shown_values_read_back_the_same(void **state)
{
    static config_loaded_t again;
    assert_int_equal(
        read_text("http:\n  api_keys: ['a\"b', 'c\\d', 'e # f']\n  idle_seconds: 7\n"
                  "model:\n  path: \"/x: 'y'\"\nwire:\n  insecure: true\nlog:\n  level: error\n"),
        ERR_OK);
    size_t size = config_show(&loaded, NULL, 0);
    char *text = malloc(size + 1);
    assert_int_equal(config_show(&loaded, text, size + 1), size);
    assert_int_equal(strlen(text), size);
    config_init(&again);
    err_t error = config_read_text(&again, "shown", text, size);
    if (error != ERR_OK) print_error("%s\n%s\n", again.error, text);
    assert_int_equal(error, ERR_OK);
    assert_memory_equal(&again.config, &loaded.config, sizeof loaded.config);
    assert_non_null(strstr(text, "idle_seconds: 7"));
    assert_non_null(strstr(text, "# t.yaml:3; a connection that neither sends"));
    assert_non_null(strstr(text, "# default; "));
    free(text);
}

/* If it failed, a missing file would look like an empty one. */
static void test_config_files_that_cannot_be_read_say_why(void **state)
{
    char name[] = "/tmp/test-config-XXXXXX";
    config_init(&loaded);
    assert_int_equal(config_read_file(&loaded, "/nowhere/at/all.yaml"), ERR_IO);
    assert_string_equal(loaded.error, "/nowhere/at/all.yaml: No such file or directory");
    assert_int_equal(config_read_file(&loaded, "/"), ERR_IO);
    int file = mkstemp(name);
    assert_true(file >= 0);
    assert_int_equal(write(file, "log:\n  level: debug\n", 20), 20);
    assert_int_equal(config_read_file(&loaded, name), ERR_OK);
    assert_int_equal(loaded.config.log.level, 0);
    assert_int_equal(ftruncate(file, CONFIG_FILE_BYTES_MAX + 1), 0);
    config_init(&loaded);
    assert_int_equal(config_read_file(&loaded, name), ERR_CONFIG);
    assert_non_null(strstr(loaded.error, "larger than"));
    close(file);
    unlink(name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_defaults_pass_the_check),
        cmocka_unit_test(test_config_every_kind_of_value_is_read),
        cmocka_unit_test(test_config_empty_files_are_all_defaults),
        cmocka_unit_test(test_config_unknown_names_are_refused_with_the_nearest),
        cmocka_unit_test(test_config_wrong_values_say_what_is_allowed),
        cmocka_unit_test(test_config_duplicates_are_refused),
        cmocka_unit_test(test_config_other_yaml_is_refused),
        cmocka_unit_test(test_config_impossible_combinations_are_refused),
        cmocka_unit_test(test_config_context_is_what_the_smaller_pool_holds),
        cmocka_unit_test(test_config_options_win_over_the_file),
        cmocka_unit_test(test_config_lists_as_options_are_read_as_they_are_shown),
        cmocka_unit_test(test_config_wrong_options_are_refused),
        cmocka_unit_test(test_config_shown_values_read_back_the_same),
        cmocka_unit_test(test_config_files_that_cannot_be_read_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
