/* proto/codec.c - the one encoder and the one decoder; both walk the tables of descs.c.
 *
 * Encoding goes through msgpack-c's packer into a fixed buffer.  Decoding does not use msgpack-c's
 * unpacker, which builds a tree on the heap; a frame is read token by token instead, so that a
 * hostile frame costs no memory and nothing is read past its end.  Both sides of a value are
 * checked: its type and its range.
 */
#include "messages.h"

#include "../runtime/invariant.h"

#include <assert.h>
#include <math.h>
#include <msgpack.h>
#include <string.h>

enum { HEADER_FIELDS = 8, ID_BYTES = 16 };

static_assert(MSG_COUNT < UINT8_MAX, "a type must fit the table of tags");
static_assert(sizeof(f32) == 4 && sizeof(f64) == 8, "IEEE floats");

/* clang-format off */
#define FIELD(name, type, field, max, doc)
#define TEXT(name, field, max, doc)
#define LIST(name, type, field, most, max, doc)
#define BYTES(name, field, max, doc)
#define SAMPLING(name)
#define END(name)
/* Type + 1 of every tag, 0 where there is none. */
static const uint8_t type_of_tag[UINT8_MAX + 1] = {
#define MSG(name, tag, doc) [tag] = MSG_##name + 1,
#include "messages.def"
#undef MSG
};
/* clang-format on */

/* ---- UTF-8 ---- */

/* Bytes of the well-formed character at text, 0 if there is none (RFC 3629: no surrogates, shortest
 * form). */
static size_t character_size(const uint8_t *text, size_t size)
{
    if (text[0] < 0x80) return 1;
    size_t need = text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
    if (text[0] < 0xc2 || text[0] > 0xf4 || size < need) return 0;
    uint8_t least = text[0] == 0xe0 ? 0xa0 : text[0] == 0xf0 ? 0x90 : 0x80;
    uint8_t most = text[0] == 0xed ? 0x9f : text[0] == 0xf4 ? 0x8f : 0xbf;
    if (text[1] < least || text[1] > most) return 0;
    for (size_t i = 2; i < need; i++) {
        if (text[i] < 0x80 || text[i] > 0xbf) return 0;
    }
    return need;
}

/* Length of the longest well-formed beginning without a NUL byte. */
static size_t well_formed_size(const uint8_t *text, size_t size)
{
    size_t at = 0;
    while (at < size && text[at] != 0) {
        size_t step = character_size(text + at, size - at);
        if (step == 0) break;
        at += step;
    }
    return at;
}

/* ---- encoding ---- */

typedef struct {
    uint8_t *at;
    size_t left;
    bool is_full; /* sticky: looked at once, at the end */
} output_t;

static int append(void *data, const char *buf, size_t len)
{
    output_t *output = data;
    if (output->is_full || len > output->left) {
        output->is_full = true;
        return -1;
    }
    memcpy(output->at, buf, len);
    output->at += len;
    output->left -= len;
    return 0;
}

static bool is_in_range(const field_desc_t *field, double value)
{
    if (isnan(value)) return false;
    bool is_free = !(field->least < 0 || field->most > 0);
    return is_free || (value >= field->least && value <= field->most);
}

static void pack_scalar(msgpack_packer *packer, const field_desc_t *field, const void *value)
{
    u32 word;
    u64 wide;
    f32 single;
    f64 real;
    switch (field->type) {
    case TYPE_u32:
        memcpy(&word, value, sizeof word);
        invariant(word <= field->max);
        msgpack_pack_uint32(packer, word);
        return;
    case TYPE_u64:
        memcpy(&wide, value, sizeof wide);
        invariant(wide <= field->max);
        msgpack_pack_uint64(packer, wide);
        return;
    case TYPE_f32:
        memcpy(&single, value, sizeof single);
        invariant(is_in_range(field, (double)single));
        msgpack_pack_float(packer, single);
        return;
    case TYPE_f64:
        memcpy(&real, value, sizeof real);
        invariant(is_in_range(field, real));
        msgpack_pack_double(packer, real);
        return;
    }
}

static size_t scalar_size(scalar_t type)
{
    return type == TYPE_u32 || type == TYPE_f32 ? 4 : 8;
}

static void pack_list(msgpack_packer *packer, const field_desc_t *field, const uint8_t *base)
{
    u32 count;
    memcpy(&count, base + field->count_offset, sizeof count);
    invariant(count <= field->count_max);
    msgpack_pack_array(packer, count);
    size_t step = scalar_size(field->type);
    for (u32 i = 0; i < count; i++) pack_scalar(packer, field, base + field->offset + i * step);
}

/* A text that was cut inside a character is sent without the broken rest: peers refuse malformed
 * UTF-8. */
static void pack_text(msgpack_packer *packer, const field_desc_t *field, const uint8_t *text)
{
    size_t size = strnlen((const char *)text, (size_t)field->count_max + 1);
    invariant(size <= field->count_max);
    size = well_formed_size(text, size);
    msgpack_pack_str(packer, size);
    msgpack_pack_str_body(packer, text, size);
}

static void pack_bytes(msgpack_packer *packer, const field_desc_t *field, const void *value)
{
    bytes_t bytes;
    memcpy(&bytes, value, sizeof bytes);
    invariant(bytes.size <= field->count_max);
    msgpack_pack_bin(packer, bytes.size);
    if (bytes.size > 0) msgpack_pack_bin_body(packer, bytes.data, bytes.size);
}

static void pack_fields(msgpack_packer *packer, const field_desc_t *fields, size_t count,
                        const uint8_t *base)
{
    for (const field_desc_t *field = fields; field < fields + count; field++) {
        const uint8_t *value = base + field->offset;
        switch (field->kind) {
        case KIND_FIELD:
            pack_scalar(packer, field, value);
            break;
        case KIND_TEXT:
            pack_text(packer, field, value);
            break;
        case KIND_LIST:
            pack_list(packer, field, base);
            break;
        case KIND_BYTES:
            pack_bytes(packer, field, value);
            break;
        case KIND_GROUP:
            pack_fields(packer, field->group, field->group_count, value);
            break;
        }
    }
}

static void pack_header(msgpack_packer *packer, const header_t *header, u32 tag)
{
    uint8_t id[ID_BYTES];
    _msgpack_store64(id, header->request.hi);
    _msgpack_store64(id + 8, header->request.lo);
    msgpack_pack_array(packer, HEADER_FIELDS);
    msgpack_pack_uint32(packer, PROTOCOL_VERSION);
    msgpack_pack_uint32(packer, tag);
    msgpack_pack_bin(packer, sizeof id);
    msgpack_pack_bin_body(packer, id, sizeof id);
    msgpack_pack_uint32(packer, header->attempt);
    msgpack_pack_uint64(packer, header->epoch);
    msgpack_pack_uint64(packer, header->to_epoch);
    msgpack_pack_uint64(packer, header->sequence);
    msgpack_pack_uint64(packer, header->sent_us);
}

size_t msg_encode(const msg_t *m, uint8_t *buf, size_t cap)
{
    invariant(m->type < MSG_COUNT);
    const msg_desc_t *desc = &msg_descs[m->type];
    invariant(desc->tag < TAG_LOCAL);
    if (cap > MESSAGE_BYTES_MAX) cap = MESSAGE_BYTES_MAX;
    output_t output = { .at = buf, .left = cap };
    msgpack_packer packer;
    msgpack_packer_init(&packer, &output, append);
    pack_header(&packer, &m->header, desc->tag);
    msgpack_pack_array(&packer, desc->wire_count);
    pack_fields(&packer, desc->fields, desc->field_count, (const uint8_t *)m);
    return output.is_full ? 0 : cap - output.left;
}

/* ---- decoding ---- */

typedef enum {
    TOKEN_BAD, /* the frame ends inside it, or its first byte is never used */
    TOKEN_UINT,
    TOKEN_NEGATIVE,
    TOKEN_FLOAT,
    TOKEN_STR,
    TOKEN_BIN,
    TOKEN_ARRAY,
    TOKEN_MAP,
    TOKEN_OTHER, /* nil, booleans, extensions: in no field of ours */
} token_kind_t;

typedef struct {
    token_kind_t kind;
    u64 number; /* UINT: value; NEGATIVE: two's complement; STR, BIN: bytes; ARRAY, MAP: entries */
    double real;
    const uint8_t *data; /* STR, BIN */
} token_t;

typedef struct {
    const uint8_t *at, *end;
} input_t;

static size_t left(const input_t *input)
{
    return (size_t)(input->end - input->at);
}

/* Big-endian number of 1, 2, 4 or 8 bytes; 0 if the frame ends before, which the caller has
 * checked. */
static u64 load(const uint8_t *from, size_t size)
{
    uint16_t half;
    u32 word;
    u64 wide;
    switch (size) {
    case 1:
        return from[0];
    case 2:
        _msgpack_load16(uint16_t, from, &half);
        return half;
    case 4:
        _msgpack_load32(u32, from, &word);
        return word;
    default:
        _msgpack_load64(u64, from, &wide);
        return wide;
    }
}

static bool take_number(input_t *input, size_t size, u64 *number)
{
    if (left(input) < size) return false;
    *number = load(input->at, size);
    input->at += size;
    return true;
}

/* Payload of a str, bin or ext whose size is known. */
static token_t take_payload(input_t *input, token_kind_t kind, u64 size)
{
    if (left(input) < size) return (token_t){ .kind = TOKEN_BAD };
    token_t token = { .kind = kind, .number = size, .data = input->at };
    input->at += size;
    return token;
}

/* Every entry takes at least a byte, so a count above what is left is a lie: refused before any
 * loop. */
static token_t take_container(input_t *input, token_kind_t kind, u64 count)
{
    u64 least = kind == TOKEN_MAP ? 2 * count : count;
    if (least > left(input)) return (token_t){ .kind = TOKEN_BAD };
    return (token_t){ .kind = kind, .number = count };
}

static token_t integer_token(u64 number, size_t size, bool is_signed)
{
    if (!is_signed) return (token_t){ .kind = TOKEN_UINT, .number = number };
    u64 sign = 1ull << (size * 8 - 1);
    bool is_negative = (number & sign) != 0;
    u64 extended = is_negative && size < 8 ? number | ~(sign * 2 - 1) : number;
    return (token_t){ .kind = is_negative ? TOKEN_NEGATIVE : TOKEN_UINT, .number = extended };
}

static token_t float_token(u64 number, size_t size)
{
    token_t token = { .kind = TOKEN_FLOAT };
    if (size == 8) {
        memcpy(&token.real, &number, sizeof token.real);
        return token;
    }
    u32 word = (u32)number;
    f32 single;
    memcpy(&single, &word, sizeof single);
    token.real = (double)single;
    return token;
}

/* What follows one of the first bytes 0xc0 to 0xdf: a number of this many bytes, and its meaning.
 */
typedef struct {
    uint8_t size;
    token_kind_t kind;
    uint8_t is_signed;
    uint8_t is_ext; /* one byte of type precedes the payload */
} lead_t;

static const lead_t leads[32] = {
    [0x00] = { 0, TOKEN_OTHER, 0, 0 },  [0x01] = { 0, TOKEN_BAD, 0, 0 },
    [0x02] = { 0, TOKEN_OTHER, 0, 0 },  [0x03] = { 0, TOKEN_OTHER, 0, 0 },
    [0x04] = { 1, TOKEN_BIN, 0, 0 },    [0x05] = { 2, TOKEN_BIN, 0, 0 },
    [0x06] = { 4, TOKEN_BIN, 0, 0 },    [0x07] = { 1, TOKEN_OTHER, 0, 1 },
    [0x08] = { 2, TOKEN_OTHER, 0, 1 },  [0x09] = { 4, TOKEN_OTHER, 0, 1 },
    [0x0a] = { 4, TOKEN_FLOAT, 0, 0 },  [0x0b] = { 8, TOKEN_FLOAT, 0, 0 },
    [0x0c] = { 1, TOKEN_UINT, 0, 0 },   [0x0d] = { 2, TOKEN_UINT, 0, 0 },
    [0x0e] = { 4, TOKEN_UINT, 0, 0 },   [0x0f] = { 8, TOKEN_UINT, 0, 0 },
    [0x10] = { 1, TOKEN_UINT, 1, 0 },   [0x11] = { 2, TOKEN_UINT, 1, 0 },
    [0x12] = { 4, TOKEN_UINT, 1, 0 },   [0x13] = { 8, TOKEN_UINT, 1, 0 },
    [0x14] = { 0, TOKEN_OTHER, 0, 2 },  [0x15] = { 0, TOKEN_OTHER, 0, 3 },
    [0x16] = { 0, TOKEN_OTHER, 0, 5 },  [0x17] = { 0, TOKEN_OTHER, 0, 9 },
    [0x18] = { 0, TOKEN_OTHER, 0, 17 }, [0x19] = { 1, TOKEN_STR, 0, 0 },
    [0x1a] = { 2, TOKEN_STR, 0, 0 },    [0x1b] = { 4, TOKEN_STR, 0, 0 },
    [0x1c] = { 2, TOKEN_ARRAY, 0, 0 },  [0x1d] = { 4, TOKEN_ARRAY, 0, 0 },
    [0x1e] = { 2, TOKEN_MAP, 0, 0 },    [0x1f] = { 4, TOKEN_MAP, 0, 0 },
};

static token_t take_long_token(input_t *input, lead_t lead)
{
    u64 number = 0;
    if (lead.kind == TOKEN_BAD || (lead.size > 0 && !take_number(input, lead.size, &number))) {
        return (token_t){ .kind = TOKEN_BAD };
    }
    switch (lead.kind) {
    case TOKEN_UINT:
        return integer_token(number, lead.size, lead.is_signed);
    case TOKEN_FLOAT:
        return float_token(number, lead.size);
    case TOKEN_ARRAY:
    case TOKEN_MAP:
        return take_container(input, lead.kind, number);
    case TOKEN_OTHER:
        return take_payload(input, TOKEN_OTHER, number + lead.is_ext);
    default:
        return take_payload(input, lead.kind, number);
    }
}

/* The next token; a container's entries follow as tokens of their own. */
static token_t take_token(input_t *input)
{
    if (left(input) == 0) return (token_t){ .kind = TOKEN_BAD };
    uint8_t lead = *input->at++;
    if (lead < 0x80) return (token_t){ .kind = TOKEN_UINT, .number = lead };
    if (lead < 0x90) return take_container(input, TOKEN_MAP, lead & 0x0f);
    if (lead < 0xa0) return take_container(input, TOKEN_ARRAY, lead & 0x0f);
    if (lead < 0xc0) return take_payload(input, TOKEN_STR, lead & 0x1f);
    if (lead < 0xe0) return take_long_token(input, leads[lead & 0x1f]);
    return (token_t){ .kind = TOKEN_NEGATIVE, .number = ~0xffull | lead };
}

/* Skips whole values, however deep: entries still to come are counted, not stacked. */
static bool skip_values(input_t *input, u64 pending)
{
    while (pending > 0) {
        if (pending > left(input)) return false;
        token_t token = take_token(input);
        if (token.kind == TOKEN_BAD) return false;
        pending--;
        if (token.kind == TOKEN_ARRAY) pending += token.number;
        if (token.kind == TOKEN_MAP) pending += 2 * token.number;
    }
    return true;
}

static bool take_uint(input_t *input, u64 max, u64 *number)
{
    token_t token = take_token(input);
    *number = token.number;
    return token.kind == TOKEN_UINT && token.number <= max;
}

/* Integers are floats too: some clients' languages write 1.0 as 1. */
static bool take_float(input_t *input, double *value)
{
    token_t token = take_token(input);
    if (token.kind == TOKEN_UINT) {
        token.real = (double)token.number;
    } else if (token.kind == TOKEN_NEGATIVE) {
        token.real = (double)(int64_t)token.number;
    } else if (token.kind != TOKEN_FLOAT) {
        return false;
    }
    *value = token.real;
    return !isnan(token.real);
}

static bool take_scalar(input_t *input, const field_desc_t *field, void *value)
{
    u64 number;
    f64 real;
    if (field->type == TYPE_u32 || field->type == TYPE_u64) {
        u64 top = field->type == TYPE_u32 && field->max > UINT32_MAX ? UINT32_MAX : field->max;
        if (!take_uint(input, top, &number)) return false;
        u32 word = (u32)number;
        memcpy(value, field->type == TYPE_u32 ? (void *)&word : (void *)&number,
               scalar_size(field->type));
        return true;
    }
    if (!take_float(input, &real)) return false;
    if (field->type == TYPE_f64) {
        memcpy(value, &real, sizeof real);
        return is_in_range(field, real);
    }
    f32 single = (f32)real;
    memcpy(value, &single, sizeof single);
    /* A number too large for the field is out of range; an infinity is what the peer meant. */
    return (!isinf(single) || isinf(real)) && is_in_range(field, (double)single);
}

static bool take_list(input_t *input, const field_desc_t *field, uint8_t *base)
{
    token_t token = take_token(input);
    if (token.kind != TOKEN_ARRAY || token.number > field->count_max) return false;
    u32 count = (u32)token.number;
    memcpy(base + field->count_offset, &count, sizeof count);
    size_t step = scalar_size(field->type);
    for (u32 i = 0; i < count; i++) {
        if (!take_scalar(input, field, base + field->offset + i * step)) return false;
    }
    return true;
}

static bool take_text(input_t *input, const field_desc_t *field, uint8_t *text)
{
    token_t token = take_token(input);
    if (token.kind != TOKEN_STR || token.number > field->count_max) return false;
    if (well_formed_size(token.data, token.number) != token.number) return false;
    memcpy(text, token.data, token.number);
    text[token.number] = 0;
    return true;
}

/* str as well as bin: a prompt is text to a client and bytes to us. */
static bool take_bytes(input_t *input, const field_desc_t *field, void *value)
{
    token_t token = take_token(input);
    if (token.kind != TOKEN_BIN && token.kind != TOKEN_STR) return false;
    bytes_t bytes = { .data = token.data, .size = token.number };
    memcpy(value, &bytes, sizeof bytes);
    return bytes.size <= field->count_max;
}

static bool take_fields(input_t *input, const field_desc_t *fields, size_t count, uint8_t *base)
{
    bool is_good = true;
    for (const field_desc_t *field = fields; is_good && field < fields + count; field++) {
        uint8_t *value = base + field->offset;
        switch (field->kind) {
        case KIND_FIELD:
            is_good = take_scalar(input, field, value);
            break;
        case KIND_TEXT:
            is_good = take_text(input, field, value);
            break;
        case KIND_LIST:
            is_good = take_list(input, field, base);
            break;
        case KIND_BYTES:
            is_good = take_bytes(input, field, value);
            break;
        case KIND_GROUP:
            is_good = take_fields(input, field->group, field->group_count, value);
            break;
        }
    }
    return is_good;
}

static bool take_id(input_t *input, request_id_t *id)
{
    token_t token = take_token(input);
    if (token.kind != TOKEN_BIN || token.number != ID_BYTES) return false;
    id->hi = load(token.data, 8);
    id->lo = load(token.data + 8, 8);
    return true;
}

/* The header's array, newer fields at its end included.  *tag is a known one that may travel. */
static bool take_header(input_t *input, header_t *header, u64 *tag)
{
    u64 version, attempt;
    token_t array = take_token(input);
    if (array.kind != TOKEN_ARRAY || array.number < HEADER_FIELDS) return false;
    if (!take_uint(input, PROTOCOL_VERSION, &version) || version != PROTOCOL_VERSION) return false;
    if (!take_uint(input, TAG_LOCAL - 1, tag) || type_of_tag[*tag] == 0) return false;
    if (!take_id(input, &header->request)) return false;
    if (!take_uint(input, UINT32_MAX, &attempt)) return false;
    header->attempt = (u32)attempt;
    return take_uint(input, UINT64_MAX, &header->epoch) &&
           take_uint(input, UINT64_MAX, &header->to_epoch) &&
           take_uint(input, UINT64_MAX, &header->sequence) &&
           take_uint(input, UINT64_MAX, &header->sent_us) &&
           skip_values(input, array.number - HEADER_FIELDS);
}

void msg_init(msg_t *m, msg_type_t type)
{
    invariant(type < MSG_COUNT);
    memset(m, 0, offsetof(msg_t, hello) + msg_descs[type].size);
    m->type = type;
}

err_t msg_decode(msg_t *m, const uint8_t *buf, size_t len, size_t *used)
{
    if (len == 0) return ERR_FRAME;
    input_t input = { .at = buf, .end = buf + (len < MESSAGE_BYTES_MAX ? len : MESSAGE_BYTES_MAX) };
    header_t header = { 0 };
    u64 tag;
    if (!take_header(&input, &header, &tag)) return ERR_FRAME;
    msg_init(m, (msg_type_t)(type_of_tag[tag] - 1));
    m->header = header;
    const msg_desc_t *desc = &msg_descs[m->type];
    token_t body = take_token(&input);
    if (body.kind != TOKEN_ARRAY || body.number < desc->wire_count) return ERR_FRAME;
    if (!take_fields(&input, desc->fields, desc->field_count, (uint8_t *)m)) return ERR_FRAME;
    if (!skip_values(&input, body.number - desc->wire_count)) return ERR_FRAME;
    *used = (size_t)(input.at - buf);
    return ERR_OK;
}
