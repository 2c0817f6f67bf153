/* sample_names.c - a name for each raw value: what traces and --json hold, so a name never changes its meaning.
 * Called by the trace and by the command, on any thread; keeps no state. */
#include "signal/sample.h"

#include <string.h>

static const char *const names[PSI_RAW_V2_BOUND] = {
    [PSI_RAW_OWN_MEMORY_SOME_US] = "psi.own.memory.some_us",
    [PSI_RAW_OWN_MEMORY_FULL_US] = "psi.own.memory.full_us",
    [PSI_RAW_OWN_MEMORY_AVG10] = "psi.own.memory.avg10",
    [PSI_RAW_OWN_IO_SOME_US] = "psi.own.io.some_us",
    [PSI_RAW_OWN_IO_FULL_US] = "psi.own.io.full_us",
    [PSI_RAW_SYSTEM_MEMORY_SOME_US] = "psi.system.memory.some_us",
    [PSI_RAW_SYSTEM_MEMORY_FULL_US] = "psi.system.memory.full_us",
    [PSI_RAW_SYSTEM_MEMORY_AVG10] = "psi.system.memory.avg10",
    [PSI_RAW_SYSTEM_IO_SOME_US] = "psi.system.io.some_us",
    [PSI_RAW_SYSTEM_IO_FULL_US] = "psi.system.io.full_us",
    [PSI_RAW_TRIGGER_EVENTS] = "trigger.events",
    [PSI_RAW_V2_EVENTS_HIGH] = "v2.events.high",
    [PSI_RAW_V2_EVENTS_MAX] = "v2.events.max",
    [PSI_RAW_V2_EVENTS_OOM] = "v2.events.oom",
    [PSI_RAW_V2_EVENTS_OOM_KILL] = "v2.events.oom_kill",
    [PSI_RAW_V1_FAILCNT] = "v1.failcnt",
    [PSI_RAW_V1_UNDER_OOM] = "v1.under_oom",
    [PSI_RAW_V1_OOM_KILL_DISABLE] = "v1.oom_kill_disable",
    [PSI_RAW_V1_OOM_KILL] = "v1.oom_kill",
    [PSI_RAW_OWN_REFAULT_FILE] = "own.refault_file",
    [PSI_RAW_OWN_REFAULT_ANON] = "own.refault_anon",
    [PSI_RAW_MEMORY_TOTAL_BYTES] = "memory.total_bytes",
    [PSI_RAW_MEMORY_AVAILABLE_BYTES] = "memory.available_bytes",
    [PSI_RAW_MEMORY_FREE_BYTES] = "memory.free_bytes",
    [PSI_RAW_SWAP_TOTAL_BYTES] = "swap.total_bytes",
    [PSI_RAW_SWAP_FREE_BYTES] = "swap.free_bytes",
    [PSI_RAW_ZONE_MIN_BYTES] = "zone.min_bytes",
    [PSI_RAW_ZONE_LOW_BYTES] = "zone.low_bytes",
    [PSI_RAW_ZONE_HIGH_BYTES] = "zone.high_bytes",
    [PSI_RAW_VM_REFAULT_FILE] = "vm.refault_file",
    [PSI_RAW_VM_REFAULT_ANON] = "vm.refault_anon",
    [PSI_RAW_VM_SCAN_DIRECT] = "vm.scan_direct",
    [PSI_RAW_VM_SCAN_KSWAPD] = "vm.scan_kswapd",
    [PSI_RAW_VM_ALLOC_STALLS] = "vm.alloc_stalls",
    [PSI_RAW_VM_SWAP_IN] = "vm.swap_in",
    [PSI_RAW_VM_SWAP_OUT] = "vm.swap_out",
    [PSI_RAW_VM_OOM_KILL] = "vm.oom_kill",
    [PSI_RAW_ZRAM_STORED_BYTES] = "zram.stored_bytes",
    [PSI_RAW_ZRAM_USED_BYTES] = "zram.used_bytes",
    [PSI_RAW_SELF_MAJOR_FAULTS] = "self.major_faults",
    [PSI_RAW_SELF_FILE_BYTES] = "self.file_bytes",
    [PSI_RAW_SELF_LOCKED_BYTES] = "self.locked_bytes",
    [PSI_RAW_SELF_MAPPED_BYTES] = "self.mapped_bytes",
};

static const char *const fields[PSI_BOUND_FIELDS] = {
    [PSI_BOUND_LIMIT] = "limit_bytes",
    [PSI_BOUND_USAGE] = "usage_bytes",
    [PSI_BOUND_CACHE] = "cache_bytes",
};

_Static_assert(PSI_LEVELS <= 100, "a level has at most two digits");

/* "bound.v1.11.limit_bytes" */
static const char *bound_name(size_t raw, char *buffer) {
    bool is_v1 = raw >= PSI_RAW_V1_BOUND;
    size_t index = raw - (is_v1 ? (size_t)PSI_RAW_V1_BOUND : (size_t)PSI_RAW_V2_BOUND);
    size_t level = index / PSI_BOUND_FIELDS;
    char *c = buffer;
    memcpy(c, is_v1 ? "bound.v1." : "bound.v2.", 9);
    c += 9;
    if (level >= 10)
        *c++ = (char)('0' + level / 10);
    *c++ = (char)('0' + level % 10);
    *c++ = '.';
    const char *field = fields[index % PSI_BOUND_FIELDS];
    memcpy(c, field, strlen(field) + 1);
    return buffer;
}

const char *psi_raw_name(size_t raw, char *buffer) {
    return raw < PSI_RAW_V2_BOUND ? names[raw] : bound_name(raw, buffer);
}

static size_t find_bound(const char *name, size_t length) {
    char buffer[PSI_RAW_NAME_BYTES];
    for (size_t raw = PSI_RAW_V2_BOUND; raw < PSI_RAW_COUNT; raw++) {
        const char *each = bound_name(raw, buffer);
        if (strlen(each) == length && memcmp(each, name, length) == 0)
            return raw;
    }
    return PSI_RAW_COUNT;
}

size_t psi_raw_find(const char *name, size_t length) {
    if (length > 6 && memcmp(name, "bound.", 6) == 0)
        return find_bound(name, length);
    for (size_t raw = 0; raw < PSI_RAW_V2_BOUND; raw++)
        if (strlen(names[raw]) == length && memcmp(names[raw], name, length) == 0)
            return raw;
    return PSI_RAW_COUNT;
}
