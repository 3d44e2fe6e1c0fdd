/* runtime/base/config_yaml.c - reads the configuration file: libyaml's events against the table of
 * keys.
 *
 * Sections hold keys, keys hold a scalar or a list of scalars; whatever else YAML can say (anchors,
 * tags, nested maps, several documents) is refused, with its line.
 */
#include "config.h"

#include "../invariant.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { TEXTS_MAX = 256, NAME_MAX_BYTES = 64, WHERE_BYTES = 4128 };

typedef struct {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one */
    config_loaded_t *loaded;
    char where[WHERE_BYTES]; /* "FILE:LINE" of the current event */
    char section[NAME_MAX_BYTES + 1];
    char key[NAME_MAX_BYTES + 1];
    uint32_t lines[CONFIG_KEYS]; /* where each key was seen; 0: not yet */
    uint32_t section_lines[CONFIG_KEYS];
    char texts[CONFIG_VALUE_BYTES_MAX]; /* of the value being read, each with its NUL */
    const char *list[TEXTS_MAX];
    uint32_t count;
    size_t used;
    bool is_plain;
} reader_t;

static void locate(reader_t *self, size_t line)
{
    snprintf(self->where, sizeof self->where, "%s:%zu", self->loaded->file, line + 1);
}

/* With an anchor (&name) or a tag (!name). */
static bool is_marked(const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_SCALAR_EVENT:
        return event->data.scalar.anchor != NULL || event->data.scalar.tag != NULL;
    case YAML_SEQUENCE_START_EVENT:
        return event->data.sequence_start.anchor != NULL || event->data.sequence_start.tag != NULL;
    case YAML_MAPPING_START_EVENT:
        return event->data.mapping_start.anchor != NULL || event->data.mapping_start.tag != NULL;
    default:
        return false;
    }
}

/* The next event into self->event. */
static err_t advance(reader_t *self)
{
    yaml_event_delete(&self->event);
    if (yaml_parser_parse(&self->parser, &self->event)) {
        locate(self, self->event.start_mark.line);
        if (!is_marked(&self->event)) return ERR_OK;
        return config_refuse(self->loaded, "%s: anchors and tags are not allowed", self->where);
    }
    memset(&self->event, 0, sizeof self->event);
    locate(self, self->parser.problem_mark.line);
    return config_refuse(self->loaded, "%s: not YAML: %s%s%s", self->where,
                         self->parser.problem != NULL ? self->parser.problem : "unreadable",
                         self->parser.context != NULL ? ", " : "",
                         self->parser.context != NULL ? self->parser.context : "");
}

static const char *event_name(yaml_event_type_t type)
{
    switch (type) {
    case YAML_SCALAR_EVENT:
        return "a single value";
    case YAML_SEQUENCE_START_EVENT:
        return "a list";
    case YAML_MAPPING_START_EVENT:
        return "a map";
    case YAML_ALIAS_EVENT:
        return "an alias";
    case YAML_DOCUMENT_START_EVENT:
        return "another document";
    default:
        return "an end";
    }
}

static const char *scalar_text(const reader_t *self)
{
    return (const char *)self->event.data.scalar.value;
}

/* Nothing at all; "" in quotes is something. */
static bool is_empty_scalar(const reader_t *self)
{
    return self->event.type == YAML_SCALAR_EVENT && self->event.data.scalar.length == 0 &&
           self->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

/* A name (of a section or key) into out; the event must be a scalar. */
static err_t read_name(reader_t *self, char *out)
{
    if (self->event.type != YAML_SCALAR_EVENT) {
        return config_refuse(self->loaded, "%s: found %s; allowed is a name", self->where,
                             event_name(self->event.type));
    }
    if (strlen(scalar_text(self)) != self->event.data.scalar.length) {
        return config_refuse(self->loaded, "%s: a name holds a NUL character", self->where);
    }
    snprintf(out, NAME_MAX_BYTES + 1, "%s", scalar_text(self));
    return ERR_OK;
}

/* The scalar of the current event becomes one more text of the value. */
static err_t read_text(reader_t *self)
{
    size_t size = self->event.data.scalar.length;
    if (self->count == TEXTS_MAX || self->used + size + 1 > sizeof self->texts) {
        return config_refuse(self->loaded, "%s: %s.%s is longer than any value may be", self->where,
                             self->section, self->key);
    }
    if (memchr(scalar_text(self), 0, size) != NULL) {
        return config_refuse(self->loaded, "%s: %s.%s holds a NUL character", self->where,
                             self->section, self->key);
    }
    char *text = self->texts + self->used;
    memcpy(text, scalar_text(self), size);
    text[size] = 0;
    self->used += size + 1;
    self->list[self->count++] = text;
    self->is_plain = self->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    return ERR_OK;
}

static err_t read_list(reader_t *self)
{
    for (;;) {
        err_t error = advance(self);
        if (error != ERR_OK) return error;
        if (self->event.type == YAML_SEQUENCE_END_EVENT) return ERR_OK;
        if (self->event.type != YAML_SCALAR_EVENT) {
            return config_refuse(self->loaded, "%s: %s.%s holds %s; allowed are texts", self->where,
                                 self->section, self->key, event_name(self->event.type));
        }
        error = read_text(self);
        if (error != ERR_OK) return error;
    }
}

static err_t read_value(reader_t *self, config_index_t key)
{
    uint32_t line = (uint32_t)self->event.start_mark.line + 1;
    err_t error = advance(self);
    if (error != ERR_OK) return error;
    bool is_list = self->event.type == YAML_SEQUENCE_START_EVENT;
    self->count = 0;
    self->used = 0;
    if (is_list) {
        error = read_list(self);
    } else if (self->event.type == YAML_SCALAR_EVENT) {
        error = read_text(self);
    } else {
        error = config_refuse(self->loaded, "%s: %s.%s is %s; allowed is a value", self->where,
                              self->section, self->key, event_name(self->event.type));
    }
    if (error != ERR_OK) return error;
    char where[WHERE_BYTES];
    snprintf(where, sizeof where, "%s:%" PRIu32, self->loaded->file, line);
    error = config_assign(self->loaded, &(config_value_t){ .key = key,
                                                           .texts = self->list,
                                                           .count = self->count,
                                                           .is_list = is_list,
                                                           .is_plain = self->is_plain,
                                                           .where = where });
    if (error != ERR_OK) return error;
    self->loaded->origins[key] = (config_origin_t){ .kind = ORIGIN_FILE, .line = line };
    return ERR_OK;
}

/* The current event is a key's name. */
static err_t read_key(reader_t *self)
{
    err_t error = read_name(self, self->key);
    if (error != ERR_OK) return error;
    config_index_t key = config_find(self->loaded, self->where, self->section, self->key);
    if (key == CONFIG_KEYS) return ERR_CONFIG;
    if (self->lines[key] > 0) {
        return config_refuse(self->loaded, "%s: %s.%s was already set in line %" PRIu32,
                             self->where, self->section, self->key, self->lines[key]);
    }
    self->lines[key] = (uint32_t)self->event.start_mark.line + 1;
    return read_value(self, key);
}

static config_index_t first_key(const char *section)
{
    config_index_t key = 0;
    while (key < CONFIG_KEYS && strcmp(config_keys[key].section, section) != 0) key++;
    return key;
}

/* The current event is a section's name. */
static err_t read_section(reader_t *self)
{
    err_t error = read_name(self, self->section);
    if (error != ERR_OK) return error;
    config_index_t first = first_key(self->section);
    if (first == CONFIG_KEYS) {
        first = config_find(self->loaded, self->where, self->section, "");
        invariant(first == CONFIG_KEYS);
        return ERR_CONFIG;
    }
    if (self->section_lines[first] > 0) {
        return config_refuse(self->loaded, "%s: section '%s' was already begun in line %" PRIu32,
                             self->where, self->section, self->section_lines[first]);
    }
    self->section_lines[first] = (uint32_t)self->event.start_mark.line + 1;
    error = advance(self);
    if (error != ERR_OK) return error;
    /* A section whose keys are all commented out is empty. */
    if (is_empty_scalar(self)) return ERR_OK;
    if (self->event.type != YAML_MAPPING_START_EVENT) {
        return config_refuse(self->loaded, "%s: section '%s' is %s; allowed are keys with values",
                             self->where, self->section, event_name(self->event.type));
    }
    for (;;) {
        error = advance(self);
        if (error != ERR_OK || self->event.type == YAML_MAPPING_END_EVENT) return error;
        error = read_key(self);
        if (error != ERR_OK) return error;
    }
}

static err_t read_sections(reader_t *self)
{
    for (;;) {
        err_t error = advance(self);
        if (error != ERR_OK || self->event.type == YAML_MAPPING_END_EVENT) return error;
        error = read_section(self);
        if (error != ERR_OK) return error;
    }
}

/* The stream: at most one document, which is a map of sections or empty. */
static err_t read_stream(reader_t *self)
{
    err_t error = advance(self); /* the stream's start */
    if (error == ERR_OK) error = advance(self);
    if (error != ERR_OK || self->event.type == YAML_STREAM_END_EVENT) return error;
    error = advance(self); /* what the document holds */
    if (error != ERR_OK) return error;
    if (self->event.type == YAML_MAPPING_START_EVENT) {
        error = read_sections(self);
    } else if (!is_empty_scalar(self)) {
        error = config_refuse(self->loaded, "%s: the file is %s; allowed are sections with keys",
                              self->where, event_name(self->event.type));
    }
    if (error == ERR_OK) error = advance(self); /* the document's end */
    if (error == ERR_OK) error = advance(self);
    if (error != ERR_OK || self->event.type == YAML_STREAM_END_EVENT) return error;
    return config_refuse(self->loaded, "%s: found %s; allowed is one document", self->where,
                         event_name(self->event.type));
}

err_t config_read_text(config_loaded_t *self, const char *file, const char *text, size_t size)
{
    snprintf(self->file, sizeof self->file, "%s", file);
    reader_t *reader = calloc(1, sizeof *reader);
    if (reader == NULL || !yaml_parser_initialize(&reader->parser)) {
        free(reader);
        return config_refuse(self, "%s: out of memory", file);
    }
    reader->loaded = self;
    yaml_parser_set_input_string(&reader->parser, (const unsigned char *)text, size);
    err_t error = read_stream(reader);
    yaml_event_delete(&reader->event);
    yaml_parser_delete(&reader->parser);
    free(reader);
    return error;
}

static err_t refuse_file(config_loaded_t *self, const char *file, const char *why)
{
    err_t error = config_refuse(self, "%s: %s", file, why);
    (void)error;
    return ERR_IO;
}

err_t config_read_file(config_loaded_t *self, const char *file)
{
    if (strlen(file) >= sizeof self->file) return refuse_file(self, "file", "name too long");
    FILE *stream = fopen(file, "rbe");
    if (stream == NULL) return refuse_file(self, file, strerror(errno));
    char *text = malloc(CONFIG_FILE_BYTES_MAX + 1);
    size_t size = text != NULL ? fread(text, 1, CONFIG_FILE_BYTES_MAX + 1, stream) : 0;
    bool is_broken = ferror(stream) != 0;
    fclose(stream);
    err_t error;
    if (text == NULL || is_broken) {
        error = refuse_file(self, file, text == NULL ? "out of memory" : "cannot be read");
    } else if (size > CONFIG_FILE_BYTES_MAX) {
        error = config_refuse(self, "%s: larger than the %d bytes allowed", file,
                              CONFIG_FILE_BYTES_MAX);
    } else {
        error = config_read_text(self, file, text, size);
    }
    free(text);
    return error;
}
