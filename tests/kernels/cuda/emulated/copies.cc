/* tests/kernels/cuda/emulated/copies.cc - tensor maps and bulk copies.
 */
#include "copies.h"

#include "../../../../kernels/cuda/tensor_map.cuh"

#include <errno.h>
#include <string.h>

/* The emulated tensor map is the view itself. */
static_assert(sizeof(tensor_view_t) <= sizeof(CUtensorMap), "the view lies in the map");

static uint32_t element_bytes(const tensor_view_t *view)
{
    return (uint32_t)dtype_bytes(view->dtype);
}

/* What cuTensorMapEncodeTiled refuses. */
int tensor_map_init(CUtensorMap *map, const tensor_view_t *view)
{
    uint32_t size = element_bytes(view), row = view->box_cols * size;
    if ((uintptr_t)view->data % 16 != 0 || view->row_stride * size % 16 != 0 ||
        view->plane_stride * size % 16 != 0 || view->box_cols > 256 || view->box_rows > 256 ||
        view->box_planes > 256 || row % 16 != 0 || view->cols == 0 || view->rows == 0)
        return EINVAL;
    if (view->swizzle_bytes && row > view->swizzle_bytes) return EINVAL;
    memset(map, 0, sizeof *map);
    memcpy(map, view, sizeof *view);
    return 0;
}

namespace emulated
{

static tensor_view_t view_of(const CUtensorMap *map)
{
    tensor_view_t view;
    memcpy(&view, map, sizeof view);
    return view;
}

static const char *element_at(const tensor_view_t *view, int64_t col, int64_t row, int64_t plane)
{
    if (col < 0 || row < 0 || plane < 0 || (uint64_t)col >= view->cols ||
        (uint64_t)row >= view->rows || (uint64_t)plane >= (view->planes ? view->planes : 1))
        return nullptr;
    return (const char *)view->data + ((uint64_t)plane * view->plane_stride +
                                       (uint64_t)row * view->row_stride + (uint64_t)col) *
                                          element_bytes(view);
}

/* Offset in a block's shared memory of every element of a box that begins at `first`. */
template <typename function_t>
static void for_box(const tensor_view_t *view, uint32_t first, function_t f)
{
    uint32_t size = element_bytes(view), planes = view->box_planes ? view->box_planes : 1, at = 0;
    for (uint32_t p = 0; p < planes; p++)
        for (uint32_t r = 0; r < view->box_rows; r++)
            for (uint32_t c = 0; c < view->box_cols; c++, at += size)
                f(c, r, p, swizzle(first + at, view->swizzle_bytes), size);
}

static uint32_t box_bytes(const tensor_view_t *view)
{
    return view->box_cols * view->box_rows * (view->box_planes ? view->box_planes : 1) *
           element_bytes(view);
}

/* Plain loads see it too, once they have waited for the barrier. */
static void load_now(const tensor_view_t *view, block_t *block, uint32_t first, int col, int row,
                     int plane)
{
    for_box(view, first, [&](uint32_t c, uint32_t r, uint32_t p, uint32_t at, uint32_t size) {
        const char *from = element_at(view, (int64_t)col + c, (int64_t)row + r, (int64_t)plane + p);
        for (char *to : { block->shared + at, block->async + at }) {
            if (from)
                memcpy(to, from, size);
            else
                memset(to, 0, size);
        }
    });
}

void tensor_load(void *target, const CUtensorMap *map, uint64_t *barrier, int col, int row,
                 int plane, uint32_t blocks)
{
    tensor_view_t view = view_of(map);
    const block_t *own = current->block;
    uint32_t first = shared_address_of(target) & 0xffffff,
             at = shared_address_of(barrier) & 0xffffff;
    if (first % 128 != 0) fail("a tensor copy to an address that is no multiple of 128");
    if ((uint64_t)col * element_bytes(&view) % 16 != 0)
        fail("a tensor copy that begins in the middle of 16 bytes"); /* an illegal instruction */
    for (uint32_t rank = 0; rank < own->cluster->blocks.size(); rank++) {
        if (!(blocks >> rank & 1)) continue;
        block_t *block = own->cluster->blocks[rank];
        uint64_t *word = (uint64_t *)shared_in(own, rank << 24 | at);
        later([=] {
            load_now(&view, block, first, col, row, plane);
            barrier_complete(word, box_bytes(&view));
        });
    }
}

void bulk_load(void *target, const void *source, uint32_t bytes, uint64_t *barrier)
{
    if ((uintptr_t)target % 16 != 0 || (uintptr_t)source % 16 != 0 || bytes % 16 != 0)
        fail("a bulk copy of %u bytes that is not aligned to 16", bytes);
    const block_t *block = current->block;
    ptrdiff_t at = (char *)target - block->shared; /* or in a static variable */
    later([=] {
        memcpy(target, source, bytes);
        if (at >= 0 && at < SHARED_BYTES) memcpy(block->async + at, source, bytes);
        barrier_complete(barrier, bytes);
    });
}

void tensor_store(const CUtensorMap *map, const void *source, int col, int row)
{
    tensor_view_t view = view_of(map);
    thread_t *self = current;
    const char *shared = self->block->async;
    uint32_t first = shared_address_of(source) & 0xffffff;
    if (first % 128 != 0) fail("a tensor copy from an address that is no multiple of 128");
    if (self->stores.empty()) self->stores.push_back(0);
    size_t group = self->stores.size() - 1;
    self->stores[group]++;
    later([=] {
        for_box(&view, first, [&](uint32_t c, uint32_t r, uint32_t p, uint32_t at, uint32_t size) {
            char *to = (char *)element_at(&view, (int64_t)col + c, (int64_t)row + r, p);
            if (to) memcpy(to, shared + at, size);
        });
        self->stores[group]--;
    });
}

void store_commit()
{
    if (current->stores.empty()) current->stores.push_back(0);
    current->stores.push_back(0);
}

static bool are_stores_done(const thread_t *self)
{
    for (size_t group = 0; group + 1 + self->wanted < self->stores.size(); group++)
        if (self->stores[group] > 0) return false;
    return true;
}

void store_wait(uint32_t left)
{
    current->wanted = left;
    wait(are_stores_done, "bulk stores");
}

} // namespace emulated
