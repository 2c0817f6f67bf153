/* group.c - finds the process's cgroup: the path in its /proc/PID/cgroup, seen through the mount that shows
 * it. Called by sources.c when it opens and every few seconds, on the watcher thread. In a container the mount may
 * show a part of the tree only, or the path may be the host's: then the mount itself is the best there is. */
#include "signal/sources.h"

#include "os/os.h"

#include <errno.h>
#include <string.h>

#define LINE_FIELDS 24
#define MOUNTS_MOST_BYTES ((size_t)4 << 20) /* mount tables of container hosts run to hundreds of lines */

typedef struct mount_entry {
    const char *shown; /* the group that the mount shows */
    char *point;
    const char *type, *options;
} mount_entry;

/* ---- The path in /proc/PID/cgroup: "hierarchy:controllers:path" ------------------------------ */

static bool is_wanted_line(const char *line, const char *path, psi_cgroup_version version) {
    if (version == PSI_CGROUP_V2)
        return strncmp(line, "0::", 3) == 0;
    const char *names = strchr(line, ':') + 1;
    return psi_parse_has_word(names, (size_t)(path - 1 - names), ',', "memory");
}

static bool find_path(const char *text, psi_cgroup_version version, char *path) {
    while (*text != '\0') {
        size_t length = strcspn(text, "\n");
        const char *first = memchr(text, ':', length);
        const char *second = first != NULL ? memchr(first + 1, ':', length - (size_t)(first + 1 - text)) : NULL;
        if (second != NULL && second[1] == '/' && is_wanted_line(text, second + 1, version))
            return psi_path_join(path, second + 1, length - (size_t)(second + 1 - text), "");
        text += length + (text[length] == '\n');
    }
    return false;
}

/* ---- The mount -------------------------------------------------------------------------------- */

/* The kernel writes blanks and backslashes in paths as \ooo. */
static void unescape(char *text) {
    char *to = text;
    for (const char *c = text; *c != '\0'; c++) {
        bool octal =
            c[0] == '\\' && c[1] >= '0' && c[1] <= '3' && c[2] >= '0' && c[2] <= '7' && c[3] >= '0' && c[3] <= '7';
        if (octal) {
            *to++ = (char)(((c[1] - '0') << 6) | ((c[2] - '0') << 3) | (c[3] - '0'));
            c += 3;
        } else {
            *to++ = *c;
        }
    }
    *to = '\0';
}

static size_t split(char *line, char **field) {
    size_t count = 0;
    char *c = line;
    while (count < LINE_FIELDS) {
        c += strspn(c, " ");
        if (*c == '\0')
            break;
        field[count++] = c;
        c += strcspn(c, " ");
        if (*c != '\0')
            *c++ = '\0';
    }
    return count;
}

/* mountinfo: id parent dev shown point options [tags...] - type source super-options
 * mounts:    source point type options ... */
static bool parse_mount(char *line, bool is_mountinfo, mount_entry *entry) {
    char *field[LINE_FIELDS];
    size_t count = split(line, field);
    if (!is_mountinfo) {
        if (count < 4)
            return false;
        *entry = (mount_entry){"/", field[1], field[2], field[3]};
    } else {
        size_t dash = 6;
        while (dash < count && strcmp(field[dash], "-") != 0)
            dash++;
        if (dash + 3 >= count)
            return false;
        unescape(field[3]);
        *entry = (mount_entry){field[3], field[4], field[dash + 1], field[dash + 3]};
    }
    unescape(entry->point);
    return true;
}

static bool is_wanted_mount(const mount_entry *entry, psi_cgroup_version version) {
    if (version == PSI_CGROUP_V2)
        return strcmp(entry->type, "cgroup2") == 0;
    return strcmp(entry->type, "cgroup") == 0 &&
           psi_parse_has_word(entry->options, strlen(entry->options), ',', "memory");
}

/* What of `path` lies below the group that the mount shows, or NULL. Never a path with "..": seen
 * from inside a cgroup namespace, groups outside it begin so, and would lead out of the mount. */
static const char *path_below(const char *path, const char *shown) {
    size_t length = strcmp(shown, "/") == 0 ? 0 : strlen(shown);
    if (psi_parse_has_word(path, strlen(path), '/', "..") || strncmp(path, shown, length) != 0)
        return NULL;
    if (path[length] != '/' && path[length] != '\0')
        return NULL;
    return strcmp(path + length, "/") == 0 ? "" : path + length;
}

static bool is_directory(const char *path) {
    char byte[2];
    return psi_os_read_small(path, byte, sizeof(byte)) == -EISDIR;
}

/* Sets the group to what the mount shows of `path`. True when it is the group itself, not just the mount. */
static bool take_mount(psi_group *group, const char *root, const char *path, const mount_entry *entry) {
    char mount[PSI_PATH_BYTES], dir[PSI_PATH_BYTES];
    if (!psi_path_join(mount, root, strlen(root), entry->point))
        return false;
    size_t mount_length = strlen(mount);
    const char *below = path_below(path, entry->shown);
    bool exact = below != NULL && psi_path_join(dir, mount, mount_length, below) && is_directory(dir);
    if (!exact && (group->found || !is_directory(mount)))
        return false;
    group->found = true;
    group->mount_length = mount_length;
    (void)psi_path_join(group->dir, exact ? dir : mount, exact ? strlen(dir) : mount_length, "");
    return exact;
}

/* The mounts of our own namespace: it is through them that we read, also for another process. */
typedef struct search {
    psi_group *group;
    const char *root, *path;
    psi_cgroup_version version;
    bool is_mountinfo;
} search;

static bool take_line(void *user, char *line) {
    const search *look = user;
    mount_entry entry;
    return !(parse_mount(line, look->is_mountinfo, &entry) && is_wanted_mount(&entry, look->version) &&
             take_mount(look->group, look->root, look->path, &entry));
}

static void find_mount(psi_sources *sources, search *look) {
    char file[PSI_PATH_BYTES];
    psi_source_path(sources, file, "/proc/self/mountinfo");
    look->is_mountinfo = true;
    int error = psi_os_read_lines(file, sources->text, PSI_TEXT_BYTES, MOUNTS_MOST_BYTES, take_line, look);
    if (error == 0 || look->group->found)
        return;
    psi_source_path(sources, file, "/proc/self/mounts");
    look->is_mountinfo = false;
    (void)psi_os_read_lines(file, sources->text, PSI_TEXT_BYTES, MOUNTS_MOST_BYTES, take_line, look);
}

/* ---- Both together ---------------------------------------------------------------------------- */

static void find_group(psi_sources *sources, psi_cgroup_version version, const char *path) {
    psi_group *group = &sources->group[version];
    find_mount(sources, &(search){.group = group, .root = sources->root, .path = path, .version = version});
    /* The machine's root group is the only one without cgroup.events (kernel/cgroup/cgroup.c,
     * CFTYPE_NOT_ON_ROOT); the root of a container's namespace has it. */
    if (version == PSI_CGROUP_V2 && group->found && strlen(group->dir) == group->mount_length)
        group->is_root = psi_source_read_in(sources, group->dir, group->mount_length, "/cgroup.events") != 0;
}

/* FNV-1a: enough to see that a text is another one. */
static uint64_t hash(const char *text) {
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    for (; *text != '\0'; text++)
        sum = (sum ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
    return sum;
}

static void find_groups(psi_sources *sources) {
    char v1[PSI_PATH_BYTES] = "", v2[PSI_PATH_BYTES] = "";
    bool has_v1 = find_path(sources->text, PSI_CGROUP_V1, v1);
    bool has_v2 = find_path(sources->text, PSI_CGROUP_V2, v2);
    memset(sources->group, 0, sizeof(sources->group));
    if (has_v1)
        find_group(sources, PSI_CGROUP_V1, v1);
    if (has_v2)
        find_group(sources, PSI_CGROUP_V2, v2);
}

bool psi_groups_follow(psi_sources *sources) {
    char file[PSI_PATH_BYTES], tail[sizeof(sources->process) + 8];
    size_t length = strlen(sources->process);
    memcpy(tail, sources->process, length);
    memcpy(tail + length, "/cgroup", sizeof("/cgroup"));
    psi_source_path(sources, file, tail);
    /* What cannot be read now changes nothing: a process that ends, or a /proc that is gone for a moment. */
    if (psi_source_read(sources, file) != 0)
        return false;
    uint64_t membership = hash(sources->text);
    if (sources->has_membership && membership == sources->membership)
        return false;
    sources->has_membership = true;
    sources->membership = membership;
    find_groups(sources);
    return true;
}
