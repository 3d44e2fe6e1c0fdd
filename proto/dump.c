/* proto/dump.c - prints PROTOCOL.md, or with --json the tables for clients in other languages. */
#include "../runtime/base/config.h"
#include "../runtime/base/json_text.h"
#include "../runtime/metrics.h"
#include "messages.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* clang-format off */
typedef struct { const char *connector, *binder; uint32_t high_water; const char *doc; } link_row_t;
static const link_row_t links[] = {
#define LINK(connector, binder, mark, doc) { #connector, #binder, mark, doc },
#include "links.def"
#undef LINK
};

typedef struct { const char *name; uint32_t instances; const char *doc; } role_row_t;
static const role_row_t roles[] = {
#define ROLE(name, instances, doc) { #name, instances, doc },
#include "roles.def"
#undef ROLE
};

typedef struct { const char *name; double fallback; } sample_row_t;
static const sample_row_t samples[] = {
#define SAMPLE(type, field, fallback, least, most, doc) { #field, (double)(fallback) },
#include "sampling.def"
#undef SAMPLE
};
/* clang-format on */

#define COUNT(table) (sizeof(table) / sizeof(table)[0])
static const char *const type_names[] = { "u32", "u64", "f32", "f64" };
static const char *const kind_names[] = { "field", "text", "list", "bytes", "group" };
static const char *const scope_names[] = { "none", "frame", "request", "worker", "cluster" };
static const char *const metric_kinds[] = { "counter", "gauge", "histogram" };
static const char *const config_kinds[] = { "text", "number", "true or false", "choice", "list" };

static bool is_real(const field_desc_t *field)
{
    return field->type == TYPE_f32 || field->type == TYPE_f64;
}

static bool has_range(const field_desc_t *field)
{
    return field->least < 0 || field->most > 0;
}

/* ---- Markdown ---- */

static const char frame_text[] =
    "# Protocol\n\n"
    "Printed by `proto_dump` from the tables in `proto/`; a test fails when it is stale. Do not "
    "edit.\n\n"
    "## Frames\n\n"
    "Actors talk over ZeroMQ: the connector of a link opens a DEALER, the binder a ROUTER. The "
    "routing id of\n"
    "an actor is `role.index` (`client.12345` for clients). A ZeroMQ message of one part is a "
    "frame. A frame\n"
    "holds one message or several behind each other; each message is two msgpack arrays, header "
    "and body:\n\n"
    "    [version, tag, request id, attempt, epoch, to_epoch, sequence, sent_us] [field, field, "
    "...]\n\n"
    "| header field | type | meaning |\n|---|---|---|\n"
    "| version | integer | of the protocol: %d; others are refused |\n"
    "| tag | integer | which message |\n"
    "| request id | bin, 16 bytes | big-endian; zeros where the message concerns no request |\n"
    "| attempt | integer, 32 bits | of that request; grows with every re-submission |\n"
    "| epoch | integer, 64 bits | the sender's life |\n"
    "| to_epoch | integer, 64 bits | the receiver's life as the sender knows it; 0: not known |\n"
    "| sequence | integer, 64 bits | counts the messages of this sender on this link |\n"
    "| sent_us | integer, 64 bits | sender's clock; us |\n\n"
    "Integers may come in any width, signed or not, as long as they are not negative. Floats may "
    "come as\n"
    "float 32, float 64 or integer; NaN is refused. Texts are str and valid UTF-8 without NUL; "
    "bytes may\n"
    "come as bin or str. Lists are arrays. Unknown fields at the end of header or body are "
    "skipped; missing\n"
    "ones, wrong types and values out of range make the receiver drop the frame and count it in\n"
    "`frames_refused_total`. A message has at most %d bytes. The first message on every connection "
    "is\n"
    "`hello`, in both directions.\n\n";

static void print_limit(const field_desc_t *field)
{
    switch (field->kind) {
    case KIND_TEXT:
    case KIND_BYTES:
        printf("at most %" PRIu64 " bytes", field->count_max);
        return;
    case KIND_LIST:
        printf("at most %" PRIu64 " entries", field->count_max);
        break;
    default:
        break;
    }
    const char *separator = field->kind == KIND_LIST ? ", each " : "";
    if (is_real(field)) {
        if (has_range(field)) printf("%s%g to %g", separator, field->least, field->most);
    } else if (field->max == UINT64_MAX || (field->type == TYPE_u32 && field->max == UINT32_MAX)) {
        printf("%sany", separator);
    } else {
        printf("%s0 to %" PRIu64, separator, field->max);
    }
}

static uint32_t print_field(const field_desc_t *field, uint32_t position)
{
    if (field->kind == KIND_GROUP) {
        for (size_t i = 0; i < field->group_count; i++) {
            position = print_field(&field->group[i], position);
        }
        return position;
    }
    bool is_scalar = field->kind == KIND_FIELD, is_list = field->kind == KIND_LIST;
    printf("| %" PRIu32 " | %s | %s%s | ", position, field->name, is_list ? "list of " : "",
           is_scalar || is_list ? type_names[field->type] : kind_names[field->kind]);
    print_limit(field);
    printf(" | %s |\n", field->doc);
    return position + 1;
}

static void print_messages(bool is_local)
{
    for (size_t i = 0; i < MSG_COUNT; i++) {
        const msg_desc_t *message = &msg_descs[i];
        if ((message->tag >= TAG_LOCAL) != is_local) continue;
        printf("### %" PRIu32 " %s\n\n%s\n\n", message->tag, message->name, message->doc);
        if (message->field_count == 0) continue;
        printf("| # | field | type | allowed | meaning |\n|---|---|---|---|---|\n");
        uint32_t position = 0;
        for (size_t j = 0; j < message->field_count; j++) {
            position = print_field(&message->fields[j], position);
        }
        printf("\n");
    }
}

static void print_links(void)
{
    printf("## Roles\n\n| value | role | most | owns |\n|---|---|---|---|\n");
    for (size_t i = 0; i < COUNT(roles); i++) {
        printf("| %zu | %s | %" PRIu32 " | %s |\n", i, roles[i].name, roles[i].instances,
               roles[i].doc);
    }
    printf("\n## Links\n\nThe connector opens a DEALER to the binder's one ROUTER; both send. Past "
           "the mark a\n"
           "send is refused, and the sender pushes back.\n\n");
    printf("| connector | binder | high-water mark | what passes |\n|---|---|---|---|\n");
    for (size_t i = 0; i < COUNT(links); i++) {
        printf("| %s | %s | %" PRIu32 " | %s |\n", links[i].connector, links[i].binder,
               links[i].high_water, links[i].doc);
    }
    printf("\n");
}

static void print_errors(void)
{
    printf("## Errors\n\n| code | name | scope | HTTP | retry is safe | type | meaning |\n"
           "|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < ERRORS_MAX; i++) {
        const error_desc_t *error = &error_descs[i];
        printf("| %zu | %s | %s | %d | %s | %s | %s |\n", i, error->name, scope_names[error->scope],
               error->http_status, error->is_retry_safe ? "yes" : "no", error->openai_type,
               error->doc);
    }
    printf("\n");
}

static void print_metrics(void)
{
    printf("## Metrics\n\nThe slots of a `report`, in order; on /metrics each is prefixed with "
           "`troupe_` and\n"
           "labelled with role and index. A histogram takes %d slots: counts per bucket (not "
           "cumulative),\n"
           "sum, count; its bounds in seconds are",
           HISTOGRAM_BUCKETS + 2);
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) printf(" %g", histogram_bounds[i]);
    printf(".\n\n| slot | name | kind | meaning |\n|---|---|---|---|\n");
    for (size_t i = 0; i < METRICS_MAX; i++) {
        const metric_desc_t *metric = &metric_descs[i];
        printf("| %" PRIu32 " | %s | %s | %s |\n", metric->slot, metric->name,
               metric_kinds[metric->kind], metric->doc);
    }
    printf("\n");
}

static void print_allowed(const config_key_t *key)
{
    switch (key->kind) {
    case CONFIG_INT:
        printf("%" PRId64 " to %" PRId64, key->least, key->most);
        break;
    case CONFIG_CHOICE:
        for (const char *at = key->words; *at != 0; at++) {
            if (*at == '|') {
                printf(", ");
            } else {
                printf("%c", *at);
            }
        }
        break;
    case CONFIG_TEXT:
        printf("at most %zu bytes", key->text_max);
        break;
    case CONFIG_LIST:
        printf("at most %" PRId64 " texts of %zu bytes", key->most, key->text_max);
        break;
    case CONFIG_BOOL:
        printf("true, false");
        break;
    }
}

static void print_config(void)
{
    printf("## Configuration\n\nOne YAML file of sections with keys; what is not listed is "
           "refused.\n");
    const char *section = "";
    for (size_t i = 0; i < CONFIG_KEYS; i++) {
        const config_key_t *key = &config_keys[i];
        if (strcmp(section, key->section) != 0) {
            section = key->section;
            printf("\n### %s: %s\n\n| key | type | default | allowed | meaning "
                   "|\n|---|---|---|---|---|\n",
                   section, config_section_doc(section));
        }
        printf("| %s | %s | ", key->key, config_kinds[key->kind]);
        if (key->kind == CONFIG_INT) printf("%" PRId64, key->number);
        if (key->kind == CONFIG_BOOL) printf("%s", key->number != 0 ? "true" : "false");
        if (key->fallback != NULL) printf("%s", key->fallback[0] != 0 ? key->fallback : "(empty)");
        if (key->kind == CONFIG_LIST) printf("(none)");
        printf(" | ");
        print_allowed(key);
        printf(" | %s |\n", key->doc);
    }
    printf("\n");
}

static const char status_text[] =
    "## Status\n\n"
    "`status_reply.json` is one JSON object:\n\n"
    "| member | meaning |\n|---|---|\n"
    "| version | of the build |\n"
    "| now_us | the director's monotonic clock; us |\n"
    "| uptime_us | since the director's start; us |\n"
    "| listen | where the company serves HTTP: http.listen |\n"
    "| has_metrics | false when the company is so large that metrics were left out |\n"
    "| actors | array, one object per configured actor, as follows |\n"
    "| actors[].role, .index | who |\n"
    "| actors[].is_up | whether the director has a live link to it |\n"
    "| actors[].epoch | its life |\n"
    "| actors[].uptime_us | as last reported; us |\n"
    "| actors[].age_us | time since that report; absent before the first; us |\n"
    "| actors[].is_running, .pid, .restarts, .last_exit | what the supervisor said of its process; "
    "absent until it did |\n"
    "| actors[].metrics | object of the metrics that are not zero: a number, or for histograms "
    "`{count, sum}` |\n";

static void print_markdown(void)
{
    printf(frame_text, PROTOCOL_VERSION, MESSAGE_BYTES_MAX);
    print_links();
    printf("## Messages\n\n");
    print_messages(false);
    printf(
        "## Local messages\n\nCompletions and news inside one process; refused from the wire.\n\n");
    print_messages(true);
    print_errors();
    print_metrics();
    print_config();
    printf("%s", status_text);
}

/* ---- JSON ---- */

static void json_range(json_text_t *out, const field_desc_t *field)
{
    if (field->kind == KIND_TEXT || field->kind == KIND_BYTES) return;
    json_text_string(out, "type", type_names[field->type]);
    if (!is_real(field)) {
        json_text_uint(out, "max",
                       field->type == TYPE_u32 && field->max > UINT32_MAX ? UINT32_MAX
                                                                          : field->max);
    } else if (has_range(field)) {
        json_text_number(out, "least", field->least);
        json_text_number(out, "most", field->most);
    }
}

static void json_field(json_text_t *out, const field_desc_t *field, bool is_sampling)
{
    if (field->kind == KIND_GROUP) {
        for (size_t i = 0; i < field->group_count; i++) json_field(out, &field->group[i], true);
        return;
    }
    json_text_open(out, NULL, '{');
    json_text_string(out, "name", field->name);
    json_text_string(out, "kind", kind_names[field->kind]);
    json_range(out, field);
    if (field->kind != KIND_FIELD) json_text_uint(out, "count_max", field->count_max);
    for (size_t i = 0; is_sampling && i < COUNT(samples); i++) {
        if (strcmp(samples[i].name, field->name) != 0) continue;
        json_text_number(out, "default", samples[i].fallback);
    }
    if (is_sampling) json_text_string(out, "group", "sampling");
    json_text_string(out, "doc", field->doc);
    json_text_close(out, '}');
}

static void json_messages(json_text_t *out)
{
    json_text_open(out, "messages", '[');
    for (size_t i = 0; i < MSG_COUNT; i++) {
        const msg_desc_t *message = &msg_descs[i];
        if (message->tag >= TAG_LOCAL) continue;
        json_text_open(out, NULL, '{');
        json_text_string(out, "name", message->name);
        json_text_uint(out, "tag", message->tag);
        json_text_string(out, "doc", message->doc);
        json_text_open(out, "fields", '[');
        for (size_t j = 0; j < message->field_count; j++) {
            json_field(out, &message->fields[j], false);
        }
        json_text_close(out, ']');
        json_text_close(out, '}');
    }
    json_text_close(out, ']');
}

static void json_roles(json_text_t *out)
{
    json_text_open(out, "roles", '[');
    for (size_t i = 0; i < COUNT(roles); i++) {
        json_text_open(out, NULL, '{');
        json_text_string(out, "name", roles[i].name);
        json_text_uint(out, "value", i);
        json_text_string(out, "doc", roles[i].doc);
        json_text_close(out, '}');
    }
    json_text_close(out, ']');
}

static void json_errors(json_text_t *out)
{
    json_text_open(out, "errors", '[');
    for (size_t i = 0; i < ERRORS_MAX; i++) {
        const error_desc_t *error = &error_descs[i];
        json_text_open(out, NULL, '{');
        json_text_string(out, "name", error->name);
        json_text_uint(out, "code", i);
        json_text_string(out, "scope", scope_names[error->scope]);
        json_text_uint(out, "http_status", (uint64_t)error->http_status);
        json_text_bool(out, "is_retry_safe", error->is_retry_safe);
        json_text_string(out, "type", error->openai_type);
        json_text_string(out, "doc", error->doc);
        json_text_close(out, '}');
    }
    json_text_close(out, ']');
}

static void json_metrics(json_text_t *out)
{
    json_text_open(out, "metrics", '[');
    for (size_t i = 0; i < METRICS_MAX; i++) {
        json_text_open(out, NULL, '{');
        json_text_string(out, "name", metric_descs[i].name);
        json_text_string(out, "kind", metric_kinds[metric_descs[i].kind]);
        json_text_uint(out, "slot", metric_descs[i].slot);
        json_text_string(out, "doc", metric_descs[i].doc);
        json_text_close(out, '}');
    }
    json_text_close(out, ']');
}

static void json_names(json_text_t *out, const char *key, const char *const *names, size_t count)
{
    json_text_open(out, key, '[');
    for (size_t i = 0; i < count; i++) json_text_string(out, NULL, names[i]);
    json_text_close(out, ']');
}

static bool print_json(void)
{
    static char buf[1 << 20];
    static const char *const header[] = { "version", "tag",      "request",  "attempt",
                                          "epoch",   "to_epoch", "sequence", "sent_us" };
    static const char *const finish[FINISH_MAX] = { "stop", "length", "cancelled" };
    json_text_t out;
    json_text_init(&out, buf, sizeof buf);
    json_text_open(&out, NULL, '{');
    json_text_uint(&out, "protocol_version", PROTOCOL_VERSION);
    json_text_uint(&out, "message_bytes_max", MESSAGE_BYTES_MAX);
    json_names(&out, "header", header, COUNT(header));
    json_names(&out, "finish", finish, COUNT(finish));
    json_roles(&out);
    json_messages(&out);
    json_errors(&out);
    json_metrics(&out);
    json_text_close(&out, '}');
    /* One entry a line, so that changes can be read. */
    for (const char *at = buf; *at != 0; at++) {
        if (strncmp(at, "{\"name\"", 7) == 0) printf("\n");
        printf("%c", *at);
    }
    printf("\n");
    return !out.is_full;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--json") == 0) return print_json() ? 0 : 1;
    if (argc > 1) {
        fprintf(stderr, "usage: proto_dump [--json]; found '%s'\n", argv[1]);
        return 2;
    }
    print_markdown();
    return 0;
}
