/* actors/kv_store.h - keeps KV blocks in memory for prompts to come. */
#ifndef ACTORS_KV_STORE_H
#define ACTORS_KV_STORE_H

#include "../runtime/actor.h"

extern const actor_class_t kv_store_class;

#endif
