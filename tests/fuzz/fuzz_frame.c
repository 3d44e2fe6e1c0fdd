/* tests/fuzz/fuzz_frame.c - frames from a hostile peer: refused, or in range and encoded to the
 * same again. */
#include "proto/messages.h"
#include "runtime/invariant.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool is_same(const msg_t *a, const msg_t *b)
{
    /* Encoded, since padding and unused list entries differ. */
    static uint8_t left[1 << 20], right[1 << 20];
    size_t left_size = msg_encode(a, left, sizeof left);
    size_t right_size = msg_encode(b, right, sizeof right);
    return left_size == right_size && memcmp(left, right, left_size) == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static msg_t heard, again;
    static uint8_t frame[1 << 20];
    size_t at = 0, used = 0;
    while (at < size && msg_decode(&heard, data + at, size - at, &used) == ERR_OK) {
        invariant(used > 0 && used <= size - at);
        invariant(msg_descs[heard.type].tag < TAG_LOCAL);
        at += used;
        /* The encoder holds our own values to the same ranges: a value out of range would abort
         * here. */
        size_t encoded = msg_encode(&heard, frame, sizeof frame);
        if (encoded == 0) continue;
        err_t error = msg_decode(&again, frame, encoded, &used);
        invariant(error == ERR_OK && used == encoded);
        invariant(is_same(&heard, &again));
    }
    return 0;
}
