/* runtime/openai/answer.h - answers in OpenAI's shapes, whole and streamed, written piece by piece.
 */
#ifndef RUNTIME_OPENAI_ANSWER_H
#define RUNTIME_OPENAI_ANSWER_H

#include "openai.h"

typedef struct {
    uint64_t prompt_tokens, completion_tokens, reasoning_tokens, cached_tokens;
} usage_t;

/* One token with its log probability; NAN: it has none (the first of a prompt). */
typedef struct {
    uint32_t id, top_count;
    float logprob;
    uint32_t top_ids[TOP_LOGPROBS_MAX];
    float top_logprobs[TOP_LOGPROBS_MAX];
} token_record_t;

/* What every answer and every chunk of a call begins with. */
typedef struct {
    bool is_chat;
    const char *id; /* "chatcmpl-..." or "cmpl-..." */
    uint64_t created_s;
    const char *model, *fingerprint;
    bool has_usage; /* every chunk says what was used so far */
    usage_t usage;
} answer_head_t;

/* How far the text of a completion has come, for text_offset: tokens may end in the middle of a
 * character, or not be in the text at all. */
typedef struct {
    uint64_t characters;
    detokenizer_t detokenizer;
} text_place_t;

/* Records to be printed, from the first on after every rewind. */
typedef struct {
    void (*rewind)(void *context);
    bool (*next)(void *context, token_record_t *out);
    void *context;
} records_t;

/* "stop", "length" or "cancelled". */
const char *answer_finish(finish_t reason);

/* `{"id":..., ... "system_fingerprint":...` : the caller goes on with a comma. */
void answer_print_head(writer_t *out, const answer_head_t *head, bool is_chunk);
void answer_print_usage(writer_t *out, const usage_t *usage);

/* The value of "logprobs" in the shape of the API; *offset counts characters of text before the
 * first token and is moved on (completions). */
void answer_print_logprobs(writer_t *out, bool is_chat, const tokenizer_t *tokenizer,
                           records_t records, text_place_t *place);

/* ---- streaming: whole server-sent events, "data: ...\n\n" ---- */

typedef struct {
    openai_text_t reasoning, content;
    const records_t *records; /* NULL: no log probabilities */
    const tokenizer_t *tokenizer;
    text_place_t *place;
} delta_t;

void answer_chunk_role(writer_t *out, const answer_head_t *head, uint32_t choice);
void answer_chunk_delta(writer_t *out, const answer_head_t *head, uint32_t choice,
                        const delta_t *delta);
void answer_chunk_finish(writer_t *out, const answer_head_t *head, uint32_t choice,
                         finish_t reason);
void answer_chunk_usage(writer_t *out, const answer_head_t *head, const usage_t *usage);
void answer_chunk_error(writer_t *out, const openai_error_t *why);
void answer_chunk_done(writer_t *out);

#endif
