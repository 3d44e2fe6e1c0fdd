/* runtime/net/request.c - the head of an HTTP/1.1 request: pure text in, values or a refusal out.
 */
#include "request.h"

#include <string.h>
#include <strings.h>

typedef struct {
    const char *text;
    size_t size;
} span_t;

static int refuse(const char **why, int status, const char *text)
{
    *why = text;
    return status;
}

/* A token as RFC 9110 5.6.2 has it. */
static bool is_token(span_t span)
{
    for (size_t i = 0; i < span.size; i++) {
        char c = span.text[i];
        bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!is_letter && (c == 0 || strchr("!#$%&'*+-.^_`|~", c) == NULL)) return false;
    }
    return span.size > 0;
}

static span_t trim(span_t span)
{
    while (span.size > 0 && (*span.text == ' ' || *span.text == '\t'))
        span = (span_t){ span.text + 1, span.size - 1 };
    while (span.size > 0 && (span.text[span.size - 1] == ' ' || span.text[span.size - 1] == '\t'))
        span.size--;
    return span;
}

static bool is_word(span_t span, const char *word)
{
    return span.size == strlen(word) && strncasecmp(span.text, word, span.size) == 0;
}

/* Whether a comma-separated list holds a word. */
static bool has_word(span_t list, const char *word)
{
    while (list.size > 0) {
        const char *comma = memchr(list.text, ',', list.size);
        size_t size = comma == NULL ? list.size : (size_t)(comma - list.text);
        if (is_word(trim((span_t){ list.text, size }), word)) return true;
        if (comma == NULL) return false;
        list = (span_t){ comma + 1, list.size - size - 1 };
    }
    return false;
}

static void copy(char *to, size_t cap, span_t from)
{
    size_t size = from.size < cap - 1 ? from.size : cap - 1;
    memcpy(to, from.text, size);
    to[size] = 0;
}

static int digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The path of a target, percent-decoded: "/a%20b?c" is "/a b", "http://host/a" is "/a". */
static int parse_target(request_head_t *self, span_t target, const char **why)
{
    if (target.size > 7 && strncasecmp(target.text, "http://", 7) == 0) {
        const char *slash = memchr(target.text + 7, '/', target.size - 7);
        target = slash == NULL ? (span_t){ "/", 1 }
                               : (span_t){ slash, target.size - (size_t)(slash - target.text) };
    }
    bool is_server = target.size == 1 && *target.text == '*';
    if (target.size == 0 || (*target.text != '/' && !is_server))
        return refuse(why, 400, "The request's target must begin with a slash.");
    size_t used = 0;
    for (size_t i = 0; i < target.size && target.text[i] != '?' && target.text[i] != '#'; i++) {
        char c = target.text[i];
        if (c == '%') {
            int high = i + 2 < target.size ? digit(target.text[i + 1]) : -1,
                low = i + 2 < target.size ? digit(target.text[i + 2]) : -1;
            if (high < 0 || low < 0 || high + low == 0)
                return refuse(why, 400, "The request's target has a broken percent escape.");
            c = (char)(high * 16 + low);
            i += 2;
        } else if ((unsigned char)c <= ' ' || c == 0x7f) {
            return refuse(why, 400, "The request's target has a control character.");
        }
        if (used + 1 == sizeof self->path)
            return refuse(why, 414, "The request's path is longer than 255 bytes.");
        self->path[used++] = c;
    }
    self->path[used] = 0;
    return 0;
}

static int parse_first(request_head_t *self, span_t line, const char **why)
{
    const char *one = memchr(line.text, ' ', line.size);
    const char *two = one == NULL ? NULL : memrchr(line.text, ' ', line.size);
    if (one == NULL || one == two)
        return refuse(why, 400, "The first line must be a method, a target and a version.");
    span_t method = { line.text, (size_t)(one - line.text) },
           target = { one + 1, (size_t)(two - one) - 1 };
    span_t version = { two + 1, line.size - (size_t)(two - line.text) - 1 };
    if (!is_token(method)) return refuse(why, 400, "The method is not a token.");
    if (version.size != 8 || memcmp(version.text, "HTTP/", 5) != 0)
        return refuse(why, 400, "The first line does not end with HTTP/1.1.");
    if (memcmp(version.text, "HTTP/1.", 7) != 0 || version.text[7] < '0' || version.text[7] > '1')
        return refuse(why, 505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.");
    if (method.size >= sizeof self->method) return refuse(why, 501, "The method is not known.");
    copy(self->method, sizeof self->method, method);
    self->minor = (uint32_t)(version.text[7] - '0');
    self->is_keep_alive = self->minor == 1;
    return parse_target(self, target, why);
}

static int parse_length(request_head_t *self, span_t value, const char **why)
{
    uint64_t length = 0;
    if (value.size == 0 || value.size > 19)
        return refuse(why, value.size == 0 ? 400 : 413,
                      "The Content-Length is not a number that can be.");
    for (size_t i = 0; i < value.size; i++) {
        if (value.text[i] < '0' || value.text[i] > '9')
            return refuse(why, 400, "The Content-Length is not a number.");
        length = length * 10 + (uint64_t)(value.text[i] - '0');
    }
    if (self->has_length && length != self->length)
        return refuse(why, 400, "There are two different Content-Lengths.");
    self->has_length = true;
    self->length = length;
    return 0;
}

static int take_header(request_head_t *self, span_t name, span_t value, const char **why)
{
    if (is_word(name, "content-length")) return parse_length(self, value, why);
    if (is_word(name, "transfer-encoding")) {
        if (self->is_chunked || !is_word(value, "chunked"))
            return refuse(why, 501, "The only Transfer-Encoding known here is chunked.");
        self->is_chunked = true;
    } else if (is_word(name, "connection")) {
        if (has_word(value, "close")) self->is_keep_alive = false;
        if (has_word(value, "keep-alive") && self->minor == 0) self->is_keep_alive = true;
    } else if (is_word(name, "expect")) {
        if (!is_word(value, "100-continue"))
            return refuse(why, 417, "The only Expect known here is 100-continue.");
        self->expects_continue = self->minor == 1;
    } else if (is_word(name, "host")) {
        if (self->has_host) return refuse(why, 400, "There are two Host headers.");
        self->has_host = true;
    } else if (is_word(name, "authorization")) {
        copy(self->authorization, sizeof self->authorization, value);
    } else if (is_word(name, "traceparent")) {
        copy(self->traceparent, sizeof self->traceparent, value);
    }
    return 0;
}

static int parse_header(request_head_t *self, span_t line, const char **why)
{
    const char *colon = memchr(line.text, ':', line.size);
    if (*line.text == ' ' || *line.text == '\t')
        return refuse(why, 400, "A header is folded over two lines.");
    if (colon == NULL) return refuse(why, 400, "A header has no colon.");
    span_t name = { line.text, (size_t)(colon - line.text) };
    span_t value = trim((span_t){ colon + 1, line.size - name.size - 1 });
    if (!is_token(name)) return refuse(why, 400, "A header's name is not a token.");
    for (size_t i = 0; i < value.size; i++) {
        unsigned char c = (unsigned char)value.text[i];
        if ((c < ' ' && c != '\t') || c == 0x7f)
            return refuse(why, 400, "A header has a control character.");
    }
    return take_header(self, name, value, why);
}

/* The next line, without its end; false when no line end is left. */
static bool next_line(span_t *rest, span_t *line)
{
    const char *end = memchr(rest->text, '\n', rest->size);
    if (end == NULL) return false;
    size_t size = (size_t)(end - rest->text);
    *line = (span_t){ rest->text, size > 0 && end[-1] == '\r' ? size - 1 : size };
    *rest = (span_t){ end + 1, rest->size - size - 1 };
    return true;
}

int request_head_parse(request_head_t *self, const char *text, size_t size, const char **why)
{
    *self = (request_head_t){ 0 };
    span_t rest = { text, size }, line;
    if (!next_line(&rest, &line)) return refuse(why, 400, "The request has no lines.");
    int status = parse_first(self, line, why);
    for (uint32_t count = 0; status == 0 && next_line(&rest, &line) && line.size > 0; count++) {
        if (count == HEADERS_MAX) return refuse(why, 431, "There are more than 128 headers.");
        status = parse_header(self, line, why);
    }
    if (status != 0) return status;
    if (self->is_chunked && self->has_length)
        return refuse(why, 400, "There are both a Content-Length and a Transfer-Encoding.");
    if (self->is_chunked && self->minor == 0)
        return refuse(why, 400, "HTTP/1.0 has no Transfer-Encoding.");
    if (!self->has_host && self->minor == 1) return refuse(why, 400, "The Host header is missing.");
    return 0;
}

bool request_chunk_size(const char *line, size_t size, uint64_t *out)
{
    uint64_t value = 0;
    size_t at = 0;
    while (at < size && digit(line[at]) >= 0 && at < 15)
        value = value * 16 + (uint64_t)digit(line[at++]);
    if (at == 0 || (at < size && line[at] != ';' && line[at] != ' ' && line[at] != '\t'))
        return false;
    *out = value;
    return true;
}
