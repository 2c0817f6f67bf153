/* culprit.c - who it is: usage and stall of the groups around us, compared between two looks. Called by the watcher
 * thread around a trim, after the bytes are given; never in a hurry and never for long: a bounded number of groups and
 * of microseconds. Nothing is allocated after open. */
#include "signal/culprit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os/os.h"
#include "signal/sources.h"

#define MOST_GROUPS ((size_t)128) /* a tree */
#define MOST_DEPTH 3              /* system.slice/camera.service is 2, a Kubernetes pod 3 */
#define LOOK_BUDGET_US 10000u     /* of all trees; under pressure each open() may wait for memory itself */
#define LEAST_APART_US 100000u
#define GROUP_PATH_BYTES ((size_t)256)
#define PRESSURE_BYTES ((size_t)512)

/* Below these nobody is named: a name that is shown is a name that is blamed. */
#define LEAST_GROWTH_BYTES_PER_S (4.0 * 1024 * 1024)
#define LEAST_STALL_SHARE 0.05

typedef struct group {
    char path[GROUP_PATH_BYTES]; /* below the mount: "/system.slice/camera.service" */
    uint64_t hash;               /* of path */
    size_t parent;               /* in the same look; NO_GROUP for a child of the mount */
    int depth;
    bool has_usage, has_stall;
    uint64_t usage_bytes, some_us;
} group;
#define NO_GROUP SIZE_MAX

typedef struct look {
    bool complete; /* neither the number nor the time ended it */
    size_t count;
    group groups[MOST_GROUPS];
} look;

typedef struct tree {
    char mount[PSI_PATH_BYTES]; /* empty: no such tree */
    char own[PSI_PATH_BYTES];   /* the own group's path below the mount; empty: not known, or the mount's */
    look looks[2];
} tree;

struct psi_culprits {
    psi_sources sources; /* for where the trees are, and the own group in them */
    tree trees[2];       /* by version */
    uint64_t budget_us;
    uint64_t at_us;    /* of the last look */
    uint64_t apart_us; /* from the one before */
    size_t last;       /* which of looks[] that was */
    size_t looks;      /* that can be compared: 0 to 2 */
};

/* ---- Opening ----------------------------------------------------------------------------------- */

static void place_tree(tree *t, const psi_group *from) {
    size_t own_length = from->found ? strlen(from->dir) - from->mount_length : 0;
    (void)psi_path_join(t->mount, from->dir, from->found ? from->mount_length : 0, "");
    (void)psi_path_join(t->own, from->dir + from->mount_length, own_length, "");
}

static void place_trees(psi_culprits *culprits) {
    for (size_t i = 0; i < 2; i++)
        place_tree(&culprits->trees[i], &culprits->sources.group[i]);
    culprits->looks = 0;
}

psi_culprits *psi_culprits_open(const char *root) {
    psi_culprits *culprits = calloc(1, sizeof(*culprits));
    if (culprits == NULL)
        return NULL;
    psi_sources_open(&culprits->sources, root != NULL ? root : "", 0);
    place_trees(culprits);
    culprits->budget_us = LOOK_BUDGET_US;
    return culprits;
}

void psi_culprits_close(psi_culprits *culprits) { free(culprits); }

void psi_culprits_set_budget(psi_culprits *culprits, uint64_t budget_us) { culprits->budget_us = budget_us; }

/* ---- One look ---------------------------------------------------------------------------------- */

static uint64_t hash_of(const char *path) { /* FNV-1a */
    uint64_t hash = 14695981039346656037u;
    for (; *path != '\0'; path++)
        hash = (hash ^ (unsigned char)*path) * 1099511628211u;
    return hash;
}

typedef struct visitor {
    look *into;
    size_t parent;
} visitor;

static bool add_group(void *user, const char *name) {
    visitor *v = user;
    look *l = v->into;
    if (l->count == MOST_GROUPS) {
        l->complete = false;
        return false;
    }
    group *g = &l->groups[l->count];
    const group *parent = v->parent == NO_GROUP ? NULL : &l->groups[v->parent];
    int length = snprintf(g->path, sizeof(g->path), "%s/%s", parent != NULL ? parent->path : "", name);
    if (length < 0 || (size_t)length >= sizeof(g->path))
        return true; /* a name that long is not followed, in this look and in the next */
    g->hash = hash_of(g->path);
    g->parent = v->parent;
    g->depth = parent != NULL ? parent->depth + 1 : 1;
    g->has_usage = g->has_stall = false;
    l->count++;
    return true;
}

static void add_children(const tree *t, look *l, size_t parent) {
    char path[PSI_PATH_BYTES];
    visitor v = {l, parent};
    if (psi_path_join(path, t->mount, strlen(t->mount), parent == NO_GROUP ? "" : l->groups[parent].path))
        (void)psi_os_list_directories(path, add_group, &v);
}

static bool read_file(const tree *t, const group *g, const char *file, char *text, size_t capacity) {
    char dir[PSI_PATH_BYTES], path[PSI_PATH_BYTES];
    return psi_path_join(dir, t->mount, strlen(t->mount), g->path) && psi_path_join(path, dir, strlen(dir), file) &&
           psi_os_read_small(path, text, capacity) >= 0;
}

static void read_group(const tree *t, psi_cgroup_version version, group *g) {
    const char *usage_file = version == PSI_CGROUP_V2 ? "/memory.current" : "/memory.usage_in_bytes";
    char text[PRESSURE_BYTES];
    uint64_t full_us = 0;
    g->has_usage = read_file(t, g, usage_file, text, sizeof(text)) && psi_parse_amount(text, &g->usage_bytes);
    g->has_stall = version == PSI_CGROUP_V2 && read_file(t, g, "/memory.pressure", text, sizeof(text)) &&
                   psi_pressure_parse(text, &g->some_us, &full_us);
}

/* Level by level, so that what the bounds cut off are the small groups of a large machine. */
static void look_at_tree(const tree *t, psi_cgroup_version version, look *l, uint64_t until_us) {
    l->complete = true;
    l->count = 0;
    if (t->mount[0] != '\0')
        add_children(t, l, NO_GROUP);
    for (size_t i = 0; i < l->count; i++) {
        if (psi_os_now_us() > until_us) {
            l->complete = false;
            return;
        }
        read_group(t, version, &l->groups[i]);
        if (l->groups[i].depth < MOST_DEPTH)
            add_children(t, l, i);
    }
}

void psi_culprits_look(psi_culprits *culprits, uint64_t now_us) {
    if (psi_groups_follow(&culprits->sources))
        place_trees(culprits);
    if (culprits->looks > 0 && now_us < culprits->at_us + LEAST_APART_US)
        return;
    uint64_t until_us = psi_os_now_us() + culprits->budget_us;
    culprits->last ^= 1u;
    culprits->looks = culprits->looks == 0 ? 1 : 2;
    culprits->apart_us = now_us - culprits->at_us;
    culprits->at_us = now_us;
    for (psi_cgroup_version i = PSI_CGROUP_V1; i <= PSI_CGROUP_V2; i++)
        look_at_tree(&culprits->trees[i], i, &culprits->trees[i].looks[culprits->last], until_us);
}

/* ---- What two looks say ------------------------------------------------------------------------ */

static const group *find_group(const look *l, const group *like, size_t guess) {
    if (guess < l->count && l->groups[guess].hash == like->hash && strcmp(l->groups[guess].path, like->path) == 0)
        return &l->groups[guess];
    for (size_t i = 0; i < l->count; i++)
        if (l->groups[i].hash == like->hash && strcmp(l->groups[i].path, like->path) == 0)
            return &l->groups[i];
    return NULL;
}

/* A group that is new since a complete look began at nothing. */
static double growth_of(const group *now, const group *before, bool was_complete) {
    if (!now->has_usage || (before == NULL ? !was_complete : !before->has_usage))
        return 0;
    return (double)now->usage_bytes - (before != NULL ? (double)before->usage_bytes : 0);
}

static double stall_of(const group *now, const group *before, bool was_complete) {
    if (!now->has_stall || (before == NULL ? !was_complete : !before->has_stall))
        return 0;
    return (double)now->some_us - (before != NULL ? (double)before->some_us : 0);
}

/* The largest value above `least`, and from there down: a child with half of its parent's is the better answer, since
 * the parent's contains it. NO_GROUP when there is none. */
static size_t pick(const look *l, const double *value, double least) {
    size_t best = NO_GROUP;
    for (size_t i = 0; i < l->count; i++)
        if (value[i] > least && (best == NO_GROUP || value[i] > value[best]))
            best = i;
    for (size_t i = 0, child = NO_GROUP; best != NO_GROUP && i < l->count; i++) {
        /* Children come after their parents, and siblings in a row. */
        bool fits = l->groups[i].parent == best && value[i] > least && value[i] >= value[best] / 2;
        if (fits && (child == NO_GROUP || value[i] > value[child]))
            child = i;
        bool is_last = i + 1 == l->count || l->groups[i + 1].parent != best;
        if (child != NO_GROUP && is_last) {
            best = child;
            child = NO_GROUP;
        }
    }
    return best;
}

static void write_name(char *name, const char *path) {
    size_t length = strlen(path);
    if (length < PSI_CULPRIT_NAME_BYTES)
        memcpy(name, path, length + 1);
    else
        (void)snprintf(name, PSI_CULPRIT_NAME_BYTES, "...%s", path + length - (PSI_CULPRIT_NAME_BYTES - 4));
}

static bool is_own(const tree *t, const group *g) {
    size_t length = strlen(g->path);
    return strncmp(t->own, g->path, length) == 0 && (t->own[length] == '/' || t->own[length] == '\0');
}

/* Puts the tree's answers into `culprit` where they beat those that are there. */
static void name_in_tree(const tree *t, size_t last, double seconds, psi_culprit *culprit) {
    const look *now = &t->looks[last], *before = &t->looks[last ^ 1u];
    double growth[MOST_GROUPS], stall[MOST_GROUPS];
    for (size_t i = 0; i < now->count; i++) {
        const group *was = find_group(before, &now->groups[i], i);
        growth[i] = growth_of(&now->groups[i], was, before->complete) / seconds;
        stall[i] = stall_of(&now->groups[i], was, before->complete) / 1e6 / seconds;
    }
    size_t grower = pick(now, growth, LEAST_GROWTH_BYTES_PER_S);
    size_t staller = pick(now, stall, LEAST_STALL_SHARE);
    if (grower != NO_GROUP && (!culprit->has_grower || (int64_t)growth[grower] > culprit->grew_bytes_per_s)) {
        culprit->has_grower = true;
        culprit->grew_bytes_per_s = (int64_t)growth[grower];
        culprit->grower_is_own = is_own(t, &now->groups[grower]);
        write_name(culprit->grower, now->groups[grower].path);
    }
    if (staller != NO_GROUP && (!culprit->has_staller || stall[staller] > culprit->stall_share)) {
        culprit->has_staller = true;
        culprit->stall_share = stall[staller] < 1 ? stall[staller] : 1;
        culprit->staller_is_own = is_own(t, &now->groups[staller]);
        write_name(culprit->staller, now->groups[staller].path);
    }
}

void psi_culprits_name(const psi_culprits *culprits, psi_culprit *culprit) {
    *culprit = (psi_culprit){.has_grower = false};
    for (size_t i = 0; culprits->looks == 2 && i < 2; i++)
        name_in_tree(&culprits->trees[i], culprits->last, (double)culprits->apart_us / 1e6, culprit);
}
