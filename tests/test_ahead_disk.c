/* test_ahead_disk.c - reading ahead on the real disk, where reads are truly under way: a writer puts into the same
 * windows meanwhile, the reader leaps, rests and forks, and no record ever comes back as another.
 *
 *     PSI_TEST_OPERATIONS=200000   reads, of each size of record (default 600)
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "os/os.h"
#include "store/store.h"

enum { MOST_SLOTS = 300, MEBI = 1 << 20 };

typedef struct shelf {
    psi_store *store;
    size_t record_bytes;
    pthread_mutex_t lock;
    uint32_t seed[MOST_SLOTS]; /* of what was written last; 0: nobody uses the slot */
    uint32_t slots;
    atomic_bool stops;
} shelf;

static unsigned long operations(void) {
    const char *text = getenv("PSI_TEST_OPERATIONS");
    return text != NULL ? strtoul(text, NULL, 10) : 600;
}

static uint32_t draw(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Each page says whose it is. */
static void fill(const shelf *s, unsigned char *record, uint32_t seed) {
    for (size_t at = 0; at < s->record_bytes; at += 4096) {
        memset(record + at, (int)(seed % 251), 4096);
        memcpy(record + at, &seed, sizeof(seed));
        memcpy(record + at + 4092, &seed, sizeof(seed));
    }
}

static bool is_of(const shelf *s, const unsigned char *record, uint32_t seed) {
    for (size_t at = 0; at < s->record_bytes; at += 4096) {
        if (memcmp(record + at, &seed, sizeof(seed)) != 0 || memcmp(record + at + 4092, &seed, sizeof(seed)) != 0 ||
            record[at + 2048] != seed % 251) {
            return false;
        }
    }
    return true;
}

/* As the pool's writer does it: only the bytes go without the lock. */
static void *write_on(void *argument) {
    shelf *s = argument;
    unsigned char *record = psi_os_reserve(s->record_bytes);
    for (uint32_t seed = 1; record != NULL && !atomic_load(&s->stops); seed++) {
        uint32_t slot = PSI_SLOT_NONE;
        pthread_mutex_lock(&s->lock);
        bool full = psi_store_reserve(s->store, &slot) != 0;
        pthread_mutex_unlock(&s->lock);
        if (full) {
            psi_os_pause_us(200);
            continue;
        }
        fill(s, record, seed);
        int error = psi_store_put(s->store, slot, record);
        pthread_mutex_lock(&s->lock);
        if (error == 0) {
            s->seed[slot] = seed;
        } else {
            psi_store_free(s->store, slot);
        }
        pthread_mutex_unlock(&s->lock);
    }
    psi_os_unreserve(record, s->record_bytes);
    return NULL;
}

/* 0: as it was written; 1: refused; 2: another's. */
static int look(shelf *s, uint32_t slot, unsigned char *room) {
    const void *record = NULL;
    int error = psi_store_read_again(s->store, slot, room, &record);
    return error != 0 ? 1 : is_of(s, record, s->seed[slot]) ? 0 : 2;
}

/* The parent may write anew what the child reads: that is refused, and never another's. */
static void look_in_a_child(shelf *s, uint32_t from, unsigned char *room) {
    pid_t child = fork();
    if (child == 0) {
        int worst = 0;
        for (uint32_t slot = from; slot < s->slots && slot < from + 40; slot++) {
            int came = s->seed[slot] != 0 ? look(s, slot, room) : 0;
            worst = came > worst ? came : worst;
        }
        _exit(worst);
    }
    pthread_mutex_unlock(&s->lock); /* the writer goes on beside the child */
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 2);
    pthread_mutex_lock(&s->lock);
}

static void read_runs(shelf *s, unsigned char *room, uint32_t state) {
    unsigned long reads =
        operations() * MOST_SLOTS / (MOST_SLOTS + s->record_bytes / 4096); /* large ones take longer */
    while (reads > 0) {
        uint32_t from = draw(&state) % s->slots, run = draw(&state) % 60 + 1;
        pthread_mutex_lock(&s->lock);
        for (uint32_t slot = from; slot < s->slots && slot < from + run && reads > 0; slot++) {
            if (s->seed[slot] == 0) {
                continue;
            }
            reads--;
            assert_int_equal(look(s, slot, room), 0);
            if (draw(&state) % 3 == 0) {
                s->seed[slot] = 0;
                psi_store_free(s->store, slot);
            }
        }
        uint32_t then = draw(&state) % 16;
        if (then == 0) {
            look_in_a_child(s, from, room);
        } else if (then < 6) {
            psi_store_rest(s->store);
        }
        pthread_mutex_unlock(&s->lock);
    }
}

static void run(size_t record_bytes, uint32_t slots) {
    shelf s = {.record_bytes = record_bytes, .slots = slots};
    pthread_t writer;
    unsigned char *room = psi_os_reserve(record_bytes);
    assert_non_null(room);
    assert_int_equal(pthread_mutex_init(&s.lock, NULL), 0);
    assert_int_equal(psi_store_open(&s.store, "file", "/var/tmp", UINT64_MAX, record_bytes, slots), 0);
    assert_int_equal(psi_os_thread_start(&writer, write_on, &s), 0);
    read_runs(&s, room, (uint32_t)record_bytes + 1);
    atomic_store(&s.stops, true);
    assert_int_equal(pthread_join(writer, NULL), 0);
    psi_store_close(s.store); /* maybe with a read under way */
    psi_os_unreserve(room, record_bytes);
    pthread_mutex_destroy(&s.lock);
}

static void small_records(void **state) {
    (void)state;
    run(4096, MOST_SLOTS);
    run(12288, MOST_SLOTS);
}

static void records_that_are_a_window_each(void **state) {
    (void)state;
    run(MEBI, 24);
    run(MEBI + 4096, 24);
}

static void the_largest_that_are_read_ahead_and_larger_ones(void **state) {
    (void)state;
    run(4 * (size_t)MEBI, 8);
    run(4 * (size_t)MEBI + 4096, 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_records),
        cmocka_unit_test(records_that_are_a_window_each),
        cmocka_unit_test(the_largest_that_are_read_ahead_and_larger_ones),
    };
    return cmocka_run_group_tests_name("ahead_disk", tests, NULL, NULL);
}
