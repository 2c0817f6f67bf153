/* abi.c - finds the engine's own functions behind the stand-ins, and checks that this build is one we understand.
 * Called on the engine's threads; a build is looked at once. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "engine/llama/abi.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { MAX_BUILDS = 4, MAX_CALLERS = 16 };

static psi_abi builds[MAX_BUILDS];
static int build_count;

/* A library that calls us: any address of its text leads to its build without asking the linker again. */
typedef struct caller_range {
    uintptr_t from, to;
    const psi_abi *abi;
} caller_range;

static caller_range callers[MAX_CALLERS];
static _Atomic int caller_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

typedef struct range_query {
    uintptr_t address;
    uintptr_t from, to;
} range_query;

static int find_range(struct dl_phdr_info *info, size_t size, void *user) {
    (void)size;
    range_query *query = user;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        uintptr_t from = info->dlpi_addr + header->p_vaddr;
        if (header->p_type == PT_LOAD && query->address >= from && query->address < from + header->p_memsz) {
            query->from = from;
            query->to = from + header->p_memsz;
            return 1;
        }
    }
    return 0;
}

/* dlsym on the caller's own handle searches it and what it was linked to, never us: neither the global scope nor
 * RTLD_NEXT would find libraries that a Python module loaded privately. */
static void *handle_of(const void *caller) {
    Dl_info info;
    if (dladdr(caller, &info) == 0 || info.dli_fname == NULL) {
        return NULL;
    }
    return dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
}

void *psi_abi_next(const void *caller, const char *name, const void *own) {
    void *handle = handle_of(caller);
    void *found = handle != NULL ? dlsym(handle, name) : NULL;
    if (found == NULL || found == own) { /* the caller is the main program: its scope begins with us */
        found = dlsym(RTLD_NEXT, name);
    }
    if (handle != NULL) {
        (void)dlclose(handle);
    }
    return found == own ? NULL : found;
}

typedef struct symbol {
    const char *name;
    size_t offset; /* of the pointer in psi_abi */
} symbol;

#define SYMBOL(name, field) {name, offsetof(psi_abi, field)}
static const symbol symbols[] = {
    SYMBOL("ggml_backend_alloc_ctx_tensors_from_buft", alloc_ctx_tensors_from_buft),
    SYMBOL("ggml_backend_buffer_clear", buffer_clear),
    SYMBOL("ggml_backend_buffer_free", buffer_free),
    SYMBOL("ggml_backend_sched_graph_compute_async", sched_graph_compute_async),
    SYMBOL("ggml_backend_tensor_get", tensor_get),
    SYMBOL("ggml_backend_tensor_set", tensor_set),
    SYMBOL("ggml_backend_tensor_copy", tensor_copy),
    SYMBOL("ggml_backend_tensor_memset", tensor_memset),
    SYMBOL("ggml_backend_buft_is_host", buft_is_host),
    SYMBOL("ggml_backend_cpu_buffer_from_ptr", cpu_buffer_from_ptr),
    SYMBOL("ggml_backend_tensor_alloc", tensor_alloc),
    SYMBOL("ggml_backend_view_init", view_init),
    SYMBOL("ggml_get_first_tensor", get_first_tensor),
    SYMBOL("ggml_get_next_tensor", get_next_tensor),
    SYMBOL("ggml_nbytes", nbytes),
    SYMBOL("ggml_tensor_overhead", tensor_overhead),
    SYMBOL("ggml_get_name", get_name),
    SYMBOL("ggml_get_data", get_data),
    SYMBOL("ggml_op_name", op_name),
    SYMBOL("ggml_graph_n_nodes", graph_n_nodes),
    SYMBOL("ggml_graph_node", graph_node),
};

static const symbol optional[] = {
    SYMBOL("ggml_backend_sched_set_eval_callback", sched_set_eval_callback),
    SYMBOL("ggml_backend_sched_free", sched_free),
    SYMBOL("ggml_backend_buffer_is_host", buffer_is_host),
    SYMBOL("ggml_get_type_traits", get_type_traits),
};

static bool resolve_symbols(psi_abi *abi, void *handle) {
    bool all = true;
    for (size_t i = 0; i < sizeof(optional) / sizeof(optional[0]); i++) {
        void *address = dlsym(handle, optional[i].name);
        memcpy((char *)abi + optional[i].offset, &address, sizeof(address));
    }
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *address = dlsym(handle, symbols[i].name);
        memcpy((char *)abi + symbols[i].offset, &address, sizeof(address));
        if (address == NULL && all) {
            (void)snprintf(abi->why_not, sizeof(abi->why_not), "it has no %s", symbols[i].name);
            all = false;
        }
    }
    return all;
}

/* Operations are compared by name, because their numbers move. The table of names ends at the count, which no function
 * tells: past it lies other memory, so the search stays below the smallest count. */
static int find_op(const psi_abi *abi, const char *name) {
    for (int op = 0; op < 80; op++) { /* GGML_OP_COUNT was 82 to 101 in the builds read */
        const char *candidate = abi->op_name(op);
        if (candidate != NULL && strcmp(candidate, name) == 0) {
            return op;
        }
    }
    return -1;
}

static void find_ops(psi_abi *abi) {
    abi->op_none = find_op(abi, "NONE");
    abi->op_set_rows = find_op(abi, "SET_ROWS");
    abi->op_flash_attn = find_op(abi, "FLASH_ATTN_EXT");
    abi->op_soft_max = find_op(abi, "SOFT_MAX");
    abi->op_mul_mat = find_op(abi, "MUL_MAT");
    abi->op_view = find_op(abi, "VIEW");
    abi->op_reshape = find_op(abi, "RESHAPE");
    abi->op_permute = find_op(abi, "PERMUTE");
    abi->op_transpose = find_op(abi, "TRANSPOSE");
    abi->op_cpy = find_op(abi, "CPY");
    abi->op_cont = find_op(abi, "CONT");
    abi->op_dup = find_op(abi, "DUP");
}

static bool check_build(psi_abi *abi) {
    /* struct ggml_object, which the overhead includes: offs, size, next, type, padding */
    const size_t object_bytes = 32;
    if (abi->tensor_overhead() != sizeof(tensor) + object_bytes) {
        (void)snprintf(abi->why_not, sizeof(abi->why_not), "its tensors are %zu bytes and not %zu",
                       abi->tensor_overhead() - object_bytes, sizeof(tensor));
        return false;
    }
    find_ops(abi);
    if (abi->op_none != 0 || abi->op_set_rows < 0 || abi->op_flash_attn < 0 || abi->op_soft_max < 0 ||
        abi->op_mul_mat < 0) {
        (void)snprintf(abi->why_not, sizeof(abi->why_not),
                       "it writes its cache in another way than SET_ROWS (before mid 2025?)");
        return false;
    }
    return true;
}

bool psi_abi_tensor_fits(const psi_abi *abi, const tensor *t) {
    return abi->get_name(t) == t->name && abi->get_data(t) == t->data && t->ne[2] > 0 && t->ne[3] == 1 &&
           abi->nbytes(t) == (size_t)t->ne[2] * t->nb[2] && t->nb[2] == (size_t)t->ne[1] * t->nb[1];
}

/* The traits' layout is believed where it agrees with the tensor. */
static const psi_type_traits *traits_of(const psi_abi *abi, const tensor *t) {
    const psi_type_traits *traits = abi->get_type_traits != NULL ? abi->get_type_traits(t->type) : NULL;
    bool good = traits != NULL && traits->group > 0 && traits->group_bytes == t->nb[0] && t->ne[0] % traits->group == 0;
    return good ? traits : NULL;
}

psi_to_float_fn psi_abi_to_float(const psi_abi *abi, const tensor *t) {
    const psi_type_traits *traits = traits_of(abi, t);
    return traits != NULL ? traits->to_float : NULL;
}

static const psi_type_traits *quantised(const psi_abi *abi, const tensor *t) {
    bool plain = t->type == TYPE_F32 || t->type == TYPE_F16 || t->type == TYPE_BF16;
    return plain ? NULL : traits_of(abi, t);
}

uint32_t psi_abi_group(const psi_abi *abi, const tensor *t) {
    const psi_type_traits *traits = quantised(abi, t);
    return traits != NULL ? (uint32_t)traits->group : 1;
}

bool psi_abi_in_host(const psi_abi *abi, const tensor *t) {
    return t->buffer == NULL || abi->buffer_is_host == NULL || abi->buffer_is_host(t->buffer);
}

size_t psi_abi_row_bytes(const psi_abi *abi, const tensor *t, uint32_t count) {
    const psi_type_traits *traits = quantised(abi, t);
    return traits != NULL ? count / (size_t)traits->group * traits->group_bytes : count * t->nb[0];
}

/* The build whose libggml-base defines `anchor`; looked at now if it is new. Under the lock. */
static const psi_abi *build_of(const void *anchor) {
    Dl_info info;
    if (dladdr(anchor, &info) == 0 || info.dli_fname == NULL) {
        return NULL;
    }
    for (int i = 0; i < build_count; i++) {
        if (builds[i].library == info.dli_fbase) {
            return &builds[i];
        }
    }
    void *handle = build_count < MAX_BUILDS ? dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    if (handle == NULL) {
        return NULL;
    }
    psi_abi *abi = &builds[build_count++]; /* the handle is kept: the pointers must stay good */
    abi->library = info.dli_fbase;
    (void)snprintf(abi->path, sizeof(abi->path), "%s", info.dli_fname);
    abi->fits = resolve_symbols(abi, handle) && check_build(abi);
    return abi;
}

static const psi_abi *known(uintptr_t address) {
    int count = atomic_load_explicit(&caller_count, memory_order_acquire);
    for (int i = 0; i < count; i++) {
        if (address >= callers[i].from && address < callers[i].to) {
            return callers[i].abi;
        }
    }
    return NULL;
}

extern void *ggml_backend_alloc_ctx_tensors_from_buft(void *context, void *buffer_type);

const psi_abi *psi_abi_of(const void *caller) {
    const psi_abi *abi = known((uintptr_t)caller);
    if (abi != NULL) {
        return abi;
    }
    pthread_mutex_lock(&lock);
    const char *name = "ggml_backend_alloc_ctx_tensors_from_buft";
    void *own = NULL;
    void *(*stand_in)(void *, void *) = ggml_backend_alloc_ctx_tensors_from_buft;
    memcpy(&own, &stand_in, sizeof(own));
    void *anchor = psi_abi_next(caller, name, own);
    abi = anchor != NULL ? build_of(anchor) : NULL;
    range_query query = {.address = (uintptr_t)caller};
    int count = atomic_load(&caller_count);
    if (abi != NULL && count < MAX_CALLERS && dl_iterate_phdr(find_range, &query) != 0) {
        callers[count] = (caller_range){query.from, query.to, abi};
        atomic_store_explicit(&caller_count, count + 1, memory_order_release);
    }
    pthread_mutex_unlock(&lock);
    return abi;
}
