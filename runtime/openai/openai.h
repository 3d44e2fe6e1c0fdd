/* runtime/openai/openai.h - requests of the OpenAI API as plain values, and errors in its form.
 *
 * A body is parsed once; everything in the result is copied into the caller's arena and lives as
 * long as that. Unknown fields are refused by name (a misspelt option that is silently ignored
 * costs its user a day), and so is what this server cannot do; what could only ever change
 * something outside of it (user, metadata...) is ignored.
 */
#ifndef RUNTIME_OPENAI_OPENAI_H
#define RUNTIME_OPENAI_OPENAI_H

#include "../../proto/messages.h"
#include "../model/chat.h"
#include "writer.h"

enum {
    OPENAI_CHOICES_MAX = 128, /* prompts times n of one call */
    OPENAI_STOPS_MAX = 16,    /* stop strings */
    OPENAI_STOP_BYTES_MAX = 256,
    OPENAI_DEPTH_MAX = 64,   /* nesting of a body */
    OPENAI_NAMES_MAX = 4096, /* names of one object */
    OPENAI_VALUES_MAX =
        CONTEXT_MAX + 65536, /* JSON values in a body: each costs memory while it is parsed */
};

/* Why a call was refused, in words for people; param names the field at fault, or is empty. */
typedef struct {
    err_t error;
    const char *code; /* OpenAI's code where it has one, else NULL: the name in errors.def */
    char param[64];
    char message[ERROR_TEXT_MAX];
} openai_error_t;

/* Fill *why and return the error.  Longer texts are cut. */
err_t openai_refuse(openai_error_t *why, err_t error, const char *param, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* {"error":{"message","type","param","code"}} */
void openai_print_error(writer_t *out, const openai_error_t *why);

/* Memory that only grows; the caller sets used to 0 when nothing of it is needed any more. */
typedef struct {
    uint8_t *bytes;
    size_t size, used;
} arena_t;

/* NULL when it is full. */
void *arena_take(arena_t *self, size_t count, size_t size);

typedef enum { OPENAI_CHAT, OPENAI_COMPLETION, OPENAI_TOKENIZE, OPENAI_DETOKENIZE } openai_kind_t;

typedef struct {
    const char *text; /* NULL: the prompt came as token ids */
    size_t size;
    const uint32_t *ids;
    uint32_t count;
} openai_prompt_t;

typedef struct {
    const char *text;
    size_t size;
} openai_text_t;

typedef struct {
    openai_kind_t kind;
    char model[128]; /* empty: the only one */
    chat_message_t *messages;
    uint32_t message_count;
    const openai_prompt_t *prompts; /* completions and tokenize; detokenize: one, of ids */
    uint32_t prompt_count;
    sampling_t sampling;
    bool has_seed, has_max_tokens, has_top_logprobs, has_stream_options;
    bool is_stream, has_usage_chunk, has_usage_always, is_echo;
    bool is_continued, has_no_prompt; /* continue_final_message; add_generation_prompt: false */
    bool is_bare; /* text prompts get no begin token, whatever the tokenizer says */
    uint32_t n, best_of, max_tokens;
    int thinking; /* -1: the template's default */
    openai_text_t stops[OPENAI_STOPS_MAX];
    uint32_t stop_count;
    uint32_t stop_ids[STOP_IDS_MAX], stop_id_count;
    uint32_t bias_ids[LOGIT_BIAS_MAX], bias_count;
    float bias_values[LOGIT_BIAS_MAX];
} openai_call_t;

/* Parse and validate a body.  On error *why says what was found and what is allowed.  Never blocks;
 * allocates while it runs and keeps nothing.  call->kind is the caller's; vocab bounds the token
 * ids. */
MUST_CHECK err_t openai_parse(openai_call_t *call, bytes_t body, uint32_t vocab, arena_t *arena,
                              openai_error_t *why);

/* The messages alone (a JSON array), for ZeroMQ clients. */
MUST_CHECK err_t openai_parse_messages(openai_call_t *call, bytes_t json, arena_t *arena,
                                       openai_error_t *why);

#endif
