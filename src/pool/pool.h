/* pool.h - the pool's inside: blocks and their states, the memory they lie in, trims and restores. For the
 * files of this room only. Everything below is guarded by pool->lock but for what says otherwise. */
#ifndef PSI_POOL_H
#define PSI_POOL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "policy/policy.h"
#include "psicache.h"
#include "store/store.h"

typedef struct psi_block {
    uint8_t state;    /* psi_block_state */
    bool handed_out;  /* psi_block_alloc gave it away */
    bool pinned;      /* psi_kv_malloc'ed: its owner is not told of moves, so it makes none */
    bool hidden;      /* taken while a step wanted it: comes back when there is room, not at once */
    bool releasing;   /* scratch of one trim */
    bool lingers;     /* out, but for the planes that the step reads just now */
    bool lent;        /* psi_block_borrow: it was hidden */
    bool settled;     /* written before the coming step, and not by it */
    uint32_t slot;    /* its copy in the store, the same bytes while RESIDENT (clean); PSI_SLOT_NONE */
    uint32_t run;     /* blocks of the psi_kv_malloc run that starts here */
    uint64_t age;     /* running number of its last write; writes in a row count once */
    uint64_t written; /* number of the step that wrote it last, or before which it was written */
    uint64_t version; /* of its content: another one with each write */
    uint64_t used;    /* number of the step that read or wrote it last */
    uint64_t held;    /* number of the step through which it stays: it was read outside of any, and not by this one */
    uint64_t fresh;   /* number of the step before which it became RESIDENT from EMPTY */
    float attention;  /* psi_block_score's, fading; PSI_SCORE_UNKNOWN */
    float keys;       /* the same of its keys */
    float want;       /* how much the queries of late wanted it, resident or not, fading; PSI_SCORE_UNKNOWN */
    bool leaving;     /* a recall would take it: the writer writes it first */
} psi_block;

/* A hidden block's bytes on their way from the store: asked for by the engine's thread, read by the writer's. */
typedef enum psi_fetch_state {
    PSI_FETCH_FREE,
    PSI_FETCH_ASKED,
    PSI_FETCH_READING,
    PSI_FETCH_READY,
    PSI_FETCH_FAILED
} psi_fetch_state;

typedef struct psi_fetch {
    psi_fetch_state state;
    uint32_t block, slot;
    uint64_t version;      /* of the block, when it was asked for */
    unsigned char *record; /* no page while FREE */
} psi_fetch;

enum { PSI_FETCH_BLOCKS = 4 };

struct psi_pool {
    psi_pool *next; /* in the cache's list, under the cache's lock */
    psi_cache *cache;
    char name[32];
    pthread_mutex_t lock;
    size_t page_bytes;
    void *arena; /* own address space, or NULL when adopted */
    size_t arena_bytes;
    psi_plane *planes; /* lane by lane */
    uint32_t planes_per_lane, lanes, lane_blocks, blocks;
    size_t block_total_bytes; /* of one block over all its planes */
    psi_block *block;
    psi_candidate *candidates; /* scratch, one a block */
    unsigned char *record;     /* scratch: one block, page-aligned; under the lock */
    unsigned char *ahead;      /* the same for psi_clean_one, which writes it without the lock */
    size_t record_bytes;
    _Atomic(const psi_policy *) policy;
    psi_store *store; /* NULL: could not be opened; as "none" */
    uint32_t keep_first, keep_newest;
    uint64_t floor_bytes;
    uint64_t admit_bytes; /* so much it may have under pressure, too: the floor or more */
    psi_block_moved_fn moved;
    void *moved_user;
    uint64_t step; /* the step that runs, or ran last */
    bool in_step;
    uint64_t step_end_us;
    /* Inside a step, from its first psi_pool_step_layer on: of blocks that the step does not write it reads these
     * planes only, [first, end). What goes meanwhile leaves them in place until the next call. */
    bool layered;
    uint32_t read_first, read_end;
    uint64_t moves_told;                /* of moves, at the last psi_pool_states */
    uint64_t writes;                    /* the highest age given */
    uint32_t last_written;              /* block */
    uint64_t moves;                     /* of blocks, from or to RESIDENT */
    uint64_t store_granted_bytes;       /* of the cache's store_max_bytes */
    uint32_t resident, stored, dropped; /* blocks */
    uint32_t hidden;                    /* of the stored: blocks that the last step would have read */
    uint64_t trims, restores, refusals, trimmed_bytes, restored_bytes, store_errors;
    uint64_t returned_bytes; /* to the system, in whole pages: less than trimmed where blocks share pages */
    bool store_error_said, read_error_said, drop_said;
    /* After a failed write the store is left alone for a while; see clean.c. */
    int write_error; /* the last; 0: the last write succeeded */
    uint64_t write_pause_us, write_again_us;
    /* Requests from the watcher and from other processes, taken at the next safe point; any thread. */
    _Atomic uint64_t want_trim_bytes, want_restore_bytes;
    _Atomic uint64_t want_write_bytes;   /* of blocks that go next: to be written by the writer */
    _Atomic uint64_t may_drop_bytes;     /* of want_trim_bytes: so many may go though the store has them not */
    _Atomic uint32_t want_trim_permille; /* by hand */
    _Atomic bool want_restore_all;       /* by hand */
    _Atomic bool refuses;
    _Atomic bool
        may_write; /* what the watcher asked for may be written to the store inside a step: the writer could not */
    _Atomic bool may_drop;                                 /* a full store: lose the block rather than the process */
    uint64_t evictable_bytes;                              /* could go without passing the floor, as last surveyed */
    uint64_t unwritten_bytes;                              /* of those, what the store has not yet */
    uint64_t clean_bytes;                                  /* resident, and in the store already */
    uint64_t written_bytes, write_us, read_bytes, read_us; /* to and from the store, and how long that took */
    uint64_t given_at_us, first_given_at_us; /* when a trim last gave pages back, and first in answer to an ask */
    bool admits;          /* a new block, under pressure too: one can go for it, or admit_bytes has room */
    uint32_t fresh;       /* blocks that became RESIDENT from EMPTY since the last safe point */
    uint64_t scored_step; /* the last one in which attention was scored */
    uint64_t recalls, recalled_bytes, recall_us; /* exchanges of hidden blocks for others */
    uint32_t recomputable;                       /* dropped blocks that the last step would have read, and that the
                                                    engine can compute again */
    uint64_t want_recompute_bytes;               /* it may bring back now; UINT64_MAX: all, by hand */
    uint64_t recomputed_bytes, recompute_us;
    bool is_remote; /* remote.c: counts of memory that lies elsewhere, and no block here */
    int wake_fd;    /* rung when something is asked of it; 0: none */
    psi_pool_counts counts;
    psi_fetch fetches[PSI_FETCH_BLOCKS];
    _Atomic bool wants_fetch; /* some are ASKED; the writer's to clear */
    _Atomic bool wants_tidy;  /* blocks were freed whose records have room on the disk; the writer's to clear */
};

/* What a trim may touch. */
typedef enum psi_trim_scope {
    PSI_TRIM_ASLEEP, /* blocks that the present step cannot read and the store has: any thread, at any time */
    PSI_TRIM_CLEAN,  /* and then the policy's choice of the rest, what the store has: the engine's thread, at a safe
                        point */
    PSI_TRIM_ALL,    /* the same, what the store has not is written now */
    PSI_TRIM_DROP    /* the same, what the store has not is lost */
} psi_trim_scope;

/* layout.c: where a block's bytes are. */
size_t psi_layout_block_bytes(const psi_pool *pool, uint32_t block);
void psi_layout_gather(const psi_pool *pool, uint32_t block, unsigned char *record);
void psi_layout_scatter(psi_pool *pool, uint32_t block, const unsigned char *record);
/* Gives back every page on which nothing but blocks out of memory lie, next to blocks marked `releasing`, and
 * takes the marks off. Bytes that went to the system. */
uint64_t psi_layout_give_back(psi_pool *pool);
/* Bytes of the pages on which nothing but the block and blocks out of memory lie: what its going returns, and what its
 * coming takes. */
uint64_t psi_layout_own_bytes(const psi_pool *pool, uint32_t block);
/* The same for what was left because the step read it. */
uint64_t psi_layout_give_back_lingering(psi_pool *pool);

/* pool.c: psi_pool_states, where something moved since the last call of either. Engine's thread; takes the lock. */
void psi_pool_states_follow(psi_pool *pool, unsigned char *states);

/* blocks.c: the states; the one function that moves a block. */
void psi_block_move(psi_pool *pool, uint32_t block, psi_block_state to);
int psi_block_bring_back(psi_pool *pool, uint32_t block);
/* The same in two: a STORED block's bytes, good until the next call that reads or writes the store, or NULL when they
 * are lost (it is DROPPED then); and their way back into memory. */
const unsigned char *psi_block_read(psi_pool *pool, uint32_t block);
void psi_block_fill(psi_pool *pool, uint32_t block, const unsigned char *record);
/* A STORED block cannot be read: counts it, says the first, and moves it to DROPPED. */
void psi_block_lose(psi_pool *pool, uint32_t block, int error);

/* blocks.c, for engines that compute dropped blocks again; they take the pool's lock. The block becomes RESIDENT, and
 * does not go before the next step: the caller fills it now. It is not newer for that. Bytes of it, if it was DROPPED.
 */
uint64_t psi_block_revive(psi_pool *pool, uint32_t block);
/* How many bytes may be brought back so in this step; `recomputable` is how many blocks wait for it. */
uint64_t psi_pool_wants_recompute(psi_pool *pool, uint32_t recomputable);
void psi_pool_end_recompute(psi_pool *pool);
void psi_pool_count_recompute(psi_pool *pool, uint64_t bytes, uint64_t took_us);

/* trim.c. Bytes given back, not below floor_bytes of resident ones; bytes restored. */
uint64_t psi_trim(psi_pool *pool, uint64_t want_bytes, psi_trim_scope scope, uint64_t floor_bytes);
uint64_t psi_regrow(psi_pool *pool, uint64_t want_bytes);
uint64_t psi_wake_wanted(psi_pool *pool);
/* The next stored blocks that `takes` names, from block *from on, as many as `most`, in a heap of candidates whose top
 * lies first in the store: it is read from its begin to its end, whatever order they went in. */
typedef bool (*psi_trim_takes)(const psi_pool *pool, uint32_t block);
size_t psi_trim_collect_stored(psi_pool *pool, uint32_t *from, uint64_t most, psi_trim_takes takes);
/* Counts anew what could go (evictable_bytes, admits) and what waits to come back (hidden). */
void psi_trim_survey(psi_pool *pool);
/* With one block more, too, it has no more than admit_bytes. */
bool psi_trim_has_admission(const psi_pool *pool);
/* The resident block that would go next and that the store has not yet; PSI_BLOCK_NONE when there is none. */
uint32_t psi_trim_next_unwritten(psi_pool *pool, psi_trim_scope scope);

/* score.c: what is known of a block's worth, for the policy; candidates rated by it. */
psi_candidate psi_score_candidate(const psi_pool *pool, uint32_t block);
void psi_score_rate(const psi_pool *pool, psi_candidate *candidates, size_t count);
void psi_score_forget(psi_block *b);

/* recall.c: exchanges hidden blocks whose bytes were fetched, if they are still wanted. */
void psi_recall_fetched(psi_pool *pool);
/* Forgets what was wanted so far. Takes the pool's lock. */
void psi_recall_forget(psi_pool *pool);

/* fetch.c. Asks for a STORED block, if it is not asked for already; false: too many are. */
bool psi_fetch_ask(psi_pool *pool, uint32_t block);
/* Reads one that was asked for; writer's thread, without the lock. False: there was none. */
bool psi_fetch_one(psi_pool *pool);
/* A block's bytes, if they were read and are still its own; NULL. Released with all others that were read. */
const unsigned char *psi_fetch_record(psi_pool *pool, uint32_t block);
bool psi_fetch_any_ready(psi_pool *pool);
/* A block that could not be read; PSI_BLOCK_NONE when there is none more. */
uint32_t psi_fetch_take_failed(psi_pool *pool);
void psi_fetch_release(psi_pool *pool);
void psi_fetch_close(psi_pool *pool);

/* trim.c, for recall.c: true when a recall may take the block; has the store take its bytes (false: it cannot); then
 * takes it. */
bool psi_trim_may_take(const psi_pool *pool, uint32_t block);
bool psi_trim_make_clean(psi_pool *pool, uint32_t block);
void psi_trim_take(psi_pool *pool, uint32_t block);

/* blocks.c: makes block `to`, of another lane and the same place in it, a copy of a STORED one, in the store alone. 0,
 * or a negative errno: then `to` is EMPTY. Engine's thread; takes the lock. */
int psi_block_copy_stored(psi_pool *pool, uint32_t from, uint32_t to);

/* pool.c: the block's content begins to change: under the lock. It is not copied or taken before the coming step has
 * ended, or psi_block_settle says that it is whole: written outside of steps, and not by the coming one (unless that is
 * said after it). Takes the lock. */
void psi_block_changes(psi_pool *pool, uint32_t block);
void psi_block_settle(psi_pool *pool, uint32_t block);
/* What is in an adopted pool's memory already is RESIDENT and whole. No step pays for it, unless the coming one adds
 * it. Takes the lock. */
void psi_block_found(psi_pool *pool, uint32_t block, bool is_added);

/* trim.c: the owner changes a stored block where it lies, outside of steps. Its bytes come back, and the store's copy
 * is forgotten; then they go to the store anew. Engine's thread; takes the lock. */
int psi_block_borrow(psi_pool *pool, uint32_t block);
void psi_block_put_away(psi_pool *pool, uint32_t block);

/* clean.c: writes the block that would go next to the store, so that giving it up costs no write. Watcher's thread,
 * without the pool's lock, which is held for the copying only. Bytes written; 0 when there is nothing to write; a
 * negative errno when the store cannot take it. */
int64_t psi_clean_one(psi_pool *pool, psi_trim_scope scope);
/* Writes pool->record to the store; under the lock. 0, or why not. */
int psi_clean_write_record(psi_pool *pool, uint32_t *slot);
/* After a failed write: why, until it is time to try again; then 0. */
int psi_clean_pause(const psi_pool *pool);
bool psi_clean_is_full(int error);
/* Counts an error of writing, and says the first. */
void psi_clean_say_error(psi_pool *pool, int error);
/* Frees the disk's room of one forgotten record; writer's thread, without the lock. False: there is none. */
bool psi_clean_tidy_one(psi_pool *pool);

/* pool.c, for remote.c: options of an older caller filled up (false: not sound); the floor of a pool of so many bytes.
 */
bool psi_pool_read_options(psi_pool_options *known, const psi_cache *cache, const psi_pool_options *options);
uint64_t psi_pool_floor_bytes(const psi_pool *pool, const psi_pool_options *options, uint64_t capacity_bytes);

/* remote.c. As psi_trim_survey, from what the owner reported; wakes the owner, any thread; what was asked of a pool and
 * is not given yet (of a remote one, what its owner is giving, too). */
void psi_remote_survey(psi_pool *pool);
void psi_remote_ring(const psi_pool *pool);
uint64_t psi_pool_pending_bytes(const psi_pool *pool);

/* pool.c: restored less returned to the system, at most 0. */
int64_t psi_pool_own_balance_bytes(const psi_pool *pool);

/* pool.c: gives back what was asked for by hand and by the watcher, beyond what was `given` already. Engine's thread,
 * at a safe point. Bytes, with those. */
uint64_t psi_pool_give_as_asked(psi_pool *pool, uint64_t given);

/* layer.c: what the step read last it reads no more. */
void psi_layer_end(psi_pool *pool);

/* pool.c: counts a step or block that the engine was refused. Any thread. */
void psi_pool_count_refusal(psi_pool *pool);

/* cache.c: what a pool needs of its cache. */
bool psi_cache_refuses(const psi_cache *cache);
/* Takes up to want_bytes of the room that may be filled again before the next reading: half of what is free, for all
 * pools together, so that no step ends the process by what it names. */
uint64_t psi_cache_take_room(psi_cache *cache, uint64_t want_bytes);
/* All of it or nothing. */
bool psi_cache_take_whole_room(psi_cache *cache, uint64_t want_bytes);
/* Has the watcher read anew, at once; the engine's thread, between two portions that it takes. */
void psi_cache_look_again(psi_cache *cache);
/* Has the writer read what was asked for. */
void psi_cache_wake_writer(psi_cache *cache);
/* Counts bytes that are about to be written to a store, within the hour's bound; `must`: a trim needs them written. 0,
 * or -EAGAIN when they may not. And whether they might, without counting: for an exchange. */
int psi_cache_take_write(psi_cache *cache, uint64_t bytes, bool must);
bool psi_cache_may_write(psi_cache *cache, uint64_t bytes);
/* Has the writer free the disk's room of forgotten records, once it has nothing else to do. */
void psi_cache_tidy(psi_cache *cache);
bool psi_cache_is_pressed(const psi_cache *cache);
bool psi_cache_recalls(const psi_cache *cache);
/* No step runs without a block that it reads: none is hidden. */
bool psi_cache_is_exact(const psi_cache *cache);
double psi_cache_score_share(const psi_cache *cache);
double psi_cache_recall_share(const psi_cache *cache);
uint64_t psi_cache_recall_us(const psi_cache *cache);
bool psi_cache_recomputes(const psi_cache *cache);
uint64_t psi_cache_recompute_us(const psi_cache *cache);
/* True while a trim is near or on its way: the index is above the lower limit. */
bool psi_cache_is_uneasy(const psi_cache *cache);
/* Memory is getting scarce, and there is time to write ahead. */
bool psi_cache_is_scarce(const psi_cache *cache);
int psi_cache_open_store(psi_cache *cache, psi_pool *pool);
void psi_cache_add_pool(psi_cache *cache, psi_pool *pool);
void psi_cache_remove_pool(psi_cache *cache, psi_pool *pool);
uint64_t psi_cache_floor_bytes(const psi_cache *cache);

/* True in a child of fork(): the store's file and the numbers are the parent's. */
bool psi_is_forked_child(const psi_cache *cache);

/* log.c */
typedef struct psi_log {
    psi_log_fn fn;
    void *user;
    int level;
} psi_log;
void psi_log_line(const psi_log *log, psi_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
const psi_log *psi_cache_log(const psi_cache *cache);

#endif
