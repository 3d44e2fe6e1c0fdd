/* runtime/model/tokenizer_split.h - the pre-tokeniser: a text cut into words by a sequence of
 * regexes.
 *
 * Every stage cuts each piece of the stage before it at its matches; matches and what lies between
 * them stay as pieces of their own ("Isolated").  A stage sees nothing outside its piece.
 */
#ifndef RUNTIME_MODEL_TOKENIZER_SPLIT_H
#define RUNTIME_MODEL_TOKENIZER_SPLIT_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "config.h"

enum { SPLIT_STAGES_MAX = 8, SPLIT_PATTERN_MAX = 16384 };

typedef struct {
    pcre2_code *code;
    pcre2_match_data *match;
    bool is_compiled; /* to machine code */
} stage_t;

typedef struct {
    stage_t stages[SPLIT_STAGES_MAX];
    uint32_t stage_count;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
} splitter_t;

/* What happens to every word, in order.  Words are never empty. */
typedef void split_word_fn(void *context, const char *word, size_t size);

MUST_CHECK err_t splitter_init(splitter_t *self);
void splitter_fini(splitter_t *self);

/* Append a stage.  ERR_MODEL: *why says what is wrong with the pattern. */
MUST_CHECK err_t splitter_add(splitter_t *self, const char *pattern, error_text_t *why);

/* Cut text, which must be valid UTF-8.  Does not allocate. */
void splitter_run(splitter_t *self, const char *text, size_t size, split_word_fn *word,
                  void *context);

#endif
