/* test_watching.c - readings and decisions together: each decision says when and how deep the next reading looks, and a
 * machine of files goes its way meanwhile. Its clock is its own, nothing is random. */
#include "control/control.h"
#include "fake_root.h"

enum { LIMIT_MIB = 1200, CACHE_MIB = 400, RESERVE_MIB = LIMIT_MIB / 16, SPIKE_MIB_PER_MS = 2 };

static const psi_control_options options = {.high = 0.7,
                                            .low = 0.3,
                                            .trim_min = 0.10,
                                            .trim_max = 0.20,
                                            .dwell_us = 2000 * MS,
                                            .guard_share = 0.5,
                                            .guard_period_us = 60000 * MS};

typedef struct watched {
    psi_signal *signal;
    psi_control control;
    psi_decision decision;
    uint64_t next_us;
} watched;

static void look_if_due(watched *w) {
    const psi_demand demand = {.resident_bytes = 300 * MIB, .evictable_bytes = 270 * MIB};
    psi_reading reading;
    if (now_us < w->next_us) {
        return;
    }
    psi_signal_read(w->signal, w->decision.look, &reading);
    psi_control_decide(&w->control, &reading, &demand, &w->decision);
    w->next_us = now_us + w->decision.sleep_us;
}

static void wait(watched *w, unsigned for_ms) {
    for (unsigned ms = 0; ms < for_ms; ms++, now_us += MS) {
        look_if_due(w);
    }
}

static void put_group(uint64_t usage_mib, uint64_t cache_mib) {
    put_amount("/cg/a/b/c/memory.max", LIMIT_MIB * MIB);
    put_amount("/cg/a/b/c/memory.current", usage_mib * MIB);
    put_v2_stat("/cg/a/b/c/memory.stat", cache_mib * MIB, 0);
}

static watched begin(uint64_t usage_mib, uint64_t cache_mib) {
    put_machine();
    put_v2();
    put_group(usage_mib, cache_mib);
    watched w = {.signal = open_signal(), .decision = {.look = PSI_LOOK_ALL}, .next_us = now_us};
    psi_control_init(&w.control, &options);
    wait(&w, 2000);
    assert_int_equal(w.decision.band, PSI_BAND_NONE);
    return w;
}

/* How much is left of the headroom when a trim is called for, in MiB. A file is read as fast as the spike grows, for
 * read_ms, and right after it the spike begins. */
static uint64_t left_when_called(uint64_t usage_mib, uint64_t cache_mib, unsigned delay_ms, unsigned read_ms) {
    watched w = begin(usage_mib, cache_mib);
    wait(&w, delay_ms);
    for (unsigned ms = 0; ms < read_ms; ms++) {
        usage_mib += SPIKE_MIB_PER_MS;
        cache_mib += SPIKE_MIB_PER_MS;
        put_group(usage_mib, cache_mib);
        wait(&w, 1);
    }
    assert_int_equal(w.decision.band, PSI_BAND_NONE);
    uint64_t used_mib = 0, free_mib = LIMIT_MIB - usage_mib;
    while (w.decision.band == PSI_BAND_NONE && used_mib < free_mib + cache_mib) {
        used_mib += SPIKE_MIB_PER_MS;
        uint64_t from_cache = used_mib > free_mib ? used_mib - free_mib : 0;
        put_group(usage_mib + used_mib - from_cache, cache_mib - from_cache);
        now_us += MS;
        look_if_due(&w);
    }
    psi_signal_close(w.signal);
    return free_mib + cache_mib - used_mib;
}

/* A group at its limit, filled up with page cache: what is allocated there takes the cache's place, and its usage stays
 * as it is. Only memory.stat tells. */
static void a_spike_that_takes_the_place_of_page_cache_is_seen_before_the_reserve_is_reached(void **state) {
    (void)state;
    for (unsigned delay_ms = 0; delay_ms < 210; delay_ms += 30) {
        assert_true(left_when_called(LIMIT_MIB, CACHE_MIB, delay_ms, 0) > 2 * RESERVE_MIB);
        assert_true(left_when_called(LIMIT_MIB - 40, CACHE_MIB - 40, delay_ms, 0) > 2 * RESERVE_MIB);
        assert_true(left_when_called(LIMIT_MIB - CACHE_MIB, 0, delay_ms, 0) > 2 * RESERVE_MIB);
    }
}

/* What the page cache grew by lately is taken for its growth now, until the counters tell. */
static void a_spike_behind_the_reading_of_a_file_is_seen_in_time(void **state) {
    (void)state;
    for (unsigned delay_ms = 0; delay_ms < 210; delay_ms += 15) {
        assert_true(left_when_called(LIMIT_MIB - CACHE_MIB, 0, delay_ms, 50) > 2 * RESERVE_MIB);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(a_spike_that_takes_the_place_of_page_cache_is_seen_before_the_reserve_is_reached),
        CASE(a_spike_behind_the_reading_of_a_file_is_seen_in_time),
    };
    return cmocka_run_group_tests_name("watching", tests, NULL, NULL);
}
