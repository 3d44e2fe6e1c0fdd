/* tests/fuzz/fuzz_json.c - bodies of the OpenAI API: hostile JSON must be refused or taken, never
 * crash or leave the arena. */
#include <string.h>

#include "runtime/invariant.h"
#include "runtime/openai/openai.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 4096, ARENA_BYTES = 1 << 20 };

static uint64_t read_all(const openai_call_t *call)
{
    uint64_t sum = call->stop_count;
    for (uint32_t i = 0; i < call->message_count; i++)
        sum += strnlen(call->messages[i].content, call->messages[i].content_size + 1);
    for (uint32_t i = 0; i < call->prompt_count; i++) {
        const openai_prompt_t *prompt = &call->prompts[i];
        for (uint32_t at = 0; at < prompt->count; at++) invariant(prompt->ids[at] < VOCAB);
        if (prompt->text != NULL) sum += strnlen(prompt->text, prompt->size + 1);
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t memory[ARENA_BYTES];
    static openai_call_t call;
    if (size == 0) return 0;
    arena_t arena = { .bytes = memory, .size = sizeof memory };
    openai_error_t why;
    call.kind = data[0] % 4;
    err_t error = openai_parse(&call, (bytes_t){ data + 1, size - 1 }, VOCAB, &arena, &why);
    if (error == ERR_OK) {
        static volatile uint64_t kept;
        kept = read_all(&call);
        (void)kept;
        return 0;
    }
    char text[4096];
    writer_t out = { .text = text, .cap = sizeof text };
    openai_print_error(&out, &why);
    invariant(!out.is_cut && why.error == error);
    return 0;
}
