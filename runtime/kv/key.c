/* runtime/kv/key.c - chained block keys with SHA-256 through libcrypto's EVP. */
#include "key.h"

#include <assert.h>

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "../invariant.h"

enum { SHA256_BYTES = 32 };
static_assert(sizeof(block_key_t) == KEY_BYTES, "a key is two words");
static const char root_label[] = "troupe kv root";

struct key_maker {
    EVP_MD *digest;
    EVP_MD_CTX *context;
};

block_key_t block_key_load(const void *keys, uint32_t index)
{
    block_key_t key;
    memcpy(&key, (const uint8_t *)keys + (size_t)index * KEY_BYTES, KEY_BYTES);
    return key;
}

void block_key_store(void *keys, uint32_t index, block_key_t key)
{
    memcpy((uint8_t *)keys + (size_t)index * KEY_BYTES, &key, KEY_BYTES);
}

key_maker_t *key_maker_new(void)
{
    key_maker_t *self = calloc(1, sizeof *self);
    if (self == NULL) return NULL;
    self->digest = EVP_MD_fetch(NULL, "SHA256", NULL);
    self->context = EVP_MD_CTX_new();
    if (self->digest == NULL || self->context == NULL) key_maker_destroy(&self);
    return self;
}

void key_maker_destroy(key_maker_t **self)
{
    if (*self == NULL) return;
    EVP_MD_CTX_free((*self)->context);
    EVP_MD_free((*self)->digest);
    free(*self);
    *self = NULL;
}

/* SHA-256 of two strings behind each other, cut.  It cannot fail with a digest that was fetched. */
static block_key_t hash(key_maker_t *self, bytes_t first, bytes_t second)
{
    uint8_t digest[SHA256_BYTES];
    unsigned size = 0;
    int ok = EVP_DigestInit_ex2(self->context, self->digest, NULL);
    ok = ok && EVP_DigestUpdate(self->context, first.data, first.size);
    ok = ok && EVP_DigestUpdate(self->context, second.data, second.size);
    ok = ok && EVP_DigestFinal_ex(self->context, digest, &size);
    invariant(ok && size == SHA256_BYTES);
    return block_key_load(digest, 0);
}

block_key_t key_maker_root(key_maker_t *self, uint64_t model_key)
{
    uint8_t little_endian[8];
    for (int i = 0; i < 8; i++) little_endian[i] = (uint8_t)(model_key >> (8 * i));
    return hash(self, (bytes_t){ root_label, sizeof root_label - 1 },
                (bytes_t){ little_endian, sizeof little_endian });
}

block_key_t key_maker_next(key_maker_t *self, block_key_t parent, const uint32_t *tokens)
{
    uint8_t little_endian[4 * BLOCK_TOKENS];
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
        for (uint32_t byte = 0; byte < 4; byte++)
            little_endian[4 * i + byte] = (uint8_t)(tokens[i] >> (8 * byte));
    return hash(self, (bytes_t){ &parent, sizeof parent },
                (bytes_t){ little_endian, sizeof little_endian });
}

uint32_t key_maker_prompt(key_maker_t *self, uint64_t model_key, const uint32_t *tokens,
                          uint32_t token_count, uint8_t *keys)
{
    uint32_t count = token_count / BLOCK_TOKENS;
    invariant(count <= KEYS_MAX);
    block_key_t key = key_maker_root(self, model_key);
    for (uint32_t i = 0; i < count; i++) {
        key = key_maker_next(self, key, tokens + (size_t)i * BLOCK_TOKENS);
        block_key_store(keys, i, key);
    }
    return count;
}
