/* runtime/openai/text.h - from tokens to what a client reads: reasoning split from the answer, stop
 * strings found.
 *
 * Nothing is stripped: reasoning + "</think>" + answer is what the model wrote, line breaks around
 * the mark included. A tail that may be the beginning of a stop string is held back until the next
 * token decides.
 */
#ifndef RUNTIME_OPENAI_TEXT_H
#define RUNTIME_OPENAI_TEXT_H

#include "openai.h"

/* Stop strings of a request, by value. */
typedef struct {
    uint32_t count;
    uint16_t sizes[OPENAI_STOPS_MAX];
    char texts[OPENAI_STOPS_MAX][OPENAI_STOP_BYTES_MAX];
} stop_set_t;

/* What is held back: the longest tail that begins a stop string. */
typedef struct {
    uint32_t size;
    char bytes[OPENAI_STOP_BYTES_MAX];
} stop_tail_t;

typedef struct {
    detokenizer_t detokenizer;
    bool is_reasoning, is_stopped;
    uint32_t reasoning_tokens;
} text_t;

typedef struct {
    const tokenizer_t *tokenizer;
    chat_reasoning_t reasoning; /* ids UINT32_MAX: nothing is split */
    const stop_set_t *stops;    /* NULL: none */
    stop_tail_t *tail;          /* NULL iff stops is */
} text_rules_t;

/* Takes the pieces, in order; is_reasoning tells where they belong. */
typedef void text_sink_fn(void *context, bool is_reasoning, const char *text, size_t size);
typedef struct {
    text_sink_fn *emit;
    void *context;
} text_sink_t;

void text_begin(text_t *self, const text_rules_t *rules, bool starts_in_reasoning);

/* One token more.  Returns true when a stop string is complete: the text ended before it, nothing
 * follows. */
bool text_push(text_t *self, const text_rules_t *rules, uint32_t id, text_sink_t sink);

/* The end of the text: what was held back comes out. */
void text_end(text_t *self, const text_rules_t *rules, text_sink_t sink);

/* Search `size` bytes that follow the tail.  Emits what is safe; true when a stop string was found.
 */
bool stop_push(const stop_set_t *stops, stop_tail_t *tail, const char *text, size_t size,
               bool is_reasoning, text_sink_t sink);

#endif
