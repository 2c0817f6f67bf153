/* idle_host: a process with a cache that is in memory and not used: nothing runs in it but the library's watcher.
 * Opens a cache, fills a pool of BYTES, passes a safe point, says "ready" and sleeps until its standard input ends.
 * Called by watcher_cost.py: idle_host BYTES */
#include <psicache.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_BYTES ((size_t)64 << 10)

int main(int argc, char **argv) {
    size_t bytes = argc > 1 ? (size_t)strtoull(argv[1], NULL, 10) : 0;
    psi_pool_options options = PSI_OPTIONS_INIT(psi_pool_options);
    options.name = "idle";
    options.block_bytes = BLOCK_BYTES;
    options.blocks = (uint32_t)(bytes / BLOCK_BYTES);
    psi_cache *cache = psi_cache_open(NULL);
    psi_pool *pool = cache != NULL && bytes > 0 ? psi_pool_create(cache, &options) : NULL;
    if (pool == NULL) {
        perror("idle_host");
        return 1;
    }
    for (uint32_t i = 0; i < options.blocks; i++) {
        void *block = psi_block_alloc(pool, NULL);
        if (block == NULL) {
            perror("idle_host: block");
            return 1;
        }
        memset(block, 1, BLOCK_BYTES);
    }
    psi_pool_step(pool);
    psi_pool_step_end(pool);
    puts("ready");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    psi_pool_destroy(pool);
    psi_cache_close(cache);
    return 0;
}
