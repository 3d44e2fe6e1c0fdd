/* proto/descs.c - the tables of messages, roles and errors, from the .def files. */
#include "messages.h"

#include <ctype.h>

/* clang-format off */
const char *const role_names[ROLES_MAX] = {
#define ROLE(name, instances, doc) [ROLE_##name] = #name,
#include "roles.def"
#undef ROLE
};

const error_desc_t error_descs[ERRORS_MAX] = {
#define ERROR(name, scope, http, retry, type, doc) [ERR_##name] = { #name, SCOPE_##scope, http, retry, type, doc },
#include "errors.def"
#undef ERROR
};

const sampling_t sampling_default = {
#define SAMPLE(type, field, fallback, least, most, doc) .field = fallback,
#include "sampling.def"
#undef SAMPLE
};

static const field_desc_t sampling_fields[] = {
#define SAMPLE(t, field, fallback, smallest, largest, text) \
    { .name = #field, .kind = KIND_FIELD, .type = TYPE_##t, .offset = offsetof(sampling_t, field), \
      .max = (u64)(largest), .least = (double)(smallest), .most = (double)(largest), .doc = text },
#include "sampling.def"
#undef SAMPLE
};
enum { SAMPLING_COUNT = sizeof sampling_fields / sizeof sampling_fields[0] };

/* One table per message, each with an empty entry at its end: C has no empty arrays. */
#define MSG(m, tag, text) static const field_desc_t m##_fields[] = {
#define FIELD(m, t, field, largest, text) \
    { .name = #field, .kind = KIND_FIELD, .type = TYPE_##t, .offset = offsetof(msg_t, m.field), \
      .max = (largest), .doc = text },
#define TEXT(m, field, bytes, text) \
    { .name = #field, .kind = KIND_TEXT, .offset = offsetof(msg_t, m.field), .count_max = (bytes), .doc = text },
#define LIST(m, t, field, count, largest, text) \
    { .name = #field, .kind = KIND_LIST, .type = TYPE_##t, .offset = offsetof(msg_t, m.field), \
      .count_offset = offsetof(msg_t, m.field##_count), .count_max = (count), .max = (largest), .doc = text },
#define BYTES(m, field, bytes, text) \
    { .name = #field, .kind = KIND_BYTES, .offset = offsetof(msg_t, m.field), .count_max = (bytes), .doc = text },
#define SAMPLING(m) \
    { .name = "sampling", .kind = KIND_GROUP, .offset = offsetof(msg_t, m.sampling), \
      .doc = "how tokens are chosen", .group = sampling_fields, .group_count = SAMPLING_COUNT },
#define END(m) { .name = NULL } };
#include "messages.def"
#undef MSG
#undef FIELD
#undef TEXT
#undef LIST
#undef BYTES
#undef SAMPLING
#undef END

#define MSG(name, tag, text)                          enum { name##_wire_count = 0
#define FIELD(name, type, field, max, text)           + 1
#define TEXT(name, field, max, text)                  + 1
#define LIST(name, type, field, most, max, text)      + 1
#define BYTES(name, field, max, text)                 + 1
#define SAMPLING(name)                                + SAMPLING_COUNT
#define END(name)                                     };
#include "messages.def"
#undef MSG
#undef FIELD
#undef TEXT
#undef LIST
#undef BYTES
#undef SAMPLING
#undef END

#define FIELD(name, type, field, max, text)
#define TEXT(name, field, max, text)
#define LIST(name, type, field, most, max, text)
#define BYTES(name, field, max, text)
#define SAMPLING(name)
#define END(name)
const msg_desc_t msg_descs[MSG_COUNT] = {
#define MSG(m, number, text) \
    [MSG_##m] = { .name = #m, .tag = (number), .doc = text, .fields = m##_fields, \
                  .field_count = sizeof m##_fields / sizeof m##_fields[0] - 1, \
                  .wire_count = m##_wire_count, .size = sizeof(msg_##m##_t) },
#include "messages.def"
#undef MSG
};
/* clang-format on */

error_code_t error_code(err_t error)
{
    error_code_t code = { "" };
    const char *name = error_descs[error].name;
    for (size_t i = 0; name[i] != 0 && i + 1 < sizeof code.text; i++)
        code.text[i] = (char)tolower((unsigned char)name[i]);
    return code;
}
