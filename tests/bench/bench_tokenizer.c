/* tests/bench/bench_tokenizer.c - MB/s of the tokenizer on ordinary text, beside the pre-tokeniser
 * alone.
 *
 *   bench_tokenizer MODEL_DIR [TEXT_FILE]
 *
 * Without a file the text is made of the vocabulary's own words, as often as Zipf's law says (the
 * k-th word with weight 1 / k), so the cache of words meets what it meets in prose.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/model/tokenizer.h"
#include "runtime/model/tokenizer_split.h"

enum { TEXT_BYTES = 8 << 20, ROUNDS = 5 };

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now); /* of this core, whoever else is busy */
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint64_t random_state = 42;
static uint32_t random_bits(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

/* A token that is a space and letters, picked by Zipf's law: 2^u for u uniform falls off as 1 / k.
 */
static size_t next_word(const tokenizer_t *tokenizer, char *out, size_t cap)
{
    for (;;) {
        double most = __builtin_log2((double)tokenizer_vocab(tokenizer));
        uint32_t id = (uint32_t)__builtin_exp2(most * (double)random_bits() * 0x1p-31);
        size_t size = tokenizer_decode(tokenizer, &id, 1, true, out, cap);
        if (size < 2 || size > cap || out[0] != ' ') continue;
        size_t letters = 1;
        while (letters < size && ((out[letters] | 0x20) >= 'a' && (out[letters] | 0x20) <= 'z'))
            letters++;
        if (letters == size) return size;
    }
}

static size_t make_text(const tokenizer_t *tokenizer, char *text)
{
    size_t size = 0;
    for (uint32_t words = 1; size < TEXT_BYTES - 128; words++) {
        size += next_word(tokenizer, text + size, 64);
        if (words % 12 == 0) text[size++] = words % 60 ? ',' : '.';
        if (words % 300 == 0) text[size++] = '\n';
        if (words % 40 == 0) size += (size_t)snprintf(text + size, 8, " %u", random_bits() % 10000);
    }
    return size;
}

static size_t count_words(splitter_t *splitter, const char *text, size_t size)
{
    const char *word;
    size_t word_size, count = 0;
    split_t split;
    split_step_t step;
    split_begin(&split, text, size);
    while ((step = splitter_next(splitter, &split, &word, &word_size)) != SPLIT_END)
        count += step == SPLIT_WORD;
    return count;
}

/* The three splits of the DeepSeek family, alone: what PCRE2 makes possible. */
static double time_split(const char *text, size_t size, size_t *words)
{
    static const char words_pattern[] =
        "[!\"#$%&'()*+,\\-./"
        ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
        "?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
    static const char *const patterns[] = { "\\p{N}{1,3}", "[一-龥\xe3\x81\x80-ゟ゠-ヿ]+",
                                            words_pattern };
    splitter_t splitter;
    error_text_t why;
    double best = 1e9;
    if (splitter_init(&splitter) != ERR_OK) exit(1);
    for (int i = 0; i < 3; i++)
        if (splitter_add(&splitter, patterns[i], &why) != ERR_OK) exit(1);
    for (int round = 0; round < ROUNDS; round++) {
        double start = now_seconds();
        *words = count_words(&splitter, text, size);
        if (now_seconds() - start < best) best = now_seconds() - start;
    }
    splitter_fini(&splitter);
    return best;
}

int main(int count, char **arguments)
{
    error_text_t why;
    if (count < 2) return fprintf(stderr, "usage: bench_tokenizer MODEL_DIR [TEXT_FILE]\n"), 2;
    double start = now_seconds();
    tokenizer_t *tokenizer = tokenizer_new(arguments[1], &why);
    if (!tokenizer) return fprintf(stderr, "%s\n", why.text), 1;
    printf("load      %8.3f s, %u ids\n", now_seconds() - start, tokenizer_vocab(tokenizer));
    char *text = malloc(TEXT_BYTES);
    uint32_t *ids = malloc(TEXT_BYTES * sizeof *ids);
    FILE *file = count > 2 ? fopen(arguments[2], "rb") : NULL;
    size_t size = file ? fread(text, 1, TEXT_BYTES, file) : make_text(tokenizer, text), tokens = 0,
           words = 0;
    double best = 1e9, split = time_split(text, size, &words);
    for (int round = 0; round < ROUNDS; round++) {
        start = now_seconds();
        tokens = tokenizer_encode(tokenizer, text, size, true, ids, TEXT_BYTES);
        if (now_seconds() - start < best) best = now_seconds() - start;
    }
    double megabytes = (double)size / 1e6;
    printf("text      %8.2f MB, %zu words, %zu tokens\n", megabytes, words, tokens);
    printf("split     %8.1f MB/s (PCRE2 alone)\n", megabytes / split);
    printf("encode    %8.1f MB/s, %.2f of the split alone\n", megabytes / best, split / best);
    if (file) fclose(file);
    free(text);
    free(ids);
    tokenizer_destroy(&tokenizer);
    return 0;
}
