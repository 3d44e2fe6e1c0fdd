/* runtime/model/digest.c - a cheap name for the weights of a checkpoint, the same in every process.
 */
#include "digest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

enum { PATH_BYTES = 4096 + 256 };

uint64_t digest_page_at(uint64_t size, uint32_t index, uint32_t count)
{
    if (size <= DIGEST_PAGE_BYTES || count < 2) return 0;
    return (size - DIGEST_PAGE_BYTES) / (count - 1) * index +
           (size - DIGEST_PAGE_BYTES) % (count - 1) * index / (count - 1);
}

static int is_shard(const struct dirent *entry)
{
    static const char end[] = ".safetensors";
    size_t size = strlen(entry->d_name);
    return size >= sizeof end && strcmp(entry->d_name + size - (sizeof end - 1), end) == 0;
}

/* The order of names must not depend on the locale. */
static int compare(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static bool mix_pages(int descriptor, uint64_t size, uint32_t count, uint64_t *digest)
{
    uint8_t page[DIGEST_PAGE_BYTES];
    size_t wanted = size < sizeof page ? (size_t)size : sizeof page;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t at = digest_page_at(size, i, count);
        if (pread(descriptor, page, wanted, (off_t)at) != (ssize_t)wanted) return false;
        *digest = XXH3_64bits_withSeed(page, wanted, *digest);
    }
    return true;
}

static err_t mix_file(uint64_t *digest, const char *path, uint32_t pages, error_text_t *why)
{
    struct stat status = { .st_size = 0 };
    errno = EIO; /* for a file that got shorter while it was read */
    int descriptor = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    bool is_read = descriptor >= 0 && fstat(descriptor, &status) == 0;
    uint64_t size = (uint64_t)status.st_size;
    *digest = XXH3_64bits_withSeed(&size, sizeof size, *digest);
    is_read = is_read && mix_pages(descriptor, size, pages, digest);
    if (!is_read) (void)model_refuse(why, "%.300s: %s", path, strerror(errno));
    if (descriptor >= 0) close(descriptor);
    return is_read ? ERR_OK : ERR_MODEL;
}

static uint32_t pages_of_each(int files)
{
    uint32_t pages = files > 0 ? DIGEST_PAGES_SOFT / (uint32_t)files : 0;
    if (pages > DIGEST_PAGES_MAX) return DIGEST_PAGES_MAX;
    return pages < DIGEST_PAGES_MIN ? DIGEST_PAGES_MIN : pages;
}

err_t weights_digest(uint64_t *digest, const char *dir, error_text_t *why)
{
    struct dirent **entries = NULL;
    char path[PATH_BYTES];
    int count = scandir(dir, &entries, is_shard, compare);
    err_t error = ERR_OK;
    *digest = 0;
    if (count < 0 || count > DIGEST_FILES_MAX)
        error =
            model_refuse(why, "%.300s: %s", dir, count < 0 ? strerror(errno) : "too many files");
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        snprintf(path, sizeof path, "%.4095s/%.255s", dir, name);
        *digest = XXH3_64bits_withSeed(name, strlen(name), *digest);
        if (error == ERR_OK) error = mix_file(digest, path, pages_of_each(count), why);
        free(entries[i]);
    }
    free(entries);
    return error;
}
