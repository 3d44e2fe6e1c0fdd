/* runtime/model/digest.h - a cheap name for the weights of a checkpoint, the same in every process.
 */
#ifndef RUNTIME_MODEL_DIGEST_H
#define RUNTIME_MODEL_DIGEST_H

#include "config.h"

enum {
    DIGEST_PAGE_BYTES = 4096,
    DIGEST_PAGES_MAX = 64,     /* of one file, spread evenly from its first byte to its last */
    DIGEST_PAGES_MIN = 16,     /* of one file, however many there are */
    DIGEST_PAGES_SOFT = 1024,  /* of all files, until each is down to the least */
    DIGEST_FILES_MAX = 100000, /* a directory with more is no checkpoint */
};

/* Digest of every *.safetensors in dir, by name: its size and some of its pages.  A fine-tune
 * changes nearly every page and so the digest; a change of bytes that lie between the pages does
 * not. Nothing but names, sizes and bytes counts: not where the files lie or when they were
 * written. 0 where there are none.  ERR_MODEL with *why: a file cannot be read. */
MUST_CHECK err_t weights_digest(uint64_t *digest, const char *dir, error_text_t *why);

/* Where page `index` of `count` begins in a file of this size; for tests, too. */
uint64_t digest_page_at(uint64_t size, uint32_t index, uint32_t count);

#endif
