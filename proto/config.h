/* proto/config.h - the configuration as a struct, from config.def. */
#ifndef PROTO_CONFIG_H
#define PROTO_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

/* clang-format off */
/* One nested struct per section: config.http.listen, config.prefill.kv_blocks...  A CHOICE is the index of
 * the word in its list; the words are in its KEY_CHOICE, in order. */
typedef struct {
#define SECTION(section, doc)                                struct {
#define KEY_TEXT(section, key, fallback, max, doc)           char key[(max) + 1];
#define KEY_INT(section, key, fallback, least, most, doc)    int64_t key;
#define KEY_BOOL(section, key, fallback, doc)                bool key;
#define KEY_CHOICE(section, key, fallback, words, doc)       int key;
#define KEY_LIST(section, key, most, max, doc)               uint32_t key##_count; char key[most][(max) + 1];
#define END_SECTION(section)                                 } section;
#include "config.def"
#undef SECTION
#undef KEY_TEXT
#undef KEY_INT
#undef KEY_BOOL
#undef KEY_CHOICE
#undef KEY_LIST
#undef END_SECTION
} config_t;
/* clang-format on */
#endif
