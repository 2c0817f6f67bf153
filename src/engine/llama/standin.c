/* standin.c - the symbols that stand in for ggml's and llama.cpp's own when this library is loaded first, and the
 * process's cache behind them. Each does its part and then what the engine's own function does. Engine's threads. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/llama/graph.h"
#include "engine/llama/hidden.h"
#include "engine/llama/hooks.h"
#include "engine/llama/recompute.h"
#include "engine/llama/refusal.h"
#include "engine/llama/shift.h"
#include "os/os.h"
#include "pool/board.h"
#include "pool/settings.h"

#define STAND_IN __attribute__((visibility("default"), noinline))
#define CALLER __builtin_extract_return_addr(__builtin_return_address(0))

static pthread_once_t cache_once = PTHREAD_ONCE_INIT;
static psi_cache *cache;
static psi_log say_log = {.level = PSI_LOG_WARN};

static void open_cache(void) {
    psi_settings settings;
    if (psi_settings_resolve(&settings, NULL) == 0) {
        say_log = settings.log;
    }
    const char *disabled = getenv("PSI_CACHE_DISABLE");
    if (disabled != NULL && strcmp(disabled, "1") == 0) {
        psi_llama_say(PSI_LOG_INFO, "switched off by PSI_CACHE_DISABLE=1: the engine runs untouched");
        return;
    }
    cache = psi_cache_open(NULL);
    psi_hooks_handle_forks();
    psi_kv_handle_forks(); /* after the cache's own: this lock is taken before its locks */
    if (cache == NULL) {
        psi_llama_say(PSI_LOG_ERROR, "could not be opened (error %d): the engine runs untouched", errno);
    }
}

psi_cache *psi_llama_cache(void) {
    (void)pthread_once(&cache_once, open_cache);
    return cache;
}

void psi_llama_say(psi_log_level level, const char *format, ...) {
    char line[400];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    psi_log_line(&say_log, level, "%s", line);
}

/* What psi-cache status shows of this process's engine. */
static void show_engine(const char *format, const char *text) __attribute__((format(printf, 1, 0)));

static void show_engine(const char *format, const char *text) {
    psi_board *board = psi_board_own();
    (void)snprintf(board->engine, sizeof(board->engine), format, text);
}

/* The build, when it is one we understand; says once when it is not. */
static const psi_abi *understood(const psi_abi *abi) {
    static _Atomic(const psi_abi *) said;
    if (abi == NULL || abi->fits) {
        return abi;
    }
    (void)psi_llama_cache(); /* the log's settings */
    if (said != abi) {
        said = abi;
        show_engine("untouched: %.110s", abi->why_not);
        psi_llama_say(PSI_LOG_WARN, "%s runs untouched: %s", abi->path, abi->why_not);
    }
    return NULL;
}

/* ---- ggml -------------------------------------------------------------------------------------- */

STAND_IN void *ggml_backend_alloc_ctx_tensors_from_buft(void *context, void *buffer_type);
STAND_IN void ggml_backend_buffer_clear(void *buffer, uint8_t value);
STAND_IN void ggml_backend_buffer_free(void *buffer);
STAND_IN int ggml_backend_sched_graph_compute_async(void *sched, void *graph);
STAND_IN void ggml_backend_sched_set_eval_callback(void *sched, psi_eval_callback callback, void *user);
STAND_IN void ggml_backend_sched_free(void *sched);
STAND_IN void ggml_backend_tensor_get(const tensor *t, void *data, size_t offset, size_t size);
STAND_IN void ggml_backend_tensor_set(tensor *t, const void *data, size_t offset, size_t size);
STAND_IN void ggml_backend_tensor_copy(tensor *from, tensor *to);
STAND_IN void ggml_backend_tensor_memset(tensor *t, uint8_t value, size_t offset, size_t size);

void *ggml_backend_alloc_ctx_tensors_from_buft(void *context, void *buffer_type) {
    const psi_abi *abi = psi_abi_of(CALLER);
    if (abi == NULL || abi->alloc_ctx_tensors_from_buft == NULL) {
        return NULL; /* a null buffer: the engine reports that memory could not be had */
    }
    void *buffer = understood(abi) != NULL ? psi_kv_take(abi, CALLER, context, buffer_type) : NULL;
    if (buffer != NULL) {
        show_engine("llama.cpp, %.110s", abi->path);
        return buffer;
    }
    return abi->alloc_ctx_tensors_from_buft(context, buffer_type);
}

void ggml_backend_buffer_clear(void *buffer, uint8_t value) {
    psi_kv_lock();
    psi_kv *kv = psi_kv_of_buffer(buffer);
    if (kv != NULL) {
        psi_kv_clear(kv);
    }
    psi_kv_unlock();
    const psi_abi *abi = psi_abi_of(CALLER);
    if ((kv == NULL || value != 0) && abi != NULL && abi->buffer_clear != NULL) {
        abi->buffer_clear(buffer, value);
    }
}

void ggml_backend_buffer_free(void *buffer) {
    psi_kv_lock();
    psi_kv *kv = psi_kv_unlink(buffer);
    if (kv != NULL) {
        psi_refusal_forget(kv);
    }
    psi_kv_unlock();
    const psi_abi *abi = psi_abi_of(CALLER);
    if (abi != NULL && abi->buffer_free != NULL) {
        abi->buffer_free(buffer);
    }
    if (kv != NULL) {
        psi_hidden_forget_kv(kv);
        psi_kv_destroy(kv);
    }
}

int ggml_backend_sched_graph_compute_async(void *sched, void *graph) {
    const psi_abi *abi = psi_abi_of(CALLER);
    if (abi == NULL || abi->sched_graph_compute_async == NULL) {
        return STATUS_ALLOC_FAILED;
    }
    int status = 0;
    if (psi_hidden_takes_graph(abi, sched, graph, &status) ||
        (abi->fits && psi_shift_compute(abi, sched, graph, &status))) {
        return status;
    }
    psi_llama_step step = {.kv_count = 0};
    if (abi->fits && !psi_llama_step_begin(&step, abi, graph)) {
        psi_llama_say(PSI_LOG_INFO, "a step was refused: no memory for a new block, and none that could go for it");
        return STATUS_ABORTED; /* the engine takes the step's cells back */
    }
    status = psi_hooks_compute(&step, abi, sched, graph);
    psi_llama_step_end(&step, status == 0);
    return status;
}

void ggml_backend_sched_set_eval_callback(void *sched, psi_eval_callback callback, void *user) {
    const psi_abi *abi = psi_abi_of(CALLER);
    psi_hooks_keep_callback(sched, callback, user);
    if (abi != NULL && abi->sched_set_eval_callback != NULL) {
        abi->sched_set_eval_callback(sched, callback, user);
    }
}

void ggml_backend_sched_free(void *sched) {
    const psi_abi *abi = psi_abi_of(CALLER);
    if (sched != NULL) {
        psi_hooks_forget(sched);
    }
    if (abi != NULL && abi->sched_free != NULL) {
        abi->sched_free(sched);
    }
}

static void touch(const tensor *t, size_t offset, size_t size, psi_kv_access access) {
    const kv_tensor *which = NULL;
    psi_kv_lock();
    psi_kv *kv = t->data != NULL ? psi_kv_of_address(t->data, &which) : NULL;
    if (kv != NULL) {
        psi_kv_touch(kv, which, (const unsigned char *)t->data + offset, size, access);
    }
    psi_kv_unlock();
}

/* A state is saved: of dropped cells whose keys are read now the bytes are computed first. Their values are read after.
 */
static void recompute_rows(const tensor *t, size_t offset, size_t size) {
    const kv_tensor *which = NULL;
    uint64_t first = 0, last = 0;
    psi_kv_lock();
    psi_kv *kv = t->data != NULL && size > 0 ? psi_kv_of_address(t->data, &which) : NULL;
    if (kv != NULL && which != NULL && which->is_key && kv->lost_cells > 0) {
        size_t at = (size_t)((const unsigned char *)t->data - which->data) + offset;
        first = at / which->t->nb[1];
        last = (at + size - 1) / which->t->nb[1];
    } else {
        kv = NULL;
    }
    psi_kv_unlock();
    if (kv != NULL) {
        psi_recompute_for_reading(kv, first, last);
    }
}

void ggml_backend_tensor_get(const tensor *t, void *data, size_t offset, size_t size) {
    const psi_abi *abi = psi_abi_of(CALLER);
    if (abi != NULL && abi->fits) {
        recompute_rows(t, offset, size);
        touch(t, offset, size, KV_READ);
    }
    if (abi != NULL && abi->tensor_get != NULL) {
        abi->tensor_get(t, data, offset, size);
    }
}

void ggml_backend_tensor_set(tensor *t, const void *data, size_t offset, size_t size) {
    const psi_abi *abi = psi_abi_of(CALLER);
    if (abi != NULL && abi->fits) {
        touch(t, offset, size, KV_WRITE);
    }
    if (abi != NULL && abi->tensor_set != NULL) {
        abi->tensor_set(t, data, offset, size);
    }
    if (abi != NULL && abi->fits) {
        touch(t, offset, size, KV_WROTE);
    }
}

void ggml_backend_tensor_memset(tensor *t, uint8_t value, size_t offset, size_t size) {
    const psi_abi *abi = psi_abi_of(CALLER);
    if (abi != NULL && abi->fits) {
        touch(t, offset, size, KV_WRITE);
    }
    if (abi != NULL && abi->tensor_memset != NULL) {
        abi->tensor_memset(t, value, offset, size);
    }
}

/* What is lost in one is lost in the other, where both are in caches of ours. */
static void copy_books(const tensor *from, const tensor *to, size_t count) {
    const kv_tensor *from_which = NULL, *to_which = NULL;
    psi_kv_lock();
    psi_kv *from_kv = from->data != NULL ? psi_kv_of_address(from->data, &from_which) : NULL;
    psi_kv *to_kv = to->data != NULL ? psi_kv_of_address(to->data, &to_which) : NULL;
    if (from_which != NULL && to_which != NULL) {
        size_t from_offset = (size_t)((const unsigned char *)from->data - from_which->data);
        size_t to_offset = (size_t)((const unsigned char *)to->data - to_which->data);
        psi_kv_copy_books(from_which, from_kv, from_offset, to_which, to_kv, to_offset, count);
    }
    psi_kv_unlock();
}

void ggml_backend_tensor_copy(tensor *from, tensor *to) {
    const psi_abi *abi = psi_abi_of(CALLER);
    if (abi != NULL && abi->fits) {
        if (psi_kv_copy_stream(from, to)) {
            return;
        }
        touch(from, 0, abi->nbytes(from), KV_READ);
        touch(to, 0, abi->nbytes(to), KV_WRITE);
        copy_books(from, to, abi->nbytes(from));
    }
    if (abi != NULL && abi->tensor_copy != NULL) {
        abi->tensor_copy(from, to);
    }
}

/* ---- llama ------------------------------------------------------------------------------------- */

/* llama_batch is passed by value: this stands for it and for what a newer build may add to its end. It is handed on as
 * it lies. */
typedef struct batch_by_value {
    int32_t n_tokens;
    void *fields[15];
} batch_by_value;

STAND_IN int32_t llama_decode(void *context, batch_by_value batch);
STAND_IN int32_t llama_process(void *context, int type, void *batch);

STAND_IN void *llama_init_from_model(void *model, psi_params params);

/* Tells how a context was made, so that dropped blocks of it can be computed again: `bytes` of its llama_context_params
 * can be read. Python tells it itself. Any thread. */
PSI_API void psi_llama_note_context(const void *context, void *model, const void *params, size_t bytes);

typedef int32_t (*decode_fn)(void *, batch_by_value);
typedef int32_t (*process_fn)(void *, int, void *);

/* Looked up at each call, some microseconds a decode: two builds of the engine may live in one process. */
int32_t llama_decode(void *context, batch_by_value batch) {
    decode_fn own = llama_decode, found = NULL;
    void *self = NULL;
    memcpy(&self, &own, sizeof(self));
    void *address = psi_abi_next(CALLER, "llama_decode", self);
    memcpy(&found, &address, sizeof(found));
    if (found == NULL) {
        return -1;
    }
    psi_refusal_call_begins(context);
    return psi_refusal_answer(found(context, batch));
}

int32_t llama_process(void *context, int type, void *batch) {
    process_fn own = llama_process, found = NULL;
    void *self = NULL;
    memcpy(&self, &own, sizeof(self));
    void *address = psi_abi_next(CALLER, "llama_process", self);
    memcpy(&found, &address, sizeof(found));
    if (found == NULL) {
        return -1;
    }
    psi_refusal_call_begins(context);
    return psi_refusal_answer(found(context, type, batch));
}

typedef void *(*init_fn)(void *, psi_params);

void psi_llama_note_context(const void *context, void *model, const void *params, size_t bytes) {
    if (context != NULL && params != NULL) {
        psi_hidden_note_context(context, model, params, bytes);
    }
}

void *llama_init_from_model(void *model, psi_params params) {
    init_fn own = llama_init_from_model, found = NULL;
    void *self = NULL;
    memcpy(&self, &own, sizeof(self));
    void *address = psi_abi_next(CALLER, "llama_init_from_model", self);
    memcpy(&found, &address, sizeof(found));
    if (found == NULL) {
        return NULL;
    }
    void *context = found(model, params);
    psi_llama_note_context(context, model, params.bytes, sizeof(params.bytes));
    return context;
}
