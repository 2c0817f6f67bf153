/* test_policy.c - the order in which blocks go. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "policy/policy.h"

static void fifo_takes_the_oldest(void **state) {
    (void)state;
    psi_candidate c[] = {
        {.block = 0, .age = 3, .used = 1}, {.block = 1, .age = 1, .used = 9}, {.block = 2, .age = 2, .used = 5}};
    size_t count = 3;
    psi_policy_fifo.rate(c, count);
    psi_policy_heapify(c, count);
    assert_int_equal(psi_policy_pop(c, &count).block, 1);
    assert_int_equal(psi_policy_pop(c, &count).block, 2);
    assert_int_equal(psi_policy_pop(c, &count).block, 0);
    assert_int_equal(count, 0);
}

static void lru_takes_the_longest_unused_then_the_oldest(void **state) {
    (void)state;
    psi_candidate c[] = {
        {.block = 0, .age = 2, .used = 5}, {.block = 1, .age = 1, .used = 9}, {.block = 2, .age = 1, .used = 5}};
    size_t count = 3;
    psi_policy_lru.rate(c, count);
    psi_policy_heapify(c, count);
    assert_int_equal(psi_policy_pop(c, &count).block, 2);
    assert_int_equal(psi_policy_pop(c, &count).block, 0);
    assert_int_equal(psi_policy_pop(c, &count).block, 1);
}

static void any_order_of_many_comes_out_sorted(void **state) {
    (void)state;
    enum { MANY = 1000 };
    psi_candidate c[MANY];
    unsigned random = 12345;
    for (uint32_t i = 0; i < MANY; i++) {
        random = random * 1103515245u + 12345u;
        c[i] = (psi_candidate){.block = i, .age = random >> 20, .used = random >> 28};
    }
    size_t count = MANY;
    psi_policy_lru.rate(c, count);
    psi_policy_heapify(c, count);
    psi_candidate before = psi_policy_pop(c, &count);
    while (count > 0) {
        psi_candidate next = psi_policy_pop(c, &count);
        assert_false(psi_policy_goes_before(&next, &before));
        before = next;
    }
}

static uint32_t first_to_go(psi_candidate *candidates, size_t count) {
    psi_policy_auto.rate(candidates, count);
    psi_policy_heapify(candidates, count);
    return psi_policy_pop(candidates, &count).block;
}

static void auto_without_scores_takes_the_oldest(void **state) {
    (void)state;
    psi_candidate c[] = {{.block = 0, .age = 30, .attention = PSI_SCORE_UNKNOWN, .keys = PSI_SCORE_UNKNOWN},
                         {.block = 1, .age = 10, .attention = PSI_SCORE_UNKNOWN, .keys = PSI_SCORE_UNKNOWN},
                         {.block = 2, .age = 20, .attention = PSI_SCORE_UNKNOWN, .keys = PSI_SCORE_UNKNOWN}};
    assert_int_equal(first_to_go(c, 3), 1);
}

/* Keys of the newest quarter half a standard deviation below the usual would go first, were it not the newest. */
static void auto_spares_the_newest_quarter(void **state) {
    (void)state;
    psi_candidate c[8];
    for (uint32_t i = 0; i < 8; i++) {
        c[i] = (psi_candidate){.block = i, .age = 100 - i, .attention = 0.1f, .keys = i % 2 == 0 ? 1.0f : 2.0f};
    }
    c[0].keys = c[1].keys = 0.8f;           /* the newest two */
    assert_int_equal(first_to_go(c, 8), 6); /* the oldest of those with the lowest keys, not 0 and not 1 */
    for (uint32_t i = 0; i < 8; i++) {
        c[i] = (psi_candidate){.block = i, .age = 100 - i, .attention = 0.1f, .keys = 2.0f + (float)(i % 2)};
    }
    c[2].keys = 1.9f; /* the third newest of eight is not spared */
    assert_int_equal(first_to_go(c, 8), 2);
}

static void auto_lets_the_newest_go_when_others_say_far_more(void **state) {
    (void)state;
    psi_candidate c[8];
    for (uint32_t i = 0; i < 8; i++) {
        c[i] = (psi_candidate){.block = i, .age = i, .attention = 0.1f, .keys = 5.0f + 0.1f * (float)(i % 2)};
    }
    c[7].keys = 0.0f;
    assert_int_equal(first_to_go(c, 8), 7);
}

static void policies_are_found_by_name(void **state) {
    (void)state;
    assert_ptr_equal(psi_policy_find("lru"), &psi_policy_lru);
    assert_ptr_equal(psi_policy_find(NULL), &psi_policy_auto);
    assert_ptr_equal(psi_policy_find(""), &psi_policy_auto);
    assert_null(psi_policy_find("random"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fifo_takes_the_oldest),
        cmocka_unit_test(lru_takes_the_longest_unused_then_the_oldest),
        cmocka_unit_test(any_order_of_many_comes_out_sorted),
        cmocka_unit_test(auto_without_scores_takes_the_oldest),
        cmocka_unit_test(auto_spares_the_newest_quarter),
        cmocka_unit_test(auto_lets_the_newest_go_when_others_say_far_more),
        cmocka_unit_test(policies_are_found_by_name),
    };
    return cmocka_run_group_tests_name("policy", tests, NULL, NULL);
}
