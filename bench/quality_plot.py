"""Draws what bench/quality.py found: score against evicted share, a panel a task, to build/bench/quality-<length>.png."""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import quality  # noqa: E402

# One colour a policy; with recall the same, dashed.
COLOURS = {"fifo": "#8c8c8c", "lru": "#b08968", "attention": "#3b7dd8", "keys": "#2a9d8f", "auto": "#d1495b"}
SHADED = ("fifo", "auto")  # more intervals than these cannot be told apart


def line(axis, trials, options, task, order, policy, recall):
    found = [(share, quality.ratio_interval(pairs)) for share in options.evicted
             if (pairs := quality.pairs_of(trials, task, quality.key(order, policy, recall, share)))]
    if not found:
        return
    x = [0] + [100 * share for share, _ in found]  # with nothing evicted it is the whole cache
    middle, low, high = zip((1, 1, 1), *(interval for _, interval in found))
    label = policy + (" with recall" if recall == "on" else "")
    axis.plot(x, middle, "--" if recall == "on" else "-", color=COLOURS[policy], marker="o", markersize=3.5, label=label)
    if policy in SHADED:
        axis.fill_between(x, low, high, color=COLOURS[policy], alpha=0.12, linewidth=0)


def panel(axis, trials, options, task, order):
    for policy in options.policies:
        for recall in ("off", "on"):
            line(axis, trials, options, task, order, policy, recall)
    question = "" if task == "continuation" else ", question %s" % ("not seen" if order == "unseen" else "seen")
    trials_made = len({t["seed"] for t in trials if t["task"] == task})
    axis.set_title(f"{quality.TITLES[task]}{question} ({trials_made} trials)", fontsize=9, loc="left")
    axis.set_xticks([0, 25, 50, 75, 90])
    axis.axhline(1, color="#cccccc", linewidth=0.8, zorder=0)
    axis.grid(True, axis="y", color="#eeeeee")
    axis.spines[["top", "right"]].set_visible(False)
    if task == "continuation":
        axis.set_ylabel("log-likelihood / whole cache's\n(below 1: better)", fontsize=8)
    else:
        axis.set_ylim(-0.05, 1.45)
        axis.set_ylabel("score / whole cache's", fontsize=8)
    axis.set_xlabel("evicted, % of the cache", fontsize=8)


def is_there(trials, task, order):
    return any(trial["task"] == task and cell.startswith(order) for trial in trials for cell in trial["cells"])


def main():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    options = quality.arguments()
    options.is_default_model = options.model is None
    trials = quality.load(options)
    if not trials:
        sys.exit(f"no results for {options.length} tokens: run bench/quality.py --length {options.length} first")
    panels = [(task, order) for order in options.order for task in quality.tasks.TASKS if is_there(trials, task, order)]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.9 * columns, 2.9 * rows), squeeze=False)
    for axis, chosen in zip(axes.flat, panels):
        panel(axis, trials, options, *chosen)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=6, frameon=False, fontsize=8)
    figure.suptitle(f"Answers with a part of the cache evicted: documents of {options.length} tokens, "
                    "95 % intervals of fifo and auto shaded", fontsize=10)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    path = os.path.splitext(quality.results_path(options))[0] + ".png"
    figure.savefig(path, dpi=130)
    print(os.path.relpath(path))


if __name__ == "__main__":
    main()
