/* spike: a neighbour that suddenly needs memory, at a rate up to several GB a second. Takes SIZE bytes of private
 * anonymous memory at RATE bytes a second, holds them HOLD seconds, frees them, exits. Several processes share the
 * size, so that the engine is the biggest process of the group and the one that the kernel kills.
 * demo/spike.c is the demo's; this one fills whole chunks with one call, so that page faults do not set the rate, and
 * says what rate was reached rather than what was asked for.
 * Called by rig.py: spike SIZE_BYTES RATE_BYTES_PER_S HOLD_SECONDS [PROCESSES [noise]]
 * noise: its pages hold what no compressor makes shorter, as a camera's frames do; else zeros, which zram keeps for
 * nothing. JSON lines: spike_begin; spike_full (all is held) or spike_short (a part was killed) with the bytes taken,
 * the rate reached over all of it, and over its fastest 32 MiB; spike_end. Ends with 1 when a part of it was killed. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define MAX_PROCESSES 64
#define CHUNK_LEAST_BYTES ((size_t)64 << 10)
#define CHUNK_MOST_BYTES ((size_t)2 << 20)
#define STRETCH_BYTES ((size_t)32 << 20)
#define CHUNK_S 0.002 /* a chunk is this much time's worth, within the bounds above */
/* A share that must be faster than this asks for huge pages (one fault each 2 MiB, where the limit lets them be had;
 * else small pages as before). No higher priority: at the limit it would starve the engine, and that would be another
 * measurement. */
#define FAST_BYTES_PER_S 4e8
#define LATEST_S 120 /* a spike that nobody ends ends itself */

/* Shared by all processes: who has taken how much, and when it had all. */
typedef struct share {
    _Atomic size_t done_bytes;
    double full_s; /* 0: not yet */
} share;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void sleep_until(double when_s) {
    struct timespec t = {.tv_sec = (time_t)when_s};
    t.tv_nsec = (long)((when_s - (double)t.tv_sec) * 1e9);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

static size_t chunk_bytes(double bytes_per_s, size_t page_bytes) {
    double wanted = bytes_per_s * CHUNK_S;
    size_t bytes = wanted > (double)CHUNK_MOST_BYTES ? CHUNK_MOST_BYTES : (size_t)wanted;
    if (bytes < CHUNK_LEAST_BYTES)
        bytes = CHUNK_LEAST_BYTES;
    return bytes / page_bytes * page_bytes;
}

static uint64_t *noise_page; /* NULL: none */

static void make_noise(size_t page_bytes) {
    uint64_t state = UINT64_C(88172645463325252);
    noise_page = malloc(page_bytes);
    for (size_t i = 0; noise_page && i < page_bytes / sizeof *noise_page; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise_page[i] = state;
    }
}

static void fill(char *memory, size_t bytes, size_t page_bytes) {
    bool taken = madvise(memory, bytes, MADV_POPULATE_WRITE) == 0;
    for (size_t done = 0; done < bytes && (noise_page || !taken); done += page_bytes) {
        if (noise_page)
            memcpy(memory + done, noise_page, page_bytes);
        else
            ((volatile char *)memory)[done] = 1; /* before Linux 5.14 */
    }
}

/* One share of the spike, on a schedule: a stall is made up for. */
static int hold_share(share *mine, size_t bytes, double bytes_per_s, double begin_s, double hold_s) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    bytes = (bytes + page_bytes - 1) / page_bytes * page_bytes;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    if (bytes_per_s >= FAST_BYTES_PER_S)
        (void)madvise(memory, bytes, MADV_HUGEPAGE);
    size_t chunk = chunk_bytes(bytes_per_s, page_bytes);
    for (size_t done = 0; done < bytes;) {
        size_t part = bytes - done < chunk ? bytes - done : chunk;
        fill(memory + done, part, page_bytes);
        done += part;
        atomic_store(&mine->done_bytes, done);
        sleep_until(begin_s + (double)done / bytes_per_s);
    }
    mine->full_s = now_s();
    sleep_until(mine->full_s + hold_s);
    munmap(memory, bytes);
    return 0;
}

static size_t taken(const share *shares, long count, double *latest_s) {
    size_t sum = 0;
    *latest_s = 0;
    for (long i = 0; i < count; i++) {
        sum += atomic_load(&shares[i].done_bytes);
        if (shares[i].full_s == 0 || *latest_s < 0)
            *latest_s = -1;
        else if (shares[i].full_s > *latest_s)
            *latest_s = shares[i].full_s;
    }
    return sum;
}

/* The fastest stretch of STRETCH_BYTES so far: the rate where nothing held the spike up. Looked at each 2 ms, so never
 * overstated. */
typedef struct stretch {
    double since_s, fastest_bytes_per_s;
    size_t since_bytes;
} stretch;

static void see(stretch *s, size_t bytes) {
    double at_s = now_s();
    if (bytes < s->since_bytes + STRETCH_BYTES)
        return;
    double rate = (double)(bytes - s->since_bytes) / (at_s - s->since_s);
    if (rate > s->fastest_bytes_per_s)
        s->fastest_bytes_per_s = rate;
    s->since_s = at_s;
    s->since_bytes = bytes;
}

static void say(const char *event, size_t bytes, double time_s, double begin_s, const stretch *s) {
    double took_s = time_s - begin_s;
    printf("{\"event\": \"%s\", \"time_s\": %.6f, \"bytes\": %zu, \"reached_bytes_per_s\": %.0f, "
           "\"fastest_bytes_per_s\": %.0f}\n",
           event, time_s, bytes, took_s > 0 ? (double)bytes / took_s : 0.0, s->fastest_bytes_per_s);
    fflush(stdout);
}

int main(int argc, char **argv) {
    size_t size = argc > 3 ? (size_t)strtoull(argv[1], NULL, 10) : 0;
    double rate = argc > 3 ? strtod(argv[2], NULL) : 0;
    double hold_s = argc > 3 ? strtod(argv[3], NULL) : -1;
    long processes = argc > 4 ? strtol(argv[4], NULL, 10) : 1;
    if (argc > 5 && strcmp(argv[5], "noise") == 0)
        make_noise((size_t)sysconf(_SC_PAGESIZE));
    if (size == 0 || rate <= 0 || hold_s < 0 || processes < 1 || processes > MAX_PROCESSES) {
        fprintf(stderr, "usage: spike SIZE_BYTES RATE_BYTES_PER_S HOLD_SECONDS [PROCESSES]\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    share *shares =
        mmap(NULL, MAX_PROCESSES * sizeof(share), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shares == MAP_FAILED)
        return 1;
    alarm((unsigned)((double)size / rate + hold_s) + LATEST_S);
    double begin_s = now_s(), latest_s = 0;
    stretch seen = {.since_s = begin_s};
    say("spike_begin", 0, begin_s, begin_s, &seen);
    for (long i = 0; i < processes; i++) {
        pid_t pid = fork();
        if (pid < 0)
            return 1;
        if (pid == 0)
            _exit(hold_share(&shares[i], size / (size_t)processes, rate / (double)processes, begin_s, hold_s));
    }
    int killed = 0, ended = 0, status, told = 0;
    while (ended < processes) {
        size_t bytes = taken(shares, processes, &latest_s);
        if (!told)
            see(&seen, bytes);
        if (!told && latest_s > 0) {
            say("spike_full", bytes, latest_s, begin_s, &seen);
            told = 1;
        }
        pid_t pid = waitpid(-1, &status, told ? 0 : WNOHANG);
        if (pid == 0) {
            sleep_until(now_s() + 0.002);
            continue;
        }
        if (pid < 0)
            break;
        ended++;
        int bad = WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
        if (bad && !told) {
            say("spike_short", taken(shares, processes, &latest_s), now_s(), begin_s, &seen);
            told = 1;
        }
        killed += bad;
    }
    say("spike_end", taken(shares, processes, &latest_s), now_s(), begin_s, &seen);
    return killed ? 1 : 0;
}
