"""The demo's picture: what each side did around the spike. Called by demo.py; needs matplotlib."""
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter  # noqa: E402

MIB = 1024 * 1024
TITLES = {"stock": "stock llama.cpp", "lazy": "pages taken late, controller off", "ours": "with psi_cache"}
COLOURS = {"stock": "#7f7f7f", "lazy": "#c77f1a", "ours": "#1f77b4"}
RED, SPIKE, GREEN = "#c62828", "#f3d9d9", "#2e7d32"
BEFORE_S, AFTER_S = 2.5, 1.0


def _origin_s(side):
    """Time zero: the spike's begin, else the first token."""
    if side["spike"]:
        return side["spike"][0]["time_s"]
    if side["steps"]:
        return side["steps"][0][0]
    return side["samples"][0][0]


def _spike_span(side, zero_s):
    times = {line["event"]: line["time_s"] - zero_s for line in side["spike"]}
    return times.get("spike_begin"), times.get("spike_end", side["samples"][-1][0] - zero_s)


def _series(rows, zero_s, index, scale=1.0):
    pairs = [(row[0] - zero_s, row[index] / scale) for row in rows if row[index] is not None]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def _stat(side, zero_s, key, scale=1.0):
    pairs = [(s["time_s"] - zero_s, s[key] / scale) for s in side["stats"] if s.get(key) is not None]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def _memory(axis, side, zero_s, colour):
    x, y = _series(side["samples"], zero_s, 1, MIB)
    if x:
        axis.fill_between(x, y, color=colour, alpha=0.18, linewidth=0)
        axis.plot(x, y, color=colour, linewidth=1.6)
    x, y = _series(side["samples"], zero_s, 2, MIB)
    axis.plot(x, y, color=colour, linewidth=1.1, linestyle=":")
    if side["limit_bytes"]:
        begin_s, end_s = side["samples"][0][0], side["samples"][-1][0]
        begin_s = max(begin_s, side["limit_set_s"] if side["limit_set_s"] < end_s else begin_s)
        axis.plot([begin_s - zero_s, end_s + 2 * AFTER_S - zero_s], [side["limit_bytes"] / MIB] * 2, color=RED,
                  linewidth=1.2, linestyle="--")


def _cache(axis, side, zero_s, colour):
    x, y = _stat(side, zero_s, "resident_bytes", MIB)
    if not x and not side["stock"]:
        return
    if not x:  # stock: the whole context's cache, from the first moment to the last
        x = [side["samples"][0][0] - zero_s, side["samples"][-1][0] - zero_s]
        y = [side["context_cache_bytes"] / MIB] * 2
    axis.fill_between(x, y, color=colour, alpha=0.18, linewidth=0)
    axis.plot(x, y, color=colour, linewidth=1.6)


def _index(axis, side, zero_s, colour):
    x, y = _stat(side, zero_s, "index")
    if not x:
        axis.text(0.5, 0.5, "nobody is looking", transform=axis.transAxes, ha="center", va="center",
                  color="#888888", fontsize=10, style="italic")
        return
    axis.plot(x, y, color=colour, linewidth=1.4)
    last = side["stats"][-1]
    for key, text, line in (("high", "trim above", RED), ("low", "grow again below", GREEN)):
        if last.get(key) is not None:
            axis.axhline(last[key], color=line, linewidth=0.9, linestyle="--")
            axis.annotate(text, (0.01, last[key]), xycoords=("axes fraction", "data"), xytext=(0, 2),
                          textcoords="offset points", fontsize=7, color=line)


def _steps(axis, side, zero_s, colour):
    x, y = _series(side["steps"], zero_s, 1, 1000)
    axis.scatter(x, y, s=6, color=colour, linewidths=0)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(NullFormatter())


ROWS = ((_memory, "memory (MiB)"), (_cache, "cache in memory (MiB)"), (_index, "pressure index"),
        (_steps, "time for a token (ms)"))


def _mark_end(axes, side, zero_s, result):
    if not result["killed"]:
        return
    end_s = side["samples"][-1][0] - zero_s
    for axis in axes:
        axis.axvline(end_s, color=RED, linewidth=1.6)
    left, right = axes[0].get_xlim()
    beside = (5, "left") if end_s < left + 0.75 * (right - left) else (-5, "right")
    axes[0].annotate("killed", (end_s, 0.5), xycoords=("data", "axes fraction"), xytext=(beside[0], 0), ha=beside[1],
                     textcoords="offset points", color=RED, fontsize=11, fontweight="bold", va="center")


def _verdict(result):
    if result["killed"]:
        return "killed after %d tokens" % result["tokens"]
    return ("finished: %d tokens" if result["finished"] else "failed: %d tokens") % result["tokens"]


def _ranges(samples):
    """One time span and one scale a row for all sides, so that they compare at a glance."""
    ends = [side["samples"][-1][0] - _origin_s(side) for side in samples.values()]
    top = max([max((r[1] or r[2] or 0) for r in side["samples"]) for side in samples.values()]
              + [side["limit_bytes"] or 0 for side in samples.values()])
    steps = [us / 1000 for side in samples.values() for _, us in side["steps"]] or [1, 10]
    return (-BEFORE_S, max(ends) + AFTER_S), top / MIB * 1.08, (min(steps) * 0.7, max(max(steps) * 1.5, 100))


def draw(samples, results, path):
    sides = list(samples)
    span, memory_top, step_range = _ranges(samples)
    figure, grid = plt.subplots(len(ROWS), len(sides), figsize=(4.3 * len(sides) + 0.6, 9.4), sharex="col",
                                sharey="row", squeeze=False, gridspec_kw={"height_ratios": (1.5, 1, 0.8, 1)})
    for column, name in enumerate(sides):
        side, zero_s = {**samples[name], "stock": name == "stock"}, _origin_s(samples[name])
        axes = grid[:, column]
        begin_s, end_s = _spike_span(side, zero_s)
        for row, (plot, label) in enumerate(ROWS):
            axis = axes[row]
            if begin_s is not None:
                axis.axvspan(begin_s, end_s, color=SPIKE, alpha=0.55, linewidth=0, zorder=0)
            plot(axis, side, zero_s, COLOURS[name])
            axis.grid(True, color="#e6e6e6", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(label)
        axes[0].set_xlim(*span)
        _mark_end(axes, side, zero_s, results[name])
        axes[0].set_title("%s\n" % TITLES[name], fontsize=12, pad=4, fontweight="bold", color=COLOURS[name])
        axes[0].text(0.5, 1.04, _verdict(results[name]), transform=axes[0].transAxes, ha="center", fontsize=10,
                     color=RED if results[name]["killed"] or not results[name]["finished"] else GREEN)
        axes[-1].set_xlabel("seconds since the spike began" if side["spike"] else "seconds since the first token")
    grid[0, 0].set_ylim(0, memory_top)
    grid[1, 0].set_ylim(bottom=0)
    grid[2, 0].set_ylim(0, 1.05)
    grid[3, 0].set_ylim(*step_range)
    figure.suptitle(_headline(results), fontsize=13, x=0.5, y=0.995)
    figure.legend(handles=_lines_of_memory(), loc="upper center", bbox_to_anchor=(0.5, 0.975), ncol=3, fontsize=9,
                  frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.965))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines_of_memory():
    grey = "#555555"
    return [Line2D([], [], color=grey, linewidth=1.6, label="memory of the whole group"),
            Line2D([], [], color=grey, linewidth=1.1, linestyle=":", label="of it, the model's private memory"),
            Line2D([], [], color=RED, linewidth=1.2, linestyle="--", label="limit")]


def _headline(results):
    first = next(iter(results.values()))
    if not first["limit_bytes"]:
        return "no memory limit could be set: the sides left in peace"
    return "a memory spike of %d MiB at %d MiB/s (shaded), in a limit of %d MiB" % (
        first["spike_bytes"] // MIB, first["spike_bytes_per_s"] // MIB, first["limit_bytes"] // MIB)
