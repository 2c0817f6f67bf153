/* hooks.c - see hooks.h. The scheduler stops after each node that the callback asks for, with all threads at rest; we
 * ask for the node before a layer's attention. The nodes are asked for in the graph's order, and none is computed
 * between being asked for and the next stop. */
#include "engine/llama/hooks.h"

#include <pthread.h>
#include <stdlib.h>

#include "engine/llama/layers.h"
#include "engine/llama/listen.h"

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

void psi_hooks_forget(const void *sched) {
    pthread_mutex_lock(&kept_lock);
    kept_callback **link = find_kept(sched), *entry = *link;
    if (entry != NULL) {
        *link = entry->next;
        free(entry);
    }
    pthread_mutex_unlock(&kept_lock);
}

void psi_hooks_keep_callback(const void *sched, psi_eval_callback callback, void *user) {
    if (callback == NULL) {
        psi_hooks_forget(sched);
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

void psi_hooks_handle_forks(void) { (void)pthread_atfork(lock_kept, unlock_kept, unlock_kept); }

/* ---- Hooks --------------------------------------------------------------------------------------- */

void psi_hooks_note(psi_llama_step *step, void *graph, int index, const kv_tensor *key, const step_hook *hook) {
    const psi_abi *abi = hook->kv->abi;
    const tensor *attention = abi->graph_node(graph, index);
    while (index > 0 && abi->graph_node(graph, index) != hook->product) {
        index--;
    }
    if (index == 0 || step->hook_count == STEP_MAX_HOOKS) {
        return;
    }
    step_hook *made = &step->hooks[step->hook_count++];
    *made = *hook;
    made->index = index - 1;
    made->after = abi->graph_node(graph, index - 1);
    psi_layers_note(made, key);
    psi_listen_note(made, key, attention);
}

static bool is_wanted(const step_hook *hook) { return hook->kv->layered || psi_listen_wants(hook); }

static const step_hook *next_hook(const psi_llama_step *step) {
    return step->next_hook < step->hook_count ? &step->hooks[step->next_hook] : NULL;
}

static bool ask(psi_llama_step *step, tensor *t) {
    const step_hook *hook = next_hook(step);
    if (hook != NULL && hook->product == t) { /* an order of nodes that the graph did not show */
        psi_layers_missed(hook);
        step->next_hook++;
        hook = next_hook(step);
    }
    bool here = hook != NULL && hook->after == t, wanted = here && is_wanted(hook);
    step->next_hook += here && !wanted;
    step->user_asked = step->user_callback != NULL && step->user_callback(t, true, step->user);
    return wanted || step->user_asked;
}

static void stop_at(const psi_llama_step *step, const step_hook *hook) {
    if (hook->kv->layered) {
        psi_layers_pass(step, hook);
    }
    if (psi_listen_wants(hook)) {
        psi_listen_at(hook);
    }
}

static bool on_node(tensor *t, bool asks, void *user) {
    psi_llama_step *step = user;
    if (asks) {
        return ask(step, t);
    }
    const step_hook *hook = next_hook(step);
    if (hook != NULL && hook->after == t) {
        step->next_hook++;
        stop_at(step, hook);
    }
    return !step->user_asked || step->user_callback(t, false, step->user);
}

int psi_hooks_compute(psi_llama_step *step, const psi_abi *abi, void *sched, void *graph) {
    if (!(step->listens || step->layered) || !get_kept(sched, &step->user_callback, &step->user)) {
        return abi->sched_graph_compute_async(sched, graph);
    }
    abi->sched_set_eval_callback(sched, on_node, step);
    int status = abi->sched_graph_compute_async(sched, graph);
    abi->sched_set_eval_callback(sched, step->user_callback, step->user);
    return status;
}
