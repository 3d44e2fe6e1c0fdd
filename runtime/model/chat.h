/* runtime/model/chat.h - chat templates in native code, chosen by what tokenizer_config.json holds.
 *
 * Known: deepseek_v3, deepseek_r1, deepseek_v3_1, tiny.  The templates are recognised by their
 * features in the Jinja text (never executed); an unknown one is refused with the list of known
 * ones. Special tokens in the output are the template's own only: a user's text that spells one
 * stays text.
 *
 * DeepSeek-V3's first template closes tool calls (<｜tool▁calls▁end｜><｜end▁of▁sentence｜>) only
 * behind a second call, and again behind every further one; it leaves out the calls of a message
 * that has text, and opens calls and outputs once in a conversation.  Later templates close the
 * calls once, behind the last, and open them in every turn.  Their form is rendered for both: with
 * two calls in one turn the first template gives the same, and the end mark that it forgets is the
 * token with which the model itself had ended its turn.
 */
#ifndef RUNTIME_MODEL_CHAT_H
#define RUNTIME_MODEL_CHAT_H

#include "tokenizer.h"

typedef enum { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL } chat_role_t;

typedef struct {
    const char *name;
    const char *arguments; /* JSON text */
    size_t name_size, arguments_size;
} chat_call_t;

typedef struct {
    chat_role_t role;
    const char *content;
    size_t content_size;
    const chat_call_t *calls; /* tool calls of an assistant message */
    uint32_t call_count;
    int is_prefix; /* last assistant message to be continued */
} chat_message_t;

typedef struct chat chat_t;

/* Read dir/tokenizer_config.json and pick the template.  NULL: *why. */
chat_t *chat_new(const char *dir, const tokenizer_t *tokenizer, error_text_t *why);
void chat_destroy(chat_t **self);
const char *chat_name(const chat_t *self);

/* The token that begins every text that is no conversation: bos_token where tokenizer_config.json
 * says add_bos_token, else UINT32_MAX.  Conversations get theirs from the template. */
uint32_t chat_begin_token(const chat_t *self);

/* Append messages, begin token and generation prompt included, to the pieces; a piece that had no
 * room shows in them.  Texts must be valid UTF-8.  thinking: -1 the template's default, 0 off, 1
 * on; only V3.1 can switch, for the others it says nothing. A content of NULL is empty.  Where the
 * published template adds no generation prompt (after tool outputs; V3.1 also after an assistant's
 * message) neither does this.  False with *why when a message cannot be rendered. */
MUST_CHECK bool chat_render(const chat_t *self, const chat_message_t *messages, uint32_t count,
                            int thinking, pieces_t *pieces, error_text_t *why);

/* How answers of this template are split: the ids that open and close reasoning (UINT32_MAX: none),
 * and whether the prompt that ends with message `last` has already opened it: a continued answer,
 * or one that goes on after a tool's output, is behind its reasoning. */
typedef struct {
    uint32_t think_begin, think_end;
    int starts_in_reasoning;
} chat_reasoning_t;
chat_reasoning_t chat_reasoning(const chat_t *self, int thinking, const chat_message_t *last);

#endif
