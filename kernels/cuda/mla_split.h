/* kernels/cuda/mla_split.h - where attention over a row's keys is cut: by the row's own length
 * only, so that a row's result does not depend on its batch.
 *
 * A piece is what a cluster of two blocks works on: at most 128 pages, of which each block takes
 * one half.  The halves meet inside the cluster; only rows of more than 8,192 keys have several
 * pieces.
 */
#ifndef KERNELS_CUDA_MLA_SPLIT_H
#define KERNELS_CUDA_MLA_SPLIT_H

#include <stdint.h>

#ifdef __CUDACC__
#define MLA_BOTH __host__ __device__
#else
#define MLA_BOTH
#endif

enum { MLA_PAGE_KEYS = 64, MLA_PIECE_PAGES = 128 };

typedef struct {
    uint32_t first, count;
} mla_pages_t;

MLA_BOTH static inline uint32_t mla_page_count(uint32_t keys)
{
    return (keys + MLA_PAGE_KEYS - 1) / MLA_PAGE_KEYS;
}

MLA_BOTH static inline uint32_t mla_piece_count(uint32_t keys)
{
    return (mla_page_count(keys) + MLA_PIECE_PAGES - 1) / MLA_PIECE_PAGES;
}

/* Pieces differ by one page at most. */
MLA_BOTH static inline mla_pages_t mla_piece_pages(uint32_t keys, uint32_t piece)
{
    uint32_t pages = mla_page_count(keys), pieces = mla_piece_count(keys);
    uint32_t first = (uint32_t)((uint64_t)pages * piece / pieces),
             end = (uint32_t)((uint64_t)pages * (piece + 1) / pieces);
    mla_pages_t result = { first, end - first };
    return result;
}

/* Half 0 comes first and has the odd page; half 1 of a single page is empty. */
MLA_BOTH static inline mla_pages_t mla_half_pages(mla_pages_t piece, uint32_t half)
{
    uint32_t before = (piece.count + 1) / 2;
    mla_pages_t result = { piece.first + (half ? before : 0),
                           half ? piece.count - before : before };
    return result;
}

/* ---- the yardstick: FlashMLA's split, which depends on the batch ---- */

/* What one part of the GPU does: from page first_page of sequence first up to, not including, page
 * end_page of sequence last. */
typedef struct {
    uint32_t first, first_page, last, end_page;
} mla_part_t;

enum { MLA_PART_OVERHEAD = 5 }; /* what a sequence costs beside its pages, in pages */

/* Gives `parts` equal shares of all pages, in order; keys [count] are not zero.  splits [count +
 * 1]: how many partial results the sequences before each have.  Results then depend on the batch,
 * so ops do not use it: the balance of pieces is measured against it. */
static inline void mla_parts_plan(const uint32_t *keys, uint32_t count, mla_part_t *plan,
                                  uint32_t parts, uint32_t *splits)
{
    uint32_t total = 0, sequence = 0, page = 0, split = 0;
    for (uint32_t s = 0; s < count; s++) total += mla_page_count(keys[s]) + MLA_PART_OVERHEAD;
    uint32_t share = (total + parts - 1) / parts + MLA_PART_OVERHEAD;
    splits[0] = 0;
    for (uint32_t i = 0; i < parts; i++) {
        uint32_t left = share;
        plan[i].first = sequence;
        plan[i].first_page = page;
        while (sequence < count) {
            uint32_t pages = mla_page_count(keys[sequence]) - page;
            if (left < pages + MLA_PART_OVERHEAD) break;
            left -= pages + MLA_PART_OVERHEAD;
            splits[sequence + 1] = splits[sequence] + split + 1;
            sequence++;
            page = split = 0;
        }
        if (sequence < count && left > MLA_PART_OVERHEAD) {
            page += left - MLA_PART_OVERHEAD;
            split++;
        }
        plan[i].last = page > 0 || sequence == 0 ? sequence : sequence - 1;
        plan[i].end_page = page > 0 ? page : mla_page_count(keys[plan[i].last]);
    }
}

#endif
