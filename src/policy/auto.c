/* auto.c - keys, attention and recency together. Keys say what may be asked for one day, attention what is asked for
 * now, and a text goes on from where it is: a block stays for any of them. */
#include "policy/policy.h"

#include <math.h>

/* A block that receives ATTENTION_UNIT times the usual attention weighs as much as keys one standard deviation above
 * the usual; past ATTENTION_MOST times more attention says no more. Measured: docs/policies.md. */
#define ATTENTION_UNIT 6.0
#define ATTENTION_MOST 20.0
/* The newest quarter weighs as much more as keys one standard deviation above the usual. Without it models read on
 * worse than with the oldest gone, and a small one no longer found a question's words. Measured: docs/policies.md. */
#define NEWEST_SHARE 4
#define NEWEST_WORTH 1.0

typedef struct usual {
    double attention;    /* mean */
    double keys, spread; /* mean and standard deviation */
} usual;

static usual measure(const psi_candidate *candidates, size_t count) {
    double attention = 0, keys = 0, squares = 0;
    size_t attended = 0, known = 0;
    for (size_t i = 0; i < count; i++) {
        const psi_candidate *c = &candidates[i];
        if (c->attention >= 0) {
            attention += (double)c->attention;
            attended++;
        }
        if (c->keys >= 0) {
            keys += (double)c->keys;
            squares += (double)c->keys * (double)c->keys;
            known++;
        }
    }
    usual u = {.attention = attended > 0 ? attention / (double)attended : 0,
               .keys = known > 0 ? keys / (double)known : 0};
    double variance = known > 0 ? squares / (double)known - u.keys * u.keys : 0;
    u.spread = variance > 0 ? sqrt(variance) : 0;
    return u;
}

static double by_keys(const psi_candidate *c, const usual *u) {
    return c->keys >= 0 && u->spread > 0 ? ((double)c->keys - u->keys) / u->spread : 0;
}

static double by_attention(const psi_candidate *c, const usual *u) {
    double times = c->attention >= 0 && u->attention > 0 ? (double)c->attention / u->attention : 1;
    return (times < ATTENTION_MOST ? times : ATTENTION_MOST) / ATTENTION_UNIT;
}

static void sort_newest_first(psi_candidate *candidates, size_t count) {
    for (size_t i = 0; i < count; i++) {
        candidates[i].worth = 0; /* so that age decides */
    }
    psi_policy_heapify(candidates, count);
    for (size_t left = count; left > 0;) {
        psi_candidate oldest = psi_policy_pop(candidates, &left);
        candidates[left] = oldest;
    }
}

static void rate(psi_candidate *candidates, size_t count) {
    usual u = measure(candidates, count);
    sort_newest_first(candidates, count);
    for (size_t i = 0; i < count; i++) {
        bool is_newest = i * NEWEST_SHARE < count;
        candidates[i].worth =
            by_keys(&candidates[i], &u) + by_attention(&candidates[i], &u) + (is_newest ? NEWEST_WORTH : 0);
    }
}

const psi_policy psi_policy_auto = {.name = "auto", .rate = rate, .by_attention = true, .by_keys = true};
