/* print.c - how the command writes: units, colour on terminals only, JSON strings. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool/tool.h"

static bool colour_wanted(void) {
    static int wanted = -1;
    if (wanted < 0) {
        const char *no = getenv("NO_COLOR"), *terminal = getenv("TERM");
        wanted = isatty(STDOUT_FILENO) && (!no || !*no) && terminal && strcmp(terminal, "dumb") != 0;
    }
    return wanted != 0;
}

const char *tool_colour_on(tool_colour colour) {
    static const char *const sequences[] = {"", "\033[1m", "\033[32m", "\033[33m", "\033[31m", "\033[2m"};
    return colour_wanted() ? sequences[colour] : "";
}

const char *tool_colour_off(void) { return colour_wanted() ? "\033[0m" : ""; }

char *tool_bytes(char text[TOOL_BYTES_TEXT], uint64_t bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;
    for (; value >= 1024 && unit < 6; unit++)
        value /= 1024;
    if (bytes == UINT64_MAX)
        snprintf(text, TOOL_BYTES_TEXT, "unknown");
    else
        snprintf(text, TOOL_BYTES_TEXT, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

/* Length of the well-formed UTF-8 sequence at `at`; 0: none. */
static size_t utf8_length(const unsigned char *at) {
    size_t length = at[0] < 0x80                    ? 1
                    : at[0] >= 0xc2 && at[0] < 0xe0 ? 2
                    : (at[0] & 0xf0) == 0xe0        ? 3
                    : at[0] >= 0xf0 && at[0] < 0xf5 ? 4
                                                    : 0;
    for (size_t i = 1; i < length; i++)
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    /* Overlong forms, surrogates, and what is past U+10FFFF. */
    if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) || (at[0] == 0xf0 && at[1] < 0x90) ||
        (at[0] == 0xf4 && at[1] > 0x8f))
        return 0;
    return length;
}

void tool_json_string(FILE *out, const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    fputc('"', out);
    while (*at) {
        size_t length = utf8_length(at);
        if (length == 0)
            fputs("\\ufffd", out);
        else if (*at == '"' || *at == '\\')
            fprintf(out, "\\%c", *at);
        else if (*at < ' ' || *at == 0x7f)
            fprintf(out, "\\u%04x", *at);
        else
            fwrite(at, 1, length, out);
        at += length ? length : 1;
    }
    fputc('"', out);
}

void tool_plain(FILE *out, const char *text) {
    for (const unsigned char *at = (const unsigned char *)text; *at;) {
        size_t length = utf8_length(at);
        /* C1 controls (U+0080 to U+009F) steer some terminals, too. */
        bool control = length == 0 || *at < ' ' || *at == 0x7f || (*at == 0xc2 && at[1] < 0xa0);
        if (control)
            fputc('?', out);
        else
            fwrite(at, 1, length, out);
        at += length ? length : 1;
    }
}
