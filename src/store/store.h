/* store.h - where evicted bytes rest. Records of one fixed size a store; a record comes back exactly as it
 * was written, or not at all. Knows nothing of pressure or blocks. One caller at a time (the pool's lock). */
#ifndef PSI_STORE_H
#define PSI_STORE_H

#include <stddef.h>
#include <stdint.h>

#define PSI_SLOT_NONE UINT32_MAX

typedef struct psi_store psi_store;

/* "file": an unlinked file of mode 0600 in `directory`, at most max_bytes long. "none": every write answers
 * -ENOTSUP. record_bytes must be a multiple of 4096. `slots` is the most records that will ever be needed.
 * *store is set on success. Errors: -EINVAL (kind), -ENOMEM, or why the directory cannot be used. */
int psi_store_open(psi_store **store, const char *kind, const char *directory, uint64_t max_bytes, size_t record_bytes,
                   uint32_t slots);
void psi_store_close(psi_store *store);

/* Sets a slot aside for psi_store_put. -ENOSPC when the store is full, -ENOTSUP for kind "none", -EPERM in a forked
 * child. psi_store_free hands it back. */
int psi_store_reserve(psi_store *store, uint32_t *slot);

/* Writes a record from page-aligned memory to a reserved slot. -ENOSPC when the disk is full, else the system's error;
 * the slot stays reserved. Needs no lock: while it runs, others may use other slots. */
int psi_store_put(psi_store *store, uint32_t slot, const void *record);

/* Reads it back: *record is where its bytes are, until the next call: `room`, which is page-aligned and as large as a
 * record, or memory of the store's own. -EIO also when the bytes are not those that were written. Records that are
 * asked for in the order of their slots are read ahead, small ones many at once: a disk takes as long for a small
 * request as for a larger one, and reads on while the caller uses the last. psi_store_rest gives back the memory that
 * this took, when there is nothing more to read; it waits for no disk: what is being read just then stays until the
 * next rest. */
int psi_store_read(psi_store *store, uint32_t slot, void *room, const void **record);
void psi_store_rest(psi_store *store);

/* The same, tried again where it fails: a direct read may for want of memory, just then. */
enum { PSI_READ_TRIES = 3 };
int psi_store_read_again(psi_store *store, uint32_t slot, void *room, const void **record);

/* The same in two: get needs no lock, and what it got counts only if check, called while nobody can reuse the slot,
 * says 0. */
int psi_store_get(const psi_store *store, uint32_t slot, void *record);
int psi_store_check(const psi_store *store, uint32_t slot, const void *record);

/* Forgets a record; its slot is used again. Never waits for the disk. PSI_SLOT_NONE is ignored. */
void psi_store_free(psi_store *store, uint32_t slot);

/* Gives the disk's room of forgotten records back, one at a time: take one that no record uses (PSI_SLOT_NONE: there is
 * none), free its room (needs no lock, and may wait for the disk), hand it back. */
uint32_t psi_store_take_idle(psi_store *store);
void psi_store_vacate(const psi_store *store, uint32_t slot);
void psi_store_hand_back_idle(psi_store *store, uint32_t slot);

#endif
