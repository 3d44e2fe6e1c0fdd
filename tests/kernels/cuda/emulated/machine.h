/* tests/kernels/cuda/emulated/machine.h - a GPU in plain C++, so that the kernels of kernels/cuda
 * run where there is none: every thread is a coroutine, and a seed decides who goes on next.
 *
 * Modelled: blocks, clusters, warps that exchange values, named barriers, barriers in shared memory
 * with arrivals and bytes, bulk copies and warpgroup products that happen at any time between their
 * issue and the wait for them and see plain writes only after a fence, programmatic dependent
 * launch.  Not modelled: time, caches, the order in which plain writes reach other threads, the
 * rounding inside of products.
 *
 * A seed's schedule is the same every time.  Whatever cannot go on ends the program and says who
 * waits for what.
 */
#ifndef TESTS_KERNELS_CUDA_EMULATED_MACHINE_H
#define TESTS_KERNELS_CUDA_EMULATED_MACHINE_H

#include <cuda_runtime.h>

#include <deque>
#include <functional>
#include <stdint.h>
#include <vector>

namespace emulated
{

enum { WARP = 32, WARPGROUP = 128, NAMED_BARRIERS = 16, SHARED_BYTES = 227 * 1024, SM_COUNT = 8 };

struct block_t;

/* Values that the lanes of a warp exchange: the last to come completes a round. */
struct exchange_t {
    uint32_t mask, arrived, round;
    uint64_t values[2][WARP]; /* by parity of the round */
};

struct named_barrier_t {
    uint32_t arrived, round;
};

/* A warpgroup's product, known when all its threads have asked for it. */
struct product_t {
    float *sums[WARPGROUP];
    uint32_t a_registers[WARPGROUP][4];
    uint64_t a, b;
    uint32_t threads, n;
    bool is_fp8, is_b_mn, has_registers, is_added;
};

struct thread_t {
    block_t *block;
    uint3 index;
    uint32_t number, lane;
    void *stack_pointer;
    bool is_done;
    bool (*is_ready)(const thread_t *); /* NULL: it can go on */
    const char *waits_for;
    /* What is_ready looks at. */
    const void *address;
    uint32_t wanted;
    uint64_t seen;
    exchange_t *exchange;
    uint32_t products_issued, cluster_round;
    std::vector<uint32_t> product_groups; /* products issued before each commit */
    std::vector<uint32_t> stores; /* bulk stores still to happen, by group; the last is open */
    uint32_t named_rounds[NAMED_BARRIERS]; /* the round of the last arrival, plus one */
};

struct cluster_t {
    std::vector<block_t *> blocks;
    uint32_t arrived, round;
};

struct launch_state_t;

struct warpgroup_t {
    std::deque<product_t> products; /* in order; the first `done` have happened */
    uint32_t done;
};

struct block_t {
    launch_state_t *launch;
    cluster_t *cluster;
    uint32_t rank, live, threads_count;
    uint3 index;
    char *shared;  /* SHARED_BYTES, aligned to 1024 */
    char *async;   /* what bulk copies and products find there: plain writes after a fence only */
    char *statics; /* where this worker's static shared variables lie */
    std::vector<thread_t> threads;
    std::vector<std::vector<exchange_t>> exchanges; /* by warp */
    std::vector<uint32_t> asleep;                   /* passes that a warp still sits out */
    std::vector<warpgroup_t> warpgroups;
    named_barrier_t named[NAMED_BARRIERS];
    bool lets_next_start;
};

extern thread_local thread_t *current;

/* Ends the program: a kernel did what no kernel may do. */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The current thread goes on when is_ready says so. */
void wait(bool (*is_ready)(const thread_t *), const char *what);
/* Others may go on first. */
void yield();

uint32_t random_below(uint32_t limit);
void seed_set(uint64_t seed);

/* Something that happens later, at a time of the machine's choice. */
void later(std::function<void()> action);

/* Addresses of 32 bits in the shared memory of a cluster: rank in the upper 8 bits. */
uint32_t shared_address_of(const void *pointer);
char *shared_pointer(uint32_t address);
char *shared_in(const block_t *block, uint32_t address);
/* fence.proxy.async: what this block's threads have written so far (any of them, which is more than
 * the fence promises) is there for bulk copies and products. */
void fence_async();

/* ---- barriers ---- */

void barrier_init(uint64_t *barrier, uint32_t arrivals);
void barrier_arrive(uint64_t *barrier);
void barrier_expect(uint64_t *barrier, uint32_t bytes);
void barrier_complete(uint64_t *barrier, uint32_t bytes);
bool barrier_is_past(const uint64_t *barrier, uint32_t parity);

void named_barrier(uint32_t id, uint32_t threads);
void cluster_arrive();
void cluster_wait();

/* Every lane of mask gives a value; the values of all are returned, by lane. */
const uint64_t *exchange(uint32_t mask, uint64_t value);

/* ---- products ---- */

void product_issue(float *sums, const uint32_t *a_registers, uint64_t a, uint64_t b, uint32_t n,
                   bool is_fp8, bool is_b_mn, bool is_added);

/* ---- launches ---- */

void launch(dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes, bool is_overlapped,
            std::function<void()> body);
void launch_wait_for_previous();
void launch_let_next_start();
/* Runs everything that was launched. */
void finish();

} // namespace emulated

#endif
