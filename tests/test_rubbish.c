/* test_rubbish.c - src/signal reads what no kernel wrote: parsers, rubbish in each file, and thousands of seeded
 * mutations of all of them. Nothing may crash, and nothing may become a number that is none. */
#include "fake_root.h"

/* ---- Parsers ---------------------------------------------------------------------------------- */

static void parsers_refuse_what_is_not_theirs(void **state) {
    (void)state;
    static const char *const not_amounts[] = {
        "", "max", "-1", "+1", " 1", "1x", "0x10", "99999999999999999999999", "4611686018427387904"};
    uint64_t a = 77, b = 77;
    for (size_t i = 0; i < sizeof(not_amounts) / sizeof(not_amounts[0]); i++)
        assert_false(psi_parse_amount(not_amounts[i], &a));
    assert_false(psi_parse_u64("18446744073709551616", &a));
    assert_int_equal(a, 77);
    assert_true(psi_parse_u64("18446744073709551615\n", &a) && a == UINT64_MAX);
    static const char *const not_pressure[] = {"",
                                               "some",
                                               "some avg10=0.00 total=\nfull total=1\n",
                                               "some avg10=0 total=5\n",
                                               "full avg10=0 total=5\n",
                                               "some avg10=0\nfull avg10=0 total=9 total=9\n",
                                               "some avg10=0 total=-5\nfull avg10=0 total=0\n",
                                               "some avg10=0 total=4611686018427387904\nfull avg10=0 total=6\n",
                                               "awesome total=5\nfull total=5\n"};
    a = 77;
    for (size_t i = 0; i < sizeof(not_pressure) / sizeof(not_pressure[0]); i++)
        assert_false(psi_pressure_parse(not_pressure[i], &a, &b));
    static const char *const not_meminfo[] = {"",
                                              "MemTotal: 5 kB\n",
                                              "MemAvailable: 5 kB\n",
                                              "MemTotal: 0 kB\nMemAvailable: 0 kB\n",
                                              "MemTotal: 5 kB\nMemAvailable: 6 kB\n",
                                              "MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB\n",
                                              "MemTotal: -5 kB\nMemAvailable: -6 kB\n",
                                              "XMemTotal: 5 kB\nMemAvailable: 5 kB\n"};
    for (size_t i = 0; i < sizeof(not_meminfo) / sizeof(not_meminfo[0]); i++)
        assert_false(psi_meminfo_parse(not_meminfo[i], &a, &b));
    static const char *const not_stat[] = {"",      "1 x S 1 2 3 4 5 6 7 8 9 10", "1 (x",
                                           "1 (x)", "1 (x) S 1 2 3 4 5 6 7 8",    "1 (x) S 1 2 3 4 5 6 7 8 -9 10"};
    for (size_t i = 0; i < sizeof(not_stat) / sizeof(not_stat[0]); i++)
        assert_false(psi_self_parse_major_faults(not_stat[i], &a));
    static const char *const not_avg10[] = {"",
                                            "some avg10=\n",
                                            "some avg10=1.5 total=1\n",
                                            "some avg10=-1.50 total=1\n",
                                            "some avg10=100.01 total=1\n",
                                            "some avg10=1000.00 total=1\n",
                                            "some avg10=1.505 total=1\n",
                                            "full avg10=1.50 total=1\n"};
    for (size_t i = 0; i < sizeof(not_avg10) / sizeof(not_avg10[0]); i++)
        assert_false(psi_pressure_parse_avg10(not_avg10[i], &a));
    assert_int_equal(a, 77);
    assert_int_equal(b, 77);
    assert_true(psi_pressure_parse_avg10("some avg10=100.00 avg60=3.00 total=5\n", &a) && a == 10000);
    assert_true(psi_pressure_parse_avg10("some avg10=12.34", &a) && a == 1234);
    static const char *const not_mappings[] = {"",
                                               "-",
                                               "7f0000000000",
                                               "7f0000000000-7f0000200000 r--s 0 fe:01 1",
                                               "7f0000200000-7f0000000000 r--s 0 fe:01 1 /model",
                                               "7f0000000000-7f00000fffff r--s 0 fe:01 1 /small",
                                               "7f0000000000-7f0000200000 rw-s 0 0:01 1 /dev/nvidia0",
                                               "7f0000000000-7f0000200000 rw-s 0 0:01 1 /memfd:kv (deleted)",
                                               "7f0000000000-7f0000200000 rw-s 0 0:01 1 /SYSV00000000 (deleted)",
                                               "7f0000000000-7f0000200000 rw-p 0 0:00 0 [anon:x/y]",
                                               "zz-7f0000200000 r--s 0 fe:01 1 /model"};
    for (size_t i = 0; i < sizeof(not_mappings) / sizeof(not_mappings[0]); i++)
        assert_int_equal(psi_self_parse_mapping(not_mappings[i]), 0);
    assert_int_equal(psi_self_parse_mapping("7f0000000000-7f0000200000 r--s 0 fe:01 1   /m/a b.gguf"), 2 * MIB);
}

static void status_without_resident_mappings_is_named(void **state) {
    (void)state;
    static const char *const texts[] = {"VmLck: 1 kB\n", "RssFile: lots\n", "RssFile: 18446744073709551615 kB\n", ""};
    put_machine();
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        put("/proc/self/status", "%s", texts[i]);
        psi_signal *signal = open_signal();
        read_after(signal, 0);
        assert_false(source(signal, "mappings")->in_use);
        assert_false(psi_signal_last(signal)->known[PSI_RAW_SELF_FILE_BYTES]);
        psi_signal_close(signal);
    }
}

/* ---- Rubbish ---------------------------------------------------------------------------------- */

/* Each file in turn, with each sort of rubbish: no crash, and no number where there is none. */
static void rubbish_in_any_file_is_survived(void **state) {
    (void)state;
    static const char *const files[] = {"/proc/self/cgroup",
                                        "/proc/self/mountinfo",
                                        "/proc/self/stat",
                                        "/proc/self/status",
                                        "/proc/meminfo",
                                        "/proc/pressure/memory",
                                        "/cg/a/b/c/memory.max",
                                        "/cg/a/b/c/memory.high",
                                        "/cg/a/b/c/memory.current",
                                        "/cg/a/b/c/memory.stat",
                                        "/cg/a/b/c/memory.pressure"};
    static char rubbish[5][60000];
    size_t length[5] = {0, 60000, 60000, 60000, 20};
    for (size_t i = 0; i < 60000; i++) {
        rubbish[1][i] = (char)(i * 7919 >> 3);   /* binary */
        rubbish[2][i] = '9';                     /* a number without end */
        rubbish[3][i] = ":/ -,\n0a"[i * 31 % 8]; /* separators */
    }
    memcpy(rubbish[4], "0::/\n-9 -9 -9 -9 ) 1", 20);
    for (size_t f = 0; f < sizeof(files) / sizeof(files[0]); f++) {
        for (size_t r = 0; r < 5; r++) {
            psi_signal *signal = open_group(100 * MIB);
            read_after(signal, 0);
            put_bytes(files[f], rubbish[r], length[r]);
            psi_reading reading = read_after(signal, 1000 * MS); /* turned bad while open */
            assert_true((reading.have & PSI_HAVE_HEADROOM) && reading.headroom_bytes <= 6144 * MIB);
            psi_signal_close(signal);
            reading = read_once(); /* bad from the start */
            assert_true((reading.have & PSI_HAVE_HEADROOM) == 0 || reading.headroom_bytes <= reading.limit_bytes);
        }
    }
}

static void overlong_paths_are_missing_sources(void **state) {
    (void)state;
    static char longest[3000];
    memset(longest, 'x', sizeof(longest) - 1);
    put_machine();
    put_v2();
    put("/proc/self/cgroup", "0::/%s\n", longest);
    assert_int_equal(read_once().headroom_bytes, 6144 * MIB);
    psi_signal *signal = psi_signal_open(&(psi_signal_options){.root = longest, .clock = {.now_us = fake_now_us}});
    assert_non_null(signal);
    assert_int_equal(read_after(signal, 0).have, 0);
    for (size_t i = 0; i < PSI_ROWS; i++) {
        size_t count = 0;
        assert_false(psi_signal_sources(signal, &count)[i].in_use);
    }
    psi_signal_close(signal);
}

/* ---- Mutations -------------------------------------------------------------------------------- */

/* xorshift64*: the same texts everywhere; PSI_FUZZ_SEED and PSI_FUZZ_ROUNDS try others. */
static uint64_t seed;

static uint64_t roll(uint64_t below) {
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (seed * UINT64_C(2685821657736338717) >> 11) % below;
}

static uint64_t setting(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 0) : otherwise;
}

#define TEXT_BYTES ((size_t)40000)

static const char *const mutated[] = {"/proc/self/cgroup",
                                      "/proc/self/mountinfo",
                                      "/proc/self/stat",
                                      "/proc/self/status",
                                      "/proc/self/maps",
                                      "/proc/meminfo",
                                      "/proc/vmstat",
                                      "/proc/zoneinfo",
                                      "/proc/pressure/memory",
                                      "/proc/pressure/io",
                                      "/cg/a/b/c/memory.pressure",
                                      "/cg/a/b/c/io.pressure",
                                      "/cg/a/b/c/memory.max",
                                      "/cg/a/b/c/memory.high",
                                      "/cg/a/b/c/memory.current",
                                      "/cg/a/b/c/memory.stat",
                                      "/cg/a/b/c/memory.events",
                                      "/sys/block/zram0/mm_stat",
                                      "/cg/memory/box/memory.limit_in_bytes",
                                      "/cg/memory/box/memory.usage_in_bytes",
                                      "/cg/memory/box/memory.stat",
                                      "/cg/memory/box/memory.failcnt",
                                      "/cg/memory/box/memory.oom_control"};
enum { MUTATED = sizeof(mutated) / sizeof(mutated[0]) };

/* Both groups at once, as on a machine with v1 limits and a v2 tree beside. */
static void put_both(void) {
    put_all_v2();
    put_mapped(64 * MIB, MIB);
    put("/proc/self/cgroup", "4:memory:/box\n0::/a/b/c\n");
    put("/proc/self/mountinfo", "20 1 0:5 / /proc rw - proc proc rw\n"
                                "36 31 0:33 / /cg/memory rw shared:3 - cgroup cgroup rw,memory\n"
                                "41 31 0:38 / /cg rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
    put_amount("/cg/memory/box/memory.limit_in_bytes", 1200 * MIB);
    put_amount("/cg/memory/box/memory.usage_in_bytes", 800 * MIB);
    put("/cg/memory/box/memory.stat", "total_inactive_file 31457280\ntotal_active_file 20971520\n");
    put("/cg/memory/box/memory.failcnt", "6\n");
    put("/cg/memory/box/memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 9\n");
}

static size_t get(const char *path, char *text) {
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    int descriptor = open(full, O_RDONLY);
    assert_true(descriptor >= 0);
    ssize_t count = read(descriptor, text, TEXT_BYTES);
    close(descriptor);
    assert_true(count >= 0);
    return (size_t)count;
}

static size_t insert(char *text, size_t length, size_t at, const char *what, size_t count) {
    if (length + count > TEXT_BYTES)
        return length;
    memmove(text + at + count, text + at, length - at);
    memcpy(text + at, what, count);
    return length + count;
}

static size_t mutate(char *text, size_t length) {
    static const char *const odd[] = {"-1",
                                      "18446744073709551616",
                                      "4611686018427387904",
                                      "9999999999999999999999999",
                                      "\n",
                                      " ",
                                      ":",
                                      "max",
                                      "\\3",
                                      "0x7f",
                                      "..",
                                      "total=",
                                      ")",
                                      "18446744073709551615",
                                      "/",
                                      "-"};
    size_t at = length > 0 ? (size_t)roll(length) : 0;
    const char *word = odd[roll(sizeof(odd) / sizeof(odd[0]))];
    size_t some = length > at ? (size_t)roll(length - at) + 1 : 0;
    switch (roll(6)) {
    case 0: /* cut off */
        return at;
    case 1: /* a hole */
        memmove(text + at, text + at + some, length - at - some);
        return length - some;
    case 2: /* a word of ill repute */
        return insert(text, length, at, word, strlen(word));
    case 3: /* once more */
        return insert(text, length, at, text, some < at ? some : at);
    case 4: /* longer than any buffer */
        for (int i = 0; i < 12 && length < TEXT_BYTES / 2; i++)
            length = insert(text, length, at < length ? at : 0, "7777777777777777777777777777777777777777", 40);
        return roll(8) == 0 && length > 0 ? insert(text, length, length, text, length < 20000 ? length : 20000)
                                          : length;
    default: /* a byte of any sort */
        if (length > 0)
            text[at] = (char)roll(256);
        return length;
    }
}

static bool is_share(double share) { return share >= 0 && share <= 1; }

static void assert_sane(const psi_signal *signal, const psi_reading *reading) {
    const psi_sample *sample = psi_signal_last(signal);
    for (size_t raw = 0; raw < PSI_RAW_COUNT; raw++)
        assert_true(sample->known[raw] ? sample->value[raw] < PSI_AMOUNT_END : sample->value[raw] == 0);
    assert_true(is_share(reading->stall_some_share) && is_share(reading->stall_full_share));
    assert_true(is_share(reading->stall_short_share) && is_share(reading->io_some_share));
    assert_true(is_share(reading->avg10_share));
    assert_true(reading->major_faults_per_s >= 0 && reading->refaults_per_s >= 0 && reading->reclaim_pages_per_s >= 0);
    if (!(reading->have & PSI_HAVE_HEADROOM))
        return;
    assert_true(reading->headroom_bytes <= reading->limit_bytes && reading->limit_bytes < PSI_AMOUNT_END);
    assert_true(reading->headroom_bytes == 0 || reading->missing_bytes == 0);
}

/* One file with a few mutations, in the middle (`signal`) or from the start. */
static void try_mutation(psi_signal *signal) {
    static char before[TEXT_BYTES], text[TEXT_BYTES];
    const char *path = mutated[roll(MUTATED)];
    size_t length = get(path, before), now = length;
    memcpy(text, before, length);
    for (uint64_t i = roll(4) + 1; i > 0; i--)
        now = mutate(text, now);
    put_bytes(path, text, now);
    psi_reading reading;
    if (roll(8) == 0) {
        psi_signal *fresh = open_signal();
        reading = read_after(fresh, 0);
        assert_sane(fresh, &reading);
        psi_signal_close(fresh);
    }
    reading = read_after(signal, roll(2) ? 60 * MS : 6000 * MS);
    assert_sane(signal, &reading);
    if (roll(4) != 0)
        put_bytes(path, before, length); /* else it stays spoilt, and others join it */
}

static void mutated_sources_are_survived(void **state) {
    (void)state;
    uint64_t rounds = setting("PSI_FUZZ_ROUNDS", 4000), begin = setting("PSI_FUZZ_SEED", 20251123);
    psi_signal *signal = NULL;
    print_message("mutations from PSI_FUZZ_SEED=%llu\n", (unsigned long long)begin);
    for (uint64_t round = 0; round < rounds; round++) {
        if (round % 40 == 0) { /* what was spoilt is mended */
            psi_signal_close(signal);
            seed = begin + round + 1;
            put_both();
            signal = open_signal();
        }
        try_mutation(signal);
    }
    psi_signal_close(signal);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(parsers_refuse_what_is_not_theirs), CASE(status_without_resident_mappings_is_named),
        CASE(rubbish_in_any_file_is_survived),   CASE(overlong_paths_are_missing_sources),
        CASE(mutated_sources_are_survived),
    };
    return cmocka_run_group_tests_name("rubbish", tests, NULL, NULL);
}
