/* record.c - psi-cache record: writes the raw numbers of all sources, as one process sees them, into a trace that
 * psi-cache replay reads (sample.h). One thread; each sample is one write, so that whoever kills us, or the machine,
 * leaves a trace that can be read. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "os/os.h"
#include "psicache.h"
#include "tool/sampling.h"

/* By default the controller's own pace, within these: a trace of an hour should fit on a disk. */
#define PACE_LEAST_US ((uint64_t)2000)
#define PACE_MOST_US ((uint64_t)100000)

typedef struct recording {
    /* what was asked for */
    const char *path; /* NULL: standard output */
    char **command;   /* NULL: none */
    uint64_t seconds, interval_us;
    /* the trace */
    int file;
    const char *file_name;
    bool is_regular;
    uint64_t written_bytes, samples;
    int error; /* of writing; nothing is written after it */
    /* what is recorded */
    char root[TOOL_ROOT_BYTES];
    psi_signal *signal;
    psi_control control;
    tool_process process;
    psi_sample before;
    char text[PSI_TRACE_SAMPLE_BYTES];
} recording;

static recording the_recording; /* its text is too large for a stack */

/* ---- The trace -------------------------------------------------------------------------------- */

static const char *cure_of(int error) {
    switch (error) {
    case ENOSPC:
    case EDQUOT:
        return "make room there, or name a file elsewhere with -o";
    case EFBIG:
        return "raise the limit on file sizes (ulimit -f), or record for a shorter time with --seconds";
    case EACCES:
    case EPERM:
    case EROFS:
        return "name a file that you may write with -o";
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
        return "name a file in a directory that is there with -o";
    default:
        return "name another file with -o";
    }
}

static void write_failed(recording *r, int error) {
    r->error = error;
    /* The part of a sample that still found room would be a broken last line. */
    if (r->is_regular && ftruncate(r->file, (off_t)r->written_bytes) != 0)
        r->is_regular = false;
    if (error == EPIPE) /* the reader has seen enough */
        return;
    fprintf(stderr, "psi-cache record: %s: %s after %" PRIu64 " samples; what was written can be replayed\ncure: %s\n",
            r->file_name, strerror(error), r->samples, cure_of(error));
}

static void write_text(recording *r, const char *text, size_t length) {
    for (size_t done = 0; done < length && r->error == 0;) {
        ssize_t count = write(r->file, text + done, length - done);
        if (count > 0)
            done += (size_t)count;
        else if (count == 0 || errno != EINTR)
            write_failed(r, count == 0 ? EIO : errno);
    }
    r->written_bytes += r->error == 0 ? length : 0;
}

/* "# <text>": one line, whatever is in the text. */
__attribute__((format(printf, 2, 3))) static void comment(recording *r, const char *format, ...) {
    char line[512] = "# ";
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line + 2, sizeof line - 3, format, arguments);
    va_end(arguments);
    if (length < 0)
        return;
    for (char *at = line; *at; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            *at = '?';
    length = (int)strlen(line);
    line[length++] = '\n';
    write_text(r, line, (size_t)length);
}

static void comment_source(recording *r, const psi_source *source) {
    if (source->in_use)
        comment(r, "source %s: in use: %s", source->name, source->detail);
    else
        comment(r, "source %s: missing: %s%s%s", source->name, source->detail, source->cure[0] ? "; cure: " : "",
                source->cure);
}

static void write_head(recording *r) {
    struct utsname system;
    char name[TOOL_COMM_BYTES], when[32] = "", memory[TOOL_BYTES_TEXT];
    time_t now = time(NULL);
    struct tm utc;
    size_t count = 0;
    write_text(r, PSI_TRACE_HEAD "\n", sizeof PSI_TRACE_HEAD);
    if (gmtime_r(&now, &utc))
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
    comment(r, "psi-cache %d.%d.%d, begun %s", PSI_VERSION_MAJOR, PSI_VERSION_MINOR, PSI_VERSION_PATCH, when);
    if (uname(&system) == 0)
        comment(r, "kernel %s %s %s, pages of %zu KiB", system.sysname, system.release, system.machine,
                psi_os_page_bytes() / 1024);
    comment(r, "machine of %ld processors, %s", sysconf(_SC_NPROCESSORS_ONLN),
            tool_bytes(memory, (uint64_t)sysconf(_SC_PHYS_PAGES) * psi_os_page_bytes()));
    if (r->process.process_id == 0) {
        comment(r, "process: none named; as psi-cache record itself, %" PRId64 ", sees it", psi_os_process_id());
    } else {
        tool_process_name(r->process.process_id, name);
        comment(r, "process %" PRId64 "%s%s", r->process.process_id,
                r->command ? ": "
                : name[0]  ? " "
                           : "",
                r->command ? r->command[0] : name);
    }
    if (r->interval_us > 0)
        comment(r, "a sample every %" PRIu64 " ms", r->interval_us / 1000);
    else
        comment(r, "samples as the controller asks for them, %" PRIu64 " to %" PRIu64 " ms apart", PACE_LEAST_US / 1000,
                PACE_MOST_US / 1000);
    const psi_source *sources = psi_signal_sources(r->signal, &count);
    for (size_t i = 0; i < count; i++)
        comment_source(r, &sources[i]);
}

static int open_file(recording *r) {
    struct stat info;
    bool to_output = !r->path || strcmp(r->path, "-") == 0;
    r->file_name = to_output ? "standard output" : r->path;
    r->file = to_output ? STDOUT_FILENO : open(r->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (r->file < 0) {
        int error = errno;
        fprintf(stderr, "psi-cache record: %s: %s\ncure: %s\n", r->file_name, strerror(error), cure_of(error));
        return r->command ? TOOL_RUN_FAILED : TOOL_NOTHING;
    }
    /* Standard output may stand anywhere in a file that is not ours to cut. */
    r->is_regular = !to_output && fstat(r->file, &info) == 0 && S_ISREG(info.st_mode);
    return TOOL_OK;
}

/* ---- Samples ---------------------------------------------------------------------------------- */

static void comment_changes(recording *r) {
    size_t count = 0;
    uint64_t changes = psi_signal_changes(r->signal);
    const psi_source *sources = psi_signal_sources(r->signal, &count);
    for (size_t i = 0; changes != 0 && i < count && i < 64; i++)
        if (changes >> i & 1)
            comment_source(r, &sources[i]);
}

/* Takes a sample. Returns when the next one is due. */
static uint64_t take_sample(recording *r) {
    static const psi_demand nothing;
    psi_reading reading;
    psi_decision decision;
    psi_signal_read(r->signal, PSI_LOOK_ALL, &reading);
    psi_control_decide(&r->control, &reading, &nothing, &decision);
    const psi_sample *now = psi_signal_last(r->signal);
    comment_changes(r);
    int length = psi_trace_format(r->samples > 0 ? &r->before : NULL, now, r->text, sizeof r->text);
    if (length > 0 && r->error == 0) {
        write_text(r, r->text, (size_t)length);
        r->samples += r->error == 0;
        r->before = *now;
    }
    uint64_t pace_us = r->interval_us;
    if (pace_us == 0)
        pace_us = decision.sleep_us < PACE_LEAST_US  ? PACE_LEAST_US
                  : decision.sleep_us > PACE_MOST_US ? PACE_MOST_US
                                                     : decision.sleep_us;
    return now->at_us + pace_us;
}

/* What ends us ends the command, and the trace goes on to its end. Ctrl-C has reached it already. */
static int pass_on(const recording *r) {
    int number = tool_take_stop();
    if (r->command && number != 0 && number != SIGINT)
        kill((pid_t)r->process.process_id, number);
    return r->command ? 0 : number;
}

static void record_on(recording *r) {
    uint64_t end_us = r->seconds > 0 ? psi_os_now_us() + r->seconds * 1000000 : UINT64_MAX;
    const char *end = NULL;
    while (r->error == 0 && !end) {
        /* Asked before the sample: what a process looks like after its end is nobody's group. */
        if (tool_process_ended(&r->process)) {
            end = "the process has ended";
        } else {
            uint64_t due_us = take_sample(r);
            tool_pause(due_us < end_us ? due_us : end_us, &r->process);
            end = pass_on(r) != 0 ? "stopped" : psi_os_now_us() >= end_us ? "the time is over" : NULL;
        }
    }
    if (end)
        comment(r, "end: %s", end);
}

static int open_signals(recording *r) {
    psi_control_options options;
    if (!tool_control_options(&options, r->root))
        return TOOL_USAGE;
    r->signal = psi_signal_open(&(psi_signal_options){.root = r->root, .process_id = r->process.process_id});
    if (!r->signal) {
        fprintf(stderr, "psi-cache record: out of memory\n");
        return r->command ? TOOL_RUN_FAILED : TOOL_NOTHING;
    }
    psi_control_init(&r->control, &options);
    return TOOL_OK;
}

/* ---- A command -------------------------------------------------------------------------------- */

typedef struct child {
    pid_t process_id;
    int go;    /* closed: it may begin */
    int error; /* it writes errno here when it cannot be executed */
} child;

/* Its output must not run into the trace. */
static void become(char **command, bool trace_is_output, int go, int error) {
    char byte;
    if (read(go, &byte, 1) != 0) /* until the first sample is taken: it is recorded from its first instruction on */
        _exit(TOOL_RUN_FAILED);
    tool_release_signals();
    if (trace_is_output)
        dup2(STDERR_FILENO, STDOUT_FILENO);
    execvp(command[0], command);
    int why = errno;
    ssize_t ignored = write(error, &why, sizeof why);
    (void)ignored;
    _exit(why == ENOENT ? TOOL_NOT_FOUND : TOOL_NOT_EXECUTABLE);
}

static bool start(recording *r, child *started) {
    int go[2] = {-1, -1}, error[2] = {-1, -1};
    if (pipe2(go, O_CLOEXEC) != 0 || pipe2(error, O_CLOEXEC) != 0 || (started->process_id = fork()) < 0) {
        fprintf(stderr, "psi-cache record: cannot start %s: %s\n", r->command[0], strerror(errno));
        return false;
    }
    if (started->process_id == 0) {
        close(go[1]);
        become(r->command, r->file == STDOUT_FILENO, go[0], error[1]);
    }
    close(go[0]);
    close(error[1]);
    started->go = go[1];
    started->error = error[0];
    return tool_process_open(&r->process, started->process_id);
}

/* Lets it begin. False, and said why: it cannot be executed. */
static bool let_go(recording *r, child *started) {
    int why = 0;
    close(started->go);
    bool failed = read(started->error, &why, sizeof why) == (ssize_t)sizeof why;
    close(started->error);
    if (failed)
        fprintf(stderr, "psi-cache record: %s: %s\n", r->command[0],
                why == ENOENT ? "command not found" : strerror(why));
    return !failed;
}

/* Its end, whether it is recorded to then or not. */
static int status_of(recording *r, const child *started) {
    int status = 0;
    pid_t ended = 0;
    while ((ended = waitpid(started->process_id, &status, WNOHANG)) == 0) {
        tool_pause(psi_os_now_us() + 1000000, &r->process);
        pass_on(r);
    }
    if (ended < 0)
        return TOOL_RUN_FAILED;
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static int record_command(recording *r) {
    child started;
    if (!start(r, &started))
        return TOOL_RUN_FAILED;
    int failed = open_signals(r), status;
    if (failed != TOOL_OK) {
        kill(started.process_id, SIGKILL);
        return failed;
    }
    write_head(r);
    take_sample(r);
    if (let_go(r, &started))
        record_on(r);
    status = status_of(r, &started);
    if (r->error == 0)
        comment(r, "exit status %d", status);
    return r->error != 0 && r->error != EPIPE ? TOOL_RUN_FAILED : status;
}

/* ---- The subcommand --------------------------------------------------------------------------- */

static int record_process(recording *r) {
    if (!tool_process_open(&r->process, r->process.process_id)) {
        fprintf(stderr, "psi-cache record: there is no process %" PRId64 "; ps -e lists those there are\n",
                r->process.process_id);
        return TOOL_NOTHING;
    }
    int failed = open_signals(r);
    if (failed != TOOL_OK)
        return failed;
    write_head(r);
    record_on(r);
    return r->error != 0 && r->error != EPIPE ? TOOL_NOTHING : TOOL_OK;
}

static int parse_options(int argc, char **argv, recording *r) {
    static const struct option known[] = {{"output", required_argument, NULL, 'o'},
                                          {"seconds", required_argument, NULL, 's'},
                                          {"interval", required_argument, NULL, 'i'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    uint64_t pid = 0;
    opterr = 0;
    for (int which; (which = getopt_long(argc, argv, "-:o:h", known, NULL)) != -1;) {
        if (which == 'o')
            r->path = optarg;
        else if (which == 's' && !tool_parse_count(optarg, 1000000000, &r->seconds))
            return tool_usage_error("record", "--seconds %s: give a whole number of seconds", optarg);
        else if (which == 'i' && !tool_parse_interval(optarg, 1, &r->interval_us))
            return tool_usage_error("record", "--interval %s: give milliseconds, from 1 to 3600000", optarg);
        else if (which == 'h')
            exit(tool_help(stdout, "record") ? TOOL_OK : TOOL_USAGE);
        else if (which == 1 && (pid || !tool_parse_count(optarg, INT32_MAX, &pid)))
            return tool_usage_error("record", "%s: give one process id; a command stands behind --", optarg);
        else if (which == ':' || which == '?')
            return tool_option_error("record", which, argv[optind - 1]);
    }
    bool has_mark = optind > 1 && strcmp(argv[optind - 1], "--") == 0;
    r->command = optind < argc ? argv + optind : NULL;
    if (has_mark && !r->command)
        return tool_usage_error("record", "name a command behind --");
    if (r->command && pid)
        return tool_usage_error("record", "give a process id or a command, not both");
    r->process = (tool_process){(int64_t)pid, -1};
    return TOOL_OK;
}

int tool_record(int argc, char **argv) {
    recording *r = &the_recording;
    int status = parse_options(argc, argv, r);
    if (status != TOOL_OK)
        return status;
    if (!r->path && isatty(STDOUT_FILENO))
        fprintf(stderr, "psi-cache record: the trace goes to this terminal; -o FILE writes a file, Ctrl-C ends it\n");
    tool_catch_signals();
    if ((status = open_file(r)) != TOOL_OK)
        return status;
    status = r->command ? record_command(r) : record_process(r);
    if (r->path && r->error == 0 && r->samples > 0)
        fprintf(stderr, "psi-cache record: %" PRIu64 " samples in %s\n", r->samples, r->file_name);
    psi_signal_close(r->signal);
    tool_process_close(&r->process);
    return status;
}
