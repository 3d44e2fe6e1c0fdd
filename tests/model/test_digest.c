/* tests/model/test_digest.c - two models of one shape must not share KV: the digest of weights. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/model/digest.h"

enum { BYTES = 1 << 20, PATHS = 512 };

static uint8_t weights[BYTES];

/* A directory of its own below the one of temporary files, and a path in it. */
static char top[PATHS / 2];
static const char *in_top(const char *name)
{
    static char path[PATHS];
    snprintf(path, sizeof path, "%s/%s", top, name);
    return path;
}

static void write_file(const char *name, const void *data, size_t size)
{
    FILE *file = fopen(in_top(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static uint64_t digest(void)
{
    uint64_t value;
    error_text_t why;
    if (weights_digest(&value, top, &why) != ERR_OK) fail_msg("%s", why.text);
    return value;
}

static int make(void **state)
{
    const char *parent = getenv("TMPDIR");
    snprintf(top, sizeof top, "%s/digest-XXXXXX", parent ? parent : "/tmp");
    for (uint32_t i = 0; i < BYTES; i++) weights[i] = (uint8_t)(i * 2654435761u >> 13);
    return mkdtemp(top) == NULL;
}

static int clean(void **state)
{
    static const char *const names[] = { "a.safetensors", "b.safetensors", "c.safetensors",
                                         "config.json", "notes.txt" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(in_top(names[i]));
    return rmdir(top);
}

static void test_digest_changed_byte_in_any_sampled_page_changes_it(void **state)
{
    /* A fine-tune of the same shape would be served the KV of its base. */
    write_file("a.safetensors", weights, BYTES);
    uint64_t before = digest();
    assert_true(before != 0 && before == digest());
    for (uint32_t page = 0; page < DIGEST_PAGES_MAX; page++) {
        uint64_t at = digest_page_at(BYTES, page, DIGEST_PAGES_MAX) + page * 64;
        weights[at] ^= 1;
        write_file("a.safetensors", weights, BYTES);
        assert_true(digest() != before);
        weights[at] ^= 1;
    }
    write_file("a.safetensors", weights, BYTES);
    assert_true(digest() == before);
}

static void test_digest_pages_reach_from_the_first_byte_to_the_last(void **state)
{
    /* Pages that do not cover the file would miss a fine-tune of its end. */
    static const uint64_t sizes[] = { 4096, 4097, 300000, BYTES, 5000000000u, UINT64_MAX / 2 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint64_t size = sizes[i], last = 0;
        assert_true(digest_page_at(size, 0, 64) == 0);
        assert_true(digest_page_at(size, 63, 64) == size - DIGEST_PAGE_BYTES);
        for (uint32_t page = 0; page < 64; page++) {
            uint64_t at = digest_page_at(size, page, 64);
            assert_true(at >= last && at - last <= size / 63 + 1);
            last = at;
        }
    }
    assert_true(digest_page_at(100, 5, 64) == 0);
}

static void test_digest_names_sizes_and_every_file_count(void **state)
{
    /* Shards that were swapped, cut or left out are another model. */
    write_file("a.safetensors", weights, BYTES);
    uint64_t one = digest();
    write_file("b.safetensors", weights + 5, 100);
    uint64_t two = digest();
    write_file("b.safetensors", weights + 5, 99);
    uint64_t cut = digest();
    unlink(in_top("b.safetensors"));
    write_file("c.safetensors", weights + 5, 100);
    uint64_t renamed = digest();
    assert_true(one != two && two != cut && two != renamed && one != renamed);
    unlink(in_top("c.safetensors"));
    write_file("notes.txt", "of no account", 13);
    assert_true(digest() == one);
}

static void test_digest_goes_into_the_key_of_a_model(void **state)
{
    /* The key of KV blocks and the greeting of two actors must tell two fine-tunes apart. */
    static char json[1 << 16];
    FILE *file = fopen(SOURCE_DIR "/models/tiny/config.json", "rb");
    assert_non_null(file);
    size_t size = fread(json, 1, sizeof json, file);
    fclose(file);
    write_file("config.json", json, size);
    write_file("a.safetensors", weights, BYTES);
    model_config_t base, tuned, bare;
    error_text_t why;
    assert_int_equal(model_config_read(&base, top, &why), ERR_OK);
    weights[BYTES - 1] ^= 1;
    write_file("a.safetensors", weights, BYTES);
    weights[BYTES - 1] ^= 1;
    assert_int_equal(model_config_read(&tuned, top, &why), ERR_OK);
    unlink(in_top("a.safetensors"));
    assert_int_equal(model_config_read(&bare, top, &why), ERR_OK);
    assert_true(bare.weights == 0);
    assert_true(model_key(&base) != model_key(&tuned) && model_key(&base) != model_key(&bare));
}

static void test_digest_unreadable_file_is_refused_by_name(void **state)
{
    /* A digest of half the files would pair with nobody, and nobody would know why. */
    uint64_t value;
    error_text_t why = { "" };
    assert_int_equal(symlink("nowhere", in_top("b.safetensors")), 0);
    assert_int_equal(weights_digest(&value, top, &why), ERR_MODEL);
    assert_non_null(strstr(why.text, "b.safetensors: No such file"));
    unlink(in_top("b.safetensors"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_digest_changed_byte_in_any_sampled_page_changes_it,
                                        make, clean),
        cmocka_unit_test(test_digest_pages_reach_from_the_first_byte_to_the_last),
        cmocka_unit_test_setup_teardown(test_digest_names_sizes_and_every_file_count, make, clean),
        cmocka_unit_test_setup_teardown(test_digest_goes_into_the_key_of_a_model, make, clean),
        cmocka_unit_test_setup_teardown(test_digest_unreadable_file_is_refused_by_name, make,
                                        clean),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
