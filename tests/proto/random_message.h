/* tests/proto/random_message.h - random well-formed messages of any type, for properties of the
 * codec. */
#ifndef TESTS_PROTO_RANDOM_MESSAGE_H
#define TESTS_PROTO_RANDOM_MESSAGE_H

#include "proto/messages.h"

#include <math.h>
#include <string.h>

/* splitmix64: enough for tests, and the same everywhere. */
static inline u64 random_next(u64 *state)
{
    u64 z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* Values of every width up to max, the limits themselves often. */
static inline u64 random_up_to(u64 *state, u64 max)
{
    u64 kind = random_next(state) % 8;
    if (kind == 0) return 0;
    if (kind == 1) return max;
    u64 value = random_next(state) >> (random_next(state) % 64);
    return max == UINT64_MAX ? value : value % (max + 1);
}

static inline double random_float(u64 *state, const field_desc_t *field)
{
    double least = field->least, most = field->most;
    u64 kind = random_next(state) % 8;
    if (!(least < 0 || most > 0)) {
        if (kind == 0) return -INFINITY;
        if (kind == 1) return (double)-3.4028234e38f;
        return (double)(float)((double)(int64_t)random_next(state) * 1e-15);
    }
    if (kind == 0) return least;
    if (kind == 1) return most;
    double share = (double)(random_next(state) >> 11) / 9007199254740992.0;
    double value = (double)(float)(least + (most - least) * share);
    return value < least ? least : value > most ? most : value;
}

static inline void random_scalar(u64 *state, const field_desc_t *field, void *out)
{
    u64 number = random_up_to(state, field->max);
    u32 word = (u32)number;
    double real = random_float(state, field);
    float single = (float)real;
    switch (field->type) {
    case TYPE_u32:
        memcpy(out, &word, sizeof word);
        break;
    case TYPE_u64:
        memcpy(out, &number, sizeof number);
        break;
    case TYPE_f32:
        memcpy(out, &single, sizeof single);
        break;
    case TYPE_f64:
        memcpy(out, &real, sizeof real);
        break;
    }
}

/* What BYTES fields of random messages point to. */
enum { RANDOM_BYTES = 1 << 16 };
static uint8_t random_bytes[RANDOM_BYTES];

static inline void random_fields(u64 *state, const field_desc_t *fields, size_t count,
                                 uint8_t *base)
{
    for (const field_desc_t *field = fields; field < fields + count; field++) {
        uint8_t *value = base + field->offset;
        u64 most = field->count_max < RANDOM_BYTES ? field->count_max : RANDOM_BYTES;
        u32 size = (u32)random_up_to(state, most);
        size_t step = field->type == TYPE_u32 || field->type == TYPE_f32 ? 4 : 8;
        bytes_t bytes = { .data = random_bytes, .size = size };
        switch (field->kind) {
        case KIND_FIELD:
            random_scalar(state, field, value);
            break;
        case KIND_TEXT:
            for (u32 i = 0; i < size; i++) value[i] = (uint8_t)(1 + random_next(state) % 127);
            break;
        case KIND_LIST:
            memcpy(base + field->count_offset, &size, sizeof size);
            for (u32 i = 0; i < size; i++) random_scalar(state, field, value + i * step);
            break;
        case KIND_BYTES:
            memcpy(value, &bytes, sizeof bytes);
            break;
        case KIND_GROUP:
            random_fields(state, field->group, field->group_count, value);
            break;
        }
    }
}

static inline void random_message(u64 *state, msg_type_t type, msg_t *m)
{
    for (size_t i = 0; random_bytes[1] == 0 && i < RANDOM_BYTES; i++) {
        random_bytes[i] = (uint8_t)(i * 7 + 1);
    }
    msg_init(m, type);
    m->header = (header_t){
        .request = { random_next(state), random_next(state) },
        .attempt = (u32)random_up_to(state, UINT32_MAX),
        .epoch = random_up_to(state, UINT64_MAX),
        .to_epoch = random_up_to(state, UINT64_MAX),
        .sequence = random_up_to(state, UINT64_MAX),
        .sent_us = random_up_to(state, UINT64_MAX),
    };
    random_fields(state, msg_descs[type].fields, msg_descs[type].field_count, (uint8_t *)m);
}

#endif
