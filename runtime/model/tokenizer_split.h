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

enum { SPLIT_STAGES_MAX = 8, SPLIT_PATTERN_MAX = 16384, SPLIT_SEARCH_BYTES = 1 << 16 };

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

/* What one stage still has to cut of the piece that it was given. */
typedef struct {
    const char *text;
    size_t size, done, from; /* given on up to `done`; looked through up to `from` */
    size_t begin, end;       /* a match that is next, behind what lay before it */
    bool is_found;
} split_level_t;

/* A text while it is cut, in the caller's memory.  Any number of them share a splitter. */
typedef struct {
    const char *text;
    size_t size;
    split_level_t levels[SPLIT_STAGES_MAX];
    uint32_t depth;
    bool is_begun;
} split_t;

typedef enum { SPLIT_WORD, SPLIT_PAUSE, SPLIT_END } split_step_t;

MUST_CHECK err_t splitter_init(splitter_t *self);
void splitter_fini(splitter_t *self);

/* Append a stage.  ERR_MODEL: *why says what is wrong with the pattern. */
MUST_CHECK err_t splitter_add(splitter_t *self, const char *pattern, error_text_t *why);

/* Begin to cut text, which must be valid UTF-8 and stay where it is. */
void split_begin(split_t *split, const char *text, size_t size);

/* The next word, never empty.  SPLIT_PAUSE: SPLIT_SEARCH_BYTES were looked through and held no
 * match; call again.  A match itself takes as long as it takes: milliseconds for one of megabytes.
 * Does not allocate. */
split_step_t splitter_next(splitter_t *self, split_t *split, const char **word, size_t *size);

#endif
