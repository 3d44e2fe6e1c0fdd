/* runtime/model/safetensors.h - the tensors of a checkpoint, by name, mapped and checked.
 *
 * A directory holds model.safetensors, or shards named by model.safetensors.index.json.  A file is:
 * eight bytes of header size, a JSON header, then the tensors' bytes without holes or overlaps.
 * Everything is validated before the first pointer is given out; see
 * https://github.com/huggingface/safetensors for the format.
 */
#ifndef RUNTIME_MODEL_SAFETENSORS_H
#define RUNTIME_MODEL_SAFETENSORS_H

#include "config.h"

enum { SAFETENSORS_DIMS_MAX = 8 };

typedef struct {
    const char *name;
    const char *dtype; /* as in the file: "F32", "BF16", "F8_E4M3", ... */
    uint32_t dim_count;
    uint64_t dims[SAFETENSORS_DIMS_MAX];
    const void *data; /* in the mapping; not aligned to more than a byte */
    size_t bytes;
} safetensor_t;

typedef struct safetensors safetensors_t;

/* Map a checkpoint directory, or a single file.  NULL: *why. */
safetensors_t *safetensors_open(const char *dir, error_text_t *why);
safetensors_t *safetensors_open_file(const char *path, error_text_t *why);
void safetensors_close(safetensors_t **self);

/* NULL: no tensor of that name.  The result lives as long as self. */
const safetensor_t *safetensors_find(const safetensors_t *self, const char *name);
size_t safetensors_count(const safetensors_t *self);

/* The index-th of them, in the order of names. */
const safetensor_t *safetensors_at(const safetensors_t *self, size_t index);

/* The file that holds it, for messages. */
const char *safetensors_file(const safetensors_t *self, const safetensor_t *tensor);

#endif
