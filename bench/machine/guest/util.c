/* util.c - clocks, files of the kernel, and the line to the host. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static FILE *results;

uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void sleep_until_us(uint64_t when_us) {
    struct timespec t = {.tv_sec = (time_t)(when_us / 1000000), .tv_nsec = (long)(when_us % 1000000 * 1000)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL); /* a signal ends it early: so it should */
}

int64_t keyed_number(const char *path, const char *key) {
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return -1;
    }
    char line[256];
    size_t length = strlen(key);
    int64_t number = -1;
    while (number < 0 && fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, key, length) == 0 && strchr(": ", line[length]) != NULL && line[length] != '\0') {
            number = strtoll(line + length + 1, NULL, 10);
        }
    }
    (void)fclose(file);
    return number;
}

bool write_text(const char *path, const char *text) {
    int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0) {
        return false;
    }
    bool good = write(descriptor, text, strlen(text)) == (ssize_t)strlen(text);
    (void)close(descriptor);
    return good;
}

void *shared_memory(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    (void)mlock(memory, bytes); /* the report must not itself be slow to write */
    memset(memory, 0, bytes);
    return memory;
}

bool say_open(const char *device) {
    int descriptor = open(device, O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (descriptor < 0) {
        return false;
    }
    struct termios line;
    if (tcgetattr(descriptor, &line) == 0) {
        cfmakeraw(&line);
        (void)tcsetattr(descriptor, TCSANOW, &line);
    }
    results = fdopen(descriptor, "w");
    return results != NULL;
}

void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    (void)vfprintf(results != NULL ? results : stderr, format, arguments);
    va_end(arguments);
    (void)fputc('\n', results != NULL ? results : stderr);
    (void)fflush(results != NULL ? results : stderr);
}
