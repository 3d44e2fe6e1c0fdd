/* runtime/openai/messages.c - the conversation of a chat request: roles, contents, tool calls of
 * the past. */
#include <stdio.h>
#include <string.h>

#include "parse.h"

typedef struct {
    char text[64];
} param_t;

static param_t param_of(uint32_t index, const char *field)
{
    param_t param;
    snprintf(param.text, sizeof param.text, "messages[%u]%s", index, field);
    return param;
}

static const char *message_fields(uint32_t index)
{
    static const char *const names[] = { "role",        "content",       "name",
                                         "tool_calls",  "tool_call_id",  "reasoning_content",
                                         "prefix",      "refusal",       "audio",
                                         "annotations", "function_call", "reasoning" };
    return index < sizeof names / sizeof *names ? names[index] : NULL;
}

static err_t check_fields(parser_t *self, const cJSON *message, uint32_t index)
{
    const cJSON *field;
    cJSON_ArrayForEach(field, message)
    {
        uint32_t i = 0;
        while (message_fields(i) != NULL && strcmp(message_fields(i), field->string) != 0) i++;
        if (message_fields(i) != NULL) continue;
        refuse_unknown(self->why, field->string, message_fields);
        snprintf(self->why->param, sizeof self->why->param, "messages[%u].%.40s", index,
                 field->string);
        size_t size = strlen(self->why->message);
        snprintf(self->why->message + size, sizeof self->why->message - size,
                 " It is in messages[%u].", index);
        return ERR_INVALID;
    }
    return ERR_OK;
}

static err_t read_role(parser_t *self, const cJSON *value, uint32_t index, chat_role_t *out)
{
    static const struct {
        const char *name;
        chat_role_t role;
    } roles[] = { { "system", CHAT_SYSTEM },
                  { "developer", CHAT_SYSTEM },
                  { "user", CHAT_USER },
                  { "assistant", CHAT_ASSISTANT },
                  { "tool", CHAT_TOOL } };
    param_t param = param_of(index, ".role");
    if (!cJSON_IsString(value)) return refuse_type(self, param.text, "a string", value);
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++) {
        if (strcmp(roles[i].name, value->valuestring) != 0) continue;
        *out = roles[i].role;
        return ERR_OK;
    }
    return openai_refuse(
        self->why, ERR_INVALID, param.text,
        "'%s' must be system, developer, user, assistant or tool, but it is '%.40s'.", param.text,
        value->valuestring);
}

/* One part of a content array; only texts can be read by these models. */
static err_t part_text(parser_t *self, const cJSON *part, const char *param, const char **out)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(part, "type");
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(part, "text");
    if (!cJSON_IsObject(part))
        return refuse_type(self, param,
                           "a string or an array of {\"type\":\"text\",\"text\":...} parts", part);
    if (!cJSON_IsString(type))
        return openai_refuse(self->why, ERR_INVALID, param, "A part of '%s' has no 'type'.", param);
    if (strcmp(type->valuestring, "text") != 0)
        return openai_refuse(self->why, ERR_UNPROCESSABLE, param,
                             "A part of '%s' is of type '%.40s'; this model reads only 'text'.",
                             param, type->valuestring);
    if (!cJSON_IsString(text))
        return openai_refuse(self->why, ERR_INVALID, param, "A text part of '%s' has no 'text'.",
                             param);
    *out = text->valuestring;
    return ERR_OK;
}

static err_t join_parts(parser_t *self, const cJSON *parts, const char *param, chat_message_t *out)
{
    size_t size = 0, at = 0;
    const cJSON *part;
    const char *text = NULL;
    cJSON_ArrayForEach(part, parts)
    {
        err_t error = part_text(self, part, param, &text);
        if (error != ERR_OK) return error;
        size += strlen(text);
    }
    char *joined = arena_take(self->arena, size + 1, 1);
    if (joined == NULL) return refuse_room(self);
    cJSON_ArrayForEach(part, parts)
    {
        err_t error = part_text(self, part, param, &text);
        if (error != ERR_OK) return error;
        size_t length = strlen(text);
        memcpy(joined + at, text, length);
        at += length;
    }
    joined[at] = 0;
    out->content = joined;
    out->content_size = at;
    return ERR_OK;
}

static err_t read_content(parser_t *self, const cJSON *value, uint32_t index, chat_message_t *out)
{
    param_t param = param_of(index, ".content");
    if (cJSON_IsString(value))
        return copy_text(self, value->valuestring, &out->content, &out->content_size);
    if (cJSON_IsArray(value)) return join_parts(self, value, param.text, out);
    out->content = "";
    out->content_size = 0;
    bool is_missing = value == NULL || cJSON_IsNull(value);
    if (is_missing && out->role == CHAT_ASSISTANT)
        return ERR_OK; /* as OpenAI: a message of tool calls has none */
    if (value == NULL)
        return openai_refuse(self->why, ERR_INVALID, param.text, "'%s' is missing.", param.text);
    return refuse_type(self, param.text, "a string or an array of text parts", value);
}

static err_t read_calls(parser_t *self, const cJSON *value, uint32_t index, chat_message_t *out)
{
    param_t param = param_of(index, ".tool_calls");
    if (value == NULL || cJSON_IsNull(value)) return ERR_OK;
    if (!cJSON_IsArray(value)) return refuse_type(self, param.text, "an array", value);
    uint32_t count = (uint32_t)cJSON_GetArraySize(value), at = 0;
    chat_call_t *calls = arena_take(self->arena, count, sizeof *calls);
    if (calls == NULL) return refuse_room(self);
    const cJSON *item;
    cJSON_ArrayForEach(item, value)
    {
        const cJSON *function = cJSON_GetObjectItemCaseSensitive(item, "function");
        const cJSON *name = cJSON_GetObjectItemCaseSensitive(function, "name");
        const cJSON *arguments = cJSON_GetObjectItemCaseSensitive(function, "arguments");
        if (!cJSON_IsString(name) || !cJSON_IsString(arguments))
            return openai_refuse(
                self->why, ERR_INVALID, param.text,
                "A call in '%s' needs function.name and function.arguments, both strings.",
                param.text);
        chat_call_t *call = &calls[at++];
        err_t error = copy_text(self, name->valuestring, &call->name, &call->name_size);
        if (error == ERR_OK)
            error =
                copy_text(self, arguments->valuestring, &call->arguments, &call->arguments_size);
        if (error != ERR_OK) return error;
    }
    out->calls = calls;
    out->call_count = count;
    return ERR_OK;
}

static err_t read_prefix(parser_t *self, const cJSON *message, uint32_t index, bool is_last,
                         chat_message_t *out)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(message, "prefix");
    param_t param = param_of(index, ".prefix");
    bool is_prefix = false;
    if (value == NULL || cJSON_IsNull(value)) return ERR_OK;
    err_t error = read_bool(self, param.text, value, &is_prefix);
    if (error != ERR_OK) return error;
    if (is_prefix && (!is_last || out->role != CHAT_ASSISTANT))
        return openai_refuse(self->why, ERR_INVALID, param.text,
                             "'%s' is allowed only on a last message of the assistant.",
                             param.text);
    out->is_prefix = is_prefix;
    return ERR_OK;
}

static err_t read_message(parser_t *self, const cJSON *message, uint32_t index, bool is_last,
                          chat_message_t *out)
{
    *out = (chat_message_t){ 0 };
    param_t param = param_of(index, "");
    if (!cJSON_IsObject(message))
        return refuse_type(self, param.text, "an object with role and content", message);
    err_t error = check_fields(self, message, index);
    if (error == ERR_OK)
        error =
            read_role(self, cJSON_GetObjectItemCaseSensitive(message, "role"), index, &out->role);
    if (error == ERR_OK)
        error =
            read_content(self, cJSON_GetObjectItemCaseSensitive(message, "content"), index, out);
    if (error == ERR_OK)
        error =
            read_calls(self, cJSON_GetObjectItemCaseSensitive(message, "tool_calls"), index, out);
    if (error == ERR_OK) error = read_prefix(self, message, index, is_last, out);
    return error;
}

err_t read_messages(parser_t *self, const cJSON *value)
{
    if (!cJSON_IsArray(value)) return refuse_type(self, "messages", "an array of messages", value);
    uint32_t count = (uint32_t)cJSON_GetArraySize(value), index = 0;
    if (count == 0)
        return openai_refuse(self->why, ERR_INVALID, "messages",
                             "'messages' must hold at least one message, but it is empty.");
    chat_message_t *messages = arena_take(self->arena, count, sizeof *messages);
    if (messages == NULL) return refuse_room(self);
    const cJSON *message;
    cJSON_ArrayForEach(message, value)
    {
        err_t error = read_message(self, message, index, index + 1 == count, &messages[index]);
        if (error != ERR_OK) return error;
        index++;
    }
    self->call->messages = messages;
    self->call->message_count = count;
    return ERR_OK;
}
