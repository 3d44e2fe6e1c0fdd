/* runtime/model/tokenizer_utf8.h - UTF-8 of strangers: what is valid, what becomes U+FFFD.
 *
 * An invalid sequence becomes one U+FFFD per maximal subpart (Unicode 3.9, practice of Rust, Python
 * and the web).
 */
#ifndef RUNTIME_MODEL_TOKENIZER_UTF8_H
#define RUNTIME_MODEL_TOKENIZER_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* INCOMPLETE: the bytes end inside a sequence that could still become valid. */
typedef enum { UTF8_VALID, UTF8_INVALID, UTF8_INCOMPLETE } utf8_state_t;

typedef struct {
    uint32_t size; /* of the sequence or of its maximal subpart; at least 1 */
    utf8_state_t state;
} utf8_step_t;

enum { UTF8_REPLACEMENT_BYTES = 3 };
extern const char utf8_replacement[UTF8_REPLACEMENT_BYTES + 1];

/* The first sequence of at least one byte. */
utf8_step_t utf8_step(const uint8_t *bytes, size_t size);

/* Length of the leading part that is valid as it stands. */
size_t utf8_valid_size(const uint8_t *bytes, size_t size);

/* Copy with every invalid or incomplete sequence replaced.  Returns the bytes needed (at most 3 *
 * size); writes only whole sequences, at most cap bytes. */
size_t utf8_repair(const uint8_t *bytes, size_t size, char *out, size_t cap);

#endif
