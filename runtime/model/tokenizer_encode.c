/* runtime/model/tokenizer_encode.c - text to ids: added tokens, then words, then their merging; at
 * once or in steps. */
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "../base/memory.h"
#include "../invariant.h"
#include "tokenizer_parts.h"
#include "tokenizer_utf8.h"

/* After a text longer than this the scratch that it touched is given back. */
enum { RESTING_BYTES = 256 << 10 };

/* In steps a longer word is merged in steps, too. */
enum { LONG_WORD_BYTES = 4096 };

/* Work in the unit of tokenizer.h: looking through text costs a fraction of what encoding it does,
 * a pair of symbols several times that. */
enum { SEEK_SHARE = 32, MERGE_WORK = 4, PIECE_WORK = 8 };
/* A long word lies across the whole memory: nothing is found in a cache. */
enum { LONG_MERGE_WORK = 8, REST_WORK = 32768 };

/* ---- pieces ---- */

/* In front of each; its text follows, an id stands alone. */
typedef struct {
    uint32_t id; /* NO_TOKEN: a text */
    uint32_t size;
} piece_t;

void pieces_begin(pieces_t *self, void *bytes, size_t cap)
{
    *self = (pieces_t){ .bytes = bytes, .cap = cap };
}

static bool has_room(pieces_t *self, size_t size)
{
    self->is_full |= size > self->cap - self->used;
    return !self->is_full;
}

static void put_piece(pieces_t *self, size_t at, piece_t piece)
{
    memcpy(self->bytes + at, &piece, sizeof piece);
}

void pieces_add_id(pieces_t *self, uint32_t id)
{
    if (!has_room(self, sizeof(piece_t))) return;
    put_piece(self, self->used, (piece_t){ .id = id });
    self->used += sizeof(piece_t);
    self->text_at = self->used;
}

void pieces_add_text(pieces_t *self, const char *text, size_t size)
{
    bool is_first = self->text_at == self->used;
    if (size == 0 || !has_room(self, size + (is_first ? sizeof(piece_t) : 0))) return;
    if (is_first) self->used += sizeof(piece_t);
    memcpy(self->bytes + self->used, text, size);
    self->used += size;
    size_t whole = self->used - self->text_at - sizeof(piece_t);
    invariant(whole <= UINT32_MAX);
    put_piece(self, self->text_at, (piece_t){ .id = NO_TOKEN, .size = (uint32_t)whole });
}

/* ---- words ---- */

static void spend(size_t *work, size_t cost)
{
    *work -= cost < *work ? cost : *work;
}

static void emit(encoding_t *out, const uint32_t *ids, uint32_t count)
{
    size_t room = out->cap > out->count ? out->cap - out->count : 0;
    size_t kept = count < room ? count : room;
    if (kept > 0) memcpy(out->ids + out->count, ids, kept * sizeof *ids);
    out->count += count;
}

static uint32_t merge_word(tokenizer_t *self, encoding_t *out, const char *word, size_t size)
{
    uint32_t count = bpe_run(&self->bpe, &self->merges, (const uint8_t *)word, (uint32_t)size);
    emit(out, self->bpe.ids, count);
    return count;
}

/* A word that is not in the cache.  Most are tokens themselves; that merging leads there is tried
 * once each. */
static uint32_t encode_rare(tokenizer_t *self, encoding_t *out, const char *word, size_t size)
{
    uint32_t id = vocab_find(&self->vocab, word, size);
    if (id == NO_TOKEN || !self->vocab.tokens[id].is_whole) {
        uint32_t count = merge_word(self, out, word, size);
        if (id != NO_TOKEN) self->vocab.tokens[id].is_whole = count == 1 && self->bpe.ids[0] == id;
        return count;
    }
    emit(out, &id, 1);
    self->bpe.ids[0] = id;
    return 1;
}

/* Returns the work. */
static size_t encode_word(tokenizer_t *self, encoding_t *out, const char *word, size_t size)
{
    if (size > CACHE_WORD_MAX) {
        merge_word(self, out, word, size);
        return MERGE_WORK * size;
    }
    cached_t *cached = &self->cache[XXH3_64bits(word, size) % CACHE_SLOTS];
    if (cached->size == size && memcmp(cached->word, word, size) == 0) {
        emit(out, cached->ids, cached->count);
        return size;
    }
    uint32_t count = encode_rare(self, out, word, size);
    if (count > CACHE_IDS_MAX) return MERGE_WORK * size;
    cached->size = (uint8_t)size;
    cached->count = (uint8_t)count;
    memcpy(cached->word, word, size);
    memcpy(cached->ids, self->bpe.ids, count * sizeof *cached->ids);
    return MERGE_WORK * size;
}

/* ---- a long word ---- */

static void leave_long_word(tokenizer_t *self, encoding_t *out)
{
    self->long_owner = NULL;
    out->word = NULL;
}

/* False: another encoding has the room. */
static bool step_long_word(tokenizer_t *self, encoding_t *out, size_t *work)
{
    if (self->long_owner != NULL && self->long_owner != out) return false;
    if (self->long_owner == NULL) {
        invariant(bpe_reserve(&self->long_bpe, out->word_size) == ERR_OK);
        out->is_merged = false;
        bpe_begin(&self->long_bpe, (const uint8_t *)out->word, (uint32_t)out->word_size);
        self->long_owner = out;
    }
    if (out->is_merged) { /* its memory goes back in steps, too */
        spend(work, REST_WORK);
        if (bpe_rest_step(&self->long_bpe)) leave_long_word(self, out);
        return true;
    }
    size_t steps = *work / LONG_MERGE_WORK + 1, left = steps;
    out->is_merged = bpe_step(&self->long_bpe, &self->merges, &left);
    spend(work, (steps - left) * LONG_MERGE_WORK);
    if (!out->is_merged) return true;
    emit(out, self->long_bpe.ids, self->long_bpe.count);
    if (out->word_size <= RESTING_BYTES) leave_long_word(self, out);
    return true;
}

void tokenizer_encode_drop(tokenizer_t *self, encoding_t *out)
{
    if (self->long_owner != out) return;
    if (out->word_size > RESTING_BYTES) bpe_rest(&self->long_bpe);
    leave_long_word(self, out);
}

/* ---- added tokens ---- */

/* Text goes to the added tokens of this kind, and behind the last kind to the words. */
static void enter(encoding_t *self, uint32_t kind, const char *text, size_t size)
{
    if (size == 0) return;
    self->is_splitting = kind == 2;
    if (self->is_splitting) {
        split_begin(&self->split, text, size);
        return;
    }
    self->seeks[kind] = (seek_t){ .text = text, .size = size, .id = NO_TOKEN };
    self->seek_depth = kind + 1;
}

/* Look for the next added token of the kind at the top.  Found or not, what lies before it goes to
 * the next kind. */
static void step_seek(tokenizer_t *self, encoding_t *out, size_t *work)
{
    uint32_t kind = out->seek_depth - 1;
    seek_t *seek = &out->seeks[kind];
    const vocab_t *vocab = &self->vocab;
    size_t from = seek->at, tries = 0;
    if (seek->is_over) {
        out->seek_depth--;
        return;
    }
    if (seek->id != NO_TOKEN) {
        emit(out, &seek->id, 1);
        seek->done = seek->at;
        seek->id = NO_TOKEN;
    }
    for (; seek->at < seek->size && seek->at - from + tries * SEEK_SHARE < SPLIT_SEARCH_BYTES;
         seek->at++) {
        if (!vocab->added[kind].is_first[(uint8_t)seek->text[seek->at]]) continue;
        seek->id =
            vocab_match_added(vocab, (int)kind, seek->text + seek->at, seek->size - seek->at);
        if (seek->id != NO_TOKEN) break;
        tries++;
    }
    spend(work, (seek->at - from) / SEEK_SHARE + tries + 1);
    seek->is_over = seek->at == seek->size;
    if (!seek->is_over && seek->id == NO_TOKEN) return;
    const char *text = seek->text + seek->done;
    size_t size = seek->at - seek->done;
    if (seek->id != NO_TOKEN) seek->at += vocab->tokens[seek->id].size;
    enter(out, kind + 1, text, size);
}

/* ---- the whole ---- */

static void step_split(tokenizer_t *self, encoding_t *out, bool is_at_once, size_t *work)
{
    const char *word;
    size_t size;
    switch (splitter_next(&self->splitter, &out->split, &word, &size)) {
    case SPLIT_END:
        out->is_splitting = false;
        return;
    case SPLIT_PAUSE:
        spend(work, SPLIT_SEARCH_BYTES / SEEK_SHARE);
        return;
    case SPLIT_WORD:
        if (is_at_once || size <= LONG_WORD_BYTES) {
            spend(work, encode_word(self, out, word, size));
            return;
        }
        spend(work, size / SEEK_SHARE); /* finding it */
        out->word = word;
        out->word_size = size;
    }
}

static void take_piece(encoding_t *self)
{
    piece_t piece;
    memcpy(&piece, self->pieces, sizeof piece);
    self->pieces += sizeof piece;
    if (piece.id != NO_TOKEN)
        emit(self, &piece.id, 1);
    else
        enter(self, 2, (const char *)self->pieces, piece.size);
    self->pieces += piece.size;
}

static void clear(encoding_t *self, uint32_t *ids, size_t cap)
{
    self->pieces = self->pieces_end = NULL;
    self->seek_depth = 0;
    self->is_splitting = false;
    self->word = NULL;
    self->ids = ids;
    self->cap = cap;
    self->count = 0;
}

void encoding_begin(encoding_t *self, const char *text, size_t size, bool allow_special,
                    uint32_t *ids, size_t cap)
{
    clear(self, ids, cap);
    enter(self, allow_special ? 0 : 2, text, size);
}

void encoding_begin_pieces(encoding_t *self, const pieces_t *pieces, uint32_t *ids, size_t cap)
{
    invariant(!pieces->is_full);
    clear(self, ids, cap);
    self->pieces = pieces->bytes;
    self->pieces_end = pieces->bytes + pieces->used;
}

bool tokenizer_encode_step(tokenizer_t *self, encoding_t *out, size_t *work)
{
    bool is_at_once = *work == SIZE_MAX;
    while (*work > 0) {
        if (out->word != NULL) {
            if (!step_long_word(self, out, work)) return false;
        } else if (out->is_splitting) {
            step_split(self, out, is_at_once, work);
        } else if (out->seek_depth > 0) {
            step_seek(self, out, work);
        } else if (out->pieces < out->pieces_end) {
            spend(work, PIECE_WORK);
            take_piece(out);
        } else {
            return true;
        }
    }
    return false;
}

size_t tokenizer_encode(tokenizer_t *self, const char *text, size_t size, bool allow_special,
                        uint32_t *ids, size_t cap)
{
    invariant(tokenizer_reserve(self, size));
    if (utf8_valid_size((const uint8_t *)text, size) < size) {
        size = utf8_repair((const uint8_t *)text, size, self->repaired, self->repaired_cap);
        text = self->repaired;
    }
    encoding_t out;
    size_t work = SIZE_MAX;
    encoding_begin(&out, text, size, allow_special, ids, cap);
    invariant(tokenizer_encode_step(self, &out, &work));
    if (size > RESTING_BYTES) {
        bpe_rest(&self->bpe);
        memory_rest(self->repaired, self->repaired_cap);
    }
    return out.count;
}
