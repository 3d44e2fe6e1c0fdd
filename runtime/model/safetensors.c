/* runtime/model/safetensors.c - maps safetensors files and checks their headers before anything is
 * used. */
#include "safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../invariant.h"
#include "json.h"
#include "weights.h"

enum {
    HEADER_BYTES_MAX = 100000000, /* the format's own limit */
    HEADER_DEPTH_MAX = 4,         /* header, tensor, its shape; one to spare for metadata */
    TENSORS_MAX = 1 << 18,        /* of one file; the largest published models have half in all */
    VALUES_MAX = 8 * TENSORS_MAX, /* a matrix has itself, dtype, shape of two, offsets of two */
    SHARDS_MAX = 4096,
    PATH_BYTES = 4352,
};

typedef struct {
    const uint8_t *data; /* the mapping */
    size_t size;
    char *path;
} shard_t;

typedef struct {
    safetensor_t tensor;
    uint64_t begin, end; /* in the file's data */
    uint32_t shard;
} entry_t;

struct safetensors {
    shard_t *shards;
    uint32_t shard_count;
    entry_t *entries; /* sorted by name once all shards are read */
    size_t count, capacity;
};

/* ---- one header ---- */

typedef struct {
    const char *name;
    uint32_t bytes;
} kind_bytes_t;

/* What the format knows.  Which of them a model may use is the loader's business. */
static const kind_bytes_t kinds[] = {
    { "F32", 4 }, { "BF16", 2 },    { "F8_E4M3", 1 }, { "F16", 2 },
    { "F64", 8 }, { "F8_E5M2", 1 }, { "F8_E8M0", 1 }, { "I64", 8 },
    { "I32", 4 }, { "I16", 2 },     { "I8", 1 },      { "U64", 8 },
    { "U32", 4 }, { "U16", 2 },     { "U8", 1 },      { "BOOL", 1 },
};

static const kind_bytes_t *find_kind(const cJSON *item)
{
    for (size_t i = 0; cJSON_IsString(item) && i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(item->valuestring, kinds[i].name) == 0) return &kinds[i];
    return NULL;
}

/* Sizes and offsets are JSON numbers, hence doubles: exact below 2^53. */
static bool read_size(const cJSON *item, uint64_t *out)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) || item->valuedouble > 0x1p53 ||
        item->valuedouble != floor(item->valuedouble))
        return false;
    *out = (uint64_t)item->valuedouble;
    return true;
}

static err_t read_shape(entry_t *entry, const cJSON *shape, uint64_t *elements, error_text_t *why)
{
    safetensor_t *tensor = &entry->tensor;
    const cJSON *item;
    *elements = 1;
    if (!cJSON_IsArray(shape)) return model_refuse(why, "%.200s: shape is no list", tensor->name);
    cJSON_ArrayForEach(item, shape)
    {
        uint64_t dim;
        if (tensor->dim_count == SAFETENSORS_DIMS_MAX)
            return model_refuse(why, "%.200s: more than %d dimensions", tensor->name,
                                SAFETENSORS_DIMS_MAX);
        if (!read_size(item, &dim) || __builtin_mul_overflow(*elements, dim, elements))
            return model_refuse(why, "%.200s: a dimension is no size", tensor->name);
        tensor->dims[tensor->dim_count++] = dim;
    }
    return ERR_OK;
}

static err_t read_offsets(entry_t *entry, const cJSON *offsets, uint64_t bytes, error_text_t *why)
{
    const char *name = entry->tensor.name;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !read_size(cJSON_GetArrayItem(offsets, 0), &entry->begin) ||
        !read_size(cJSON_GetArrayItem(offsets, 1), &entry->end))
        return model_refuse(why, "%.200s: data_offsets are not two sizes", name);
    if (entry->end < entry->begin || entry->end - entry->begin != bytes)
        return model_refuse(
            why, "%.200s: data_offsets %llu to %llu; allowed: %llu bytes, as dtype and shape say",
            name, (unsigned long long)entry->begin, (unsigned long long)entry->end,
            (unsigned long long)bytes);
    return ERR_OK;
}

static err_t read_entry(entry_t *entry, const cJSON *item, error_text_t *why)
{
    uint64_t elements, bytes;
    const kind_bytes_t *kind = find_kind(cJSON_GetObjectItemCaseSensitive(item, "dtype"));
    if (!kind)
        return model_refuse(why, "%.200s: dtype is not one of safetensors'", entry->tensor.name);
    err_t error =
        read_shape(entry, cJSON_GetObjectItemCaseSensitive(item, "shape"), &elements, why);
    if (error) return error;
    if (__builtin_mul_overflow(elements, (uint64_t)kind->bytes, &bytes))
        return model_refuse(why, "%.200s: more bytes than there are", entry->tensor.name);
    entry->tensor.dtype = kind->name;
    entry->tensor.bytes = bytes;
    return read_offsets(entry, cJSON_GetObjectItemCaseSensitive(item, "data_offsets"), bytes, why);
}

static int by_begin(const void *a, const void *b)
{
    const entry_t *left = a, *right = b;
    if (left->begin != right->begin) return left->begin < right->begin ? -1 : 1;
    return (left->end > right->end) - (left->end < right->end);
}

/* The tensors' bytes must be the whole data, each byte once: what lies elsewhere is not the file it
 * claims to be. */
static err_t check_cover(entry_t *entries, size_t count, uint64_t data_bytes, error_text_t *why)
{
    uint64_t expected = 0;
    qsort(entries, count, sizeof *entries, by_begin);
    for (size_t i = 0; i < count; i++) {
        const char *name = entries[i].tensor.name;
        if (entries[i].begin < expected)
            return model_refuse(why, "%.200s: its bytes overlap another tensor's", name);
        if (entries[i].begin > expected)
            return model_refuse(why, "%.200s: a hole lies before it", name);
        if (entries[i].end > data_bytes)
            return model_refuse(
                why, "%.200s: ends at byte %llu of the data, the file has %llu (truncated)", name,
                (unsigned long long)entries[i].end, (unsigned long long)data_bytes);
        expected = entries[i].end;
    }
    if (expected != data_bytes)
        return model_refuse(why, "%llu bytes follow the last tensor; allowed: none",
                            (unsigned long long)(data_bytes - expected));
    return ERR_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const entry_t *)a)->tensor.name, ((const entry_t *)b)->tensor.name);
}

static err_t check_names(entry_t *entries, size_t count, error_text_t *why)
{
    qsort(entries, count, sizeof *entries, by_name);
    for (size_t i = 1; i < count; i++)
        if (by_name(&entries[i - 1], &entries[i]) == 0)
            return model_refuse(why, "%.200s: is there twice", entries[i].tensor.name);
    return ERR_OK;
}

/* Nesting is bounded before the recursive parser sees it, and so are the values: it takes some
 * hundred bytes for each of them, "1," included.  A value follows a comma or an opening bracket. */
static err_t check_bounds(const char *text, size_t size, error_text_t *why)
{
    int depth = 0;
    size_t values = 0;
    bool is_text = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (is_text && c == '\\')
            i++;
        else if (c == '"')
            is_text = !is_text;
        if (is_text) continue;
        values += c == ',' || c == '{' || c == '[';
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        if (depth > HEADER_DEPTH_MAX)
            return model_refuse(why, "its JSON is nested deeper than %d", HEADER_DEPTH_MAX);
        if (values > VALUES_MAX)
            return model_refuse(why, "its JSON has more values than %d", VALUES_MAX);
    }
    return ERR_OK;
}

/* One parsed header: root owns the entries' names. */
typedef struct {
    cJSON *root;
    entry_t *entries;
    size_t count;
} parsed_t;

static void drop_header(parsed_t *header)
{
    free(header->entries);
    cJSON_Delete(header->root);
    *header = (parsed_t){ 0 };
}

static err_t read_entries(parsed_t *header, error_text_t *why)
{
    size_t tensors = (size_t)cJSON_GetArraySize(header->root);
    const cJSON *item;
    if (tensors > TENSORS_MAX)
        return model_refuse(why, "%zu tensors; allowed: %d", tensors, TENSORS_MAX);
    header->entries = calloc(tensors + 1, sizeof *header->entries);
    if (!header->entries)
        return model_refuse(why, "no memory for a header of %zu tensors", tensors);
    cJSON_ArrayForEach(item, header->root)
    {
        if (strcmp(item->string, "__metadata__") == 0) continue;
        entry_t *entry = &header->entries[header->count++];
        entry->tensor.name = item->string;
        err_t error = read_entry(entry, item, why);
        if (error) return error;
    }
    return ERR_OK;
}

static err_t parse(parsed_t *header, const char *text, size_t size, error_text_t *why)
{
    err_t error = check_bounds(text, size, why);
    if (error) return error;
    json_fault_t fault;
    header->root = json_parse_object(text, size, &fault);
    if (!header->root) return model_refuse(why, "the header %s", fault.text);
    return read_entries(header, why);
}

/* Parse and check one file's bytes.  On success the caller drops the header. */
static err_t read_header(parsed_t *header, const uint8_t *data, size_t size, error_text_t *why)
{
    uint64_t bytes = 0;
    *header = (parsed_t){ 0 };
    if (size < 8) return model_refuse(why, "%zu bytes; allowed: at least 8", size);
    for (int i = 7; i >= 0; i--) bytes = bytes << 8 | data[i];
    if (bytes > HEADER_BYTES_MAX || bytes > size - 8)
        return model_refuse(why, "a header of %llu bytes; allowed: up to %d and the file's %zu",
                            (unsigned long long)bytes, HEADER_BYTES_MAX, size);
    err_t error = parse(header, (const char *)data + 8, bytes, why);
    if (!error) error = check_cover(header->entries, header->count, size - 8 - bytes, why);
    if (!error) error = check_names(header->entries, header->count, why);
    if (error) drop_header(header);
    for (size_t i = 0; i < header->count; i++)
        header->entries[i].tensor.data = data + 8 + bytes + header->entries[i].begin;
    return error;
}

err_t safetensors_check(const void *data, size_t size, error_text_t *why)
{
    parsed_t header;
    err_t error = read_header(&header, data, size, why);
    drop_header(&header);
    return error;
}

/* ---- files ---- */

static err_t map_file(shard_t *shard, const char *path, error_text_t *why)
{
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return model_refuse(why, "%.400s: %s", path, strerror(errno));
    if (fstat(file, &status) || !S_ISREG(status.st_mode) || status.st_size < 8) {
        close(file);
        return model_refuse(why, "%.400s: is not a safetensors file (%lld bytes)", path,
                            (long long)status.st_size);
    }
    void *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    int error = errno;
    close(file);
    if (data == MAP_FAILED) return model_refuse(why, "%.400s: %s", path, strerror(error));
    shard->data = data;
    shard->size = (size_t)status.st_size;
    shard->path = strdup(path);
    return shard->path ? ERR_OK : model_refuse(why, "no memory");
}

static bool reserve(safetensors_t *self, size_t more)
{
    if (self->count + more <= self->capacity) return true;
    size_t capacity = (self->count + more) * 2;
    entry_t *entries = realloc(self->entries, capacity * sizeof *entries);
    if (!entries) return false;
    self->entries = entries;
    self->capacity = capacity;
    return true;
}

/* Take over a shard's entries; their names are copied since the parsed header goes. */
static err_t take_entries(safetensors_t *self, const entry_t *entries, size_t count, uint32_t shard,
                          error_text_t *why)
{
    if (!reserve(self, count)) return model_refuse(why, "no memory for %zu tensors", count);
    for (size_t i = 0; i < count; i++) {
        entry_t *entry = &self->entries[self->count];
        *entry = entries[i];
        entry->shard = shard;
        entry->tensor.name = strdup(entries[i].tensor.name);
        if (!entry->tensor.name) return model_refuse(why, "no memory for names");
        self->count++;
    }
    return ERR_OK;
}

static err_t add_file(safetensors_t *self, const char *path, error_text_t *why)
{
    parsed_t header;
    error_text_t inner;
    if (self->shard_count == SHARDS_MAX)
        return model_refuse(why, "more than %d safetensors files", SHARDS_MAX);
    shard_t *shard = &self->shards[self->shard_count];
    err_t error = map_file(shard, path, why);
    if (error) return error;
    self->shard_count++;
    error = read_header(&header, shard->data, shard->size, &inner);
    if (error) return model_refuse(why, "%.200s: %.300s", path, inner.text);
    error = take_entries(self, header.entries, header.count, self->shard_count - 1, why);
    drop_header(&header);
    return error;
}

/* ---- shards ---- */

#define INDEX_NAME "model.safetensors.index.json"

/* The whole file, to be freed by the caller; NULL with *why. */
static char *read_index_text(const char *path, size_t *size, error_text_t *why)
{
    struct stat status;
    char *text = NULL;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &status))
        (void)model_refuse(why, "%.400s: %s", path, strerror(errno));
    else if (!S_ISREG(status.st_mode) || status.st_size > HEADER_BYTES_MAX)
        (void)model_refuse(why, "%.400s is no file of at most %d bytes", path, HEADER_BYTES_MAX);
    else if (!(text = malloc((size_t)status.st_size + 1)))
        (void)model_refuse(why, "no memory for %.400s", path);
    else
        *size = fread(text, 1, (size_t)status.st_size, file);
    if (file) fclose(file);
    return text;
}

static cJSON *read_index(const char *path, error_text_t *why)
{
    size_t size = 0;
    char *text = read_index_text(path, &size, why);
    error_text_t bounds;
    json_fault_t fault;
    cJSON *root = NULL;
    if (!text) return NULL;
    if (check_bounds(text, size, &bounds))
        (void)model_refuse(why, "%.300s: %.200s", path, bounds.text);
    else if (!(root = json_parse_object(text, size, &fault)))
        (void)model_refuse(why, "%.400s %s", path, fault.text);
    free(text);
    return root;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A shard's file name must stay inside the directory. */
static err_t check_name(const cJSON *item, error_text_t *why)
{
    const char *name = cJSON_GetStringValue(item);
    if (!name)
        return model_refuse(why, INDEX_NAME ": the file of %.200s is no string", item->string);
    if (!name[0] || name[0] == '.' || strchr(name, '/'))
        return model_refuse(why,
                            INDEX_NAME ": the file of %.200s is \"%.100s\"; allowed: a plain file "
                                       "name, of the same directory",
                            item->string, name);
    return ERR_OK;
}

static err_t add_shards(safetensors_t *self, const char *dir, const char **files, size_t count,
                        error_text_t *why)
{
    char path[PATH_BYTES];
    qsort(files, count, sizeof *files, by_text);
    for (size_t i = 0; i < count; i++) {
        if (i && strcmp(files[i], files[i - 1]) == 0) continue;
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        if (access(path, F_OK))
            return model_refuse(why, "%.300s: %s, but " INDEX_NAME " names it", path,
                                strerror(errno));
        err_t error = add_file(self, path, why);
        if (error) return error;
    }
    return ERR_OK;
}

static err_t add_index(safetensors_t *self, const char *dir, const cJSON *index, error_text_t *why)
{
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(index, "weight_map"), *item;
    size_t count = 0;
    if (!cJSON_IsObject(map) || !map->child)
        return model_refuse(why, "%.300s/" INDEX_NAME ": %s", dir,
                            !map                   ? "no weight_map"
                            : !cJSON_IsObject(map) ? "weight_map is no object"
                                                   : "weight_map is empty");
    const char **files = calloc((size_t)cJSON_GetArraySize(map), sizeof *files);
    if (!files) return model_refuse(why, "no memory for the index");
    err_t error = ERR_OK;
    cJSON_ArrayForEach(item, map)
    {
        if (!error) error = check_name(item, why);
        files[count++] = cJSON_GetStringValue(item);
    }
    if (!error) error = add_shards(self, dir, files, count, why);
    free(files);
    return error;
}

/* ---- the whole ---- */

static safetensors_t *make(void)
{
    safetensors_t *self = calloc(1, sizeof *self);
    if (self) self->shards = calloc(SHARDS_MAX, sizeof *self->shards);
    if (self && !self->shards) safetensors_close(&self);
    return self;
}

static safetensors_t *finish(safetensors_t *self, err_t error, error_text_t *why)
{
    if (!error && self->count) error = check_names(self->entries, self->count, why);
    if (error) safetensors_close(&self);
    return self;
}

safetensors_t *safetensors_open_file(const char *path, error_text_t *why)
{
    safetensors_t *self = make();
    if (!self) {
        (void)model_refuse(why, "no memory");
        return NULL;
    }
    return finish(self, add_file(self, path, why), why);
}

safetensors_t *safetensors_open(const char *dir, error_text_t *why)
{
    char path[PATH_BYTES];
    safetensors_t *self = make();
    if (!self) {
        (void)model_refuse(why, "no memory");
        return NULL;
    }
    snprintf(path, sizeof path, "%s/" INDEX_NAME, dir);
    if (access(path, F_OK) == 0) {
        cJSON *index = read_index(path, why);
        err_t error = index ? add_index(self, dir, index, why) : ERR_MODEL;
        cJSON_Delete(index);
        return finish(self, error, why);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    return finish(self, add_file(self, path, why), why);
}

void safetensors_close(safetensors_t **self)
{
    safetensors_t *closing = *self;
    *self = NULL;
    if (!closing) return;
    for (uint32_t i = 0; closing->shards && i < closing->shard_count; i++) {
        munmap((void *)(uintptr_t)closing->shards[i].data, closing->shards[i].size);
        free(closing->shards[i].path);
    }
    for (size_t i = 0; i < closing->count; i++)
        free((void *)(uintptr_t)closing->entries[i].tensor.name);
    free(closing->shards);
    free(closing->entries);
    free(closing);
}

const safetensor_t *safetensors_find(const safetensors_t *self, const char *name)
{
    entry_t key = { .tensor.name = name };
    if (!self->count) return NULL;
    const entry_t *entry = bsearch(&key, self->entries, self->count, sizeof key, by_name);
    return entry ? &entry->tensor : NULL;
}

size_t safetensors_count(const safetensors_t *self)
{
    return self->count;
}

const safetensor_t *safetensors_at(const safetensors_t *self, size_t index)
{
    invariant(index < self->count);
    return &self->entries[index].tensor;
}

const char *safetensors_file(const safetensors_t *self, const safetensor_t *tensor)
{
    const entry_t *entry = (const entry_t *)(const void *)tensor;
    return self->shards[entry->shard].path;
}
