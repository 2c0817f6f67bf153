/* kv_malloc.c - a malloc-shaped pair over a pool of whole blocks, for engines that take an allocator. Any thread. */
#include <errno.h>
#include <stdlib.h>

#include "os/os.h"
#include "pool/pool.h"
#include "pool/settings.h"

#define KV_BLOCK_BYTES (UINT64_C(64) << 10)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static psi_cache *kv_cache;
static psi_pool *kv_pool;

static void open_default_pool(void) {
    kv_cache = psi_cache_open(NULL);
    if (kv_cache == NULL) {
        return;
    }
    uint64_t bytes = psi_settings_bytes(psi_cache_log(kv_cache), "KV_BYTES", psi_os_half_memory_bytes());
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.name = "kv_malloc";
    options.block_bytes = KV_BLOCK_BYTES;
    options.blocks = (uint32_t)(bytes / KV_BLOCK_BYTES > 0 ? bytes / KV_BLOCK_BYTES : 1);
    kv_pool = psi_pool_create(kv_cache, &options);
}

/* The first row of `count` blocks that nobody has; PSI_BLOCK_NONE when there is none. */
static uint32_t find_run(const psi_pool *pool, uint32_t count) {
    uint32_t length = 0;
    for (uint32_t i = 0; i < pool->blocks; i++) {
        length = pool->block[i].handed_out ? 0 : length + 1;
        if (length == count) {
            return i + 1 - count;
        }
    }
    return PSI_BLOCK_NONE;
}

static void *take_run(psi_pool *pool, uint32_t first, uint32_t count) {
    for (uint32_t i = first; i < first + count; i++) {
        pool->block[i].handed_out = pool->block[i].pinned = true;
        psi_block_move(pool, i, PSI_BLOCK_RESIDENT);
    }
    pool->block[first].run = count;
    return psi_block_address(pool, first);
}

void *psi_kv_malloc(size_t bytes) {
    (void)pthread_once(&once, open_default_pool);
    psi_pool *pool = kv_pool;
    size_t block_bytes = pool != NULL ? pool->block_total_bytes : 1;
    size_t count = bytes / block_bytes + (bytes % block_bytes != 0);
    count = count > 0 ? count : 1;
    if (pool == NULL || count > pool->blocks) {
        errno = ENOMEM;
        return NULL;
    }
    void *address = NULL;
    int error = ENOMEM;
    pthread_mutex_lock(&pool->lock);
    if (psi_cache_refuses(pool->cache)) {
        pool->refusals++;
        error = EAGAIN;
    } else {
        uint32_t first = find_run(pool, (uint32_t)count);
        address = first != PSI_BLOCK_NONE ? take_run(pool, first, (uint32_t)count) : NULL;
    }
    pthread_mutex_unlock(&pool->lock);
    if (address == NULL) {
        errno = error;
    }
    return address;
}

void psi_kv_free(void *address) {
    psi_pool *pool = kv_pool;
    if (address == NULL || pool == NULL) {
        return;
    }
    size_t offset = (size_t)((unsigned char *)address - (unsigned char *)pool->arena);
    pthread_mutex_lock(&pool->lock);
    uint32_t first = (uint32_t)(offset / pool->block_total_bytes);
    uint32_t count = offset < pool->arena_bytes && offset % pool->block_total_bytes == 0 ? pool->block[first].run : 0;
    for (uint32_t i = first; i < first + count; i++) {
        pool->block[i].handed_out = pool->block[i].pinned = false;
        pool->block[i].run = 0;
        pool->block[i].releasing = true;
        psi_block_move(pool, i, PSI_BLOCK_EMPTY);
    }
    (void)psi_layout_give_back(pool);
    pthread_mutex_unlock(&pool->lock);
    if (count == 0) {
        psi_log_line(psi_cache_log(pool->cache), PSI_LOG_WARN,
                     "psi_kv_free(%p): not an address from psi_kv_malloc; ignored", address);
    }
}
