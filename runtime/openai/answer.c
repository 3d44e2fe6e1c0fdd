/* runtime/openai/answer.c - answers in OpenAI's shapes, whole and streamed, written piece by piece.
 */
#include "answer.h"

#include <math.h>
#include <string.h>

const char *answer_finish(finish_t reason)
{
    static const char *const names[FINISH_MAX] = { "stop", "length", "cancelled" };
    return names[reason];
}

void answer_print_head(writer_t *out, const answer_head_t *head, bool is_chunk)
{
    writer_text(out, "{\"id\":\"");
    writer_text(out, head->id);
    writer_text(out, "\",\"object\":\"");
    writer_text(out, !head->is_chat ? "text_completion"
                     : is_chunk     ? "chat.completion.chunk"
                                    : "chat.completion");
    writer_text(out, "\",\"created\":");
    writer_number(out, head->created_s);
    writer_text(out, ",\"model\":");
    writer_json(out, head->model, strlen(head->model));
    writer_text(out, ",\"system_fingerprint\":\"");
    writer_text(out, head->fingerprint);
    writer_text(out, "\"");
    if (!head->has_usage) return;
    writer_text(out, ",\"usage\":");
    answer_print_usage(out, &head->usage);
}

static void print_count(writer_t *out, const char *name, uint64_t count)
{
    writer_text(out, name);
    writer_number(out, count);
}

void answer_print_usage(writer_t *out, const usage_t *usage)
{
    print_count(out, "{\"prompt_tokens\":", usage->prompt_tokens);
    print_count(out, ",\"completion_tokens\":", usage->completion_tokens);
    print_count(out, ",\"total_tokens\":", usage->prompt_tokens + usage->completion_tokens);
    print_count(out, ",\"prompt_cache_hit_tokens\":", usage->cached_tokens);
    print_count(out, ",\"prompt_cache_miss_tokens\":", usage->prompt_tokens - usage->cached_tokens);
    print_count(out, ",\"prompt_tokens_details\":{\"cached_tokens\":", usage->cached_tokens);
    print_count(out,
                "},\"completion_tokens_details\":{\"reasoning_tokens\":", usage->reasoning_tokens);
    writer_text(out, "}}");
}

/* ---- log probabilities ---- */

/* A token's own text, made valid: half a character becomes U+FFFD, as `bytes` has the truth. */
static size_t token_text(const tokenizer_t *tokenizer, uint32_t id, char *text, size_t cap)
{
    detokenizer_t alone = { 0 };
    size_t size = detokenizer_push(&alone, tokenizer, id, false, text, cap);
    return size + detokenizer_finish(&alone, text + size, cap - size);
}

static void print_token(writer_t *out, const tokenizer_t *tokenizer, uint32_t id)
{
    char text[2 * DETOKENIZER_EMIT_MAX];
    writer_json(out, text, token_text(tokenizer, id, text, sizeof text));
}

static void print_bytes(writer_t *out, const tokenizer_t *tokenizer, uint32_t id)
{
    char text[DETOKENIZER_EMIT_MAX];
    size_t size = tokenizer_decode(tokenizer, &id, 1, false, text, sizeof text);
    if (size > sizeof text) size = sizeof text;
    writer_text(out, ",\"bytes\":[");
    for (size_t i = 0; i < size; i++) {
        if (i > 0) writer_text(out, ",");
        writer_number(out, (unsigned char)text[i]);
    }
    writer_text(out, "]");
}

static void print_chat_token(writer_t *out, const tokenizer_t *tokenizer, uint32_t id,
                             float logprob)
{
    writer_text(out, "{\"token\":");
    print_token(out, tokenizer, id);
    writer_text(out, ",\"logprob\":");
    writer_float(out, (double)logprob);
    print_bytes(out, tokenizer, id);
}

static void print_chat_record(writer_t *out, const tokenizer_t *tokenizer,
                              const token_record_t *record)
{
    print_chat_token(out, tokenizer, record->id, record->logprob);
    writer_text(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < record->top_count; i++) {
        if (i > 0) writer_text(out, ",");
        print_chat_token(out, tokenizer, record->top_ids[i], record->top_logprobs[i]);
        writer_text(out, "}");
    }
    writer_text(out, "]}");
}

/* As completions have it: token to log probability, the chosen one always among them. */
static void print_top(writer_t *out, const tokenizer_t *tokenizer, const token_record_t *record)
{
    if (isnan(record->logprob)) {
        writer_text(out, "null");
        return;
    }
    bool is_listed = false;
    writer_text(out, "{");
    for (uint32_t i = 0; i < record->top_count; i++) {
        if (i > 0) writer_text(out, ",");
        print_token(out, tokenizer, record->top_ids[i]);
        writer_text(out, ":");
        writer_float(out, (double)record->top_logprobs[i]);
        is_listed |= record->top_ids[i] == record->id;
    }
    if (!is_listed) {
        if (record->top_count > 0) writer_text(out, ",");
        print_token(out, tokenizer, record->id);
        writer_text(out, ":");
        writer_float(out, (double)record->logprob);
    }
    writer_text(out, "}");
}

static void pass_token(text_place_t *place, const tokenizer_t *tokenizer, uint32_t id)
{
    char text[DETOKENIZER_EMIT_MAX];
    size_t size = detokenizer_push(&place->detokenizer, tokenizer, id, true, text, sizeof text);
    for (size_t i = 0; i < size; i++) place->characters += ((unsigned char)text[i] & 0xc0) != 0x80;
}

typedef enum { PART_TOKEN, PART_LOGPROB, PART_TOP, PART_OFFSET, PARTS } part_t;

static void print_part(writer_t *out, const tokenizer_t *tokenizer, const token_record_t *record,
                       part_t part, text_place_t *place)
{
    switch (part) {
    case PART_TOKEN:
        print_token(out, tokenizer, record->id);
        break;
    case PART_LOGPROB:
        writer_float(out, (double)record->logprob);
        break;
    case PART_TOP:
        print_top(out, tokenizer, record);
        break;
    default:
        writer_number(out, place->characters);
        pass_token(place, tokenizer, record->id);
    }
}

static void print_completion_logprobs(writer_t *out, const tokenizer_t *tokenizer,
                                      records_t records, text_place_t *place)
{
    static const char *const names[PARTS] = { "{\"tokens\":[", "],\"token_logprobs\":[",
                                              "],\"top_logprobs\":[", "],\"text_offset\":[" };
    token_record_t record;
    for (part_t part = 0; part < PARTS; part++) {
        writer_text(out, names[part]);
        records.rewind(records.context);
        for (bool is_first = true; records.next(records.context, &record); is_first = false) {
            if (!is_first) writer_text(out, ",");
            print_part(out, tokenizer, &record, part, place);
        }
    }
    writer_text(out, "]}");
}

void answer_print_logprobs(writer_t *out, bool is_chat, const tokenizer_t *tokenizer,
                           records_t records, text_place_t *place)
{
    if (!is_chat) {
        print_completion_logprobs(out, tokenizer, records, place);
        return;
    }
    token_record_t record;
    writer_text(out, "{\"content\":[");
    records.rewind(records.context);
    for (bool is_first = true; records.next(records.context, &record); is_first = false) {
        if (!is_first) writer_text(out, ",");
        print_chat_record(out, tokenizer, &record);
    }
    writer_text(out, "],\"refusal\":null}");
}

/* ---- streaming ---- */

static void begin_chunk(writer_t *out, const answer_head_t *head, uint32_t choice)
{
    writer_text(out, "data: ");
    answer_print_head(out, head, true);
    writer_text(out, ",\"choices\":[{\"index\":");
    writer_number(out, choice);
}

void answer_chunk_role(writer_t *out, const answer_head_t *head, uint32_t choice)
{
    begin_chunk(out, head, choice);
    writer_text(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                     "\"finish_reason\":null}]}\n\n");
}

static void print_delta_text(writer_t *out, bool is_chat, const delta_t *delta)
{
    if (!is_chat) {
        writer_text(out, ",\"text\":");
        writer_json(out, delta->content.text, delta->content.size);
        return;
    }
    writer_text(out, ",\"delta\":{");
    if (delta->reasoning.size > 0) {
        writer_text(out, "\"reasoning_content\":");
        writer_json(out, delta->reasoning.text, delta->reasoning.size);
    }
    if (delta->content.size > 0 || delta->reasoning.size == 0) {
        writer_text(out, delta->reasoning.size > 0 ? ",\"content\":" : "\"content\":");
        writer_json(out, delta->content.text, delta->content.size);
    }
    writer_text(out, "}");
}

void answer_chunk_delta(writer_t *out, const answer_head_t *head, uint32_t choice,
                        const delta_t *delta)
{
    begin_chunk(out, head, choice);
    print_delta_text(out, head->is_chat, delta);
    writer_text(out, ",\"logprobs\":");
    if (delta->records == NULL)
        writer_text(out, "null");
    else
        answer_print_logprobs(out, head->is_chat, delta->tokenizer, *delta->records, delta->place);
    writer_text(out, ",\"finish_reason\":null}]}\n\n");
}

void answer_chunk_finish(writer_t *out, const answer_head_t *head, uint32_t choice, finish_t reason)
{
    begin_chunk(out, head, choice);
    writer_text(out, head->is_chat ? ",\"delta\":{}" : ",\"text\":\"\"");
    writer_format(out, ",\"logprobs\":null,\"finish_reason\":\"%s\"}]}\n\n", answer_finish(reason));
}

void answer_chunk_usage(writer_t *out, const answer_head_t *head, const usage_t *usage)
{
    writer_text(out, "data: ");
    answer_print_head(out, head, true);
    writer_text(out, ",\"choices\":[],\"usage\":");
    answer_print_usage(out, usage);
    writer_text(out, "}\n\n");
}

void answer_chunk_error(writer_t *out, const openai_error_t *why)
{
    writer_text(out, "data: ");
    openai_print_error(out, why);
    writer_text(out, "\n\n");
}

void answer_chunk_done(writer_t *out)
{
    writer_text(out, "data: [DONE]\n\n");
}
