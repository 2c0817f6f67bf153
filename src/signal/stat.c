/* stat.c - files of "name value" lines: vmstat, memory.stat, memory.events. Called by the sources, on the watcher
 * thread; one pass, since these files are long and read often. */
#include "signal/sources.h"

#include <string.h>

static const psi_stat_key *key_of(const char *line, size_t length, const psi_stat_key *keys, size_t count) {
    for (size_t i = 0; i < count; i++) {
        size_t wanted = strlen(keys[i].name);
        bool fits = keys[i].is_prefix ? length > wanted : length == wanted;
        if (fits && memcmp(line, keys[i].name, wanted) == 0)
            return &keys[i];
    }
    return NULL;
}

static bool take_line(const char *line, const psi_stat_key *keys, size_t count, psi_sample *sample) {
    size_t length = strcspn(line, " \t\n");
    const psi_stat_key *key = line[length] == ' ' ? key_of(line, length, keys, count) : NULL;
    uint64_t value = 0;
    if (key == NULL || !psi_parse_amount(line + length + 1, &value))
        return false;
    if (!sample->known[key->raw])
        psi_sample_set(sample, key->raw, value);
    else if (key->is_prefix && value < PSI_AMOUNT_END - sample->value[key->raw])
        sample->value[key->raw] += value;
    return true;
}

size_t psi_stat_take(const char *text, const psi_stat_key *keys, size_t count, psi_sample *sample) {
    size_t taken = 0;
    for (size_t i = 0; i < count; i++)
        psi_sample_clear(sample, keys[i].raw);
    for (const char *line = text; line != NULL && *line != '\0';) {
        taken += take_line(line, keys, count, sample);
        line = strchr(line, '\n');
        if (line != NULL)
            line++;
    }
    return taken;
}
