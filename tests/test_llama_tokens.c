/* test_llama_tokens.c - what is remembered of a step's tokens, from made-up graphs: tensors and masks of a fake build
 * whose numbers of operations are ours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/llama/graph.h"

enum { CELLS = 16, ROWS = 4, NONE = 0, SET_ROWS, GET_ROWS, ROPE, MUL_MAT, VIEW };
static const float HIDDEN = -__builtin_inff();

static bool is_host(void *buffer) { return buffer != NULL; }

typedef struct fake {
    psi_abi abi;
    psi_kv kv;
    psi_cell_token cells[CELLS];
    uint64_t partial[1];
    int32_t token[ROWS], position[ROWS];
    int64_t index[ROWS];
    float seen[ROWS][CELLS];
    tensor tokens, positions, indices, mask, weight, look_up, layer, rope, write;
    psi_llama_step step;
} fake;

static tensor input(int32_t type, void *data, int64_t count) {
    return (tensor){.type = type, .data = data, .buffer = data, .ne = {count, 1, 1, 1}, .flags = TENSOR_FLAG_INPUT};
}

/* A fake engine with an empty cache of one stream. */
static void begin(fake *f) {
    memset(f, 0, sizeof(*f));
    f->abi = (psi_abi){.op_set_rows = SET_ROWS,
                       .op_get_rows = GET_ROWS,
                       .op_rope = ROPE,
                       .op_view = VIEW,
                       .op_mul_mat = MUL_MAT,
                       .op_reshape = -1,
                       .op_permute = -1,
                       .op_transpose = -1,
                       .op_cpy = -1,
                       .op_cont = -1,
                       .op_dup = -1,
                       .buffer_is_host = is_host};
    f->kv = (psi_kv){.abi = &f->abi, .cells = CELLS, .streams = 1, .tokens = f->cells, .partial = f->partial};
    for (int r = 0; r < ROWS; r++) {
        for (int c = 0; c < CELLS; c++) {
            f->seen[r][c] = HIDDEN;
        }
    }
}

static void row(fake *f, int r, int32_t token, int32_t position, int64_t cell) {
    f->token[r] = token;
    f->position[r] = position;
    f->index[r] = cell;
}

static void sees(fake *f, int r, int first, int last) {
    for (int c = first; c <= last; c++) {
        f->seen[r][c] = 0;
    }
}

/* The step as the graph's reading leaves it, and then noted. */
static void note(fake *f, int rows) {
    f->tokens = input(TYPE_I32, f->token, rows);
    f->positions = input(TYPE_I32, f->position, rows);
    f->indices = input(TYPE_I64, f->index, rows);
    f->mask = input(TYPE_F32, f->seen, CELLS);
    f->mask.ne[1] = rows;
    f->mask.nb[0] = sizeof(float);
    f->mask.nb[1] = f->mask.nb[2] = f->mask.nb[3] = CELLS * sizeof(float);
    strcpy(f->weight.name, "token_embd.weight");
    f->look_up = (tensor){.op = GET_ROWS, .src = {&f->weight, &f->tokens}, .flags = f->look_up.flags};
    f->layer = (tensor){.op = MUL_MAT, .src = {&f->weight, &f->look_up}};
    f->rope = (tensor){.op = ROPE, .src = {&f->layer, &f->positions}};
    f->write = (tensor){.op = SET_ROWS, .src = {&f->rope, &f->indices}, .flags = f->write.flags};
    f->step = (psi_llama_step){.write_count = 1, .mask_count = 1};
    f->step.writes[0] = (step_write){&f->kv, &f->indices};
    f->step.masks[0] = (step_mask){.mask = &f->mask, .kv = &f->kv};
    const tensor *nodes[] = {&f->look_up, &f->layer, &f->rope, &f->write};
    for (size_t i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++) {
        psi_tokens_see_node(&f->step.tokens, &f->abi, nodes[i]);
    }
    for (int r = 0; r < rows; r++) { /* as psi_kv_note_cell does */
        psi_tokens_forget(&f->kv, (uint64_t)f->index[r]);
    }
    psi_tokens_note(&f->step);
}

static void test_a_prompt_and_a_token_make_one_chain(void **state) {
    (void)state;
    fake f;
    begin(&f);
    for (int r = 0; r < 3; r++) {
        row(&f, r, 100 + r, r, r + 5);
        sees(&f, r, 5, 5 + r);
    }
    note(&f, 3);
    uint64_t chain = 0;
    for (int r = 0; r < 3; r++) {
        chain += psi_token_hash(100 + r, r);
        assert_int_equal(f.cells[5 + r].token, 100 + r);
        assert_int_equal(f.cells[5 + r].position, r);
        assert_true(f.cells[5 + r].chain == chain);
    }
    row(&f, 0, 777, 3, 1); /* the next one lies before them */
    sees(&f, 0, 1, 1);
    sees(&f, 0, 5, 7);
    note(&f, 1);
    assert_true(f.cells[1].chain == chain + psi_token_hash(777, 3));
}

static void test_the_same_text_elsewhere_is_the_same_chain(void **state) {
    (void)state;
    fake f;
    begin(&f);
    row(&f, 0, 7, 0, 0);
    row(&f, 1, 7, 0, 9); /* another sequence in the same batch */
    sees(&f, 0, 0, 0);
    sees(&f, 1, 9, 9);
    note(&f, 2);
    assert_true(f.cells[0].chain != 0 && f.cells[0].chain == f.cells[9].chain);
}

static void test_what_saw_a_gap_or_something_unknown_has_no_chain(void **state) {
    (void)state;
    fake f;
    begin(&f);
    for (int r = 0; r < 3; r++) {
        row(&f, r, 100 + r, r, r);
        sees(&f, r, 0, r);
    }
    note(&f, 3);
    sees(&f, 0, 0, 3);
    f.seen[0][1] = HIDDEN; /* position 1 was removed */
    row(&f, 0, 9, 3, 3);
    note(&f, 1);
    assert_int_equal(f.cells[3].chain, 0);
    psi_tokens_forget(&f.kv, 2); /* written from outside */
    sees(&f, 0, 0, 4);
    f.seen[0][3] = HIDDEN;
    row(&f, 0, 9, 3, 4);
    note(&f, 1);
    assert_int_equal(f.cells[4].chain, 0);
    assert_true(f.cells[1].chain != 0);
}

static void test_a_rewritten_cell_breaks_the_chain_of_the_old_text(void **state) {
    (void)state;
    fake f;
    begin(&f);
    row(&f, 0, 1, 0, 0);
    row(&f, 1, 2, 1, 1);
    sees(&f, 0, 0, 0);
    sees(&f, 1, 0, 1);
    note(&f, 2);
    uint64_t before = f.cells[1].chain - psi_token_hash(2, 1);
    assert_true(f.cells[0].chain == before);
    row(&f, 0, 3, 0, 0);
    note(&f, 1);
    assert_true(f.cells[0].chain != before && f.cells[0].chain != 0);
}

static void test_embeddings_in_place_of_tokens_are_not_taken_for_tokens(void **state) {
    (void)state;
    fake f;
    begin(&f);
    row(&f, 0, 1, 0, 0);
    sees(&f, 0, 0, 0);
    f.write.flags = TENSOR_FLAG_COMPUTE; /* a build that says what is computed: not the look-up */
    note(&f, 1);
    assert_int_equal(f.cells[0].chain, 0);
    f.look_up.flags = TENSOR_FLAG_COMPUTE;
    note(&f, 1);
    assert_true(f.cells[0].chain != 0);
}

static void test_other_arithmetic_forgets_what_was_computed_before(void **state) {
    (void)state;
    fake f;
    float scale = 0.5f;
    begin(&f);
    row(&f, 0, 1, 0, 0);
    sees(&f, 0, 0, 0);
    note(&f, 1);
    assert_true(f.cells[0].chain != 0);
    f.weight.data = &scale; /* another weight */
    row(&f, 0, 2, 1, 1);
    sees(&f, 0, 0, 1);
    note(&f, 1);
    assert_int_equal(f.cells[0].chain, 0);
    assert_int_equal(f.cells[1].chain, 0);
}

static void test_a_step_that_failed_is_forgotten(void **state) {
    (void)state;
    fake f;
    begin(&f);
    row(&f, 0, 1, 0, 0);
    sees(&f, 0, 0, 0);
    note(&f, 1);
    psi_tokens_forget_step(&f.step);
    assert_int_equal(f.cells[0].chain, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_prompt_and_a_token_make_one_chain),
        cmocka_unit_test(test_the_same_text_elsewhere_is_the_same_chain),
        cmocka_unit_test(test_what_saw_a_gap_or_something_unknown_has_no_chain),
        cmocka_unit_test(test_a_rewritten_cell_breaks_the_chain_of_the_old_text),
        cmocka_unit_test(test_embeddings_in_place_of_tokens_are_not_taken_for_tokens),
        cmocka_unit_test(test_other_arithmetic_forgets_what_was_computed_before),
        cmocka_unit_test(test_a_step_that_failed_is_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
