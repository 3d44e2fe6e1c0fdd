/* cli/cmd_tokenize.c - troupe tokenize: text to ids and back. */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/model/tokenizer.h"
#include "cli.h"
#include "input.h"

typedef struct {
    const char *dir;
    bool is_decode, is_plain;
} tokenize_arguments_t;

static const struct argp_option options[] = {
    { "tokenizer", 't', "DIR", 0,
      "directory with tokenizer.json (default: the embedded models/tiny)", 0 },
    { "decode", 'd', NULL, 0, "a JSON array of ids in, text out", 0 },
    { "plain", 'p', NULL, 0, "text that spells a special token stays text", 0 },
    { 0 },
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    tokenize_arguments_t *self = state->input;
    if (key == 't')
        self->dir = value;
    else if (key == 'd')
        self->is_decode = true;
    else if (key == 'p')
        self->is_plain = true;
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static int encode(tokenizer_t *tokenizer, const input_t *input, bool is_plain)
{
    if (!input_is_text("standard input", input->text, input->size)) return EXIT_FAILED;
    uint32_t *ids = malloc((3 * input->size + 1) *
                           sizeof *ids); /* a byte gives at most three ids: U+FFFD's bytes */
    if (!ids) return EXIT_FAILED;
    size_t count =
        tokenizer_encode(tokenizer, input->text, input->size, !is_plain, ids, 3 * input->size);
    putchar('[');
    for (size_t i = 0; i < count; i++) printf("%s%u", i ? ", " : "", ids[i]);
    puts("]");
    free(ids);
    return EXIT_OK;
}

static bool is_id(const cJSON *item, uint32_t vocab)
{
    return cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < vocab &&
           item->valuedouble == (uint32_t)item->valuedouble;
}

/* The whole input is one JSON array of ids. */
static cJSON *read_ids(const input_t *input, uint32_t vocab)
{
    const char *end = input->text;
    cJSON *list = cJSON_ParseWithLengthOpts(input->text, input->size, &end, false);
    const cJSON *item;
    bool is_good = cJSON_IsArray(list) && end + strspn(end, " \t\r\n") == input->text + input->size;
    cJSON_ArrayForEach(item, list) is_good = is_good && is_id(item, vocab);
    if (is_good) return list;
    cJSON_Delete(list);
    return NULL;
}

static int decode(tokenizer_t *tokenizer, const input_t *input)
{
    cJSON *list = read_ids(input, tokenizer_vocab(tokenizer));
    const cJSON *item;
    detokenizer_t held = { .held_count = 0 };
    char text[DETOKENIZER_EMIT_MAX];
    if (!list) {
        complain("--decode needs a JSON array of ids from 0 to %u", tokenizer_vocab(tokenizer) - 1);
        return EXIT_FAILED;
    }
    cJSON_ArrayForEach(item, list)
    {
        size_t size = detokenizer_push(&held, tokenizer, (uint32_t)item->valuedouble, false, text,
                                       sizeof text);
        fwrite(text, 1, size, stdout);
    }
    fwrite(text, 1, detokenizer_finish(&held, text, sizeof text), stdout);
    cJSON_Delete(list);
    return EXIT_OK;
}

int cmd_tokenize(int count, char **arguments)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Text on standard input to token ids as a JSON array on standard output, or back.\v"
               "Example: echo -n 'Hello there' | troupe tokenize --tokenizer models/tiny",
    };
    tokenize_arguments_t given = { .dir = embedded_model() };
    parse_options(&argp, count, arguments, &given);
    error_text_t why;
    tokenizer_t *tokenizer = tokenizer_new(given.dir, &why);
    if (!tokenizer) {
        complain("%s", why.text);
        return EXIT_CONFIGURATION;
    }
    input_t input;
    int code = EXIT_FAILED;
    if (input_read(&input, stdin))
        code =
            given.is_decode ? decode(tokenizer, &input) : encode(tokenizer, &input, given.is_plain);
    input_free(&input);
    tokenizer_destroy(&tokenizer);
    return code;
}
