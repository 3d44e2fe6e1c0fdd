/* tests/ep/test_ep_shm.c - ranks that are processes exchange rows, lose each other and meet again.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/ep/group.h"

enum {
    ROWS_MAX = 24,
    HIDDEN = 160,
    EXPERTS = 16,
    TOP_K = 3,
    STEPS = 12,
    LAYERS = 3,
    WAIT_MS = 5000
};

static char region_path[64];

/* In rank bodies instead of cmocka's: a child must end, not go on with the parent's tests. */
#define demand(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static int make_path(void **state)
{
    snprintf(region_path, sizeof region_path, "/tmp/troupe-test-ep-%d", (int)getpid());
    unlink(region_path);
    return 0;
}

static int remove_path(void **state)
{
    unlink(region_path);
    return 0;
}

static ep_options_t options_of(uint32_t rank, uint32_t ranks, dtype_t carrier)
{
    return (ep_options_t){ .path = ranks > 1 ? region_path : NULL,
                           .rank = rank,
                           .ranks = ranks,
                           .rows_max = ROWS_MAX,
                           .hidden = HIDDEN,
                           .top_k = TOP_K,
                           .experts = EXPERTS,
                           .carrier = carrier,
                           .wait_ms = WAIT_MS };
}

/* ---- a layer whose experts are easy to know ---- */

typedef struct {
    float x[ROWS_MAX * HIDDEN], weights[ROWS_MAX * TOP_K], out[ROWS_MAX * HIDDEN];
    uint32_t ids[ROWS_MAX * TOP_K];
    uint32_t rows;
} layer_input_t;

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* What `source` brings to a layer depends on its name alone, so that any process can make it. */
static void make_input(layer_input_t *in, uint32_t source, uint32_t step)
{
    uint32_t seed = source * 7919 + step * 104729 + 1;
    in->rows = next_random(&seed) % (ROWS_MAX + 1);
    if (step % 4 == source % 4) in->rows = 0;
    for (uint32_t i = 0; i < in->rows * HIDDEN; i++)
        in->x[i] = (float)(next_random(&seed) % 2001) / 500.0f - 2.0f;
    for (uint32_t t = 0; t < in->rows; t++) {
        uint32_t first = next_random(&seed) % EXPERTS;
        for (uint32_t k = 0; k < TOP_K; k++) {
            in->ids[t * TOP_K + k] = (first + k * 5) % EXPERTS;
            in->weights[t * TOP_K + k] = (float)(next_random(&seed) % 1000) / 1000.0f;
        }
    }
    memset(in->out, 0, sizeof in->out);
}

static tensor_t rows_of(float *data, uint32_t rows)
{
    return (tensor_t){
        .data = data, .dtype = DTYPE_F32, .rows = rows, .cols = HIDDEN, .stride = HIDDEN
    };
}

/* Expert e gives (e + 1) * x + e. */
static void run_experts(queue_t *q, const ep_work_t *work, uint32_t first_expert, uint32_t experts)
{
    static float wide[EXPERTS * ROWS_MAX * TOP_K * HIDDEN];
    tensor_t all = rows_of(wide, work->count);
    demand((size_t)work->count * HIDDEN <= sizeof wide / sizeof *wide);
    if (!work->count) return;
    demand((ops_judge.cast(q, &all, &work->rows)) == 0);
    for (uint32_t e = 0; e < experts; e++)
        for (size_t i = (size_t)work->offsets[e] * HIDDEN;
             i < (size_t)work->offsets[e + 1] * HIDDEN; i++)
            wide[i] = wide[i] * (float)(first_expert + e + 1) + (float)(first_expert + e);
    demand((ops_judge.cast(q, &work->outputs, &all)) == 0);
}

static err_t run_layer(ep_group_t *group, queue_t *q, const ep_options_t *options,
                       layer_input_t *in)
{
    uint32_t experts = EXPERTS / options->ranks;
    tensor_t x = rows_of(in->x, in->rows), out = rows_of(in->out, in->rows), rows;
    const uint32_t *index;
    ep_work_t work;
    err_t error = ep_dispatch(group, &ops_judge, q, &x, in->ids, &work);
    if (error) return error;
    run_experts(q, &work, options->rank * experts, experts);
    error = ep_combine(group, &rows, &index);
    if (error || !in->rows) return error;
    demand((ops_judge.combine(q, &out, &rows, index, in->weights, TOP_K)) == 0);
    return ERR_OK;
}

/* The same rows through a group of one. */
static void check_against_one(queue_t *q, layer_input_t *got, uint32_t source, uint32_t step,
                              dtype_t carrier)
{
    static layer_input_t expected;
    ep_options_t options = options_of(0, 1, carrier);
    ep_group_t *alone = ep_group_new(&options);
    demand(alone);
    demand((ep_group_join(alone)) == ERR_OK);
    make_input(&expected, source, step);
    demand((run_layer(alone, q, &options, &expected)) == ERR_OK);
    demand(memcmp(got->out, expected.out, sizeof got->out) == 0);
    ep_group_destroy(&alone);
}

/* ---- processes ---- */

typedef void rank_fn(ep_group_t *group, queue_t *q, const ep_options_t *options);

static void run_rank(rank_fn *body, uint32_t rank, uint32_t ranks, dtype_t carrier)
{
    ep_options_t options = options_of(rank, ranks, carrier);
    ep_group_t *group = ep_group_new(&options);
    queue_t *q = queue_new_cpu(1 << 20, 1);
    demand(group && q);
    body(group, q, &options);
    queue_destroy(&q);
    ep_group_destroy(&group);
}

static pid_t fork_rank(rank_fn *body, uint32_t rank, uint32_t ranks, dtype_t carrier)
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child) return child;
    run_rank(body, rank, ranks, carrier);
    _exit(0);
}

static void wait_child(pid_t child, bool is_killed)
{
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (is_killed)
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    else
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void run_steps(ep_group_t *group, queue_t *q, const ep_options_t *options)
{
    static layer_input_t in;
    demand((ep_group_join(group)) == ERR_OK);
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t all;
        ep_group_ring(group);
        demand((ep_group_agree(group, 1u << options->rank, &all)) == ERR_OK);
        demand((all) == (1u << options->ranks) - 1);
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            make_input(&in, options->rank, step * LAYERS + layer);
            demand((run_layer(group, q, options, &in)) == ERR_OK);
            check_against_one(q, &in, options->rank, step * LAYERS + layer, options->carrier);
        }
    }
    uint32_t all;
    demand(ep_group_agree(group, 0, &all) == ERR_OK);
}

static void check_ranks(uint32_t ranks, dtype_t carrier)
{
    pid_t children[8];
    for (uint32_t rank = 1; rank < ranks; rank++)
        children[rank] = fork_rank(run_steps, rank, ranks, carrier);
    run_rank(run_steps, 0, ranks, carrier);
    for (uint32_t rank = 1; rank < ranks; rank++) wait_child(children[rank], false);
}

/* If this failed, a model's answers would depend on how many ranks share its experts. */
static void test_ep_two_and_four_ranks_give_the_bits_of_one(void **state)
{
    check_ranks(2, DTYPE_F32);
    check_ranks(4, DTYPE_F32);
    check_ranks(2, DTYPE_BF16);
    check_ranks(4, DTYPE_BF16);
}

/* If this failed, dispatch in FP8 would send scales to the wrong rows. */
static void test_ep_fp8_rows_give_the_bits_of_one(void **state)
{
    check_ranks(2, DTYPE_F8E4M3);
    check_ranks(4, DTYPE_F8E4M3);
}

/* If this failed, FP8 rows could be anything that is equal on all ranks: they must be near the rows
 * that were sent. */
static void test_ep_fp8_rows_stay_near_the_exact_ones(void **state)
{
    static layer_input_t exact, rounded;
    queue_t *q = queue_new_cpu(1 << 20, 1);
    double distance = 0, norm = 0;
    for (int i = 0; i < 2; i++) {
        ep_options_t options = options_of(0, 1, i ? DTYPE_F8E4M3 : DTYPE_F32);
        ep_group_t *group = ep_group_new(&options);
        assert_int_equal(ep_group_join(group), ERR_OK);
        make_input(i ? &rounded : &exact, 1, 2);
        assert_int_equal(run_layer(group, q, &options, i ? &rounded : &exact), ERR_OK);
        ep_group_destroy(&group);
    }
    assert_true(exact.rows > 0);
    for (uint32_t i = 0; i < exact.rows * HIDDEN; i++) {
        double difference = (double)rounded.out[i] - (double)exact.out[i];
        distance += difference * difference;
        norm += (double)exact.out[i] * (double)exact.out[i];
    }
    assert_true(distance > 0 && distance < norm * 0.05 * 0.05);
    queue_destroy(&q);
}

/* ---- faults ---- */

static void step_then_die(ep_group_t *group, queue_t *q, const ep_options_t *options)
{
    static layer_input_t in;
    tensor_t x;
    ep_work_t work;
    demand((ep_group_join(group)) == ERR_OK);
    make_input(&in, options->rank, 0);
    demand((run_layer(group, q, options, &in)) == ERR_OK);
    make_input(&in, options->rank, 1);
    x = rows_of(in.x, in.rows);
    demand((ep_dispatch(group, &ops_judge, q, &x, in.ids, &work)) == ERR_OK);
    kill(getpid(), SIGKILL);
}

static void join_and_step(ep_group_t *group, queue_t *q, const ep_options_t *options)
{
    static layer_input_t in;
    uint32_t all;
    demand((ep_group_join(group)) == ERR_OK);
    make_input(&in, options->rank, 1);
    demand((run_layer(group, q, options, &in)) == ERR_OK);
    check_against_one(q, &in, options->rank, 1, options->carrier);
    demand((ep_group_agree(group, 0, &all)) == ERR_OK);
}

/* If this failed, one dead rank would hang its group for ever, or leave the others unable to go on
 * with its successor. */
static void test_ep_killed_rank_ends_the_step_and_its_successor_joins(void **state)
{
    static layer_input_t in;
    ep_options_t options = options_of(0, 2, DTYPE_F32);
    options.wait_ms = 300;
    ep_group_t *group = ep_group_new(&options);
    queue_t *q = queue_new_cpu(1 << 20, 1);
    assert_true(group && q);
    pid_t child = fork_rank(step_then_die, 1, 2, DTYPE_F32);
    while (ep_group_join(group)) continue;
    make_input(&in, 0, 0);
    assert_int_equal(run_layer(group, q, &options, &in), ERR_OK);
    make_input(&in, 0, 1);
    assert_int_equal(run_layer(group, q, &options, &in), ERR_EP_PEER);
    assert_false(ep_group_is_joined(group));
    wait_child(child, true);
    assert_int_equal(ep_group_join(group), ERR_EP_PEER);
    child = fork_rank(join_and_step, 1, 2, DTYPE_F32);
    while (ep_group_join(group)) continue;
    make_input(&in, 0, 1);
    assert_int_equal(run_layer(group, q, &options, &in), ERR_OK);
    check_against_one(q, &in, 0, 1, DTYPE_F32);
    uint32_t all;
    assert_int_equal(ep_group_agree(group, 0, &all), ERR_OK);
    wait_child(child, false);
    queue_destroy(&q);
    ep_group_destroy(&group);
}

static void join_then_die(ep_group_t *group, queue_t *q, const ep_options_t *options)
{
    demand((ep_group_join(group)) == ERR_OK);
    kill(getpid(), SIGKILL);
}

/* If this failed, deleting the file would leave a rank that is started anew waiting for others who
 * wait for it. */
static void test_ep_deleted_file_ranks_meet_in_the_new_one(void **state)
{
    static layer_input_t in;
    uint32_t all;
    ep_options_t options = options_of(0, 2, DTYPE_F32);
    options.wait_ms = 300;
    ep_group_t *group = ep_group_new(&options);
    queue_t *q = queue_new_cpu(1 << 20, 1);
    assert_true(group && q);
    pid_t child = fork_rank(join_then_die, 1, 2, DTYPE_F32);
    while (ep_group_join(group)) continue;
    wait_child(child, true);
    assert_int_equal(unlink(region_path), 0);
    assert_true(ep_group_is_joined(group) && !ep_group_is_rung(group));
    child = fork_rank(join_and_step, 1, 2, DTYPE_F32);
    for (int tries = 0; ep_group_is_joined(group); tries++) {
        assert_true(tries < 5000);
        usleep(1000);
    }
    assert_true(ep_group_is_rung(group));
    while (ep_group_join(group)) continue;
    make_input(&in, 0, 1);
    assert_int_equal(run_layer(group, q, &options, &in), ERR_OK);
    check_against_one(q, &in, 0, 1, DTYPE_F32);
    assert_int_equal(ep_group_agree(group, 0, &all), ERR_OK);
    wait_child(child, false);
    queue_destroy(&q);
    ep_group_destroy(&group);
}

/* If this failed, a rank whose options are gone, as the engine's are, would look for its file under
 * whatever lies there since, and leave its group for it. */
static void test_ep_path_is_the_groups_own(void **state)
{
    char path[sizeof region_path];
    ep_options_t options = options_of(0, 1, DTYPE_F32);
    memcpy(path, region_path, sizeof path);
    options.path = path;
    ep_group_t *group = ep_group_new(&options);
    assert_non_null(group);
    assert_int_equal(ep_group_join(group), ERR_OK);
    snprintf(path, sizeof path, "/proc/self/exe");
    assert_true(ep_group_is_joined(group) && !ep_group_is_rung(group));
    ep_group_destroy(&group);
}

static void send_nonsense(ep_group_t *group, queue_t *q, const ep_options_t *options)
{
    static layer_input_t in;
    tensor_t x = rows_of(in.x, ROWS_MAX);
    ep_work_t work;
    demand((ep_group_join(group)) == ERR_OK);
    for (uint32_t i = 0; i < ROWS_MAX * TOP_K; i++)
        in.ids[i] = options->rank == 1 ? UINT32_MAX - i : i % EXPERTS;
    demand((ep_dispatch(group, &ops_judge, q, &x, in.ids, &work)) == ERR_EP_PEER);
}

/* If this failed, what a dying rank scribbles would be used as an index. */
static void test_ep_nonsense_from_a_rank_is_refused(void **state)
{
    pid_t child = fork_rank(send_nonsense, 1, 2, DTYPE_F32);
    run_rank(send_nonsense, 0, 2, DTYPE_F32);
    wait_child(child, false);
}

static void leave_after_one_phase(ep_group_t *group, queue_t *q, const ep_options_t *options)
{
    uint32_t all;
    demand(ep_group_join(group) == ERR_OK);
    demand(ep_group_agree(group, 1, &all) == ERR_OK);
    if (options->rank == 0) demand(ep_group_agree(group, 1, &all) == ERR_EP_PEER);
}

/* If this failed, a rank that stops in order would cost the others a whole time-out. */
static void test_ep_rank_that_leaves_ends_the_step(void **state)
{
    pid_t child = fork_rank(leave_after_one_phase, 1, 2, DTYPE_F32);
    run_rank(leave_after_one_phase, 0, 2, DTYPE_F32);
    wait_child(child, false);
}

/* ---- the file ---- */

/* If this failed, a worker started twice would write into the memory of the one that runs. */
static void test_ep_slot_in_use_is_refused(void **state)
{
    ep_options_t options = options_of(0, 2, DTYPE_F32);
    options.wait_ms = 20;
    ep_group_t *first = ep_group_new(&options);
    assert_non_null(first);
    assert_null(ep_group_new(&options));
    ep_group_destroy(&first);
    first = ep_group_new(&options);
    assert_non_null(first);
    ep_group_destroy(&first);
}

/* If this failed, ranks with different models would read each other's rows with the wrong width. */
static void test_ep_other_layout_is_refused_while_ranks_live_and_replaced_after(void **state)
{
    ep_options_t options = options_of(0, 2, DTYPE_F32), other = options_of(1, 2, DTYPE_F32);
    other.hidden = HIDDEN * 2;
    ep_group_t *first = ep_group_new(&options);
    assert_non_null(first);
    assert_null(ep_group_new(&other));
    ep_group_destroy(&first);
    ep_group_t *second = ep_group_new(&other);
    assert_non_null(second);
    ep_group_destroy(&second);
}

/* If this failed, a rank would be ended by a signal when the file system is full. */
static void test_ep_memory_is_there_or_refused_from_the_start(void **state)
{
    ep_options_t options = options_of(0, 2, DTYPE_F32);
    struct rlimit before, low = { .rlim_cur = 4096 };
    struct stat status;
    unlink(region_path);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    low.rlim_max = before.rlim_max;
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0); /* as a full disk would refuse it */
    ep_group_t *group = ep_group_new(&options);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    (void)signal(SIGXFSZ, SIG_DFL);
    assert_null(group);
    group = ep_group_new(&options);
    assert_non_null(group);
    assert_int_equal(stat(region_path, &status), 0);
    assert_in_range((uint64_t)status.st_blocks * 512, (uint64_t)status.st_size, UINT64_MAX);
    ep_group_destroy(&group);
}

/* ---- rings ---- */

/* If this failed, an idle rank would sleep through a step, or through the news for its own engine.
 */
static void test_ep_idle_rank_hears_rings_and_its_own_word(void **state)
{
    ep_options_t options[2] = { options_of(0, 2, DTYPE_F32), options_of(1, 2, DTYPE_F32) };
    ep_group_t *groups[2] = { ep_group_new(&options[0]), NULL };
    uint32_t word = 7;
    options[1].wait_ms = options[0].wait_ms;
    groups[1] = ep_group_new(&options[1]);
    assert_true(groups[0] && groups[1]);
    assert_false(ep_group_is_rung(groups[0]));
    ep_group_wait(groups[0], &word, 6,
                  600000000); /* the word differs: at once, or this test never ends */
    fflush(NULL);
    pid_t child = fork();
    if (!child) _exit(ep_group_join(groups[1]) || (ep_group_ring(groups[1]), false));
    while (!ep_group_is_rung(groups[0])) ep_group_wait(groups[0], &word, 7, 600000000);
    assert_int_equal(ep_group_join(groups[0]), ERR_OK);
    wait_child(child, false);
    assert_true(ep_group_is_rung(groups[0]));
    ep_group_ring(groups[0]);
    assert_false(ep_group_is_rung(groups[0]));
    ep_group_destroy(&groups[1]);
    ep_group_destroy(&groups[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ep_two_and_four_ranks_give_the_bits_of_one),
        cmocka_unit_test(test_ep_fp8_rows_give_the_bits_of_one),
        cmocka_unit_test(test_ep_fp8_rows_stay_near_the_exact_ones),
        cmocka_unit_test(test_ep_killed_rank_ends_the_step_and_its_successor_joins),
        cmocka_unit_test(test_ep_deleted_file_ranks_meet_in_the_new_one),
        cmocka_unit_test(test_ep_path_is_the_groups_own),
        cmocka_unit_test(test_ep_nonsense_from_a_rank_is_refused),
        cmocka_unit_test(test_ep_rank_that_leaves_ends_the_step),
        cmocka_unit_test(test_ep_slot_in_use_is_refused),
        cmocka_unit_test(test_ep_other_layout_is_refused_while_ranks_live_and_replaced_after),
        cmocka_unit_test(test_ep_memory_is_there_or_refused_from_the_start),
        cmocka_unit_test(test_ep_idle_rank_hears_rings_and_its_own_word),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
