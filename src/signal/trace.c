/* trace.c - samples as text and back: what record writes and replay reads. Called by the watcher thread or by the
 * command; keeps no state of its own. A trace comes from elsewhere: the reader takes nothing on trust. */
#include "signal/parse.h"
#include "signal/sample.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- Writing ---------------------------------------------------------------------------------- */

static bool differs(const psi_sample *before, const psi_sample *now, size_t raw) {
    if (before == NULL)
        return now->known[raw];
    return before->known[raw] != now->known[raw] || (now->known[raw] && before->value[raw] != now->value[raw]);
}

/* Writes one line at out[length]. The new length, or 0 when it does not fit. */
static size_t put_line(char *out, size_t length, size_t capacity, const psi_sample *now, size_t raw) {
    char name[PSI_RAW_NAME_BYTES];
    const char *text = psi_raw_name(raw, name);
    int wrote = now->known[raw] ? snprintf(out + length, capacity - length, "%s %" PRIu64 "\n", text, now->value[raw])
                                : snprintf(out + length, capacity - length, "%s -\n", text);
    return wrote > 0 && (size_t)wrote < capacity - length ? length + (size_t)wrote : 0;
}

int psi_trace_format(const psi_sample *before, const psi_sample *now, char *out, size_t capacity) {
    int head = snprintf(out, capacity, "@ %" PRIu64 " %" PRIu32 "\n", now->at_us, now->look);
    size_t length = head > 0 && (size_t)head < capacity ? (size_t)head : 0;
    for (size_t raw = 0; raw < PSI_RAW_COUNT && length > 0; raw++)
        if (differs(before, now, raw))
            length = put_line(out, length, capacity, now, raw);
    if (length > 0)
        return (int)length;
    if (capacity > 0)
        out[0] = '\0';
    return -ENOBUFS;
}

/* ---- Reading ---------------------------------------------------------------------------------- */

/* "@ <at_us> <look>": the sample before it is complete. */
static int take_instant(psi_trace_reader *reader, const char *line, psi_sample *complete) {
    uint64_t at_us = 0, look = 0;
    const char *second = line[1] == ' ' ? strchr(line + 2, ' ') : NULL;
    if (second == NULL || !psi_parse_u64(line + 2, &at_us) || !psi_parse_u64(second + 1, &look))
        return -EINVAL;
    if (second[1 + strspn(second + 1, "0123456789")] != '\0' || look > UINT32_MAX)
        return -EINVAL;
    if (reader->has_sample && at_us < reader->now.at_us)
        return -EINVAL;
    int result = reader->has_sample ? 1 : 0;
    if (reader->has_sample)
        *complete = reader->now;
    reader->has_sample = true;
    reader->now.at_us = at_us;
    reader->now.look = (uint32_t)look & PSI_LOOK_ALL; /* a newer writer may look deeper */
    return result;
}

/* "<name> <value>", the value a number or "-". */
static int take_value(psi_trace_reader *reader, const char *line) {
    size_t length = strspn(line, "abcdefghijklmnopqrstuvwxyz0123456789._");
    if (!reader->has_sample || length == 0 || line[length] != ' ')
        return -EINVAL;
    const char *text = line + length + 1;
    uint64_t value = 0;
    bool known = strcmp(text, "-") != 0;
    if (known && (text[strspn(text, "0123456789")] != '\0' || !psi_parse_amount(text, &value)))
        return -EINVAL;
    size_t raw = psi_raw_find(line, length);
    if (raw < PSI_RAW_COUNT) {
        reader->now.known[raw] = known;
        reader->now.value[raw] = value;
    }
    return 0;
}

int psi_trace_take(psi_trace_reader *reader, const char *line, psi_sample *complete) {
    reader->line++;
    if (!reader->has_head) {
        reader->has_head = strcmp(line, PSI_TRACE_HEAD) == 0;
        return reader->has_head ? 0 : -EPROTO;
    }
    if (line[0] == '#')
        return 0;
    return line[0] == '@' ? take_instant(reader, line, complete) : take_value(reader, line);
}

int psi_trace_finish(psi_trace_reader *reader, psi_sample *complete) {
    if (!reader->has_sample)
        return 0;
    *complete = reader->now;
    reader->has_sample = false;
    return 1;
}
