/* runtime/engine/timings.c - lines of measured times: op,shape,rows,keys,us,... */
#include "timings.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_MAX_BYTES = 512, FIELDS = 5 };

/* The shape is in quotes, and may hold commas.  False: not FIELDS fields of which the last three
 * are positive numbers. */
static bool parse(char *line, char **op, step_point_t *point)
{
    char *fields[FIELDS], *next = line;
    for (int i = 0; i < FIELDS; i++) {
        bool is_quoted = *next == '"';
        fields[i] = next + is_quoted;
        next = strchr(fields[i], is_quoted ? '"' : ',');
        if (!next) return false;
        *next++ = '\0';
        if (is_quoted && *next++ != ',') return false;
    }
    char *ends[3];
    *op = fields[0];
    *point = (step_point_t){ .rows = strtod(fields[2], &ends[0]),
                             .keys = strtod(fields[3], &ends[1]),
                             .us = strtod(fields[4], &ends[2]) };
    return !*ends[0] && !*ends[1] && !*ends[2];
}

static err_t read_line(timings_t *self, char *line, const char *path, unsigned number,
                       error_text_t *why)
{
    char *op = "";
    step_point_t point = { 0 };
    if (strncmp(line, "layer_", 6) != 0) return ERR_OK;
    bool is_whole = parse(line, &op, &point), is_prefill = strcmp(op, "layer_prefill") == 0;
    if (!is_whole || (!is_prefill && strcmp(op, "layer_decode") != 0))
        return model_refuse(why,
                            "%s:%u: '%.60s' is not layer_prefill or layer_decode, \"shape\", rows, "
                            "keys, us",
                            path, number, op);
    if (!step_table_add(is_prefill ? &self->prefill : &self->decode, point))
        return model_refuse(why,
                            "%s:%u: rows %g, keys %g, us %g; allowed are at most %d lines with "
                            "positive numbers, rows and keys once each",
                            path, number, point.rows, point.keys, point.us, STEP_POINTS_MAX);
    return ERR_OK;
}

err_t timings_read(timings_t *self, const char *path, error_text_t *why)
{
    FILE *file = fopen(path, "r");
    if (!file) return model_refuse(why, "%s: %s", path, strerror(errno));
    timings_t found = { 0 };
    char line[LINE_MAX_BYTES];
    err_t error = ERR_OK;
    for (unsigned number = 1; !error && fgets(line, sizeof line, file); number++)
        error = read_line(&found, line, path, number, why);
    fclose(file);
    if (!error && (found.prefill.count == 0 || found.decode.count == 0))
        error = model_refuse(why,
                             "%s: %u lines of layer_prefill and %u of layer_decode; needed is one "
                             "of each at least",
                             path, found.prefill.count, found.decode.count);
    if (!error) *self = found;
    return error;
}
