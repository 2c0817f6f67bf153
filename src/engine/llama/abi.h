/* abi.h - what this adapter knows of ggml: the fields of a tensor, and the calls it makes. The engine's headers are not
 * used, because one binary must serve many builds: the layout is checked against each build when it is met.
 * Facts of the layout: ggml.h of llama.cpp, the same from mid 2025 (first build with SET_ROWS) to build 11434. */
#ifndef PSI_LLAMA_ABI_H
#define PSI_LLAMA_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GGML_LAYOUT_DIMS = 4, GGML_LAYOUT_SRC = 10, GGML_LAYOUT_OP_PARAMS_BYTES = 64, GGML_LAYOUT_NAME_BYTES = 64 };

enum {
    TYPE_F32 = 0,
    TYPE_F16 = 1,
    TYPE_I32 = 26,
    TYPE_I64 = 27,
    TYPE_BF16 = 30
}; /* enum ggml_type; written to files, so it does not move */
enum { STATUS_ALLOC_FAILED = -2, STATUS_ABORTED = 1 }; /* enum ggml_status */

typedef struct tensor tensor;
struct tensor {
    int32_t type;
    void *buffer;
    int64_t ne[GGML_LAYOUT_DIMS]; /* elements */
    size_t nb[GGML_LAYOUT_DIMS];  /* strides in bytes */
    int32_t op;
    int32_t op_params[GGML_LAYOUT_OP_PARAMS_BYTES / sizeof(int32_t)];
    int32_t flags;
    tensor *src[GGML_LAYOUT_SRC];
    tensor *view_src; /* the tensor whose memory this one shows, never a view itself */
    size_t view_offs;
    void *data;
    char name[GGML_LAYOUT_NAME_BYTES];
    void *extra;
    char padding[8];
};

/* Called before a node is computed (ask: is its result wanted?) and after, if it was. */
typedef bool (*psi_eval_callback)(tensor *t, bool ask, void *user);

typedef void (*psi_to_float_fn)(const void *from, float *to, int64_t count);

/* struct ggml_type_traits, its beginning. */
typedef struct psi_type_traits {
    const char *type_name;
    int64_t group, group_interleave; /* elements that are quantised together */
    size_t group_bytes;
    bool is_quantized;
    psi_to_float_fn to_float;
} psi_type_traits;

/* The engine's own functions, found in the very library that the caller would have reached without us. */
typedef struct psi_abi {
    const void *library; /* base address of its libggml-base; NULL: not met yet */
    char path[256];
    bool fits; /* the layout is the one above and every operation was found */
    char why_not[160];
    /* stood in for */
    void *(*alloc_ctx_tensors_from_buft)(void *context, void *buffer_type);
    void (*buffer_clear)(void *buffer, uint8_t value);
    void (*buffer_free)(void *buffer);
    int (*sched_graph_compute_async)(void *sched, void *graph);
    void (*tensor_get)(const tensor *t, void *data, size_t offset, size_t size);
    void (*tensor_set)(tensor *t, const void *data, size_t offset, size_t size);
    void (*tensor_copy)(tensor *from, tensor *to);
    void (*tensor_memset)(tensor *t, uint8_t value, size_t offset, size_t size);
    /* called */
    bool (*buft_is_host)(void *buffer_type);
    void *(*cpu_buffer_from_ptr)(void *address, size_t bytes);
    int (*tensor_alloc)(void *buffer, tensor *t, void *address);
    int (*view_init)(tensor *t);
    tensor *(*get_first_tensor)(const void *context);
    tensor *(*get_next_tensor)(const void *context, const tensor *t);
    size_t (*nbytes)(const tensor *t);
    size_t (*tensor_overhead)(void);
    const char *(*get_name)(const tensor *t);
    void *(*get_data)(const tensor *t);
    const char *(*op_name)(int op);
    int (*graph_n_nodes)(void *graph);
    tensor *(*graph_node)(void *graph, int index);
    /* where the build has them: for scores */
    void (*sched_set_eval_callback)(void *sched, psi_eval_callback callback, void *user);
    void (*sched_free)(void *sched);
    bool (*buffer_is_host)(void *buffer);
    const psi_type_traits *(*get_type_traits)(int type);
    /* numbers of operations, which change from build to build; -1: this build has none */
    int op_none, op_set_rows, op_flash_attn, op_soft_max, op_mul_mat, op_view, op_reshape, op_permute, op_transpose,
        op_cpy, op_cont, op_dup;
} psi_abi;

/* The functions behind a stand-in that was called from `caller` (its return address). NULL: no ggml is there. */
const psi_abi *psi_abi_of(const void *caller);

/* The function `name` that `caller`'s library would have reached without the stand-in `own`; NULL: none. For
 * libllama's. */
void *psi_abi_next(const void *caller, const char *name, const void *own);

/* Compares the layout with a real tensor of the build. */
bool psi_abi_tensor_fits(const psi_abi *abi, const tensor *t);

/* How the build turns a quantised tensor's numbers into floats; NULL: not known. */
psi_to_float_fn psi_abi_to_float(const psi_abi *abi, const tensor *t);

/* So many numbers of a row are quantised together; 1 where each stands alone. */
uint32_t psi_abi_group(const psi_abi *abi, const tensor *t);

/* False: it lies in a device's memory, and is not for us to read or write. */
bool psi_abi_in_host(const psi_abi *abi, const tensor *t);

/* Bytes of the first `count` numbers of a row; whole groups where they are quantised. */
size_t psi_abi_row_bytes(const psi_abi *abi, const tensor *t, uint32_t count);

#endif
