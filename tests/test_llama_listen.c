/* test_llama_listen.c - listening to queries and recall inside a step, against a fake llama.cpp that checks each cell
 * it is shown. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "fake_llama.h"

static int setup(void **state) {
    (void)state;
    (void)setenv("PSI_CACHE_CONTROLLER", "off", 1);
    (void)setenv("PSI_CACHE_ROOT", "/nowhere", 1);
    (void)setenv("PSI_CACHE_VERBOSE", "0", 1);
    (void)setenv("PSI_CACHE_POLICY", "fifo", 1);
    (void)setenv("PSI_CACHE_RECALL_US", "10000000", 1);
    return 0;
}

static void *const sched = (void *)0x1000;

/* Blocks 0 to 23 of each stream written, in prompts of 64, one stream after the other or all at once. */
static fake_llama *filled(uint32_t streams, bool together) {
    fake_llama *fake = fake_open(streams, false);
    assert_non_null(fake->kv);
    for (uint32_t s = 0; s < (together ? 1 : streams); s++) {
        for (uint32_t at = 0; at < 24 * F_BLOCK; at += 64) {
            fake_prepare(fake, s, together ? streams : 1, at, 64);
            assert_int_equal(fake_step(fake, sched), 0);
        }
    }
    assert_int_equal(fake->kv->block_cells, F_BLOCK);
    assert_int_equal(fake->wrong_cells, 0);
    return fake;
}

/* One more token in each of the streams. */
static void token(fake_llama *fake, uint32_t first, uint32_t streams, uint32_t *at, uint32_t block) {
    fake_prepare(fake, first, streams, *at, 1);
    fake_ask_for(fake, block);
    assert_int_equal(fake_step(fake, sched), 0);
    *at += 1;
}

static psi_block_state state_of(const fake_llama *fake, uint32_t stream, uint32_t block) {
    return psi_block_get_state(fake->kv->pool, stream * fake->kv->stream_blocks + block);
}

static void trim(double share) { assert_int_equal(psi_cache_trim(NULL, share), 0); }

static void what_a_prompt_asks_for_is_back_before_its_attention(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    assert_int_equal(state_of(fake, 0, 5), PSI_BLOCK_STORED);
    uint32_t resident = fake->kv->pool->resident;
    fake_prepare(fake, 0, 1, at, 10);
    fake_ask_for(fake, 5);
    fake->shown_cells = 0;
    assert_int_equal(fake_step(fake, sched), 0);
    assert_int_equal(state_of(fake, 0, 5), PSI_BLOCK_RESIDENT);
    assert_true(fake->shown_cells > 0);
    assert_int_equal(fake->wrong_cells, 0);
    assert_true(fake->kv->pool->resident <= resident + 1);
    fake_close(fake);
}

/* The step reads streams 1 and 2 of four. */
static void in_a_step_of_some_streams_theirs_are_heard(void **state) {
    (void)state;
    fake_llama *fake = filled(4, false);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    fake_prepare(fake, 0, 4, at++, 1); /* all are awake */
    fake_ask_for(fake, 20);
    assert_int_equal(fake_step(fake, sched), 0);
    uint32_t hidden[F_MOST_STREAMS] = {0};
    for (uint32_t s = 0; s < 4; s++) {
        for (uint32_t block = 1; block < 20; block++) {
            hidden[s] += state_of(fake, s, block) == PSI_BLOCK_STORED;
        }
    }
    fake_prepare(fake, 0, 4, at, 10);
    at += 10;
    fake_ask_for(fake, 20);
    assert_int_equal(fake_step(fake, sched), 0);
    fake_prepare(fake, 1, 2, at, 10);
    fake_ask_for(fake, 5);
    assert_int_equal(fake_step(fake, sched), 0);
    assert_int_equal(state_of(fake, 1, 5), PSI_BLOCK_RESIDENT);
    assert_int_equal(state_of(fake, 2, 5), PSI_BLOCK_RESIDENT);
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

/* A build in which each layer makes a mask of its own: what goes in the first layer would be shown in the second. */
static void where_layers_have_masks_of_their_own_nothing_moves_inside_a_step(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    fake->own_casts = true;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    for (uint32_t block = 3; block < 7; block++) {
        fake_prepare(fake, 0, 1, at, 10);
        at += 10;
        fake_ask_for(fake, block);
        assert_int_equal(fake_step(fake, sched), 0);
    }
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

static void sequences_that_take_turns_are_no_blocks_taken_anew(void **state) {
    (void)state;
    fake_llama *fake = filled(2, false);
    uint32_t at[2] = {24 * F_BLOCK, 24 * F_BLOCK};
    assert_int_equal(psi_cache_set(NULL, "recall_share", "0"), 0);
    fake_prepare(fake, 0, 2, at[0]++, 1); /* both are awake */
    at[1]++;
    trim(0.3); /* of which the first, being older, gives all */
    assert_int_equal(fake_step(fake, sched), 0);
    bool at_once[4];
    for (int turn = 0; turn < 4; turn++) {
        token(fake, 1, 1, &at[1], 20);
        token(fake, 0, 1, &at[0], 20);
        at_once[turn] = fake->kv->worth->recalls && fake->kv->worth->at_once;
    }
    assert_int_equal(state_of(fake, 0, 5), PSI_BLOCK_STORED);
    assert_false(at_once[1] || at_once[2] || at_once[3]);
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

/* Ten sequences decode a token each, in one batch of one stream. */
static void many_sequences_tokens_in_one_batch_are_no_prompt(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    for (int turn = 0; turn < 3; turn++) {
        fake_prepare(fake, 0, 1, at, 10);
        fake_ask_for(fake, 5);
        for (uint32_t row = 0; row < 10; row++) {
            for (uint32_t cell = at; cell < at + 10; cell++) {
                fake->mask[row * F_CELLS + cell] = cell == at + row ? 0 : -HUGE_VALF;
            }
        }
        assert_int_equal(fake_step(fake, sched), 0);
        assert_true(fake->kv->worth->at_once == (turn == 0)); /* the first after blocks were taken */
        at += 10;
    }
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

static void what_an_exchange_cost_is_on_the_account(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    token(fake, 0, 1, &at, 20);
    double before_us = fake->kv->worth->recall.us;
    fake->kv->pool->recall_us += 40000; /* as if one had been made at the safe point */
    token(fake, 0, 1, &at, 20);
    assert_true(fake->kv->worth->recall.us <= before_us - 30000);
    fake_close(fake);
}

/* A step that is listened to is computed in three pieces, not one; that costs far more than its two layers' scores. */
static void what_the_engine_s_stops_cost_is_on_the_account(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK, heard = 0;
    assert_int_equal(psi_cache_set(NULL, "policy", "auto"), 0);
    fake->kv->worth->attend.us = 0; /* of what the prompt earned nothing is left */
    fake->piece_us = 2000;
    for (int i = 0; i < 100; i++) {
        token(fake, 0, 1, &at, 20);
        heard += fake->kv->worth->attends;
    }
    assert_true(heard > 0);
    assert_true(heard < 40);
    assert_int_equal(psi_cache_set(NULL, "policy", "fifo"), 0);
    fake_close(fake);
}

/* Two and eight blocks a page, and tensors that begin inside of one. */
static void on_larger_pages_every_cell_is_right_too(void **state) {
    (void)state;
    const size_t page = psi_os_page_bytes();
    for (size_t page_bytes = 2 * page; page_bytes <= 16 * page; page_bytes *= 2) {
        fake_llama *fake = fake_open(2, false);
        uint32_t at = 24 * F_BLOCK;
        for (uint32_t to = 0; to < at; to += 64) {
            fake_prepare(fake, 0, 2, to, 64);
            assert_int_equal(fake_step(fake, sched), 0);
            fake->kv->pool->page_bytes = page_bytes; /* a fake page */
        }
        trim(0.5);
        for (uint32_t block = 2; block < 12; block++) {
            fake_prepare(fake, 0, 2, at, 10);
            at += 10;
            fake_ask_for(fake, block);
            assert_int_equal(fake_step(fake, sched), 0);
            assert_int_equal(state_of(fake, 0, block), PSI_BLOCK_RESIDENT);
            assert_int_equal(state_of(fake, 1, block), PSI_BLOCK_RESIDENT);
        }
        assert_int_equal(fake->wrong_cells, 0);
        fake_close(fake);
    }
}

/* The pools' files have no names, but descriptors here. */
static uint32_t damage_stores(void) {
    char path[64], name[256], bytes[65536];
    uint32_t done = 0;
    memset(bytes, 'x', sizeof(bytes));
    for (int descriptor = 3; descriptor < 64; descriptor++) {
        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", descriptor);
        ssize_t length = readlink(path, name, sizeof(name) - 1);
        name[length > 0 ? length : 0] = '\0';
        if (strncmp(name, "/var/tmp/", 9) != 0 || strstr(name, "(deleted)") == NULL) {
            continue;
        }
        int again = open(path, O_WRONLY | O_CLOEXEC);
        for (off_t at = 0; at < (off_t)(256 * psi_os_page_bytes()); at += (off_t)sizeof(bytes)) {
            done += pwrite(again, bytes, sizeof(bytes), at) > 0;
        }
        (void)close(again);
    }
    return done;
}

static void what_the_store_lost_stays_hidden(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    assert_true(damage_stores() > 0);
    for (uint32_t block = 3; block < 7; block++) {
        fake_prepare(fake, 0, 1, at, 10);
        at += 10;
        fake_ask_for(fake, block);
        assert_int_equal(fake_step(fake, sched), 0);
    }
    assert_int_equal(state_of(fake, 0, 5), PSI_BLOCK_DROPPED);
    assert_true(fake->kv->pool->store_errors > 0);
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

/* The child has no writer, and its store is the parent's: nothing is exchanged there, and nothing wrong read. */
static void in_a_child_of_fork_nothing_is_exchanged(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    token(fake, 0, 1, &at, 5); /* and something is on its way */
    pid_t child = fork();
    if (child == 0) {
        uint32_t hidden = fake->kv->pool->stored;
        fake_prepare(fake, 0, 1, at, 10);
        fake_ask_for(fake, 7);
        bool good = fake_step(fake, sched) == 0 && fake->kv->pool->stored == hidden && fake->wrong_cells == 0;
        _exit(good ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    fake_prepare(fake, 0, 1, at, 10);
    fake_ask_for(fake, 7);
    assert_int_equal(fake_step(fake, sched), 0);
    assert_int_equal(state_of(fake, 0, 7), PSI_BLOCK_RESIDENT);
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

static bool stop_at_once(tensor *t, bool ask, void *user) {
    (void)t;
    *(uint32_t *)user += !ask;
    return ask; /* wants all, and goes on after none */
}

static void a_callback_that_stops_the_engine_stops_it(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK, calls = 0;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    psi_hooks_keep_callback(sched, stop_at_once, &calls);
    fake_set_callback(sched, stop_at_once, &calls);
    fake_prepare(fake, 0, 1, at, 10);
    fake_ask_for(fake, 5);
    fake->shown_cells = 0;
    assert_int_equal(fake_step(fake, sched), 0);
    assert_int_equal(calls, 1);
    assert_int_equal(fake->shown_cells, 0);
    assert_true(fake->callback == stop_at_once && fake->user == &calls);
    psi_hooks_keep_callback(sched, NULL, NULL);
    fake_set_callback(sched, NULL, NULL);
    fake_prepare(fake, 0, 1, at, 10);
    fake_ask_for(fake, 5);
    assert_int_equal(fake_step(fake, sched), 0);
    assert_int_equal(state_of(fake, 0, 5), PSI_BLOCK_RESIDENT);
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

static void an_aborted_step_leaves_the_cache_right(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    for (int layer = 0; layer < F_LAYERS; layer++) {
        fake->stop_at_layer = layer;
        fake_prepare(fake, 0, 1, at, 40);
        fake_ask_for(fake, 5);
        assert_int_equal(fake_step(fake, sched), STATUS_ABORTED);
        fake->stop_at_layer = -1;
        fake_prepare(fake, 0, 1, at, 40); /* in the same cells again */
        fake_ask_for(fake, 7);
        assert_int_equal(fake_step(fake, sched), 0);
        at += 40;
        assert_int_equal(state_of(fake, 0, 7), PSI_BLOCK_RESIDENT);
    }
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

static bool count_call(tensor *t, bool ask, void *user) {
    (void)t;
    *(uint32_t *)user += ask;
    return false;
}

static void any_number_of_schedulers_is_listened_to(void **state) {
    (void)state;
    enum { MANY = 100 };
    static uint32_t calls[MANY];
    static char scheds[MANY];
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    for (int i = 0; i < MANY; i++) {
        psi_hooks_keep_callback(&scheds[i], i % 2 == 0 ? count_call : NULL, &calls[i]);
    }
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    for (int i = MANY - 2; i < MANY; i++) {
        fake_set_callback(&scheds[i], i % 2 == 0 ? count_call : NULL, &calls[i]);
        fake_prepare(fake, 0, 1, at, 10);
        at += 10;
        fake_ask_for(fake, (uint32_t)(5 + 3 * (i % 2)));
        assert_int_equal(fake_step(fake, &scheds[i]), 0);
        assert_int_equal(calls[i], i % 2 == 0 ? NODES : 0);
        assert_int_equal(state_of(fake, 0, (uint32_t)(5 + 3 * (i % 2))), PSI_BLOCK_RESIDENT);
        assert_true(fake->callback == (i % 2 == 0 ? count_call : NULL));
    }
    for (int i = 0; i < MANY; i++) {
        psi_hooks_forget(&scheds[i]);
    }
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

/* The scheduler copies what an attention on a device reads: such a copy is not for us to read or write. */
static void a_mask_in_a_device_s_memory_is_left_alone(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    fake_prepare(fake, 0, 1, at, 10);
    fake_ask_for(fake, 5);
    for (uint32_t layer = 0; layer < F_LAYERS; layer++) {
        fake->casts[layer].buffer = (void *)1;
    }
    assert_int_equal(fake_step(fake, sched), 0);
    assert_int_equal(state_of(fake, 0, 5), PSI_BLOCK_STORED);
    assert_int_equal(fake->wrong_cells, 0);
    assert_false(fake->kv->given_up);
    at += 10;
    fake_prepare(fake, 0, 1, at, 10);
    fake->input.buffer = (void *)1;
    for (uint32_t layer = 0; layer < F_LAYERS; layer++) {
        fake->casts[layer].buffer = (void *)1;
    }
    float before = fake->mask[5 * F_BLOCK];
    assert_int_equal(fake_step(fake, sched), 0);
    assert_true(fake->mask[5 * F_BLOCK] == before && before == 0);
    assert_int_equal(fake->wrong_cells, 0); /* all is back */
    assert_true(fake->kv->given_up);
    fake_close(fake);
}

static void queries_that_are_no_numbers_move_nothing(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    assert_int_equal(psi_cache_set(NULL, "policy", "attention"), 0);
    uint64_t recalls = fake->kv->pool->recalls;
    fake_prepare(fake, 0, 1, at, 10);
    for (uint32_t i = 0; i < 10 * F_DIMS; i++) {
        fake->query[i] = i % 3 == 0 ? NAN : HUGE_VALF;
    }
    assert_int_equal(fake_step(fake, sched), 0);
    for (uint32_t block = 0; block < fake->kv->blocks; block++) {
        const psi_block *b = &fake->kv->pool->block[block];
        assert_true(!isnan(b->attention) && !isnan(b->keys) && !isnan(b->want));
    }
    assert_int_equal(fake->kv->pool->recalls, recalls);
    assert_int_equal(psi_cache_set(NULL, "policy", "fifo"), 0);
    fake_close(fake);
}

static void a_head_that_ends_inside_a_quantised_group_is_not_read(void **state) {
    (void)state;
    fake_llama *fake = fake_open(1, true);
    assert_non_null(fake->kv);
    assert_int_equal(psi_cache_set(NULL, "policy", "attention"), 0);
    for (uint32_t at = 0; at < 8 * F_BLOCK; at += 32) {
        fake_prepare(fake, 0, 1, at, 32);
        tensor *q = &fake->nodes[0];
        q->ne[0] = F_DIMS / 2;
        q->ne[2] = 2;
        q->nb[2] = F_DIMS / 2 * sizeof(float);
        for (uint32_t layer = 0; layer < F_LAYERS; layer++) {
            fake->views[layer].ne[0] = F_DIMS / 2;
            fake->views[layer].ne[2] = 2;
        }
        assert_int_equal(fake_step(fake, sched), 0);
    }
    assert_non_null(fake->kv->worth);
    assert_int_equal(fake->wrong_groups, 0);
    assert_int_equal(psi_cache_set(NULL, "policy", "fifo"), 0);
    fake_close(fake);
}

static void after_clearing_and_turning_what_is_remembered_is_of_the_new_content(void **state) {
    (void)state;
    fake_llama *fake = filled(1, true);
    uint32_t at = 24 * F_BLOCK;
    trim(0.5);
    token(fake, 0, 1, &at, 20);
    psi_kv_make_whole(fake->kv); /* as for a context shift */
    for (uint32_t block = 0; block < fake->kv->blocks; block++) {
        assert_int_equal(fake->kv->worth->summed[block], 0);
        assert_true(fake->kv->pool->block[block].want < 0 && fake->kv->pool->block[block].keys < 0);
    }
    trim(0.5);
    fake_prepare(fake, 0, 1, at, 10);
    at += 10;
    fake_ask_for(fake, 5);
    assert_int_equal(fake_step(fake, sched), 0);
    psi_kv_clear(fake->kv);
    memset(fake->written, 0, sizeof(fake->written));
    for (uint32_t to = 0; to < 8 * F_BLOCK; to += 64) {
        fake_prepare(fake, 0, 1, to, 64);
        fake_ask_for(fake, 5);
        assert_int_equal(fake_step(fake, sched), 0);
    }
    assert_int_equal(fake->wrong_cells, 0);
    fake_close(fake);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_prompt_asks_for_is_back_before_its_attention),
        cmocka_unit_test(in_a_step_of_some_streams_theirs_are_heard),
        cmocka_unit_test(where_layers_have_masks_of_their_own_nothing_moves_inside_a_step),
        cmocka_unit_test(sequences_that_take_turns_are_no_blocks_taken_anew),
        cmocka_unit_test(many_sequences_tokens_in_one_batch_are_no_prompt),
        cmocka_unit_test(what_an_exchange_cost_is_on_the_account),
        cmocka_unit_test(what_the_engine_s_stops_cost_is_on_the_account),
        cmocka_unit_test(on_larger_pages_every_cell_is_right_too),
        cmocka_unit_test(what_the_store_lost_stays_hidden),
        cmocka_unit_test(in_a_child_of_fork_nothing_is_exchanged),
        cmocka_unit_test(a_callback_that_stops_the_engine_stops_it),
        cmocka_unit_test(an_aborted_step_leaves_the_cache_right),
        cmocka_unit_test(a_mask_in_a_device_s_memory_is_left_alone),
        cmocka_unit_test(queries_that_are_no_numbers_move_nothing),
        cmocka_unit_test(a_head_that_ends_inside_a_quantised_group_is_not_read),
        cmocka_unit_test(after_clearing_and_turning_what_is_remembered_is_of_the_new_content),
        cmocka_unit_test(any_number_of_schedulers_is_listened_to),
    };
    return cmocka_run_group_tests_name("llama_listen", tests, setup, NULL);
}
