/* runtime/base/config.c - the table of keys; assigning, finding and showing them. */
#include "config.h"

#include "../invariant.h"
#include "page.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* clang-format off */
#define SECTION(s, text)
#define KEY_TEXT(s, k, f, max, d)
#define KEY_INT(s, k, f, l, m, d)   static_assert((l) <= (f) && (f) <= (m), #s "." #k ": default outside its range");
#define KEY_BOOL(s, k, f, d)
#define KEY_CHOICE(s, k, f, w, d)
#define KEY_LIST(s, k, most, max, d)
#define END_SECTION(s)
#include "../../proto/config.def"
#undef SECTION
#undef KEY_TEXT
#undef KEY_INT
#undef KEY_BOOL
#undef KEY_CHOICE
#undef KEY_LIST
#undef END_SECTION

const config_key_t config_keys[CONFIG_KEYS] = {
#define SECTION(s, text)
#define END_SECTION(s)
#define ENTRY(s, k, type, text) .section = #s, .key = #k, .kind = type, .offset = offsetof(config_t, s.k), .doc = text
#define KEY_TEXT(s, k, word, max, text) \
    { ENTRY(s, k, CONFIG_TEXT, text), .text_max = (max), .fallback = word },
#define KEY_INT(s, k, value, smallest, largest, text) \
    { ENTRY(s, k, CONFIG_INT, text), .number = (value), .least = (smallest), .most = (largest) },
#define KEY_BOOL(s, k, value, text) \
    { ENTRY(s, k, CONFIG_BOOL, text), .number = (value) },
#define KEY_CHOICE(s, k, word, list, text) \
    { ENTRY(s, k, CONFIG_CHOICE, text), .fallback = word, .words = list },
#define KEY_LIST(s, k, count, max, text) \
    { ENTRY(s, k, CONFIG_LIST, text), .text_max = (max), .most = (count), \
      .count_offset = offsetof(config_t, s.k##_count) },
#include "../../proto/config.def"
#undef SECTION
#undef END_SECTION
#undef KEY_TEXT
#undef KEY_INT
#undef KEY_BOOL
#undef KEY_CHOICE
#undef KEY_LIST
};

typedef struct { const char *name, *doc; } section_t;
static const section_t sections[] = {
#define SECTION(s, text) { #s, text },
#define END_SECTION(s)
#define KEY_TEXT(s, k, f, max, d)
#define KEY_INT(s, k, f, l, m, d)
#define KEY_BOOL(s, k, f, d)
#define KEY_CHOICE(s, k, f, w, d)
#define KEY_LIST(s, k, most, max, d)
#include "../../proto/config.def"
#undef SECTION
#undef END_SECTION
#undef KEY_TEXT
#undef KEY_INT
#undef KEY_BOOL
#undef KEY_CHOICE
#undef KEY_LIST
};
/* clang-format on */

enum { SECTIONS = sizeof sections / sizeof sections[0], NAME_BYTES = 64 };

err_t config_refuse(config_loaded_t *self, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(self->error, sizeof self->error, format, args);
    va_end(args);
    for (char *at = self->error; *at != 0; at++) {
        if ((unsigned char)*at < 0x20 || *at == 0x7f) *at = ' ';
    }
    return ERR_CONFIG;
}

/* ---- finding ---- */

/* Edits (insert, delete, replace) that lead from a to b, both cut at NAME_BYTES. */
static size_t distance(const char *a, const char *b)
{
    size_t row[NAME_BYTES + 1];
    size_t width = strnlen(b, NAME_BYTES), height = strnlen(a, NAME_BYTES);
    for (size_t j = 0; j <= width; j++) row[j] = j;
    for (size_t i = 1; i <= height; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= width; j++) {
            size_t replace = diagonal + (a[i - 1] != b[j - 1]);
            size_t add = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = replace < add ? replace : add;
        }
    }
    return row[width];
}

typedef struct {
    const char *nearest;
    size_t edits;
    char names[640]; /* all of them, separated by commas */
    size_t size;
} guess_t;

static void consider(guess_t *guess, const char *found, const char *name)
{
    size_t edits = distance(found, name);
    if (guess->nearest == NULL || edits < guess->edits) {
        guess->nearest = name;
        guess->edits = edits;
    }
    int size = snprintf(guess->names + guess->size, sizeof guess->names - guess->size, "%s%s",
                        guess->size > 0 ? ", " : "", name);
    if (size > 0) guess->size += (size_t)size;
    invariant(guess->size < sizeof guess->names);
}

/* A third of the letters wrong is a slip; more is another word. */
static bool is_near(const guess_t *guess, const char *found)
{
    return guess->edits <= 1 + strlen(found) / 3;
}

static bool has_section(const char *section)
{
    for (size_t i = 0; i < SECTIONS; i++) {
        if (strcmp(sections[i].name, section) == 0) return true;
    }
    return false;
}

static void refuse_section(config_loaded_t *self, const char *where, const char *section)
{
    guess_t guess = { 0 };
    for (size_t i = 0; i < SECTIONS; i++) consider(&guess, section, sections[i].name);
    bool near = is_near(&guess, section);
    err_t error = config_refuse(self, "%s: no section '%.64s'%s%s%s; sections are: %s", where,
                                section, near ? "; did you mean '" : "", near ? guess.nearest : "",
                                near ? "'?" : "", guess.names);
    (void)error;
}

static void refuse_key(config_loaded_t *self, const char *where, const char *section,
                       const char *key)
{
    guess_t guess = { 0 };
    for (size_t i = 0; i < CONFIG_KEYS; i++) {
        if (strcmp(config_keys[i].section, section) == 0) consider(&guess, key, config_keys[i].key);
    }
    bool near = is_near(&guess, key);
    err_t error = config_refuse(self, "%s: section '%s' has no key '%.64s'%s%s%s; its keys are: %s",
                                where, section, key, near ? "; did you mean '" : "",
                                near ? guess.nearest : "", near ? "'?" : "", guess.names);
    (void)error;
}

config_index_t config_find(config_loaded_t *self, const char *where, const char *section,
                           const char *key)
{
    if (!has_section(section)) {
        refuse_section(self, where, section);
        return CONFIG_KEYS;
    }
    for (config_index_t i = 0; i < CONFIG_KEYS; i++) {
        if (strcmp(config_keys[i].section, section) == 0 && strcmp(config_keys[i].key, key) == 0) {
            return i;
        }
    }
    refuse_key(self, where, section, key);
    return CONFIG_KEYS;
}

/* ---- assigning ---- */

static void *member(config_loaded_t *self, const config_key_t *key)
{
    return (char *)&self->config + key->offset;
}

/* Position of a word in "a|b|c"; -1 if it is not there. */
static int find_word(const char *words, const char *word)
{
    size_t size = strlen(word);
    for (int index = 0; *words != 0; index++) {
        size_t length = strcspn(words, "|");
        if (length == size && memcmp(words, word, size) == 0) return index;
        words += length + (words[length] == '|');
    }
    return -1;
}

config_word_t config_word(config_index_t key, int choice)
{
    invariant(key < CONFIG_KEYS && config_keys[key].kind == CONFIG_CHOICE);
    config_word_t out = { "" };
    const char *words = config_keys[key].words;
    for (int i = 0; i < choice && *words != 0; i++) {
        words += strcspn(words, "|");
        words += *words == '|';
    }
    snprintf(out.text, sizeof out.text, "%.*s", (int)strcspn(words, "|"), words);
    return out;
}

static err_t assign_int(config_loaded_t *self, const config_value_t *value, const char *text)
{
    const config_key_t *key = &config_keys[value->key];
    char *end = NULL;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    bool is_number =
        value->is_plain && text[0] != 0 && strspn(text, "-0123456789") == strlen(text) && *end == 0;
    if (!is_number || errno != 0 || number < key->least || number > key->most) {
        return config_refuse(
            self, "%s: %s.%s is %s%.64s%s; allowed are whole numbers from %" PRId64 " to %" PRId64,
            value->where, key->section, key->key, value->is_plain ? "" : "the text '", text,
            value->is_plain ? "" : "'", key->least, key->most);
    }
    int64_t wide = number;
    memcpy(member(self, key), &wide, sizeof wide);
    return ERR_OK;
}

static err_t assign_bool(config_loaded_t *self, const config_value_t *value, const char *text)
{
    const config_key_t *key = &config_keys[value->key];
    bool is_true = strcmp(text, "true") == 0;
    if (!value->is_plain || (!is_true && strcmp(text, "false") != 0)) {
        return config_refuse(self, "%s: %s.%s is '%.64s'; allowed are true and false", value->where,
                             key->section, key->key, text);
    }
    memcpy(member(self, key), &is_true, sizeof is_true);
    return ERR_OK;
}

static err_t assign_choice(config_loaded_t *self, const config_value_t *value, const char *text)
{
    const config_key_t *key = &config_keys[value->key];
    int choice = find_word(key->words, text);
    if (choice < 0) {
        return config_refuse(self, "%s: %s.%s is '%.64s'; allowed are: %s", value->where,
                             key->section, key->key, text, key->words);
    }
    memcpy(member(self, key), &choice, sizeof choice);
    return ERR_OK;
}

static err_t copy_text(config_loaded_t *self, const config_value_t *value, const char *text,
                       char *out)
{
    const config_key_t *key = &config_keys[value->key];
    size_t size = strlen(text);
    if (size > key->text_max) {
        return config_refuse(self, "%s: %s.%s has %zu bytes; allowed are at most %zu", value->where,
                             key->section, key->key, size, key->text_max);
    }
    for (size_t at = 0; at < size;) {
        utf8proc_int32_t point = -1;
        utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                                 (utf8proc_ssize_t)(size - at), &point);
        if (step <= 0)
            return config_refuse(self, "%s: %s.%s is not valid UTF-8", value->where, key->section,
                                 key->key);
        /* YAML takes some of them for line ends: they would not come back as they were. */
        if (point < 0x20 || (point >= 0x7f && point < 0xa0))
            return config_refuse(self, "%s: %s.%s holds a control character (0x%02x)", value->where,
                                 key->section, key->key, (unsigned)point);
        at += (size_t)step;
    }
    memcpy(out, text, size + 1);
    return ERR_OK;
}

static err_t assign_list(config_loaded_t *self, const config_value_t *value)
{
    const config_key_t *key = &config_keys[value->key];
    if (value->count > (uint64_t)key->most) {
        return config_refuse(self,
                             "%s: %s.%s has %" PRIu32 " entries; allowed are at most %" PRId64,
                             value->where, key->section, key->key, value->count, key->most);
    }
    char *out = member(self, key);
    for (uint32_t i = 0; i < value->count; i++) {
        if (value->texts[i][0] == 0) {
            return config_refuse(self, "%s: entry %" PRIu32 " of %s.%s is empty", value->where,
                                 i + 1, key->section, key->key);
        }
        err_t error = copy_text(self, value, value->texts[i], out + i * (key->text_max + 1));
        if (error != ERR_OK) return error;
    }
    memcpy((char *)&self->config + key->count_offset, &value->count, sizeof value->count);
    return ERR_OK;
}

err_t config_assign(config_loaded_t *self, const config_value_t *value)
{
    invariant(value->key < CONFIG_KEYS);
    const config_key_t *key = &config_keys[value->key];
    if (value->is_list != (key->kind == CONFIG_LIST)) {
        return config_refuse(self, "%s: %s.%s is %s; allowed is %s", value->where, key->section,
                             key->key, value->is_list ? "a list" : "a single value",
                             value->is_list ? "a single value" : "a list");
    }
    switch (key->kind) {
    case CONFIG_INT:
        return assign_int(self, value, value->texts[0]);
    case CONFIG_BOOL:
        return assign_bool(self, value, value->texts[0]);
    case CONFIG_CHOICE:
        return assign_choice(self, value, value->texts[0]);
    case CONFIG_TEXT:
        return copy_text(self, value, value->texts[0], member(self, key));
    case CONFIG_LIST:
        return assign_list(self, value);
    }
    return ERR_INTERNAL;
}

void config_init(config_loaded_t *self)
{
    memset(self, 0, sizeof *self);
    for (size_t i = 0; i < CONFIG_KEYS; i++) {
        const config_key_t *key = &config_keys[i];
        bool is_true = key->number != 0;
        int choice = 0;
        switch (key->kind) {
        case CONFIG_INT:
            memcpy(member(self, key), &key->number, sizeof key->number);
            break;
        case CONFIG_BOOL:
            memcpy(member(self, key), &is_true, sizeof is_true);
            break;
        case CONFIG_CHOICE:
            choice = find_word(key->words, key->fallback);
            invariant(choice >= 0);
            memcpy(member(self, key), &choice, sizeof choice);
            break;
        case CONFIG_TEXT:
            invariant(strlen(key->fallback) <= key->text_max);
            memcpy(member(self, key), key->fallback, strlen(key->fallback) + 1);
            break;
        case CONFIG_LIST:
            break;
        }
    }
}

/* The text without the spaces around it, cut in place. */
static char *trim(char *text)
{
    text += strspn(text, " ");
    size_t size = strlen(text);
    while (size > 0 && text[size - 1] == ' ') size--;
    text[size] = 0;
    return text;
}

/* A text in quotes, as print_quoted writes it or in single ones, without them; at goes behind it.
 * NULL: it does not end, or has an escape that is not ours. */
static char *take_quoted(char **at)
{
    char *text = *at, *out = text, *in = text + 1, quote = *text;
    for (; *in != quote; in++) {
        if (quote == '"' && *in == '\\' && *++in != '"' && *in != '\\') return NULL;
        if (*in == 0) return NULL;
        *out++ = *in;
    }
    *out = 0;
    *at = in + 1 + strspn(in + 1, " ");
    return text;
}

static char *take_plain(char **at)
{
    char *text = *at;
    *at += strcspn(text, ",");
    return text;
}

/* Cuts a list, one,two or ["one", "two"], into at most `most` texts; *count is how many there would
 * be.  False: it is written in another way. */
static bool split(char *text, const char **texts, uint32_t most, uint32_t *count)
{
    char *at = trim(text);
    size_t size = strlen(at);
    *count = 0;
    if (*at == '[') {
        if (at[size - 1] != ']') return false;
        at[size - 1] = 0;
        at = trim(at + 1);
    }
    if (*at == 0) return true;
    for (bool is_last = false; !is_last; (*count)++) {
        at += strspn(at, " ");
        bool is_quoted = *at == '"' || *at == '\'';
        char *entry = is_quoted ? take_quoted(&at) : take_plain(&at);
        if (entry == NULL || (*at != 0 && *at != ',')) return false;
        is_last = *at == 0;
        *at++ = 0;
        if (!is_quoted) entry = trim(entry);
        if (!is_quoted && *entry == '[') return false; /* a list in a list, or one without end */
        if (*count < most) texts[*count] = entry;
    }
    return true;
}

err_t config_set(config_loaded_t *self, const char *assignment)
{
    char text[CONFIG_VALUE_BYTES_MAX];
    const char *texts[256];
    size_t size = strlen(assignment);
    const char *equals = strchr(assignment, '=');
    const char *dot = strchr(assignment, '.');
    if (equals == NULL || dot == NULL || dot > equals || size >= sizeof text) {
        return config_refuse(self, "--set %.128s: allowed is section.key=value", assignment);
    }
    memcpy(text, assignment, size + 1);
    char *value = text + (equals - assignment) + 1, *key = text + (dot - assignment) + 1;
    value[-1] = 0;
    key[-1] = 0;
    config_index_t index = config_find(self, "--set", text, key);
    if (index == CONFIG_KEYS) return ERR_CONFIG;
    bool is_list = config_keys[index].kind == CONFIG_LIST;
    uint32_t count = 1, most = sizeof texts / sizeof texts[0];
    texts[0] = value;
    if (is_list && !split(value, texts, most, &count)) {
        return config_refuse(self,
                             "--set: %s.%s is no list; allowed is one,two or [\"one\", \"two\"]",
                             config_keys[index].section, config_keys[index].key);
    }
    err_t error = config_assign(self, &(config_value_t){ .key = index,
                                                         .texts = texts,
                                                         .count = count,
                                                         .is_list = is_list,
                                                         .is_plain = true,
                                                         .where = "--set" });
    if (error == ERR_OK) self->origins[index] = (config_origin_t){ .kind = ORIGIN_OPTION };
    return error;
}

config_place_t config_place(const config_loaded_t *self, config_index_t key)
{
    config_place_t out = { "default" };
    config_origin_t origin = self->origins[key];
    if (origin.kind == ORIGIN_OPTION) snprintf(out.text, sizeof out.text, "--set");
    if (origin.kind == ORIGIN_FILE) {
        snprintf(out.text, sizeof out.text, "%s:%" PRIu32, self->file, origin.line);
    }
    return out;
}

/* ---- showing ---- */

static void print_quoted(page_t *page, const char *text)
{
    page_print(page, "\"");
    for (; *text != 0; text++) {
        page_print(page, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
    }
    page_print(page, "\"");
}

static void print_list(page_t *page, const config_t *config, const config_key_t *key)
{
    uint32_t count;
    memcpy(&count, (const char *)config + key->count_offset, sizeof count);
    page_print(page, "[");
    for (uint32_t i = 0; i < count; i++) {
        if (i > 0) page_print(page, ", ");
        print_quoted(page, (const char *)config + key->offset + i * (key->text_max + 1));
    }
    page_print(page, "]");
}

static void print_value(page_t *page, const config_t *config, config_index_t index)
{
    const config_key_t *key = &config_keys[index];
    const char *value = (const char *)config + key->offset;
    int64_t number;
    int choice;
    switch (key->kind) {
    case CONFIG_INT:
        memcpy(&number, value, sizeof number);
        page_print(page, "%" PRId64, number);
        break;
    case CONFIG_BOOL:
        page_print(page, "%s", *(const bool *)value ? "true" : "false");
        break;
    case CONFIG_CHOICE:
        memcpy(&choice, value, sizeof choice);
        page_print(page, "%s", config_word(index, choice).text);
        break;
    case CONFIG_TEXT:
        print_quoted(page, value);
        break;
    case CONFIG_LIST:
        print_list(page, config, key);
        break;
    }
}

const char *config_section_doc(const char *section)
{
    for (size_t i = 0; i < SECTIONS; i++) {
        if (strcmp(sections[i].name, section) == 0) return sections[i].doc;
    }
    return "";
}

size_t config_show(const config_loaded_t *self, char *buf, size_t cap)
{
    page_t page = { .buf = buf, .cap = cap };
    const char *section = "";
    if (cap > 0) buf[0] = 0;
    for (config_index_t i = 0; i < CONFIG_KEYS; i++) {
        const config_key_t *key = &config_keys[i];
        if (strcmp(section, key->section) != 0) {
            section = key->section;
            page_print(&page, "%s%s: # %s\n", i > 0 ? "\n" : "", section,
                       config_section_doc(section));
        }
        size_t before = page.need;
        page_print(&page, "  %s: ", key->key);
        print_value(&page, &self->config, i);
        while (page.need - before < 36) page_print(&page, " ");
        page_print(&page, " # %s; %s\n", config_place(self, i).text, key->doc);
    }
    return page.need;
}
