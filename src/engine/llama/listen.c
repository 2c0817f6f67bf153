/* listen.c - see listen.h. At a hook a layer's queries are there, and its attention is not computed yet: hidden blocks
 * that they want can still come back for that layer. */
#include "engine/llama/listen.h"

#include <string.h>

#include "engine/llama/layers.h"
#include "os/os.h"
#include "pool/pool.h"

/* A step of so many tokens reads a prompt: what it asks for is wanted at once, and a few reads more are no stall. */
enum { PROMPT_ROWS = KV_LAST_CELLS, ATTEND_ROWS = 4, WANT_ROWS = 8 };
#define SCORES_BYTES (1u << 20) /* of scratch for scores, beyond which fewer rows are listened to */
#define CREDIT_MOST_US 100000.0
#define DEBT_MOST_US 100000.0
#define USUAL_STEPS 8      /* that the usual time of a step follows */
#define STOP_MOST_US 200.0 /* that a stop can cost the engine; some 40 were seen with two threads */

/* ---- Where to listen --------------------------------------------------------------------------- */

static float scale_of(const tensor *attention) {
    float scale = 1;
    memcpy(&scale, attention->op_params, sizeof(scale)); /* FLASH_ATTN_EXT and SOFT_MAX both begin with it */
    return scale;
}

static bool is_same_size(const tensor *a, const tensor *b) {
    return a->ne[0] == b->ne[0] && a->ne[1] == b->ne[1] && a->ne[3] == b->ne[3];
}

void psi_listen_note(step_hook *hook, const kv_tensor *key, const tensor *attention) {
    const tensor *q = hook->queries, *m = hook->mask;
    const psi_kv *kv = hook->kv;
    uint32_t head_dims = kv->head_dims;
    hook->layer = kv->worth != NULL ? psi_worth_layer(kv->worth, key) : WORTH_MAX_LAYERS;
    if (hook->layer == WORTH_MAX_LAYERS || q == NULL || q->type != TYPE_F32 || head_dims == 0) {
        return;
    }
    uint32_t dims = kv->worth->dims[hook->layer], key_heads = dims / head_dims;
    hook->scale = scale_of(attention);
    bool readable = psi_abi_in_host(kv->abi, m) && head_dims % psi_abi_group(kv->abi, key->t) == 0;
    hook->listenable = readable && q->ne[0] == head_dims && q->nb[0] == sizeof(float) && dims % head_dims == 0 &&
                       key_heads > 0 && q->ne[2] % key_heads == 0 && m->ne[3] == q->ne[3] && m->ne[1] >= q->ne[1] &&
                       is_same_size(m, hook->input->mask);
}

/* ---- When -------------------------------------------------------------------------------------- */

static const step_hook *first_listenable(const psi_llama_step *step, const psi_kv *kv) {
    const step_hook *hook = psi_layers_next_hook(step, kv, NULL);
    while (hook != NULL && !hook->listenable) {
        hook = psi_layers_next_hook(step, kv, hook);
    }
    return hook;
}

static uint32_t count_masks(const psi_llama_step *step, const psi_kv *kv) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < step->mask_count; i++) {
        count += step->masks[i].kv == kv;
    }
    return count;
}

static uint32_t count_hidden(const psi_kv *kv) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < kv->blocks; i++) {
        count += kv->states[i] == PSI_BLOCK_STORED && kv->marks[i] != 0;
    }
    return count;
}

/* Blocks were taken of those that the step reads, since a step last read them: more are out than were. A recall takes
 * one for one. */
static bool were_taken(const psi_kv *kv) {
    int more = 0;
    for (uint32_t i = 0; i < kv->blocks; i++) {
        if (kv->marks[i] != 0) {
            unsigned char now = kv->states[i] == PSI_BLOCK_STORED;
            more += now - kv->worth->hidden[i];
            kv->worth->hidden[i] = now;
        }
    }
    return more > 0;
}

/* What costs more than can be saved is paid with all that can. */
static bool can_pay(const psi_credit *credit) {
    return credit->us >= (credit->cost_us < CREDIT_MOST_US ? credit->cost_us : CREDIT_MOST_US);
}

/* The last token sees the one PROMPT_ROWS - 1 before it: a batch of so many sequences' tokens is no prompt. */
static bool reads_prompt(const step_hook *hook) {
    const psi_kv *kv = hook->kv;
    const tensor *mask = hook->input->mask;
    int64_t rows = hook->queries->ne[1];
    uint64_t before = kv->last_cells[kv->noted % PROMPT_ROWS];
    int64_t stream = (int64_t)(before / kv->cells) - hook->first_stream;
    uint32_t column = (uint32_t)(before % kv->cells);
    return rows >= PROMPT_ROWS && stream >= 0 && stream < mask->ne[3] && column < mask->ne[0] &&
           psi_mask_get(mask, stream, rows - 1, column) != MASK_HIDDEN;
}

/* A prompt's last piece is shorter than the pieces before it, and holds the question: worth a debt. */
static bool is_last_piece(psi_worth *worth, bool prompt, int64_t rows) {
    worth->most_rows = rows > worth->most_rows ? rows : worth->most_rows;
    return prompt && rows < worth->most_rows;
}

static bool shall_attend(psi_kv *kv, const step_hook *hook, bool prompt) {
    psi_worth *worth = kv->worth;
    bool last_piece = is_last_piece(worth, prompt, hook->queries->ne[1]);
    bool knows_price = prompt || worth->usual_us[psi_layers_row_size(hook)] > 0;
    return psi_cache_score_share(kv->pool->cache) > 0 && atomic_load(&kv->pool->policy)->by_attention &&
           (psi_pool_wants_scores(kv->pool) || (knows_price && can_pay(&worth->attend)) ||
            (last_piece && worth->attend.us > -DEBT_MOST_US / 2));
}

static void fill(float *values, uint32_t count, float value) {
    for (uint32_t i = 0; i < count; i++) {
        values[i] = value;
    }
}

void psi_listen_begin(psi_llama_step *step, psi_kv *kv) {
    psi_worth *worth = kv->worth;
    const step_hook *hook = first_listenable(step, kv);
    if (worth == NULL) {
        return;
    }
    worth->attends = worth->recalls = false;
    worth->attend_us = worth->recall_us = 0;
    if (hook == NULL || kv->abi->sched_set_eval_callback == NULL || kv->abi->buffer_is_host == NULL) {
        return;
    }
    /* Of what was taken the step must not wait until the next for what it misses. */
    bool taken = were_taken(kv), prompt = reads_prompt(hook);
    worth->at_once = taken || prompt;
    worth->attends = shall_attend(kv, hook, prompt);
    worth->recalls = psi_cache_recalls(kv->pool->cache) && kv->pool->store != NULL && count_masks(step, kv) == 1 &&
                     count_hidden(kv) > 0 && (worth->at_once || can_pay(&worth->recall)) &&
                     psi_worth_begin_seen(worth, hook->input->mask);
    worth->plain = worth->plain && !hook->input->several; /* a copy that is made already would show what went */
    fill(worth->attention, kv->blocks, -1);
    fill(worth->wants, kv->blocks, -1);
    step->listens = step->listens || worth->attends || worth->recalls;
}

/* ---- Listening --------------------------------------------------------------------------------- */

static psi_queries queries_of(const step_hook *hook, int64_t stream, uint32_t most_rows) {
    const tensor *q = hook->queries;
    uint32_t rows = (uint32_t)q->ne[1], taken = rows < most_rows ? rows : most_rows;
    const unsigned char *base = (const unsigned char *)q->data + (size_t)stream * q->nb[3];
    return (psi_queries){.base = base + (rows - taken) * q->nb[1],
                         .row_bytes = q->nb[1],
                         .head_bytes = q->nb[2],
                         .rows = taken,
                         .heads = (uint32_t)q->ne[2],
                         .head_dims = (uint32_t)q->ne[0],
                         .layer = hook->layer,
                         .scale = hook->scale,
                         .mask = hook->mask,
                         .mask_stream = stream,
                         .mask_row = rows - taken,
                         .stream = hook->first_stream + (uint32_t)stream};
}

static uint32_t attend_rows(const step_hook *hook) {
    size_t row_bytes = (size_t)hook->queries->ne[2] * (size_t)hook->mask->ne[0] * sizeof(float);
    size_t fit = SCORES_BYTES / row_bytes;
    return fit < 1 ? 1 : fit < ATTEND_ROWS ? (uint32_t)fit : ATTEND_ROWS;
}

static void exchange(const step_hook *hook) {
    psi_kv *kv = hook->kv;
    psi_worth *worth = kv->worth;
    uint64_t most_us = psi_cache_recall_us(kv->pool->cache);
    if (!worth->plain || worth->recall_us >= most_us ||
        psi_pool_recall(kv->pool, worth->wants, most_us - worth->recall_us) <= 0) {
        return;
    }
    psi_layers_follow(hook);
}

void psi_listen_at(const step_hook *hook) {
    psi_worth *worth = hook->kv->worth;
    if (hook->queries->data == NULL || !hook->kv->abi->buffer_is_host(hook->queries->buffer)) {
        return;
    }
    uint64_t began_us = psi_os_now_us();
    for (int64_t s = 0; worth->attends && s < hook->queries->ne[3]; s++) {
        psi_queries queries = queries_of(hook, s, attend_rows(hook));
        psi_worth_attend(worth, &queries);
    }
    uint64_t attended_us = psi_os_now_us();
    worth->attend_us += attended_us - began_us;
    for (int64_t s = 0; worth->recalls && s < hook->queries->ne[3]; s++) {
        psi_queries queries = queries_of(hook, s, WANT_ROWS);
        psi_worth_want(worth, &queries);
    }
    if (worth->recalls && worth->at_once) {
        exchange(hook);
    }
    worth->recall_us += psi_os_now_us() - attended_us;
}

bool psi_listen_wants(const step_hook *hook) {
    const psi_worth *worth = hook->kv->worth;
    return hook->listenable && (worth->attends || worth->recalls);
}

/* ---- Afterwards -------------------------------------------------------------------------------- */

static void settle_credit(psi_credit *credit, double earned_us, uint64_t spent_us, bool spent) {
    credit->us += earned_us - (double)spent_us;
    credit->us = credit->us < CREDIT_MOST_US ? credit->us : CREDIT_MOST_US;
    credit->us = credit->us > -DEBT_MOST_US ? credit->us : -DEBT_MOST_US;
    credit->cost_us = spent ? (double)spent_us : credit->cost_us;
}

static void tell_pool(psi_kv *kv) {
    const psi_worth *worth = kv->worth;
    if (worth->attends) {
        (void)psi_pool_score(kv->pool, PSI_SCORE_ATTENTION, worth->attention);
    }
    if (worth->recalls && !(worth->at_once && worth->plain)) {
        (void)psi_pool_recall(kv->pool, worth->wants, 0);
    }
}

/* At each stop the engine's threads are waited for and started anew. What that costs is what the step took longer than
 * the usual one of its size, past our own work; what held a step up otherwise is not all ours. In microseconds. */
static double stops_us(const psi_llama_step *step, double took_us) {
    const step_hook *first = NULL;
    uint32_t stops = 0;
    for (uint32_t i = 0; i < step->hook_count; i++) {
        if (psi_listen_wants(&step->hooks[i])) {
            first = first != NULL ? first : &step->hooks[i];
            stops++;
        }
    }
    double usual_us = first != NULL ? first->kv->worth->usual_us[psi_layers_row_size(first)] : 0;
    double more_us = usual_us > 0 ? took_us - usual_us : 0;
    for (uint32_t i = 0; i < step->kv_count && more_us > 0; i++) {
        const psi_worth *worth = step->kvs[i]->worth;
        more_us -= worth != NULL ? (double)(worth->attend_us + worth->recall_us) : 0;
    }
    double most_us = stops * STOP_MOST_US;
    return more_us < 0 ? 0 : more_us < most_us ? more_us : most_us;
}

static void note_usual(const psi_llama_step *step, psi_kv *kv, double took_us) {
    const step_hook *hook = psi_layers_next_hook(step, kv, NULL);
    if (hook != NULL && !step->listens && !step->layered) {
        double *usual_us = &kv->worth->usual_us[psi_layers_row_size(hook)];
        *usual_us = *usual_us > 0 ? *usual_us + (took_us - *usual_us) / USUAL_STEPS : took_us;
    }
}

static void end_of(const psi_llama_step *step, psi_kv *kv, double stopped_us) {
    psi_worth *worth = kv->worth;
    const psi_cache *cache = kv->pool->cache;
    uint64_t began_us = psi_os_now_us();
    tell_pool(kv);
    if (atomic_load(&kv->pool->policy)->by_keys || psi_cache_recalls(cache)) {
        psi_worth_sum_up(worth);
    }
    uint64_t now_us = psi_os_now_us();
    worth->attend_us += worth->attends ? now_us - began_us + (uint64_t)stopped_us : 0;
    worth->recall_us += worth->recalls && !worth->attends ? (uint64_t)stopped_us : 0;
    double step_us = (double)(now_us - step->begin_us) / step->kv_count;
    settle_credit(&worth->attend, psi_cache_score_share(cache) * step_us, worth->attend_us, worth->attends);
    bool paid = worth->recalls && !worth->at_once; /* an exchange inside the step has a bound of its own */
    uint64_t exchanged_us = worth->at_once ? 0 : kv->pool->recall_us - worth->exchanged_us; /* at the safe point */
    worth->exchanged_us = kv->pool->recall_us;
    settle_credit(&worth->recall, psi_cache_recall_share(cache) * step_us, exchanged_us + (paid ? worth->recall_us : 0),
                  paid);
}

static bool is_listening(const psi_kv *kv) { return kv->pool != NULL && kv->worth != NULL && !kv->given_up; }

void psi_listen_end(psi_llama_step *step) {
    double took_us = (double)(psi_os_now_us() - step->begin_us), stopped_us = stops_us(step, took_us);
    uint32_t heard = 0;
    for (uint32_t i = 0; i < step->kv_count; i++) {
        heard += is_listening(step->kvs[i]) && (step->kvs[i]->worth->attends || step->kvs[i]->worth->recalls);
    }
    for (uint32_t i = 0; i < step->kv_count; i++) {
        if (is_listening(step->kvs[i])) {
            note_usual(step, step->kvs[i], took_us);
            end_of(step, step->kvs[i], heard > 0 ? stopped_us / heard : 0);
        }
    }
}
