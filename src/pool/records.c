/* records.c - a store without a pool, for memory that a remote pool only counts. Called by whoever holds that memory.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "os/os.h"
#include "pool/pool.h"
#include "pool/settings.h"
#include "store/budget.h"

#define DISK_PAGE_BYTES ((size_t)4096)

struct psi_records {
    pthread_mutex_t lock;
    psi_store *store;
    psi_budget budget;
    size_t record_bytes, room_bytes; /* as asked for; whole pages of the disk */
    unsigned char *joined;           /* one record, page-aligned; zero past record_bytes */
    unsigned char *has;              /* of each number: it was written, and can be read */
    uint32_t count;
};

/* All at once: the numbers are their owner's. */
static uint32_t reserve_all(psi_store *store) {
    uint32_t count = 0, slot;
    while (psi_store_reserve(store, &slot) == 0) {
        count++;
    }
    return count;
}

static int prepare(psi_records *made, const psi_settings *settings, uint32_t records) {
    made->joined = psi_os_reserve(made->room_bytes);
    made->has = calloc((size_t)records + 1, 1);
    if (made->joined == NULL || made->has == NULL) {
        return -ENOMEM;
    }
    memset(made->joined, 0, made->room_bytes); /* no page is to be found under pressure */
    int error = psi_store_open(&made->store, settings->store, settings->store_dir, settings->store_max_bytes,
                               made->room_bytes, records);
    if (error == 0) {
        made->count = reserve_all(made->store);
        error = made->count == 0 ? -ENOSPC : 0;
    }
    return error;
}

static psi_records *open_records(const psi_settings *settings, size_t record_bytes, uint32_t records) {
    psi_records *made = calloc(1, sizeof(*made));
    if (made == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    pthread_mutex_init(&made->lock, NULL);
    psi_budget_open(&made->budget, settings->store_hour_max_bytes);
    made->record_bytes = record_bytes;
    made->room_bytes = (record_bytes + DISK_PAGE_BYTES - 1) / DISK_PAGE_BYTES * DISK_PAGE_BYTES;
    int error = prepare(made, settings, records);
    if (error != 0) {
        psi_records_close(made);
        errno = -error;
        return NULL;
    }
    return made;
}

psi_records *psi_records_open(const psi_options *options, size_t record_bytes, uint32_t records) {
    psi_settings settings;
    if (record_bytes == 0 || record_bytes > SIZE_MAX - DISK_PAGE_BYTES || records == 0 || records == UINT32_MAX ||
        psi_settings_resolve(&settings, options) != 0) {
        errno = EINVAL;
        return NULL;
    }
    if (strcmp(settings.store, "none") == 0) {
        errno = ENOTSUP;
        return NULL;
    }
    return open_records(&settings, record_bytes, records);
}

uint32_t psi_records_count(const psi_records *records) { return records != NULL ? records->count : 0; }

static bool fits(const psi_records *records, uint32_t number, const psi_part *parts, uint32_t count) {
    if (records == NULL || parts == NULL || number >= records->count) {
        return false;
    }
    size_t left = records->record_bytes;
    for (uint32_t i = 0; i < count; i++) {
        if (parts[i].address == NULL || parts[i].bytes > left) {
            return false;
        }
        left -= parts[i].bytes;
    }
    return left == 0;
}

static int put(psi_records *records, uint32_t number, const psi_part *parts, uint32_t count) {
    records->has[number] = 0;
    psi_store_rest(records->store); /* who writes is short of memory */
    if (!psi_budget_take(&records->budget, records->room_bytes, psi_os_now_us())) {
        return -EDQUOT;
    }
    unsigned char *next = records->joined;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(next, parts[i].address, parts[i].bytes);
        next += parts[i].bytes;
    }
    int error = psi_store_put(records->store, number, records->joined);
    records->has[number] = error == 0;
    return error;
}

int psi_records_put(psi_records *records, uint32_t number, const psi_part *parts, uint32_t count) {
    if (!fits(records, number, parts, count)) {
        return -EINVAL;
    }
    pthread_mutex_lock(&records->lock);
    int error = put(records, number, parts, count);
    pthread_mutex_unlock(&records->lock);
    return error;
}

static int get(psi_records *records, uint32_t number, const psi_part *parts, uint32_t count) {
    if (!records->has[number]) {
        return -ENOENT;
    }
    const void *record = NULL;
    int error = psi_store_read_again(records->store, number, records->joined, &record);
    if (error != 0) {
        records->has[number] = 0;
        return error;
    }
    const unsigned char *next = record;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(parts[i].address, next, parts[i].bytes);
        next += parts[i].bytes;
    }
    return 0;
}

int psi_records_get(psi_records *records, uint32_t number, const psi_part *parts, uint32_t count) {
    if (!fits(records, number, parts, count)) {
        return -EINVAL;
    }
    pthread_mutex_lock(&records->lock);
    int error = get(records, number, parts, count);
    pthread_mutex_unlock(&records->lock);
    return error;
}

void psi_records_forget(psi_records *records, uint32_t number) {
    if (records == NULL || number >= records->count) {
        return;
    }
    pthread_mutex_lock(&records->lock);
    if (records->has[number]) {
        records->has[number] = 0;
        psi_store_vacate(records->store, number);
    }
    pthread_mutex_unlock(&records->lock);
}

void psi_records_close(psi_records *records) {
    if (records != NULL) {
        psi_store_close(records->store);
        psi_budget_close(&records->budget);
        psi_os_unreserve(records->joined, records->room_bytes);
        pthread_mutex_destroy(&records->lock);
        free(records->has);
        free(records);
    }
}
