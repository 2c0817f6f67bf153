/* find.c - where things are: this executable, our libraries, a command on PATH. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tool/tool.h"

static bool copy_text(char *out, size_t capacity, const char *text) {
    size_t length = strlen(text);
    if (length >= capacity)
        return false;
    memcpy(out, text, length + 1);
    return true;
}

bool tool_own_directory(char *path, size_t capacity) {
    char whole[PATH_MAX];
    if (!realpath("/proc/self/exe", whole))
        return false;
    char *slash = strrchr(whole, '/');
    slash[slash == whole ? 1 : 0] = '\0';
    return copy_text(path, capacity, whole);
}

static bool take_if_there(const char *directory, const char *below, const char *name, char *path, size_t capacity) {
    char candidate[PATH_MAX], whole[PATH_MAX];
    int length = snprintf(candidate, sizeof candidate, "%s%s/%s", directory, below, name);
    /* realpath: the loader must find it from whatever directory the command changes to. */
    return length > 0 && (size_t)length < sizeof candidate && realpath(candidate, whole) && access(whole, R_OK) == 0 &&
           copy_text(path, capacity, whole);
}

bool tool_find_library(const char *name, char *path, size_t capacity) {
    const char *named = getenv("PSI_CACHE_LIB_DIR");
    char own[PATH_MAX];
    if (named && *named && take_if_there(named, "", name, path, capacity))
        return true;
    if (tool_own_directory(own, sizeof own) &&
        (take_if_there(own, "", name, path, capacity) || take_if_there(own, "/../lib", name, path, capacity)))
        return true;
#ifdef PSI_LIB_DIR
    return take_if_there(PSI_LIB_DIR, "", name, path, capacity);
#else
    return false;
#endif
}

int tool_find_command(const char *name, char *path, size_t capacity) {
    if (strchr(name, '/'))
        return access(name, F_OK) != 0 ? ENOENT : copy_text(path, capacity, name) ? 0 : ENOENT;
    const char *list = getenv("PATH");
    int error = ENOENT;
    for (const char *at = list ? list : "/usr/local/bin:/usr/bin:/bin"; *name;) {
        const char *end = strchrnul(at, ':');
        char candidate[PATH_MAX];
        struct stat info;
        int length = snprintf(candidate, sizeof candidate, "%.*s%s%s", (int)(end - at), at, end == at ? "" : "/", name);
        if (length > 0 && (size_t)length < sizeof candidate && stat(candidate, &info) == 0 && S_ISREG(info.st_mode)) {
            if (access(candidate, X_OK) == 0 && copy_text(path, capacity, candidate))
                return 0;
            error = EACCES;
        }
        if (*end == '\0')
            break;
        at = end + 1;
    }
    return error;
}
