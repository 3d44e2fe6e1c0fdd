/* runtime/net/request.c - what evhttp lets through, checked: values or a refusal out. */
#include "request.h"

#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/queue.h>

#include <event2/http.h>
#include <event2/http_struct.h> /* the version has no accessor */
#include <event2/keyvalq_struct.h>

/* What the headers say about the body's end. */
typedef struct {
    const char *length;
    uint32_t count, hosts;
    bool is_chunked;
} framing_t;

static int refuse(const char **why, int status, const char *text)
{
    *why = text;
    return status;
}

/* A token as RFC 9110 5.6.2 has it. */
static bool is_token(const char *text)
{
    const char *c = text;
    while (*c != 0 && (isalnum((unsigned char)*c) || strchr("!#$%&'*+-.^_`|~", *c) != NULL)) c++;
    return c != text && *c == 0;
}

static bool has_control(const char *text)
{
    for (const unsigned char *c = (const unsigned char *)text; *c != 0; c++) {
        if ((*c < ' ' && *c != '\t') || *c == 0x7f) return true;
    }
    return false;
}

/* Whether a comma-separated list holds a word. */
static bool has_word(const char *list, const char *word)
{
    for (const char *at = list; *at != 0; at += strcspn(at, ",")) {
        at += strspn(at, ", \t");
        size_t size = strcspn(at, ", \t");
        if (size == strlen(word) && strncasecmp(at, word, size) == 0) return true;
    }
    return false;
}

static const char *method_of(enum evhttp_cmd_type type)
{
    switch (type) {
    case EVHTTP_REQ_GET:
        return "GET";
    case EVHTTP_REQ_POST:
        return "POST";
    case EVHTTP_REQ_HEAD:
        return "HEAD";
    case EVHTTP_REQ_PUT:
        return "PUT";
    case EVHTTP_REQ_DELETE:
        return "DELETE";
    case EVHTTP_REQ_OPTIONS:
        return "OPTIONS";
    case EVHTTP_REQ_TRACE:
        return "TRACE";
    case EVHTTP_REQ_CONNECT:
        return "CONNECT";
    case EVHTTP_REQ_PATCH:
        return "PATCH";
    default:
        return NULL;
    }
}

/* evhttp leaves a broken escape as it is. */
static bool is_escaped_well(const char *path)
{
    for (const char *c = strchr(path, '%'); c != NULL; c = strchr(c + 1, '%')) {
        if (!isxdigit((unsigned char)c[1]) || !isxdigit((unsigned char)c[2])) return false;
    }
    return true;
}

/* The path of the target, percent-decoded: "/a%20b?c" is "/a b", "http://host" is "/". */
static int take_path(request_head_t *self, struct evhttp_request *request, const char **why)
{
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(request);
    const char *path = evhttp_uri_get_path(uri);
    if (path == NULL) path = "";
    if (*path == 0 && evhttp_uri_get_scheme(uri) != NULL) path = "/";
    if (*path != '/' && strcmp(path, "*") != 0)
        return refuse(why, 400, "The request's target must begin with a slash.");
    if (!is_escaped_well(path))
        return refuse(why, 400, "The request's target has a broken percent escape.");
    if (has_control(evhttp_request_get_uri(request)))
        return refuse(why, 400, "The request's target has a control character.");
    size_t size = 0;
    char *decoded = evhttp_uridecode(path, 0, &size);
    if (decoded == NULL || strlen(decoded) != size) {
        free(decoded);
        return refuse(why, 400, "The request's target has a broken percent escape.");
    }
    snprintf(self->path, sizeof self->path, "%s", decoded);
    free(decoded);
    return size < sizeof self->path
               ? 0
               : refuse(why, 414, "The request's path is longer than 255 bytes.");
}

static int take_length(framing_t *framing, const char *value, const char **why)
{
    if (*value == 0 || value[strspn(value, "0123456789")] != 0)
        return refuse(why, 400, "The Content-Length is not a number.");
    if (framing->length != NULL && strcmp(framing->length, value) != 0)
        return refuse(why, 400, "There are two different Content-Lengths.");
    framing->length = value;
    return 0;
}

static int take_header(request_head_t *self, framing_t *framing, const struct evkeyval *header,
                       const char **why)
{
    const char *name = header->key, *value = header->value;
    if (++framing->count > HEADERS_MAX) return refuse(why, 431, "There are more than 128 headers.");
    if (!is_token(name)) return refuse(why, 400, "A header's name is not a token.");
    if (has_control(value)) return refuse(why, 400, "A header has a control character.");
    if (strcasecmp(name, "content-length") == 0) return take_length(framing, value, why);
    if (strcasecmp(name, "transfer-encoding") == 0) {
        if (framing->is_chunked || strcasecmp(value, "chunked") != 0)
            return refuse(why, 501, "The only Transfer-Encoding known here is chunked.");
        framing->is_chunked = true;
    } else if (strcasecmp(name, "expect") == 0) {
        if (strcasecmp(value, "100-continue") != 0)
            return refuse(why, 417, "The only Expect known here is 100-continue.");
    } else if (strcasecmp(name, "host") == 0) {
        if (++framing->hosts > 1) return refuse(why, 400, "There are two Host headers.");
    } else if (strcasecmp(name, "connection") == 0) {
        if (has_word(value, "close")) self->is_last = true;
    } else if (strcasecmp(name, "authorization") == 0) {
        snprintf(self->authorization, sizeof self->authorization, "%s", value);
    } else if (strcasecmp(name, "traceparent") == 0) {
        snprintf(self->traceparent, sizeof self->traceparent, "%s", value);
    } else if (strcasecmp(name, "content-type") == 0) {
        if (self->content_type[0] != 0) return refuse(why, 400, "There are two Content-Types.");
        snprintf(self->content_type, sizeof self->content_type, "%s", value);
    } else if (strcasecmp(name, "origin") == 0) {
        self->has_origin = true;
    }
    return 0;
}

static int check_framing(const framing_t *framing, const struct evhttp_request *request,
                         const char **why)
{
    enum evhttp_cmd_type type = evhttp_request_get_command(request);
    bool has_body = framing->is_chunked ||
                    (framing->length != NULL && framing->length[strspn(framing->length, "0")] != 0);
    if (framing->is_chunked && framing->length != NULL)
        return refuse(why, 400, "There are both a Content-Length and a Transfer-Encoding.");
    if (framing->is_chunked && request->minor == 0)
        return refuse(why, 400, "HTTP/1.0 has no Transfer-Encoding.");
    if (has_body && (type == EVHTTP_REQ_HEAD || type == EVHTTP_REQ_TRACE))
        return refuse(why, 400, "HEAD and TRACE have no body.");
    if (framing->hosts == 0 && request->minor == 1)
        return refuse(why, 400, "The Host header is missing.");
    return 0;
}

int request_head_read(request_head_t *self, struct evhttp_request *request, const char **why)
{
    framing_t framing = { 0 };
    *self = (request_head_t){ 0 };
    if (request->major != 1 || request->minor < 0 || request->minor > 1)
        return refuse(why, 505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.");
    const char *method = method_of(evhttp_request_get_command(request));
    if (method == NULL) return refuse(why, 501, "The method is not known.");
    snprintf(self->method, sizeof self->method, "%s", method);
    int status = take_path(self, request, why);
    const struct evkeyval *header;
    TAILQ_FOREACH(header, evhttp_request_get_input_headers(request), next)
    {
        if (status == 0) status = take_header(self, &framing, header, why);
    }
    /* evhttp takes the end of a chunk on trust, so nothing may follow it. */
    self->is_last = self->is_last || framing.is_chunked;
    return status != 0 ? status : check_framing(&framing, request, why);
}

const char *request_status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } texts[] = { { 200, "OK" },
                  { 204, "No Content" },
                  { 400, "Bad Request" },
                  { 401, "Unauthorized" },
                  { 404, "Not Found" },
                  { 405, "Method Not Allowed" },
                  { 408, "Request Timeout" },
                  { 409, "Conflict" },
                  { 413, "Content Too Large" },
                  { 414, "URI Too Long" },
                  { 415, "Unsupported Media Type" },
                  { 417, "Expectation Failed" },
                  { 422, "Unprocessable Content" },
                  { 429, "Too Many Requests" },
                  { 431, "Request Header Fields Too Large" },
                  { 500, "Internal Server Error" },
                  { 501, "Not Implemented" },
                  { 503, "Service Unavailable" },
                  { 504, "Gateway Timeout" },
                  { 505, "HTTP Version Not Supported" } };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (texts[i].status == status) return texts[i].text;
    }
    return "Status";
}
