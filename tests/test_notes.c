/* test_notes.c - src/pool/notes.c: what counts as the reaction to a reading. A cache and a pool of numbers alone, with
 * a time of their own; nothing is given. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "pool/pool.h"
#include "pool/watcher.h"

#define MS UINT64_C(1000)
#define MIB (UINT64_C(1) << 20)

static psi_cache cache;
static psi_pool pool;

static int setup(void **state) {
    (void)state;
    memset(&cache, 0, sizeof(cache));
    memset(&pool, 0, sizeof(pool));
    assert_int_equal(pthread_mutex_init(&pool.lock, NULL), 0);
    cache.pools = &pool;
    return 0;
}

/* A reading that asks for `trim_bytes`, after which `pending_bytes` wait for the engine. */
static void reading(uint64_t at_ms, uint64_t trim_mib, uint64_t pending_mib) {
    psi_demand demand = {.returned_bytes = pool.returned_bytes};
    cache.reading.at_us = at_ms * MS;
    cache.decision =
        (psi_decision){.band = trim_mib > 0 ? PSI_BAND_SAFETY : PSI_BAND_NONE, .trim_bytes = trim_mib * MIB};
    psi_notes_decided(&cache, &demand);
    atomic_store(&pool.want_trim_bytes, pending_mib * MIB);
    psi_notes_given(&cache);
}

static void given(uint64_t at_ms, uint64_t mib) {
    pool.returned_bytes += mib * MIB;
    pool.given_at_us = at_ms * MS;
    pool.first_given_at_us = pool.first_given_at_us != 0 ? pool.first_given_at_us : at_ms * MS;
}

static void it_counts_from_the_last_reading_without_need(void **state) {
    (void)state;
    reading(1000, 0, 0);
    reading(1005, 10, 10);
    given(1012, 10);
    reading(1015, 0, 0);
    assert_int_equal(cache.tally.reaction_last_us, 12 * MS);
}

/* A spike of seconds is a row of asks, each with its own answer. */
static void an_ask_is_answered_though_more_is_asked(void **state) {
    (void)state;
    reading(1000, 0, 0);
    reading(1005, 10, 10);
    given(1012, 10);
    reading(1015, 5, 5); /* wants more: that belongs to the next */
    assert_int_equal(cache.tally.reaction_last_us, 12 * MS);
    reading(1020, 30, 35);
    given(1033, 35);
    reading(1035, 20, 20);
    assert_int_equal(cache.tally.reaction_last_us, 18 * MS); /* since 1015, when its answer was there */
    assert_int_equal(cache.tally.reaction_most_us, 18 * MS);
}

static void the_first_pages_count_the_rest_is_learned_from(void **state) {
    (void)state;
    cache.control.tuning.reaction_us = 1;
    reading(1000, 0, 0);
    reading(1005, 10, 10);
    given(1012, 4);
    reading(1015, 0, 6);
    assert_int_equal(cache.tally.reaction_last_us, 12 * MS);
    assert_int_equal((int)cache.control.tuning.reaction_us, 1);
    given(1055, 6);
    pool.write_us += 20 * MS;
    reading(1060, 0, 0);
    assert_int_equal(cache.tally.reaction_last_us, 12 * MS);
    assert_int_equal((int)cache.control.tuning.reaction_us, 30 * MS);
}

static void a_busy_store_shows_no_better_reaction(void **state) {
    (void)state;
    cache.control.tuning.reaction_us = 40 * MS;
    reading(1000, 0, 0);
    reading(1005, 10, 10);
    given(1035, 10);
    pool.write_us += 20 * MS;
    reading(1040, 0, 0);
    assert_int_equal((int)cache.control.tuning.reaction_us, 40 * MS);
}

static void what_is_withdrawn_unanswered_is_no_reaction(void **state) {
    (void)state;
    reading(1000, 0, 0);
    reading(1005, 10, 10);
    reading(1010, 0, 0);
    assert_int_equal(cache.tally.reaction_last_us, 0);
    reading(2000, 10, 10);
    given(2010, 10);
    reading(2015, 0, 0);
    assert_int_equal(cache.tally.reaction_last_us, 1000 * MS); /* since 1010: nothing was read in between */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(it_counts_from_the_last_reading_without_need, setup),
        cmocka_unit_test_setup(an_ask_is_answered_though_more_is_asked, setup),
        cmocka_unit_test_setup(the_first_pages_count_the_rest_is_learned_from, setup),
        cmocka_unit_test_setup(a_busy_store_shows_no_better_reaction, setup),
        cmocka_unit_test_setup(what_is_withdrawn_unanswered_is_no_reaction, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
