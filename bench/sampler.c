/* sampler: looks at a process and its memory group from outside, each millisecond, and believes neither of them.
 * One line a sample: seconds (monotonic), bytes charged to the group, private resident bytes of the process. The lines
 * are kept in memory and printed at the end, so that sampling writes nothing. Ends when the process is gone, on
 * SIGTERM, or after MOST_SECONDS. Asks for a higher priority than an engine's threads have, where it may.
 * Called by rig.py: sampler USAGE_FILE PID INTERVAL_US MOST_SECONDS */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

typedef struct sample {
    double time_s;
    long long usage_bytes, anon_bytes;
} sample;

static volatile sig_atomic_t stopped;

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int read_text(int descriptor, char *text, size_t capacity) {
    ssize_t got = pread(descriptor, text, capacity - 1, 0);
    if (got <= 0)
        return -1;
    text[got] = 0;
    return 0;
}

/* What runs each millisecond must not wait behind the engine's spinning threads. */
static void hurry(void) {
    struct sched_param parameter = {.sched_priority = 1};
    if (sched_setscheduler(0, SCHED_FIFO, &parameter) != 0)
        setpriority(PRIO_PROCESS, 0, -15);
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: sampler USAGE_FILE PID INTERVAL_US MOST_SECONDS\n");
        return 2;
    }
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/%ld/statm", strtol(argv[2], NULL, 10));
    int usage = open(argv[1], O_RDONLY | O_CLOEXEC), statm = open(path, O_RDONLY | O_CLOEXEC);
    double interval_s = strtod(argv[3], NULL) * 1e-6, most_s = strtod(argv[4], NULL);
    if (usage < 0 || statm < 0 || interval_s <= 0 || most_s <= 0)
        return 1;
    size_t most = (size_t)(most_s / interval_s) + 1, count = 0;
    sample *samples = calloc(most, sizeof *samples);
    if (samples == NULL)
        return 1;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    hurry();
    long long page_bytes = sysconf(_SC_PAGESIZE);
    double begin_s = now_s(), due_s = begin_s;
    while (!stopped && count < most && now_s() - begin_s < most_s) {
        sample *s = &samples[count];
        long long size, resident, shared;
        if (read_text(statm, text, sizeof text) != 0 || sscanf(text, "%lld %lld %lld", &size, &resident, &shared) != 3)
            break;
        s->anon_bytes = (resident - shared) * page_bytes;
        if (read_text(usage, text, sizeof text) != 0)
            break;
        s->usage_bytes = strtoll(text, NULL, 10);
        s->time_s = now_s();
        count++;
        due_s += interval_s;
        if (due_s < now_s()) /* late: no bunch of samples afterwards */
            due_s = now_s();
        struct timespec until = {.tv_sec = (time_t)due_s};
        until.tv_nsec = (long)((due_s - (double)until.tv_sec) * 1e9);
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
    for (size_t i = 0; i < count; i++)
        printf("%.6f %lld %lld\n", samples[i].time_s, samples[i].usage_bytes, samples[i].anon_bytes);
    return 0;
}
