/* runtime/base/config.h - the configuration file: read, checked as a whole, shown with origins.
 *
 * Order of use: config_init, then config_read_file (or not), then config_set for each --set, then
 * config_check. The first call that fails leaves one line in `error` that says where, what was
 * found and what is allowed; after it only the error is of use.
 */
#ifndef RUNTIME_BASE_CONFIG_H
#define RUNTIME_BASE_CONFIG_H

#include "../../proto/config.h"
#include "../../proto/errors.h"

#include <stddef.h>

enum { CONFIG_FILE_BYTES_MAX = 1 << 20, CONFIG_VALUE_BYTES_MAX = 16384 };

/* clang-format off */
/* The index of every key in config_keys: CONFIG_http_listen... */
typedef enum {
#define SECTION(section, doc)
#define KEY_TEXT(section, key, fallback, max, doc)        CONFIG_##section##_##key,
#define KEY_INT(section, key, fallback, least, most, doc) CONFIG_##section##_##key,
#define KEY_BOOL(section, key, fallback, doc)             CONFIG_##section##_##key,
#define KEY_CHOICE(section, key, fallback, words, doc)    CONFIG_##section##_##key,
#define KEY_LIST(section, key, most, max, doc)            CONFIG_##section##_##key,
#define END_SECTION(section)
#include "../../proto/config.def"
#undef SECTION
#undef KEY_TEXT
#undef KEY_INT
#undef KEY_BOOL
#undef KEY_CHOICE
#undef KEY_LIST
#undef END_SECTION
    CONFIG_KEYS
} config_index_t;
/* clang-format on */

typedef enum { CONFIG_TEXT, CONFIG_INT, CONFIG_BOOL, CONFIG_CHOICE, CONFIG_LIST } config_kind_t;

typedef struct {
    const char *section;
    const char *key;
    config_kind_t kind;
    size_t offset;        /* inside config_t */
    size_t count_offset;  /* of a LIST's count */
    size_t text_max;      /* bytes of a TEXT, of each text of a LIST */
    int64_t least, most;  /* of an INT; most also counts a LIST's texts */
    int64_t number;       /* default of INT and BOOL */
    const char *fallback; /* default of TEXT and CHOICE */
    const char *words;    /* of a CHOICE: "a|b|c" */
    const char *doc;
} config_key_t;

extern const config_key_t config_keys[CONFIG_KEYS];

/* What a section is about; empty text when there is none of this name. */
const char *config_section_doc(const char *section);

typedef enum { ORIGIN_DEFAULT, ORIGIN_FILE, ORIGIN_OPTION } config_origin_kind_t;

typedef struct {
    config_origin_kind_t kind;
    uint32_t line; /* of the file */
} config_origin_t;

/* Large (tens of KiB): static or on the heap, not on a small stack. */
typedef struct {
    config_t config;
    config_origin_t origins[CONFIG_KEYS];
    char file[4096];  /* as given; empty when none was read */
    char error[1024]; /* one line, without a newline */
} config_loaded_t;

/* Defaults everywhere. */
void config_init(config_loaded_t *self);

/* Read a YAML file over what is there.  ERR_IO: cannot be read.  ERR_CONFIG: refused; `error` says
 * why. */
MUST_CHECK err_t config_read_file(config_loaded_t *self, const char *file);

/* The same from memory; `file` is only a name for errors and origins. */
MUST_CHECK err_t config_read_text(config_loaded_t *self, const char *file, const char *text,
                                  size_t size);

/* "section.key=value", as after --set; a LIST is one,two or ["one", "two"], as config_show writes
 * it. */
MUST_CHECK err_t config_set(config_loaded_t *self, const char *assignment);

/* What no single key can tell: combinations that cannot work. */
MUST_CHECK err_t config_check(config_loaded_t *self);

/* The longest text that the workers' pools hold and limits.context_max allows; tokens. */
uint32_t config_context_max(const config_t *config);

/* Every key with value, origin and meaning, as a YAML file that config_read_file reads back to the
 * same values.  Returns the bytes needed; writes at most cap, NUL-terminated. */
size_t config_show(const config_loaded_t *self, char *buf, size_t cap);

/* The word that a CHOICE's index stands for, in a buffer of the value. */
typedef struct {
    char text[32];
} config_word_t;
config_word_t config_word(config_index_t key, int choice);

/* "FILE:12", "--set" or "default": where a key's value comes from. */
typedef struct {
    char text[4128];
} config_place_t;
config_place_t config_place(const config_loaded_t *self, config_index_t key);

/* Assign one value given as text; is_plain tells that it was not quoted, since "8" is a text and 8
 * a number. For the readers of files and options; writes `error` on failure. */
typedef struct {
    config_index_t key;
    const char *const *texts; /* one, or those of a LIST */
    uint32_t count;
    bool is_list;      /* written as a list */
    bool is_plain;     /* not quoted */
    const char *where; /* begins the error text */
} config_value_t;
MUST_CHECK err_t config_assign(config_loaded_t *self, const config_value_t *value);

/* Index of "section" and "key"; CONFIG_KEYS when there is none, and then `error` says so and what
 * is near. */
config_index_t config_find(config_loaded_t *self, const char *where, const char *section,
                           const char *key);

/* ERR_CONFIG with `error` set. */
MUST_CHECK err_t config_refuse(config_loaded_t *self, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
