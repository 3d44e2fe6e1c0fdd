/* kernels/cuda/sample.cuh - from logits to the next token: one cluster of blocks per row, which
 * reads the row once and keeps it in shared memory.
 *
 * Each block holds a range of the vocabulary, each thread a segment of that range: prefix sums over
 * threads and blocks are prefix sums by id.  All sums are of integers (kernels/weights.h), so
 * neither the order of atomics nor the shape of a reduction can change a token, and the CPU draws
 * the same.
 *
 *   1. load; bias and penalties change values in place; the largest value
 *   2. values become codes in place
 *   3. top_k, then top_p: the last kept key, by histograms of counts or masses over ever narrower
 *      ranges of keys, until a range holds few enough to list them in one block
 *   4. the kept weight of each thread, prefix sums, and the thread whose segment holds the target
 *
 * A key is a code (or the order of a raw logit) above an id: what comes first has the smaller key,
 * and no two are equal.
 *
 *   shared memory   bytes (129,280 logits)
 *   small           see sample_shared_t
 *   histogram       counts and lacks of BINS bins; the list of keys in the cluster's first block
 *   values          64,640: logits, then codes
 *
 * All warps do the same; thread 0 starts the copy.
 */
#ifndef KERNELS_CUDA_SAMPLE_CUH
#define KERNELS_CUDA_SAMPLE_CUH

#include "../philox.h"
#include "../weights.h"
#include "sample_cluster.cuh"

#include <math_constants.h>

namespace sample
{

enum : uint32_t {
    ID_BITS = 20,
    BIN_CODE_BITS = 17, /* of a code below the first histogram's bins: 32 bins a halving */
    BINS = WEIGHT_HALVINGS << (WEIGHT_CODE_BITS - BIN_CODE_BITS),
    LIST_MAX = 256, /* keys that one block puts in order */
    LIST_FEW = 96,  /* more are worth another histogram */
    SEGMENT_UNIT = 32,
    BLOCK_IDS_MAX = 1u << (32 - BIN_CODE_BITS), /* a bin's lacks fit 32 bits */
    COUNTER = 0xffc00000, /* a value of these bits and more counts a token, see count_tokens */
    NAN_BITS = 0x7fffffff,
    PIECE_BYTES = 16384,
    TOKENS_AHEAD = 8 /* loads of a thread under way when tokens are counted */
};
static_assert(BINS >= 2 * LIST_MAX, "keys and amounts of the list lie in the histogram");

/* ---- loading, bias, penalties ---- */

/* The range's bytes come in a few bulk copies; ids past the end of the vocabulary are no numbers.
 */
__device__ __forceinline__ void load(const place_t &at)
{
    uint32_t bytes = at.count / 4 * 16;
    if (at.thread == 0 && bytes > 0) {
        barrier_arrive_expect(&at.shared->loaded, bytes);
        for (uint32_t done = 0; done < bytes; done += PIECE_BYTES)
            bulk_load((char *)at.values + done, (const char *)at.raw + done,
                      min(bytes - done, (uint32_t)PIECE_BYTES), &at.shared->loaded);
    }
    uint32_t end = (at.count + at.segment - 1) / at.segment * at.segment;
    for (uint32_t i = at.count / 4 * 4 + at.thread; i < end; i += blockDim.x)
        at.values[i] = i < at.count ? __float_as_uint(at.raw[i]) : (uint32_t)NAN_BITS;
    if (bytes > 0)
        await(at, &at.shared->loaded, 0);
    else
        __syncthreads();
}

/* Entries of one token are added in their order by the thread of the first. */
__device__ __forceinline__ void apply_bias(const place_t &at)
{
    const sample_row_t &row = at.shared->row;
    for (uint32_t i = at.thread; i < row.bias_count; i += blockDim.x) {
        uint32_t id = row.bias_ids[i], index = id - at.first;
        if (id < at.first || index >= at.count) continue;
        bool is_first = true;
#pragma unroll 1
        for (uint32_t j = 0; j < i; j++) is_first &= row.bias_ids[j] != id;
        if (!is_first) continue;
        float value = __uint_as_float(at.values[index]);
#pragma unroll 1
        for (uint32_t j = i; j < row.bias_count; j++)
            if (row.bias_ids[j] == id) value = weight_add(value, row.bias_values[j]);
        at.values[index] = __float_as_uint(value);
    }
    __syncthreads();
}

/* A token that was seen loses its value to a counter of how often it was generated: bits that no
 * float has here once NaNs are all the same. */
__device__ __forceinline__ void count_tokens(const place_t &at)
{
    const sample_row_t &row = at.shared->row;
    rewrite(at, [](uint32_t value, uint32_t) {
        return isnan(__uint_as_float(value)) ? (uint32_t)NAN_BITS : value;
    });
    __syncthreads();
    uint32_t prompt_count = row.token_count - min(row.generated, row.token_count);
#pragma unroll 1
    for (uint32_t i = at.thread; i < row.token_count; i += TOKENS_AHEAD * blockDim.x) {
        uint32_t ids[TOKENS_AHEAD];
#pragma unroll
        for (uint32_t j = 0; j < TOKENS_AHEAD; j++) {
            uint32_t here = i + j * blockDim.x;
            ids[j] = here < row.token_count ? row.tokens[here] : UINT32_MAX;
        }
#pragma unroll
        for (uint32_t j = 0; j < TOKENS_AHEAD; j++) {
            uint32_t index = ids[j] - at.first;
            if (index >= at.count) continue; /* also what is below `first` */
            atomicMax(&at.values[index], (uint32_t)COUNTER);
            if (i + j * blockDim.x >= prompt_count) atomicAdd(&at.values[index], 1);
        }
    }
    __syncthreads();
}

/* What a counter stands for: the raw logit, biased and penalised. */
__device__ __forceinline__ float penalised(const place_t &at, float logit, uint32_t generated,
                                           uint32_t index)
{
    const sample_row_t &row = at.shared->row;
#pragma unroll 1
    for (uint32_t i = 0; i < row.bias_count; i++)
        if (row.bias_ids[i] == at.first + index) logit = weight_add(logit, row.bias_values[i]);
    logit = logit > 0 ? __fdiv_rn(logit, row.repetition_penalty)
                      : weight_multiply(logit, row.repetition_penalty);
    if (generated == 0) return logit;
    logit = weight_add(logit, -weight_multiply(row.frequency_penalty, (float)generated));
    return weight_add(logit, -row.presence_penalty);
}

/* The raw logits of a quad with a counter are read together: they come from the L2 cache. */
__device__ __forceinline__ void apply_penalties(const place_t &at)
{
    const sample_row_t &row = at.shared->row;
    if (row.repetition_penalty == 1 && row.frequency_penalty == 0 && row.presence_penalty == 0)
        return;
    count_tokens(at);
    if (at.thread * at.segment >= at.count) return;
    uint32_t quad = at.quad;
#pragma unroll 1
    for (uint32_t i = at.segment / 4; i > 0; i--, quad = next_quad(at, quad)) {
        uint4 four = *quad_at(at, quad);
        if (max(max(four.x, four.y), max(four.z, four.w)) < COUNTER) continue;
        uint32_t index = at.thread * at.segment + 4 * quad,
                 values[4] = { four.x, four.y, four.z, four.w };
        float raw[4];
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) raw[j] = at.raw[min(index + j, at.count - 1)];
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            if (values[j] >= COUNTER)
                values[j] = __float_as_uint(penalised(at, raw[j], values[j] - COUNTER, index + j));
        *quad_at(at, quad) = make_uint4(values[0], values[1], values[2], values[3]);
    }
}

/* ---- the largest ---- */

/* Floats in order as integers; -0 is 0, and what is not a number is the least. */
__device__ __forceinline__ uint32_t order_of(float value)
{
    uint32_t bits = __float_as_uint(isnan(value) ? -CUDART_INF_F : value + 0.0f);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

__device__ __forceinline__ float float_of(uint32_t order)
{
    return __uint_as_float(order & 0x80000000 ? order & 0x7fffffff : ~order);
}

__device__ __forceinline__ float thread_max(const place_t &at)
{
    float most = -CUDART_INF_F;
    visit(at, [&](uint32_t value, uint32_t) { most = fmaxf(most, __uint_as_float(value)); });
    return most;
}

/* The largest value, and *best the lowest id that has it; 0 when none is a number. */
template <uint32_t threads> __device__ __forceinline__ float find_best(place_t &at, uint32_t *best)
{
    float mine = thread_max(at);
    if (at.thread == 0) at.shared->lowest = UINT32_MAX;
    uint32_t order = block_max<threads>(at, order_of(mine));
    float most = float_of(order);
    if (mine == most) {
        uint32_t lowest = UINT32_MAX;
        visit(at, [&](uint32_t value, uint32_t index) {
            if (__uint_as_float(value) == most) lowest = min(lowest, at.first + index);
        });
        atomicMin(&at.shared->lowest, lowest);
    }
    __syncthreads();
    uint64_t key = exchange_max(at, (uint64_t)order << 32 | (uint32_t)~at.shared->lowest);
    uint32_t lowest = ~(uint32_t)key;
    *best = lowest == UINT32_MAX ? 0 : lowest;
    return float_of((uint32_t)(key >> 32));
}

/* ---- selection ---- */

/* What a key begins with: of raw logits the largest first, or codes. */
__device__ __forceinline__ uint32_t order_in(bool is_raw, uint32_t value)
{
    return is_raw ? ~order_of(__uint_as_float(value)) : value;
}

/* The values of this thread's segment whose keys are first .. last, with their keys.  Most are told
 * apart by their first half. */
template <typename visit_t>
__device__ __forceinline__ void visit_keys(const place_t &at, bool is_raw, uint64_t first,
                                           uint64_t last, visit_t visitor)
{
    uint32_t first_order = (uint32_t)(first >> ID_BITS);
    uint32_t width = (uint32_t)(last >> ID_BITS) - first_order;
    visit(at, [&](uint32_t value, uint32_t index) {
        uint32_t order = order_in(is_raw, value);
        if (order - first_order > width) return;
        uint64_t key = (uint64_t)order << ID_BITS | (at.first + index);
        if (key >= first && key <= last) visitor(value, key);
    });
}

__device__ __forceinline__ uint64_t last_key(uint32_t order)
{
    return ((uint64_t)order + 1 << ID_BITS) - 1;
}

/* A weight is a mantissa moved right, rounded down, then left. */
__device__ __forceinline__ uint32_t right_of(uint32_t code)
{
    uint32_t halvings = code >> WEIGHT_CODE_BITS;
    return max(halvings, (uint32_t)WEIGHT_HALVED_EXACTLY) - WEIGHT_HALVED_EXACTLY;
}

__device__ __forceinline__ uint32_t mantissa_of(uint32_t code)
{
    return ((1u << 23) - (code & ((1u << WEIGHT_CODE_BITS) - 1))) >> right_of(code);
}

__device__ __forceinline__ void clear_bins(const place_t &at)
{
    for (uint32_t i = at.thread; i < BINS; i += blockDim.x) at.counts[i] = at.lacks[i] = 0;
}

/* In the first histogram: a bin has 2^BIN_CODE_BITS codes.  A lack is what the mantissa lacks to
 * the bin's first one, both moved right: the first one without a remainder. */
__device__ __forceinline__ void count_code(const place_t &at, uint32_t code, bool is_mass)
{
    uint32_t bin = code >> BIN_CODE_BITS, low = code & ((1u << BIN_CODE_BITS) - 1);
    uint32_t right = right_of(code);
    atomicAdd(&at.counts[bin], 1);
    if (is_mass) atomicAdd(&at.lacks[bin], (low + (1u << right) - 1) >> right);
}

/* Counts of the keys first .. last by bins of 2^shift keys, and how much their mantissas lack
 * together to the bin's first one. */
__device__ __forceinline__ void count_keys(const place_t &at, bool is_raw, uint64_t first,
                                           uint64_t last, uint32_t shift)
{
    clear_bins(at);
    __syncthreads();
    uint32_t below = shift > ID_BITS ? (1u << (shift - ID_BITS)) - 1 : 0;
    visit_keys(at, is_raw, first, last, [&](uint32_t value, uint64_t key) {
        uint32_t bin = (uint32_t)((key - first) >> shift);
        atomicAdd(&at.counts[bin], 1);
        if (!is_raw) atomicAdd(&at.lacks[bin], mantissa_of(value & ~below) - mantissa_of(value));
    });
}

/* The bin's count and amount over all blocks of the cluster; first: the bin's first key. */
__device__ __forceinline__ uint64_t gather_bin(const place_t &at, uint32_t bin, uint64_t first,
                                               bool is_mass, uint32_t *count)
{
    uint32_t counts = 0;
    uint64_t lacks = 0;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        counts += load_from(&at.counts[bin], block);
        if (is_mass) lacks += load_from(&at.lacks[bin], block);
    }
    *count = counts;
    if (!is_mass) return counts;
    uint32_t code = (uint32_t)(first >> ID_BITS), halvings = code >> WEIGHT_CODE_BITS;
    uint32_t left = WEIGHT_HALVED_EXACTLY - min(halvings, (uint32_t)WEIGHT_HALVED_EXACTLY);
    return ((uint64_t)counts * mantissa_of(code) - lacks) << left;
}

/* The keys first .. last of all blocks, `count` of them, into the first block's list, whose threads
 * wait until it is complete. */
__device__ __forceinline__ void gather_keys(place_t &at, bool is_raw, uint64_t first, uint64_t last,
                                            uint32_t count)
{
    uint64_t *barrier = &at.shared->listed;
    if (at.rank == 0 && at.thread == 0) barrier_arrive_expect(barrier, count * 8);
    visit_keys(at, is_raw, first, last, [&](uint32_t, uint64_t key) {
        uint32_t place = add_to(&at.shared->list_count, 0, 1);
        send(&at.list[place], barrier, 0, key);
    });
    uint32_t phase = at.lists++ % 2;
    if (at.rank > 0) return;
    await(at, barrier, phase);
    if (at.thread == 0) at.shared->list_count = 0;
    __syncthreads();
}

/* Of the first block's list: the key at which the amount is reached, told to all blocks.  Amount 0:
 * the share top_p of the list's mass. */
__device__ __forceinline__ uint64_t cut_list(place_t &at, uint32_t count, bool is_mass,
                                             uint64_t amount, float top_p)
{
    if (at.rank == 0) {
        uint64_t *amounts = at.list + LIST_MAX, key = 0, own = 0, before = 0, total = 0;
        if (at.thread < count) {
            key = at.list[at.thread];
            own = amounts[at.thread] = is_mass ? weight_of((uint32_t)(key >> ID_BITS)) : 1;
        }
        __syncthreads();
        if (at.thread < count) {
#pragma unroll 4
            for (uint32_t i = 0; i < count; i++) {
                total += amounts[i];
                before += at.list[i] < key ? amounts[i] : 0;
            }
            if (amount == 0) amount = weight_share(total, top_p);
            if (before < amount && before + own >= amount) tell(at, key, 0);
        }
    }
    uint64_t cut, nothing;
    listen(at, &cut, &nothing);
    return cut;
}

/* The least key up to which the keys 0 .. last come to `amount` (of tokens, or of mass); last if
 * they do not.  Amount 0: the share top_p of all mass.  is_counted: the first histogram, of codes,
 * is there. */
template <uint32_t threads>
__device__ __forceinline__ uint64_t select(place_t &at, bool is_raw, bool is_mass, bool is_counted,
                                           uint64_t last, uint64_t amount, float top_p)
{
    static_assert(threads >= (BINS + BLOCKS - 1) / BLOCKS && threads >= LIST_MAX,
                  "one thread each");
    uint64_t first = 0;
    uint32_t shift = BIN_CODE_BITS + ID_BITS;
#pragma unroll 1
    for (;;) {
        if (!is_counted) {
            for (shift = 0; (last - first) >> shift >= BINS;) shift++;
            count_keys(at, is_raw, first, last, shift);
        }
        publish(at);
        is_counted = false;
        const uint32_t slice = (BINS + BLOCKS - 1) / BLOCKS;
        uint32_t bin = at.rank * slice + at.thread, count = 0;
        uint64_t bin_first = first + ((uint64_t)bin << shift);
        bool is_mine = at.thread < slice && bin < BINS;
        uint64_t own = is_mine ? gather_bin(at, bin, bin_first, is_mass, &count) : 0;
        uint64_t slice_total, blocks_before = 0;
        uint64_t before = block_scan<threads>(at, own, &slice_total);
        uint64_t total = exchange_sum(at, slice_total, &blocks_before);
        if (amount == 0) amount = weight_share(total, top_p);
        if (amount > total) return last;
        before += blocks_before;
        if (before < amount && before + own >= amount)
            tell(at, amount - before, (uint64_t)count << 32 | bin);
        uint64_t found;
        listen(at, &amount, &found);
        count = (uint32_t)(found >> 32);
        first += (uint64_t)(uint32_t)found << shift;
        last = min(last, first + ((uint64_t)1 << shift) - 1);
        if (count > LIST_FEW) continue;
        gather_keys(at, is_raw, first, last, count);
        return cut_list(at, count, is_mass, amount, 1);
    }
}

/* ---- log probabilities of the raw logits ---- */

/* Whatever is among the likeliest `keep` of the cluster is at least this: the keep-th of the
 * threads' largest, in the block where that is most. */
__device__ __forceinline__ uint32_t bound_top(place_t &at, float mine, uint32_t keep)
{
    uint32_t order = at.thread * at.segment < at.count ? order_of(mine) : 0, bound = 0;
    for (uint32_t bit = 1u << 31; bit > 0; bit >>= 1)
        if (__syncthreads_count(order >= (bound | bit)) >= (int)keep) bound |= bit;
    return (uint32_t)exchange_max(at, bound);
}

template <uint32_t threads>
__device__ __forceinline__ void report_top(place_t &at, float mine, uint32_t keep, const float *row,
                                           sample_result_t *result)
{
    uint64_t last = last_key(~bound_top(at, mine, keep)), count = 0, total, before;
    visit_keys(at, true, 0, last, [&](uint32_t, uint64_t) { count++; });
    block_scan<threads>(at, count, &total);
    count = exchange_sum(at, total, &before);
    if (count > LIST_MAX) {
        last = select<threads>(at, true, false, false, last, keep, 1);
        count = keep;
    }
    gather_keys(at, true, 0, last, (uint32_t)count);
    if (at.rank == 0 && at.thread < count) {
        uint64_t key = at.list[at.thread];
        uint32_t place = 0, id = (uint32_t)key & ((1u << ID_BITS) - 1);
#pragma unroll 4
        for (uint32_t i = 0; i < count; i++) place += at.list[i] < key;
        if (place < keep) {
            result->top_ids[place] = id;
            result->top_logprobs[place] = (float)((double)row[id] - at.shared->log_total);
        }
    }
    __syncthreads();
}

/* The sum of weights at temperature 1, as a logarithm that belongs to the logits, and the
 * likeliest. */
template <uint32_t threads>
__device__ __forceinline__ void report(place_t &at, uint32_t keep, const float *row,
                                       sample_result_t *result)
{
    const float scale = weight_scale(1);
    float mine = thread_max(at);
    uint32_t order = block_max<threads>(at, order_of(mine));
    float most = float_of((uint32_t)exchange_max(at, order));
    uint64_t sum = 0, total, before;
    visit(at, [&](uint32_t value, uint32_t) {
        uint32_t code = weight_code(most - __uint_as_float(value), scale);
        sum += code < WEIGHT_CODE_END ? weight_of(code) : 0;
    });
    block_scan<threads>(at, sum, &total);
    total = exchange_sum(at, total, &before);
    if (at.thread == 0) at.shared->log_total = (double)most + log((double)total * 0x1p-44);
    __syncthreads();
    if (keep > 0) report_top<threads>(at, mine, keep, row, result);
}

/* ---- the draw ---- */

__device__ __forceinline__ uint64_t kept_weight(const place_t &at, uint32_t code, uint32_t index,
                                                uint64_t cut)
{
    uint32_t cut_code = (uint32_t)(cut >> ID_BITS), cut_id = (uint32_t)cut & ((1u << ID_BITS) - 1);
    bool is_kept = code < cut_code || (code == cut_code && at.first + index <= cut_id);
    return is_kept ? weight_of(code) : 0;
}

/* Of this thread's segment. */
__device__ __forceinline__ uint64_t kept_sum(const place_t &at, uint64_t cut)
{
    uint64_t sum = 0;
    visit(at, [&](uint32_t code, uint32_t index) { sum += kept_weight(at, code, index, cut); });
    return sum;
}

/* The segment of thread `owner` holds the target, `before` is the sum of all that come before it.
 * Its warp shares the segment out: the token in one thread, UINT32_MAX in the others. */
__device__ __forceinline__ uint32_t draw_from(const place_t &at, uint32_t owner, uint64_t before,
                                              uint64_t target, uint64_t cut)
{
    uint32_t each = at.segment / 32, lane = at.thread % 32;
    uint32_t begin = owner * at.segment + lane * each;
    uint64_t mine = 0;
#pragma unroll 1
    for (uint32_t i = begin; i < begin + each; i++) mine += kept_weight(at, at.values[i], i, cut);
    uint64_t sum = mine;
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint64_t other = __shfl_up_sync(0xffffffff, sum, step);
        sum += lane >= step ? other : 0;
    }
    before += sum - mine;
    if (target < before || target >= before + mine) return UINT32_MAX;
    for (uint32_t i = begin;; i++) {
        before += kept_weight(at, at.values[i], i, cut);
        if (before > target) return at.first + i;
    }
}

/* The token, in the one thread of the cluster that finds it; UINT32_MAX in the others.  sum: of
 * this thread's segment. */
template <uint32_t threads>
__device__ __forceinline__ uint32_t draw(place_t &at, uint64_t sum, uint64_t cut, uint32_t random)
{
    uint64_t block_total, blocks_before = 0;
    uint64_t before = block_scan<threads>(at, sum, &block_total);
    uint64_t target = weight_target(exchange_sum(at, block_total, &blocks_before), random);
    before += blocks_before;
    uint32_t owners = __ballot_sync(0xffffffff, target >= before && target < before + sum);
    if (owners == 0) return UINT32_MAX;
    uint32_t lane = __ffs(owners) - 1;
    before = __shfl_sync(0xffffffff, before, lane);
    return draw_from(at, at.thread / 32 * 32 + lane, before, target, cut);
}

/* The key of the last token that the filters keep, of the keys up to `last`; by which of the two
 * filters the codes have been counted says is_top_k. */
template <uint32_t threads>
__device__ __forceinline__ uint64_t find_cut(place_t &at, bool is_top_k, uint64_t last)
{
    const sample_row_t &row = at.shared->row;
    if (!is_top_k) return select<threads>(at, false, true, true, last, 0, row.top_p);
    uint64_t cut = select<threads>(at, false, false, true, last, row.top_k, 1), total, before;
    if (row.top_p >= 1) return cut;
    if (row.top_k <= LIST_MAX && cut != last) {
        gather_keys(at, false, 0, cut, row.top_k);
        return cut_list(at, row.top_k, true, 0, row.top_p);
    }
    block_scan<threads>(at, kept_sum(at, cut), &total);
    total = exchange_sum(at, total, &before);
    return select<threads>(at, false, true, false, cut, weight_share(total, row.top_p), 1);
}

/* The token in one thread of the cluster, UINT32_MAX in the others. */
template <uint32_t threads> __device__ __forceinline__ uint32_t choose(place_t &at, uint32_t vocab)
{
    const sample_row_t &row = at.shared->row;
    bool is_top_k = row.top_k > 0 && row.top_k < vocab, is_cut = is_top_k || row.top_p < 1;
    if (is_cut) clear_bins(at);
    uint32_t best;
    float most = find_best<threads>(at, &best);
    if (row.temperature == 0 || !isfinite(most))
        return at.thread + at.rank == 0 ? best : UINT32_MAX;
    float scale = weight_scale(row.temperature);
    uint32_t last_code = weight_code_last(row.min_p);
    uint64_t sum = 0, last = last_key(last_code);
    rewrite(at, [&](uint32_t value, uint32_t) {
        uint32_t code = weight_code(most - __uint_as_float(value), scale);
        if (code > last_code) return (uint32_t)WEIGHT_CODE_NONE;
        if (is_cut)
            count_code(at, code, !is_top_k);
        else
            sum += weight_of(code);
        return code;
    });
    if (is_cut) {
        last = find_cut<threads>(at, is_top_k, last);
        sum = kept_sum(at, last);
    }
    return draw<threads>(at, sum, last, random_bits(row.seed, row.generated));
}

/* ---- the kernel ---- */

template <uint32_t threads, uint32_t blocks>
__global__ void __launch_bounds__(threads, blocks)
    sample_rows(sample_result_t *results, const float *logits, size_t stride, uint32_t vocab,
                uint32_t segment, const sample_row_t *rows)
{
    DYNAMIC_SHARED(char, memory, 128);
    __shared__ sample_shared_t shared;
    uint32_t row = blockIdx.x / BLOCKS;
    const float *raw = logits + row * stride;
    place_t at;
    at.shared = &shared;
    at.values = (uint32_t *)memory;
    uint32_t block_ids = threads * segment;
    uint32_t held = min((vocab + segment - 1) / segment * segment, block_ids);
    at.counts = at.values + held;
    at.lacks = at.counts + BINS;
    at.list = (uint64_t *)at.counts;
    at.thread = threadIdx.x;
    at.rank = cluster_rank();
    at.first = at.rank * block_ids;
    at.count = at.first < vocab ? min(vocab - at.first, block_ids) : 0;
    at.raw = raw + at.first;
    at.segment = segment;
    at.quad = at.thread % 32 % (segment / 4);
    at.exchanges = at.messages = at.lists = 0;
    if (at.thread == 0) {
        barrier_init(&shared.loaded, 1);
        barrier_init(&shared.listed, 1);
        for (uint64_t &barrier : shared.exchanged) barrier_init(&barrier, 1);
        for (uint64_t &barrier : shared.told) barrier_init(&barrier, 1);
        fence_barrier_init();
        shared.list_count = 0;
    }
    wait_for_previous();
    const uint32_t words = sizeof(sample_row_t) / 4;
    if (at.thread < words)
        ((uint32_t *)&shared.row)[at.thread] = ((const uint32_t *)&rows[row])[at.thread];
    __syncthreads();
    /* Other blocks of the cluster must have begun before anything is stored in them. */
    cluster_arrive_relaxed();
    load(at);
    let_next_start();
    cluster_wait();
    sample_result_t *result = &results[row];
    uint32_t keep =
        shared.row.has_logprobs ? min(shared.row.top_logprobs, (uint32_t)SAMPLE_TOP_MAX) : 0;
    keep = min(keep, vocab);
    if (at.rank == 0 && at.thread == 0) result->top_count = keep;
    if (at.rank == 0 && at.thread >= keep && at.thread < SAMPLE_TOP_MAX) {
        result->top_ids[at.thread] = 0;
        result->top_logprobs[at.thread] = 0;
    }
    if (shared.row.has_logprobs) report<threads>(at, keep, raw, result);
    apply_bias(at);
    apply_penalties(at);
    uint32_t token = choose<threads>(at, vocab);
    if (token != UINT32_MAX) {
        result->token = token;
        result->logprob =
            shared.row.has_logprobs ? (float)((double)raw[token] - shared.log_total) : 0.0f;
    }
    /* Nobody leaves while another block may read its memory. */
    cluster_arrive_relaxed();
    cluster_wait();
}

} // namespace sample

#endif
