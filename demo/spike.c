/* spike: other programs of the same machine that suddenly need memory (a camera pipeline, a map
 * update). Touches SIZE bytes at RATE bytes a second, holds them, frees them, exits. Several processes
 * share the size, as a camera pipeline's do; the out-of-memory killer then ends the biggest process of
 * the group, which is the language model. oom_score_adj is left as it is.
 * Called by demo.py: spike SIZE_BYTES RATE_BYTES_PER_S HOLD_SECONDS [PROCESSES]
 * Prints one JSON line at the beginning, when the whole size is held, and at the end. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_BYTES ((size_t)1 << 20)
#define MAX_PROCESSES 64

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

static void say(const char *event, size_t bytes) {
    printf("{\"event\": \"%s\", \"time_s\": %.6f, \"bytes\": %zu}\n", event, now_s(), bytes);
    fflush(stdout);
}

/* One share of the spike: touched chunk by chunk on a schedule, so that a stall is made up for. */
static int hold_share(size_t bytes, double bytes_per_s, double begin_s, double end_s) {
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t done = 0; done < bytes;) {
        size_t stop = done + CHUNK_BYTES < bytes ? done + CHUNK_BYTES : bytes;
        for (; done < stop; done += page_bytes)
            memory[done] = 1;
        sleep_until(begin_s + (double)done / bytes_per_s);
    }
    sleep_until(end_s);
    munmap(memory, bytes);
    return 0;
}

int main(int argc, char **argv) {
    size_t size = argc > 3 ? (size_t)strtoull(argv[1], NULL, 10) : 0;
    double rate = argc > 3 ? strtod(argv[2], NULL) : 0;
    double hold_s = argc > 3 ? strtod(argv[3], NULL) : -1;
    long processes = argc > 4 ? strtol(argv[4], NULL, 10) : 1;
    if (size == 0 || rate <= 0 || hold_s < 0 || processes < 1 || processes > MAX_PROCESSES) {
        fprintf(stderr, "usage: spike SIZE_BYTES RATE_BYTES_PER_S HOLD_SECONDS [PROCESSES]\n");
        return 2;
    }
    double begin_s = now_s(), full_s = begin_s + (double)size / rate;
    say("spike_begin", size);
    for (long i = 0; i < processes; i++) {
        pid_t pid = fork();
        if (pid < 0)
            return 1;
        if (pid == 0)
            _exit(hold_share(size / (size_t)processes, rate / (double)processes, begin_s, full_s + hold_s));
    }
    sleep_until(full_s);
    say("spike_full", size);
    int killed = 0, status;
    while (wait(&status) > 0)
        killed += WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
    say("spike_end", size);
    return killed ? 1 : 0; /* 1: part of the spike itself was killed */
}
