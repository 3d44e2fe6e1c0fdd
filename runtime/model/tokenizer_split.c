/* runtime/model/tokenizer_split.c - the pre-tokeniser: a text cut into words by a sequence of
 * regexes. */
#include "tokenizer_split.h"

#include <string.h>

#include "../invariant.h"
#include "tokenizer_vocab.h"

/* A hostile pattern may backtrack without end; honest ones need a few steps per byte. */
enum { MATCH_LIMIT = 50000000, STACK_LEAST = 32 * 1024, STACK_MOST = 1024 * 1024 };

/* Oniguruma, which the tokenizers were trained with, takes \s for Unicode's White_Space.  PCRE2
 * adds U+180E. */
static const char white_space[] = "\\x{9}-\\x{d}\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{"
                                  "2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";

err_t splitter_init(splitter_t *self)
{
    *self = (splitter_t){ .context = pcre2_match_context_create(NULL) };
    self->stack =
        pcre2_jit_stack_create(STACK_LEAST, STACK_MOST, NULL); /* NULL where there is no JIT */
    if (!self->context) return ERR_NO_SPACE;
    pcre2_set_match_limit(self->context, MATCH_LIMIT);
    if (self->stack) pcre2_jit_stack_assign(self->context, NULL, self->stack);
    return ERR_OK;
}

void splitter_fini(splitter_t *self)
{
    for (uint32_t i = 0; i < self->stage_count; i++) {
        pcre2_match_data_free(self->stages[i].match);
        pcre2_code_free(self->stages[i].code);
    }
    pcre2_match_context_free(self->context);
    pcre2_jit_stack_free(self->stack);
    *self = (splitter_t){ 0 };
}

typedef struct {
    char text[4 * SPLIT_PATTERN_MAX];
    size_t size;
    bool is_full;
} pattern_t;

static void append(pattern_t *out, const char *text, size_t size)
{
    out->is_full |= size > sizeof out->text - out->size;
    if (out->is_full) return;
    memcpy(out->text + out->size, text, size);
    out->size += size;
}

/* ---- what Oniguruma reads in another way than PCRE2 ----
 *
 * Such a pattern compiles and gives other words than those which the model was trained on, so it
 * is refused.  Each of these names what it finds at text, NULL for nothing; texts end with a NUL.
 */

/* The escape at text, a backslash and a character. */
static const char *unlike_escape(const char *text, bool is_in_class)
{
    if (is_in_class && text[1] == 'S') return "\\S in a class";
    if (is_in_class && text[1] == 'b') return NULL; /* a backspace for both */
    switch (text[1]) {
    case 'h': /* a hexadecimal digit */
    case 'H':
        return "\\h or \\H";
    case 'v': /* one character, U+000B */
    case 'V':
        return "\\v or \\V";
    case 'w': /* with marks and connecting punctuation */
    case 'W':
        return "\\w or \\W";
    case 'b':
    case 'B':
        return "\\b or \\B, the edge of a \\w";
    case 'Q':
    case 'E':
        return "\\Q or \\E";
    default:
        return NULL;
    }
}

/* The brace at text.  Where it holds no numbers both take it for itself. */
static const char *unlike_interval(const char *text)
{
    static const char digits[] = "0123456789";
    size_t low = strspn(text + 1, digits);
    const char *at = text + 1 + low;
    bool is_range = *at == ',';
    size_t high = is_range ? strspn(++at, digits) : 0;
    at += high;
    if (*at != '}' || low + high == 0) return NULL;
    if (low == 0) return "{,n}";
    if (at[1] == '+') return "+ behind {n}"; /* not possessive: a repetition of the whole */
    return at[1] == '?' && !is_range ? "? behind {n}" : NULL; /* not lazy: all of it or nothing */
}

/* The group at text, "(?" and what follows: m lets . match line ends there, ^ and $ do always. */
static const char *unlike_option(const char *text)
{
    size_t size = strspn(text + 2, "imsxnJU^-");
    return memchr(text + 2, 'm', size) ? "(?m)" : NULL;
}

/* "[:alpha:]" at text, inside a class: its size, 0 for anything else. */
static size_t posix_size(const char *text)
{
    if (text[0] != '[' || text[1] != ':') return 0;
    size_t begin = text[2] == '^' ? 3 : 2;
    size_t name = strspn(text + begin, "abcdefghijklmnopqrstuvwxyz");
    return name && strncmp(text + begin + name, ":]", 2) == 0 ? begin + name + 2 : 0;
}

static const char *find_unlike(const char *text, bool is_in_class)
{
    if (text[0] == '\\') return unlike_escape(text, is_in_class);
    if (is_in_class && strncmp(text, "&&", 2) == 0) return "&& in a class";
    if (is_in_class) return text[0] == '[' ? "a class in a class" : NULL;
    if (strncmp(text, "(?", 2) == 0) return unlike_option(text);
    return text[0] == '{' ? unlike_interval(text) : NULL;
}

/* ---- the pattern for PCRE2 ---- */

/* The escape at text, spelt for PCRE2; returns its size. */
static size_t translate_escape(pattern_t *out, const char *text, bool is_in_class)
{
    bool is_space = text[1] == 's' || text[1] == 'S',
         has_brace = strchr("pPxo", text[1]) && text[2] == '{';
    const char *end = has_brace ? strchr(text, '}') : NULL; /* \x{61}: no interval */
    size_t size = end ? (size_t)(end - text) + 1 : 2;
    if (!is_space) {
        append(out, text, size);
        return size;
    }
    if (!is_in_class) append(out, text[1] == 's' ? "[" : "[^", text[1] == 's' ? 1 : 2);
    append(out, white_space, sizeof white_space - 1);
    if (!is_in_class) append(out, "]", 1);
    return size;
}

/* What opens a class: a bracket right behind it stands for itself. */
static size_t class_size(const char *text)
{
    size_t size = text[1] == '^' ? 2 : 1;
    return text[size] == ']' ? size + 1 : size;
}

/* NULL; or what the pattern holds that cannot be translated. */
static const char *translate(pattern_t *out, const char *pattern)
{
    bool is_in_class = false;
    for (const char *at = pattern; *at;) {
        size_t size = is_in_class ? posix_size(at) : 0;
        const char *unlike = size ? NULL : find_unlike(at, is_in_class);
        if (unlike) return unlike;
        if (at[0] == '\\' && at[1]) {
            at += translate_escape(out, at, is_in_class);
            continue;
        }
        if (size == 0) size = !is_in_class && *at == '[' ? class_size(at) : 1;
        if (!is_in_class && *at == '[')
            is_in_class = true;
        else if (*at == ']')
            is_in_class = false;
        append(out, at, size);
        at += size;
    }
    return out->is_full ? "too many \\s" : NULL;
}

err_t splitter_add(splitter_t *self, const char *pattern, error_text_t *why)
{
    size_t size = strlen(pattern);
    static const uint32_t options = /* multiline: ^ and $ match at line ends, as in Oniguruma */
        PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_MULTILINE | PCRE2_USE_OFFSET_LIMIT;
    pattern_t translated = { .size = 0 };
    if (self->stage_count == SPLIT_STAGES_MAX || size > SPLIT_PATTERN_MAX) {
        tokenizer_refuse(why,
                         "pre_tokenizer: pattern %u: %zu bytes; at most %d patterns of %d bytes",
                         self->stage_count, size, SPLIT_STAGES_MAX, SPLIT_PATTERN_MAX);
        return ERR_MODEL;
    }
    const char *unlike = translate(&translated, pattern);
    if (unlike) {
        tokenizer_refuse(why, "pre_tokenizer: pattern %u: found %s; allowed are patterns without",
                         self->stage_count, unlike);
        return ERR_MODEL;
    }
    int code = 0;
    PCRE2_SIZE where = 0;
    stage_t stage = { .code = pcre2_compile((PCRE2_SPTR)translated.text, translated.size, options,
                                            &code, &where, NULL) };
    if (!stage.code) {
        char text[256];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        tokenizer_refuse(why, "pre_tokenizer: pattern %u: %s (near byte %zu)", self->stage_count,
                         text, (size_t)where);
        return ERR_MODEL;
    }
    stage.is_compiled = self->stack && pcre2_jit_compile(stage.code, PCRE2_JIT_COMPLETE) == 0;
    stage.match = pcre2_match_data_create(1, NULL);
    invariant(stage.match != NULL);
    self->stages[self->stage_count++] = stage;
    return ERR_OK;
}

/* ---- cutting ---- */

static size_t next_character(const char *text, size_t size, size_t at)
{
    do at++;
    while (at < size && ((uint8_t)text[at] & 0xc0) == 0x80);
    return at;
}

/* Find the next match that begins in a window from level->from on, and move level->from behind
 * what was looked through.  Where the pattern runs into its limit the rest is one piece. */
static split_step_t find(splitter_t *self, const stage_t *stage, split_level_t *level)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)level->text;
    size_t from = level->from, left = level->size - from;
    size_t last = left > SPLIT_SEARCH_BYTES ? from + SPLIT_SEARCH_BYTES : level->size;
    pcre2_set_offset_limit(self->context, last);
    int found = stage->is_compiled
                    ? pcre2_jit_match(stage->code, subject, level->size, from, PCRE2_NO_UTF_CHECK,
                                      stage->match, self->context)
                    : pcre2_match(stage->code, subject, level->size, from, PCRE2_NO_UTF_CHECK,
                                  stage->match, self->context);
    if (found == PCRE2_ERROR_NOMATCH && last < level->size) {
        level->from = next_character(level->text, level->size, last);
        return SPLIT_PAUSE;
    }
    const PCRE2_SIZE *place = pcre2_get_ovector_pointer(stage->match);
    level->from = level->size;
    if (found < 0 || place[0] > place[1] || place[0] < level->done) return SPLIT_END; /* \K */
    level->begin = place[0];
    level->end = place[1];
    level->is_found = level->end > level->begin;
    level->from =
        level->is_found ? level->end : next_character(level->text, level->size, level->end);
    return SPLIT_WORD;
}

/* Give on what lies before `end`. */
static bool take(split_level_t *level, size_t end, const char **piece, size_t *size)
{
    *piece = level->text + level->done;
    *size = end - level->done;
    level->done = end;
    return *size > 0;
}

static split_step_t next_piece(splitter_t *self, const stage_t *stage, split_level_t *level,
                               const char **piece, size_t *size)
{
    for (;;) {
        if (level->is_found) {
            if (take(level, level->begin, piece, size)) return SPLIT_WORD;
            level->is_found = false;
            if (take(level, level->end, piece, size)) return SPLIT_WORD;
        }
        split_step_t step = level->from < level->size ? find(self, stage, level) : SPLIT_END;
        if (step == SPLIT_PAUSE) return SPLIT_PAUSE;
        if (step == SPLIT_END)
            return take(level, level->size, piece, size) ? SPLIT_WORD : SPLIT_END;
        if (take(level, level->begin, piece, size)) return SPLIT_WORD;
    }
}

void split_begin(split_t *split, const char *text, size_t size)
{
    split->text = text;
    split->size = size;
    split->depth = 0;
    split->is_begun = false;
}

split_step_t splitter_next(splitter_t *self, split_t *split, const char **word, size_t *size)
{
    bool is_piece = !split->is_begun && split->size > 0;
    *word = split->text;
    *size = split->size;
    split->is_begun = true;
    for (;;) {
        if (is_piece && split->depth == self->stage_count) return SPLIT_WORD;
        if (is_piece)
            split->levels[split->depth++] = (split_level_t){ .text = *word, .size = *size };
        if (split->depth == 0) return SPLIT_END;
        const stage_t *stage = &self->stages[split->depth - 1];
        split_step_t step = next_piece(self, stage, &split->levels[split->depth - 1], word, size);
        if (step == SPLIT_PAUSE) return SPLIT_PAUSE;
        is_piece = step == SPLIT_WORD;
        if (!is_piece) split->depth--;
    }
}
