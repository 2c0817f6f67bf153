/* hidden.c - see hidden.h. The parameters of the user's context are kept as they were given, and a few are changed: by
 * where they lie in the defaults, because the struct grows from build to build. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "engine/llama/hidden.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { PARAMS_BYTES = PSI_PARAMS_BYTES };

/* llama_batch; the same since 2024. */
typedef struct batch {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos;
    int32_t *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
} batch;

typedef struct psi_llama_api {
    psi_params (*default_params)(void);
    void *(*init)(void *model, psi_params params);
    void (*free)(void *context);
    int32_t (*decode)(void *context, batch b);
    void *(*memory)(const void *context);
    bool (*seq_rm)(void *memory, int32_t sequence, int32_t from, int32_t to);
    void (*synchronize)(void *context);
} psi_llama_api;

struct psi_hidden {
    psi_llama_api api;
    void *context;
    psi_kv *kvs[HIDDEN_MAX_KVS], *users[HIDDEN_MAX_KVS];
    uint32_t kv_count, piece, capacity; /* capacity: tokens */
    uint64_t *chains;
    uint32_t length, holes_end, window;
    uint64_t compared;
    /* of the piece that is decoded now, or was last */
    const psi_piece *running;
    bool computes, took_graph;
    const char *failed;
    uint64_t *cells[HIDDEN_MAX_KVS];
    psi_cell_pair *pairs;
};

typedef struct user_context {
    struct user_context *next;
    const void *context;
    void *model;
    unsigned char params[PARAMS_BYTES];
    size_t params_bytes;
    psi_hidden *hidden;
} user_context;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list; nothing is taken inside */
static user_context *contexts;
static _Thread_local psi_hidden *running;
static _Thread_local bool is_being_made, has_unknown_cache;

bool psi_hidden_is_being_made(void) { return is_being_made; }

void psi_hidden_note_unknown_cache(void) { has_unknown_cache = has_unknown_cache || is_being_made; }

/* ---- The user's contexts ----------------------------------------------------------------------- */

static user_context *find(const void *context) {
    pthread_mutex_lock(&lock);
    user_context *found = contexts;
    while (found != NULL && found->context != context) {
        found = found->next;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void psi_hidden_note_context(const void *context, void *model, const void *params, size_t bytes) {
    user_context *made = context != NULL && !is_being_made ? calloc(1, sizeof(*made)) : NULL;
    if (made == NULL) {
        return;
    }
    psi_hidden_forget_context(context);
    made->context = context;
    made->model = model;
    made->params_bytes = bytes < PARAMS_BYTES ? bytes : PARAMS_BYTES;
    memcpy(made->params, params, made->params_bytes);
    pthread_mutex_lock(&lock);
    made->next = contexts;
    contexts = made;
    pthread_mutex_unlock(&lock);
}

void psi_hidden_forget_context(const void *context) {
    psi_hidden_free(context);
    pthread_mutex_lock(&lock);
    user_context **link = &contexts, *found = NULL;
    while (*link != NULL && (*link)->context != context) {
        link = &(*link)->next;
    }
    if (*link != NULL) {
        found = *link;
        *link = found->next;
    }
    pthread_mutex_unlock(&lock);
    free(found);
}

/* The context whose hidden one reads this cache; NULL: none. */
static const void *reader_of(const psi_kv *kv) {
    const void *context = NULL;
    pthread_mutex_lock(&lock);
    for (const user_context *user = contexts; user != NULL; user = user->next) {
        for (uint32_t i = 0; user->hidden != NULL && i < user->hidden->kv_count; i++) {
            context = user->hidden->users[i] == kv ? user->context : context;
        }
    }
    pthread_mutex_unlock(&lock);
    return context;
}

void psi_hidden_forget_kv(const psi_kv *kv) {
    for (const void *context = reader_of(kv); context != NULL; context = reader_of(kv)) {
        psi_hidden_free(context);
    }
    if (!kv->is_hidden && kv->context != NULL) {
        psi_hidden_forget_context(kv->context);
    }
}

/* ---- Parameters -------------------------------------------------------------------------------- */

/* llama_context_params: n_ctx, n_batch, n_ubatch, n_seq_max; what came later; n_threads and n_threads_batch; enums and
 * floats; cb_eval and its user data; type_k, type_v; the abort callback and its data; booleans, `embeddings` first; in
 * newer builds pointers of samplers and of a context that shares its memory. */
enum { AT_CTX = 0, AT_BATCH = 4, AT_UBATCH = 8, AT_SEQ_MAX = 12, AT_LATER = 16, DEFAULT_THREADS = 4 };
enum { AT_OUTPUTS_MAX = 20, AT_LATER_THREADS = 28 }; /* of builds since 2026 */

static int32_t int_at(const unsigned char *bytes, size_t at) {
    int32_t value;
    memcpy(&value, bytes + at, sizeof(value));
    return value;
}

static void set_int(unsigned char *bytes, size_t at, uint32_t value) { memcpy(bytes + at, &value, sizeof(value)); }

static bool is_zero(const unsigned char *bytes, size_t from, size_t to) {
    for (size_t i = from; i < to; i++) {
        if (bytes[i] != 0) {
            return false;
        }
    }
    return true;
}

/* Where the types of K and V are, which are 1 (16 bits) by default, between two callbacks that are none; 0: not found.
 */
static size_t find_types(const unsigned char *defaults) {
    for (size_t at = 64; at + 24 <= 160; at += 8) {
        if (int_at(defaults, at) == TYPE_F16 && int_at(defaults, at + 4) == TYPE_F16 &&
            is_zero(defaults, at - 16, at) && is_zero(defaults, at + 8, at + 24)) {
            return at;
        }
    }
    return 0;
}

static size_t find_threads(const unsigned char *defaults) {
    for (size_t at = AT_LATER; at <= 40; at += 4) {
        if (int_at(defaults, at) == DEFAULT_THREADS && int_at(defaults, at + 4) == DEFAULT_THREADS) {
            return at;
        }
    }
    return 0;
}

/* Of the user's parameters those of a context that decodes one sequence, without callbacks, samplers or outputs. */
static const char *make_params(psi_params *params, const psi_params *defaults, const user_context *user,
                               uint32_t cells) {
    const unsigned char *d = defaults->bytes;
    unsigned char *p = params->bytes;
    size_t types = find_types(d), threads = find_threads(d);
    bool known = int_at(d, AT_CTX) == 512 && int_at(d, AT_BATCH) == 2048 && int_at(d, AT_UBATCH) == 512 &&
                 int_at(d, AT_SEQ_MAX) == 1 && types != 0 && threads != 0 && user->params_bytes >= types + 32;
    if (!known) {
        return "the parameters of this build's contexts are not laid out in a way known here";
    }
    memset(p, 0, sizeof(params->bytes));
    memcpy(p, user->params, types + 32);
    if (user->params_bytes >= types + 56 && !is_zero(user->params, types + 48, types + 56)) {
        return "its context shares the memory of another one";
    }
    uint32_t most = (uint32_t)int_at(p, AT_BATCH), piece = (uint32_t)int_at(p, AT_UBATCH);
    piece = piece == 0 || piece > most ? most : piece;
    piece = piece == 0 || piece > cells ? cells : piece;
    set_int(p, AT_CTX, cells);
    set_int(p, AT_BATCH, piece);
    set_int(p, AT_UBATCH, piece);
    set_int(p, AT_SEQ_MAX, 1);
    memcpy(p + AT_LATER, d + AT_LATER, threads - AT_LATER);
    if (threads == AT_LATER_THREADS) {
        set_int(p, AT_OUTPUTS_MAX, 1); /* or a row of logits is reserved for each token */
    }
    memset(p + types - 16, 0, 16);
    memset(p + types + 8, 0, 17); /* and no embeddings */
    return NULL;
}

/* ---- Making it --------------------------------------------------------------------------------- */

static const char *find_api(psi_llama_api *api, const void *code) {
    static const char *const names[] = {
        "llama_context_default_params", "llama_init_from_model", "llama_free", "llama_decode", "llama_get_memory",
        "llama_memory_seq_rm",          "llama_synchronize"};
    void *found[sizeof(names) / sizeof(names[0])];
    _Static_assert(sizeof(found) == sizeof(*api), "a pointer a name, in their order");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        found[i] = psi_abi_next(code, names[i], NULL);
        if (found[i] == NULL) {
            return "this build's libllama lacks a call that is needed for it";
        }
    }
    memcpy(api, found, sizeof(*api));
    return NULL;
}

static bool collect_kvs(psi_hidden *hidden, psi_kv *const *kvs, uint32_t count) {
    psi_kv_lock();
    for (psi_kv *kv = psi_kv_first(); kv != NULL; kv = kv->next) {
        if (kv->is_hidden && kv->context == NULL) {
            kv->context = hidden->context;
        }
        for (uint32_t i = 0; i < count && kv->is_hidden && kv->context == hidden->context; i++) {
            if (hidden->kvs[i] == NULL && psi_cells_are_alike(kv, kvs[i])) {
                hidden->kvs[i] = kv;
                break;
            }
        }
    }
    psi_kv_unlock();
    for (uint32_t i = 0; i < count; i++) {
        if (hidden->kvs[i] == NULL) {
            return false;
        }
    }
    return true;
}

static bool make_books(psi_hidden *hidden, psi_kv *const *kvs, uint32_t count, uint32_t capacity, uint32_t piece) {
    hidden->kv_count = count;
    hidden->piece = piece;
    hidden->capacity = capacity;
    hidden->chains = calloc(capacity, sizeof(*hidden->chains));
    hidden->pairs = calloc(piece, sizeof(*hidden->pairs));
    bool good = hidden->chains != NULL && hidden->pairs != NULL;
    for (uint32_t i = 0; i < count; i++) {
        hidden->users[i] = kvs[i];
        hidden->cells[i] = calloc(piece, sizeof(*hidden->cells[i]));
        good = good && hidden->cells[i] != NULL;
    }
    return good;
}

static void destroy(psi_hidden *hidden) {
    if (hidden->context != NULL) {
        hidden->api.free(hidden->context);
    }
    for (uint32_t i = 0; i < hidden->kv_count; i++) {
        free(hidden->cells[i]);
    }
    free(hidden->chains);
    free(hidden->pairs);
    free(hidden);
}

static const char *make_context(psi_hidden *hidden, const user_context *user, psi_kv *const *kvs, uint32_t count) {
    psi_params params, defaults;
    uint32_t cells = 0;
    const char *why = find_api(&hidden->api, kvs[0]->code);
    for (uint32_t i = 0; i < count; i++) {
        cells = kvs[i]->cells > cells ? kvs[i]->cells : cells;
    }
    if (why == NULL) {
        defaults = hidden->api.default_params();
        why = make_params(&params, &defaults, user, cells);
    }
    if (why != NULL) {
        return why;
    }
    is_being_made = true;
    has_unknown_cache = false;
    hidden->context = hidden->api.init(user->model, params);
    is_being_made = false;
    if (hidden->context == NULL) {
        return "a second context could not be made";
    }
    if (has_unknown_cache || !collect_kvs(hidden, kvs, count)) {
        return "the model remembers in more than a KV cache";
    }
    int32_t (*window)(const void *model) = NULL;
    void *address = psi_abi_next(kvs[0]->code, "llama_model_n_swa", NULL);
    memcpy(&window, &address, sizeof(window));
    hidden->window = window != NULL ? (uint32_t)window(user->model) : UINT32_MAX;
    return make_books(hidden, kvs, count, cells, (uint32_t)int_at(params.bytes, AT_UBATCH)) ? NULL : "memory is short";
}

static bool serves(const psi_hidden *hidden, psi_kv *const *kvs, uint32_t count) {
    bool same = hidden->kv_count == count;
    for (uint32_t i = 0; same && i < count; i++) {
        same = hidden->users[i] == kvs[i];
    }
    return same;
}

psi_hidden *psi_hidden_of(const void *context, psi_kv *const *kvs, uint32_t count, const char **why) {
    user_context *user = context != NULL ? find(context) : NULL;
    *why = user == NULL ? "how its context was made is not known" : NULL;
    if (user != NULL && user->hidden != NULL && !serves(user->hidden, kvs, count)) {
        psi_hidden_free(context);
    }
    if (user == NULL || user->hidden != NULL) {
        return user != NULL ? user->hidden : NULL;
    }
    psi_hidden *hidden = calloc(1, sizeof(*hidden));
    *why = hidden != NULL ? make_context(hidden, user, kvs, count) : "memory is short";
    if (*why != NULL && hidden != NULL) {
        destroy(hidden);
        hidden = NULL;
    }
    user->hidden = hidden;
    return hidden;
}

void psi_hidden_free(const void *context) {
    user_context *user = find(context);
    psi_hidden *hidden = user != NULL ? user->hidden : NULL;
    if (hidden != NULL) {
        user->hidden = NULL; /* before: its caches' going comes past here again */
        destroy(hidden);
    }
}

/* ---- Decoding ---------------------------------------------------------------------------------- */

uint32_t psi_hidden_piece(const psi_hidden *hidden) { return hidden->piece; }
uint64_t psi_hidden_chain(const psi_hidden *hidden, uint32_t at) { return hidden->chains[at]; }
uint32_t psi_hidden_length(const psi_hidden *hidden) { return hidden->length; }
const char *psi_hidden_failure(const psi_hidden *hidden) { return hidden->failed; }
uint32_t psi_hidden_window(const psi_hidden *hidden) { return hidden->window; }
uint32_t psi_hidden_holes_end(const psi_hidden *hidden) { return hidden->holes_end; }
uint64_t *psi_hidden_compared(psi_hidden *hidden) { return &hidden->compared; }
psi_kv *psi_hidden_kv(const psi_hidden *hidden, uint32_t kv) { return hidden->kvs[kv]; }
const uint64_t *psi_hidden_cells(const psi_hidden *hidden, uint32_t kv) { return hidden->cells[kv]; }

static bool has_ring(const psi_hidden *hidden) {
    for (uint32_t i = 0; i < hidden->kv_count; i++) {
        if (hidden->kvs[i]->cells < hidden->capacity) {
            return true;
        }
    }
    return false;
}

/* A sliding window's ring has lost what lies before: it begins anew. */
void psi_hidden_cut(psi_hidden *hidden, uint32_t length) {
    length = has_ring(hidden) && length < hidden->length ? 0 : length;
    if (length < hidden->length) {
        (void)hidden->api.seq_rm(hidden->api.memory(hidden->context), -1, (int32_t)length, -1);
        hidden->length = length;
        hidden->holes_end = hidden->holes_end < length ? hidden->holes_end : length;
    }
}

static bool decode(psi_hidden *hidden, const psi_piece *piece, const uint64_t *chains) {
    int32_t zero = 0, *sequence = &zero;
    int32_t *numbers = calloc(3 * (size_t)piece->count, sizeof(*numbers));
    int32_t **sequences = calloc(piece->count, sizeof(*sequences));
    int8_t *wanted = calloc(piece->count, 1);
    bool good = numbers != NULL && sequences != NULL && wanted != NULL && piece->count <= hidden->piece &&
                hidden->length + piece->count <= hidden->capacity;
    for (uint32_t i = 0; good && i < piece->count; i++) {
        numbers[i] = piece->tokens[i];
        numbers[piece->count + i] = piece->position + (int32_t)i;
        numbers[2 * piece->count + i] = 1;
        sequences[i] = sequence;
    }
    if (good) {
        batch b = {.n_tokens = (int32_t)piece->count,
                   .token = numbers,
                   .pos = numbers + piece->count,
                   .n_seq_id = numbers + 2 * (size_t)piece->count,
                   .seq_id = sequences,
                   .logits = wanted};
        hidden->running = piece;
        hidden->took_graph = false;
        hidden->failed = NULL;
        running = hidden;
        good = hidden->api.decode(hidden->context, b) == 0;
        running = NULL;
        hidden->api.synchronize(hidden->context);
        good = good && hidden->took_graph && hidden->failed == NULL;
    }
    free(numbers);
    free(sequences);
    free(wanted);
    if (good) {
        memcpy(hidden->chains + hidden->length, chains, piece->count * sizeof(*chains));
        hidden->length += piece->count;
    }
    return good;
}

bool psi_hidden_copy(psi_hidden *hidden, const psi_piece *piece, const uint64_t *chains) {
    hidden->computes = false;
    return decode(hidden, piece, chains);
}

bool psi_hidden_compute(psi_hidden *hidden, const psi_piece *piece, const uint64_t *chains) {
    hidden->computes = true;
    return decode(hidden, piece, chains);
}

/* ---- Its graphs -------------------------------------------------------------------------------- */

/* Which of its caches the node writes; HIDDEN_MAX_KVS: none. */
static uint32_t written_kv(const psi_hidden *hidden, const tensor *node, const kv_tensor **which) {
    const tensor *root = node->view_src != NULL ? node->view_src : node;
    psi_kv_lock();
    const psi_kv *kv = root->data != NULL ? psi_kv_of_address(root->data, which) : NULL;
    psi_kv_unlock();
    for (uint32_t i = 0; kv != NULL && i < hidden->kv_count; i++) {
        if (hidden->kvs[i] == kv) {
            return i;
        }
    }
    return HIDDEN_MAX_KVS;
}

static bool note_cells(psi_hidden *hidden, uint32_t kv, const tensor *indices) {
    bool good = indices != NULL && indices->data != NULL && indices->ne[0] == hidden->running->count &&
                (indices->type == TYPE_I64 || indices->type == TYPE_I32);
    for (uint32_t i = 0; good && i < hidden->running->count; i++) {
        int64_t cell =
            indices->type == TYPE_I64 ? ((const int64_t *)indices->data)[i] : ((const int32_t *)indices->data)[i];
        good = cell >= 0 && cell < (int64_t)hidden->kvs[kv]->cells;
        hidden->cells[kv][i] = (uint64_t)cell;
    }
    return good;
}

static void read_graph(psi_hidden *hidden, const psi_abi *abi, void *graph) {
    psi_step_tokens found = {0};
    uint32_t noted = 0;
    int nodes = abi->graph_n_nodes(graph);
    for (int i = 0; i < nodes && hidden->failed == NULL; i++) {
        const tensor *node = abi->graph_node(graph, i);
        const kv_tensor *which = NULL;
        psi_tokens_see_node(&found, abi, node);
        uint32_t kv = node->op == abi->op_set_rows ? written_kv(hidden, node, &which) : HIDDEN_MAX_KVS;
        if (kv == HIDDEN_MAX_KVS || which == NULL) {
            continue;
        }
        if (!which->is_key && (node->ne[0] == 1) != hidden->users[kv]->v_transposed) {
            hidden->failed = "the second context lays its values out in another way";
        } else if (which->is_key && !note_cells(hidden, kv, node->src[1])) {
            hidden->failed = "the second context writes its cache in a way not known here";
        }
        noted |= which->is_key ? 1u << kv : 0;
    }
    if (noted != (1u << hidden->kv_count) - 1) {
        hidden->failed = "the second context does not write all of its caches";
    }
    if (hidden->computes && found.signature != hidden->users[0]->signature) {
        hidden->failed = "the second context computes in another way (an adapter?)";
    }
}

static void copy_cells(psi_hidden *hidden) {
    const psi_piece *piece = hidden->running;
    for (uint32_t kv = 0; kv < hidden->kv_count; kv++) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < piece->count; i++) {
            if (piece->from[kv][i] != UINT64_MAX) {
                hidden->pairs[count++] = (psi_cell_pair){piece->from[kv][i], hidden->cells[kv][i]};
            } else {
                hidden->holes_end = hidden->length + i + 1;
            }
        }
        psi_cells_copy(hidden->users[kv], hidden->kvs[kv], hidden->pairs, count, hidden->users[kv]->v_transposed);
    }
}

bool psi_hidden_takes_graph(const psi_abi *abi, void *sched, void *graph, int *status) {
    psi_hidden *hidden = running;
    if (hidden == NULL) {
        return false;
    }
    hidden->took_graph = true;
    read_graph(hidden, abi, graph);
    if (hidden->failed != NULL) {
        *status = STATUS_ABORTED;
    } else if (hidden->computes) {
        *status = abi->sched_graph_compute_async(sched, graph);
    } else {
        copy_cells(hidden); /* the engine notes its cells as for any step; their bytes are there already */
        *status = 0;
    }
    return true;
}
