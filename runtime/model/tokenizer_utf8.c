/* runtime/model/tokenizer_utf8.c - UTF-8 of strangers: what is valid, what becomes U+FFFD. */
#include "tokenizer_utf8.h"

#include <string.h>

const char utf8_replacement[UTF8_REPLACEMENT_BYTES + 1] = "\xef\xbf\xbd";

/* What a lead byte allows: the length, and the range of the second byte (which excludes overlong
 * forms, surrogates and what lies beyond U+10FFFF). */
typedef struct {
    uint8_t length, least, most;
} lead_t;

static lead_t lead_of(uint8_t byte)
{
    if (byte >= 0xc2 && byte <= 0xdf) return (lead_t){ 2, 0x80, 0xbf };
    if (byte == 0xe0) return (lead_t){ 3, 0xa0, 0xbf };
    if (byte == 0xed) return (lead_t){ 3, 0x80, 0x9f };
    if (byte >= 0xe1 && byte <= 0xef) return (lead_t){ 3, 0x80, 0xbf };
    if (byte == 0xf0) return (lead_t){ 4, 0x90, 0xbf };
    if (byte >= 0xf1 && byte <= 0xf3) return (lead_t){ 4, 0x80, 0xbf };
    if (byte == 0xf4) return (lead_t){ 4, 0x80, 0x8f };
    return (lead_t){ 0, 0, 0 };
}

utf8_step_t utf8_step(const uint8_t *bytes, size_t size)
{
    if (bytes[0] < 0x80) return (utf8_step_t){ 1, UTF8_VALID };
    lead_t lead = lead_of(bytes[0]);
    if (lead.length == 0) return (utf8_step_t){ 1, UTF8_INVALID };
    for (uint32_t i = 1; i < lead.length; i++) {
        if (i == size) return (utf8_step_t){ i, UTF8_INCOMPLETE };
        uint8_t least = i == 1 ? lead.least : 0x80, most = i == 1 ? lead.most : 0xbf;
        if (bytes[i] < least || bytes[i] > most) return (utf8_step_t){ i, UTF8_INVALID };
    }
    return (utf8_step_t){ lead.length, UTF8_VALID };
}

size_t utf8_valid_size(const uint8_t *bytes, size_t size)
{
    size_t at = 0;
    while (at < size) {
        uint64_t eight;
        if (size - at >= sizeof eight) { /* eight ASCII bytes at once: nearly all text is that */
            memcpy(&eight, bytes + at, sizeof eight);
            if ((eight & 0x8080808080808080u) == 0) {
                at += sizeof eight;
                continue;
            }
        }
        utf8_step_t step = utf8_step(bytes + at, size - at);
        if (step.state != UTF8_VALID) return at;
        at += step.size;
    }
    return at;
}

size_t utf8_repair(const uint8_t *bytes, size_t size, char *out, size_t cap)
{
    size_t needed = 0, written = 0;
    int is_full = 0;
    for (size_t at = 0; at < size;) {
        utf8_step_t step = utf8_step(bytes + at, size - at);
        const void *from = step.state == UTF8_VALID ? (const void *)(bytes + at) : utf8_replacement;
        size_t length = step.state == UTF8_VALID ? step.size : UTF8_REPLACEMENT_BYTES;
        is_full |= length > cap - written;
        if (!is_full) {
            memcpy(out + written, from, length);
            written += length;
        }
        needed += length;
        at += step.size;
    }
    return needed;
}
