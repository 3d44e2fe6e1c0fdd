/* tests/proto/test_codec.c - what one actor says is what the other hears, and nonsense is refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "proto/messages.h"
#include "tests/proto/random_message.h"

#include <msgpack.h>
#include <stdlib.h>

enum { FRAME_BYTES = 1 << 20, ROUNDS = 200 };
static uint8_t frame[FRAME_BYTES], other[FRAME_BYTES];
static msg_t sent, heard;

/* ---- comparing and checking ---- */

static void assert_fields_equal(const field_desc_t *fields, size_t count, const uint8_t *a,
                                const uint8_t *b)
{
    for (const field_desc_t *field = fields; field < fields + count; field++) {
        size_t step = field->type == TYPE_u32 || field->type == TYPE_f32 ? 4 : 8;
        const uint8_t *left = a + field->offset, *right = b + field->offset;
        u32 n;
        bytes_t x, y;
        switch (field->kind) {
        case KIND_FIELD:
            assert_memory_equal(left, right, step);
            break;
        case KIND_TEXT:
            assert_string_equal((const char *)left, (const char *)right);
            break;
        case KIND_LIST:
            assert_memory_equal(a + field->count_offset, b + field->count_offset, 4);
            memcpy(&n, a + field->count_offset, sizeof n);
            if (n > 0) assert_memory_equal(left, right, n * step);
            break;
        case KIND_BYTES:
            memcpy(&x, left, sizeof x);
            memcpy(&y, right, sizeof y);
            assert_int_equal(x.size, y.size);
            if (x.size > 0) assert_memory_equal(x.data, y.data, x.size);
            break;
        case KIND_GROUP:
            assert_fields_equal(field->group, field->group_count, left, right);
            break;
        }
    }
}

static void assert_messages_equal(const msg_t *a, const msg_t *b)
{
    const msg_desc_t *desc = &msg_descs[a->type];
    assert_int_equal(a->type, b->type);
    assert_memory_equal(&a->header, &b->header, offsetof(header_t, from));
    assert_fields_equal(desc->fields, desc->field_count, (const uint8_t *)a, (const uint8_t *)b);
}

static bool is_real_in_range(const field_desc_t *field, double value)
{
    bool is_free = !(field->least < 0 || field->most > 0);
    return !isnan(value) && (is_free || (value >= field->least && value <= field->most));
}

static void assert_scalar_in_range(const field_desc_t *field, const uint8_t *value)
{
    u32 word;
    u64 wide;
    f32 single;
    f64 real;
    switch (field->type) {
    case TYPE_u32:
        memcpy(&word, value, 4);
        assert_true(word <= field->max);
        break;
    case TYPE_u64:
        memcpy(&wide, value, 8);
        assert_true(wide <= field->max);
        break;
    case TYPE_f32:
        memcpy(&single, value, 4);
        assert_true(is_real_in_range(field, (double)single));
        break;
    case TYPE_f64:
        memcpy(&real, value, 8);
        assert_true(is_real_in_range(field, real));
        break;
    }
}

static void assert_fields_in_range(const field_desc_t *fields, size_t count, const uint8_t *base,
                                   const uint8_t *buf, size_t len)
{
    for (const field_desc_t *field = fields; field < fields + count; field++) {
        size_t step = field->type == TYPE_u32 || field->type == TYPE_f32 ? 4 : 8;
        const uint8_t *value = base + field->offset;
        u32 n;
        bytes_t bytes;
        switch (field->kind) {
        case KIND_FIELD:
            assert_scalar_in_range(field, value);
            break;
        case KIND_TEXT:
            assert_true(strlen((const char *)value) <= field->count_max);
            break;
        case KIND_LIST:
            memcpy(&n, base + field->count_offset, sizeof n);
            assert_true(n <= field->count_max);
            for (u32 i = 0; i < n; i++) assert_scalar_in_range(field, value + i * step);
            break;
        case KIND_BYTES:
            memcpy(&bytes, value, sizeof bytes);
            assert_true(bytes.size <= field->count_max);
            assert_true((const uint8_t *)bytes.data >= buf);
            assert_true((const uint8_t *)bytes.data + bytes.size <= buf + len);
            break;
        case KIND_GROUP:
            assert_fields_in_range(field->group, field->group_count, value, buf, len);
            break;
        }
    }
}

/* A copy of exactly len bytes, so that the address sanitizer sees every read past the end. */
static err_t decode_exact(const uint8_t *buf, size_t len, msg_t *m)
{
    uint8_t *copy = malloc(len > 0 ? len : 1);
    size_t used = 0;
    memcpy(copy, buf, len);
    err_t error = msg_decode(m, copy, len, &used);
    if (error == ERR_OK) {
        const msg_desc_t *desc = &msg_descs[m->type];
        assert_true(used <= len);
        assert_fields_in_range(desc->fields, desc->field_count, (const uint8_t *)m, copy, len);
    }
    free(copy);
    return error;
}

/* ---- properties over every message ---- */

/* If it failed, some value of some message would arrive changed. */
static void test_codec_random_messages_arrive_unchanged(void **state)
{
    u64 seed = 1;
    for (msg_type_t type = 0; type < MSG_COUNT; type++) {
        if (msg_descs[type].tag >= TAG_LOCAL) continue;
        for (int round = 0; round < ROUNDS; round++) {
            size_t used = 0;
            random_message(&seed, type, &sent);
            size_t size = msg_encode(&sent, frame, sizeof frame);
            assert_true(size > 0);
            assert_int_equal(msg_decode(&heard, frame, size, &used), ERR_OK);
            assert_int_equal(used, size);
            assert_messages_equal(&sent, &heard);
        }
    }
}

/* If it failed, frames that carry several messages would lose all but the first. */
static void test_codec_messages_behind_each_other_are_all_heard(void **state)
{
    u64 seed = 2;
    for (int round = 0; round < 50; round++) {
        static msg_t list[8];
        size_t size = 0, at = 0;
        for (int i = 0; i < 8; i++) {
            msg_type_t type = (msg_type_t)(random_next(&seed) % MSG_peer_up);
            random_message(&seed, type, &list[i]);
            size_t step = msg_encode(&list[i], frame + size, sizeof frame - size);
            if (step == 0) break;
            size += step;
        }
        for (int i = 0; at < size; i++) {
            size_t used = 0;
            assert_int_equal(msg_decode(&heard, frame + at, size - at, &used), ERR_OK);
            assert_messages_equal(&list[i], &heard);
            at += used;
        }
        assert_int_equal(at, size);
    }
}

/* If it failed, the encoder would write past a buffer that is too small. */
static void test_codec_small_buffer_encodes_nothing(void **state)
{
    u64 seed = 3;
    for (msg_type_t type = 0; type < MSG_COUNT; type++) {
        if (msg_descs[type].tag >= TAG_LOCAL) continue;
        random_message(&seed, type, &sent);
        size_t size = msg_encode(&sent, frame, sizeof frame);
        for (size_t cap = 0; cap < size; cap += 1 + cap / 8) {
            uint8_t *exact = malloc(cap > 0 ? cap : 1);
            assert_int_equal(msg_encode(&sent, exact, cap), 0);
            free(exact);
        }
    }
}

/* Short enough to try every cut and every byte. */
static size_t small_frame(u64 *seed, msg_type_t type)
{
    size_t size = 0;
    do {
        random_message(seed, type, &sent);
        size = msg_encode(&sent, frame, sizeof frame);
    } while (size > 700 + msg_descs[type].wire_count * 40);
    return size;
}

/* If it failed, half a frame could crash an actor or pass as a whole one. */
static void test_codec_every_truncation_is_refused(void **state)
{
    u64 seed = 4;
    for (msg_type_t type = 0; type < MSG_COUNT; type++) {
        if (msg_descs[type].tag >= TAG_LOCAL) continue;
        size_t size = small_frame(&seed, type);
        for (size_t cut = 0; cut < size; cut++) {
            assert_int_equal(decode_exact(frame, cut, &heard), ERR_FRAME);
        }
    }
}

/* If it failed, one wrong byte from a peer could crash an actor or bring it a value out of range.
 */
static void test_codec_every_changed_byte_is_refused_or_in_range(void **state)
{
    u64 seed = 5;
    size_t accepted = 0, refused = 0;
    for (msg_type_t type = 0; type < MSG_COUNT; type++) {
        if (msg_descs[type].tag >= TAG_LOCAL) continue;
        size_t size = small_frame(&seed, type);
        for (size_t at = 0; at < size; at++) {
            uint8_t before = frame[at];
            for (int value = 0; value < 256; value += at < 48 ? 1 : 7) {
                frame[at] = (uint8_t)value;
                if (decode_exact(frame, size, &heard) == ERR_OK) {
                    accepted++;
                } else {
                    refused++;
                }
            }
            frame[at] = before;
        }
    }
    assert_true(accepted > 1000);
    assert_true(refused > 1000);
}

/* If it failed, our frames would not be msgpack to msgpack-c's own unpacker, and so not to other
 * languages. */
static void test_codec_frames_are_msgpack_to_the_library(void **state)
{
    u64 seed = 6;
    for (msg_type_t type = 0; type < MSG_COUNT; type++) {
        if (msg_descs[type].tag >= TAG_LOCAL) continue;
        random_message(&seed, type, &sent);
        size_t size = msg_encode(&sent, frame, sizeof frame), at = 0;
        msgpack_unpacked unpacked;
        msgpack_unpacked_init(&unpacked);
        assert_int_equal(msgpack_unpack_next(&unpacked, (const char *)frame, size, &at),
                         MSGPACK_UNPACK_SUCCESS);
        assert_int_equal(unpacked.data.type, MSGPACK_OBJECT_ARRAY);
        const msgpack_object *header = unpacked.data.via.array.ptr;
        assert_int_equal(unpacked.data.via.array.size, 8);
        assert_int_equal(header[0].via.u64, PROTOCOL_VERSION);
        assert_int_equal(header[1].via.u64, msg_descs[type].tag);
        assert_int_equal(header[2].type, MSGPACK_OBJECT_BIN);
        assert_int_equal(header[2].via.bin.size, 16);
        assert_int_equal((uint8_t)header[2].via.bin.ptr[0], sent.header.request.hi >> 56);
        assert_int_equal((uint8_t)header[2].via.bin.ptr[15], sent.header.request.lo & 0xff);
        assert_int_equal(header[4].via.u64, sent.header.epoch);
        assert_int_equal(msgpack_unpack_next(&unpacked, (const char *)frame, size, &at),
                         MSGPACK_UNPACK_SUCCESS);
        assert_int_equal(unpacked.data.via.array.size, msg_descs[type].wire_count);
        assert_int_equal(at, size);
        msgpack_unpacked_destroy(&unpacked);
    }
}

/* ---- frames written by hand ---- */

typedef struct {
    uint8_t bytes[512];
    size_t size;
} hand_t;

static void put(hand_t *hand, const void *bytes, size_t size)
{
    memcpy(hand->bytes + hand->size, bytes, size);
    hand->size += size;
}
#define PUT(hand, ...)                                                                             \
    put(hand, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

/* Version 1, this tag, a zero id, attempt 7, epoch 1, to_epoch 2, sequence 3, sent_us 4. */
static hand_t hand_header(uint8_t tag)
{
    hand_t hand = { .size = 0 };
    PUT(&hand, 0x98, 1, 0xcc, tag, 0xc4, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    PUT(&hand, 7, 1, 2, 3, 4);
    return hand;
}

static err_t decode_hand(const hand_t *hand)
{
    return decode_exact(hand->bytes, hand->size, &heard);
}

/* If it failed, clients whose libraries choose other widths (or signed ones) could not talk to us.
 */
static void test_codec_every_integer_width_is_the_same_number(void **state)
{
    static const uint8_t widths[][9] = {
        { 1, 5 },       { 2, 0xcc, 5 },    { 3, 0xcd, 0, 5 },       { 5, 0xce, 0, 0, 0, 5 },
        { 2, 0xd0, 5 }, { 3, 0xd1, 0, 5 }, { 5, 0xd2, 0, 0, 0, 5 },
    };
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        hand_t hand = hand_header(38); /* decode_done */
        PUT(&hand, 0x91);
        put(&hand, widths[i] + 1, widths[i][0]);
        assert_int_equal(decode_hand(&hand), ERR_OK);
        assert_int_equal(heard.decode_done.blocks, 5);
        assert_int_equal(heard.header.attempt, 7);
    }
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        hand_t hand = hand_header(51); /* store_taken */
        PUT(&hand, 0x91, (uint8_t)(is_signed ? 0xd3 : 0xcf), 0x71, 2, 3, 4, 5, 6, 7, 8);
        assert_int_equal(decode_hand(&hand), ERR_OK);
        assert_true(heard.store_taken.offer == 0x7102030405060708ull);
    }
}

/* If it failed, a negative number would become a huge one. */
static void test_codec_negative_integers_are_refused(void **state)
{
    static const uint8_t values[][10] = {
        { 1, 0xff },
        { 1, 0xe0 },
        { 2, 0xd0, 0x80 },
        { 3, 0xd1, 0xff, 0xfe },
        { 5, 0xd2, 0x80, 0, 0, 0 },
        { 9, 0xd3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
    };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        hand_t hand = hand_header(51);
        PUT(&hand, 0x91);
        put(&hand, values[i] + 1, values[i][0]);
        assert_int_equal(decode_hand(&hand), ERR_FRAME);
    }
}

/* If it failed, a peer could bring an actor a number or a type that its handler does not expect. */
static void test_codec_wrong_types_and_ranges_are_refused(void **state)
{
    static const uint8_t values[][8] = {
        { 5, 0xce, 1, 0, 0, 1 },    /* BLOCKS_MAX + 1 */
        { 1, 0xc0 },                /* nil */
        { 1, 0xc1 },                /* never used */
        { 1, 0xc3 },                /* true */
        { 2, 0xa1, '5' },           /* str */
        { 3, 0xc4, 1, 5 },          /* bin */
        { 5, 0xca, 0x40, 0, 0, 0 }, /* 2.0 */
        { 2, 0x91, 5 },             /* array */
        { 1, 0x80 },                /* map */
        { 3, 0xd4, 1, 5 },          /* ext */
    };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        hand_t hand = hand_header(38);
        PUT(&hand, 0x91);
        put(&hand, values[i] + 1, values[i][0]);
        assert_int_equal(decode_hand(&hand), ERR_FRAME);
    }
}

/* If it failed, a newer peer could not talk to an older one; or a deep nest would exhaust the
 * stack. */
static void test_codec_unknown_trailing_fields_are_skipped(void **state)
{
    hand_t hand = { .size = 0 };
    PUT(&hand, 0x99, 1, 38, 0xc4, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 1, 2, 3,
        4);
    PUT(&hand, 0x81, 0xa1, 'k', 0x92, 0xc0, 0xc3); /* the header's ninth: {"k": [nil, true]} */
    PUT(&hand, 0x95, 5, 0xd6, 9, 1, 2, 3, 4, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0xda, 0, 2, 'h', 'i');
    for (int i = 0; i < 200; i++) PUT(&hand, 0x91);
    PUT(&hand, 0xc7, 1, 4, 0xff);
    size_t used = 0;
    PUT(&hand, 0xaa); /* what lies behind is another message's */
    assert_int_equal(msg_decode(&heard, hand.bytes, hand.size, &used), ERR_OK);
    assert_int_equal(used, hand.size - 1);
    assert_int_equal(heard.decode_done.blocks, 5);
}

/* If it failed, a short body would leave fields unset. */
static void test_codec_missing_fields_are_refused(void **state)
{
    hand_t hand = hand_header(38);
    PUT(&hand, 0x90);
    assert_int_equal(decode_hand(&hand), ERR_FRAME);
}

/* If it failed, a peer could forge a completion of our own engine, or speak a version we do not
 * know. */
static void test_codec_local_tags_and_foreign_versions_are_refused(void **state)
{
    hand_t hand = hand_header(200);
    PUT(&hand, 0x93, 1, 1, 1);
    assert_int_equal(decode_hand(&hand), ERR_FRAME);
    hand = hand_header(199);
    PUT(&hand, 0x90);
    assert_int_equal(decode_hand(&hand), ERR_FRAME);
    hand = hand_header(4); /* status_request: no fields */
    PUT(&hand, 0x90);
    assert_int_equal(decode_hand(&hand), ERR_OK);
    hand.bytes[1] = 2;
    assert_int_equal(decode_hand(&hand), ERR_FRAME);
    hand.bytes[1] = 0;
    assert_int_equal(decode_hand(&hand), ERR_FRAME);
}

/* If it failed, a count of four thousand million would be looped over, or memory reserved for it.
 */
static void test_codec_lying_counts_are_refused(void **state)
{
    hand_t hand = hand_header(60); /* expert_load */
    PUT(&hand, 0x92, 1, 0xdd, 0xff, 0xff, 0xff, 0xff, 1);
    assert_int_equal(decode_hand(&hand), ERR_FRAME);
    hand = hand_header(55); /* prefix_added */
    PUT(&hand, 0x92, 1, 0xc6, 0xff, 0xff, 0xff, 0xff, 1);
    assert_int_equal(decode_hand(&hand), ERR_FRAME);
    hand = hand_header(38);
    PUT(&hand, 0xdf, 0xff, 0xff, 0xff, 0xff, 1);
    assert_int_equal(decode_hand(&hand), ERR_FRAME);
}

/* ---- floats and texts ---- */

/* prefilled up to its float, which is given. */
static err_t decode_logprob(const uint8_t *value, size_t size)
{
    hand_t hand = hand_header(30);
    PUT(&hand, 0x95, 1, 2);
    put(&hand, value, size);
    PUT(&hand, 0x90, 0x90);
    return decode_hand(&hand);
}
#define LOGPROB(...)                                                                               \
    decode_logprob((const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

/* If it failed, a NaN would poison every sum it meets, or a client that writes 1 for 1.0 were
 * refused. */
static void test_codec_floats_of_every_form_are_heard_but_nan_is_refused(void **state)
{
    assert_int_equal(LOGPROB(0xca, 0xbf, 0x80, 0, 0), ERR_OK);
    assert_true(heard.prefilled.logprob == -1.0f);
    assert_int_equal(LOGPROB(0xcb, 0xbf, 0xe0, 0, 0, 0, 0, 0, 0), ERR_OK);
    assert_true(heard.prefilled.logprob == -0.5f);
    assert_int_equal(LOGPROB(0xfe), ERR_OK);
    assert_true(heard.prefilled.logprob == -2.0f);
    assert_int_equal(LOGPROB(3), ERR_OK);
    assert_true(heard.prefilled.logprob == 3.0f);
    assert_int_equal(LOGPROB(0xca, 0xff, 0x80, 0, 0), ERR_OK);
    assert_true(isinf(heard.prefilled.logprob));
    assert_int_equal(LOGPROB(0xca, 0x7f, 0xc0, 0, 0), ERR_FRAME);
    assert_int_equal(LOGPROB(0xcb, 0xff, 0xf0, 0, 0, 0, 0, 0, 1), ERR_FRAME);
    assert_int_equal(LOGPROB(0xcb, 0x7f, 0xe0, 0, 0, 0, 0, 0, 0), ERR_FRAME); /* 9e307: no f32 */
}

/* If it failed, a client could sample with a temperature of -1. */
static void test_codec_sampling_out_of_range_is_refused(void **state)
{
    for (int is_good = 0; is_good < 2; is_good++) {
        msg_init(&sent, MSG_client_submit);
        sent.client_submit.sampling = sampling_default;
        sent.client_submit.sampling.temperature = 1.5f;
        size_t size = msg_encode(&sent, frame, sizeof frame);
        uint8_t *at = memmem(frame, size, "\xca\x3f\xc0\x00\x00", 5);
        assert_non_null(at);
        memcpy(at + 1, is_good ? "\x40\x00\x00\x00" : "\x40\x00\x00\x01",
               4); /* 2, and just above */
        assert_int_equal(decode_exact(frame, size, &heard), is_good ? ERR_OK : ERR_FRAME);
    }
}

static err_t decode_version(const char *text, size_t size)
{
    hand_t hand = hand_header(1); /* hello */
    PUT(&hand, 0x94, 1, 0, 0, 0xd9, (uint8_t)size);
    put(&hand, text, size);
    return decode_hand(&hand);
}

/* If it failed, malformed UTF-8 or an embedded NUL would reach logs and clients. */
static void test_codec_malformed_texts_are_refused(void **state)
{
    static const char *const bad[] = { "\x80",         "\xc0\x80",         "\xc3",
                                       "\xe0\x80\x80", "\xed\xa0\x80",     "\xf0\x80\x80\x80",
                                       "\xe2\x82",     "\xf4\x90\x80\x80", "\xff" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(decode_version(bad[i], strlen(bad[i])), ERR_FRAME);
    }
    assert_int_equal(decode_version("a\0b", 3), ERR_FRAME);
    assert_int_equal(decode_version("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80", 15),
                     ERR_OK);
    assert_string_equal(heard.hello.version, "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80");
    assert_int_equal(decode_version("0123456789012345678901234567890", 31), ERR_OK);
    assert_int_equal(decode_version("01234567890123456789012345678901", 32), ERR_FRAME);
}

/* If it failed, an error text cut to its field's size would make the peer refuse the whole frame.
 */
static void test_codec_text_cut_inside_a_character_loses_only_that(void **state)
{
    size_t used;
    msg_init(&sent, MSG_hello);
    memcpy(sent.hello.version, "0123456789012345678901234567 \xe2\x82", 31);
    size_t size = msg_encode(&sent, frame, sizeof frame);
    assert_int_equal(msg_decode(&heard, frame, size, &used), ERR_OK);
    assert_string_equal(heard.hello.version, "0123456789012345678901234567 ");
}

/* If it failed, the largest prompt allowed would not fit a frame. */
static void test_codec_largest_submit_fits(void **state)
{
    uint8_t *tokens = calloc(1, 4 * CONTEXT_MAX), *buf = malloc(MESSAGE_BYTES_MAX);
    size_t used = 0;
    msg_init(&sent, MSG_submit);
    sent.submit.sampling = sampling_default;
    sent.submit.prompt_count = CONTEXT_MAX;
    sent.submit.tokens = (bytes_t){ tokens, 4 * CONTEXT_MAX };
    sent.submit.keys = (bytes_t){ tokens, 16 * KEYS_MAX };
    size_t size = msg_encode(&sent, buf, MESSAGE_BYTES_MAX);
    assert_true(size > 4 * CONTEXT_MAX);
    assert_int_equal(msg_decode(&heard, buf, size, &used), ERR_OK);
    assert_int_equal(used, size);
    assert_int_equal(heard.submit.tokens.size, 4 * CONTEXT_MAX);
    free(tokens);
    free(buf);
}

/* If it failed, an actor could be built whose tags collide or whose defaults are not legal. */
static void test_descs_tables_are_consistent(void **state)
{
    bool seen[256] = { false };
    for (msg_type_t type = 0; type < MSG_COUNT; type++) {
        const msg_desc_t *desc = &msg_descs[type];
        assert_true(desc->tag > 0 && desc->tag < 256);
        assert_false(seen[desc->tag]);
        seen[desc->tag] = true;
        assert_true(desc->doc[0] != 0);
        assert_true((type >= MSG_peer_up) == (desc->tag >= TAG_LOCAL));
    }
    msg_init(&sent, MSG_submit);
    sent.submit.sampling = sampling_default;
    assert_true(msg_encode(&sent, other, sizeof other) > 0);
    assert_string_equal(role_names[ROLE_client], "client");
    assert_string_equal(role_names[ROLE_supervisor], "supervisor");
    assert_int_equal(error_descs[ERR_OVERLOAD].http_status, 429);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codec_random_messages_arrive_unchanged),
        cmocka_unit_test(test_codec_messages_behind_each_other_are_all_heard),
        cmocka_unit_test(test_codec_small_buffer_encodes_nothing),
        cmocka_unit_test(test_codec_every_truncation_is_refused),
        cmocka_unit_test(test_codec_every_changed_byte_is_refused_or_in_range),
        cmocka_unit_test(test_codec_frames_are_msgpack_to_the_library),
        cmocka_unit_test(test_codec_every_integer_width_is_the_same_number),
        cmocka_unit_test(test_codec_negative_integers_are_refused),
        cmocka_unit_test(test_codec_wrong_types_and_ranges_are_refused),
        cmocka_unit_test(test_codec_unknown_trailing_fields_are_skipped),
        cmocka_unit_test(test_codec_missing_fields_are_refused),
        cmocka_unit_test(test_codec_local_tags_and_foreign_versions_are_refused),
        cmocka_unit_test(test_codec_lying_counts_are_refused),
        cmocka_unit_test(test_codec_floats_of_every_form_are_heard_but_nan_is_refused),
        cmocka_unit_test(test_codec_sampling_out_of_range_is_refused),
        cmocka_unit_test(test_codec_malformed_texts_are_refused),
        cmocka_unit_test(test_codec_text_cut_inside_a_character_loses_only_that),
        cmocka_unit_test(test_codec_largest_submit_fits),
        cmocka_unit_test(test_descs_tables_are_consistent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
