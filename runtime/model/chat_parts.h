/* runtime/model/chat_parts.h - what a chat template is made of; for chat.c and chat_render.c only.
 */
#ifndef RUNTIME_MODEL_CHAT_PARTS_H
#define RUNTIME_MODEL_CHAT_PARTS_H

#include "chat.h"
#include "tokenizer_vocab.h"

/* clang-format off */
#define SPECIALS(X) \
    X(BEGIN, "<｜begin▁of▁sentence｜>")        X(END, "<｜end▁of▁sentence｜>") \
    X(USER, "<｜User｜>")                      X(ASSISTANT, "<｜Assistant｜>") \
    X(THINK, "<think>")                        X(THINK_END, "</think>") \
    X(CALLS, "<｜tool▁calls▁begin｜>")         X(CALLS_END, "<｜tool▁calls▁end｜>") \
    X(CALL, "<｜tool▁call▁begin｜>")           X(CALL_END, "<｜tool▁call▁end｜>") \
    X(OUTPUTS, "<｜tool▁outputs▁begin｜>")     X(OUTPUTS_END, "<｜tool▁outputs▁end｜>") \
    X(OUTPUT, "<｜tool▁output▁begin｜>")       X(OUTPUT_END, "<｜tool▁output▁end｜>") \
    X(SEPARATOR, "<｜tool▁sep｜>")
/* clang-format on */
typedef enum {
#define X(name, content) SPECIAL_##name,
    SPECIALS(X)
#undef X
        SPECIALS_MAX
} special_t;

typedef struct render render_t;

/* A template: how it is recognised, what it needs, how it renders. */
typedef struct {
    const char *name;
    const char *has[5];   /* texts that its Jinja contains, all of them */
    const char *lacks[3]; /* and texts that it does not */
    uint32_t needs;       /* special tokens that the tokenizer must have; a bit each */
    bool thinks;          /* its generation prompt opens the reasoning */
    bool can_switch;      /* thinking can be switched on and off; off unless asked for */
    void (*render)(render_t *out, const chat_message_t *messages, uint32_t count);
} template_t;

struct chat {
    const template_t *template;
    uint32_t ids[SPECIALS_MAX];
    uint32_t begin; /* of texts that are no conversation; NO_TOKEN: none */
};

struct render {
    const chat_t *chat;
    pieces_t *pieces;
    bool is_thinking;
    /* What the published templates keep while they walk over the messages. */
    bool is_tool, is_output_first, is_last_user;
};

/* Published templates; each renders all messages and the generation prompt.  count is at least 1.
 */
void chat_render_tiny(render_t *out, const chat_message_t *messages, uint32_t count);
void chat_render_v3(render_t *out, const chat_message_t *messages, uint32_t count); /* and R1 */
void chat_render_v3_1(render_t *out, const chat_message_t *messages, uint32_t count);

#endif
