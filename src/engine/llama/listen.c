/* listen.c - see listen.h. The scheduler stops after each node that the callback asks for; we ask for the node before a
 * layer's attention, when its queries are there. Hidden blocks that they want can still come back for that layer. */
#include "engine/llama/listen.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "os/os.h"
#include "pool/pool.h"

/* A step of so many tokens reads a prompt: what it asks for is wanted at once, and a few reads more are no stall. */
enum { PROMPT_ROWS = KV_LAST_CELLS, ATTEND_ROWS = 4, WANT_ROWS = 8 };
#define SCORES_BYTES (1u << 20) /* of scratch for scores, beyond which fewer rows are listened to */
#define CREDIT_MOST_US 100000.0
#define DEBT_MOST_US 100000.0

/* ---- The user's callbacks ---------------------------------------------------------------------- */

typedef struct kept_callback {
    struct kept_callback *next;
    const void *sched;
    psi_eval_callback callback;
    void *user;
} kept_callback;

static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static kept_callback *kept; /* of the schedulers whose user has one: an engine sets none for each of its own */
static bool kept_lost;      /* memory was short for one: nobody is listened to, since it could not be put back */

/* The link that leads to the scheduler's, or the list's end. */
static kept_callback **find_kept(const void *sched) {
    kept_callback **link = &kept;
    while (*link != NULL && (*link)->sched != sched) {
        link = &(*link)->next;
    }
    return link;
}

void psi_listen_forget(const void *sched) {
    pthread_mutex_lock(&kept_lock);
    kept_callback **link = find_kept(sched), *entry = *link;
    if (entry != NULL) {
        *link = entry->next;
        free(entry);
    }
    pthread_mutex_unlock(&kept_lock);
}

void psi_listen_keep_callback(const void *sched, psi_eval_callback callback, void *user) {
    if (callback == NULL) {
        psi_listen_forget(sched);
        return;
    }
    pthread_mutex_lock(&kept_lock);
    kept_callback **link = find_kept(sched);
    if (*link == NULL) {
        *link = calloc(1, sizeof(**link));
    }
    if (*link != NULL) {
        **link = (kept_callback){(*link)->next, sched, callback, user};
    } else {
        kept_lost = true;
    }
    pthread_mutex_unlock(&kept_lock);
}

/* False: it cannot be known, so ours must not be set. */
static bool get_kept(const void *sched, psi_eval_callback *callback, void **user) {
    pthread_mutex_lock(&kept_lock);
    const kept_callback *entry = *find_kept(sched);
    *callback = entry != NULL ? entry->callback : NULL;
    *user = entry != NULL ? entry->user : NULL;
    bool known = !kept_lost;
    pthread_mutex_unlock(&kept_lock);
    return known;
}

static void lock_kept(void) { pthread_mutex_lock(&kept_lock); }
static void unlock_kept(void) { pthread_mutex_unlock(&kept_lock); }

void psi_listen_handle_forks(void) { (void)pthread_atfork(lock_kept, unlock_kept, unlock_kept); }

/* ---- Where to listen --------------------------------------------------------------------------- */

static float scale_of(const psi_abi *abi, const tensor *attention) {
    float scale = 1;
    (void)abi;
    memcpy(&scale, attention->op_params, sizeof(scale)); /* FLASH_ATTN_EXT and SOFT_MAX both begin with it */
    return scale;
}

static bool is_same_size(const tensor *a, const tensor *b) {
    return a->ne[0] == b->ne[0] && a->ne[1] == b->ne[1] && a->ne[3] == b->ne[3];
}

static bool is_listenable(const step_hook *hook) {
    const tensor *q = hook->queries, *m = hook->mask;
    uint32_t head_dims = hook->kv->head_dims;
    if (hook->layer == WORTH_MAX_LAYERS || q == NULL || q->type != TYPE_F32 || head_dims == 0) {
        return false;
    }
    const psi_abi *abi = hook->kv->abi;
    uint32_t dims = hook->kv->worth->dims[hook->layer];
    uint32_t key_heads = dims / head_dims;
    bool readable = psi_abi_in_host(abi, m) &&
                    head_dims % psi_abi_group(abi, hook->kv->worth->keys[hook->layer]->t) == 0;
    return readable && q->ne[0] == head_dims && q->nb[0] == sizeof(float) && dims % head_dims == 0 && key_heads > 0 &&
           q->ne[2] % key_heads == 0 && m->ne[3] == q->ne[3] && m->ne[1] >= q->ne[1] &&
           is_same_size(m, hook->input->mask);
}

void psi_listen_note(psi_llama_step *step, void *graph, int index, const step_hook *hook) {
    const psi_abi *abi = hook->kv->abi;
    if (step->hook_count == STEP_MAX_HOOKS || !is_listenable(hook)) {
        return;
    }
    const tensor *attention = abi->graph_node(graph, index);
    while (index > 0 && abi->graph_node(graph, index) != hook->after) {
        index--;
    }
    if (index > 0) {
        step_hook *made = &step->hooks[step->hook_count++];
        *made = *hook;
        made->after = abi->graph_node(graph, index - 1);
        made->scale = scale_of(abi, attention);
    }
}

/* ---- When -------------------------------------------------------------------------------------- */

static const step_hook *first_hook(const psi_llama_step *step, const psi_kv *kv) {
    for (uint32_t i = 0; i < step->hook_count; i++) {
        if (step->hooks[i].kv == kv) {
            return &step->hooks[i];
        }
    }
    return NULL;
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

static bool shall_attend(psi_kv *kv, bool prompt, int64_t rows) {
    psi_worth *worth = kv->worth;
    bool last_piece = is_last_piece(worth, prompt, rows);
    return psi_cache_score_share(kv->pool->cache) > 0 && atomic_load(&kv->pool->policy)->by_attention &&
           (psi_pool_wants_scores(kv->pool) || can_pay(&worth->attend) ||
            (last_piece && worth->attend.us > -DEBT_MOST_US / 2));
}

static void fill(float *values, uint32_t count, float value) {
    for (uint32_t i = 0; i < count; i++) {
        values[i] = value;
    }
}

void psi_listen_begin(psi_llama_step *step, psi_kv *kv) {
    psi_worth *worth = kv->worth;
    const step_hook *hook = first_hook(step, kv);
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
    worth->attends = shall_attend(kv, prompt, hook->queries->ne[1]);
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

/* A block's columns in a hook's masks. */
typedef struct columns {
    uint32_t stream; /* of the cache */
    int64_t mask_stream;
    uint32_t first, last;
} columns;

/* False: the block is none of the hook's. */
static bool columns_of(const step_hook *hook, uint32_t block, columns *c) {
    const psi_kv *kv = hook->kv;
    uint32_t most = (uint32_t)hook->mask->ne[0];
    c->stream = block / kv->stream_blocks;
    c->mask_stream = (int64_t)c->stream - hook->first_stream;
    c->first = block % kv->stream_blocks * kv->block_cells;
    c->last = c->first + kv->block_cells < most ? c->first + kv->block_cells : most;
    return c->mask_stream >= 0 && c->mask_stream < hook->mask->ne[3] && c->first < c->last;
}

/* What came back is shown in a mask as it was before, what went is hidden. */
static void edit_mask(const psi_worth *worth, tensor *mask, const columns *c, bool show) {
    if (show) {
        psi_worth_show_again(worth, mask, c->mask_stream, c->first, c->last);
    } else {
        psi_mask_hide(mask, c->mask_stream, c->first, c->last);
    }
}

static void edit_masks(const step_hook *hook, uint32_t block, bool show) {
    psi_worth *worth = hook->kv->worth;
    columns c;
    if (!columns_of(hook, block, &c)) {
        return;
    }
    if (!show) { /* it may come back in a later layer */
        psi_worth_note_seen(worth, hook->mask, c.mask_stream, c.stream, c.first, c.last);
    }
    edit_mask(worth, hook->mask, &c, show);
    if (hook->input->mask->data != hook->mask->data) {
        edit_mask(worth, hook->input->mask, &c, show);
    }
}

static void exchange(const step_hook *hook) {
    psi_kv *kv = hook->kv;
    psi_worth *worth = kv->worth;
    uint64_t most_us = psi_cache_recall_us(kv->pool->cache);
    if (!worth->plain || worth->recall_us >= most_us ||
        psi_pool_recall(kv->pool, worth->wants, most_us - worth->recall_us) <= 0) {
        return;
    }
    memcpy(worth->before, kv->states, kv->blocks);
    psi_pool_states(kv->pool, kv->states);
    for (uint32_t block = 0; block < kv->blocks; block++) {
        if (worth->before[block] != kv->states[block]) {
            edit_masks(hook, block, kv->states[block] == PSI_BLOCK_RESIDENT);
        }
    }
}

static void listen(const step_hook *hook) {
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

static const step_hook *hook_after(const psi_llama_step *step, const tensor *t) {
    for (uint32_t i = 0; i < step->hook_count; i++) {
        const psi_worth *worth = step->hooks[i].kv->worth;
        if (step->hooks[i].after == t && (worth->attends || worth->recalls)) {
            return &step->hooks[i];
        }
    }
    return NULL;
}

static bool on_node(tensor *t, bool ask, void *user) {
    psi_llama_step *step = user;
    const step_hook *hook = hook_after(step, t);
    if (ask) {
        step->user_asked = step->user_callback != NULL && step->user_callback(t, true, step->user);
        return hook != NULL || step->user_asked;
    }
    if (hook != NULL) {
        listen(hook);
    }
    return !step->user_asked || step->user_callback(t, false, step->user);
}

int psi_listen_compute(psi_llama_step *step, const psi_abi *abi, void *sched, void *graph) {
    if (!step->listens || !get_kept(sched, &step->user_callback, &step->user)) {
        return abi->sched_graph_compute_async(sched, graph);
    }
    abi->sched_set_eval_callback(sched, on_node, step);
    int status = abi->sched_graph_compute_async(sched, graph);
    abi->sched_set_eval_callback(sched, step->user_callback, step->user);
    return status;
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

static void end_of(const psi_llama_step *step, psi_kv *kv) {
    psi_worth *worth = kv->worth;
    const psi_cache *cache = kv->pool->cache;
    uint64_t began_us = psi_os_now_us();
    tell_pool(kv);
    if (atomic_load(&kv->pool->policy)->by_keys || psi_cache_recalls(cache)) {
        psi_worth_sum_up(worth);
    }
    uint64_t now_us = psi_os_now_us();
    worth->attend_us += worth->attends ? now_us - began_us : 0;
    double step_us = (double)(now_us - step->begin_us) / step->kv_count;
    settle_credit(&worth->attend, psi_cache_score_share(cache) * step_us, worth->attend_us, worth->attends);
    bool paid = worth->recalls && !worth->at_once; /* an exchange inside the step has a bound of its own */
    uint64_t exchanged_us = worth->at_once ? 0 : kv->pool->recall_us - worth->exchanged_us; /* at the safe point */
    worth->exchanged_us = kv->pool->recall_us;
    settle_credit(&worth->recall, psi_cache_recall_share(cache) * step_us,
                  exchanged_us + (paid ? worth->recall_us : 0), paid);
}

void psi_listen_end(psi_llama_step *step) {
    for (uint32_t i = 0; i < step->kv_count; i++) {
        if (step->kvs[i]->pool != NULL && step->kvs[i]->worth != NULL && !step->kvs[i]->given_up) {
            end_of(step, step->kvs[i]);
        }
    }
}
