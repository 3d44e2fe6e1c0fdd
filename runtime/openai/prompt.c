/* runtime/openai/prompt.c - the prompt of a completion: a text, texts, token ids, or arrays of
 * token ids. */
#include <string.h>

#include "parse.h"

static err_t read_one(parser_t *self, const char *param, const cJSON *value, openai_prompt_t *out)
{
    if (cJSON_IsArray(value)) return read_ids(self, param, value, out);
    if (!cJSON_IsString(value))
        return refuse_type(self, param, "a string, strings, token ids or arrays of token ids",
                           value);
    *out = (openai_prompt_t){ 0 };
    return copy_text(self, value->valuestring, &out->text, &out->size);
}

err_t read_prompt(parser_t *self, const char *param, const cJSON *value)
{
    openai_call_t *call = self->call;
    const cJSON *first = cJSON_IsArray(value) ? value->child : NULL;
    bool is_list = first != NULL && !cJSON_IsNumber(first);
    uint32_t count = is_list ? (uint32_t)cJSON_GetArraySize(value) : 1, at = 0;
    if (call->kind == OPENAI_TOKENIZE && is_list)
        return refuse_type(self, param, "a string", value);
    if (call->kind == OPENAI_DETOKENIZE && is_list)
        return openai_refuse(self->why, ERR_INVALID, param,
                             "'%s' must be one array of token ids, not an array of anything else.",
                             param);
    if (call->kind == OPENAI_DETOKENIZE && !cJSON_IsArray(value))
        return refuse_type(self, param, "an array of token ids", value);
    if (count > OPENAI_CHOICES_MAX)
        return openai_refuse(self->why, ERR_INVALID, param,
                             "'%s' must hold at most %d prompts, but it holds %u.", param,
                             OPENAI_CHOICES_MAX, count);
    if (cJSON_IsArray(value) && first == NULL && call->kind == OPENAI_COMPLETION)
        return openai_refuse(self->why, ERR_INVALID, param, "'%s' is an empty array.", param);
    openai_prompt_t *prompts = arena_take(self->arena, count, sizeof *prompts);
    if (prompts == NULL) return refuse_room(self);
    err_t error = ERR_OK;
    if (!is_list) error = read_one(self, param, value, prompts);
    for (const cJSON *item = is_list ? first : NULL; item != NULL && error == ERR_OK;
         item = item->next)
        error = read_one(self, param, item, &prompts[at++]);
    if (error != ERR_OK) return error;
    call->prompts = prompts;
    call->prompt_count = count;
    return ERR_OK;
}
