/* runtime/openai/guard.c - what is checked of a body around its parsing, which allows more than
 * JSON does: bytes, texts, numbers, depth, number of values, names that are there twice. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../invariant.h"
#include "../model/tokenizer_utf8.h"
#include "parse.h"

static err_t check_utf8(const uint8_t *text, size_t size, openai_error_t *why)
{
    size_t valid = utf8_valid_size(text, size);
    if (valid == size) return ERR_OK;
    return openai_refuse(why, ERR_INVALID, "",
                         "The body must be UTF-8, but byte 0x%02x at position %zu is not.",
                         text[valid], valid);
}

typedef struct {
    const char *text;
    size_t size, at;
    uint32_t depth, values;
    openai_error_t *why;
} scan_t;

static bool is_digit_at(const scan_t *self, size_t at)
{
    return at < self->size && self->text[at] >= '0' && self->text[at] <= '9';
}

/* Four hexadecimal digits; UINT32_MAX when they are none. */
static uint32_t hex_at(const scan_t *self, size_t at)
{
    uint32_t value = 0;
    if (self->size - at < 4) return UINT32_MAX;
    for (size_t i = at; i < at + 4; i++) {
        if (!isxdigit((unsigned char)self->text[i])) return UINT32_MAX;
        value = value << 4 | (uint32_t)(is_digit_at(self, i) ? self->text[i] - '0'
                                                             : (self->text[i] | ' ') - 'a' + 10);
    }
    return value;
}

/* "\u" and what follows; the parser takes digits that are none for zeros.  "\u0000" would cut the
 * text short for whoever reads it as a C string. */
static err_t scan_unicode(scan_t *self)
{
    enum { HIGH = 0xd800, LOW = 0xdc00, END = 0xe000 };
    size_t at = self->at;
    uint32_t unit = hex_at(self, at + 2), low = 0;
    self->at += 6;
    if (unit == UINT32_MAX)
        return openai_refuse(self->why, ERR_INVALID, "",
                             "The \\u at position %zu needs four hexadecimal digits.", at);
    if (unit == 0)
        return openai_refuse(self->why, ERR_INVALID, "",
                             "A text contains the NUL character (\\u0000) at position %zu, which "
                             "is not allowed.",
                             at);
    if (unit < HIGH || unit >= END) return ERR_OK;
    bool is_followed = self->size - self->at >= 6 && memcmp(self->text + self->at, "\\u", 2) == 0;
    if (is_followed) low = hex_at(self, self->at + 2);
    if (unit >= LOW || low < LOW || low >= END)
        return openai_refuse(self->why, ERR_INVALID, "",
                             "The \\u%04x at position %zu is half of a surrogate pair, which is no "
                             "character.",
                             unit, at);
    self->at += 6;
    return ERR_OK;
}

static err_t scan_escape(scan_t *self)
{
    char escaped = self->size - self->at > 1 ? self->text[self->at + 1] : '"';
    if (escaped == 'u') return scan_unicode(self);
    if (memchr("\"\\/bfnrt", escaped, 8) == NULL)
        return openai_refuse(self->why, ERR_INVALID, "",
                             "The backslash at position %zu escapes nothing that JSON knows.",
                             self->at);
    self->at += 2;
    return ERR_OK;
}

/* Whether one of eight bytes is below this, which is at most 128. */
static bool has_below(uint64_t eight, uint8_t bound)
{
    const uint64_t ones = 0x0101010101010101u;
    return ((eight - ones * bound) & ~eight & ones << 7) != 0;
}

static bool has_byte(uint64_t eight, uint8_t byte)
{
    return has_below(eight ^ (0x0101010101010101u * byte), 1);
}

/* Pass over what a text is mostly made of, eight bytes at a time. */
static void skip_plain(scan_t *self)
{
    for (uint64_t eight; self->size - self->at >= sizeof eight; self->at += sizeof eight) {
        memcpy(&eight, self->text + self->at, sizeof eight);
        if (has_byte(eight, '"') || has_byte(eight, '\\') || has_below(eight, ' ')) return;
    }
}

/* From the quote that opens a text to behind the one that closes it; the parser misses the latter
 * where it is absent. */
static err_t scan_text(scan_t *self)
{
    err_t error = ERR_OK;
    self->at++;
    while (self->at < self->size && error == ERR_OK) {
        skip_plain(self);
        if (self->at == self->size) break;
        unsigned char byte = (unsigned char)self->text[self->at];
        if (byte == '"') {
            self->at++;
            return ERR_OK;
        }
        if (byte < ' ')
            return openai_refuse(self->why, ERR_INVALID, "",
                                 "A text contains the control character 0x%02x at position %zu; "
                                 "JSON wants it escaped (\\u%04x, and \\n for a line's end).",
                                 byte, self->at, byte);
        if (byte == '\\')
            error = scan_escape(self);
        else
            self->at++;
    }
    return error;
}

static void skip_digits(scan_t *self)
{
    while (is_digit_at(self, self->at)) self->at++;
}

/* What is wrong with the number that begins here, else NULL with the scan behind it: RFC 8259, 6.
 * The parser takes whatever strtod takes. */
static const char *scan_number(scan_t *self)
{
    if (self->text[self->at] == '-') self->at++;
    if (!is_digit_at(self, self->at)) return "it must begin with a digit, or a minus and a digit";
    if (self->text[self->at] == '0' && is_digit_at(self, self->at + 1))
        return "it must not begin with a zero that more digits follow";
    skip_digits(self);
    if (self->at < self->size && self->text[self->at] == '.') {
        if (!is_digit_at(self, ++self->at)) return "a digit must follow its point";
        skip_digits(self);
    }
    if (self->at < self->size && (self->text[self->at] | ' ') == 'e') {
        self->at++;
        if (self->at < self->size && memchr("+-", self->text[self->at], 2) != NULL) self->at++;
        if (!is_digit_at(self, self->at)) return "a digit must follow its exponent's e";
        skip_digits(self);
    }
    bool is_whole = self->at == self->size || memchr(",]} \t\r\n", self->text[self->at], 7) != NULL;
    return is_whole ? NULL : "something that is no part of it follows";
}

static err_t scan_structure(scan_t *self)
{
    char byte = self->text[self->at];
    if (byte == '{' || byte == '[') self->depth++;
    if ((byte == '}' || byte == ']') && self->depth > 0) self->depth--;
    if (byte == ',' || byte == '{' || byte == '[') self->values++;
    if ((unsigned char)byte < ' ' && memchr("\t\r\n", byte, 3) == NULL)
        return openai_refuse(self->why, ERR_INVALID, "",
                             "The body contains the byte 0x%02x at position %zu, which JSON does "
                             "not allow.",
                             (unsigned char)byte, self->at);
    if (self->depth > OPENAI_DEPTH_MAX)
        return openai_refuse(self->why, ERR_INVALID, "",
                             "The JSON is nested deeper than %d levels.", OPENAI_DEPTH_MAX);
    if (self->values > OPENAI_VALUES_MAX)
        return openai_refuse(self->why, ERR_TOO_LARGE, "", "The JSON has more than %d values.",
                             OPENAI_VALUES_MAX);
    self->at++;
    return ERR_OK;
}

/* One text, number, or byte of anything else. */
static err_t scan_next(scan_t *self)
{
    size_t at = self->at;
    char byte = self->text[at];
    if (byte == '"') return scan_text(self);
    bool is_number = is_digit_at(self, at) || byte == '-' || byte == '+' || byte == '.';
    if (!is_number) return scan_structure(self);
    const char *wrong = scan_number(self);
    if (wrong == NULL) return ERR_OK;
    return openai_refuse(self->why, ERR_INVALID, "",
                         "The number at position %zu is not JSON's: %s.", at, wrong);
}

err_t guard_check(bytes_t body, openai_error_t *why)
{
    scan_t scan = { .text = body.data, .size = body.size, .why = why };
    err_t error = check_utf8(body.data, body.size, why);
    while (scan.at < scan.size && error == ERR_OK) error = scan_next(&scan);
    return error;
}

/* ---- names that are there twice ---- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static err_t refuse_names(openai_error_t *why, const char *field, const char *name)
{
    if (field == NULL)
        return openai_refuse(why, ERR_INVALID, name, "'%.100s' is there twice.", name);
    return openai_refuse(why, ERR_INVALID, field,
                         "'%.100s' is there twice in an object in '%.100s'.", name, field);
}

/* Of two members of one name this server would take one and a gateway before it perhaps the other.
 * `field` is the one of the body that the object is in, or NULL. */
static err_t check_names(const cJSON *object, const char *field, openai_error_t *why)
{
    const char *names[OPENAI_NAMES_MAX];
    size_t count = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, object)
    {
        if (count == OPENAI_NAMES_MAX)
            return openai_refuse(why, ERR_TOO_LARGE, field == NULL ? "" : field,
                                 "An object of the JSON has more than %d names.", OPENAI_NAMES_MAX);
        names[count++] = item->string;
    }
    qsort(names, count, sizeof *names, compare_names);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(names[i - 1], names[i]) == 0) return refuse_names(why, field, names[i]);
    }
    return ERR_OK;
}

static err_t check_all_names(const cJSON *root, openai_error_t *why)
{
    const cJSON *path[OPENAI_DEPTH_MAX + 1];
    size_t depth = 0;
    path[0] = root;
    for (;;) {
        const cJSON *value = path[depth];
        const char *field = depth > 0 ? path[1]->string : NULL;
        if (cJSON_IsObject(value)) {
            err_t error = check_names(value, field, why);
            if (error != ERR_OK) return error;
        }
        if (value->child != NULL) {
            invariant(depth < OPENAI_DEPTH_MAX); /* guard_check bounds it */
            path[++depth] = value->child;
            continue;
        }
        while (depth > 0 && path[depth]->next == NULL) depth--;
        if (depth == 0) return ERR_OK;
        path[depth] = path[depth]->next;
    }
}

err_t guard_parse(bytes_t body, cJSON **root, openai_error_t *why)
{
    if (body.size == 0)
        return openai_refuse(why, ERR_INVALID, "", "The body is empty; a JSON object is needed.");
    const char *text = body.data, *end = text + body.size, *stopped = text;
    cJSON *parsed = cJSON_ParseWithLengthOpts(text, body.size, &stopped, 0);
    if (parsed == NULL)
        return openai_refuse(why, ERR_INVALID, "",
                             "The body is not valid JSON: error at position %zu of %zu.",
                             (size_t)(stopped - text), body.size);
    while (stopped < end && strchr(" \t\r\n", *stopped) != NULL && *stopped != 0) stopped++;
    err_t error = stopped == end
                      ? check_all_names(parsed, why)
                      : openai_refuse(why, ERR_INVALID, "",
                                      "Something follows the JSON value at position %zu.",
                                      (size_t)(stopped - text));
    if (error == ERR_OK)
        *root = parsed;
    else
        cJSON_Delete(parsed);
    return error;
}

/* ---- integers as they are written ---- */

static size_t skip_spaces(bytes_t body, size_t at)
{
    const char *text = body.data;
    while (at < body.size && memchr(" \t\r\n", text[at], 4) != NULL) at++;
    return at;
}

static bool read_written(bytes_t body, size_t at, int64_t *value)
{
    const char *text = body.data;
    char digits[24] = "";
    size_t size = 0;
    while (at < body.size && size + 1 < sizeof digits &&
           (text[at] == '-' || (text[at] >= '0' && text[at] <= '9')))
        digits[size++] = text[at++];
    if (size == 0 || at == body.size || memchr(",} \t\r\n", text[at], 6) == NULL) return false;
    errno = 0;
    long long written = strtoll(digits, NULL, 10);
    if (errno != 0) return false;
    *value = written;
    return true;
}

/* The text that begins at `at`, behind its quote, is the name of a member: where its value begins,
 * else 0. */
static size_t value_of(bytes_t body, size_t at, const char *name)
{
    const char *text = body.data;
    size_t size = strlen(name);
    if (body.size - at <= size || memcmp(text + at, name, size) != 0 || text[at + size] != '"')
        return 0;
    at = skip_spaces(body, at + size + 1);
    return at < body.size && text[at] == ':' ? skip_spaces(body, at + 1) : 0;
}

bool guard_find_integer(bytes_t body, const char *name, int64_t *value)
{
    const char *text = body.data;
    bool is_text = false, is_found = false;
    uint32_t depth = 0;
    for (size_t i = 0; i < body.size; i++) {
        if (is_text) {
            if (text[i] == '\\')
                i++; /* whatever follows does not end the text */
            else
                is_text = text[i] != '"';
            continue;
        }
        depth += text[i] == '{' || text[i] == '[';
        depth -= text[i] == '}' || text[i] == ']';
        is_text = text[i] == '"';
        size_t at = is_text && depth == 1 ? value_of(body, i + 1, name) : 0;
        if (at > 0) is_found = read_written(body, at, value);
    }
    return is_found;
}
