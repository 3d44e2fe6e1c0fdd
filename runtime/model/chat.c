/* runtime/model/chat.c - chat templates in native code, chosen by what tokenizer_config.json holds.
 *
 * A rendering is special tokens by id and plain text between them.  Plain text is gathered until
 * the next special token and then tokenised as one piece, as the rendered string would be, but
 * without looking for special tokens in it.
 */
#include "chat.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "../invariant.h"
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
static const char *const special_contents[SPECIALS_MAX] = {
#define X(name, content) content,
    SPECIALS(X)
#undef X
};

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
    char *text; /* plain text not yet tokenised */
    size_t text_size, text_cap;
};

struct render {
    chat_t *chat;
    tokenizer_t *tokenizer;
    uint32_t *ids;
    size_t cap, count;
    bool is_thinking;
    /* What the published templates keep while they walk over the messages. */
    bool is_tool, is_output_first, is_last_user;
};

/* ---- pieces
 * ------------------------------------------------------------------------------------------ */

static void flush(render_t *out)
{
    size_t room = out->cap > out->count ? out->cap - out->count : 0;
    uint32_t *to = room ? out->ids + out->count : NULL;
    out->count +=
        tokenizer_encode(out->tokenizer, out->chat->text, out->chat->text_size, false, to, room);
    out->chat->text_size = 0;
}

static void special(render_t *out, special_t which)
{
    flush(out);
    if (out->count < out->cap) out->ids[out->count] = out->chat->ids[which];
    out->count++;
}

static void plain(render_t *out, const char *text, size_t size)
{
    chat_t *chat = out->chat;
    invariant(chat_reserve(chat, chat->text_size + size));
    if (size) memcpy(chat->text + chat->text_size, text, size);
    chat->text_size += size;
}

static void literal(render_t *out, const char *text)
{
    plain(out, text, strlen(text));
}

typedef struct {
    const char *text;
    size_t size;
} span_t;

static span_t content_of(const chat_message_t *message)
{
    return (span_t){ message->content, message->content ? message->content_size : 0 };
}

/* What follows the last (or first) </think>; all of it where there is none. */
static span_t after_thinking(span_t content, bool is_last)
{
    static const char mark[] = "</think>";
    const size_t size = sizeof mark - 1;
    const char *end = content.text + content.size;
    for (const char *at = content.text;
         content.size && (at = memmem(at, (size_t)(end - at), mark, size)) != NULL;) {
        at += size;
        content = (span_t){ at, (size_t)(end - at) };
        if (!is_last) break;
    }
    return content;
}

/* What Python's str.strip() takes for white space. */
static bool is_space(utf8proc_int32_t point)
{
    return (point >= 9 && point <= 13) || (point >= 28 && point <= 32) || point == 0x85 ||
           point == 0xa0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200a) ||
           point == 0x2028 || point == 0x2029 || point == 0x202f || point == 0x205f ||
           point == 0x3000;
}

/* The character that ends or begins a span: its bytes if it is white space, else 0. */
static size_t space_at(const char *text, size_t size)
{
    utf8proc_int32_t point = -1;
    utf8proc_ssize_t step = utf8proc_iterate((const uint8_t *)text, (utf8proc_ssize_t)size, &point);
    return step > 0 && is_space(point) ? (size_t)step : 0;
}

static span_t strip(span_t span)
{
    for (size_t step; span.size > 0 && (step = space_at(span.text, span.size)) > 0;) {
        span.text += step;
        span.size -= step;
    }
    while (span.size > 0) {
        size_t last = span.size - 1;
        while (last > 0 && ((uint8_t)span.text[last] & 0xc0) == 0x80) last--;
        if (space_at(span.text + last, span.size - last) != span.size - last) break;
        span.size = last;
    }
    return span;
}

/* All system messages, a blank line between them, before anything else. */
static void render_systems(render_t *out, const chat_message_t *messages, uint32_t count)
{
    bool is_first = true;
    for (uint32_t i = 0; i < count; i++) {
        if (messages[i].role != CHAT_SYSTEM) continue;
        if (!is_first) literal(out, "\n\n");
        plain(out, messages[i].content, content_of(&messages[i]).size);
        is_first = false;
    }
}

/* ---- tiny
 * -------------------------------------------------------------------------------------------- */

static void render_tiny(render_t *out, const chat_message_t *messages, uint32_t count)
{
    special(out, SPECIAL_BEGIN);
    for (uint32_t i = 0; i < count; i++) {
        span_t content = content_of(&messages[i]);
        if (messages[i].role == CHAT_USER) special(out, SPECIAL_USER);
        if (messages[i].role == CHAT_ASSISTANT) {
            special(out, SPECIAL_ASSISTANT);
            if (!messages[i].is_prefix) content = strip(after_thinking(content, true));
        }
        plain(out, content.text, content.size);
        if (messages[i].is_prefix) return;
        if (messages[i].role == CHAT_ASSISTANT) special(out, SPECIAL_END);
    }
    special(out, SPECIAL_ASSISTANT);
    special(out, SPECIAL_THINK);
}

/* ---- DeepSeek-V3 and R1
 * ------------------------------------------------------------------------------- */

static void render_call_v3(render_t *out, const chat_call_t *call)
{
    special(out, SPECIAL_CALL);
    literal(out, "function");
    special(out, SPECIAL_SEPARATOR);
    plain(out, call->name, call->name_size);
    literal(out, "\n```json\n");
    plain(out, call->arguments, call->arguments_size);
    literal(out, "\n```");
    special(out, SPECIAL_CALL_END);
}

static void render_assistant_v3(render_t *out, const chat_message_t *message)
{
    span_t content = content_of(message);
    special(out, out->is_tool ? SPECIAL_OUTPUTS_END : SPECIAL_ASSISTANT);
    if (out->chat->template->thinks && !out->is_tool && !message->is_prefix)
        content = after_thinking(content, true);
    out->is_tool = false;
    plain(out, content.text, content.size);
    if (message->is_prefix) return;
    if (message->call_count > 0) {
        special(out, SPECIAL_CALLS);
        for (uint32_t i = 0; i < message->call_count; i++) {
            if (i > 0) literal(out, "\n");
            render_call_v3(out, &message->calls[i]);
        }
        special(out, SPECIAL_CALLS_END);
        out->is_output_first = true;
    }
    special(out, SPECIAL_END);
}

static void render_tool_v3(render_t *out, span_t content)
{
    if (out->is_output_first)
        special(out, SPECIAL_OUTPUTS);
    else
        literal(out, "\n");
    out->is_output_first = false;
    out->is_tool = true;
    special(out, SPECIAL_OUTPUT);
    plain(out, content.text, content.size);
    special(out, SPECIAL_OUTPUT_END);
}

static void render_v3(render_t *out, const chat_message_t *messages, uint32_t count)
{
    special(out, SPECIAL_BEGIN);
    render_systems(out, messages, count);
    out->is_output_first = true;
    for (uint32_t i = 0; i < count; i++) {
        span_t content = content_of(&messages[i]);
        if (messages[i].role == CHAT_ASSISTANT) render_assistant_v3(out, &messages[i]);
        if (messages[i].role == CHAT_TOOL) render_tool_v3(out, content);
        if (messages[i].role != CHAT_USER) continue;
        out->is_tool = false;
        special(out, SPECIAL_USER);
        plain(out, content.text, content.size);
    }
    if (messages[count - 1].is_prefix) return;
    if (out->is_tool) { /* the model goes on in the turn that called the tool */
        special(out, SPECIAL_OUTPUTS_END);
        return;
    }
    special(out, SPECIAL_ASSISTANT);
    if (!out->chat->template->thinks) return;
    special(out, SPECIAL_THINK);
    literal(out, "\n");
}

/* ---- DeepSeek-V3.1
 * ------------------------------------------------------------------------------------ */

static void render_calls_v3_1(render_t *out, const chat_message_t *message)
{
    special(out, SPECIAL_CALLS);
    for (uint32_t i = 0; i < message->call_count; i++) {
        special(out, SPECIAL_CALL);
        plain(out, message->calls[i].name, message->calls[i].name_size);
        special(out, SPECIAL_SEPARATOR);
        plain(out, message->calls[i].arguments, message->calls[i].arguments_size);
        special(out, SPECIAL_CALL_END);
    }
    special(out, SPECIAL_CALLS_END);
}

static void render_assistant_v3_1(render_t *out, const chat_message_t *message)
{
    span_t content = content_of(message);
    bool is_call = message->call_count > 0;
    if (out->is_last_user) {
        special(out, SPECIAL_ASSISTANT);
        special(out, message->is_prefix && out->is_thinking ? SPECIAL_THINK : SPECIAL_THINK_END);
    }
    if (!is_call && !out->is_tool && !message->is_prefix) content = after_thinking(content, false);
    plain(out, content.text, content.size);
    if (is_call) render_calls_v3_1(out, message);
    if (!message->is_prefix) special(out, SPECIAL_END);
    out->is_last_user = false;
    out->is_tool = false;
}

static void render_v3_1(render_t *out, const chat_message_t *messages, uint32_t count)
{
    special(out, SPECIAL_BEGIN);
    render_systems(out, messages, count);
    for (uint32_t i = 0; i < count; i++) {
        span_t content = content_of(&messages[i]);
        if (messages[i].role == CHAT_ASSISTANT) render_assistant_v3_1(out, &messages[i]);
        if (messages[i].role != CHAT_USER && messages[i].role != CHAT_TOOL) continue;
        out->is_tool = messages[i].role == CHAT_TOOL;
        out->is_last_user = !out->is_tool;
        special(out, out->is_tool ? SPECIAL_OUTPUT : SPECIAL_USER);
        plain(out, content.text, content.size);
        if (out->is_tool) special(out, SPECIAL_OUTPUT_END);
    }
    if (!out->is_last_user) return;
    special(out, SPECIAL_ASSISTANT);
    special(out, out->is_thinking ? SPECIAL_THINK : SPECIAL_THINK_END);
}

/* ---- the table
 * --------------------------------------------------------------------------------------- */

enum {
    NEEDS_TURNS =
        1 << SPECIAL_BEGIN | 1 << SPECIAL_END | 1 << SPECIAL_USER | 1 << SPECIAL_ASSISTANT,
    NEEDS_THINKING = 1 << SPECIAL_THINK | 1 << SPECIAL_THINK_END,
    NEEDS_CALLS = 1 << SPECIAL_CALLS | 1 << SPECIAL_CALLS_END | 1 << SPECIAL_CALL |
                  1 << SPECIAL_CALL_END | 1 << SPECIAL_OUTPUT | 1 << SPECIAL_OUTPUT_END |
                  1 << SPECIAL_SEPARATOR,
    NEEDS_OUTPUTS = 1 << SPECIAL_OUTPUTS | 1 << SPECIAL_OUTPUTS_END,
};

/* clang-format off */
static const template_t templates[] = {
    { .name = "deepseek_v3", .render = render_v3, .needs = NEEDS_TURNS | NEEDS_CALLS | NEEDS_OUTPUTS,
      .has = { "<｜User｜>", "<｜Assistant｜>", "<｜tool▁outputs▁begin｜>", "```json" }, .lacks = { "think>" } },
    { .name = "deepseek_r1", .render = render_v3, .thinks = true,
      .needs = NEEDS_TURNS | NEEDS_THINKING | NEEDS_CALLS | NEEDS_OUTPUTS,
      .has = { "<｜User｜>", "'<｜Assistant｜><think>", "<｜tool▁outputs▁begin｜>", "```json", ".split('</think>')[-1]" },
      .lacks = { "is_last_user", "'<｜Assistant｜><think>'" } },
    { .name = "deepseek_v3_1", .render = render_v3_1, .can_switch = true,
      .needs = NEEDS_TURNS | NEEDS_THINKING | NEEDS_CALLS,
      .has = { "<｜User｜>", "not thinking", "<｜tool▁output▁begin｜>", "is_last_user", ".split('</think>', 1)[1]" },
      .lacks = { "```json", "<｜tool▁outputs▁begin｜>" } },
    { .name = "tiny", .render = render_tiny, .thinks = true, .needs = NEEDS_TURNS | NEEDS_THINKING,
      .has = { "<｜User｜>", "'<｜Assistant｜><think>'", ".split('</think>')[-1].strip()" }, .lacks = { "tool▁" } },
};
/* clang-format on */
enum { TEMPLATES = sizeof templates / sizeof *templates };

static bool matches(const template_t *template, const char *jinja)
{
    for (size_t i = 0; i < sizeof template->has / sizeof *template->has && template->has[i]; i++)
        if (!strstr(jinja, template->has[i])) return false;
    for (size_t i = 0; i < sizeof template->lacks / sizeof *template->lacks && template->lacks[i];
         i++)
        if (strstr(jinja, template->lacks[i])) return false;
    return true;
}

static const template_t *recognise(const char *jinja, error_text_t *why)
{
    for (size_t i = 0; i < TEMPLATES; i++)
        if (matches(&templates[i], jinja)) return &templates[i];
    return tokenizer_refuse(
        why,
        "tokenizer_config.json: chat_template begins \"%.60s\", which is none of the known ones: "
        "deepseek_v3, deepseek_r1, deepseek_v3_1, tiny",
        jinja);
}

/* ---- life
 * -------------------------------------------------------------------------------------------- */

enum { CONFIG_BYTES_MAX = 16 << 20 };

static cJSON *read_config(const char *dir, error_text_t *why)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    FILE *file = length < (int)sizeof path ? fopen(path, "rb") : NULL;
    if (!file)
        return tokenizer_refuse(why, "%.300s/tokenizer_config.json: %s", dir, strerror(errno));
    char *bytes = malloc(CONFIG_BYTES_MAX);
    size_t size = bytes ? fread(bytes, 1, CONFIG_BYTES_MAX, file) : 0;
    fclose(file);
    cJSON *config = size < CONFIG_BYTES_MAX ? cJSON_ParseWithLength(bytes, size) : NULL;
    free(bytes);
    if (!config)
        tokenizer_refuse(why, "%.300s/tokenizer_config.json: not JSON, or larger than 16 MiB", dir);
    return config;
}

/* The template's text: a string, or the entry "default" of a list. */
static const char *jinja_of(const cJSON *config)
{
    const cJSON *template = cJSON_GetObjectItemCaseSensitive(config, "chat_template"), *item;
    const cJSON *list = cJSON_IsArray(template) ? template : NULL;
    cJSON_ArrayForEach(item, list)
    {
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, "name"));
        if (!name || strcmp(name, "default") != 0) continue;
        template = cJSON_GetObjectItemCaseSensitive(item, "template");
        break;
    }
    return cJSON_GetStringValue(template);
}

static const template_t *read_template(const char *dir, error_text_t *why)
{
    cJSON *config = read_config(dir, why);
    if (!config) return NULL;
    const char *jinja = jinja_of(config);
    const template_t *template =
        jinja ? recognise(jinja, why)
              : tokenizer_refuse(why, "%.300s/tokenizer_config.json: no chat_template", dir);
    cJSON_Delete(config);
    return template;
}

chat_t *chat_new(const char *dir, const tokenizer_t *tokenizer, error_text_t *why)
{
    const template_t *template = read_template(dir, why);
    if (!template) return NULL;
    chat_t *self = calloc(1, sizeof *self);
    if (!self) return tokenizer_refuse(why, "chat template: no memory");
    self->template = template;
    for (int i = 0; i < SPECIALS_MAX; i++) {
        self->ids[i] = tokenizer_id(tokenizer, special_contents[i], strlen(special_contents[i]));
        if (self->ids[i] != NO_TOKEN || !(template->needs & 1u << i)) continue;
        tokenizer_refuse(why, "chat template %s needs the token %s, which tokenizer.json lacks",
                         template->name, special_contents[i]);
        chat_destroy(&self);
        return NULL;
    }
    return self;
}

void chat_destroy(chat_t **self)
{
    if (!*self) return;
    free((*self)->text);
    free(*self);
    *self = NULL;
}

bool chat_reserve(chat_t *self, size_t text_bytes)
{
    if (text_bytes <= self->text_cap) return true;
    size_t cap = text_bytes > 2 * self->text_cap ? text_bytes : 2 * self->text_cap;
    char *text = realloc(self->text, cap);
    if (!text) return false;
    self->text = text;
    self->text_cap = cap;
    return true;
}

const char *chat_name(const chat_t *self)
{
    return self->template->name;
}

/* ---- rendering
 * --------------------------------------------------------------------------------------- */

/* What cannot be rendered is named, not left out. */
static bool check_messages(const chat_t *self, const chat_message_t *messages, uint32_t count,
                           error_text_t *why)
{
    if (count == 0) return tokenizer_refuse(why, "messages: at least one is needed");
    for (uint32_t i = 0; i < count; i++) {
        bool is_call = messages[i].role == CHAT_TOOL || messages[i].call_count > 0;
        if (is_call && !(self->template->needs & 1u << SPECIAL_CALLS))
            return tokenizer_refuse(why,
                                    "messages[%u]: the model's chat template (%s) knows no tools",
                                    i, chat_name(self));
        if (messages[i].call_count > 0 && messages[i].role != CHAT_ASSISTANT)
            return tokenizer_refuse(why, "messages[%u]: only an assistant can call tools", i);
        if (messages[i].is_prefix &&
            (i + 1 != count || messages[i].role != CHAT_ASSISTANT || messages[i].call_count))
            return tokenizer_refuse(
                why,
                "messages[%u]: only a last assistant message without tool calls can be continued",
                i);
    }
    return true;
}

size_t chat_render(chat_t *self, tokenizer_t *tokenizer, const chat_message_t *messages,
                   uint32_t count, int thinking, uint32_t *ids, size_t cap, error_text_t *why)
{
    if (!check_messages(self, messages, count, why)) return 0;
    render_t out = { .chat = self, .tokenizer = tokenizer, .ids = ids, .cap = cap };
    out.is_thinking = self->template->can_switch && thinking == 1;
    self->text_size = 0;
    self->template->render(&out, messages, count);
    flush(&out);
    return out.count;
}

chat_reasoning_t chat_reasoning(const chat_t *self, int thinking)
{
    if (!(self->template->needs & 1u << SPECIAL_THINK))
        return (chat_reasoning_t){ NO_TOKEN, NO_TOKEN, 0 };
    bool is_on = self->template->can_switch ? thinking == 1 : self->template->thinks;
    return (chat_reasoning_t){ self->ids[SPECIAL_THINK], self->ids[SPECIAL_THINK_END], is_on };
}
