/* tests/kernels/cuda/emulated/machine.cc - coroutines, the schedule, launches. */
#include "machine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

/* CUDA's variables: constant for a kernel, set whenever one of its threads goes on. */
dim3 emulated_grid asm("gridDim");
dim3 emulated_block asm("blockDim");

namespace emulated
{

enum { WORKERS = 2 * SM_COUNT, STACK_BYTES = 256 * 1024, STEPS_PER_TURN = 64 };

thread_local thread_t *current;

/* ---- chance ---- */

static uint64_t chance = 1;

void seed_set(uint64_t seed)
{
    chance = seed * 2 + 1;
}

uint32_t random_below(uint32_t limit)
{
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return (uint32_t)((chance >> 32) * limit >> 32);
}

/* ---- coroutines ---- */

/* Saves the callee's registers and the stack, goes on where `to` was saved. */
extern "C" void emulated_switch(void **from, void *to);
asm(".text\n.globl emulated_switch\nemulated_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

struct launch_state_t {
    dim3 grid, block;
    unsigned cluster;
    size_t shared_bytes;
    bool is_overlapped;
    std::function<void()> body;
    launch_state_t *previous;
    uint32_t next_block, blocks, finished, letting; /* blocks that let the next start, or ended */
};

/* An OS thread that runs a block at a time, so that static shared variables, which are thread_local
 * here, are the block's own. Only one of all runs at any time. */
struct worker_t {
    std::thread thread;
    std::condition_variable turn;
    bool has_turn;
    std::unique_ptr<block_t> block;
    char *stacks, *shared, *async;
    uint32_t stacks_count;
    void *stack_pointer; /* of the OS thread, while a coroutine runs */
    bool has_moved;      /* in the last turn */
};

/* Never destroyed: workers wait on them until the program has ended. */
static std::mutex &mutex = *new std::mutex;
static std::condition_variable &machine_turn = *new std::condition_variable;
static worker_t (&workers)[WORKERS] = *(worker_t(*)[WORKERS]) new worker_t[WORKERS]();
static bool has_machine_turn = true;
static thread_local worker_t *own_worker;
static std::deque<std::function<void()>> pending;
static std::deque<std::unique_ptr<launch_state_t>> launches;
static thread_local char statics_anchor;

/* Its frame is never left, and has no variables that a sanitizer would watch there. */
static void coroutine_main()
{
    current->block->launch->body();
    current->is_done = true;
    emulated_switch(&current->stack_pointer, own_worker->stack_pointer);
    abort();
}

static void thread_begin(worker_t *worker, thread_t *thread)
{
    char *top = worker->stacks + (size_t)(thread->number + 1) * STACK_BYTES - 64;
    void **stack = (void **)((uintptr_t)top & ~(uintptr_t)63);
    *--stack = nullptr; /* where coroutine_main would return to */
    *--stack = (void *)coroutine_main;
    for (int i = 0; i < 6; i++) *--stack = nullptr;
    thread->stack_pointer = stack;
}

void yield()
{
    thread_t *self = current;
    emulated_switch(&self->stack_pointer, own_worker->stack_pointer);
    current = self;
}

void wait(bool (*is_ready)(const thread_t *), const char *what)
{
    thread_t *self = current;
    if (is_ready(self)) {
        if (random_below(4) == 0) yield();
        return;
    }
    self->is_ready = is_ready;
    self->waits_for = what;
    yield();
}

/* ---- a block's turn ---- */

static void thread_end(thread_t *thread)
{
    block_t *block = thread->block;
    block->live--;
    named_barrier_t *whole = &block->named[0]; /* __syncthreads no longer counts it */
    if (block->live > 0 && whole->arrived == block->live) {
        whole->arrived = 0;
        whole->round++;
    }
}

static bool thread_step(worker_t *worker, thread_t *thread)
{
    if (thread->is_done) return false;
    if (thread->is_ready && !thread->is_ready(thread)) return false;
    thread->is_ready = nullptr;
    current = thread;
    emulated_grid = thread->block->launch->grid;
    emulated_block = thread->block->launch->block;
    emulated_switch(&worker->stack_pointer, thread->stack_pointer);
    current = nullptr;
    if (thread->is_done) thread_end(thread);
    return true;
}

/* Warps in an order of chance; some sit out for a while. */
static bool block_pass(worker_t *worker)
{
    block_t *block = worker->block.get();
    uint32_t warps = (block->threads_count + WARP - 1) / WARP, first = random_below(warps);
    bool has_moved = false, is_someone_asleep = false;
    for (uint32_t i = 0; i < warps; i++) {
        uint32_t warp = (first + i) % warps;
        if (block->asleep[warp] > 0) {
            block->asleep[warp]--;
            is_someone_asleep = true;
            continue;
        }
        if (warps > 1 && random_below(16) == 0) block->asleep[warp] = random_below(40);
        for (uint32_t t = warp * WARP; t < block->threads_count && t < (warp + 1) * WARP; t++)
            has_moved |= thread_step(worker, &block->threads[t]);
    }
    return has_moved || is_someone_asleep;
}

static void worker_main(worker_t *self)
{
    own_worker = self;
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
        self->turn.wait(lock, [&] { return self->has_turn; });
        self->block->statics = &statics_anchor;
        self->has_moved = false;
        for (uint32_t i = 0; i < STEPS_PER_TURN && self->block->live > 0; i++) {
            if (!block_pass(self)) break;
            self->has_moved = true;
        }
        self->has_turn = false;
        has_machine_turn = true;
        machine_turn.notify_one();
    }
}

static void give_turn(worker_t *worker)
{
    std::unique_lock<std::mutex> lock(mutex);
    has_machine_turn = false;
    worker->has_turn = true;
    worker->turn.notify_one();
    machine_turn.wait(lock, [] { return has_machine_turn; });
}

static void worker_begin(worker_t *self)
{
    self->shared = (char *)aligned_alloc(1024, 256 * 1024);
    self->async = (char *)aligned_alloc(1024, 256 * 1024);
    self->stacks_count = 1024;
    self->stacks =
        (char *)mmap(nullptr, (size_t)self->stacks_count * STACK_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (self->stacks == MAP_FAILED) fail("no memory for stacks");
    self->thread = std::thread(worker_main, self);
    self->thread.detach();
}

/* ---- launches ---- */

static void block_begin(worker_t *worker, launch_state_t *launch, cluster_t *cluster)
{
    worker->block = std::make_unique<block_t>();
    block_t *self = worker->block.get();
    if (!worker->shared) worker_begin(worker);
    memset(worker->shared, 0xff, SHARED_BYTES); /* NaN */
    memset(worker->async, 0xff, SHARED_BYTES);
    uint32_t number = launch->next_block++;
    self->launch = launch;
    self->cluster = cluster;
    self->rank = (uint32_t)cluster->blocks.size();
    cluster->blocks.push_back(self);
    self->threads_count = self->live = launch->block.x * launch->block.y * launch->block.z;
    self->index = { number % launch->grid.x, number / launch->grid.x % launch->grid.y,
                    number / launch->grid.x / launch->grid.y };
    self->shared = worker->shared;
    self->async = worker->async;
    self->threads.resize(self->threads_count);
    uint32_t warps = (self->threads_count + WARP - 1) / WARP;
    self->exchanges.resize(warps);
    self->asleep.resize(warps);
    self->warpgroups.resize((warps + 3) / 4);
    for (uint32_t t = 0; t < self->threads_count; t++) {
        thread_t *thread = &self->threads[t];
        thread->block = self;
        thread->number = t;
        thread->lane = t % WARP;
        thread->index = { t % launch->block.x, t / launch->block.x % launch->block.y,
                          t / launch->block.x / launch->block.y };
        thread_begin(worker, thread);
    }
}

static bool may_start(const launch_state_t *launch)
{
    const launch_state_t *previous = launch->previous; /* NULL: it has ended */
    if (!previous) return true;
    return launch->is_overlapped && previous->letting == previous->blocks;
}

/* Whole clusters, while there are idle workers. */
static bool start_blocks(std::vector<std::unique_ptr<cluster_t>> *clusters)
{
    bool has_started = false;
    for (auto &launch : launches) {
        if (!may_start(launch.get())) break;
        while (launch->next_block < launch->blocks) {
            std::vector<worker_t *> idle;
            for (worker_t &worker : workers)
                if (!worker.block && idle.size() < launch->cluster) idle.push_back(&worker);
            if (idle.size() < launch->cluster) return has_started;
            clusters->push_back(std::make_unique<cluster_t>());
            for (worker_t *worker : idle) block_begin(worker, launch.get(), clusters->back().get());
            has_started = true;
        }
    }
    return has_started;
}

static void block_end(worker_t *worker)
{
    block_t *block = worker->block.get();
    launch_state_t *launch = block->launch;
    if (!block->lets_next_start) launch->letting++;
    launch->finished++;
    /* Others of the cluster may still read its shared memory: it goes with the last. */
    for (block_t *other : block->cluster->blocks)
        if (other->live > 0) return;
    for (worker_t &other : workers)
        if (other.block && other.block->cluster == block->cluster && &other != worker)
            other.block.reset();
    worker->block.reset();
}

static bool products_advance(block_t *block, bool is_certain);

static bool happen_one()
{
    if (pending.empty()) return false;
    size_t which = random_below((uint32_t)pending.size());
    std::function<void()> action = std::move(pending[which]);
    pending.erase(pending.begin() + (ptrdiff_t)which);
    action();
    return true;
}

static void report_stuck()
{
    for (worker_t &worker : workers) {
        if (!worker.block) continue;
        const block_t *block = worker.block.get();
        for (const thread_t &thread : block->threads) {
            if (thread.is_done || thread.lane != 0) continue;
            fprintf(stderr, "block %u (rank %u) thread %u waits for %s (%u)\n", block->index.x,
                    block->rank, thread.number, thread.is_ready ? thread.waits_for : "nothing",
                    thread.wanted);
        }
    }
}

void finish()
{
    std::vector<std::unique_ptr<cluster_t>> clusters;
    while (!launches.empty()) {
        bool has_moved = start_blocks(&clusters);
        uint32_t first = random_below(WORKERS);
        for (uint32_t i = 0; i < WORKERS; i++) {
            worker_t *worker = &workers[(first + i) % WORKERS];
            if (!worker->block || worker->block->live == 0) continue;
            for (uint32_t k = random_below(4); k > 0; k--) has_moved |= happen_one();
            has_moved |= products_advance(worker->block.get(), false);
            if (random_below(4) == 0) {
                has_moved = true;
                continue;
            }
            give_turn(worker);
            has_moved |= worker->has_moved;
            if (worker->block->live == 0) block_end(worker);
        }
        launch_state_t *front = launches.front().get();
        if (front->finished == front->blocks) {
            while (happen_one()) continue;
            for (auto &launch : launches)
                if (launch->previous == front) launch->previous = nullptr;
            launches.pop_front();
            has_moved = true;
        }
        if (has_moved || happen_one()) continue;
        for (worker_t &worker : workers)
            if (worker.block) has_moved |= products_advance(worker.block.get(), true);
        if (has_moved) continue;
        report_stuck();
        fail("nobody can go on");
    }
}

void launch(dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes, bool is_overlapped,
            std::function<void()> body)
{
    if (shared_bytes > SHARED_BYTES) fail("%zu bytes of shared memory", shared_bytes);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) fail("an empty grid");
    if (cluster == 0) cluster = 1;
    auto self = std::make_unique<launch_state_t>();
    self->grid = grid;
    self->block = block;
    self->cluster = cluster;
    self->shared_bytes = shared_bytes;
    self->is_overlapped = is_overlapped;
    self->body = std::move(body);
    self->blocks = grid.x * grid.y * grid.z;
    self->previous = launches.empty() ? nullptr : launches.back().get();
    if (self->blocks % cluster != 0 || grid.x % cluster != 0) fail("a grid of broken clusters");
    launches.push_back(std::move(self));
}

static bool is_previous_done(const thread_t *self)
{
    return !self->block->launch->previous;
}

void launch_wait_for_previous()
{
    wait(is_previous_done, "the previous kernel");
}

void launch_let_next_start()
{
    block_t *block = current->block;
    if (!block->lets_next_start) block->launch->letting++;
    block->lets_next_start = true;
}

void later(std::function<void()> action)
{
    pending.push_back(std::move(action));
}

void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fprintf(stderr, "FATAL emulated GPU: ");
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (current)
        fprintf(stderr, " (block %u, rank %u, thread %u)", current->block->index.x,
                current->block->rank, current->number);
    fprintf(stderr, "\n");
    _exit(1);
}

/* ---- addresses ---- */

enum { STATIC_BASE = 0x800000, RANK_SHIFT = 24 };

uint32_t shared_address_of(const void *pointer)
{
    const block_t *block = current->block;
    ptrdiff_t offset = (const char *)pointer - block->shared;
    if (offset < 0 || offset >= SHARED_BYTES) {
        offset = STATIC_BASE + ((const char *)pointer - &statics_anchor);
        if (offset < STATIC_BASE / 2 || offset >= STATIC_BASE * 3 / 2)
            fail("an address that is not in shared memory");
    }
    return block->rank << RANK_SHIFT | (uint32_t)offset;
}

char *shared_in(const block_t *self, uint32_t address)
{
    const cluster_t *cluster = self->cluster;
    uint32_t rank = address >> RANK_SHIFT, offset = address & ((1u << RANK_SHIFT) - 1);
    if (rank >= cluster->blocks.size()) fail("block %u of the cluster is not there", rank);
    const block_t *block = cluster->blocks[rank];
    return offset < STATIC_BASE / 2 ? block->shared + offset
                                    : block->statics + ((ptrdiff_t)offset - STATIC_BASE);
}

char *shared_pointer(uint32_t address)
{
    return shared_in(current->block, address);
}

void fence_async()
{
    memcpy(current->block->async, current->block->shared, current->block->launch->shared_bytes);
}

/* ---- barriers in shared memory ---- */

struct word_t {
    int16_t expected, pending;
    int32_t bytes_and_phase; /* bytes * 2 + phase */
};
static_assert(sizeof(word_t) == sizeof(uint64_t), "what a barrier is on the GPU");

static void word_settle(word_t *word)
{
    if (word->pending < 0) fail("a barrier of %d arrivals had one more", word->expected);
    if (word->pending > 0 || word->bytes_and_phase >> 1 != 0) return;
    word->pending = word->expected;
    word->bytes_and_phase ^= 1;
}

void barrier_init(uint64_t *barrier, uint32_t arrivals)
{
    word_t word = { (int16_t)arrivals, (int16_t)arrivals, 0 };
    memcpy(barrier, &word, sizeof word);
}

void barrier_arrive(uint64_t *barrier)
{
    word_t *word = (word_t *)barrier;
    word->pending--;
    word_settle(word);
}

void barrier_expect(uint64_t *barrier, uint32_t bytes)
{
    ((word_t *)barrier)->bytes_and_phase += (int32_t)bytes * 2;
}

void barrier_complete(uint64_t *barrier, uint32_t bytes)
{
    word_t *word = (word_t *)barrier;
    word->bytes_and_phase -= (int32_t)bytes * 2;
    word_settle(word);
}

bool barrier_is_past(const uint64_t *barrier, uint32_t parity)
{
    return (uint32_t)(((const word_t *)barrier)->bytes_and_phase & 1) != parity;
}

/* ---- named barriers ---- */

static bool is_round_over(const thread_t *self)
{
    return self->block->named[self->wanted].round != (uint32_t)self->seen;
}

void named_barrier(uint32_t id, uint32_t threads)
{
    thread_t *self = current;
    block_t *block = self->block;
    if (id >= NAMED_BARRIERS || threads > block->threads_count)
        fail("barrier %u of %u", id, threads);
    named_barrier_t *barrier = &block->named[id];
    uint32_t round = barrier->round;
    if (self->named_rounds[id] == round + 1) fail("comes twice to a round of barrier %u", id);
    self->named_rounds[id] = round + 1;
    if (++barrier->arrived == (id == 0 ? block->live : threads)) {
        barrier->arrived = 0;
        barrier->round++;
    }
    self->wanted = id;
    self->seen = round;
    wait(is_round_over, "a named barrier");
}

/* ---- the cluster's barrier ---- */

void cluster_arrive()
{
    cluster_t *cluster = current->block->cluster;
    current->cluster_round = cluster->round;
    if (++cluster->arrived < cluster->blocks.size() * current->block->threads_count) return;
    cluster->arrived = 0;
    cluster->round++;
}

static bool is_cluster_round_over(const thread_t *self)
{
    return self->block->cluster->round != self->cluster_round;
}

void cluster_wait()
{
    wait(is_cluster_round_over, "the cluster's barrier");
}

/* ---- a warp's exchanges ---- */

static bool is_exchange_over(const thread_t *self)
{
    return self->exchange->round != self->wanted;
}

const uint64_t *exchange(uint32_t mask, uint64_t value)
{
    thread_t *self = current;
    uint32_t warp = self->number / WARP, left = self->block->threads_count - warp * WARP;
    if (left < WARP) mask &= (1u << left) - 1; /* a block may end within a warp */
    if (!(mask >> self->lane & 1)) fail("a lane that its own mask leaves out");
    std::vector<exchange_t> &known = self->block->exchanges[warp];
    if (known.capacity() == 0) known.reserve(64); /* pointers stay */
    exchange_t *found = nullptr;
    for (exchange_t &candidate : known)
        if (candidate.mask == mask) found = &candidate;
    if (!found) {
        if (known.size() == 64) fail("too many masks");
        known.push_back({});
        found = &known.back();
        found->mask = mask;
    }
    uint32_t round = found->round;
    found->values[round & 1][self->lane] = value;
    found->arrived |= 1u << self->lane;
    if (found->arrived == mask) {
        found->arrived = 0;
        found->round++;
    }
    self->exchange = found;
    self->wanted = round;
    if (!is_exchange_over(self)) wait(is_exchange_over, "other lanes");
    return found->values[round & 1];
}

/* ---- warpgroup products ---- */

void product_issue(float *sums, const uint32_t *a_registers, uint64_t a, uint64_t b, uint32_t n,
                   bool is_fp8, bool is_b_mn, bool is_added)
{
    thread_t *self = current;
    warpgroup_t *group = &self->block->warpgroups[self->number / WARPGROUP];
    uint32_t number = self->products_issued++;
    if (number == group->products.size()) {
        group->products.push_back({});
        product_t *fresh = &group->products.back();
        fresh->a = a;
        fresh->b = b;
        fresh->n = n;
        fresh->is_fp8 = is_fp8;
        fresh->is_b_mn = is_b_mn;
        fresh->has_registers = a_registers != nullptr;
        fresh->is_added = is_added;
    }
    product_t *product = &group->products[number];
    if (product->b != b || product->n != n || (!a_registers && product->a != a))
        fail("threads of a warpgroup ask for different products");
    uint32_t t = self->number % WARPGROUP;
    product->sums[t] = sums;
    if (a_registers) memcpy(product->a_registers[t], a_registers, sizeof product->a_registers[t]);
    product->threads++;
}

void product_happen(block_t *block, const product_t *product);

/* The next product that all have asked for. */
static bool products_advance(block_t *block, bool is_certain)
{
    bool has_moved = false;
    for (warpgroup_t &group : block->warpgroups) {
        if (group.done == group.products.size()) continue;
        if (!is_certain && random_below(3) == 0) continue;
        product_t *product = &group.products[group.done];
        if (product->threads < WARPGROUP) continue;
        product_happen(block, product);
        group.done++;
        has_moved = true;
    }
    return has_moved;
}

} // namespace emulated
