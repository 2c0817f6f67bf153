/* test_control_random.c - src/control under readings and demands without sense: what must hold of every decision, and
 * the same decisions from the same inputs. PSI_TEST_SEED=<number> chooses another run. */
#include "test_control.h"

#define DECISIONS 100000

static uint64_t the_seed = 1;

static uint64_t roll(void) { /* xorshift64 */
    the_seed ^= the_seed << 13;
    the_seed ^= the_seed >> 7;
    the_seed ^= the_seed << 17;
    return the_seed;
}

/* Mostly of this machine's size, sometimes absurd. */
static uint64_t some_bytes(void) {
    static const uint64_t absurd[] = {0, 1, 4095, UINT64_MAX, UINT64_MAX - 1, (uint64_t)1 << 63, (uint64_t)1 << 62};
    return roll() % 8 == 0 ? absurd[roll() % 7] : roll() % (2048 * MIB);
}

static double some_share(void) {
    static const double absurd[] = {-1, 1e300, -1e300, 99, (double)NAN, (double)INFINITY, -(double)INFINITY};
    return roll() % 8 == 0 ? absurd[roll() % 7] : (double)(roll() % 1000) / (roll() % 2 == 0 ? 1e3 : 1e5);
}

static int64_t some_fill(void) {
    return roll() % 8 == 0 ? (roll() % 2 == 0 ? INT64_MIN : INT64_MAX) : (int64_t)(roll() % 4096 - 1024) * 1000000;
}

static uint64_t next_time(uint64_t at_us) {
    switch (roll() % 64) {
    case 0:
        return roll(); /* anywhere */
    case 1:
        return at_us; /* stands */
    case 2:
        return at_us - roll() % (10000 * MS);
    case 3:
        return at_us + roll() % (600000 * MS);
    default:
        return at_us + roll() % (500 * MS);
    }
}

static psi_reading some_reading(uint64_t at_us) {
    return (psi_reading){.at_us = at_us,
                         .have = (uint32_t)(roll() % 4 == 0 ? roll() & 255 : 255),
                         .stall_is_own = roll() % 2 == 0,
                         .stall_is_doubted = roll() % 16 == 0,
                         .stall_some_share = some_share(),
                         .stall_full_share = some_share(),
                         .stall_short_share = some_share() / 10,
                         .avg10_share = some_share(),
                         .headroom_bytes = some_bytes(),
                         .missing_bytes = roll() % 4 == 0 ? some_bytes() : 0,
                         .limit_bytes = roll() % 2 == 0 ? 1200 * MIB : some_bytes(),
                         .fill_bytes_per_s = some_fill(),
                         .fill_age_us = roll() % 16 == 0 ? roll() : roll() % (2000 * MS),
                         .major_faults_per_s = some_share() * 1000,
                         .refaults_per_s = some_share() * 1000,
                         .reclaim_pages_per_s = some_share() * 1000};
}

static psi_demand some_demand(void) {
    psi_demand demand = {.resident_bytes = some_bytes(), .returnable_bytes = roll() % 2 == 0 ? 0 : some_bytes()};
    demand.evictable_bytes = roll() % 16 == 0 ? some_bytes() : demand.resident_bytes - demand.resident_bytes / 8;
    demand.unwritten_bytes = roll() % 2 == 0 ? 0 : some_bytes();
    demand.pending_bytes = roll() % 2 == 0 ? 0 : some_bytes();
    demand.returned_bytes = some_bytes();
    return demand;
}

static void assert_index(double index) { assert_true(index >= 0 && index <= 1); }

static void check(const psi_control *control, const psi_reading *r, const psi_demand *d, const psi_decision *n) {
    assert_index(n->index);
    assert_index(n->index_stall);
    assert_index(n->index_headroom);
    assert_index(n->index_forecast);
    assert_index(n->index_thrash);
    assert_true(n->trim_bytes == 0 ||
                (n->trim_bytes <= d->evictable_bytes && d->pending_bytes <= d->evictable_bytes - n->trim_bytes));
    assert_true(n->restore_bytes <= d->returnable_bytes);
    assert_true(n->trim_bytes == 0 || n->restore_bytes == 0);
    assert_true((n->trim_bytes > 0) <= (n->band != PSI_BAND_NONE));
    assert_true((n->band != PSI_BAND_NONE) == (n->index > control->options.high));
    assert_int_equal(n->refuse, n->index > control->options.high);
    assert_true(!n->guarded || n->trim_bytes == 0);
    assert_true(!n->clean || (n->band != PSI_BAND_SAFETY && d->unwritten_bytes > 0));
    assert_true(n->sleep_us >= 2 * MS && n->sleep_us <= 1000 * MS);
    assert_true((n->look & PSI_LOOK_RARE) != 0 && (n->look & ~(uint32_t)PSI_LOOK_ALL) == 0);
    assert_true((n->look & PSI_LOOK_STALL) != 0 || n->arm);
    assert_non_null(psi_decision_reason(n));
    if (n->restore_bytes > 0 && control->options.mode == PSI_MODE_AUTO && (r->have & PSI_HAVE_HEADROOM) != 0) {
        double keep = 0.7 * (double)control->mapping.reserve_bytes / control->options.low;
        assert_true((double)(r->headroom_bytes - n->restore_bytes) >= keep);
        assert_true(n->ceiling_bytes == UINT64_MAX || d->resident_bytes < n->ceiling_bytes);
    }
}

static void check_learned(const psi_control *control) {
    const psi_tuning *t = &control->tuning;
    assert_true(t->stall_normal_share >= 0 && t->stall_normal_share <= PSI_STALL_NORMAL_MOST);
    assert_true(t->fill_most_bytes_per_s >= 0 && t->fill_most_bytes_per_s <= PSI_FILL_MOST);
    const psi_mapping *m = &control->mapping;
    assert_true(m->reserve_bytes >= 8 * MIB && m->reserve_bytes <= 512 * MIB);
    assert_true(m->stall_at_anchor >= PSI_STALL_ANCHOR_LEAST && m->stall_at_anchor <= PSI_STALL_ANCHOR_MOST);
    assert_true(control->options.high == defaults.high && control->options.low == defaults.low);
}

static void run(psi_mode mode, bool tune) {
    psi_control one = new_control(), other;
    one.options.mode = mode;
    one.options.tune = tune;
    one.options.horizon_us = roll() % 2 == 0 ? 0 : 500 * MS;
    psi_control_init(&other, &one.options);
    unsigned trims = 0, restores = 0, guarded = 0;
    for (uint64_t i = 0, at_us = 1; i < DECISIONS / 4; i++) {
        at_us = next_time(at_us);
        psi_reading reading = some_reading(at_us);
        psi_demand demand = some_demand();
        psi_decision decision = decide(&one, reading, demand), again;
        check(&one, &reading, &demand, &decision);
        check_learned(&one);
        psi_control_decide(&other, &reading, &demand, &again);
        assert_memory_equal(&decision, &again, sizeof(decision));
        trims += decision.trim_bytes > 0;
        restores += decision.restore_bytes > 0;
        guarded += decision.guarded;
        if (roll() % 64 == 0) {
            uint64_t us = roll();
            psi_tuning_note_reaction(&one.tuning, us);
            psi_tuning_note_reaction(&other.tuning, us);
        }
    }
    assert_true(trims > 100 && restores > 10); /* the rolls reach both */
    assert_true(mode != PSI_MODE_AUTO || guarded > 100);
}

static void decisions_hold_whatever_comes(void **state) {
    (void)state;
    const char *seed = getenv("PSI_TEST_SEED");
    the_seed = seed != NULL ? strtoull(seed, NULL, 0) | 1 : 20240601;
    run(PSI_MODE_AUTO, true);
    run(PSI_MODE_AUTO, false);
    run(PSI_MODE_PSI, true);
    run(PSI_MODE_AVG10, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(decisions_hold_whatever_comes)};
    return cmocka_run_group_tests_name("control random", tests, NULL, NULL);
}
