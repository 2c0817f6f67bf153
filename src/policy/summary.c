/* summary.c - see summary.h. */
#include "policy/summary.h"

#include <float.h>
#include <math.h>

#include "policy/vector.h"

enum { TOP_CELLS = 4, CHUNK = 64 };

static float absolute(float x) { return x < 0 ? -x : x; }

/* Mean over rows [first, last) of up to CHUNK dimensions from `dim` on; 0 where it is not a number: keys that
 * overflowed say nothing, and must not spoil what their neighbours say. */
static void mean_of(float mean[CHUNK], const float *rows, uint32_t first, uint32_t last, uint32_t dims, uint32_t dim) {
    uint32_t count = dims - dim < CHUNK ? dims - dim : CHUNK;
    float part = 1 / (float)(last - first);
    for (uint32_t i = 0; i < CHUNK; i++) {
        mean[i] = 0;
    }
    for (uint32_t c = first; c < last; c++) {
        const float *row = rows + (uint64_t)c * dims + dim;
        for (uint32_t i = 0; i < count; i++) {
            mean[i] += part * row[i];
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        mean[i] = absolute(mean[i]) <= FLT_MAX ? mean[i] : 0;
    }
}

static int8_t rounded(float value) { return (int8_t)(value < 0 ? value - 0.5f : value + 0.5f); }

static void make_run(int8_t *means, float *scale, const float *rows, uint32_t first, uint32_t last, uint32_t dims) {
    float mean[CHUNK], most = 0;
    for (uint32_t dim = 0; dim < dims; dim += CHUNK) {
        mean_of(mean, rows, first, last, dims, dim);
        for (uint32_t i = 0; i < CHUNK; i++) {
            most = absolute(mean[i]) > most ? absolute(mean[i]) : most;
        }
    }
    *scale = most / 127 >= FLT_MIN ? most / 127 : 0; /* below, the quotient would be too coarse for 8 bits */
    for (uint32_t dim = 0; dim < dims; dim += CHUNK) {
        mean_of(mean, rows, first, last, dims, dim);
        for (uint32_t i = 0; i < CHUNK && dim + i < dims; i++) {
            means[dim + i] = *scale > 0 ? rounded(mean[i] / *scale) : 0;
        }
    }
}

void psi_summary_make(const psi_summary *summary, const float *rows, uint32_t cells, uint32_t dims) {
    for (uint32_t run = 0; run < PSI_SUMMARY_RUNS; run++) {
        uint32_t first = cells * run / PSI_SUMMARY_RUNS, last = cells * (run + 1) / PSI_SUMMARY_RUNS;
        last = last > first ? last : first + 1;
        make_run(summary->means + (uint64_t)run * dims, &summary->scales[run], rows, first, last, dims);
    }
}

void psi_summary_add(const psi_summary *summary, uint32_t dims, float *sum) {
    for (uint32_t run = 0; run < PSI_SUMMARY_RUNS; run++) {
        const int8_t *mean = summary->means + (uint64_t)run * dims;
        float scale = summary->scales[run] / PSI_SUMMARY_RUNS;
        for (uint32_t d = 0; d < dims; d++) {
            sum[d] += scale * (float)mean[d];
        }
    }
}

float psi_summary_logit(const psi_summary *summary, uint32_t dims, uint32_t offset, const float *query,
                        uint32_t head_dims) {
    float most = -HUGE_VALF;
    for (uint32_t run = 0; run < PSI_SUMMARY_RUNS; run++) {
        const int8_t *mean = summary->means + (uint64_t)run * dims + offset;
        float logit = summary->scales[run] * psi_dot_bytes(query, mean, head_dims);
        most = logit > most ? logit : most;
    }
    return most;
}

static void add_head(float *difference, const float *rows, uint32_t cells, const float *around, uint32_t heads,
                     uint32_t head_dims) {
    float length = __builtin_sqrtf(psi_dot(around, around, head_dims));
    for (uint32_t c = 0; c < cells; c++) {
        const float *key = rows + (uint64_t)c * heads * head_dims;
        float product = __builtin_sqrtf(psi_dot(key, key, head_dims)) * length;
        float cosine = product > 0 && product <= FLT_MAX ? psi_dot(key, around, head_dims) / product : 0;
        difference[c] += (1 - cosine) / (float)heads;
    }
}

float psi_keys_difference(float *difference, const float *rows, uint32_t cells, const float *around, uint32_t heads,
                          uint32_t head_dims) {
    float sum = 0;
    for (uint32_t c = 0; c < cells; c++) {
        difference[c] = 0;
    }
    for (uint32_t h = 0; h < heads; h++) {
        add_head(difference, rows + h * head_dims, cells, around + h * head_dims, heads, head_dims);
    }
    for (uint32_t c = 0; c < cells; c++) {
        sum += difference[c];
    }
    return sum / (float)cells;
}

float psi_keys_score(float *difference, uint32_t cells) {
    uint32_t top = cells < TOP_CELLS ? cells : TOP_CELLS;
    float sum = 0;
    for (uint32_t i = 0; i < top; i++) {
        uint32_t most = i;
        for (uint32_t c = i + 1; c < cells; c++) {
            most = difference[c] > difference[most] ? c : most;
        }
        float moved = difference[i];
        difference[i] = difference[most];
        difference[most] = moved;
        sum += difference[i];
    }
    return top > 0 ? sum / (float)top : 0;
}
