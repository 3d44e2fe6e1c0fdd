/* runtime/model/tokenizer.h - HF tokenizer.json, byte-level BPE: text to ids and back.
 *
 * A tokenizer belongs to one thread: encoding uses scratch memory and a cache of words inside it.
 * After tokenizer_reserve no call on a text of that size allocates.
 */
#ifndef RUNTIME_MODEL_TOKENIZER_H
#define RUNTIME_MODEL_TOKENIZER_H

#include "config.h"

typedef struct tokenizer tokenizer_t;

/* Load dir/tokenizer.json.  NULL: *why says what is wrong (a pre-tokeniser, model or decoder that
 * we do not know is named). */
tokenizer_t *tokenizer_new(const char *dir, error_text_t *why);
tokenizer_t *tokenizer_new_from_memory(const char *json, size_t size, error_text_t *why);
void tokenizer_destroy(tokenizer_t **self);

/* The same for a model: a tokenizer with ids that the model has no rows for is refused, too. */
tokenizer_t *tokenizer_new_for(const char *dir, const model_config_t *model, error_text_t *why);

/* Make room for texts of this many bytes (about 100 bytes of address space each; only what a text
 * really needs becomes resident).  False: no memory. */
MUST_CHECK bool tokenizer_reserve(tokenizer_t *self, size_t text_bytes);

/* Bytes of the longest token: a text of more than n times this has more than n tokens. */
uint32_t tokenizer_token_bytes_max(const tokenizer_t *self);

/* Ids are below this; added tokens count, ids may have gaps. */
uint32_t tokenizer_vocab(const tokenizer_t *self);

/* Id of a token's exact content ("<｜User｜>"), UINT32_MAX if there is none. */
uint32_t tokenizer_id(const tokenizer_t *self, const char *content, size_t size);

/* Text to ids; no begin token is added.  Added tokens inside the text become their ids iff
 * allow_special. Returns the number of ids needed; writes at most cap.  Invalid UTF-8 is replaced
 * by U+FFFD, one for each maximal subpart, as Python and HF do.  Longer texts than reserved grow
 * the scratch. */
size_t tokenizer_encode(tokenizer_t *self, const char *text, size_t size, bool allow_special,
                        uint32_t *ids, size_t cap);

/* Ids to text, always valid UTF-8.  Returns the bytes needed; writes at most cap, only whole
 * characters. skip_special leaves out special added tokens; ids that do not exist are left out. */
size_t tokenizer_decode(const tokenizer_t *self, const uint32_t *ids, size_t count,
                        bool skip_special, char *text, size_t cap);

/* Incremental detokeniser: never emits part of a UTF-8 sequence; an invalid byte becomes U+FFFD as
 * in a whole decode. */
enum { DETOKENIZER_EMIT_MAX = 1024 };
typedef struct {
    uint8_t held[4];
    uint32_t held_count;
} detokenizer_t;

/* Text that this token completes; at most cap bytes (DETOKENIZER_EMIT_MAX always suffices). */
size_t detokenizer_push(detokenizer_t *self, const tokenizer_t *tokenizer, uint32_t id,
                        bool skip_special, char *text, size_t cap);
/* What is left at the end, made valid. */
size_t detokenizer_finish(detokenizer_t *self, char *text, size_t cap);

#endif
