/* runtime/openai/values.c - readers of single JSON values: types and ranges, and how they are
 * refused. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "parse.h"

static const char *kind_name(const cJSON *value)
{
    if (cJSON_IsObject(value)) return "an object";
    if (cJSON_IsArray(value)) return "an array";
    if (cJSON_IsString(value)) return "a string";
    if (cJSON_IsBool(value)) return "a boolean";
    if (cJSON_IsNumber(value)) return "a number";
    return "null";
}

err_t refuse_type(parser_t *self, const char *param, const char *allowed, const cJSON *value)
{
    return openai_refuse(self->why, ERR_INVALID, param, "'%s' must be %s, but it is %s.", param,
                         allowed, kind_name(value));
}

err_t refuse_room(parser_t *self)
{
    return openai_refuse(self->why, ERR_TOO_LARGE, "",
                         "The request holds more values than there is room for.");
}

err_t read_bool(parser_t *self, const char *param, const cJSON *value, bool *out)
{
    if (!cJSON_IsBool(value)) return refuse_type(self, param, "true or false", value);
    *out = cJSON_IsTrue(value);
    return ERR_OK;
}

err_t read_number(parser_t *self, const char *param, const cJSON *value, range_t range, double *out)
{
    if (!cJSON_IsNumber(value)) return refuse_type(self, param, "a number", value);
    double number = value->valuedouble;
    if (!(number >= range.least && number <= range.most))
        return openai_refuse(self->why, ERR_INVALID, param,
                             "'%s' must be between %g and %g, but it is %g.", param, range.least,
                             range.most, number);
    *out = number;
    return ERR_OK;
}

err_t read_integer(parser_t *self, const char *param, const cJSON *value, range_t range,
                   double *out)
{
    if (!cJSON_IsNumber(value)) return refuse_type(self, param, "an integer", value);
    double number = value->valuedouble;
    if (number != floor(number) || !(number >= range.least && number <= range.most))
        return openai_refuse(self->why, ERR_INVALID, param,
                             "'%s' must be an integer between %.0f and %.0f, but it is %.10g.",
                             param, range.least, range.most, number);
    *out = number;
    return ERR_OK;
}

err_t read_ids(parser_t *self, const char *param, const cJSON *array, openai_prompt_t *out)
{
    uint32_t count = (uint32_t)cJSON_GetArraySize(array), at = 0;
    uint32_t *ids = arena_take(self->arena, count, sizeof *ids);
    if (ids == NULL) return refuse_room(self);
    const cJSON *item;
    cJSON_ArrayForEach(item, array)
    {
        double id;
        err_t error = read_integer(self, param, item, (range_t){ 0, self->vocab - 1.0 }, &id);
        if (error != ERR_OK) return error;
        ids[at++] = (uint32_t)id;
    }
    *out = (openai_prompt_t){ .ids = ids, .count = count };
    return ERR_OK;
}

err_t copy_text(parser_t *self, const char *text, const char **out, size_t *size)
{
    *size = strlen(text);
    char *copy = arena_take(self->arena, *size + 1, 1);
    if (copy == NULL) return refuse_room(self);
    memcpy(copy, text, *size + 1);
    *out = copy;
    return ERR_OK;
}

/* Edit distance, of names up to NAME_MAX_BYTES; longer ones resemble nothing. */
enum { NAME_BYTES_MAX = 40 };

static uint32_t distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    if (n > NAME_BYTES_MAX || m > NAME_BYTES_MAX) return UINT32_MAX;
    uint32_t row[NAME_BYTES_MAX + 1];
    for (uint32_t j = 0; j <= m; j++) row[j] = j;
    for (uint32_t i = 1; i <= n; i++) {
        uint32_t diagonal = row[0];
        row[0] = i;
        for (uint32_t j = 1; j <= m; j++) {
            uint32_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[m];
}

err_t refuse_unknown(openai_error_t *why, const char *name, names_fn *names)
{
    const char *nearest = NULL;
    /* A short name is few steps from anything. */
    uint32_t least = (uint32_t)strlen(name) / 2;
    if (least > 4) least = 4;
    for (uint32_t i = 0; names(i) != NULL; i++) {
        uint32_t steps = distance(name, names(i));
        if (steps >= least) continue;
        least = steps;
        nearest = names(i);
    }
    if (nearest != NULL)
        openai_refuse(why, ERR_INVALID, name, "Unknown field '%.100s'; did you mean '%s'?", name,
                      nearest);
    else
        openai_refuse(why, ERR_INVALID, name, "Unknown field '%.100s'.", name);
    why->code = "unknown_parameter";
    return ERR_INVALID;
}
