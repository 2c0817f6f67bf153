"""The picture of vLLM's demo: what each side did around the spike. Called by demo/demo_vllm.py; needs matplotlib."""
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from picture import COLOURS, RED, SPIKE  # noqa: E402

MIB = 1024 * 1024
TITLES = {"stock": "stock vLLM", "ours": "with psi_cache"}
BEFORE_S, AFTER_S = 10.0, 20.0


def _times(side):
    """Zero, and the spike's span, in seconds from it."""
    at = {line["event"]: line["time_s"] for line in side["spike"]}
    zero = at.get("spike_begin", side["samples"][0][0])
    return zero, 0.0, at.get("spike_end", side["samples"][-1][0]) - zero


def _memory(axis, side, zero, colour):
    x, y = [s[0] - zero for s in side["samples"]], [s[1] / MIB for s in side["samples"]]
    axis.fill_between(x, y, color=colour, alpha=0.18, linewidth=0)
    axis.plot(x, y, color=colour, linewidth=1.6)
    axis.axhline(side["limit_bytes"] / MIB, color=RED, linewidth=1.2, linestyle="--")


def _cache(axis, side, zero, colour):
    x = [s["time_s"] - zero for s in side["stats"]]
    for key, style in (("resident_bytes", "-"), ("withheld_bytes", ":")):
        axis.plot(x, [s.get(key, 0) / MIB for s in side["stats"]], color=colour, linewidth=1.4, linestyle=style,
                  label=key.split("_")[0])
    if x:
        axis.legend(fontsize=7, loc="upper right")


def _answers(axis, side, zero, colour):
    ended = sorted(e[1] - zero for e in side["answers"])
    axis.step([ended[0], *ended] if ended else [], range(len(ended) + 1) if ended else [], where="post", color=colour)


ROWS = ((_memory, "memory of the group (MiB)"), (_cache, "KV cache (MiB)"), (_answers, "requests answered"))


def draw(samples, results, path):
    sides = [side for side in TITLES if side in samples]
    figure, axes = plt.subplots(len(ROWS), len(sides), figsize=(5.2 * len(sides), 7.6), sharex="col", sharey="row",
                                squeeze=False)
    for column, name in enumerate(sides):
        side = samples[name]
        zero, begin, end = _times(side)
        for row, (paint, label) in enumerate(ROWS):
            axis = axes[row][column]
            axis.axvspan(begin, end, color=SPIKE, linewidth=0)
            paint(axis, side, zero, COLOURS[name])
            axis.grid(alpha=0.25)
            axis.set_xlim(max(side["samples"][0][0] - zero, -BEFORE_S), end + AFTER_S)
            if column == 0:
                axis.set_ylabel(label)
        axes[0][column].set_title(TITLES[name] + (": KILLED" if results[name]["killed"] else ""))
        axes[-1][column].set_xlabel("seconds from the spike's begin")
    for row in axes:  # once all that shares the axis is drawn: it would not grow any more
        row[0].set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
