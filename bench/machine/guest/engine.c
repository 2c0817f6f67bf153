/* engine.c - a small engine in the manner of examples/small_engine.c: a step every 20 ms reads its weights and all
 * cache blocks that are in memory, and now and then replaces the oldest block. Every byte of a block follows from its
 * stamp, so that what comes back can be checked: whole blocks when they come back and at the end, one word a page
 * in each step. `stock` has the same cache as plain memory, written at start, as engines do. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <psicache.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WARM_STEPS = 10, STEPS_A_BLOCK = 25, FILL_BYTES_A_STEP = 4 << 20, RETURN_US = 4000000, PROMPT_US = 10000000 };

typedef struct slot {
    unsigned char *at; /* NULL: no block */
    psi_block_id id;
    uint64_t stamp;
} slot;

typedef struct engine {
    const settings *s;
    engine_report *report;
    psi_cache *cache; /* NULL: stock */
    psi_pool *pool;
    unsigned char *plain; /* stock's cache */
    slot *slots;
    _Atomic unsigned char *came_back; /* by block id */
    unsigned char *states;            /* by block id */
    uint32_t count, next;             /* `next`: the oldest, replaced next */
    uint64_t stamps;
    const unsigned char *weights;
    size_t weights_bytes, page_bytes;
} engine;

static volatile sig_atomic_t stop;
static volatile unsigned char sink;

static void on_stop(int number) {
    (void)number;
    stop = 1;
}

/* ---- Content ----------------------------------------------------------------------------------- */

static uint64_t word_of(uint64_t stamp, size_t index) { return stamp + index * UINT64_C(0x9e3779b97f4a7c15); }

static void fill(const engine *e, const slot *s) {
    uint64_t *words = (uint64_t *)(void *)s->at;
    for (size_t i = 0; i < e->s->block_bytes / sizeof(*words); i++) {
        words[i] = word_of(s->stamp, i);
    }
}

static bool is_right(const engine *e, const slot *s, size_t words_apart) {
    const uint64_t *words = (const uint64_t *)(const void *)s->at;
    uint64_t difference = 0;
    for (size_t i = 0; i < e->s->block_bytes / sizeof(*words); i += words_apart) {
        difference |= words[i] ^ word_of(s->stamp, i);
    }
    return difference == 0;
}

static bool is_in_memory(const engine *e, const slot *s) {
    return s->at != NULL && (e->pool == NULL || e->states[s->id] == PSI_BLOCK_RESIDENT);
}

/* ---- Cache ------------------------------------------------------------------------------------- */

static void on_moved(void *user, psi_block_id block, psi_block_state from, psi_block_state to) {
    engine *e = user;
    if (to == PSI_BLOCK_RESIDENT && from == PSI_BLOCK_STORED && block < e->count) {
        atomic_store(&e->came_back[block], 1);
    }
}

static bool open_cache(engine *e) {
    (void)setenv("PSI_CACHE_MODE", e->s->mode, 1);
    (void)setenv("PSI_CACHE_STORE_DIR", STORE_DIR, 1);
    if (e->s->verbose) {
        (void)setenv("PSI_CACHE_VERBOSE", "3", 1);
    }
    e->cache = psi_cache_open(NULL);
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.name = "engine";
    options.block_bytes = e->s->block_bytes;
    options.blocks = e->count;
    options.moved = on_moved;
    options.moved_user = e;
    e->pool = e->cache != NULL ? psi_pool_create(e->cache, &options) : NULL;
    return e->pool != NULL;
}

static bool open_plain(engine *e) {
    size_t bytes = e->count * e->s->block_bytes;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    e->plain = memory == MAP_FAILED ? NULL : memory;
    if (e->plain != NULL) {
        memset(e->plain, 0, bytes);
    }
    return e->plain != NULL;
}

/* A block in place of the oldest. Without memory for it the place stays empty and the next step tries again: an
 * engine's "not now". */
static slot *replace_oldest(engine *e) {
    slot *s = &e->slots[e->next];
    if (e->pool == NULL) {
        s->at = e->plain + e->next * e->s->block_bytes;
    } else {
        if (s->at != NULL) {
            psi_block_free(e->pool, s->id);
        }
        s->at = psi_block_alloc(e->pool, &s->id);
        if (s->at == NULL) {
            atomic_fetch_add(&e->report->refused, 1);
            return NULL;
        }
        (void)psi_block_write(e->pool, s->id);
        atomic_store(&e->came_back[s->id], 0);
    }
    s->stamp = ++e->stamps * UINT64_C(0xd1342543de82ef95);
    e->next = (e->next + 1) % e->count;
    return s;
}

/* ---- Weights ----------------------------------------------------------------------------------- */

static bool open_weights(engine *e) {
    if (strcmp(e->s->weights, "none") == 0) {
        return true;
    }
    int descriptor = open(WEIGHTS_FILE, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (descriptor < 0 || fstat(descriptor, &status) != 0) {
        return false;
    }
    e->weights_bytes = (size_t)status.st_size;
    void *memory = mmap(NULL, e->weights_bytes, PROT_READ, MAP_SHARED, descriptor, 0);
    (void)close(descriptor);
    e->weights = memory == MAP_FAILED ? NULL : memory;
    return e->weights != NULL && (strcmp(e->s->weights, "locked") != 0 || mlock(e->weights, e->weights_bytes) == 0);
}

static void read_weights(const engine *e) {
    unsigned char sum = 0;
    for (size_t at = 0; at < e->weights_bytes; at += e->page_bytes) {
        sum = (unsigned char)(sum + e->weights[at]);
    }
    sink = sum;
}

/* ---- A step ------------------------------------------------------------------------------------ */

static void read_block(engine *e, const slot *s) {
    bool whole = e->pool != NULL && atomic_exchange(&e->came_back[s->id], 0) != 0;
    atomic_fetch_add(&e->report->came_back, whole);
    if (!is_right(e, s, whole ? 1 : e->page_bytes / sizeof(uint64_t))) {
        atomic_fetch_add(&e->report->wrong, 1);
    }
}

static void read_cache(engine *e) {
    uint32_t resident = 0;
    for (uint32_t i = 0; i < e->count; i++) {
        if (is_in_memory(e, &e->slots[i])) {
            read_block(e, &e->slots[i]);
            resident++;
        }
    }
    atomic_store(&e->report->resident_blocks, resident);
    if (resident < atomic_load(&e->report->resident_least)) {
        atomic_store(&e->report->resident_least, resident);
    }
}

static void pass_safe_point(engine *e) {
    if (e->pool == NULL) {
        return;
    }
    for (uint32_t i = 0; i < e->count; i++) {
        if (e->slots[i].at != NULL) {
            psi_block_used(e->pool, e->slots[i].id);
        }
    }
    (void)psi_pool_step(e->pool);
    psi_pool_states(e->pool, e->states);
}

static void step(engine *e, uint32_t new_blocks) {
    slot *fresh[64];
    uint32_t got = 0;
    while (got < new_blocks && got < 64 && (fresh[got] = replace_oldest(e)) != NULL) {
        got++;
    }
    pass_safe_point(e);
    for (uint32_t i = 0; i < got; i++) {
        fill(e, fresh[i]);
    }
    read_weights(e);
    read_cache(e);
    if (e->pool != NULL) {
        psi_pool_step_end(e->pool);
    }
}

static void note_step(engine *e, uint64_t took_us) {
    uint32_t number = atomic_load(&e->report->steps);
    if (number < STEPS_KEPT) {
        e->report->step_us[number] = (uint32_t)took_us;
    }
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) == 0) {
        atomic_store(&e->report->major_faults, (uint64_t)usage.ru_majflt);
    }
    atomic_store(&e->report->steps, number + 1);
}

static void timed_step(engine *e, uint32_t new_blocks) {
    uint64_t begin_us = now_us();
    step(e, new_blocks);
    note_step(e, now_us() - begin_us);
    sleep_until_us(begin_us + e->s->step_us);
}

/* ---- A life ------------------------------------------------------------------------------------ */

static uint32_t held_blocks(const engine *e) {
    uint32_t held = 0;
    for (uint32_t i = 0; i < e->count; i++) {
        held += e->slots[i].at != NULL;
    }
    return held;
}

/* The prompt: the whole cache is written once, a few MiB a step. The spike is to meet a whole cache: what went
 * meanwhile is asked for again. */
static void read_prompt(engine *e) {
    uint32_t a_step = (uint32_t)(FILL_BYTES_A_STEP / e->s->block_bytes);
    uint64_t end_us = now_us() + PROMPT_US;
    while (held_blocks(e) < e->count && !stop && now_us() < end_us) {
        uint32_t left = e->count - held_blocks(e);
        timed_step(e, left < a_step ? left : a_step);
    }
    for (uint32_t i = 0; !stop && now_us() < end_us; i++) {
        timed_step(e, 0);
        bool is_whole = atomic_load(&e->report->resident_blocks) == e->count;
        if (is_whole && i >= WARM_STEPS) {
            break;
        }
        if (!is_whole && e->cache != NULL) {
            (void)psi_cache_restore(e->cache);
        }
    }
    atomic_store(&e->report->steps, 0);
    atomic_store(&e->report->resident_least, e->count);
    atomic_store(&e->report->refused, 0);
}

static uint32_t blocks_in(const engine *e, psi_block_state state) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < e->count; i++) {
        found += e->slots[i].at != NULL && e->states[e->slots[i].id] == state;
    }
    return found;
}

/* The pressure is over: everything must come back, and every byte be right. */
static void take_all_again(engine *e) {
    uint64_t end_us = now_us() + RETURN_US;
    do {
        (void)psi_cache_restore(e->cache);
        timed_step(e, 0);
    } while (blocks_in(e, PSI_BLOCK_STORED) > 0 && now_us() < end_us);
    atomic_store(&e->report->out_at_end, blocks_in(e, PSI_BLOCK_STORED));
    atomic_store(&e->report->lost, blocks_in(e, PSI_BLOCK_DROPPED));
}

static void check_all(engine *e) {
    for (uint32_t i = 0; i < e->count; i++) {
        if (is_in_memory(e, &e->slots[i]) && !is_right(e, &e->slots[i], 1)) {
            atomic_fetch_add(&e->report->wrong, 1);
        }
    }
}

static void note_stats(engine *e) {
    psi_stats stats = {.size = sizeof(stats)};
    if (e->cache != NULL && psi_stats_read(e->cache, &stats) == 0) {
        e->report->trims = stats.trims;
        e->report->trimmed_bytes = stats.trimmed_bytes;
        e->report->restored_bytes = stats.restored_bytes;
        e->report->store_errors = stats.store_errors;
    }
}

static bool start(engine *e) {
    e->slots = calloc(e->count, sizeof(*e->slots));
    e->came_back = calloc(e->count, sizeof(*e->came_back));
    e->states = calloc(e->count, 1);
    if (e->slots == NULL || e->came_back == NULL || e->states == NULL || !open_weights(e)) {
        return false;
    }
    return strcmp(e->s->mode, "stock") == 0 ? open_plain(e) : open_cache(e);
}

int engine_main(const settings *s, engine_report *report) {
    struct sigaction action = {.sa_handler = on_stop};
    (void)sigaction(SIGTERM, &action, NULL);
    engine e = {.s = s, .report = report, .count = (uint32_t)(s->cache_bytes / s->block_bytes)};
    e.page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    if (!start(&e)) {
        (void)fprintf(stderr, "engine: cannot start: %s\n", strerror(errno));
        return 2;
    }
    read_prompt(&e);
    atomic_store(&report->ready, true);
    for (uint32_t i = 1; !stop; i++) {
        timed_step(&e, i % STEPS_A_BLOCK == 0 || held_blocks(&e) < e.count);
    }
    note_stats(&e); /* before we ask for everything by hand */
    if (e.pool != NULL) {
        take_all_again(&e);
    }
    check_all(&e);
    atomic_store(&report->done, true);
    psi_pool_destroy(e.pool);
    psi_cache_close(e.cache);
    return atomic_load(&report->wrong) == 0 ? 0 : 1;
}
