/* runtime/model/chat_render.c - the published templates, message by message.
 *
 * A rendering is special tokens by id and plain text between them.  What lies between two special
 * tokens is tokenised as one piece, as the rendered string would be, but without looking for
 * special tokens in it.
 */
#include <string.h>
#include <utf8proc.h>

#include "chat_parts.h"

/* ---- pieces ---- */

static void special(render_t *out, special_t which)
{
    pieces_add_id(out->pieces, out->chat->ids[which]);
}

static void plain(render_t *out, const char *text, size_t size)
{
    pieces_add_text(out->pieces, text, size);
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
    return message->content ? (span_t){ message->content, message->content_size }
                            : (span_t){ "", 0 };
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

/* ---- tiny ---- */

void chat_render_tiny(render_t *out, const chat_message_t *messages, uint32_t count)
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

/* ---- DeepSeek-V3 and R1 ---- */

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

void chat_render_v3(render_t *out, const chat_message_t *messages, uint32_t count)
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

/* ---- DeepSeek-V3.1 ---- */

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

void chat_render_v3_1(render_t *out, const chat_message_t *messages, uint32_t count)
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
