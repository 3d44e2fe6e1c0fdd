/* runtime/model/chat.c - chat templates in native code, chosen by what tokenizer_config.json holds.
 */
#include "chat.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chat_parts.h"
#include "json.h"

static const char *const special_contents[SPECIALS_MAX] = {
#define X(name, content) content,
    SPECIALS(X)
#undef X
};

/* ---- the table ---- */

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
    { .name = "deepseek_v3", .render = chat_render_v3, .needs = NEEDS_TURNS | NEEDS_CALLS | NEEDS_OUTPUTS,
      .has = { "<｜User｜>", "<｜Assistant｜>", "<｜tool▁outputs▁begin｜>", "```json" }, .lacks = { "think>" } },
    { .name = "deepseek_r1", .render = chat_render_v3, .thinks = true,
      .needs = NEEDS_TURNS | NEEDS_THINKING | NEEDS_CALLS | NEEDS_OUTPUTS,
      .has = { "<｜User｜>", "'<｜Assistant｜><think>", "<｜tool▁outputs▁begin｜>", "```json", ".split('</think>')[-1]" },
      .lacks = { "is_last_user", "'<｜Assistant｜><think>'" } },
    { .name = "deepseek_v3_1", .render = chat_render_v3_1, .can_switch = true,
      .needs = NEEDS_TURNS | NEEDS_THINKING | NEEDS_CALLS,
      .has = { "<｜User｜>", "not thinking", "<｜tool▁output▁begin｜>", "is_last_user", ".split('</think>', 1)[1]" },
      .lacks = { "```json", "<｜tool▁outputs▁begin｜>" } },
    { .name = "tiny", .render = chat_render_tiny, .thinks = true, .needs = NEEDS_TURNS | NEEDS_THINKING,
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

/* ---- life ---- */

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
    json_fault_t fault = { "is larger than 16 MiB" };
    cJSON *config = size < CONFIG_BYTES_MAX ? json_parse_object(bytes, size, &fault) : NULL;
    free(bytes);
    if (!config) tokenizer_refuse(why, "%.300s/tokenizer_config.json %s", dir, fault.text);
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

/* bos_token is a text, or an object with its content. */
static bool take_begin(chat_t *self, const cJSON *config, const tokenizer_t *tokenizer,
                       error_text_t *why)
{
    self->begin = NO_TOKEN;
    if (!cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(config, "add_bos_token"))) return true;
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, "bos_token");
    if (cJSON_IsObject(item)) item = cJSON_GetObjectItemCaseSensitive(item, "content");
    const char *content = cJSON_GetStringValue(item);
    if (content) self->begin = tokenizer_id(tokenizer, content, strlen(content));
    if (self->begin != NO_TOKEN) return true;
    return tokenizer_refuse(
        why, "tokenizer_config.json: add_bos_token is true, but bos_token is no token: %.60s",
        content ? content : "(none)");
}

/* Fill self from the configuration; false: *why. */
static bool take_config(chat_t *self, const cJSON *config, const tokenizer_t *tokenizer,
                        error_text_t *why)
{
    const char *jinja = jinja_of(config);
    if (!jinja) return tokenizer_refuse(why, "tokenizer_config.json: no chat_template");
    self->template = recognise(jinja, why);
    return self->template && take_begin(self, config, tokenizer, why);
}

static bool take_specials(chat_t *self, const tokenizer_t *tokenizer, error_text_t *why)
{
    for (int i = 0; i < SPECIALS_MAX; i++) {
        self->ids[i] = tokenizer_id(tokenizer, special_contents[i], strlen(special_contents[i]));
        if (self->ids[i] != NO_TOKEN || !(self->template->needs & 1u << i)) continue;
        return tokenizer_refuse(why,
                                "chat template %s needs the token %s, which tokenizer.json lacks",
                                self->template->name, special_contents[i]);
    }
    return true;
}

chat_t *chat_new(const char *dir, const tokenizer_t *tokenizer, error_text_t *why)
{
    cJSON *config = read_config(dir, why);
    if (!config) return NULL;
    chat_t *self = calloc(1, sizeof *self);
    bool is_good =
        self ? take_config(self, config, tokenizer, why) && take_specials(self, tokenizer, why)
             : tokenizer_refuse(why, "chat template: no memory") != NULL;
    cJSON_Delete(config);
    if (!is_good) chat_destroy(&self);
    return self;
}

void chat_destroy(chat_t **self)
{
    if (!*self) return;
    free(*self);
    *self = NULL;
}

uint32_t chat_begin_token(const chat_t *self)
{
    return self->begin;
}

const char *chat_name(const chat_t *self)
{
    return self->template->name;
}

/* ---- rendering ---- */

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

bool chat_render(const chat_t *self, const chat_message_t *messages, uint32_t count, int thinking,
                 pieces_t *pieces, error_text_t *why)
{
    if (!check_messages(self, messages, count, why)) return false;
    render_t out = { .chat = self, .pieces = pieces };
    out.is_thinking = self->template->can_switch && thinking == 1;
    self->template->render(&out, messages, count);
    return true;
}

/* What the templates do at the end of their prompt. */
static bool opens_reasoning(const chat_t *self, int thinking, const chat_message_t *last)
{
    const template_t *template = self->template;
    bool is_user = last->role == CHAT_USER;
    if (template->can_switch) return thinking == 1 && (is_user || last->is_prefix);
    return template->thinks && !last->is_prefix && last->role != CHAT_TOOL;
}

chat_reasoning_t chat_reasoning(const chat_t *self, int thinking, const chat_message_t *last)
{
    if (!(self->template->needs & 1u << SPECIAL_THINK))
        return (chat_reasoning_t){ NO_TOKEN, NO_TOKEN, 0 };
    bool is_on = opens_reasoning(self, thinking, last);
    return (chat_reasoning_t){ self->ids[SPECIAL_THINK], self->ids[SPECIAL_THINK_END], is_on };
}
