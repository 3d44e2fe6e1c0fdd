/* runtime/openai/text.c - from tokens to what a client reads: reasoning split from the answer, stop
 * strings found. */
#include "text.h"

#include <string.h>

/* Where the first stop string begins in text, or size. */
static size_t find_stop(const stop_set_t *stops, const char *text, size_t size)
{
    size_t first = size;
    for (uint32_t i = 0; i < stops->count; i++) {
        const char *at = memmem(text, size, stops->texts[i], stops->sizes[i]);
        if (at != NULL && (size_t)(at - text) < first) first = (size_t)(at - text);
    }
    return first;
}

/* Bytes at the end of text that a stop string may begin with. */
static size_t held_size(const stop_set_t *stops, const char *text, size_t size)
{
    size_t held = 0;
    for (uint32_t i = 0; i < stops->count; i++) {
        size_t most = (size_t)stops->sizes[i] - 1 < size ? (size_t)stops->sizes[i] - 1 : size;
        for (size_t n = most; n > held; n--) {
            if (memcmp(text + size - n, stops->texts[i], n) == 0) held = n;
        }
    }
    return held;
}

static void emit(text_sink_t sink, bool is_reasoning, const char *text, size_t size)
{
    if (size > 0) sink.emit(sink.context, is_reasoning, text, size);
}

bool stop_push(const stop_set_t *stops, stop_tail_t *tail, const char *text, size_t size,
               bool is_reasoning, text_sink_t sink)
{
    char window[OPENAI_STOP_BYTES_MAX + DETOKENIZER_EMIT_MAX];
    memcpy(window, tail->bytes, tail->size);
    memcpy(window + tail->size, text, size);
    size_t all = tail->size + size;
    size_t found = find_stop(stops, window, all);
    tail->size = 0;
    if (found < all) {
        emit(sink, is_reasoning, window, found);
        return true;
    }
    size_t held = held_size(stops, window, all);
    emit(sink, is_reasoning, window, all - held);
    memcpy(tail->bytes, window + all - held, held);
    tail->size = (uint32_t)held;
    return false;
}

static void push_bytes(text_t *self, const text_rules_t *rules, const char *text, size_t size,
                       text_sink_t sink)
{
    if (size == 0) return;
    if (rules->stops == NULL)
        emit(sink, self->is_reasoning, text, size);
    else
        self->is_stopped =
            stop_push(rules->stops, rules->tail, text, size, self->is_reasoning, sink);
}

static void flush_tail(text_t *self, const text_rules_t *rules, text_sink_t sink)
{
    char text[DETOKENIZER_EMIT_MAX];
    size_t size = detokenizer_finish(&self->detokenizer, text, sizeof text);
    push_bytes(self, rules, text, size, sink);
    if (rules->stops == NULL || self->is_stopped) return;
    emit(sink, self->is_reasoning, rules->tail->bytes, rules->tail->size);
    rules->tail->size = 0;
}

void text_begin(text_t *self, const text_rules_t *rules, bool starts_in_reasoning)
{
    *self = (text_t){ .is_reasoning = starts_in_reasoning };
    if (rules->tail != NULL) rules->tail->size = 0;
}

bool text_push(text_t *self, const text_rules_t *rules, uint32_t id, text_sink_t sink)
{
    if (self->is_stopped) return true;
    if (self->is_reasoning) self->reasoning_tokens++;
    bool is_end = self->is_reasoning && id == rules->reasoning.think_end;
    bool is_begin = !self->is_reasoning && id == rules->reasoning.think_begin;
    if (is_end || is_begin) {
        flush_tail(self, rules, sink);
        if (!self->is_stopped) self->is_reasoning = is_begin;
        return self->is_stopped;
    }
    char text[DETOKENIZER_EMIT_MAX];
    size_t size =
        detokenizer_push(&self->detokenizer, rules->tokenizer, id, true, text, sizeof text);
    push_bytes(self, rules, text, size, sink);
    return self->is_stopped;
}

void text_end(text_t *self, const text_rules_t *rules, text_sink_t sink)
{
    if (!self->is_stopped) flush_tail(self, rules, sink);
}
