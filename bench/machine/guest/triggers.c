/* triggers.c - who may arm which PSI trigger on this kernel, and does an unpressed machine wake it? */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY 65534

static const char *events_without_pressure(int descriptor) {
    struct pollfd wait = {.fd = descriptor, .events = POLLPRI};
    if (poll(&wait, 1, 2500) <= 0) {
        return "none in 2.5 s";
    }
    return (wait.revents & POLLERR) != 0 ? "POLLERR" : "one, though nothing stalls";
}

static void try_trigger(const char *user, const char *path, const char *trigger) {
    const char *outcome = "armed", *events = "-";
    int descriptor = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) {
        outcome = strerror(errno);
    } else if (write(descriptor, trigger, strlen(trigger) + 1) < 0) { /* with the NUL: its last byte is overwritten */
        outcome = strerror(errno);
    } else {
        events = events_without_pressure(descriptor);
    }
    say("{\"event\": \"trigger\", \"user\": \"%s\", \"file\": \"%s\", \"trigger\": \"%s\", \"outcome\": \"%s\", "
        "\"events\": \"%s\"}",
        user, path, trigger, outcome, events);
    if (descriptor >= 0) {
        (void)close(descriptor);
    }
}

static void try_all(const char *user) {
    static const char *const files[] = {"/proc/pressure/memory", "/sys/fs/cgroup/engine/memory.pressure"};
    static const char *const triggers[] = {"some 100000 1000000", "some 200000 2000000", "some 50000 100000"};
    for (size_t f = 0; f < sizeof(files) / sizeof(files[0]); f++) {
        for (size_t t = 0; t < sizeof(triggers) / sizeof(triggers[0]); t++) {
            try_trigger(user, files[f], triggers[t]);
        }
    }
}

void triggers_report(void) {
    /* As a service manager does that hands a group to a user. */
    if (chown("/sys/fs/cgroup/engine/memory.pressure", NOBODY, NOBODY) != 0) {
        say("{\"event\": \"trigger\", \"outcome\": \"no group to hand over: %s\"}", strerror(errno));
    }
    try_all("root");
    pid_t pid = fork();
    if (pid == 0) {
        if (setgid(NOBODY) != 0 || setuid(NOBODY) != 0) {
            _exit(1);
        }
        try_all("nobody");
        _exit(0);
    }
    if (pid > 0) {
        (void)waitpid(pid, NULL, 0);
    }
}
