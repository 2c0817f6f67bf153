/* refusal.c - see refusal.h. */
#include "engine/llama/refusal.h"

#include <stdatomic.h>

#include "os/os.h"
#include "pool/pool.h"
#include "pool/settings.h"

#define WAIT_US 1000000u /* spikes are shorter, most of them; a client waits longer than that for a long prompt */
#define WAIT_EXACT_US 30000000u /* who asks for exact answers would rather wait for them */
#define LOOK_US 5000u

enum { ANSWER_NO_ROOM = 1, ANSWER_ABORTED = 2 };

/* The context that the program decodes with first. Only it is refused: of a draft model's context, which follows it
 * token by token, llama-server knows no refusal, and would go on with a hole in it. NULL: no call came past us. */
static _Atomic(const void *) main_context;

typedef struct call {
    bool known;    /* it came past us: else it is not known where it ends */
    bool follows;  /* another context's */
    bool refused;  /* a step of it */
    bool computed; /* a step before that one */
} call;

static _Thread_local call now;

void psi_refusal_call_begins(const void *context) {
    const void *none = NULL;
    psi_llama_context = context;
    (void)atomic_compare_exchange_strong(&main_context, &none, context);
    now = (call){.known = true, .follows = atomic_load(&main_context) != context};
}

/* A part of the call's batch is in the cache: llama-server knows no refusal of the rest, sends the whole again, and its
 * client gets "Invalid input batch.". */
static bool is_begun(void) { return now.known && now.computed; }

int32_t psi_refusal_answer(int32_t status) {
    bool as_before = now.refused && !now.computed;
    now = (call){0};
    return status == ANSWER_ABORTED && as_before ? ANSWER_NO_ROOM : status;
}

void psi_refusal_forget(const psi_kv *kv) {
    const void *context = kv->context;
    if (context != NULL) {
        (void)atomic_compare_exchange_strong(&main_context, &context, NULL);
    }
}

/* ---- Waiting ----------------------------------------------------------------------------------- */

static bool needs_a_block(const psi_kv *kv) {
    for (uint32_t i = 0; i < kv->blocks; i++) {
        if ((kv->marks[i] & PSI_MARK_WRITE) != 0 && kv->states[i] != PSI_BLOCK_RESIDENT) {
            return true;
        }
    }
    return false;
}

static psi_kv *without_room(const psi_llama_step *step) {
    for (uint32_t i = 0; i < step->kv_count; i++) {
        psi_kv *kv = step->kvs[i];
        if (kv->pool != NULL && psi_pool_refuses(kv->pool)) {
            psi_pool_states(kv->pool, kv->states);
            if (needs_a_block(kv)) {
                return kv;
            }
        }
    }
    return NULL;
}

/* Until when to wait, of what began to wait now. Callers that ask again at once, with half of the batch, wait once for
 * all. */
static uint64_t wait_until_us(psi_kv *kv, uint64_t now_us) {
    bool exact = psi_cache_is_exact(kv->pool->cache);
    uint64_t wait_us = psi_settings_bytes(NULL, "REFUSE_WAIT_US", exact ? WAIT_EXACT_US : WAIT_US);
    if (is_begun()) { /* a refusal before the call is none of it */
        return now_us + wait_us;
    }
    if (kv->refused_at_us == 0 || now_us - kv->refused_at_us > wait_us) {
        kv->refused_from_us = now_us;
    }
    return kv->refused_from_us + wait_us;
}

static void refuse(psi_kv *kv, uint64_t at_us) {
    kv->refused_at_us = at_us;
    now.refused = true;
    psi_pool_count_refusal(kv->pool);
}

bool psi_refusal_of(const psi_llama_step *step) {
    psi_kv *kv = now.follows ? NULL : without_room(step);
    uint64_t at_us = psi_os_now_us(), until_us = kv != NULL ? wait_until_us(kv, at_us) : 0;
    while (kv != NULL && at_us < until_us) {
        psi_os_pause_us(LOOK_US);
        at_us = psi_os_now_us();
        kv = without_room(step);
    }
    bool refused = kv != NULL && !is_begun(); /* what is begun has waited, and goes on */
    if (refused) {
        refuse(kv, at_us);
    }
    return refused;
}

bool psi_refusal_is_understood(void) { return !now.follows; }

bool psi_refusal_waits_for(const psi_llama_step *step, psi_kv *kv) {
    uint64_t at_us = psi_os_now_us();
    bool waits = is_begun() || at_us < wait_until_us(kv, step->begin_us);
    if (waits) {
        psi_os_pause_us(LOOK_US);
    } else {
        refuse(kv, at_us);
    }
    return waits;
}

void psi_refusal_computed(const psi_llama_step *step) {
    for (uint32_t i = 0; i < step->kv_count; i++) {
        now.computed = now.computed || step->kvs[i]->wrote;
        step->kvs[i]->refused_at_us = 0;
    }
}

/* ---- Asked before ------------------------------------------------------------------------------- */

/* Non-zero when a decode of n_tokens in this llama_context would need a new block and would not get it, as far as that
 * can be known before: Python asks, because its calls do not come past llama_decode. Any thread. */
PSI_API int psi_llama_refuses(const void *context, int n_tokens);

static bool has_room(const psi_kv *kv, int n_tokens) {
    uint32_t cell = (uint32_t)(kv->last_written % kv->cells), stream = (uint32_t)(kv->last_written / kv->cells);
    uint32_t left = kv->block_cells - 1 - cell % kv->block_cells;
    if (n_tokens <= (int)left) {
        return true;
    }
    uint32_t next = cell / kv->block_cells + 1;
    return n_tokens <= (int)(left + kv->block_cells) && next < kv->stream_blocks &&
           psi_block_get_state(kv->pool, stream * kv->stream_blocks + next) == PSI_BLOCK_RESIDENT;
}

int psi_llama_refuses(const void *context, int n_tokens) {
    int refuses = 0;
    psi_llama_context = context;
    psi_kv_lock();
    for (psi_kv *kv = psi_kv_first(); kv != NULL && !refuses; kv = kv->next) {
        if (kv->context == context && kv->pool != NULL && psi_pool_refuses(kv->pool) && !has_room(kv, n_tokens)) {
            psi_pool_count_refusal(kv->pool);
            refuses = 1;
        }
    }
    psi_kv_unlock();
    return refuses;
}
