/* proto/messages.h - the messages as C structs, and the one codec that walks their descriptions. */
#ifndef PROTO_MESSAGES_H
#define PROTO_MESSAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "errors.h"

typedef uint32_t u32;
typedef uint64_t u64;
typedef float f32;
typedef double f64;

/* Limits of the protocol.  A configuration may allow less, never more. */
enum {
    PROTOCOL_VERSION = 1,
    INDEX_MAX = 65535,    /* instances of a role */
    CONTEXT_MAX = 262144, /* tokens of one request, prompt and output */
    BLOCK_TOKENS = 64,    /* tokens of one KV block */
    KEY_BYTES = 16,       /* a block's chained key: SHA-256, cut */
    KEYS_MAX = CONTEXT_MAX / BLOCK_TOKENS,
    BLOCKS_MAX = 1 << 24, /* KV blocks of one pool */
    BLOCKS_PER_MESSAGE_MAX = 256,
    REQUESTS_MAX = 1 << 20,
    VOCAB_MAX = 1 << 20,
    LAYERS_MAX = 256,
    EXPERTS_MAX = 1024,
    STOP_IDS_MAX = 16,
    LOGIT_BIAS_MAX = 300,
    TOP_LOGPROBS_MAX = 20,
    TOKENS_PER_MESSAGE_MAX = 8,
    PROMPT_LOGPROBS_MAX = 64,
    RENEW_MAX = 256,
    METRIC_SLOTS_MAX = 512,
    CONTENT_MAX = 4 << 20,
    MESSAGE_BYTES_MAX = 8 << 20, /* one encoded message */
    TAG_LOCAL = 200,             /* tags from here on never travel */
};

/* A request's name, minted at random by ingress; printed as 32 hex digits everywhere. */
typedef struct {
    u64 hi, lo;
} request_id_t;

static inline bool request_id_equal(request_id_t a, request_id_t b)
{
    return a.hi == b.hi && a.lo == b.lo;
}

/* Bytes borrowed from a frame or a caller; never owned by who holds the struct. */
typedef struct {
    const void *data;
    size_t size;
} bytes_t;

typedef enum {
#define ROLE(name, instances, doc) ROLE_##name,
#include "roles.def"
#undef ROLE
    ROLES_MAX
} role_t;

typedef struct {
    role_t role;
    u32 index;
} address_t;

/* Why a text ended.  Wire format: append only. */
typedef enum { FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED, FINISH_MAX } finish_t;

typedef struct {
#define SAMPLE(type, field, fallback, least, most, doc) type field;
#include "sampling.def"
#undef SAMPLE
} sampling_t;

extern const sampling_t sampling_default;

/* What every message carries.  On the wire: the msgpack array of these fields in this order, the
 * protocol version and the tag before them.  Messages of one loop turn to one peer lie behind each
 * other in one frame. */
typedef struct {
    request_id_t request; /* zero where the message concerns no request */
    u32 attempt;          /* of that request; grows with every re-submission */
    u64 epoch;            /* the sender's life */
    u64 to_epoch;         /* the receiver's life as the sender knows it; 0: not known */
    u64 sequence; /* counts the messages of this sender on this link; hello and heartbeat repeat the
                     last */
    u64 sent_us;  /* sender's clock when it was sent; us */
    address_t from; /* not on the wire: filled in by the receiving world from the link */
} header_t;

/* One plain struct per message.  BYTES fields are borrowed; all else is a value.  `end` is there
 * because C has no empty structs. */
/* clang-format off */
#define MSG(name, tag, doc)                      typedef struct {
#define FIELD(name, type, field, max, doc)       type field;
#define TEXT(name, field, max, doc)              char field[(max) + 1];
#define LIST(name, type, field, most, max, doc)  u32 field##_count; type field[most];
#define BYTES(name, field, max, doc)             bytes_t field;
#define SAMPLING(name)                           sampling_t sampling;
#define END(name)                                char end; } msg_##name##_t;
#include "messages.def"
#undef MSG
#undef FIELD
#undef TEXT
#undef LIST
#undef BYTES
#undef SAMPLING
#undef END

#define FIELD(name, type, field, max, doc)
#define TEXT(name, field, max, doc)
#define LIST(name, type, field, most, max, doc)
#define BYTES(name, field, max, doc)
#define SAMPLING(name)
#define END(name)
typedef enum {
#define MSG(name, tag, doc) MSG_##name,
#include "messages.def"
#undef MSG
    MSG_COUNT
} msg_type_t;

typedef struct {
    msg_type_t type;
    header_t header;
    union {
#define MSG(name, tag, doc) msg_##name##_t name;
#include "messages.def"
#undef MSG
    };
} msg_t;
#undef FIELD
#undef TEXT
#undef LIST
#undef BYTES
#undef SAMPLING
#undef END
/* clang-format on */

typedef enum { TYPE_u32, TYPE_u64, TYPE_f32, TYPE_f64 } scalar_t;
typedef enum { KIND_FIELD, KIND_TEXT, KIND_LIST, KIND_BYTES, KIND_GROUP } kind_t;

/* One field as the codec sees it.  SAMPLING is a GROUP: a struct inside the message, whose fields
 * lie on the wire among the message's own. */
typedef struct field_desc {
    const char *name;
    kind_t kind;
    scalar_t type;       /* of FIELD, and of LIST's elements */
    size_t offset;       /* inside msg_t: the value, or a LIST's first element */
    size_t count_offset; /* inside msg_t: a LIST's count */
    u64 count_max;       /* most elements of a LIST, most bytes of TEXT and BYTES */
    u64 max;             /* largest legal integer; integers above it are refused */
    double least, most;  /* range of a float, both 0: any finite value or infinity */
    const char *doc;
    const struct field_desc *group; /* of GROUP: its fields, with offsets from the group's begin */
    size_t group_count;
} field_desc_t;

typedef struct {
    const char *name;
    u32 tag;
    const char *doc;
    const field_desc_t *fields;
    size_t field_count; /* entries of `fields` */
    size_t wire_count;  /* fields on the wire: groups count with all of theirs */
    size_t size;        /* of its struct: what the codec clears before it decodes */
} msg_desc_t;

extern const msg_desc_t msg_descs[MSG_COUNT];
extern const char *const role_names[ROLES_MAX];

/* Clear header and body of *m for a message of this type and set the type.  Cheaper than zeroing
 * the union. */
void msg_init(msg_t *m, msg_type_t type);

/* Encode header and body behind each other into buf.  Returns the bytes written, 0 if cap is too
 * small. An out-of-range field of our own is our bug: invariant. */
size_t msg_encode(const msg_t *m, uint8_t *buf, size_t cap);

/* Decode the first message of a frame from an untrusted peer; *used is set to the bytes it took.
 * BYTES fields of *m point into buf.  Unknown trailing fields are skipped; missing ones, wrong
 * types, values out of range, local tags and a foreign protocol version give ERR_FRAME.  On error
 * *m is unspecified. */
err_t msg_decode(msg_t *m, const uint8_t *buf, size_t len, size_t *used);

#endif
