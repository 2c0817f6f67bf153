/* run.c - one engine, one spike, one line of results. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOOK_US 2000
#define READY_MOST_US (60 * UINT64_C(1000000))
#define SPIKE_MOST_US (60 * UINT64_C(1000000)) /* beyond its schedule */
#define END_MOST_US (20 * UINT64_C(1000000))
#define AFTER_US (700 * UINT64_C(1000))

/* A child of ours, and how it ended. */
typedef struct child {
    pid_t pid;
    bool ended, ours; /* ours: we killed it */
    int status;
} child;

typedef struct run {
    const settings *s;
    engine_report *engine_report;
    spike_report *spike_report;
    child engine, spike[SPIKE_PROCESSES];
    uint64_t begin_us, spike_begin_us;
    int64_t kills_before, available_before; /* bytes */
    size_t spike_bytes;
    uint32_t step_spike, step_after; /* number of the first step in the spike, and after it */
    uint32_t resident_before;
    const char *trouble; /* NULL: none */
} run;

/* ---- Children ---------------------------------------------------------------------------------- */

static bool is_running(child *c) {
    if (c->pid > 0 && !c->ended && waitpid(c->pid, &c->status, WNOHANG) == c->pid) {
        c->ended = true;
    }
    return c->pid > 0 && !c->ended;
}

static void end_child(child *c) {
    if (is_running(c)) {
        c->ours = true;
        (void)kill(c->pid, SIGKILL);
        (void)waitpid(c->pid, &c->status, 0);
        c->ended = true;
    }
}

static bool was_killed(const child *c) {
    return c->ended && !c->ours && WIFSIGNALED(c->status) && WTERMSIG(c->status) == SIGKILL;
}

/* In the child; each part is a group of its own, as services are. */
static void become(const char *name, const char *group) {
    char path[128];
    (void)snprintf(path, sizeof(path), "/sys/fs/cgroup/%s/cgroup.procs", group);
    (void)write_text(path, "0");
    (void)prctl(PR_SET_NAME, name);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void start_engine(run *r) {
    r->engine.pid = fork();
    if (r->engine.pid == 0) {
        become("engine", "engine");
        int status = engine_main(r->s, r->engine_report);
        (void)fflush(NULL);
        _exit(status);
    }
}

static void start_spike(run *r, double rate_mb_s) {
    r->spike_begin_us = now_us() + 20000;
    for (int i = 0; i < SPIKE_PROCESSES; i++) {
        r->spike[i].pid = fork();
        if (r->spike[i].pid == 0) {
            become("spike", "spike");
            sleep_until_us(r->spike_begin_us);
            _exit(spike_main(r->spike_bytes / SPIKE_PROCESSES, rate_mb_s * 1e6 / SPIKE_PROCESSES, r->spike_begin_us,
                             r->s->hold_s, r->spike_report));
        }
    }
}

static bool spike_is_running(run *r) {
    bool any = false;
    for (int i = 0; i < SPIKE_PROCESSES; i++) {
        any = is_running(&r->spike[i]) || any;
    }
    return any;
}

/* ---- The course of a run ------------------------------------------------------------------------ */

static void forget_caches(void) {
    sync();
    (void)write_text("/proc/sys/vm/drop_caches", "3");
}

static bool wait_until_ready(run *r) {
    uint64_t end_us = now_us() + READY_MOST_US;
    while (!atomic_load(&r->engine_report->ready) && is_running(&r->engine) && now_us() < end_us) {
        sleep_until_us(now_us() + LOOK_US);
    }
    if (!atomic_load(&r->engine_report->ready)) {
        r->trouble = is_running(&r->engine) ? "not ready in time" : "ended before it was ready";
    }
    return r->trouble == NULL;
}

/* What is free, and a part of what the cache can give (all but its floor, 1/32): so that giving is enough, and
 * nothing else is. */
static void measure(run *r) {
    r->kills_before = keyed_number("/proc/vmstat", "oom_kill");
    r->available_before = keyed_number("/proc/meminfo", "MemAvailable") * 1024;
    r->resident_before = atomic_load(&r->engine_report->resident_blocks);
    double can_give = (double)r->resident_before * (double)r->s->block_bytes * 31 / 32;
    r->spike_bytes = (size_t)((double)r->available_before + can_give * r->s->share);
}

static void watch_spike(run *r, double rate_mb_s) {
    uint64_t planned_us = (uint64_t)((double)r->spike_bytes / rate_mb_s + r->s->hold_s * 1e6);
    uint64_t end_us = r->spike_begin_us + planned_us + SPIKE_MOST_US;
    while (spike_is_running(r) && is_running(&r->engine) && now_us() < end_us) {
        sleep_until_us(now_us() + LOOK_US);
    }
    if (spike_is_running(r) && is_running(&r->engine)) {
        r->trouble = "the spike did not come to its end";
    }
    for (int i = 0; i < SPIKE_PROCESSES; i++) {
        end_child(&r->spike[i]);
    }
    r->step_after = atomic_load(&r->engine_report->steps);
}

static void end_engine(run *r) {
    sleep_until_us(now_us() + AFTER_US);
    if (is_running(&r->engine)) {
        (void)kill(r->engine.pid, SIGTERM);
    }
    uint64_t end_us = now_us() + END_MOST_US;
    while (is_running(&r->engine) && now_us() < end_us) {
        sleep_until_us(now_us() + LOOK_US);
    }
    if (is_running(&r->engine)) {
        r->trouble = "the engine did not come to its end";
    }
    end_child(&r->engine);
}

/* ---- The line ----------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

/* Median and worst of the steps [from, to), in ms; sorts them in place. */
static void step_times(engine_report *report, uint32_t from, uint32_t to, double *median, double *worst) {
    to = to < STEPS_KEPT ? to : STEPS_KEPT;
    *median = *worst = 0;
    if (from < to) {
        qsort(&report->step_us[from], to - from, sizeof(report->step_us[0]), by_size);
        *median = report->step_us[from + (to - from) / 2] / 1000.0;
        *worst = report->step_us[to - 1] / 1000.0;
    }
}

static const char *outcome(const run *r) {
    if (was_killed(&r->engine)) {
        return "killed";
    }
    if (r->trouble != NULL) {
        return "stuck";
    }
    if (!WIFEXITED(r->engine.status)) {
        return "crashed";
    }
    return WEXITSTATUS(r->engine.status) == 0 ? "ok" : WEXITSTATUS(r->engine.status) == 1 ? "wrong" : "not started";
}

static int spikes_killed(const run *r) {
    int killed = 0;
    for (int i = 0; i < SPIKE_PROCESSES; i++) {
        killed += was_killed(&r->spike[i]);
    }
    return killed;
}

static double reached_mb_s(const run *r) {
    uint64_t last_us = atomic_load(&r->spike_report->last_touch_us);
    double took_us = last_us > r->spike_begin_us ? (double)(last_us - r->spike_begin_us) : 0;
    return took_us > 0 ? (double)atomic_load(&r->spike_report->touched_bytes) / took_us : 0;
}

static void say_result(run *r, double rate_mb_s, int number) {
    engine_report *e = r->engine_report;
    double before, before_worst, during, during_worst, after, after_worst;
    step_times(e, 0, r->step_spike, &before, &before_worst);
    step_times(e, r->step_spike, r->step_after, &during, &during_worst);
    step_times(e, r->step_after, atomic_load(&e->steps), &after, &after_worst);
    int64_t kills = keyed_number("/proc/vmstat", "oom_kill") - r->kills_before;
    double block_mib = (double)r->s->block_bytes / (double)MIB;
    say("{\"event\": \"run\", \"mode\": \"%s\", \"weights\": \"%s\", \"rate_mb_s\": %g, \"number\": %d, "
        "\"engine\": \"%s\", \"trouble\": \"%s\", \"oom_kills\": %lld, \"spikes_killed\": %d, "
        "\"spike_mib\": %.1f, \"touched_mib\": %.1f, \"reached_mb_s\": %.0f, \"available_mib\": %.1f, "
        "\"cache_mib\": %.1f, \"cache_least_mib\": %.1f, \"steps\": %u, "
        "\"step_ms\": {\"before\": [%.1f, %.1f], \"spike\": [%.1f, %.1f], \"after\": [%.1f, %.1f]}, "
        "\"major_faults\": %llu, \"trims\": %llu, \"trimmed_mib\": %.1f, \"came_back\": %u, \"wrong\": %u, \"lost\": "
        "%u, "
        "\"out_at_end\": %u, \"refused\": %u, \"store_errors\": %llu, \"took_s\": %.2f}",
        r->s->mode, r->s->weights, rate_mb_s, number, outcome(r), r->trouble != NULL ? r->trouble : "",
        (long long)kills, spikes_killed(r), (double)r->spike_bytes / (double)MIB,
        (double)atomic_load(&r->spike_report->touched_bytes) / (double)MIB, reached_mb_s(r),
        (double)r->available_before / (double)MIB, r->resident_before * block_mib,
        atomic_load(&e->resident_least) * block_mib, atomic_load(&e->steps), before, before_worst, during, during_worst,
        after, after_worst, (unsigned long long)atomic_load(&e->major_faults), (unsigned long long)e->trims,
        (double)e->trimmed_bytes / (double)MIB, atomic_load(&e->came_back), atomic_load(&e->wrong),
        atomic_load(&e->lost), atomic_load(&e->out_at_end), atomic_load(&e->refused),
        (unsigned long long)e->store_errors, (double)(now_us() - r->begin_us) / 1e6);
}

void run_once(const settings *s, double rate_mb_s, int number) {
    run r = {.s = s, .begin_us = now_us()};
    r.engine_report = shared_memory(sizeof(*r.engine_report));
    r.spike_report = shared_memory(sizeof(*r.spike_report));
    if (r.engine_report == NULL || r.spike_report == NULL) {
        say("{\"event\": \"error\", \"text\": \"no memory for a report\"}");
        return;
    }
    forget_caches();
    start_engine(&r);
    if (wait_until_ready(&r)) {
        sleep_until_us(now_us() + (uint64_t)(s->settle_s * 1e6));
        measure(&r);
        r.step_spike = atomic_load(&r.engine_report->steps);
        start_spike(&r, rate_mb_s);
        watch_spike(&r, rate_mb_s);
    }
    end_engine(&r);
    say_result(&r, rate_mb_s, number);
    (void)munmap(r.engine_report, sizeof(*r.engine_report));
    (void)munmap(r.spike_report, sizeof(*r.spike_report));
}
