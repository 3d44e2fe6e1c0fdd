/* tests/world/test_pool.c - KV blocks are pulled from another actor's pool, and what is not what
 * was offered is noticed. */
#include "toy.h"

#include <xxhash.h>

#include "runtime/engine/stub.h"
#include "runtime/pool.h"
#include "runtime/zmq/ports.h"

static const address_t prefill = { ROLE_prefill_worker, 0 }, decode = { ROLE_decode_worker, 0 };

enum { BLOCKS = 300 };

static err_t open_pool(actor_t *world)
{
    return actor_pool_open(world, BLOCKS);
}

static uint8_t *block(actor_t *world, uint32_t index)
{
    world_pool_t pool = world_pool(world);
    return (uint8_t *)pool.base + index * pool.block_bytes;
}

static size_t block_size(actor_t *world)
{
    return world_pool(world).block_bytes;
}

static int task_fill(toy_t *toy, actor_t *world, void *arg)
{
    uint64_t *checksums = arg;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        for (size_t j = 0; j < block_size(world); j++)
            block(world, i)[j] = (uint8_t)(i * 7 + j * 13);
        checksums[i] = XXH3_64bits(block(world, i), block_size(world));
    }
    return 0;
}

typedef struct {
    pool_pull_t pull;
    uint32_t times;
} pulls_t;

static int task_pull(toy_t *toy, actor_t *world, void *arg)
{
    const pulls_t *pulls = arg;
    err_t error = ERR_OK;
    for (uint32_t i = 0; i < pulls->times && !error; i++)
        error = actor_pool_pull(world, &pulls->pull);
    return (int)error;
}

/* Block i of ours must be block BLOCKS - 1 - i of the other: the count of those that are. */
static int task_compare(toy_t *toy, actor_t *world, void *arg)
{
    int same = 0;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t source = BLOCKS - 1 - i;
        bool is_same = true;
        for (size_t j = 0; j < block_size(world); j++)
            is_same = is_same && block(world, i)[j] == (uint8_t)(source * 7 + j * 13);
        same += is_same;
    }
    return same;
}

static int task_checksum(toy_t *toy, actor_t *world, void *arg)
{
    const uint32_t blocks[3] = { 299, 0, 5 };
    return (int)actor_pool_checksum(world, 77, blocks, 3);
}

static int task_spoil(toy_t *toy, actor_t *world, void *arg)
{
    block(world, *(uint32_t *)arg)[3] ^= 1;
    return 0;
}

typedef struct {
    config_t *config;
    toy_t *owner, *puller;
    uint32_t source[256], target[256];
    uint64_t all[BLOCKS], checksums[256];
    pulls_t pulls;
} scene_t;

static void scene_open(scene_t *self)
{
    self->config = toy_config();
    self->config->engine.kind = 1;
    self->owner = toy_start_with(self->config, prefill, 5, open_pool);
    self->puller = toy_start_with(self->config, decode, 6, open_pool);
    assert_true(toy_wait(self->puller, MSG_peer_up, 1));
    assert_int_equal(toy_do(self->owner, task_fill, self->all), 0);
    for (uint32_t i = 0; i < 256; i++) {
        self->source[i] = BLOCKS - 1 - i;
        self->target[i] = i;
        self->checksums[i] = self->all[BLOCKS - 1 - i];
    }
    self->pulls = (pulls_t){ .times = 1,
                             .pull = { .job = 1,
                                       .peer = prefill,
                                       .peer_epoch = 5,
                                       .source = self->source,
                                       .target = self->target,
                                       .checksums = self->checksums,
                                       .count = 256 } };
}

static void scene_close(scene_t *self)
{
    if (self->owner) assert_int_equal(toy_stop(self->owner), ERR_OK);
    assert_int_equal(toy_stop(self->puller), ERR_OK);
    toy_config_free(self->config);
}

/* If this failed, decode workers would compute on KV that nobody wrote. */
static void test_pool_pull_copies_the_blocks_asked_for(void **state)
{
    static scene_t scene;
    scene_open(&scene);
    assert_int_equal(toy_do(scene.puller, task_pull, &scene.pulls), ERR_OK);
    assert_true(toy_wait(scene.puller, MSG_pool_done, 1));
    toy_event_t done = toy_event(scene.puller, MSG_pool_done, 0);
    assert_int_equal(done.pool_done.job, 1);
    assert_int_equal(done.pool_done.error, ERR_OK);
    assert_int_equal(toy_do(scene.puller, task_compare, NULL), 256);
    assert_int_equal(toy_do(scene.owner, task_checksum, NULL), ERR_OK);
    assert_true(toy_wait(scene.owner, MSG_pool_done, 1));
    done = toy_event(scene.owner, MSG_pool_done, 0);
    assert_int_equal(done.pool_done.job, 77);
    assert_int_equal(done.pool_done.checksums_count, 3);
    assert_int_equal(done.pool_done.checksums[0], scene.all[299]);
    assert_int_equal(done.pool_done.checksums[1], scene.all[0]);
    assert_int_equal(done.pool_done.checksums[2], scene.all[5]);
    scene_close(&scene);
}

/* If this failed, blocks that their owner reused in the meantime would be taken for the prompt's.
 */
static void test_pool_pull_of_changed_block_fails_checksum(void **state)
{
    static scene_t scene;
    uint32_t spoiled = BLOCKS - 1 - 100;
    scene_open(&scene);
    assert_int_equal(toy_do(scene.owner, task_spoil, &spoiled), 0);
    assert_int_equal(toy_do(scene.puller, task_pull, &scene.pulls), ERR_OK);
    assert_true(toy_wait(scene.puller, MSG_pool_done, 1));
    assert_int_equal(toy_event(scene.puller, MSG_pool_done, 0).pool_done.error, ERR_CHECKSUM);
    scene_close(&scene);
}

/* If this failed, a worker would wait for ever, or read another life's memory, when the owner
 * restarted. */
static void test_pool_pull_from_ended_or_other_life_is_lost(void **state)
{
    static scene_t scene;
    scene_open(&scene);
    scene.pulls.pull.peer_epoch = 4;
    assert_int_equal(toy_do(scene.puller, task_pull, &scene.pulls), ERR_OK);
    assert_true(toy_wait(scene.puller, MSG_pool_done, 1));
    assert_int_equal(toy_event(scene.puller, MSG_pool_done, 0).pool_done.error, ERR_LOST);
    scene.pulls.pull.peer_epoch = 5;
    assert_int_equal(toy_do(scene.puller, task_pull, &scene.pulls), ERR_OK);
    assert_true(toy_wait(scene.puller, MSG_pool_done, 2));
    assert_int_equal(toy_event(scene.puller, MSG_pool_done, 1).pool_done.error, ERR_OK);
    assert_int_equal(toy_stop(scene.owner), ERR_OK);
    scene.owner = NULL;
    assert_int_equal(toy_do(scene.puller, task_pull, &scene.pulls), ERR_OK);
    assert_true(toy_wait(scene.puller, MSG_pool_done, 3));
    assert_int_equal(toy_event(scene.puller, MSG_pool_done, 2).pool_done.error, ERR_LOST);
    scene_close(&scene);
}

static void delete_names(const config_t *config)
{
    char path[512];
    uint32_t deleted = 0;
    DIR *directory = opendir(config->wire.directory);
    assert_non_null(directory);
    for (const struct dirent *entry; (entry = readdir(directory));) {
        if (!strstr(entry->d_name, ".pool")) continue;
        snprintf(path, sizeof path, "%s/%s", config->wire.directory, entry->d_name);
        assert_int_equal(unlink(path), 0);
        deleted++;
    }
    closedir(directory);
    assert_int_equal(deleted, 2);
}

/* If this failed, somebody who cleans up the directory would end all transfers of a company that
 * looks healthy. */
static void test_pool_deleted_name_comes_back(void **state)
{
    static scene_t scene;
    scene_open(&scene);
    delete_names(scene.config);
    for (uint32_t pulls = 1, error = ERR_LOST; error == ERR_LOST; pulls++) {
        assert_true(pulls < 100);
        assert_int_equal(toy_do(scene.puller, task_pull, &scene.pulls), ERR_OK);
        assert_true(toy_wait(scene.puller, MSG_pool_done, pulls));
        error = toy_event(scene.puller, MSG_pool_done, pulls - 1).pool_done.error;
        usleep(10000);
    }
    assert_int_equal(toy_do(scene.puller, task_compare, NULL), 256);
    scene_close(&scene);
}

/* If this failed, a worker from which nobody can pull would count as one that works. */
static void test_pool_name_that_cannot_come_back_ends_its_owner(void **state)
{
    static scene_t scene;
    char away[512];
    scene_open(&scene);
    snprintf(away, sizeof away, "%s.away", scene.config->wire.directory);
    assert_int_equal(rename(scene.config->wire.directory, away), 0);
    assert_false(toy_wait(scene.owner, MSG_pool_done, 1)); /* it ends instead */
    assert_int_equal(toy_stop(scene.owner), ERR_IO);
    assert_false(toy_wait(scene.puller, MSG_pool_done, 1));
    assert_int_equal(toy_stop(scene.puller), ERR_IO);
    assert_int_equal(rename(away, scene.config->wire.directory), 0);
    toy_config_free(scene.config);
}

/* Descriptors of this process, in which owner and puller both live, that lead to pools. */
static uint32_t count_open_pools(void)
{
    uint32_t count = 0;
    char target[256];
    DIR *directory = opendir("/proc/self/fd");
    assert_non_null(directory);
    for (const struct dirent *entry; (entry = readdir(directory));) {
        ssize_t size = readlinkat(dirfd(directory), entry->d_name, target, sizeof target - 1);
        if (size < 0) continue;
        target[size] = 0;
        count += strstr(target, "memfd:troupe-pool") != NULL;
    }
    closedir(directory);
    return count;
}

/* If this failed, a worker that is restarted again and again would fill the memory of its peers'
 * machine with the pools of its dead lives. */
static void test_pool_of_a_dead_life_is_let_go(void **state)
{
    static scene_t scene;
    scene_open(&scene);
    for (uint32_t life = 0; life < 4; life++) {
        scene.pulls.pull.peer_epoch = 5 + life;
        assert_int_equal(toy_do(scene.puller, task_pull, &scene.pulls), ERR_OK);
        assert_true(toy_wait(scene.puller, MSG_pool_done, 1 + life));
        assert_int_equal(toy_event(scene.puller, MSG_pool_done, life).pool_done.error, ERR_OK);
        assert_int_equal(count_open_pools(), 2 + 1); /* each one's own, and what is pulled from */
        assert_int_equal(toy_stop(scene.owner), ERR_OK);
        scene.owner = toy_start_with(scene.config, prefill, 6 + life, open_pool);
        assert_true(toy_wait(scene.puller, MSG_peer_up, 2 + life));
        assert_int_equal(toy_do(scene.owner, task_fill, scene.all), 0);
    }
    scene_close(&scene);
}

/* If this failed, a burst of pulls would overwrite jobs that are still running. */
static void test_pool_more_jobs_than_allowed_are_refused_the_rest_done(void **state)
{
    static scene_t scene;
    scene_open(&scene);
    scene.pulls.times = POOL_JOBS_MAX + 1;
    assert_int_equal(toy_do(scene.puller, task_pull, &scene.pulls), ERR_OVERLOAD);
    assert_true(toy_wait(scene.puller, MSG_pool_done, POOL_JOBS_MAX));
    assert_int_equal(toy_count(scene.puller, MSG_pool_done), POOL_JOBS_MAX);
    scene.pulls.times = 1;
    assert_int_equal(toy_do(scene.puller, task_pull, &scene.pulls), ERR_OK);
    assert_true(toy_wait(scene.puller, MSG_pool_done, POOL_JOBS_MAX + 1));
    scene_close(&scene);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool_pull_copies_the_blocks_asked_for),
        cmocka_unit_test(test_pool_pull_of_changed_block_fails_checksum),
        cmocka_unit_test(test_pool_pull_from_ended_or_other_life_is_lost),
        cmocka_unit_test(test_pool_of_a_dead_life_is_let_go),
        cmocka_unit_test(test_pool_deleted_name_comes_back),
        cmocka_unit_test(test_pool_name_that_cannot_come_back_ends_its_owner),
        cmocka_unit_test(test_pool_more_jobs_than_allowed_are_refused_the_rest_done),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
