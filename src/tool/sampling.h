/* sampling.h - what watch, record and replay share: whose process it is, when to stop, the pace between two
 * samples, and an index in words and in JSON. One thread; of the command only. */
#ifndef PSI_TOOL_SAMPLING_H
#define PSI_TOOL_SAMPLING_H

#include "control/control.h"
#include "tool/tool.h"

/* ---- Signals ---------------------------------------------------------------------------------- */

/* SIGINT, SIGTERM and SIGHUP end a tool_pause and no other call; a reader that goes away is EPIPE, a file size limit
 * EFBIG, so that neither ends us in the middle of a line. */
void tool_catch_signals(void);
/* As it was before tool_catch_signals: for a command that is about to be executed. */
void tool_release_signals(void);
/* The signal that came since the last call, or 0. */
int tool_take_stop(void);

/* ---- A process -------------------------------------------------------------------------------- */

/* The one whose cgroup, faults and mappings are looked at. process_id 0: nobody else's. */
typedef struct tool_process {
    int64_t process_id;
    int descriptor; /* pidfd, -1 where there is none */
} tool_process;

/* False: there is no such process. */
bool tool_process_open(tool_process *process, int64_t process_id);
void tool_process_close(tool_process *process);
bool tool_process_ended(const tool_process *process);

/* Sleeps until then (psi_os_now_us), a signal or the end of the process. */
void tool_pause(uint64_t until_us, const tool_process *process);

/* comm of the process, without control characters; "" when it is not known. */
#define TOOL_COMM_BYTES 32
void tool_process_name(int64_t process_id, char name[TOOL_COMM_BYTES]);

/* "--interval MS": false when it is not a whole number from `least` to an hour. */
bool tool_parse_interval(const char *text, uint64_t least_ms, uint64_t *interval_us);

/* What an option lacks or is, for a getopt_long with "-:" that answered ':' or '?'. Returns TOOL_USAGE. */
int tool_option_error(const char *subcommand, int which, const char *argument);

/* ---- Control ---------------------------------------------------------------------------------- */

/* Limits, mode and root as an engine's cache would have them: PSI_CACHE_* or the default. False: one of them is
 * wrong, and a line has said which. `root` may be NULL. */
#define TOOL_ROOT_BYTES 1024
bool tool_control_options(psi_control_options *options, char root[TOOL_ROOT_BYTES]);

const char *tool_band_name(psi_band band);
const char *tool_effect_name(psi_effect effect);
/* Whose limit is the tightest: "machine", "cgroup v1", ...; "" when none is. */
const char *tool_bound_name(psi_bound_kind bound);

/* "index":0.42,"index_stall":...,"high":...,"low":...,"band":...,"reason":... without braces. */
void tool_json_index(FILE *out, const psi_control_options *options, const psi_decision *decision);

#endif
