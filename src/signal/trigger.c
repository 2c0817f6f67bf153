/* trigger.c - what wakes the watcher out of a long sleep: the kernel's PSI triggers on the own group and on the
 * machine, and the events that systemd sends a service. Called by the watcher thread only; knows nothing of what a
 * wake-up is good for. Each source that is missing has a row that says why and what would help. */
#include "signal/trigger.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "signal/parse.h"

#define RETRY_US UINT64_C(60000000)
#define REQUEST_BYTES ((size_t)256)
#define TEXT_BYTES ((size_t)1024)
#define DETAIL_BYTES (PSI_PATH_BYTES + 160)

enum { OWN, SYSTEM, SYSTEMD };
#define ROW(i) (1u << (i))
#define KERNEL_ROWS (ROW(OWN) | ROW(SYSTEM))
#define ALL_ROWS (KERNEL_ROWS | ROW(SYSTEMD))

typedef struct request {
    char bytes[REQUEST_BYTES]; /* a NUL always follows */
    size_t count;
} request;

/* How much stall wakes us. It must be little, since waking costs one reading, and memory that nothing can reclaim
 * stalls for less than 10 ms in all before the kill (headroom has to see that one); and not so little that the ordinary
 * work of kswapd wakes us. Android's lmkd has lived with 70 ms in 1 s. Who may not ask for 1 s (no CAP_SYS_RESOURCE:
 * windows are multiples of 2 s from Linux 6.4 on) asks for about the same share of 2 s; systemd's default there is 200
 * ms. */
static const request our_requests[] = {{"some 70000 1000000", sizeof("some 70000 1000000")},
                                       {"some 150000 2000000", sizeof("some 150000 2000000")}};
#define OUR_REQUESTS (sizeof(our_requests) / sizeof(our_requests[0]))

typedef struct source {
    char path[PSI_PATH_BYTES]; /* empty: there is nothing to arm */
    psi_os_kind kind;          /* FIFO or socket: bytes that come are the event */
    bool is_systemds;          /* the same file as systemd's: it has chosen the threshold */
    request asked;             /* of systemd; count 0: ours */
    size_t next_request;       /* of ours, the first that was not refused */
    const request *armed_with; /* kernel's files only */
    int descriptor;            /* -1: not armed */
    uint64_t total_us;         /* stall before arming, or at the last genuine event */
    size_t echo_bytes;         /* what we wrote into a FIFO, and may read again */
    uint64_t not_before_us;
    char detail[DETAIL_BYTES];
} source;

struct psi_trigger {
    source sources[PSI_TRIGGERS];
    psi_source rows[PSI_TRIGGERS];
    uint64_t told; /* one bit a row: its in_use when changes were last asked for */
    uint64_t events;
};

/* ---- Rows -------------------------------------------------------------------------------------- */

typedef struct cause {
    unsigned rows;
    int error;
    const char *why, *cure;
} cause;

#define LET_SYSTEMD "let the service manager hand one over: MemoryPressureWatch=on in the unit (systemd 254)"

static const cause causes[] = {
    {ROW(OWN), -ENOENT, "no such file: a kernel without PSI, booted without psi=1, or 0 in the group's cgroup.pressure",
     "psi=1 on the kernel command line, or 1 into cgroup.pressure"},
    {ROW(SYSTEM), -ENOENT, "no such file: a kernel without CONFIG_PSI, or booted without psi=1",
     "psi=1 on the kernel command line (CONFIG_PSI=y)"},
    {ROW(SYSTEMD), -ENOENT, "MEMORY_PRESSURE_WATCH names a file that is not there", "restart the service"},
    {ALL_ROWS, -EOPNOTSUPP, "PSI is built in but off", "psi=1 on the kernel command line"},
    {ALL_ROWS, -EROFS, "mounted read-only, as in most containers: it can be read, not armed",
     "mount it writable, or " LET_SYSTEMD},
    {KERNEL_ROWS, -EACCES, "this user may not write to it", "Delegate=yes in the unit, or " LET_SYSTEMD},
    {ROW(SYSTEMD), -EACCES, "this user may not write to it", "the user that the service manager started"},
    {ALL_ROWS, -EPERM, "refused: before Linux 6.4 (6.7 for groups) this needs CAP_SYS_RESOURCE",
     "a newer kernel, CAP_SYS_RESOURCE, or " LET_SYSTEMD},
    {ALL_ROWS, -EBUSY, "busy: another trigger sits on it", "end the program that holds it"},
    {KERNEL_ROWS, -EINVAL, "the kernel refuses our thresholds, or it is no pressure file", "a kernel of 5.2 or newer"},
    {ROW(SYSTEMD), -EINVAL, "the kernel refuses the thresholds in MEMORY_PRESSURE_WRITE",
     "MemoryPressureThresholdSec= in the unit"},
    {ROW(SYSTEMD), -ENXIO, "MEMORY_PRESSURE_WATCH names neither a file nor a FIFO nor a socket",
     "unset it, or set it right"},
    {ROW(SYSTEMD), -ECONNREFUSED, "nobody listens at this socket", "restart the service"},
    {ALL_ROWS, -EMFILE, "this process has no file descriptor left", "a higher limit: ulimit -n"},
    {ALL_ROWS, -ENAMETOOLONG, "the path is too long", "a shorter path"},
};

static void say_missing(psi_trigger *trigger, size_t i, const char *why, const char *cure) {
    source *s = &trigger->sources[i];
    char path[PSI_PATH_BYTES];
    (void)psi_path_join(path, s->path, strlen(s->path), "");
    (void)snprintf(s->detail, sizeof(s->detail), "%s%s%s", path, path[0] != '\0' ? ": " : "", why);
    trigger->rows[i].in_use = false;
    trigger->rows[i].detail = s->detail;
    trigger->rows[i].cure = cure;
}

static void say_in_use(psi_trigger *trigger, size_t i) {
    trigger->rows[i].in_use = true;
    trigger->rows[i].detail = trigger->sources[i].path;
    trigger->rows[i].cure = "";
}

/* Also notes that it is left alone for a while. */
static void refuse(psi_trigger *trigger, size_t i, int error) {
    char why[64];
    trigger->sources[i].not_before_us = psi_os_now_us() + RETRY_US;
    for (size_t k = 0; k < sizeof(causes) / sizeof(causes[0]); k++) {
        if (causes[k].error == error && (causes[k].rows & ROW(i)) != 0) {
            say_missing(trigger, i, causes[k].why, causes[k].cure);
            return;
        }
    }
    (void)snprintf(why, sizeof(why), "cannot be armed (error %d)", -error);
    say_missing(trigger, i, why, "");
}

static bool is_stream(const source *s) { return s->kind == PSI_OS_FIFO || s->kind == PSI_OS_SOCKET; }

static void close_source(source *s) {
    psi_os_close(s->descriptor);
    s->descriptor = -1;
}

/* ---- What the kernel counts -------------------------------------------------------------------- */

/* The threshold's own line: "some" or "full". */
static int read_total(const source *s, const request *armed_with, uint64_t *total_us) {
    char text[TEXT_BYTES];
    ssize_t length = psi_os_read_small(s->path, text, sizeof(text));
    if (length < 0)
        return (int)length;
    const char *line = psi_parse_line(text, strncmp(armed_with->bytes, "full", 4) == 0 ? "full" : "some");
    const char *total = line != NULL ? strstr(line, "total=") : NULL;
    return total != NULL && psi_parse_u64(total + strlen("total="), total_us) ? 0 : -EINVAL;
}

/* The kernel's first events after arming can be false: an unprivileged trigger begins to count at 0 instead of at the
 * present total (update_triggers in kernel/sched/psi.c, 6.4 to 6.18 at least), so the first microsecond of new stall
 * looks like all stall since boot. New stall there always is; hence not "did it grow" but "by half the threshold". */
static bool is_genuine(source *s) {
    uint64_t total_us = 0, threshold_us = 0;
    const char *blank = strchr(s->armed_with->bytes, ' ');
    if (read_total(s, s->armed_with, &total_us) != 0)
        return true; /* cannot be refuted */
    if (blank == NULL || !psi_parse_u64(blank + 1, &threshold_us))
        threshold_us = 0;
    if (total_us <= s->total_us || total_us - s->total_us < threshold_us / 2)
        return false;
    s->total_us = total_us;
    return true;
}

/* ---- systemd's protocol (systemd.io/MEMORY_PRESSURE) --------------------------------------------- */

static int base64_digit(char c) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *found = c != '\0' ? strchr(digits, c) : NULL;
    return found != NULL ? (int)(found - digits) : -1;
}

/* False for anything but whole groups of four, and for more than fits. */
static bool decode_base64(const char *text, request *out) {
    size_t length = strlen(text);
    size_t padding = length > 0 && text[length - 1] == '=' ? (length > 1 && text[length - 2] == '=' ? 2u : 1u) : 0;
    if (length % 4 != 0 || length / 4 * 3 >= sizeof(out->bytes) + padding)
        return false;
    *out = (request){.count = 0};
    uint32_t bits = 0;
    for (size_t i = 0; i < length - padding; i++) {
        int digit = base64_digit(text[i]);
        if (digit < 0)
            return false;
        bits = (bits << 6) | (uint32_t)digit;
        if (i % 4 != 0)
            out->bytes[out->count++] = (char)(unsigned char)(bits >> (6 - 2 * (i % 4)));
    }
    return true;
}

#define WATCH "MEMORY_PRESSURE_WATCH"
#define WRITE "MEMORY_PRESSURE_WRITE"

/* What it is decides how it is armed and drained; reading a FIFO as if it were a file would hang. */
static int look_at_systemds(source *s) {
    psi_os_identity identity = {.kind = PSI_OS_OTHER};
    int error = psi_os_identify(s->path, &identity);
    s->kind = identity.kind;
    return error != 0 ? error : identity.kind == PSI_OS_OTHER ? -ENXIO : 0;
}

/* Why the environment names nothing, or NULL; then path and asked are filled in. */
static const char *read_environment(source *s, const char *root) {
    const char *watch = getenv(WATCH), *write = getenv(WRITE);
    if (watch == NULL)
        return WATCH " is not set: no service manager asks for it";
    if (strcmp(watch, "/dev/null") == 0)
        return "off by the service manager (" WATCH "=/dev/null)";
    if (write != NULL && !decode_base64(write, &s->asked))
        return WRITE " is not base64, or too long";
    if (watch[0] != '/' || !psi_path_join(s->path, root, strlen(root), watch))
        return WATCH " is not an absolute path, or too long";
    return NULL;
}

static void find_systemds(psi_trigger *trigger, const char *root) {
    source *s = &trigger->sources[SYSTEMD];
    const char *why = read_environment(s, root);
    if (why != NULL) {
        say_missing(trigger, SYSTEMD, why, getenv(WATCH) != NULL ? "MemoryPressureWatch=on in the unit" : "");
        return;
    }
    int error = look_at_systemds(s);
    if (error != 0)
        refuse(trigger, SYSTEMD, error);
    else
        say_in_use(trigger, SYSTEMD);
}

/* ---- Arming ------------------------------------------------------------------------------------ */

static int arm_stream(source *s) {
    s->descriptor = psi_os_open_trigger(s->path, s->asked.bytes, s->asked.count);
    s->echo_bytes = s->kind == PSI_OS_FIFO ? s->asked.count : 0;
    return s->descriptor < 0 ? s->descriptor : 0;
}

static int arm_with(source *s, const request *r) {
    int error = read_total(s, r, &s->total_us); /* while nothing is armed on it that reading could swallow */
    if (error != 0)
        return error;
    s->descriptor = psi_os_open_trigger(s->path, r->bytes, r->count);
    s->armed_with = r;
    return s->descriptor < 0 ? s->descriptor : 0;
}

static int arm_kernels(source *s) {
    if (s->asked.count > 0)
        return arm_with(s, &s->asked);
    int error = arm_with(s, &our_requests[s->next_request]);
    while ((error == -EINVAL || error == -EPERM) && s->next_request + 1 < OUR_REQUESTS) {
        s->next_request++;
        error = arm_with(s, &our_requests[s->next_request]);
    }
    return error;
}

static void arm_one(psi_trigger *trigger, size_t i) {
    source *s = &trigger->sources[i];
    if (s->descriptor >= 0 || s->path[0] == '\0')
        return;
    if (s->is_systemds && trigger->sources[SYSTEMD].descriptor >= 0) {
        say_missing(trigger, i, "the service manager's trigger watches this file", "");
        return;
    }
    if (psi_os_now_us() < s->not_before_us)
        return;
    int error = i == SYSTEMD ? look_at_systemds(s) : 0;
    if (error == 0)
        error = is_stream(s) ? arm_stream(s) : arm_kernels(s);
    if (error == 0) {
        say_in_use(trigger, i);
    } else {
        s->descriptor = -1;
        s->next_request = 0;
        refuse(trigger, i, error);
    }
}

size_t psi_trigger_arm(psi_trigger *trigger) {
    size_t armed = 0;
    for (size_t i = PSI_TRIGGERS; i-- > 0;) { /* systemd's first: another may give way to it */
        arm_one(trigger, i);
        armed += trigger->sources[i].descriptor >= 0;
    }
    return armed;
}

void psi_trigger_disarm(psi_trigger *trigger) {
    close_source(&trigger->sources[OWN]);
    close_source(&trigger->sources[SYSTEM]);
}

/* ---- Events ------------------------------------------------------------------------------------ */

size_t psi_trigger_watches(const psi_trigger *trigger, psi_os_watch *watches) {
    size_t count = 0;
    for (size_t i = 0; i < PSI_TRIGGERS; i++) {
        const source *s = &trigger->sources[i];
        if (s->descriptor >= 0)
            watches[count++] = (psi_os_watch){.descriptor = s->descriptor, .urgent = !is_stream(s)};
    }
    return count;
}

static void let_go(psi_trigger *trigger, size_t i) {
    source *s = &trigger->sources[i];
    close_source(s);
    s->not_before_us = psi_os_now_us() + RETRY_US;
    if (is_stream(s)) {
        say_missing(trigger, i, "gone: the other side has closed it", "restart the service");
    } else {
        say_missing(trigger, i, "gone: the group was removed", "none needed if the process has another group now");
        s->path[0] = '\0'; /* a group that comes back under this name is another one */
    }
}

/* Bytes that were sent, and the closing that may stand behind them. */
static size_t take_stream(psi_trigger *trigger, size_t i, bool gone) {
    source *s = &trigger->sources[i];
    ssize_t got = psi_os_drain(s->descriptor);
    if (got < 0 || gone)
        let_go(trigger, i);
    bool is_genuine_one = got > 0 && (size_t)got > s->echo_bytes;
    s->echo_bytes = 0;
    return is_genuine_one ? 1 : 0;
}

static size_t take_one(psi_trigger *trigger, size_t i, const psi_os_watch *watch) {
    if (is_stream(&trigger->sources[i]))
        return take_stream(trigger, i, watch->gone);
    if (watch->gone) {
        let_go(trigger, i);
        return 0;
    }
    return is_genuine(&trigger->sources[i]) ? 1 : 0;
}

size_t psi_trigger_take(psi_trigger *trigger, const psi_os_watch *watches, size_t count) {
    size_t genuine = 0;
    for (size_t k = 0; k < count; k++) {
        for (size_t i = 0; i < PSI_TRIGGERS && (watches[k].ready || watches[k].gone); i++) {
            if (watches[k].descriptor >= 0 && watches[k].descriptor == trigger->sources[i].descriptor) {
                genuine += take_one(trigger, i, &watches[k]);
                break;
            }
        }
    }
    trigger->events += genuine;
    return genuine;
}

uint64_t psi_trigger_events(const psi_trigger *trigger) { return trigger->events; }

/* ---- Opening ----------------------------------------------------------------------------------- */

/* What can be said before anything is armed: may it be read and opened for writing? */
static void probe(psi_trigger *trigger, size_t i) {
    source *s = &trigger->sources[i];
    uint64_t total_us;
    int error = read_total(s, &our_requests[0], &total_us);
    if (error == 0) {
        int descriptor = psi_os_open_trigger(s->path, NULL, 0);
        error = descriptor < 0 ? descriptor : 0;
        psi_os_close(descriptor);
    }
    if (error != 0)
        refuse(trigger, i, error);
    else
        say_in_use(trigger, i);
}

static void compare_with_systemds(psi_trigger *trigger, size_t i) {
    psi_os_identity own, systemds;
    trigger->sources[i].is_systemds = psi_os_identify(trigger->sources[i].path, &own) == 0 &&
                                      psi_os_identify(trigger->sources[SYSTEMD].path, &systemds) == 0 &&
                                      own.device == systemds.device && own.inode == systemds.inode;
}

static uint64_t rows_in_use(const psi_trigger *trigger) {
    uint64_t bits = 0;
    for (size_t i = 0; i < PSI_TRIGGERS; i++)
        bits |= trigger->rows[i].in_use ? UINT64_C(1) << i : 0;
    return bits;
}

psi_trigger *psi_trigger_open(const char *root, const char *group_v2) {
    static const char *const names[PSI_TRIGGERS] = {"trigger.own", "trigger.system", "trigger.systemd"};
    static const char tail[] = "/memory.pressure";
    psi_trigger *trigger = calloc(1, sizeof(*trigger));
    if (trigger == NULL)
        return NULL;
    root = root != NULL ? root : "";
    for (size_t i = 0; i < PSI_TRIGGERS; i++) {
        trigger->sources[i].descriptor = -1;
        trigger->rows[i] = (psi_source){.name = names[i], .detail = "", .cure = ""};
    }
    find_systemds(trigger, root);
    if (group_v2 == NULL)
        say_missing(trigger, OWN, "no cgroup v2 group of our own", "");
    else if (!psi_path_join(trigger->sources[OWN].path, group_v2, strlen(group_v2), tail))
        refuse(trigger, OWN, -ENAMETOOLONG);
    if (!psi_path_join(trigger->sources[SYSTEM].path, root, strlen(root), "/proc/pressure/memory"))
        refuse(trigger, SYSTEM, -ENAMETOOLONG);
    for (size_t i = OWN; i <= SYSTEM; i++) {
        if (trigger->sources[i].path[0] == '\0')
            continue;
        probe(trigger, i);
        compare_with_systemds(trigger, i);
        if (trigger->sources[i].is_systemds && trigger->rows[SYSTEMD].in_use)
            say_missing(trigger, i, "the service manager's trigger watches this file", "");
    }
    trigger->told = rows_in_use(trigger);
    return trigger;
}

void psi_trigger_close(psi_trigger *trigger) {
    if (trigger == NULL)
        return;
    for (size_t i = 0; i < PSI_TRIGGERS; i++)
        close_source(&trigger->sources[i]);
    free(trigger);
}

const psi_source *psi_trigger_sources(const psi_trigger *trigger, size_t *count) {
    *count = PSI_TRIGGERS;
    return trigger->rows;
}

uint64_t psi_trigger_changes(psi_trigger *trigger) {
    uint64_t now = rows_in_use(trigger);
    uint64_t changed = now ^ trigger->told;
    trigger->told = now;
    return changed;
}
