/* tuning.c - learns from readings and notes what this device is like, maps it to the index's parameters, and keeps it
 * as text. Watcher thread, and the command's replay; pure. The text holds whole numbers only: the process's locale may
 * write a fraction with a comma. */
#include "control/tuning.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "control/numbers.h"

#define MIB ((uint64_t)1 << 20)

#define RESERVE_LIMIT_PARTS 16   /* a limit is tight when a sixteenth is left, */
#define RESERVE_LEAST (16 * MIB) /* but allocators and page cache take megabytes at a time, */
#define RESERVE_MOST (256 * MIB) /* and half a second of 500 MiB/s is enough on any machine */
#define RESERVE_READINGS 1000    /* ten minutes and more far from a limit: before, nothing seen is no proof of calm */

#define STALL_NORMAL_US 300e6  /* minutes: an evening's pressure is not normal, a desktop's is */
#define STALL_STEP_MOST_US 1e6 /* one reading stands for a second at most, however long the sleep was */
#define FILL_HALF_LIFE_US 3600e6
#define FILL_AGE_LEAST_US ((uint64_t)20000) /* younger: one jump, measured over one reading */
#define REACTION_DOWN 16.0                  /* so many good answers until a bad one is forgotten to a third */
#define SPEED_PARTS 8.0
#define SPEED_BYTES_LEAST (256 * (uint64_t)1024)

static double within(double value, double least, double most) {
    return value > most ? most : value >= least ? value : least; /* what is not a number: the least */
}

/* ---- Learning --------------------------------------------------------------------------------- */

/* exp(-x) to 2 % for the steps that matter, without the maths library; never below 0 or above 1. */
static double decay(double x) { return 1 / (1 + x + x * x / 2 + x * x * x / 6); }

static void see_stall(psi_tuning *tuning, const psi_reading *reading, double elapsed_us) {
    if (!psi_has(reading, PSI_HAVE_STALL))
        return;
    double step_us = elapsed_us < STALL_STEP_MOST_US ? elapsed_us : STALL_STEP_MOST_US;
    double share = within(reading->stall_some_share, 0, 1);
    double normal =
        tuning->stall_normal_share + step_us / (STALL_NORMAL_US + step_us) * (share - tuning->stall_normal_share);
    tuning->stall_normal_share = within(normal, 0, PSI_STALL_NORMAL_MOST);
}

static void see_fill(psi_tuning *tuning, const psi_reading *reading, double elapsed_us) {
    tuning->fill_most_bytes_per_s *= decay(0.6931471805599453 * elapsed_us / FILL_HALF_LIFE_US);
    if (!psi_has(reading, PSI_HAVE_FILL) || reading->fill_age_us < FILL_AGE_LEAST_US)
        return;
    double fill = within((double)reading->fill_bytes_per_s, 0, PSI_FILL_MOST);
    if (fill > tuning->fill_most_bytes_per_s)
        tuning->fill_most_bytes_per_s = fill;
}

void psi_tuning_see(psi_tuning *tuning, const psi_reading *reading, bool calm) {
    double elapsed_us = tuning->at_us != 0 ? (double)psi_since(reading->at_us, tuning->at_us) : 0;
    if (calm)
        see_stall(tuning, reading, elapsed_us);
    see_fill(tuning, reading, elapsed_us);
    tuning->at_us = reading->at_us;
    tuning->readings += tuning->readings < UINT64_MAX;
}

void psi_tuning_note_reaction(psi_tuning *tuning, uint64_t reaction_us) {
    double us = within((double)reaction_us, (double)PSI_REACTION_LEAST_US, (double)PSI_REACTION_MOST_US);
    double known_us = tuning->reaction_us > 0 ? tuning->reaction_us : (double)PSI_REACTION_START_US;
    tuning->reaction_us = us >= known_us ? us : known_us + (us - known_us) / REACTION_DOWN;
}

static void note_speed(double *speed, uint64_t bytes, uint64_t took_us) {
    if (bytes < SPEED_BYTES_LEAST || took_us == 0)
        return;
    double now = within((double)bytes / (double)took_us * 1e6, PSI_WRITE_LEAST, PSI_WRITE_MOST);
    *speed = *speed > 0 ? *speed + (now - *speed) / SPEED_PARTS : now;
}

void psi_tuning_note_write(psi_tuning *tuning, uint64_t bytes, uint64_t took_us) {
    note_speed(&tuning->write_bytes_per_s, bytes, took_us);
}

void psi_tuning_note_read(psi_tuning *tuning, uint64_t bytes, uint64_t took_us) {
    note_speed(&tuning->read_bytes_per_s, bytes, took_us);
}

/* ---- Mapping ---------------------------------------------------------------------------------- */

static uint64_t reserve_of(const psi_tuning *tuning, uint64_t limit_bytes, uint64_t reaction_us) {
    uint64_t base = psi_least(psi_most(limit_bytes / RESERVE_LIMIT_PARTS, RESERVE_LEAST), RESERVE_MOST);
    if (tuning == NULL || !(tuning->fill_most_bytes_per_s > 0))
        return base;
    double wanted = tuning->fill_most_bytes_per_s * (double)reaction_us / 1e6;
    uint64_t least = tuning->readings >= RESERVE_READINGS ? base / 2 : base;
    return psi_to_whole(within(wanted, (double)least, (double)base * 2));
}

void psi_tuning_map(const psi_tuning *tuning, uint64_t limit_bytes, uint64_t reserve_option, psi_mapping *mapping) {
    *mapping = (psi_mapping){.reaction_us = PSI_REACTION_START_US,
                             .write_bytes_per_s = PSI_WRITE_START,
                             .stall_at_anchor = PSI_STALL_ANCHOR_LEAST};
    if (tuning != NULL && tuning->reaction_us > 0)
        mapping->reaction_us =
            psi_to_whole(within(tuning->reaction_us, (double)PSI_REACTION_LEAST_US, (double)PSI_REACTION_MOST_US));
    if (tuning != NULL && tuning->write_bytes_per_s > 0)
        mapping->write_bytes_per_s = within(tuning->write_bytes_per_s, PSI_WRITE_LEAST, PSI_WRITE_MOST);
    if (tuning != NULL) /* a noisy level swings as far as it is high */
        mapping->stall_at_anchor =
            within(PSI_STALL_ANCHOR_LEAST + tuning->stall_normal_share, PSI_STALL_ANCHOR_LEAST, PSI_STALL_ANCHOR_MOST);
    mapping->reserve_bytes =
        reserve_option != 0 ? reserve_option : reserve_of(tuning, limit_bytes, mapping->reaction_us);
}

/* ---- Text ------------------------------------------------------------------------------------- */

#define PARTS_PER_SHARE 1e6

enum { STALL_NORMAL, FILL_MOST, REACTION, WRITE, READ, READINGS, FIELDS };

/* 0 (not seen), or from least to most. */
static const struct {
    const char *name;
    uint64_t least, most;
} the_fields[FIELDS] = {
    [STALL_NORMAL] = {"stall_normal_ppm", 1, (uint64_t)(PSI_STALL_NORMAL_MOST *PARTS_PER_SHARE)},
    [FILL_MOST] = {"fill_most_bytes_per_s", 1, (uint64_t)PSI_FILL_MOST},
    [REACTION] = {"reaction_us", PSI_REACTION_LEAST_US, PSI_REACTION_MOST_US},
    [WRITE] = {"write_bytes_per_s", (uint64_t)PSI_WRITE_LEAST, (uint64_t)PSI_WRITE_MOST},
    [READ] = {"read_bytes_per_s", (uint64_t)PSI_WRITE_LEAST, (uint64_t)PSI_WRITE_MOST},
    [READINGS] = {"readings", 1, UINT64_MAX},
};

int psi_tuning_format(const psi_tuning *tuning, char *text, size_t capacity) {
    const uint64_t values[FIELDS] = {[STALL_NORMAL] = psi_to_whole(tuning->stall_normal_share * PARTS_PER_SHARE + 0.5),
                                     [FILL_MOST] = psi_to_whole(tuning->fill_most_bytes_per_s),
                                     [REACTION] = psi_to_whole(tuning->reaction_us),
                                     [WRITE] = psi_to_whole(tuning->write_bytes_per_s),
                                     [READ] = psi_to_whole(tuning->read_bytes_per_s),
                                     [READINGS] = tuning->readings};
    int length = snprintf(text, capacity, "%s\n", PSI_TUNING_HEAD);
    for (size_t i = 0; i < FIELDS && length >= 0 && (size_t)length < capacity; i++) {
        int more =
            snprintf(text + length, capacity - (size_t)length, "%s %" PRIu64 "\n", the_fields[i].name, values[i]);
        length = more < 0 ? more : length + more;
    }
    return length < 0 || (size_t)length >= capacity ? -ENOBUFS : length;
}

/* Digits alone, up to the end: no sign, no blank, no carriage return. */
static bool parse_whole(const char *digits, size_t length, uint64_t *value) {
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i++) {
        uint64_t digit = (uint64_t)(unsigned char)digits[i] - '0';
        if (digit > 9 || sum > (UINT64_MAX - digit) / 10)
            return false;
        sum = sum * 10 + digit;
    }
    *value = sum;
    return length > 0;
}

static bool is_name(const char *name, size_t length) {
    for (size_t i = 0; i < length; i++) {
        bool letter = (name[i] >= 'a' && name[i] <= 'z') || (name[i] >= '0' && name[i] <= '9') || name[i] == '_';
        if (!letter)
            return false;
    }
    return length > 0;
}

static size_t field_of(const char *name, size_t length) {
    size_t i = 0;
    while (i < FIELDS && (strlen(the_fields[i].name) != length || memcmp(the_fields[i].name, name, length) != 0))
        i++;
    return i;
}

/* One "name value" line into its value; each name once. */
static bool parse_line(const char *line, size_t length, uint64_t values[FIELDS], bool seen[FIELDS]) {
    const char *blank = memchr(line, ' ', length);
    size_t name_length = blank != NULL ? (size_t)(blank - line) : 0;
    uint64_t value = 0;
    if (blank == NULL || !is_name(line, name_length) || !parse_whole(blank + 1, length - name_length - 1, &value))
        return false;
    size_t i = field_of(line, name_length);
    if (i == FIELDS)
        return true; /* a newer writer's */
    if (seen[i] || (value != 0 && (value < the_fields[i].least || value > the_fields[i].most)))
        return false;
    seen[i] = true;
    values[i] = value;
    return true;
}

/* Behind the first line, or NULL with the error. */
static const char *behind_head(const char *text, int *error) {
    size_t head = strlen(PSI_TUNING_HEAD);
    *error = 0;
    if (strncmp(text, PSI_TUNING_HEAD, head) == 0 && text[head] == '\n')
        return text + head + 1;
    if (strncmp(text, PSI_TUNING_HEAD, head) == 0 && text[head] == '\0')
        return text + head;
    *error = strncmp(text, PSI_TUNING_HEAD "\r", head + 1) == 0 ? -EINVAL : -EPROTO;
    return NULL;
}

int psi_tuning_parse(const char *text, psi_tuning *tuning) {
    uint64_t values[FIELDS] = {0};
    bool seen[FIELDS] = {false};
    int error = 0;
    const char *line = behind_head(text, &error);
    while (line != NULL && *line != '\0') {
        size_t length = strcspn(line, "\n");
        if (!parse_line(line, length, values, seen))
            return -EINVAL;
        line += length + (line[length] == '\n');
    }
    if (error != 0)
        return error;
    *tuning = (psi_tuning){.stall_normal_share = (double)values[STALL_NORMAL] / PARTS_PER_SHARE,
                           .fill_most_bytes_per_s = (double)values[FILL_MOST],
                           .reaction_us = (double)values[REACTION],
                           .write_bytes_per_s = (double)values[WRITE],
                           .read_bytes_per_s = (double)values[READ],
                           .readings = values[READINGS]};
    return 0;
}
