/* test_sources.c - every source of src/signal: its values, its row, and what happens when it is missing, unreadable or
 * absurd, from the start or in the middle. */
#include "fake_root.h"

#include "os/os.h"

/* ---- What each gives -------------------------------------------------------------------------- */

typedef struct wanted {
    psi_raw raw;
    uint64_t value;
} wanted;

static void assert_values(const psi_signal *signal, const wanted *values, size_t count) {
    char name[PSI_RAW_NAME_BYTES];
    const psi_sample *sample = psi_signal_last(signal);
    for (size_t i = 0; i < count; i++)
        if (!sample->known[values[i].raw] || sample->value[values[i].raw] != values[i].value)
            fail_msg("%s: known %d, %llu", psi_raw_name(values[i].raw, name), sample->known[values[i].raw],
                     (unsigned long long)sample->value[values[i].raw]);
}

static void all_values_of_a_v2_machine(void **state) {
    (void)state;
    uint64_t page = psi_os_page_bytes();
    const wanted values[] = {
        {PSI_RAW_OWN_MEMORY_SOME_US, 70},
        {PSI_RAW_OWN_MEMORY_FULL_US, 7},
        {PSI_RAW_OWN_MEMORY_AVG10, 36},
        {PSI_RAW_OWN_IO_SOME_US, 80},
        {PSI_RAW_OWN_IO_FULL_US, 8},
        {PSI_RAW_SYSTEM_MEMORY_SOME_US, 0},
        {PSI_RAW_SYSTEM_IO_SOME_US, 0},
        {PSI_RAW_V2_EVENTS_HIGH, 2},
        {PSI_RAW_V2_EVENTS_MAX, 3},
        {PSI_RAW_V2_EVENTS_OOM, 4},
        {PSI_RAW_V2_EVENTS_OOM_KILL, 5},
        {PSI_RAW_OWN_REFAULT_FILE, 7},
        {PSI_RAW_MEMORY_TOTAL_BYTES, 8192 * MIB},
        {PSI_RAW_MEMORY_AVAILABLE_BYTES, 6144 * MIB},
        {PSI_RAW_MEMORY_FREE_BYTES, MIB},
        {PSI_RAW_SWAP_TOTAL_BYTES, 2 * MIB},
        {PSI_RAW_SWAP_FREE_BYTES, MIB},
        {PSI_RAW_ZONE_MIN_BYTES, 100 * page},
        {PSI_RAW_ZONE_LOW_BYTES, 100 * page},
        {PSI_RAW_ZONE_HIGH_BYTES, 200 * page},
        {PSI_RAW_VM_REFAULT_FILE, 10},
        {PSI_RAW_VM_REFAULT_ANON, 0},
        {PSI_RAW_VM_SCAN_DIRECT, 20},
        {PSI_RAW_VM_SCAN_KSWAPD, 20},
        {PSI_RAW_VM_ALLOC_STALLS, 32},
        {PSI_RAW_VM_SWAP_IN, 3},
        {PSI_RAW_VM_SWAP_OUT, 4},
        {PSI_RAW_VM_OOM_KILL, 5},
        {PSI_RAW_ZRAM_STORED_BYTES, 8192},
        {PSI_RAW_ZRAM_USED_BYTES, 12288},
        {PSI_RAW_SELF_MAJOR_FAULTS, 0},
        {PSI_RAW_SELF_FILE_BYTES, 9 * MIB},
        {PSI_RAW_SELF_LOCKED_BYTES, 2 * MIB},
        {PSI_RAW_SELF_MAPPED_BYTES, 64 * MIB},
        {PSI_RAW_V2_BOUND, 4096 * MIB},
        {(psi_raw)(PSI_RAW_V2_BOUND + 1), 100 * MIB},
        {(psi_raw)(PSI_RAW_V2_BOUND + 2), 70 * MIB},
    };
    put_all_v2();
    put_pressure("/cg/a/b/c/memory.pressure", 70, 7);
    put_pressure("/cg/a/b/c/io.pressure", 80, 8);
    put_mapped(9 * MIB, 2 * MIB);
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    assert_values(signal, values, sizeof(values) / sizeof(values[0]));
    const psi_sample *sample = psi_signal_last(signal);
    for (size_t raw = PSI_RAW_V2_BOUND + 3; raw < PSI_RAW_COUNT; raw++)
        assert_false(sample->known[raw]); /* levels without a limit, and v1 */
    assert_false(sample->known[PSI_RAW_TRIGGER_EVENTS] || sample->known[PSI_RAW_V1_FAILCNT]);
    psi_signal_note_trigger(signal, 3);
    read_after(signal, MS);
    assert_int_equal(sample->value[PSI_RAW_TRIGGER_EVENTS], 3);
    assert_non_null(strstr(psi_signal_group_v2(signal), "/cg/a/b/c"));
    assert_null(psi_signal_group_v1(signal));
    psi_signal_close(signal);
}

static void values_of_a_v1_group(void **state) {
    (void)state;
    const wanted values[] = {{PSI_RAW_V1_FAILCNT, 6},          {PSI_RAW_V1_UNDER_OOM, 1},
                             {PSI_RAW_V1_OOM_KILL_DISABLE, 0}, {PSI_RAW_V1_OOM_KILL, 9},
                             {PSI_RAW_OWN_REFAULT_FILE, 55},   {PSI_RAW_OWN_REFAULT_ANON, 4},
                             {PSI_RAW_V1_BOUND, 1200 * MIB},   {(psi_raw)(PSI_RAW_V1_BOUND + 1), 800 * MIB}};
    put_machine();
    put_v1();
    put("/cg/memory/box/memory.failcnt", "6\n");
    put("/cg/memory/box/memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 9\n");
    put("/cg/memory/box/memory.stat", "workingset_refault_file 1\ntotal_workingset_refault_anon 4\n"
                                      "total_workingset_refault_file 55\n");
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    assert_values(signal, values, sizeof(values) / sizeof(values[0]));
    assert_false(psi_signal_last(signal)->known[PSI_RAW_V1_BOUND + 2]); /* no cache in that memory.stat */
    assert_non_null(strstr(psi_signal_group_v1(signal), "/cg/memory/box"));
    put("/cg/memory/box/memory.stat", "total_workingset_refault 77\n"); /* before Linux 5.9 */
    read_after(signal, 50 * MS);
    assert_int_equal(psi_signal_last(signal)->value[PSI_RAW_OWN_REFAULT_FILE], 77);
    assert_false(psi_signal_last(signal)->known[PSI_RAW_OWN_REFAULT_ANON]);
    psi_signal_close(signal);
}

static void looks_are_taken_no_oftener_than_they_may(void **state) {
    (void)state;
    put_all_v2();
    psi_signal *signal = open_signal();
    const psi_sample *sample = psi_signal_last(signal);
    read_after(signal, 0);
    assert_int_equal(sample->look, PSI_LOOK_ALL); /* the first takes everything */
    put_vmstat(11, 20, 30);
    put("/sys/block/zram0/mm_stat", "1 2 3\n");
    read_after(signal, 49 * MS);
    assert_int_equal(sample->look, PSI_LOOK_AMOUNTS | PSI_LOOK_STALL);
    assert_int_equal(sample->value[PSI_RAW_VM_REFAULT_FILE], 10);
    put_pressure("/cg/a/b/c/memory.pressure", 4, 4);
    read_after(signal, 1 * MS); /* stall with the counters, always: they are judged together */
    assert_int_equal(sample->look, PSI_LOOK_AMOUNTS | PSI_LOOK_STALL | PSI_LOOK_COUNTERS);
    assert_int_equal(sample->value[PSI_RAW_VM_REFAULT_FILE], 11);
    assert_int_equal(sample->value[PSI_RAW_OWN_MEMORY_SOME_US], 4);
    put_pressure("/cg/a/b/c/memory.pressure", 0, 0);
    read_after(signal, 24 * MS);
    assert_int_equal(sample->look, PSI_LOOK_AMOUNTS);
    assert_int_equal(sample->value[PSI_RAW_OWN_MEMORY_SOME_US], 4);
    read_after(signal, 1 * MS);
    assert_int_equal(sample->look, PSI_LOOK_AMOUNTS | PSI_LOOK_STALL);
    assert_int_equal(sample->value[PSI_RAW_OWN_MEMORY_SOME_US], 0);
    assert_int_equal(sample->value[PSI_RAW_ZRAM_USED_BYTES], 12288);
    read_after(signal, 4925 * MS);
    assert_int_equal(sample->look, PSI_LOOK_ALL);
    assert_int_equal(sample->value[PSI_RAW_ZRAM_USED_BYTES], 3);
    put_pressure("/cg/a/b/c/memory.pressure", 5, 5);
    look_after(signal, 100 * MS, PSI_LOOK_AMOUNTS); /* stall is not read while a trigger is armed */
    assert_int_equal(sample->look, PSI_LOOK_AMOUNTS);
    assert_int_equal(sample->value[PSI_RAW_OWN_MEMORY_SOME_US], 0);
    psi_signal_note_trigger(signal, 1); /* but after its event at once, whenever it was read last */
    read_after(signal, 1 * MS);
    assert_int_equal(sample->value[PSI_RAW_OWN_MEMORY_SOME_US], 5);
    put_pressure("/cg/a/b/c/memory.pressure", 6, 6);
    psi_signal_note_trigger(signal, 2);
    read_after(signal, 1 * MS);
    assert_int_equal(sample->value[PSI_RAW_OWN_MEMORY_SOME_US], 6);
    psi_signal_note_trigger(signal, 2);
    read_after(signal, 1 * MS);
    assert_int_equal(sample->look, PSI_LOOK_AMOUNTS);
    now_us -= 190 * MS; /* a clock that goes back takes everything again */
    read_after(signal, 0);
    assert_true(sample->look & PSI_LOOK_STALL);
    psi_signal_close(signal);
}

static void first_look_of_any_depth_has_the_cache(void **state) {
    (void)state;
    put_all_v2();
    psi_signal *signal = open_signal();
    assert_int_equal(look_after(signal, 0, PSI_LOOK_AMOUNTS).headroom_bytes, 4066 * MIB);
    put_amount("/cg/a/b/memory.max", 220 * MIB); /* a limit that is set while we look no deeper */
    put_v2_stat("/cg/a/b/memory.stat", 0, 150 * MIB);
    psi_reading reading = look_after(signal, 50 * MS, PSI_LOOK_AMOUNTS);
    assert_int_equal(reading.headroom_bytes, 170 * MIB);
    assert_true(reading.bound == PSI_BOUND_V2 && reading.bound_level == 1);
    psi_signal_close(signal);
}

static void maps_are_read_again_when_the_model_goes(void **state) {
    (void)state;
    put_all_v2();
    put_maps(1024 * MIB);
    put_mapped(1000 * MIB, 0);
    psi_signal *signal = open_signal();
    assert_int_equal(read_after(signal, 0).headroom_bytes, 3996 * MIB);
    put_maps(512 * MIB); /* the process unmapped half of it */
    put_mapped(500 * MIB, 0);
    assert_int_equal(read_after(signal, 50 * MS).headroom_bytes, 3984 * MIB); /* 12 of those mapped are not there */
    assert_int_equal(psi_signal_last(signal)->value[PSI_RAW_SELF_MAPPED_BYTES], 512 * MIB);
    psi_signal_close(signal);
}

static void another_process_is_looked_at(void **state) {
    (void)state;
    put_all_v2();
    put("/proc/77/cgroup", "0::/other\n");
    put("/proc/77/stat", "77 (x) S 1 2 3 4 5 6 7 8 500 9\n");
    put("/proc/77/status", "RssFile: 2048 kB\n");
    put_amount("/cg/other/memory.max", 50 * MIB);
    put_amount("/cg/other/memory.current", 10 * MIB);
    psi_signal_options options = {.root = root, .process_id = 77, .clock = {.now_us = fake_now_us}};
    psi_signal *signal = psi_signal_open(&options);
    assert_int_equal(read_after(signal, 0).headroom_bytes, 40 * MIB);
    assert_int_equal(psi_signal_last(signal)->value[PSI_RAW_SELF_MAJOR_FAULTS], 500);
    assert_int_equal(psi_signal_last(signal)->value[PSI_RAW_SELF_FILE_BYTES], 2 * MIB);
    assert_false(psi_signal_last(signal)->known[PSI_RAW_SELF_MAPPED_BYTES]); /* no maps: no cap, and no error */
    assert_true(source(signal, "mappings")->in_use);
    psi_signal_close(signal);
}

static void moved_to_another_group(void **state) {
    (void)state;
    put_all_v2();
    put_pressure("/cg/a/b/c/memory.pressure", 100 * MS, 0);
    put_amount("/cg/d/memory.max", 300 * MIB);
    put_amount("/cg/d/memory.current", 100 * MIB);
    put_pressure("/cg/d/memory.pressure", 900 * MS, 0);
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    put("/proc/self/cgroup", "0::/d\n");
    assert_int_equal(read_after(signal, 4000 * MS).headroom_bytes, 4066 * MIB); /* not looked up yet */
    psi_reading reading = read_after(signal, 1000 * MS);
    assert_int_equal(reading.headroom_bytes, 200 * MIB);
    assert_non_null(strstr(psi_signal_group_v2(signal), "/cg/d"));
    read_after(signal, 500 * MS);
    reading = read_after(signal, 500 * MS); /* the two groups' counters are not one counter */
    assert_true((reading.have & PSI_HAVE_STALL) && reading.stall_is_own);
    assert_near(reading.stall_some_share, 0, 1e-9);
    assert_non_null(strstr(source(signal, "psi.own.memory")->detail, "/cg/d"));
    psi_signal_close(signal);
}

/* ---- Each missing, unreadable, absurd in turn ------------------------------------------------- */

static const struct {
    const char *path, *row;
    psi_raw raw;
} each[] = {
    {"/cg/a/b/c/memory.pressure", "psi.own.memory", PSI_RAW_OWN_MEMORY_SOME_US},
    {"/proc/pressure/memory", "psi.system.memory", PSI_RAW_SYSTEM_MEMORY_FULL_US},
    {"/cg/a/b/c/io.pressure", "psi.own.io", PSI_RAW_OWN_IO_SOME_US},
    {"/proc/pressure/io", "psi.system.io", PSI_RAW_SYSTEM_IO_SOME_US},
    {"/cg/a/b/c/memory.current", "cgroup-v2", (psi_raw)(PSI_RAW_V2_BOUND + 1)},
    {"/cg/a/b/c/memory.events", "memory.events", PSI_RAW_V2_EVENTS_MAX},
    {"/proc/meminfo", "meminfo", PSI_RAW_MEMORY_AVAILABLE_BYTES},
    {"/proc/zoneinfo", "zoneinfo", PSI_RAW_ZONE_LOW_BYTES},
    {"/proc/vmstat", "vmstat", PSI_RAW_VM_SCAN_DIRECT},
    {"/sys/block/zram0/mm_stat", "zram", PSI_RAW_ZRAM_USED_BYTES},
    {"/proc/self/stat", "faults", PSI_RAW_SELF_MAJOR_FAULTS},
    {"/proc/self/status", "mappings", PSI_RAW_SELF_FILE_BYTES},
    {"/proc/self/maps", NULL, PSI_RAW_SELF_MAPPED_BYTES},
    {"/cg/a/b/c/memory.stat", NULL, PSI_RAW_OWN_REFAULT_FILE},
};
enum { FILES = sizeof(each) / sizeof(each[0]), MISSING = 0, UNREADABLE, ABSURD, WAYS };

static uint64_t bit_of(const psi_signal *signal, const char *row) {
    size_t count = 0;
    return (uint64_t)1 << (source(signal, row) - psi_signal_sources(signal, &count));
}

static void spoil(const char *path, int way) {
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    if (way == ABSURD) {
        put(path, "some total=-1\nfull total=99999999999999999999\n 1 (x) R -\nmin -1\n%s",
            "MemTotal: 1 kB\nMemAvailable: 2 kB\nRssFile: 99999999999999999999 kB\npgscan_direct -7\nmax 1e9\n");
        return;
    }
    take_away(path);
    if (way == UNREADABLE)
        assert_int_equal(mkdir(full, 0700), 0); /* permission does not stop root; EISDIR does */
}

static void repair(const char *path, int way) {
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    if (way == UNREADABLE)
        assert_int_equal(rmdir(full), 0);
    put_all_v2();
}

static void try_one(size_t i, int way) {
    put_all_v2();
    psi_signal *signal = open_signal();
    const psi_sample *sample = psi_signal_last(signal);
    uint64_t bit = each[i].row != NULL ? bit_of(signal, each[i].row) : 0;
    uint64_t swap = strcmp(each[i].path, "/proc/meminfo") == 0 ? bit_of(signal, "swap") : 0;
    read_after(signal, 0);
    assert_true(sample->known[each[i].raw]);
    spoil(each[i].path, way);
    psi_reading reading = read_after(signal, 6000 * MS);
    assert_true(reading.have & PSI_HAVE_HEADROOM); /* one source less is not blindness */
    if (each[i].raw != PSI_RAW_SELF_MAPPED_BYTES || way != ABSURD)
        assert_false(sample->known[each[i].raw]);
    if (psi_signal_changes(signal) != (bit | swap))
        fail_msg("%s, way %d: not said, or something else said", each[i].path, way);
    assert_int_equal(psi_signal_changes(signal), 0);
    if (each[i].row != NULL) {
        assert_false(source(signal, each[i].row)->in_use);
        assert_true(source(signal, each[i].row)->detail[0] != '\0' &&
                    strncmp(source(signal, each[i].row)->detail, root, strlen(root)) != 0);
    }
    repair(each[i].path, way);
    read_after(signal, 6000 * MS);
    assert_true(sample->known[each[i].raw]);
    assert_int_equal(psi_signal_changes(signal), bit | swap);
    psi_signal_close(signal);
}

static void each_source_fails_and_comes_back(void **state) {
    (void)state;
    for (size_t i = 0; i < FILES; i++)
        for (int way = 0; way < WAYS; way++)
            try_one(i, way);
}

static void lost_mappings_are_not_taken_for_free_memory(void **state) {
    (void)state;
    put_machine();
    put_mapped(1024 * MIB, 0);
    psi_signal *signal = open_signal();
    assert_int_equal(read_after(signal, 0).headroom_bytes, 5120 * MIB);
    take_away("/proc/self/status");
    assert_int_equal(read_after(signal, 1000 * MS).headroom_bytes, 5120 * MIB);
    psi_signal_close(signal);
}

static bool join_line(void *user, char *line) {
    strcat(user, line);
    strcat(user, "|");
    return line[0] != '!';
}

static void lines_of_any_length_are_read(void **state) {
    (void)state;
    static const struct {
        const char *text, *wanted;
        size_t capacity, most;
        int result;
    } cases[] = {
        {"", "", 8, 100, 0},
        {"a\nbc\n\nd", "a|bc||d|", 8, 100, 0},
        {"1234567\nx\n", "1234567|x|", 9, 100, 0},
        {"12345678901234567890\nx\n", "x|", 8, 100, 0}, /* does not fit: left out, and the next is whole */
        {"12345678901234567890", "", 8, 100, 0},
        {"a\nb\nc\nd\n", "a|b|", 4, 4, -EFBIG},
        {"a\n!b\nc\n", "a|!b|", 8, 100, 0}, /* enough */
        {"a\n", "", 1, 100, -EINVAL},
    };
    char path[128], buffer[16], seen[64];
    snprintf(path, sizeof(path), "%s/lines", root);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        put("/lines", "%s", cases[i].text);
        seen[0] = '\0';
        assert_int_equal(psi_os_read_lines(path, buffer, cases[i].capacity, cases[i].most, join_line, seen),
                         cases[i].result);
        assert_string_equal(seen, cases[i].wanted);
    }
    assert_int_equal(psi_os_read_lines("/nowhere", buffer, 8, 8, join_line, seen), -ENOENT);
    assert_int_equal(psi_os_read_lines(root, buffer, 8, 8, join_line, seen), -EISDIR);
}

static void a_long_zoneinfo_is_read_to_its_end(void **state) {
    (void)state;
    static char text[200000];
    size_t length = 0;
    for (int i = 0; i < 3000; i++)
        length += (size_t)snprintf(text + length, sizeof(text) - length, "    cpu: %d\n              count: 1\n", i);
    length += (size_t)snprintf(text + length, sizeof(text) - length, "   min 1\n   low 2\n   high 3");
    put_machine();
    put_bytes("/proc/zoneinfo", text, length);
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    assert_int_equal(psi_signal_last(signal)->value[PSI_RAW_ZONE_HIGH_BYTES], 3 * psi_os_page_bytes());
    psi_signal_close(signal);
}

/* ---- Missing and absurd ----------------------------------------------------------------------- */

static void everything_missing_is_named_and_nothing_is_zero(void **state) {
    (void)state;
    psi_signal *signal = open_signal();
    psi_reading reading = read_after(signal, 0);
    reading = read_after(signal, 1000 * MS);
    assert_int_equal(reading.have, 0);
    assert_true(reading.headroom_bytes == UINT64_MAX && reading.limit_bytes == UINT64_MAX);
    size_t count = 0;
    const psi_source *rows = psi_signal_sources(signal, &count);
    assert_int_equal(count, PSI_ROWS);
    for (size_t i = 0; i < count; i++) {
        assert_false(rows[i].in_use);
        assert_true(strlen(rows[i].name) > 0 && strlen(rows[i].detail) > 0);
        /* Not to have these is nothing wrong: the group's rows say what is, and how to cure it. */
        bool is_fine = i == PSI_ROW_EVENTS || i == PSI_ROW_OOM_CONTROL || i == PSI_ROW_ZRAM;
        assert_int_equal(strlen(rows[i].cure) > 0, !is_fine);
    }
    psi_signal_close(signal);
}

static void sources_in_use_show_their_path(void **state) {
    (void)state;
    put_all_v2();
    psi_signal *signal = open_signal();
    size_t count = 0;
    const psi_source *rows = psi_signal_sources(signal, &count);
    for (size_t i = 0; i < count; i++) {
        bool v1 = strcmp(rows[i].name, "cgroup-v1") == 0 || strcmp(rows[i].name, "oom_control") == 0;
        assert_int_equal(rows[i].in_use, !v1);
        assert_int_equal(strncmp(rows[i].detail, root, strlen(root)) == 0, !v1);
        assert_true(rows[i].cure[0] == '\0' || strcmp(rows[i].name, "cgroup-v1") == 0);
    }
    assert_int_equal(psi_signal_changes(signal), 0);
    psi_signal_close(signal);
}

static void sources_that_vanish_leave_their_bits_out(void **state) {
    (void)state;
    put_machine();
    psi_signal *signal = open_signal();
    read_after(signal, 0);
    assert_int_equal(read_after(signal, 1000 * MS).have,
                     PSI_HAVE_STALL | PSI_HAVE_AVG10 | PSI_HAVE_HEADROOM | PSI_HAVE_FILL | PSI_HAVE_FAULTS);
    take_away("/proc/meminfo");
    take_away("/proc/pressure/memory");
    take_away("/proc/self/stat");
    assert_int_equal(read_after(signal, 1000 * MS).have, 0);
    put_machine();
    assert_int_equal(read_after(signal, 1000 * MS).have & PSI_HAVE_HEADROOM, PSI_HAVE_HEADROOM);
    psi_signal_close(signal);
}

static void clock_going_backwards_is_survived(void **state) {
    (void)state;
    psi_signal *signal = open_group(100 * MIB);
    read_after(signal, 0);
    read_after(signal, 1000 * MS);
    now_us -= 500 * MS;
    psi_reading reading = use_and_read(signal, 200 * MIB, 0);
    assert_int_equal(reading.have & PSI_HAVE_STALL, 0);
    assert_int_equal(reading.headroom_bytes, 3896 * MIB);
    assert_near(mib_per_s(&reading), 0, 1);
    psi_signal_close(signal);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(all_values_of_a_v2_machine),
        CASE(values_of_a_v1_group),
        CASE(looks_are_taken_no_oftener_than_they_may),
        CASE(first_look_of_any_depth_has_the_cache),
        CASE(maps_are_read_again_when_the_model_goes),
        CASE(another_process_is_looked_at),
        CASE(moved_to_another_group),
        CASE(each_source_fails_and_comes_back),
        CASE(lost_mappings_are_not_taken_for_free_memory),
        CASE(lines_of_any_length_are_read),
        CASE(a_long_zoneinfo_is_read_to_its_end),
        CASE(everything_missing_is_named_and_nothing_is_zero),
        CASE(sources_in_use_show_their_path),
        CASE(sources_that_vanish_leave_their_bits_out),
        CASE(clock_going_backwards_is_survived),
    };
    return cmocka_run_group_tests_name("sources", tests, NULL, NULL);
}
