/* tests/sim/http_client.c - clients that stream completions and check the text. */
#include "http_client.h"

#include <cjson/cJSON.h>
#include <string.h>

#include "../../runtime/engine/stub.h"

/* The oracle's text of the first `count` tokens. */
static size_t oracle_text(const http_client_t *self, uint32_t count, char *text, size_t cap)
{
    uint32_t ids[ANSWER_MAX];
    for (uint32_t i = 0; i < count; i++)
        ids[i] = engine_stub_token(self->journal->vocab, self->journal->end_token,
                                   &self->client->sampling, i);
    return tokenizer_decode(self->tokenizer, ids, count, true, text, cap);
}

static void fail(http_client_t *self, const char *invariant_id, const char *what)
{
    sim_fail(self->journal->sim, invariant_id, "HTTP client %u: %s", self->client->number, what);
}

/* I2 and I3: what has been read is the beginning of the whole answer. */
static void check_text(http_client_t *self)
{
    char whole[sizeof self->text];
    size_t size = oracle_text(self, self->client->max_tokens, whole, sizeof whole);
    if (self->text_bytes > size || memcmp(whole, self->text, self->text_bytes) != 0)
        fail(self, "I3", "the text read is not what the oracle says");
}

static void check_usage(http_client_t *self, const cJSON *usage)
{
    const cJSON *tokens = cJSON_GetObjectItem(usage, "completion_tokens");
    char whole[sizeof self->text];
    if (!cJSON_IsNumber(tokens) || tokens->valuedouble > ANSWER_MAX) {
        fail(self, "I2", "usage without completion_tokens");
        return;
    }
    self->client->answer_count = (uint32_t)tokens->valuedouble;
    size_t size = oracle_text(self, self->client->answer_count, whole, sizeof whole);
    if (size != self->text_bytes || memcmp(whole, self->text, size) != 0)
        fail(self, "I2", "the text read is not that of the tokens counted");
}

static err_t error_named(const char *code)
{
    for (int error = 1; code && error < ERRORS_MAX; error++)
        if (strcasecmp(error_descs[error].name, code) == 0) return (err_t)error;
    return ERR_OK; /* which no error may be: I5 */
}

static void end_with_error(http_client_t *self, const cJSON *error)
{
    err_t code = error_named(cJSON_GetStringValue(cJSON_GetObjectItem(error, "code")));
    journal_end(self->journal, self->client, CLIENT_FAILED, code);
}

static void take_choice(http_client_t *self, const cJSON *choice)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(choice, "text"));
    const char *finish = cJSON_GetStringValue(cJSON_GetObjectItem(choice, "finish_reason"));
    size_t size = text ? strlen(text) : 0;
    if (self->has_finish && size) fail(self, "I4", "text after the finish reason");
    if (self->text_bytes + size > sizeof self->text) size = sizeof self->text - self->text_bytes;
    if (size) memcpy(self->text + self->text_bytes, text, size);
    self->text_bytes += size;
    check_text(self);
    if (!finish) return;
    if (self->has_finish) fail(self, "I1", "two finish reasons");
    self->has_finish = true;
    self->finish = strcmp(finish, "stop") == 0 ? FINISH_STOP : FINISH_LENGTH;
}

static void take_event(http_client_t *self, const char *json)
{
    if (self->client->state != CLIENT_WAITING) {
        fail(self, "I4", "an event after the end");
        return;
    }
    if (strcmp(json, "[DONE]") == 0) {
        if (!self->has_finish)
            fail(self, "I1", "[DONE] without a finish reason");
        else
            journal_finish(self->journal, self->client, self->finish);
        return;
    }
    cJSON *event = cJSON_Parse(json);
    if (!event) fail(self, "I3", "an event that is no JSON");
    const cJSON *error = cJSON_GetObjectItem(event, "error");
    const cJSON *usage = cJSON_GetObjectItem(event, "usage");
    const cJSON *choice = cJSON_GetArrayItem(cJSON_GetObjectItem(event, "choices"), 0);
    if (error) end_with_error(self, error);
    if (choice) take_choice(self, choice);
    if (cJSON_IsObject(usage)) check_usage(self, usage);
    cJSON_Delete(event);
}

static void on_data(void *context, const void *data, size_t size)
{
    http_client_t *self = context;
    if (self->event_bytes + size >= sizeof self->events) {
        fail(self, "I3", "an event without an end");
        return;
    }
    memcpy(self->events + self->event_bytes, data, size);
    self->event_bytes += size;
    self->events[self->event_bytes] = '\0';
    char *at = self->events;
    char *end;
    while ((end = strstr(at, "\n\n"))) {
        *end = '\0';
        if (strncmp(at, "data: ", 6) == 0 && !sim_failure(self->journal->sim))
            take_event(self, at + 6);
        at = end + 2;
    }
    self->event_bytes = strlen(at);
    memmove(self->events, at, self->event_bytes + 1);
}

static void on_answer(void *context, const http_answer_t *answer, const void *body, size_t size)
{
    http_client_t *self = context;
    cJSON *json = cJSON_ParseWithLength(body, size);
    const cJSON *error = cJSON_GetObjectItem(json, "error");
    if (answer->status < 400 || !error) fail(self, "I5", "a streamed question got a whole answer");
    if (error) end_with_error(self, error);
    if (error && error_descs[self->client->error].http_status != answer->status)
        fail(self, "I5", "the status is not that of the error");
    if (answer->status == 429 && answer->retry_after_seconds == 0)
        fail(self, "I5", "429 without Retry-After");
    cJSON_Delete(json);
}

static void on_end(void *context)
{
    http_client_t *self = context;
    if (self->client->state == CLIENT_WAITING)
        fail(self, "I1", "the stream ends without a terminal event");
}

static void on_lost(void *context)
{
    http_client_t *self = context;
    if (self->client->state == CLIENT_WAITING)
        journal_end(self->journal, self->client, CLIENT_CUT, ERR_LOST);
}

static size_t write_body(http_client_t *self)
{
    const client_t *client = self->client;
    size_t used = 0;
    for (uint32_t i = 0; i < client->prompt_count; i++)
        used += (size_t)snprintf(self->body + used, sizeof self->body - used, "%s%u",
                                 i ? "," : "{\"prompt\":[", client->prompt[i]);
    used += (size_t)snprintf(self->body + used, sizeof self->body - used,
                             "],\"max_tokens\":%u,\"seed\":%llu,\"stream\":true,"
                             "\"stream_options\":{\"include_usage\":true}}",
                             client->max_tokens, (unsigned long long)client->sampling.seed);
    invariant(used < sizeof self->body);
    return used;
}

void http_client_ask(http_client_t *self)
{
    sim_http_client_t hooks = { .context = self,
                                .on_answer = on_answer,
                                .on_data = on_data,
                                .on_end = on_end,
                                .on_lost = on_lost };
    sim_http_t request = { .method = "POST", .path = "/v1/completions", .body = self->body };
    request.body_size = write_body(self);
    self->exchange = sim_http_request(self->journal->sim, self->client->ingress, &request, &hooks);
    if (self->exchange == 0) {
        journal_end(self->journal, self->client, CLIENT_REJECTED, ERR_UNAVAILABLE);
        return;
    }
    self->client->state = CLIENT_WAITING;
    self->client->attempts = 1;
}

void http_client_go_away(http_client_t *self)
{
    if (self->client->state != CLIENT_WAITING) return;
    sim_http_close(self->journal->sim, self->client->ingress, self->exchange);
    journal_end(self->journal, self->client, CLIENT_CANCELLED, ERR_CANCELLED);
}
