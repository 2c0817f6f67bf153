/* small_engine.c - a complete small engine on the C interface: what an author of an engine has to do, and no more.
 *
 * The "model" is one attention layer over made-up vectors: each token has a key and a value, a step adds a few
 * tokens and looks back over all of them. Its KV cache lies in a psi_pool, so it can give memory back and take it
 * again. The five duties of an engine, marked (1) to (5) below:
 *
 *   (1) take each block from the pool, and have an answer when there is none: psi_block_alloc returns NULL
 *   (2) say which blocks the coming step reads and writes: psi_block_used, psi_block_write
 *   (3) pass the safe point before the step: psi_pool_step. Trims and restores happen inside this call
 *   (4) look at a block's state before reading it, and leave out what is not in memory: psi_block_get_state
 *   (5) say when the step is over: psi_pool_step_end. Optional; it lets an idle engine give more back
 *
 * Build: cc -I include examples/small_engine.c -L build/release -Wl,-rpath,build/release -lpsicache -lm
 * Prints what happens; the exit status is 0 when every bit came back. */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <psicache.h>

/* A block of 64 KiB is whole pages on every system that we know (pages of 4, 16 and 64 KiB), so nothing is
 * rounded up and nothing wasted. It holds 256 tokens: their keys first, then their values. */
enum {
    WIDTH = 32,
    BLOCK_TOKENS = 256,
    BLOCK_BYTES = 2 * BLOCK_TOKENS * WIDTH * (int)sizeof(float),
    BLOCKS = 16,
    STEP_TOKENS = 64,                         /* tokens that a step adds */
    ALL_TOKENS = (BLOCKS + 4) * BLOCK_TOKENS, /* more than the pool can hold: see take_block */
    HALF_WAY = BLOCKS / 2 * BLOCK_TOKENS
};

typedef struct block_content {
    float keys[BLOCK_TOKENS][WIDTH];
    float values[BLOCK_TOKENS][WIDTH];
} block_content;

_Static_assert(sizeof(block_content) == BLOCK_BYTES, "a block is its keys and values and no padding");

typedef struct engine {
    psi_cache *cache;
    psi_pool *pool;
    psi_block_id order[BLOCKS]; /* our blocks, the oldest first */
    int tokens_in[BLOCKS];      /* tokens in each; only the last may be filling up */
    int count;
    int reused;
} engine;

/* What a step computes. `seen` and `left_out` count blocks. */
typedef struct step_result {
    float output[WIDTH];
    uint64_t content_hash; /* over all bytes that were read */
    int seen, left_out;
} step_result;

/* ---- The made-up model: the same numbers in every run ------------------------------------------ */

static void make_vector(float *vector, uint32_t token, uint32_t kind) {
    uint32_t state = token * 2654435761u + kind * 40503u + 1u;
    for (int i = 0; i < WIDTH; i++) {
        state = state * 1664525u + 1013904223u;
        vector[i] = (float)(state >> 8) / 8388608.0f - 1.0f; /* -1 to 1 */
    }
}

static float score(const float *query, const float *key) {
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) {
        sum += query[i] * key[i];
    }
    return sum;
}

static uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t count) {
    const unsigned char *at = bytes;
    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ at[i]) * UINT64_C(1099511628211); /* FNV-1a */
    }
    return hash;
}

/* ---- Memory ------------------------------------------------------------------------------------ */

static const char *state_name(psi_block_state state) {
    static const char *const names[] = {"empty", "resident", "stored", "dropped"};
    return names[state];
}

static block_content *content_of(const engine *e, int index) { return psi_block_address(e->pool, e->order[index]); }

/* Moves block `index` to the end of the order, to be filled anew. */
static void make_newest(engine *e, int index) {
    psi_block_id id = e->order[index];
    for (int i = index; i + 1 < e->count; i++) {
        e->order[i] = e->order[i + 1];
        e->tokens_in[i] = e->tokens_in[i + 1];
    }
    e->order[e->count - 1] = id;
    e->tokens_in[e->count - 1] = 0;
}

/* (1) A block for new tokens. NULL is no disaster: EAGAIN says that memory is short and nothing is left to trim,
 * ENOMEM that all blocks of the pool are handed out. An engine may then wait, refuse its user's request, or do as
 * this one does: overwrite the oldest block that is in memory, which takes no new memory at all. */
static bool take_block(engine *e) {
    psi_block_id id = PSI_BLOCK_NONE;
    if (psi_block_alloc(e->pool, &id) != NULL) {
        e->order[e->count] = id;
        e->tokens_in[e->count] = 0;
        e->count++;
        return true;
    }
    int why = errno;
    for (int i = 0; i < e->count; i++) {
        if (psi_block_get_state(e->pool, e->order[i]) == PSI_BLOCK_RESIDENT) {
            printf("no new block (%s): block %u, the oldest, is written anew\n",
                   why == EAGAIN ? "memory is short" : "all are in use", (unsigned)e->order[i]);
            make_newest(e, i);
            e->reused++;
            return true;
        }
    }
    return false;
}

/* ---- A step ------------------------------------------------------------------------------------ */

static void add_tokens(engine *e, uint32_t first_token, int count) {
    block_content *block = content_of(e, e->count - 1);
    int *filled = &e->tokens_in[e->count - 1];
    for (int i = 0; i < count; i++) {
        make_vector(block->keys[*filled + i], first_token + (uint32_t)i, 1);
        make_vector(block->values[*filled + i], first_token + (uint32_t)i, 2);
    }
    *filled += count;
}

/* One block's part of the attention. Sums in block order, so equal content gives equal bits. */
static void attend_block(const block_content *block, int tokens, const float *query, float *weights, float *output) {
    for (int t = 0; t < tokens; t++) {
        float weight = expf(score(query, block->keys[t]) - 8.0f); /* the offset keeps it in range; it cancels out */
        *weights += weight;
        for (int i = 0; i < WIDTH; i++) {
            output[i] += weight * block->values[t][i];
        }
    }
}

static void attend(const engine *e, uint32_t query_token, step_result *result) {
    float query[WIDTH], weights = 0;
    make_vector(query, query_token, 3);
    *result = (step_result){.content_hash = UINT64_C(14695981039346656037)};
    for (int b = 0; b < e->count; b++) {
        /* (4) STORED and DROPPED blocks have no content in memory. Reading one is no crash, its pages read as
         * zero, but zeros are not what the tokens said: so it takes no part in this step. */
        if (psi_block_get_state(e->pool, e->order[b]) != PSI_BLOCK_RESIDENT) {
            result->left_out++;
            continue;
        }
        const block_content *block = content_of(e, b);
        attend_block(block, e->tokens_in[b], query, &weights, result->output);
        result->content_hash = hash_bytes(result->content_hash, block, sizeof(*block));
        result->seen++;
    }
    for (int i = 0; i < WIDTH && weights > 0; i++) {
        result->output[i] /= weights;
    }
}

/* Adds new_tokens tokens (none: only looks), then attends from the last one. False: no memory for new tokens. */
static bool run_step(engine *e, uint32_t first_token, int new_tokens, step_result *result) {
    bool is_full = e->count == 0 || e->tokens_in[e->count - 1] + new_tokens > BLOCK_TOKENS;
    if (new_tokens > 0 && is_full && !take_block(e)) {
        return false;
    }
    /* (2) What the step reads. A block that is not named here is "asleep": it may go at any time, on another
     * thread, and it costs nothing until it is named again; it then comes back inside psi_pool_step. */
    for (int b = 0; b < e->count; b++) {
        psi_block_used(e->pool, e->order[b]);
    }
    /* What it writes. If the block was stored, its bytes come back here, so that a partly filled block stays whole.
     * -EIO: they were lost; the block is then zero, and a real engine computes its tokens again. */
    if (new_tokens > 0 && psi_block_write(e->pool, e->order[e->count - 1]) != 0) {
        return false;
    }
    /* (3) The safe point: no step is running, so blocks may go and come. From here to the next safe point, what was
     * named above stays where it now is. */
    int moved = psi_pool_step(e->pool);
    if (moved > 0) {
        printf("safe point: %d blocks moved\n", moved);
    }
    if (new_tokens > 0) {
        add_tokens(e, first_token, new_tokens);
    }
    attend(e, first_token, result);
    psi_pool_step_end(e->pool); /* (5) */
    return true;
}

/* ---- What the example shows --------------------------------------------------------------------- */

static void say_where_it_is(const engine *e) {
    psi_stats stats = {.size = sizeof(stats)};
    if (psi_stats_read(e->cache, &stats) == 0) {
        printf("  resident %llu KiB, stored %llu KiB, dropped %llu KiB\n",
               (unsigned long long)stats.resident_bytes >> 10, (unsigned long long)stats.stored_bytes >> 10,
               (unsigned long long)stats.dropped_bytes >> 10);
    }
    for (int b = 0; b < e->count; b++) {
        printf("%s%s", b == 0 ? "  blocks: " : ", ", state_name(psi_block_get_state(e->pool, e->order[b])));
    }
    printf("\n");
}

static bool is_same(const step_result *a, const step_result *b) {
    return a->seen == b->seen && a->content_hash == b->content_hash &&
           memcmp(a->output, b->output, sizeof(a->output)) == 0;
}

/* Half of the cache goes and comes back; the same question is asked before, between and after. */
static bool trim_and_restore(engine *e, uint32_t token) {
    step_result whole, part, again;
    if (!run_step(e, token, 0, &whole)) {
        return false;
    }
    printf("half-way: trimming half by hand\n");
    if (psi_cache_trim(e->cache, 0.5) != 0 || !run_step(e, token, 0, &part)) { /* done at the step's safe point */
        return false;
    }
    say_where_it_is(e);
    printf("  the step saw %d blocks and left %d out; its answer %s\n", part.seen, part.left_out,
           memcmp(part.output, whole.output, sizeof(whole.output)) == 0 ? "is the same" : "differs a little");
    printf("restoring\n");
    if (psi_cache_restore(e->cache) != 0 || !run_step(e, token, 0, &again)) {
        return false;
    }
    say_where_it_is(e);
    if (part.left_out == 0) {
        printf("FAILED: nothing was trimmed\n");
        return false;
    }
    if (!is_same(&whole, &again)) {
        printf("FAILED: the answer is not what it was (no store? see the lines on stderr, and PSI_CACHE_STORE_DIR)\n");
        return false;
    }
    printf("  every bit is as before: content %016llx\n", (unsigned long long)again.content_hash);
    return true;
}

static bool run_all(engine *e) {
    step_result result;
    for (uint32_t token = 0; token < ALL_TOKENS; token += STEP_TOKENS) {
        if (token == HALF_WAY && !trim_and_restore(e, token)) {
            return false;
        }
        if (!run_step(e, token, STEP_TOKENS, &result)) {
            printf("FAILED: no block at token %u\n", (unsigned)token);
            return false;
        }
    }
    printf("%d tokens done in a cache for %d; %d blocks were written anew; last answer starts with %.6f\n",
           (int)ALL_TOKENS, (int)BLOCKS * BLOCK_TOKENS, e->reused, (double)result.output[0]);
    return e->reused == ALL_TOKENS / BLOCK_TOKENS - BLOCKS;
}

int main(void) {
    engine e = {.count = 0};
    /* A real engine passes NULL, or sets only what it means to change: psi_cache_open(NULL). Here the controller is
     * off, so that this machine's own memory pressure does not change what is shown: the cache is trimmed by hand. */
    psi_options options = PSI_OPTIONS_INIT(psi_options);
    options.controller = -1;
    e.cache = psi_cache_open(&options);
    if (e.cache == NULL) {
        perror("psi_cache_open");
        return 1;
    }
    psi_pool_options memory = PSI_OPTIONS_INIT(psi_pool_options);
    memory.name = "small engine";
    memory.block_bytes = BLOCK_BYTES;
    memory.blocks = BLOCKS;
    e.pool = psi_pool_create(e.cache, &memory); /* address space only: a page exists once it is written to */
    bool good = false;
    if (e.pool == NULL) {
        perror("psi_pool_create");
    } else {
        good = run_all(&e);
    }
    psi_pool_destroy(e.pool); /* the pools first, then the cache */
    psi_cache_close(e.cache);
    printf("%s\n", good ? "ok" : "not ok");
    return good ? 0 : 1;
}
