/* store.c - the file store: fixed slots in one unlinked file, a checksum a slot kept in memory. Called under the
 * pool's lock; allocates only when opened. */
#include "store/store.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "os/os.h"
#include "store/checksum.h"

/* Copies of the slots [first, first + count), as they were when read: they may be old by now, the checksum tells. */
typedef struct window {
    unsigned char *bytes;
    uint32_t first, count;
    bool touched; /* it has pages */
} window;

struct psi_store {
    int descriptor;     /* -1: kind "none" */
    int64_t process_id; /* that opened it: a forked child shares the file, and must not change it */
    size_t record_bytes;
    uint32_t slots, free_count;
    uint32_t *free_slots; /* a stack; the lowest slot on top at first */
    uint64_t *checksums;
    unsigned char *occupies; /* the slot has room on the disk, whether it is in use or not */

    _Atomic uint32_t written_slots; /* no slot from here on was ever written: there the file ends */
    uint32_t wanted_next;           /* the slot behind the last that was read */
    uint32_t window_slots;
    window windows[2]; /* one is used while the other is read */
    window *coming;    /* it is read just now */
    psi_os_read read;
};

enum { WINDOW_BYTES = 1 << 20, WINDOW_MOST_BYTES = 4 << 20 }; /* at least, in whole records; none for larger ones */

static int open_file(psi_store *store, const char *directory, uint64_t max_bytes, uint32_t slots) {
    uint64_t fit = max_bytes / store->record_bytes;
    store->slots = fit < slots ? (uint32_t)fit : slots;
    store->free_slots = calloc((size_t)store->slots + 1, sizeof(*store->free_slots));
    store->checksums = calloc((size_t)store->slots + 1, sizeof(*store->checksums));
    store->occupies = calloc((size_t)store->slots + 1, sizeof(*store->occupies));
    if (store->free_slots == NULL || store->checksums == NULL || store->occupies == NULL) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < store->slots; i++) {
        store->free_slots[i] = store->slots - 1 - i;
    }
    store->free_count = store->slots;
    store->descriptor = psi_os_open_unlinked(directory);
    return store->descriptor < 0 ? store->descriptor : 0;
}

/* None of large records, where it would be much memory. */
static uint32_t window_slots(size_t record_bytes) {
    return record_bytes > WINDOW_MOST_BYTES ? 0 : (uint32_t)((WINDOW_BYTES + record_bytes - 1) / record_bytes);
}

int psi_store_open(psi_store **store, const char *kind, const char *directory, uint64_t max_bytes, size_t record_bytes,
                   uint32_t slots) {
    int is_file = strcmp(kind, "file") == 0;
    if ((!is_file && strcmp(kind, "none") != 0) || record_bytes == 0 || record_bytes % 4096 != 0) {
        return -EINVAL;
    }
    psi_store *made = calloc(1, sizeof(*made));
    if (made == NULL) {
        return -ENOMEM;
    }
    made->descriptor = -1;
    made->process_id = psi_os_process_id();
    made->record_bytes = record_bytes;
    made->wanted_next = PSI_SLOT_NONE;
    made->window_slots = window_slots(record_bytes);
    int error = is_file ? open_file(made, directory, max_bytes, slots) : 0;
    if (error != 0) {
        psi_store_close(made);
        return error;
    }
    *store = made;
    return 0;
}

static size_t window_bytes(const psi_store *store) { return store->window_slots * store->record_bytes; }

void psi_store_close(psi_store *store) {
    if (store != NULL) {
        psi_os_read_close(&store->read);
        psi_os_close(store->descriptor);
        for (int i = 0; i < 2; i++) {
            psi_os_unreserve(store->windows[i].bytes, window_bytes(store));
        }
        free(store->free_slots);
        free(store->checksums);
        free(store->occupies);
        free(store);
    }
}

int psi_store_reserve(psi_store *store, uint32_t *slot) {
    if (store->descriptor < 0) {
        return -ENOTSUP;
    }
    if (store->process_id != psi_os_process_id()) {
        return -EPERM;
    }
    if (store->free_count == 0) {
        return -ENOSPC;
    }
    *slot = store->free_slots[--store->free_count];
    store->occupies[*slot] = 1;
    return 0;
}

/* Others may put just now. */
static void note_written(psi_store *store, uint32_t slot) {
    uint32_t end = atomic_load(&store->written_slots);
    while (slot >= end && !atomic_compare_exchange_weak(&store->written_slots, &end, slot + 1)) {
    }
}

int psi_store_put(psi_store *store, uint32_t slot, const void *record) {
    uint64_t offset = (uint64_t)slot * store->record_bytes;
    uint64_t sum = psi_checksum(record, store->record_bytes); /* before: of what was meant */
    int error = psi_os_write_at(store->descriptor, record, store->record_bytes, offset);
    error = error == 0 ? psi_os_flush(store->descriptor, offset, store->record_bytes) : error;
    if (error != 0) {
        return error;
    }
    psi_os_forget(store->descriptor, offset, store->record_bytes);
    store->checksums[slot] = sum;
    note_written(store, slot);
    return 0;
}

int psi_store_get(const psi_store *store, uint32_t slot, void *record) {
    if (slot >= store->slots) {
        return -EINVAL;
    }
    uint64_t offset = (uint64_t)slot * store->record_bytes;
    int error = psi_os_read_at(store->descriptor, record, store->record_bytes, offset);
    if (error == 0) {
        psi_os_forget(store->descriptor, offset, store->record_bytes);
    }
    return error;
}

int psi_store_check(const psi_store *store, uint32_t slot, const void *record) {
    return psi_checksum(record, store->record_bytes) == store->checksums[slot] ? 0 : -EIO;
}

/* ---- Reading, and reading ahead ----------------------------------------------------------------- */

static bool holds(const window *w, uint32_t slot) { return slot >= w->first && slot - w->first < w->count; }

/* Slots that nobody uses are read, too: that costs less than to look. Without memory for it there is none. */
static void begin_window(psi_store *store, window *w, uint32_t first) {
    uint32_t left = atomic_load(&store->written_slots) - first;
    w->count = 0;
    w->bytes = w->bytes != NULL ? w->bytes : psi_os_reserve(window_bytes(store));
    if (w->bytes == NULL) {
        return;
    }
    w->touched = true;
    w->first = first;
    w->count = left < store->window_slots ? left : store->window_slots;
    store->coming = w;
    psi_os_read_begin(&store->read, store->descriptor, w->bytes, w->count * store->record_bytes,
                      (uint64_t)first * store->record_bytes);
}

static void await_window(psi_store *store) {
    window *w = store->coming;
    store->coming = NULL;
    if (psi_os_read_end(&store->read) != 0) {
        w->count = 0;
    } else {
        psi_os_forget(store->descriptor, (uint64_t)w->first * store->record_bytes, w->count * store->record_bytes);
    }
}

/* Nobody wants what is on its way. False: the disk still writes there, and nobody waits for it. */
static bool drop_window(psi_store *store) {
    if (store->coming != NULL) {
        store->coming->count = 0;
        store->coming = psi_os_read_drop(&store->read) ? NULL : store->coming;
    }
    return store->coming == NULL;
}

/* The window that has the slot, and the one behind it is on its way; NULL: it is to be read alone. */
static const window *find_window(psi_store *store, uint32_t slot) {
    window *w = holds(&store->windows[1], slot) ? &store->windows[1] : &store->windows[0];
    if (!holds(w, slot)) {
        if (!drop_window(store)) { /* another was thought to be next */
            return NULL;
        }
        begin_window(store, w, slot);
    }
    if (w == store->coming) {
        await_window(store);
    }
    if (!holds(w, slot)) {
        return NULL;
    }
    window *other = w == store->windows ? &store->windows[1] : store->windows;
    uint32_t next = w->first + w->count;
    if (store->coming == NULL && next < atomic_load(&store->written_slots) && !holds(other, next)) {
        begin_window(store, other, next);
    }
    return w;
}

static const void *read_ahead(psi_store *store, uint32_t slot) {
    if (slot >= atomic_load(&store->written_slots) || store->window_slots == 0) {
        return NULL;
    }
    const window *w = find_window(store, slot);
    const unsigned char *record = w != NULL ? w->bytes + (slot - w->first) * store->record_bytes : NULL;
    return record != NULL && psi_store_check(store, slot, record) == 0 ? record : NULL;
}

/* Or it was read already with those before it: between them lie slots that nobody asks for. */
static bool goes_on_at(const psi_store *store, uint32_t slot) {
    return slot == store->wanted_next || holds(&store->windows[0], slot) || holds(&store->windows[1], slot);
}

int psi_store_read(psi_store *store, uint32_t slot, void *room, const void **record) {
    bool goes_on = goes_on_at(store, slot);
    store->wanted_next = slot + 1;
    *record = goes_on ? read_ahead(store, slot) : NULL;
    if (*record != NULL) {
        return 0;
    }
    *record = room;
    int error = psi_store_get(store, slot, room);
    return error == 0 ? psi_store_check(store, slot, room) : error;
}

int psi_store_read_again(psi_store *store, uint32_t slot, void *room, const void **record) {
    int error = -EIO;
    for (int tries = 0; tries < PSI_READ_TRIES && error != 0; tries++) {
        error = psi_store_read(store, slot, room, record);
    }
    return error;
}

void psi_store_rest(psi_store *store) {
    (void)drop_window(store);
    for (int i = 0; i < 2; i++) {
        window *w = &store->windows[i];
        w->count = 0;
        if (w->touched && w != store->coming) {
            w->touched = false;
            (void)psi_os_give_back(w->bytes, window_bytes(store));
        }
    }
    store->wanted_next = PSI_SLOT_NONE;
}

/* The room on the disk stays: freeing it may wait for the disk, and the slot is used again before any other. */
void psi_store_free(psi_store *store, uint32_t slot) {
    if (slot < store->slots && store->free_count < store->slots && store->process_id == psi_os_process_id()) {
        store->free_slots[store->free_count++] = slot;
    }
}

uint32_t psi_store_take_idle(psi_store *store) {
    uint32_t count = store->process_id == psi_os_process_id() ? store->free_count : 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = store->free_slots[i];
        if (store->occupies[slot]) {
            store->free_slots[i] = store->free_slots[--store->free_count];
            return slot;
        }
    }
    return PSI_SLOT_NONE;
}

void psi_store_vacate(const psi_store *store, uint32_t slot) {
    psi_os_punch(store->descriptor, (uint64_t)slot * store->record_bytes, store->record_bytes);
}

/* To the bottom: a slot that still has room on the disk is used before one that has none. */
void psi_store_hand_back_idle(psi_store *store, uint32_t slot) {
    store->occupies[slot] = 0;
    memmove(store->free_slots + 1, store->free_slots, store->free_count * sizeof(*store->free_slots));
    store->free_slots[0] = slot;
    store->free_count++;
}
