/* trim.c - psi-cache trim and psi-cache restore: write a request on a board, and say what came of it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pool/board.h"
#include "tool/tool.h"

enum { MOST_PROCESSES = 1024, PATIENCE_MS = 2000, LOOK_EVERY_MS = 10 };

typedef enum outcome {
    WAITING, /* not even taken yet */
    TAKEN,   /* by the watcher; the engine has not come to a safe point */
    DONE,
    GONE,      /* the process ended, or has no board */
    UNMANAGED, /* no cache of its is ours */
    NEEDLESS   /* nothing resident to trim, nothing stored or dropped to restore */
} outcome;

typedef struct request {
    int64_t pid;
    psi_board *board;
    bool is_trim;
    uint32_t permille;
    outcome outcome;
    int error;
    char engine[128];
    psi_stats before, after;
} request;

/* What may come back: dropped blocks, too, where the engine can compute them again. */
static uint64_t out_bytes(const psi_stats *s) { return s->stored_bytes + s->dropped_bytes; }

static void open_request(request *asked) {
    asked->outcome = GONE;
    asked->board = psi_board_open(asked->pid);
    asked->error = asked->board ? 0 : errno;
    if (!asked->board)
        return;
    memcpy(asked->engine, asked->board->engine, sizeof asked->engine - 1);
    int error = psi_board_read_stats(asked->board, &asked->before);
    uint64_t wanted = asked->is_trim ? asked->before.resident_bytes : out_bytes(&asked->before);
    if (error != 0 || asked->before.size == 0 || asked->before.pools == 0)
        asked->outcome = UNMANAGED;
    else
        asked->outcome = wanted == 0 ? NEEDLESS : WAITING;
    asked->after = asked->before;
    if (asked->outcome != WAITING)
        return;
    if (asked->is_trim)
        atomic_store(&asked->board->trim_permille, asked->permille);
    else
        atomic_store(&asked->board->restore, 1);
}

static void look_again(request *asked) {
    _Atomic uint32_t *field = asked->is_trim ? &asked->board->trim_permille : &asked->board->restore;
    psi_stats now;
    if (asked->outcome == WAITING && atomic_load(field) == 0)
        asked->outcome = TAKEN;
    if (psi_board_read_stats(asked->board, &now) != 0)
        return;
    /* A trim is one cycle a pool: done once it stands still. A restore goes in small steps, to the last block. */
    bool done = asked->is_trim ? now.trimmed_bytes != asked->before.trimmed_bytes &&
                                     now.resident_bytes == asked->after.resident_bytes
                               : now.restored_bytes != asked->before.restored_bytes && out_bytes(&now) == 0;
    if (asked->outcome == TAKEN && done)
        asked->outcome = DONE;
    asked->after = now;
}

static bool is_open(const request *asked) { return asked->outcome == WAITING || asked->outcome == TAKEN; }

static void wait_for(request *asked, size_t count) {
    for (int waited = 0; waited < PATIENCE_MS; waited += LOOK_EVERY_MS) {
        bool any = false;
        nanosleep(&(struct timespec){.tv_nsec = LOOK_EVERY_MS * 1000000L}, NULL);
        /* The watcher writes its numbers at its own pace: look for movement in longer steps than for the rest. */
        for (size_t i = 0; i < count; i++) {
            if (is_open(&asked[i]) && waited % 100 == 0)
                look_again(&asked[i]);
            any = any || is_open(&asked[i]);
        }
        if (!any)
            return;
    }
}

static void report(const request *asked) {
    const psi_stats *a = &asked->before, *b = &asked->after;
    const char *verb = asked->is_trim ? "trim" : "restore";
    char from[TOOL_BYTES_TEXT], to[TOOL_BYTES_TEXT], moved[TOOL_BYTES_TEXT];
    uint64_t moved_bytes = asked->is_trim ? b->trimmed_bytes - a->trimmed_bytes : b->restored_bytes - a->restored_bytes;
    printf("%" PRId64 ": ", asked->pid);
    switch (asked->outcome) {
    case DONE:
    case TAKEN:
        if (moved_bytes > 0)
            printf("resident %s -> %s (%s %s%s)\n", tool_bytes(from, a->resident_bytes),
                   tool_bytes(to, b->resident_bytes), tool_bytes(moved, moved_bytes),
                   asked->is_trim ? "given back" : "restored",
                   asked->outcome == DONE ? "" : " so far; the rest follows");
        else if (b->steps != a->steps)
            printf("taken; nothing has moved so far: it is done at the next safe point, or %s\n",
                   asked->is_trim ? "what is left is the floor" : "under pressure nothing comes back");
        else
            printf("taken; done at the next safe point: the engine is idle, or in a long step\n");
        break;
    case WAITING:
        printf("not taken within 2 s: the process is stopped or very busy; the request stands\n");
        break;
    case NEEDLESS:
        printf("nothing to %s: %s\n", verb,
               asked->is_trim ? "no part of the cache is in memory" : "nothing is stored or dropped");
        break;
    case UNMANAGED:
        printf("no cache here is managed");
        if (asked->engine[0]) {
            printf(": ");
            tool_plain(stdout, asked->engine);
        }
        printf("\n");
        break;
    case GONE:
        if (asked->error == EPROTO)
            printf("runs under another version of psi-cache; use that one\n");
        else
            printf("no such process of yours runs under psi-cache\n");
        break;
    }
}

static int ask(request *asked, size_t count) {
    bool all_taken = true;
    for (size_t i = 0; i < count; i++)
        open_request(&asked[i]);
    wait_for(asked, count);
    for (size_t i = 0; i < count; i++) {
        report(&asked[i]);
        outcome o = asked[i].outcome;
        all_taken = all_taken && (o == DONE || o == TAKEN || o == NEEDLESS);
        psi_board_close(asked[i].board);
    }
    return all_taken ? TOOL_OK : TOOL_NOTHING;
}

static int ask_all(const char *name, const char *who, bool is_trim, uint32_t permille) {
    int64_t pids[MOST_PROCESSES];
    uint64_t pid = 0;
    size_t count = 1;
    if (strcmp(who, "all") == 0)
        count = psi_board_list(pids, MOST_PROCESSES);
    else if (!tool_parse_count(who, INT32_MAX, &pid))
        return tool_usage_error(name, "%s: give a process id, or all", who);
    else
        pids[0] = (int64_t)pid;
    if (count == 0) {
        fprintf(stderr, "psi-cache %s: none of your processes runs under psi-cache\n", name);
        return TOOL_NOTHING;
    }
    request *asked = calloc(count, sizeof *asked);
    if (!asked) {
        fprintf(stderr, "psi-cache %s: out of memory\n", name);
        return TOOL_NOTHING;
    }
    for (size_t i = 0; i < count; i++)
        asked[i] = (request){.pid = pids[i], .is_trim = is_trim, .permille = permille};
    int status = ask(asked, count);
    free(asked);
    return status;
}

int tool_trim(int argc, char **argv) {
    double share = 0.15;
    if (argc < 2 || argc > 3)
        return tool_usage_error("trim", "give a process id, or all, and optionally a share");
    if (argc == 3 && (!tool_parse_share(argv[2], &share) || share < 0.001))
        return tool_usage_error("trim", "%s: give a share from 0.001 to 1", argv[2]);
    return ask_all("trim", argv[1], true, (uint32_t)(share * 1000 + 0.5));
}

int tool_restore(int argc, char **argv) {
    if (argc != 2)
        return tool_usage_error("restore", "give one process id, or all");
    return ask_all("restore", argv[1], false, 0);
}
