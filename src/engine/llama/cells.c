/* cells.c - see cells.h. A cell is a row of each tensor; of a transposed V a column. */
#include "engine/llama/cells.h"

#include <math.h>
#include <string.h>

bool psi_cells_are_alike(const psi_kv *a, const psi_kv *b) {
    bool alike = a->tensor_count == b->tensor_count;
    for (uint32_t i = 0; alike && i < a->tensor_count; i++) {
        const tensor *x = a->tensors[i].t, *y = b->tensors[i].t;
        alike = strcmp(x->name, y->name) == 0 && x->type == y->type && x->ne[0] == y->ne[0] && x->nb[0] == y->nb[0] &&
                x->nb[1] == y->nb[1];
    }
    return alike;
}

size_t psi_cells_bytes(const psi_kv *kv) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < kv->tensor_count; i++) {
        bytes += kv->tensors[i].t->nb[1];
    }
    return bytes;
}

/* How many pairs from `pairs` on lie side by side in both caches. */
static uint32_t run_of(const psi_kv *from, const psi_kv *to, const psi_cell_pair *pairs, uint32_t count) {
    uint32_t run = 1;
    while (run < count && pairs[run].from == pairs[0].from + run && pairs[run].to == pairs[0].to + run &&
           pairs[run].from % from->cells != 0 && pairs[run].to % to->cells != 0) {
        run++;
    }
    return run;
}

static unsigned char *row_at(const psi_kv *kv, uint32_t i, uint64_t cell) {
    const tensor *t = kv->tensors[i].t;
    return kv->tensors[i].data + cell / kv->cells * t->nb[2] + cell % kv->cells * t->nb[1];
}

static unsigned char *column_at(const psi_kv *kv, uint32_t i, uint64_t cell, int64_t element) {
    const tensor *t = kv->tensors[i].t;
    return kv->tensors[i].data + cell / kv->cells * t->nb[2] +
           ((uint64_t)element * kv->cells + cell % kv->cells) * t->nb[0];
}

static void copy_run(const psi_kv *from, psi_kv *to, psi_cell_pair at, uint32_t run, bool v_transposed) {
    for (uint32_t i = 0; i < from->tensor_count; i++) {
        const tensor *t = from->tensors[i].t;
        if (from->tensors[i].is_key || !v_transposed) {
            memcpy(row_at(to, i, at.to), row_at(from, i, at.from), run * t->nb[1]);
            continue;
        }
        for (int64_t e = 0; e < t->ne[0]; e++) {
            memcpy(column_at(to, i, at.to, e), column_at(from, i, at.from, e), run * t->nb[0]);
        }
    }
}

void psi_cells_copy(const psi_kv *from, psi_kv *to, const psi_cell_pair *pairs, uint32_t count, bool v_transposed) {
    for (uint32_t i = 0, run = 0; i < count; i += run) {
        run = run_of(from, to, pairs + i, count - i);
        copy_run(from, to, pairs[i], run, v_transposed);
    }
}

static double layer_difference(const psi_kv *a, const psi_kv *b, uint32_t layer, const psi_cell_pair *pairs,
                               uint32_t count, float *scratch) {
    const kv_tensor *x = &a->tensors[layer], *y = &b->tensors[layer];
    uint32_t dims = (uint32_t)x->t->ne[0];
    double apart = 0, all = 0;
    for (uint32_t i = 0; i < count; i++) {
        psi_key_read(a->abi, x, pairs[i].from, 0, dims, scratch);
        psi_key_read(b->abi, y, pairs[i].to, 0, dims, scratch + dims);
        for (uint32_t d = 0; d < dims; d++) {
            double difference = (double)scratch[d] - (double)scratch[dims + d];
            apart += difference * difference;
            all += (double)scratch[d] * (double)scratch[d];
        }
    }
    double share = apart == 0 ? 0 : apart / all;
    return isfinite(share) ? share : HUGE_VAL;
}

double psi_cells_difference(const psi_kv *a, const psi_kv *b, const psi_cell_pair *pairs, uint32_t count,
                            float *scratch) {
    double most = -1;
    for (uint32_t i = 0; i < a->tensor_count; i++) {
        if (a->tensors[i].is_key && psi_key_is_readable(a->abi, a->tensors[i].t)) {
            double share = layer_difference(a, b, i, pairs, count, scratch);
            most = share > most ? share : most;
        }
    }
    return most;
}
