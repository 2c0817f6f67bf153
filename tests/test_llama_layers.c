/* test_llama_layers.c - safe points inside a step, against a fake llama.cpp that checks each cell it is shown. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fake_llama.h"

static void *const sched = (void *)0x1000;
enum { PROMPT = 8 * F_BLOCK, ROWS = 32 };

static int setup(void **state) {
    (void)state;
    (void)setenv("PSI_CACHE_CONTROLLER", "off", 1);
    (void)setenv("PSI_CACHE_ROOT", "/nowhere", 1);
    (void)setenv("PSI_CACHE_VERBOSE", "0", 1);
    (void)setenv("PSI_CACHE_POLICY", "fifo", 1);
    (void)setenv("PSI_CACHE_RECALL", "off", 1);
    (void)setenv("PSI_CACHE_LONG_STEP_US", "0", 1);
    return 0;
}

/* The cast of the mask is a node of the graph, the one before the first attention. */
static void prepare(fake_llama *fake, uint32_t at, uint32_t rows) {
    fake_prepare(fake, 0, 1, at, rows);
    fake->input.buffer = (void *)2;
    tensor *cast = &fake->nodes[NODES_BEFORE];
    *cast = fake->input;
    cast->op = OP_CPY;
    cast->data = fake->cast[0];
    cast->src[0] = &fake->input;
    for (uint32_t layer = 0; layer < F_LAYERS; layer++) {
        fake->nodes[NODES_BEFORE + 2 * layer + 1].src[3] = cast;
    }
}

static fake_llama *filled(void) {
    fake_llama *fake = fake_open(1, false);
    for (uint32_t at = 0; at < PROMPT; at += 64) {
        prepare(fake, at, 64);
        assert_int_equal(fake_step(fake, sched), 0);
    }
    while (psi_clean_one(fake->kv->pool, PSI_TRIM_ALL) > 0) {
    }
    return fake;
}

static uint32_t shown_before; /* cells, when layer 0 was computed */

/* After layer 0's attention: as the watcher does it, while the engine's thread computes. */
static bool trim_after_first_layer(tensor *t, bool ask, void *user) {
    fake_llama *fake = user;
    if (ask) {
        return t == &fake->nodes[NODES_BEFORE + 1];
    }
    psi_pool *pool = fake->kv->pool;
    shown_before = fake->shown_cells;
    pthread_mutex_lock(&pool->lock);
    assert_true(pool->layered);
    assert_true(psi_trim(pool, 3 * pool->block_total_bytes, PSI_TRIM_CLEAN, 0) > 0);
    pthread_mutex_unlock(&pool->lock);
    return true;
}

static uint32_t stored(const fake_llama *fake) { return fake->kv->pool->stored; }

static void step_with_trim(fake_llama *fake) {
    prepare(fake, PROMPT, ROWS);
    fake->shown_cells = 0;
    psi_hooks_keep_callback(sched, trim_after_first_layer, fake);
    assert_int_equal(fake_step(fake, sched), 0);
    psi_hooks_keep_callback(sched, NULL, NULL);
    assert_int_equal(fake->wrong_cells, 0);
}

static void what_goes_inside_a_step_is_hidden_from_the_layers_to_come(void **state) {
    (void)state;
    fake_llama *fake = filled();
    step_with_trim(fake);
    assert_int_equal(stored(fake), 3);
    assert_int_equal(fake->shown_cells, 2 * shown_before - 3 * F_BLOCK);
    fake_close(fake);
}

/* As a state is loaded, outside of steps. */
static void load(fake_llama *fake, uint32_t first, uint32_t count) {
    for (uint32_t i = 0; i < 2 * F_LAYERS; i++) {
        const tensor *t = &fake->cache[i];
        const kv_tensor *which = NULL;
        psi_kv *kv = psi_kv_of_address(t->data, &which);
        psi_kv_touch(kv, which, row_of(t, 0, first), count * t->nb[1], KV_WRITE);
        for (uint32_t cell = first; cell < first + count; cell++) {
            for (uint32_t d = 0; d < F_DIMS; d++) {
                row_of(t, 0, cell)[d] = fake_key(cell, d) + (i % 2 == 0 ? 0 : (float)(i / 2));
            }
            fake->written[cell] = true;
        }
        psi_kv_touch(kv, which, row_of(t, 0, first), count * t->nb[1], KV_WROTE);
    }
}

static void clean_all(fake_llama *fake) {
    while (psi_clean_one(fake->kv->pool, PSI_TRIM_ALL) > 0) {
    }
}

static bool clean_and_trim_after_first_layer(tensor *t, bool ask, void *user) {
    if (!ask) {
        clean_all(user);
    }
    return trim_after_first_layer(t, ask, user);
}

/* The engine's very first step reads a state: the pool is made in it, and what was there is no work of the step's. */
static void a_state_that_was_loaded_before_the_first_step_may_go_inside_it(void **state) {
    (void)state;
    fake_llama *fake = fake_open(1, false);
    load(fake, 0, PROMPT);
    prepare(fake, PROMPT, ROWS);
    psi_hooks_keep_callback(sched, clean_and_trim_after_first_layer, fake);
    assert_int_equal(fake_step(fake, sched), 0);
    psi_hooks_keep_callback(sched, NULL, NULL);
    assert_int_equal(stored(fake), 3);
    assert_int_equal(fake->shown_cells, 2 * shown_before - 3 * F_BLOCK);
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

/* Under pressure a step pays for the blocks that it adds: for its own, and not for what was there before it. */
static void a_state_that_was_loaded_before_the_first_step_is_not_paid_for_with_itself(void **state) {
    (void)state;
    fake_llama *fake = fake_open(1, false);
    load(fake, 0, PROMPT);
    prepare(fake, PROMPT, F_BLOCK);
    atomic_store(&psi_llama_cache()->pressed, true);
    assert_int_equal(fake_step(fake, sched), 0);
    atomic_store(&psi_llama_cache()->pressed, false);
    assert_int_equal(stored(fake), 1);
    assert_int_equal(fake->kv->pool->resident, PROMPT / F_BLOCK);
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

static uint64_t asleep_bytes;

static bool trim_asleep_before_first_layer(tensor *t, bool ask, void *user) {
    fake_llama *fake = user;
    psi_pool *pool = fake->kv->pool;
    if (ask) {
        return t == &fake->nodes[NODES_BEFORE];
    }
    pthread_mutex_lock(&pool->lock);
    assert_false(pool->layered);
    asleep_bytes = psi_trim(pool, PROMPT / F_BLOCK * pool->block_total_bytes, PSI_TRIM_ASLEEP, 0);
    pthread_mutex_unlock(&pool->lock);
    return true;
}

/* The first step behind it is short: nothing of what it reads goes, for the masks cannot follow. */
static void a_state_that_was_loaded_since_is_not_taken_for_asleep(void **state) {
    (void)state;
    (void)setenv("PSI_CACHE_LONG_STEP_US", "100000000", 1);
    fake_llama *fake = filled();
    (void)setenv("PSI_CACHE_LONG_STEP_US", "0", 1);
    load(fake, PROMPT, 4 * F_BLOCK);
    clean_all(fake);
    prepare(fake, PROMPT + 4 * F_BLOCK, 64);
    fake->callback = trim_asleep_before_first_layer;
    fake->user = fake;
    assert_int_equal(fake_step(fake, sched), 0);
    fake->callback = NULL;
    assert_int_equal(asleep_bytes, 0);
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

/* A scheduler that leaves out to ask for a node. */
static tensor *left_out;
static psi_eval_callback asked_callback;
static bool ask_for_others(tensor *t, bool ask, void *user) {
    return !(ask && t == left_out) && asked_callback(t, ask, user);
}

static void leave_out(void *unused, psi_eval_callback callback, void *user) {
    asked_callback = callback;
    fake_set_callback(unused, callback != NULL ? ask_for_others : NULL, user);
}

static void where_a_stop_is_missed_what_went_is_back_before_it_is_read(void **state) {
    (void)state;
    fake_llama *fake = filled();
    fake->abi.sched_set_eval_callback = leave_out;
    left_out = &fake->nodes[NODES_BEFORE + 2]; /* before layer 1's attention */
    step_with_trim(fake);
    assert_int_equal(stored(fake), 0);
    assert_int_equal(fake->shown_cells, 2 * shown_before);
    fake_close(fake);
}

static void without_safe_points(void (*spoil)(fake_llama *)) {
    fake_llama *fake = filled();
    prepare(fake, PROMPT, ROWS);
    spoil(fake);
    assert_int_equal(fake_step(fake, sched), 0);
    assert_null(fake->callback); /* as it was put back */
    assert_false(fake->kv->pool->layered);
    assert_true(fake->kv->layers_said);
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

static void mask_of_its_own(fake_llama *fake) {
    static tensor own;
    own = fake->nodes[NODES_BEFORE];
    own.data = fake->cast[1];
    fake->nodes[NODES_BEFORE + 3].src[3] = &own;
}

static void mask_made_late(fake_llama *fake) {
    static tensor late; /* not among the nodes before the first stop */
    late = fake->nodes[NODES_BEFORE];
    fake->nodes[NODES_BEFORE + 1].src[3] = fake->nodes[NODES_BEFORE + 3].src[3] = &late;
}

static void reads_of_another_layer(fake_llama *fake) {
    fake->kv->layers_count = 0; /* graphs of this size were looked at before */
    memset(fake->kv->layers_nodes, 0, sizeof(fake->kv->layers_nodes));
    fake->nodes[NODES_BEFORE + 3].src[2] = &fake->cache[1];
}

static void where_masks_or_reads_are_of_another_shape_a_step_has_none(void **state) {
    (void)state;
    without_safe_points(mask_of_its_own);
    without_safe_points(mask_made_late);
    without_safe_points(reads_of_another_layer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_goes_inside_a_step_is_hidden_from_the_layers_to_come),
        cmocka_unit_test(a_state_that_was_loaded_before_the_first_step_may_go_inside_it),
        cmocka_unit_test(a_state_that_was_loaded_before_the_first_step_is_not_paid_for_with_itself),
        cmocka_unit_test(a_state_that_was_loaded_since_is_not_taken_for_asleep),
        cmocka_unit_test(where_a_stop_is_missed_what_went_is_back_before_it_is_read),
        cmocka_unit_test(where_masks_or_reads_are_of_another_shape_a_step_has_none),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
