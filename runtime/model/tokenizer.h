/* runtime/model/tokenizer.h - HF tokenizer.json, byte-level BPE: text to ids and back.
 *
 * A tokenizer belongs to one thread: encoding uses scratch memory and a cache of words inside it.
 * After tokenizer_reserve no call on a text of that size allocates.
 *
 * A long text takes seconds where it is hard (one word of megabytes), so it can be encoded in
 * steps, any number of texts by turns; its ids are the same.
 */
#ifndef RUNTIME_MODEL_TOKENIZER_H
#define RUNTIME_MODEL_TOKENIZER_H

#include "config.h"
#include "tokenizer_split.h"

typedef struct tokenizer tokenizer_t;

/* Load dir/tokenizer.json.  NULL: *why says what is wrong (a pre-tokeniser, model or decoder that
 * we do not know is named). */
tokenizer_t *tokenizer_new(const char *dir, error_text_t *why);
tokenizer_t *tokenizer_new_from_memory(const char *json, size_t size, error_text_t *why);
void tokenizer_destroy(tokenizer_t **self);

/* The same for a model: a tokenizer with ids that the model has no rows for is refused, too. */
tokenizer_t *tokenizer_new_for(const char *dir, const model_config_t *model, error_text_t *why);

/* Make room for texts of this many bytes that are encoded at once (about 100 bytes of address space
 * each; only what a text really needs becomes resident), and in steps (28).  False: no memory. */
MUST_CHECK bool tokenizer_reserve(tokenizer_t *self, size_t text_bytes);
MUST_CHECK bool tokenizer_reserve_steps(tokenizer_t *self, size_t text_bytes);

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

/* ---- in steps ---- */

/* Texts and ids in the order in which they are encoded, in the caller's memory.  A text that
 * follows a text goes on with it.  Texts must be valid UTF-8. */
typedef struct {
    uint8_t *bytes;
    size_t cap, used, text_at; /* text_at: of the text that can go on; used where there is none */
    bool is_full;              /* something had no room and is missing */
} pieces_t;
void pieces_begin(pieces_t *self, void *bytes, size_t cap);
void pieces_add_text(pieces_t *self, const char *text, size_t size);
void pieces_add_id(pieces_t *self, uint32_t id);

/* Where added tokens are looked for: one for those of the raw text, one for the others. */
typedef struct {
    const char *text;
    size_t size, done, at;
    uint32_t id; /* found, and next behind the text before it; UINT32_MAX: none */
    bool is_over;
} seek_t;

/* An encoding in progress, in the caller's memory. */
typedef struct {
    const uint8_t *pieces, *pieces_end;
    seek_t seeks[2];
    uint32_t seek_depth;
    split_t split;
    bool is_splitting;
    const char *word; /* a long one that is merged in steps; NULL: none */
    size_t word_size;
    bool is_merged; /* all of it */
    uint32_t *ids;
    size_t cap, count; /* count goes on past cap */
} encoding_t;

/* Begin to encode: a text (valid UTF-8; added tokens become ids iff allow_special), or pieces
 * (whose texts have no added tokens).  Both, and ids, must stay until the end. */
void encoding_begin(encoding_t *self, const char *text, size_t size, bool allow_special,
                    uint32_t *ids, size_t cap);
void encoding_begin_pieces(encoding_t *self, const pieces_t *pieces, uint32_t *ids, size_t cap);

/* Go on.  *work falls by about one for each byte of ordinary text, and so that one is about 50 ns;
 * a match of the pre-tokeniser is not divided.  False: *work is 0, or the one room for long words
 * is another encoding's; go on later.  True: the end; self->count ids were needed.  With SIZE_MAX
 * it is true, and the room that tokenizer_reserve made is used. */
MUST_CHECK bool tokenizer_encode_step(tokenizer_t *tokenizer, encoding_t *self, size_t *work);
/* An encoding that will not go on gives back what it has of the tokenizer. */
void tokenizer_encode_drop(tokenizer_t *tokenizer, encoding_t *self);

/* ---- ids to text ---- */

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
