/* runtime/model/tokenizer_vocab.h - the tokens themselves: id to bytes, bytes to id, added tokens
 * in a text. */
#ifndef RUNTIME_MODEL_TOKENIZER_VOCAB_H
#define RUNTIME_MODEL_TOKENIZER_VOCAB_H

#include "config.h"

/* Three held bytes and a whole token, all of them U+FFFD, fit DETOKENIZER_EMIT_MAX. */
enum { TOKEN_BYTES_MAX = 330 };
#define NO_TOKEN UINT32_MAX

typedef struct {
    uint32_t offset; /* of its bytes */
    uint16_t size;
    uint8_t is_used; /* ids may have gaps */
    uint8_t is_special;
    uint8_t is_whole; /* merging its bytes as a word gave itself; learnt while encoding */
} token_t;

/* Added tokens of one kind, sorted by content, so that matching narrows a range byte by byte. */
typedef struct {
    uint32_t *ids;
    uint32_t count;
    uint8_t is_first[256]; /* some content begins with this byte */
} added_t;

typedef struct {
    token_t *tokens;
    uint32_t token_count; /* largest id + 1 */
    uint8_t *bytes;
    size_t bytes_used, bytes_cap;
    uint32_t *slots; /* open addressing over the bytes of tokens; id + 1, 0 is empty */
    uint32_t slot_mask;
    added_t added[2]; /* [0] matched in raw text first, [1] those marked `normalized`, matched in
                         what is left */
} vocab_t;

/* Room for ids 0 .. token_count - 1 and for this many bytes of text.  ERR_NO_SPACE. */
MUST_CHECK err_t vocab_init(vocab_t *self, uint32_t token_count, size_t bytes_cap,
                            uint32_t added_count);
void vocab_fini(vocab_t *self);

/* Give id these bytes.  False: the id has other bytes already, or there is no room. */
MUST_CHECK bool vocab_add(vocab_t *self, uint32_t id, const void *bytes, size_t size);
void vocab_mark_added(vocab_t *self, uint32_t id, bool is_normalized, bool is_special);
/* After the last vocab_mark_added. */
void vocab_sort_added(vocab_t *self);

/* NO_TOKEN if no token is spelt so. */
uint32_t vocab_find(const vocab_t *self, const void *bytes, size_t size);

/* The longest added token of this kind at the very start of text, NO_TOKEN if none. */
uint32_t vocab_match_added(const vocab_t *self, int kind, const char *text, size_t size);

static inline const uint8_t *vocab_bytes(const vocab_t *self, uint32_t id)
{
    return self->bytes + self->tokens[id].offset;
}

/* For every refusal of this room: fills *why and returns NULL. */
void *tokenizer_refuse(error_text_t *why, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
