/* psicache.h - the whole public C interface of llm-psi-cache.
 *
 * A language model's KV cache that gives memory back before the kernel kills the process, and takes
 * it again afterwards. One psi_cache senses memory pressure and decides; any number of psi_pools
 * hold the blocks that are trimmed and restored.
 *
 * Conventions, for every call:
 *  - Functions that return int return 0 (or a count) on success and a negative errno on failure;
 *    on failure outputs are untouched. Functions that return a pointer return NULL on failure.
 *  - Option structs begin with their own size: set it with PSI_OPTIONS_INIT. Fields left at zero
 *    take their default. Each option is also an environment variable, PSI_CACHE_<NAME>.
 *  - Units stand in names: _bytes, _us. Shares and indices go from 0 to 1.
 *  - Threads: psi_cache calls are safe from any thread. A pool belongs to one thread, its engine's;
 *    calls that other threads may make say so.
 *  - The host process never dies of us: no call aborts, exits, or raises a signal.
 */
#ifndef PSICACHE_H
#define PSICACHE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PSI_API __attribute__((visibility("default")))
#else
#define PSI_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define PSI_VERSION_MAJOR 0
#define PSI_VERSION_MINOR 1
#define PSI_VERSION_PATCH 0

typedef struct psi_cache psi_cache;
typedef struct psi_pool psi_pool;
typedef uint32_t psi_block_id;

#define PSI_BLOCK_NONE UINT32_MAX

/* Sets an option struct to its defaults: psi_options o = PSI_OPTIONS_INIT(psi_options); */
#define PSI_OPTIONS_INIT(type) ((type){.size = sizeof(type)})

/* ---- The simple interface --------------------------------------------------------------------- */

/* Sets the process-wide limit: the cache is trimmed while the pressure index is above `high`, and
 * regrows once it is below the lower limit (by default 3/7 of `high`, so 0.7 goes with 0.3).
 * Takes effect at once, on open caches too.
 * Errors: -EINVAL unless 0 < high <= 1. Any thread. */
PSI_API int psi_set_cache_limit(double high);

/* The same with both limits. Errors: -EINVAL unless 0 <= low < high <= 1. Any thread. */
PSI_API int psi_set_cache_limits(double high, double low);

/* ---- Signals and control: one psi_cache ------------------------------------------------------- */

typedef enum psi_log_level { PSI_LOG_ERROR = 0, PSI_LOG_WARN = 1, PSI_LOG_INFO = 2, PSI_LOG_DEBUG = 3 } psi_log_level;

/* Receives one line without a newline, of level PSI_LOG_INFO and above unless PSI_CACHE_VERBOSE says
 * otherwise. May be called from the watcher thread; must not call back. */
typedef void (*psi_log_fn)(void *user, psi_log_level level, const char *line);

typedef struct psi_options {
    size_t size;
    double high;         /* trim above this index; default 0.7 (PSI_CACHE_HIGH) */
    double low;          /* regrow below this index; default 0.3 (PSI_CACHE_LOW) */
    double trim_min;     /* least share of the resident cache given in a cycle; 0.10 */
    double trim_max;     /* largest share given in a cycle while there is time; 0.20 */
    uint64_t dwell_us;   /* no regrowing this long after a trim; default 2 s */
    uint64_t horizon_us; /* how far ahead the fill rate is extrapolated; default: as long as giving back takes here */
    uint64_t reserve_bytes;   /* headroom to keep; default 1/16 of the limit, 16 MiB to 256 MiB */
    uint64_t floor_bytes;     /* never trim a pool below this; under pressure it grows up to here, by default up to the
                               * kept blocks and one more, too; default 1/32 of its capacity */
    const char *policy;       /* which blocks go first: "auto" (default), "attention", "keys", "fifo", "lru" */
    const char *store;        /* "file" (default) or "none" (trimmed blocks are dropped) */
    const char *store_dir;    /* directory of the store, on a disk; default /var/tmp ($TMPDIR is often memory) */
    uint64_t store_max_bytes; /* upper size of the store; default: the pools' capacity */
    const char *root;         /* prefix of /proc and /sys paths, for tests; default "" */
    int controller;           /* 0 default (on), 1 on, -1 off: never trims by itself (PSI_CACHE_CONTROLLER=off) */
    psi_log_fn log;           /* default: lines on stderr, PSI_CACHE_VERBOSE=0..3 */
    void *log_user;
    const char *mode; /* "auto" (default), "psi" (stall alone) or "avg10" (the kernel's average against the
                         limits): the last two for comparison (PSI_CACHE_MODE) */
    int tuning;       /* 0 default (on), 1 on, -1 off: the mapping learns this device (PSI_CACHE_TUNING=off) */
    const char
        *tuning_file;   /* what was learned is read from here and saved here; default none (PSI_CACHE_TUNING_FILE) */
    double guard_share; /* of the cache: most that stall alone may take in a guard period; 0.5 */
    uint64_t guard_period_us; /* default 60 s */
    int recall;            /* 0 default (on), 1 on, -1 off: hidden blocks that the model wants come back in exchange for
                              others, while the cache stays as small as it is (PSI_CACHE_RECALL=off) */
    double score_share;    /* most of the step time that measuring attention may cost, on average; 0.01 */
    double recall_share;   /* the same of finding and fetching what is wanted, in steps of one token; 0.03 */
    uint64_t recall_us;    /* most time that a step spends on exchanges, if it is a prompt's (8 tokens or more) or the
                              first after blocks were taken, and one block's more; default 50 ms */
    int recompute;         /* 0 default (on), 1 on, -1 off: dropped blocks are computed again from their tokens, where
                              the engine knows them (PSI_CACHE_RECOMPUTE=off) */
    uint64_t recompute_us; /* most time that a step waits for it, and one piece's more; default 100 ms */
    uint64_t store_hour_max_bytes; /* written to the store in any hour, all pools together; default no bound. Blocks are
                                      then not written ahead of need; a trim under pressure or by hand still writes */
    int store_hour_strict; /* 1 on, default off: trims keep to it, too; blocks that the store has not stay in memory, or
                              are dropped where that would end the process (PSI_CACHE_STORE_HOUR_STRICT=on) */
    int exact; /* 1 on, default off: no block is hidden from a step that reads it. Where there is no room for all of
                  them, psi_pool_step leaves some out of memory, and the step must not run: wait, and call it again
                  (PSI_CACHE_EXACT=on) */
} psi_options;

/* Opens signals and controller, and starts the watcher thread with the first pool. NULL options:
 * defaults. Missing sources are logged once each, by name. Limits set with psi_set_cache_limit go before
 * the options'. Returns NULL, with errno set, when memory is short or an option is out of range (logged
 * with its name). Any thread. */
PSI_API psi_cache *psi_cache_open(const psi_options *options);

/* Stops the watcher and frees the cache. Its pools must have been destroyed. NULL is ignored. */
PSI_API void psi_cache_close(psi_cache *cache);

/* ---- Memory: pools of blocks ------------------------------------------------------------------ */

/* Where a block is. Moves: EMPTY -> RESIDENT -> STORED -> RESIDENT; RESIDENT -> DROPPED -> RESIDENT
 * (written or computed anew); STORED -> DROPPED (the store lost it); all -> EMPTY (freed). No other. */
typedef enum psi_block_state {
    PSI_BLOCK_EMPTY = 0,    /* no page, no content */
    PSI_BLOCK_RESIDENT = 1, /* content in memory */
    PSI_BLOCK_STORED = 2,   /* content in the store, pages given back; must not be read */
    PSI_BLOCK_DROPPED = 3   /* content gone, pages given back; must not be read */
} psi_block_state;

/* One tensor's share of each block. A block of `block_bytes` a column; a row-major tensor has one
 * column; a transposed one has `columns`, `column_stride_bytes` apart. */
typedef struct psi_plane {
    void *base;                 /* first byte of the lane's first block, first column */
    size_t block_bytes;         /* bytes of one block in one column */
    size_t column_bytes;        /* bytes of one column: (blocks - 1) * block_bytes < it <= blocks * block_bytes */
    size_t columns;             /* 1 or more; 0 is taken as 1 */
    size_t column_stride_bytes; /* from column to column; unused when columns is 1 */
} psi_plane;

/* Called for each block that moved from or to RESIDENT, or was lost: before its memory is given back, or
 * after it was read again. On the pool's thread, inside psi_pool_step and the calls that restore; for blocks
 * that no step reads, and after psi_pool_step_layer, also on the watcher's, but never for a drop. The pool is locked:
 * it must not call back. */
typedef void (*psi_block_moved_fn)(void *user, psi_block_id block, psi_block_state from, psi_block_state to);

typedef struct psi_pool_options {
    size_t size;
    const char *name;        /* shown in status and logs; copied */
    size_t block_bytes;      /* psi_pool_create: bytes a block, rounded up to whole pages; default 64 KiB */
    uint32_t blocks;         /* number of blocks (psi_pool_create), or blocks a lane (psi_pool_adopt) */
    uint32_t lanes;          /* psi_pool_adopt: lanes, for example streams; default 1 */
    const psi_plane *planes; /* psi_pool_adopt: lanes * planes_per_lane of them, lane by lane; copied */
    uint32_t planes_per_lane;
    uint32_t keep_first;  /* leading blocks of each lane that are never trimmed; default 1 */
    uint32_t keep_newest; /* most recently written blocks that are never trimmed; default 2 */
    uint64_t floor_bytes; /* overrides psi_options.floor_bytes for this pool */
    psi_block_moved_fn moved;
    void *moved_user;
    int wake_fd; /* psi_pool_remote: a descriptor (an eventfd, or a pipe's end) that is written to, 8 bytes, when
                    something is asked of the pool; the owner keeps it open, and non-blocking; 0: none */
} psi_pool_options;

/* Reserves address space for blocks * block_bytes; a page exists once it is written to.
 * Errors (errno): EINVAL, ENOMEM. `cache` must outlive the pool. */
PSI_API psi_pool *psi_pool_create(psi_cache *cache, const psi_pool_options *options);

/* Takes over an engine's memory, described by planes. The memory must be private, anonymous and
 * zero or not yet touched; every block starts EMPTY. The caller keeps owning the address range.
 * Errors (errno): EINVAL (a plane that is outside its own bounds, no plane), ENOMEM. */
PSI_API psi_pool *psi_pool_adopt(psi_cache *cache, const psi_pool_options *options);

/* For an engine whose scheduler runs in this process and whose memory lies in another one (vLLM): a pool of counts. It
 * has no blocks here, and none of the calls on blocks apply to it. Its owner says what there is (psi_pool_report), is
 * told what the controller or a person wants, and does it. `block_bytes`, `blocks`, `floor_bytes`, `name` and `wake_fd`
 * of the options count; the headroom of this process's memory group must be the memory's own.
 * Errors (errno): EINVAL (no block_bytes, no blocks), ENOMEM. */
PSI_API psi_pool *psi_pool_remote(psi_cache *cache, const psi_pool_options *options);

typedef struct psi_pool_counts {
    size_t size;
    uint32_t resident;     /* blocks that have memory */
    uint32_t evictable;    /* of those, what could be given back now */
    uint32_t withheld;     /* blocks without memory that the engine may not use, until they are asked back */
    uint32_t refusals;     /* requests that the engine had to put off since the last report */
    uint64_t given_bytes;  /* went back to the system since the last report */
    uint64_t taken_bytes;  /* of what went back ever, taken again since the last report */
    uint64_t going_bytes;  /* on their way: asked for, begun, and not given yet */
    uint32_t stored;       /* blocks whose content a store has, in memory or not */
    uint32_t store_errors; /* writes and reads that failed since the last report */
} psi_pool_counts;

typedef struct psi_pool_wish {
    size_t size;
    uint64_t trim_bytes;    /* give back so many more */
    uint64_t restore_bytes; /* withheld blocks of so many bytes may be used again; UINT64_MAX: all, by hand */
    int pressed;            /* non-zero: the index is above the limit. No block should come that has no memory yet */
    int write_ahead; /* non-zero: memory is getting scarce, and there is time: what could go next should be stored now
                      */
} psi_pool_wish;

/* Tells a remote pool's counts, and takes what is wanted since the last report: what cannot be done now need not be
 * kept, it is asked for again. Between two steps of the engine, and when wake_fd was written to. One thread at a time.
 * Errors: -EINVAL (NULL, size not set, or another pool). */
PSI_API int psi_pool_report(psi_pool *pool, const psi_pool_counts *counts, psi_pool_wish *wish);

/* A store by itself, for whoever holds such memory: numbered records of one size in one unlinked file of mode 0600,
 * which come back exactly as they were written, or not at all. Any thread, one at a time: calls wait for each other. */
typedef struct psi_records psi_records;

/* A part of a record, in memory. */
typedef struct psi_part {
    void *address;
    size_t bytes;
} psi_part;

/* `records` records of record_bytes each, or as many as store_max_bytes allows. Of the options those that begin with
 * store count, and the log. Errors (errno): ENOTSUP (the store is "none"), EINVAL (a size of 0, or an option: it is
 * logged), ENOSPC (store_max_bytes allows none), ENOMEM, or why the directory cannot be used. */
PSI_API psi_records *psi_records_open(const psi_options *options, size_t record_bytes, uint32_t records);

/* How many records there are: numbers go from 0 to one less. */
PSI_API uint32_t psi_records_count(const psi_records *records);

/* Writes record `number`, joined from parts that are record_bytes together. Returns 0; -EINVAL (no such number, other
 * bytes), -EDQUOT (store_hour_max_bytes are written in this hour), -ENOSPC, -EIO, ...: there is no such record then. */
PSI_API int psi_records_put(psi_records *records, uint32_t number, const psi_part *parts, uint32_t count);

/* Reads it back to the parts. Returns 0; -EINVAL, -ENOENT (never written, or forgotten), -EIO (also when the bytes are
 * not those that were written), ...: the parts are untouched then. */
PSI_API int psi_records_get(psi_records *records, uint32_t number, const psi_part *parts, uint32_t count);

/* Forgets a record and gives its room on the disk back. A number that has none is ignored. */
PSI_API void psi_records_forget(psi_records *records, uint32_t number);

/* NULL is ignored. */
PSI_API void psi_records_close(psi_records *records);

/* Gives all pages of an own arena back to the system, forgets the store's copies. NULL is ignored. */
PSI_API void psi_pool_destroy(psi_pool *pool);

/* A block of a created pool, zeroed; its id goes to *id when id is not NULL. NULL with errno EAGAIN
 * under pressure with the floor reached and nothing left to trim above it (reuse a block, wait, or say no), ENOMEM when
 * all blocks are handed out. */
PSI_API void *psi_block_alloc(psi_pool *pool, psi_block_id *id);

/* Hands a block back: EMPTY, its pages go to the system. Unknown ids are ignored. */
PSI_API void psi_block_free(psi_pool *pool, psi_block_id block);

/* Address of a block's first plane, whatever its state; NULL for an unknown id. */
PSI_API void *psi_block_address(const psi_pool *pool, psi_block_id block);
PSI_API psi_block_state psi_block_get_state(const psi_pool *pool, psi_block_id block);

/* Says that the block's memory is about to be written in whole or in part. A STORED block is read
 * back first; a DROPPED one becomes RESIDENT and zero. Returns 0; -EIO when the stored bytes are lost (the block is
 * then RESIDENT and zero, but for what is written now); -EINVAL for an unknown id. */
PSI_API int psi_block_write(psi_pool *pool, psi_block_id block);

/* Says that the coming step reads the block: it is not taken for asleep, comes back first if it was, and the
 * policies learn from it. It may still be trimmed at the safe point: look at its state after psi_pool_step. */
PSI_API void psi_block_used(psi_pool *pool, psi_block_id block);

/* What an engine knows of a block's worth; the policies "attention", "keys" and "auto" go by it, and without it as
 * "fifo". Both are 0 or more. */
typedef enum psi_score_kind {
    PSI_SCORE_ATTENTION = 0, /* the largest share of some head's attention, 0 to 1, that one of the block's tokens
                                received in the step. The pool keeps it until higher ones come, fading by a tenth with
                                each score, so call it for all blocks of a sampled step. */
    PSI_SCORE_KEYS = 1       /* how much the block's keys differ from those around it, in any unit, one for the pool:
                                after key difference (KeyDiff, arXiv 2504.15364). Once, when the block is full. */
} psi_score_kind;

/* Tells one block's score. Returns 0; -EINVAL for an unknown id or kind, or a score below 0 or not finite. */
PSI_API int psi_block_score(psi_pool *pool, psi_block_id block, psi_score_kind kind, float score);

/* The same for all blocks: scores has one float a block of the pool, negative where nothing is known. Returns the
 * number taken, or -EINVAL. */
PSI_API int psi_pool_score(psi_pool *pool, psi_score_kind kind, const float *scores);

/* Non-zero when a trim is near or on its way and no attention was scored in the last 16 steps: sample the coming step,
 * however short of time, so that the decision is made on fresh scores. Any thread. */
PSI_API int psi_pool_wants_scores(psi_pool *pool);

/* Says how much the step's queries want each block, in memory or hidden: the share of some head's attention that it
 * would receive, 0 to 1, estimated from what the engine remembers of its keys; negative where nothing is known. One
 * float a block of the pool. Hidden blocks that are wanted are exchanged for resident ones that are wanted less (one
 * of which nothing is known, or that the step does not read, stays), and the cache stays as large as it is: with
 * most_us above 0 now, for that long at most, also inside a step (look at the states again: blocks move there); with 0
 * they are read in the background, and exchanged at a later
 * psi_pool_step. Returns the number of blocks that came back now, or -EINVAL. */
PSI_API int psi_pool_recall(psi_pool *pool, const float *wants, uint64_t most_us);

#define PSI_MARK_USED 1u  /* the coming step reads the block */
#define PSI_MARK_WRITE 2u /* the coming step writes it: see psi_block_write */

/* psi_block_used and psi_block_write for all blocks at once: marks has one byte a block of the pool. Returns the number
 * of blocks to be written whose stored bytes were lost, or -EINVAL for NULL. */
PSI_API int psi_pool_mark(psi_pool *pool, const unsigned char *marks);

/* Copies every block's psi_block_state to states, one byte a block. Blocks that the step was said to
 * use do not move between psi_pool_step and psi_pool_step_end, but in psi_pool_recall and from psi_pool_step_layer on.
 */
PSI_API void psi_pool_states(psi_pool *pool, unsigned char *states);

/* Frees every block: EMPTY, all pages to the system. */
PSI_API void psi_pool_clear(psi_pool *pool);

/* Brings a STORED block back now. Returns 0; -ENOENT when it is DROPPED, -EIO when its bytes are
 * lost, -EINVAL for an unknown id. */
PSI_API int psi_block_restore(psi_pool *pool, psi_block_id block);

/* The engine's safe point: no step is running (psi_pool_step_end is implied), and each block that the coming step must
 * be able to read has been named with psi_block_used (and each that it writes with psi_block_write) since the last safe
 * point. Trims and restores happen here. Returns the number of blocks that moved here, or -EINVAL for NULL. */
PSI_API int psi_pool_step(psi_pool *pool);

/* A safe point inside a step, between two of its layers, for steps that take long. From here until the next call the
 * step reads, of the blocks that it does not write, the planes [first_plane, first_plane + planes) of each lane and no
 * other; those that it read before are free. What was asked for since is given back here. Until the next call the
 * watcher's thread may take blocks, too, if the store has their bytes: what the step reads of them stays in place as
 * long. Returns the number of moves since the last psi_pool_states: if above 0, read the states anew, and hide what is
 * out from this and all later layers. Once called in a step it must be called before each further layer, and the step
 * must end with psi_pool_step_end. With all planes nothing goes until the next call. The step's own results are those
 * of a cache without the hidden blocks in the later layers only. Errors: -EINVAL for NULL, planes that are not there,
 * or when no step runs. */
PSI_API int psi_pool_step_layer(psi_pool *pool, uint32_t first_plane, uint32_t planes);

/* Says that the step is over: until the next psi_pool_step no block is read or written. Optional; it lets
 * an idle engine's blocks be stored (they are restored when a step names them again). */
PSI_API void psi_pool_step_end(psi_pool *pool);

/* Non-zero when not even an exchange is possible now: pressure above the limit, and no block left that
 * could go for a new one to come at the next safe point. Any thread. */
PSI_API int psi_pool_refuses(const psi_pool *pool);

/* ---- malloc-shaped, for engines that take an allocator ---------------------------------------- */

/* Whole blocks of the process's default pool (PSI_CACHE_KV_BYTES of address space, by default half
 * the machine's memory), zeroed, aligned to 64 bytes or more. NULL with errno EAGAIN under pressure,
 * ENOMEM when the pool is used up. Memory handed out is never trimmed behind its owner's back. Any
 * thread. */
PSI_API void *psi_kv_malloc(size_t bytes);
PSI_API void psi_kv_free(void *address);

/* ---- By hand, and what happened --------------------------------------------------------------- */

/* Asks every pool to give back `share` (above 0, up to 1) of its resident bytes, or to restore all that is
 * stored as far as half of what is free allows, at its next safe point. Return 0 or -EINVAL. Any thread. NULL: all
 * caches of the process. */
PSI_API int psi_cache_trim(psi_cache *cache, double share);
PSI_API int psi_cache_restore(psi_cache *cache);

/* Sets an option while the cache runs, from the next step on: "policy", "recall" and "exact" ("on", "off"),
 * "score_share", "recall_share"; values as in the environment. Returns 0, -ENOENT for another name, -EINVAL for a value
 * that it does not take, -ENODEV when no cache is open. Any thread. NULL: all caches of the process. */
PSI_API int psi_cache_set(psi_cache *cache, const char *name, const char *value);

typedef struct psi_stats {
    size_t size;
    double index;          /* the pressure index: the largest of the four below */
    double index_stall;    /* from PSI stall time */
    double index_headroom; /* from what is free against the reserve */
    double index_forecast; /* from what will be free `horizon_us` from now at this fill rate */
    double index_thrash;   /* from major faults of the own process while memory is scarce */
    double high, low;
    uint64_t headroom_bytes; /* UINT64_MAX: not known */
    uint64_t limit_bytes;    /* what the headroom is measured against; UINT64_MAX: not known */
    int64_t fill_bytes_per_s;
    uint64_t capacity_bytes; /* address space of all pools */
    uint64_t resident_bytes; /* of blocks in memory */
    uint64_t stored_bytes;
    uint64_t dropped_bytes;
    uint64_t trims;         /* times that a pool gave something back */
    uint64_t restores;      /* times that a pool took something again */
    uint64_t refusals;      /* blocks or steps refused */
    uint64_t trimmed_bytes; /* in all */
    uint64_t restored_bytes;
    uint64_t store_errors; /* writes or reads that failed; no wrong byte was used */
    uint64_t steps;        /* safe points passed */
    uint64_t pools;
    uint64_t mode;             /* 0 auto, 1 psi, 2 avg10 */
    uint64_t band;             /* of the last decision: 0 none, 1 comfort (stall), 2 safety (bytes and time) */
    uint64_t guarded;          /* 1: a trim for stall is due and withheld (no scarcity, no effect, or budget spent) */
    uint64_t effect;           /* of the last trim: 0 none, 1 waits, 2 good, 3 eaten by others at once, 4 futile */
    uint64_t missing_bytes;    /* of the own mapped files (weights): taken by reclaim and wanted back */
    uint64_t ceiling_bytes;    /* the cache does not regrow past this for now; UINT64_MAX: no such bound */
    uint64_t safety_trims;     /* times that bytes and time called for a trim */
    uint64_t comfort_trims;    /* times that stall or thrash did */
    uint64_t guarded_trims;    /* times that one was withheld */
    uint64_t trim_cycles;      /* runs of trims without a restore between them */
    uint64_t regrow_cycles;    /* runs of restores without a trim between them */
    uint64_t reaction_last_us; /* from the last reading that showed no need to the first page returned */
    uint64_t reaction_most_us;
    uint64_t written_bytes;       /* to the store */
    uint64_t clean_bytes;         /* resident, and in the store already: can go without a write */
    uint64_t readings;            /* of the signals */
    uint64_t trigger_events;      /* genuine ones of the kernel's PSI triggers and the service manager */
    uint64_t reserve_bytes;       /* the mapping in use: headroom that reads 0.7 */
    uint64_t reaction_us;         /* the same: time to give memory back, learned */
    double write_bytes_per_s;     /* the same: of the store, learned */
    double stall_normal_share;    /* learned: stall while memory is plenty */
    double stall_at_anchor;       /* the mapping in use: stall that reads 0.7 */
    double fill_most_bytes_per_s; /* learned: the highest fill rate seen */
    double stall_some_share;      /* raw, over about a second; negative: not known */
    double avg10_share;           /* the kernel's, for comparison; negative: not known */
    double refaults_per_s;        /* negative: not known */
    double major_faults_per_s;    /* negative: not known */
    char grower[96];              /* the cgroup that grew most around the last trim; "" not known */
    char staller[96];             /* the one that stalled most */
    uint64_t recalls;             /* exchanges of hidden blocks that were wanted */
    uint64_t recalled_bytes;
    uint64_t recall_us;            /* spent on them */
    uint64_t recomputed_bytes;     /* of dropped blocks, computed again from their tokens; part of restored_bytes */
    uint64_t recompute_us;         /* spent on it */
    uint64_t store_hour_bytes;     /* handed to the store's disk in the last hour */
    uint64_t store_hour_max_bytes; /* the bound on it; 0: none */
    uint64_t withheld_bytes;       /* of remote pools: blocks that their engine may not use for now */
} psi_stats;

/* Fills *stats, of which size must be set (fields past it are left alone). NULL cache: all caches of the process
 * together (the index is the highest). Any thread. Errors: -EINVAL (size not set), -ENODEV (no cache is open). */
PSI_API int psi_stats_read(psi_cache *cache, psi_stats *stats);

/* "0.1.0" */
PSI_API const char *psi_version(void);

#ifdef __cplusplus
}
#endif
#endif
