/* tests/kv/test_book.c - the balancer's book against a plain array in order of arrival. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runtime/kv/book.h"

enum { CAPACITY = 16, ROUNDS = 20000 };

typedef struct {
    book_t book;
    table_cell_t cells[64];
    book_place_t places[CAPACITY];
    uint64_t waiting[CAPACITY]; /* ids in order of arrival */
    uint32_t count;
} fixture_t;

static void set_up(fixture_t *f)
{
    *f = (fixture_t){ 0 };
    assert_true(table_cells(CAPACITY) <= sizeof f->cells / sizeof *f->cells);
    book_init(&f->book, f->cells, f->places, CAPACITY);
}

static request_id_t name(uint64_t id)
{
    return (request_id_t){ .hi = id * 0x9e3779b97f4a7c15u, .lo = id };
}

static void leave(fixture_t *f, uint32_t at)
{
    uint64_t id = f->waiting[at];
    uint32_t place = book_find(&f->book, name(id));
    assert_int_not_equal(place, BOOK_NONE);
    book_dequeue(&f->book, place);
    book_remove(&f->book, name(id), place);
    assert_int_equal(book_find(&f->book, name(id)), BOOK_NONE);
    f->count -= 1;
    for (uint32_t i = at; i < f->count; i++) f->waiting[i] = f->waiting[i + 1];
}

static void assert_order(const fixture_t *f)
{
    uint32_t place = book_first(&f->book);
    for (uint32_t i = 0; i < f->count; i++) {
        assert_int_not_equal(place, BOOK_NONE);
        assert_int_equal(place, book_find(&f->book, name(f->waiting[i])));
        place = book_next(&f->book, place);
    }
    assert_int_equal(place, BOOK_NONE);
    assert_int_equal(f->book.queued, f->count);
    assert_int_equal(book_count(&f->book), f->count);
    book_check(&f->book);
}

/* Requests would be served out of order, or a place lost for ever, each time one leaves the middle
 * of the queue. */
static void test_queue_random_arrivals_and_departures_keeps_order(void **state)
{
    fixture_t f;
    set_up(&f);
    uint64_t random = 1;
    for (uint64_t id = 1; id <= ROUNDS; id++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint32_t draw = (uint32_t)(random >> 33);
        if (f.count > 0 && draw % 2 == 0) leave(&f, draw / 2 % f.count);
        if (f.count < CAPACITY && draw % 3 != 0) {
            book_enqueue(&f.book, book_add(&f.book, name(id)));
            f.waiting[f.count++] = id;
        }
        assert_order(&f);
    }
}

/* A full book would write past its end, or stay full after somebody has left. */
static void test_add_when_full_refuses_until_one_leaves(void **state)
{
    fixture_t f;
    set_up(&f);
    for (uint64_t id = 1; id <= CAPACITY; id++)
        assert_true(book_is_used(&f.book, book_add(&f.book, name(id))));
    assert_int_equal(book_add(&f.book, name(99)), BOOK_NONE);
    uint32_t place = book_find(&f.book, name(5));
    book_remove(&f.book, name(5), place);
    assert_false(book_is_used(&f.book, place));
    assert_int_equal(book_add(&f.book, name(99)), place);
}

/* A request that was given to a worker would still wait in line, and be given away twice. */
static void test_dequeue_keeps_the_request_in_the_book(void **state)
{
    fixture_t f;
    set_up(&f);
    uint32_t place = book_add(&f.book, name(1));
    book_enqueue(&f.book, place);
    book_dequeue(&f.book, place);
    assert_int_equal(book_first(&f.book), BOOK_NONE);
    assert_int_equal(book_find(&f.book, name(1)), place);
    assert_int_equal(book_count(&f.book), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_queue_random_arrivals_and_departures_keeps_order),
        cmocka_unit_test(test_add_when_full_refuses_until_one_leaves),
        cmocka_unit_test(test_dequeue_keeps_the_request_in_the_book),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
