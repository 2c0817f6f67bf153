/* init.c - the first process: mounts, works through the plan on the kernel's command line, powers off.
 *
 * Words after "--" on the command line are ours: mode=auto weights=mapped plan=50x3,4000x3 ... An unknown word is an
 * error: a typing mistake must not run another bench than the one that was asked for. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

static void mount_one(const char *what, const char *where, const char *type) {
    (void)mkdir(where, 0755);
    if (mount(what, where, type, 0, NULL) != 0) {
        (void)fprintf(stderr, "init: %s on %s: %s\n", type, where, strerror(errno));
    }
}

static void make_groups(void) {
    (void)write_text("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
    (void)mkdir("/sys/fs/cgroup/engine", 0755);
    (void)mkdir("/sys/fs/cgroup/spike", 0755);
}

static void mount_all(void) {
    (void)mkdir("/var", 0755);
    mount_one("devtmpfs", "/dev", "devtmpfs");
    mount_one("proc", "/proc", "proc");
    mount_one("sysfs", "/sys", "sysfs");
    mount_one("cgroup2", "/sys/fs/cgroup", "cgroup2");
    (void)mkdir("/run", 0755);
    (void)mkdir("/tmp", 01777);
    make_groups();
    /* The driver may still be looking at the disk. */
    for (int i = 0; i < 100 && access("/dev/nvme0n1", F_OK) != 0; i++) {
        (void)usleep(20000);
    }
    mount_one("/dev/nvme0n1", STORE_DIR, "ext4");
}

static bool take_word(settings *s, const char *word) {
    if (sscanf(word, "mode=%15s", s->mode) == 1 || sscanf(word, "weights=%15s", s->weights) == 1 ||
        sscanf(word, "plan=%511s", s->plan) == 1) {
        return true;
    }
    const char *equals = strchr(word, '=');
    if (equals == NULL) {
        return false;
    }
    char name[32];
    (void)snprintf(name, sizeof(name), "%.*s", (int)(equals - word), word);
    double number = strtod(equals + 1, NULL);
    if (strcmp(name, "cache_mib") == 0) {
        s->cache_bytes = (size_t)number * MIB;
    } else if (strcmp(name, "ballast_mib") == 0) {
        s->ballast_bytes = (size_t)number * MIB;
    } else if (strcmp(name, "block_kib") == 0) {
        s->block_bytes = (size_t)number << 10;
    } else if (strcmp(name, "step_ms") == 0) {
        s->step_us = (uint64_t)(number * 1000);
    } else if (strcmp(name, "settle_s") == 0) {
        s->settle_s = number;
    } else if (strcmp(name, "hold_s") == 0) {
        s->hold_s = number;
    } else if (strcmp(name, "share") == 0) {
        s->share = number;
    } else if (strcmp(name, "verbose") == 0) {
        s->verbose = number != 0;
    } else {
        return false;
    }
    return true;
}

static const char *psi_state(void) {
    int descriptor = open("/proc/pressure/memory", O_RDONLY | O_CLOEXEC);
    char byte;
    if (descriptor < 0 || read(descriptor, &byte, 1) != 1) {
        return errno == EOPNOTSUPP ? "off" : "missing";
    }
    (void)close(descriptor);
    return "on";
}

/* How fast this machine is, in MB/s: without that a rate says little. */
static double touch_speed(void) {
    size_t bytes = 64 * MIB;
    uint64_t begin_us = now_us();
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return 0;
    }
    for (size_t at = 0; at < bytes; at += 4096) {
        memory[at] = 1;
    }
    double speed = (double)bytes / (double)(now_us() - begin_us);
    (void)munmap(memory, bytes);
    return speed;
}

static double write_speed(void) {
    static char chunk[256 << 10];
    uint64_t begin_us = now_us();
    int descriptor = open(STORE_DIR, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    size_t done = 0;
    while (descriptor >= 0 && done < 32 * MIB && write(descriptor, chunk, sizeof(chunk)) == (ssize_t)sizeof(chunk)) {
        done += sizeof(chunk);
    }
    bool good = descriptor >= 0 && fdatasync(descriptor) == 0;
    (void)close(descriptor);
    return good ? (double)done / (double)(now_us() - begin_us) : 0;
}

static void say_boot(const settings *s) {
    struct utsname name = {0};
    (void)uname(&name);
    say("{\"event\": \"boot\", \"kernel\": \"%s\", \"psi\": \"%s\", \"mode\": \"%s\", \"weights\": \"%s\", "
        "\"plan\": \"%s\", \"mem_total_mib\": %lld, \"mem_available_mib\": %lld, \"weights_file\": %s, \"touch_mb_s\": "
        "%.0f, "
        "\"write_mb_s\": %.0f, \"up_s\": %.2f}",
        name.release, psi_state(), s->mode, s->weights, s->plan,
        (long long)keyed_number("/proc/meminfo", "MemTotal") / 1024,
        (long long)keyed_number("/proc/meminfo", "MemAvailable") / 1024,
        access(WEIGHTS_FILE, R_OK) == 0 ? "true" : "false", touch_speed(), write_speed(), (double)now_us() / 1e6);
}

/* Runs of different rates take turns, so that what changes with time meets all of them alike. False: nothing left. */
static bool run_round(const settings *s, int round) {
    char plan[sizeof(s->plan)];
    (void)snprintf(plan, sizeof(plan), "%s", s->plan);
    bool any = false;
    char *rest = NULL;
    for (char *cell = strtok_r(plan, ",", &rest); cell != NULL; cell = strtok_r(NULL, ",", &rest)) {
        double rate = 0;
        int runs = 0;
        if (sscanf(cell, "%lfx%d", &rate, &runs) == 2 && rate > 0 && round < runs) {
            run_once(s, rate, round);
            any = true;
        }
    }
    return any;
}

/* Other programs of the machine: memory that is simply in use. Not handed on to our children, whose size it would
 * count to. */
static bool hold_ballast(size_t bytes) {
    if (bytes == 0) {
        return true;
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || madvise(memory, bytes, MADV_DONTFORK) != 0) {
        return false;
    }
    memset(memory, 1, bytes);
    return true;
}

static void power_off(void) {
    sync();
    (void)reboot(RB_POWER_OFF);
    _exit(0); /* the kernel panics then, and qemu ends all the same */
}

int main(int argc, char **argv) {
    settings s = {
        .cache_bytes = 192 * MIB, .block_bytes = 256 << 10, .step_us = 20000, .settle_s = 2, .hold_s = 2, .share = 0.5};
    mount_all();
    if (!say_open("/dev/ttyS1")) {
        (void)fprintf(stderr, "init: no second serial port: %s\n", strerror(errno));
    }
    for (int i = 1; i < argc; i++) {
        if (!take_word(&s, argv[i])) {
            say("{\"event\": \"error\", \"text\": \"init does not know the word %s\"}", argv[i]);
            power_off();
        }
    }
    if (!hold_ballast(s.ballast_bytes)) {
        say("{\"event\": \"error\", \"text\": \"no memory for %zu MiB of ballast\"}", s.ballast_bytes / MIB);
        power_off();
    }
    say_boot(&s);
    if (strcmp(s.mode, "triggers") == 0) {
        triggers_report();
    }
    for (int round = 0; run_round(&s, round); round++) {
    }
    say("{\"event\": \"end\"}");
    power_off();
}
