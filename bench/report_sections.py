"""What the report shows of each kind of result: a title, a sentence, a table, a picture. One function a kind, by the
beginning of the file's name; each takes what the file holds and returns a Section. Nothing here reads or writes."""
import statistics

import board
import quality
import report_vllm
from report_parts import COLOURS, MIB, Section, colour, dots, number, plain, plain_log, whiskers

# ---- the OOM table -----------------------------------------------------------------------------------

def oom_table(result):
    sides = result["sides"]
    rows = []
    for s in sides:
        q = s["quality"]
        rows.append([s["name"], s["runs"], "%d (%.1f to %.1f %%)" % (
            s["kills"], *(100 * bound for bound in s["kills_share_interval"])), s["failed"],
            number(s["peak_bytes"], "%.0f", MIB), number(s["mean_bytes"], "%.0f", MIB), number(s["step_p50_ms"]),
            number(s["step_p99_ms"]), number(s["step_worst_ms"], "%.0f"), number(s["tokens"], "%.0f"),
            "%d of %d" % (q["as_unpressed_runs"], q["judged_runs"]), number(q["tokens_as_stock_share"], "%.2f"),
            s["context_tokens"], number(s.get("again_p50_s"))])

    def draw(figure):
        kills, memory, steps = figure.subplots(1, 3)
        names, at = [s["name"] for s in sides], range(len(sides))
        colours = [colour(name) for name in names]
        shares = [100 * s["kills"] / s["runs"] for s in sides]
        kills.barh(at, shares, color=colours, xerr=whiskers(shares, [
            [100 * bound for bound in s["kills_share_interval"]] for s in sides]), error_kw={"elinewidth": 1})
        kills.set_xlabel("runs with a kill, % (95 % interval)")
        kills.set_xlim(0, 105)
        for y, s in zip(at, sides):
            kills.text(3, y - 0.2, "%d of %d" % (s["kills"], s["runs"]), fontsize=8, va="center",
                       color="white" if shares[y] > 20 else "black")
        kills.set_yticks(at, names)
        memory.barh(at, [(s["peak_bytes"] or 0) / MIB for s in sides], color=colours, alpha=0.45)
        memory.barh(at, [(s["mean_bytes"] or 0) / MIB for s in sides], color=colours, height=0.4)
        memory.set_xlabel("engine's memory, MiB: peak (wide), mean")
        for y, s in zip(at, sides):
            points = [s["step_p50_ms"], s["step_p99_ms"], s["step_worst_ms"]]
            if None not in points:
                steps.plot(points, [y] * 3, "-", color=colours[y], alpha=0.5)
                for value, mark in zip(points, "o|x"):
                    steps.plot(value, y, mark, color=colours[y], markersize=7, alpha=0.8)
        steps.set_xscale("log")
        steps.set_xlabel("step, ms: p50 (o), p99 (|), worst (x)")
        for axis in (kills, memory, steps):
            axis.invert_yaxis()
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(True, axis="x", color="#eeeeee")
            axis.set_axisbelow(True)
        for axis in (memory, steps):
            axis.set_yticks(at, [])
        steps.set_ylim(kills.get_ylim())
        plain_log(steps.xaxis)

    says = ("Limit %s MiB, spikes of %d to %d MiB at 100 to 2,000 MB/s at a drawn moment, the same for each side. "
            "Memory is the engine's private memory and its locked weights. A step that was under way at a kill is in "
            "no figure." % (number(result["plan"]["limit_bytes"], "%.0f", MIB), 32, result["plan"]["most_bytes"] / MIB))
    if result["missing_runs"]:
        says += " %d of the runs that were asked for are missing." % result["missing_runs"]
    return Section("Killed, in one limit under the same spikes", says,
                   ["side", "runs", "killed", "failed", "peak MiB", "mean MiB", "p50 ms", "p99 ms", "worst ms", "tokens",
                    "all tokens as unpressed", "tokens as whole 16-bit cache", "context", "answers again after s"],
                   rows, draw, (11, 1.2 + 0.35 * len(sides)))


# ---- latency and scale -------------------------------------------------------------------------------

def longer(histogram):
    """Where bins begin, and the share of all samples that lie there or beyond: down to the last one's bin."""
    total, left, edges, shares = sum(count for _, count in histogram), 0, [], []
    for edge, count in reversed(histogram):
        left += count
        edges.insert(0, edge)
        shares.insert(0, left / total)
    return edges, shares


def latency(result):
    rows, shown = [], {}
    for row in result["rows"]:
        rows.append([row["side"], row["work"], row["when"], row["steps"], *(
            number(row[key], "%.2f") for key in ("p50_ms", "p99_ms", "p999_ms", "worst_ms"))])
        shown.setdefault(row["work"], []).append(row)

    def draw(figure):
        for axis, (work, those) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items()):
            for row in those:
                axis.plot(*longer(row["histogram"]), drawstyle="steps-post", color=colour(row["side"]), linewidth=1.3,
                          linestyle={"apart": "-", "around": "--", "trim": ":"}.get(row["when"], "-."),
                          label="%s, %s (%d)" % (row["side"], row["when"], row["steps"]))
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xlabel("step time, ms")
            axis.set_ylabel("share of the steps that took longer")
            axis.set_title(work, loc="left", fontsize=10)
            axis.legend(fontsize=7, frameon=False)
            plain(axis)
            plain_log(axis.xaxis)

    return Section("Step times in and around trims and restores",
                   "Each step counts, to the last. In: the step that does it; around: the %d steps after it; apart: all "
                   "others. Stock is told the same and does nothing." % result["around_steps"],
                   ["side", "work", "when", "steps", "p50 ms", "p99 ms", "p99.9 ms", "worst ms"], rows, draw, (9, 3.6))


def scale(result):
    rows = [[row["blocks"], number(row["block_bytes"], "%.0f", 1024), number(row["trim_mb_s"], "%.0f"),
                  number(row["memory_mb_s"], "%.0f"), number(row["trim_share"], "%.2f"),
                  number(row["trim_cpu_share"], "%.2f"), number(row["restore_mb_s"], "%.0f"),
                  number(row["disk_mb_s"], "%.0f"),
                  number(row["restore_share"], "%.2f"), *(number(row.get(key), "%.0f") for key in (
                      "disk_pieces_mb_s", "fresh_mb_s", "one_by_one_mb_s"))] for row in result["bandwidth"]]
    cost = [["{:,}".format(row["cells"]), row["blocks"], *(number(row[key], "%.1f") for key in (
        "step_p50_us", "step_p99_us", "decide_p50_us", "decide_worst_us"))] for row in result["cost"]]

    def draw(figure):
        left, right = figure.subplots(1, 2)
        width = 0.8 / max(1, len(result["bandwidth"]))
        for i, row in enumerate(result["bandwidth"]):
            bars = left.bar([x + i * width for x in range(2)], [row["trim_share"], row["restore_share"]], width * 0.95,
                            color=COLOURS["ours"], alpha=1 - 0.3 * i,
                            label="blocks of %d KiB" % (row["block_bytes"] // 1024))
            if row.get("one_by_one_mb_s"):  # results from before it was measured have it not
                share = row["one_by_one_mb_s"] / row["disk_mb_s"]
                left.plot([1 + (i - 0.5) * width, 1 + (i + 0.5) * width], [share] * 2, color=COLOURS["stock"], linewidth=2,
                          label=None if i else "the disk in pieces of a block, then fresh pages")
            left.bar_label(bars, ["%.0f MB/s" % row[key] for key in ("trim_mb_s", "restore_mb_s")], fontsize=8, padding=2)
        left.axhline(result["bar"], color=COLOURS["other"], linestyle=":", label="bar")
        left.set_xticks([x + 0.4 - width / 2 for x in range(2)], ["trim / memory's limit", "restore / disk's limit"])
        left.set_ylabel("share of what can be done")
        left.set_ylim(0, 1.5 * left.get_ylim()[1])  # room for the legend above the bars
        left.legend(fontsize=8, frameon=False, loc="upper right")
        cells = [row["cells"] for row in result["cost"]]
        right.plot(cells, [row["step_p50_us"] for row in result["cost"]], "o-", color=COLOURS["ours"],
                   label="a safe point with nothing to do, p50")
        right.plot(cells, [row["decide_p50_us"] for row in result["cost"]], "s--", color=COLOURS["stock"],
                   label="one that trims a tenth, p50")
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_xlabel("cells (tokens) in the cache; K: 1,024")
        right.set_ylabel("microseconds")
        right.legend(fontsize=8, frameon=False)
        for axis in (left, right):
            plain(axis)
        plain_log(right.yaxis)
        right.minorticks_off()
        right.set_xticks(cells, ["%dK" % (count // 1024) for count in cells])

    return Section("Bandwidth of trim and restore, and cost against size", "Without an engine, through the C interface; "
                   "the limits of memory and disk are measured in the same run, in turn.",
                   ["blocks", "KiB a block", "trim MB/s", "memory's MB/s", "share", "share of processor time",
                    "restore MB/s", "disk's MB/s", "share", "disk in pieces of a block", "fresh pages", "both in turn"], rows, draw, (9, 3.4), more=[
                        (["cells", "blocks", "safe point, p50 us", "p99 us", "one that trims a tenth, p50 us", "worst us"],
                         cost)])


# ---- context in the same memory ------------------------------------------------------------------------

def context(result):
    key, rows, more = result["key"], [], []
    if key:
        rows = [[row["side"], row["context_tokens"], row["runs"], row["killed"], row.get("failed", 0), row["found_in_spike"],
                 row["found_after"], number(row["resident_in_spike_bytes"], "%.0f", MIB)] for row in key["rows"]]
    words = {True: "killed", False: "alive"}
    for each in result["boards"]:
        for run in each["runs"]:
            more.append([each["device"], "%s, %d of %d layers" % (each["model"], each["layers_run"], each["layers"]),
                         run["side"], run["context_tokens"], words[run["killed"]] if not run["failed"] else "failed",
                         number(run["limit_bytes"], "%.0f", MIB), number(run["spike_bytes"], "%.0f", MIB),
                         number(run["resident_bytes"].get("spike"), "%.0f", MIB)])
    tables = [(["board", "model (random weights)", "side", "context", "", "limit MiB", "spike MiB", "of the cache in memory, MiB"],
               more)] if more else []
    tables += [([each["arithmetic"][0]], [[line] for line in each["arithmetic"][1:]]) for each in result["boards"]]

    # (label, side, tokens, what came of it, whether that is what is wanted)
    bars = [("%s, %d" % (row["side"], row["context_tokens"]), row["side"], row["context_tokens"],
             "killed %d of %d" % (row["killed"], row["runs"]) if row["killed"] else
             "failed %d of %d" % (row["failed"], row["runs"]) if row.get("failed") else
             "key found %d of %d" % (row["found_in_spike"], row["runs"]),
             not row["killed"] and not row.get("failed") and row["found_in_spike"] == row["runs"]) for row in (key["rows"] if key else [])]
    bars += [("%s, %s" % (each["model"], run["side"]), run["side"], run["context_tokens"],
              "killed" if run["killed"] else "failed" if run["failed"] else "alive", not run["killed"] and not run["failed"])
             for each in result["boards"] for run in each["runs"]]

    def draw(figure):
        axis = figure.subplots()
        for y, (_, side, tokens, words, good) in enumerate(bars):
            axis.barh(y, tokens, color=colour(side), alpha=1 if good else 0.3)
            axis.text(tokens, y, "  " + words, va="center", fontsize=8)
        axis.set_yticks(range(len(bars)), [label for label, *_ in bars])
        axis.set_xlim(right=1.25 * max(tokens for _, _, tokens, *_ in bars))
        axis.set_xlabel("tokens of context (pale: killed, or the key not found while the spike was there)")
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)

    says = "A pass key in a document that fills the context; the question comes while the spike holds. " if key else ""
    if key:
        says += "Limit %.0f MiB, spike %.0f MiB: stock needs %.0f MiB with %d tokens. Longest: ours %d, stock %d tokens." % (
            key["limit_bytes"] / MIB, key["spike_bytes"] / MIB, key["stock_bytes"] / MIB, min(
                row["context_tokens"] for row in key["rows"]), key["longest_tokens"]["ours"], key["longest_tokens"]["stock"])
    return Section("Context in the same memory", says, ["side", "context", "runs", "killed", "failed", "key found in the spike",
                                                        "after it", "of the cache in memory in the spike, MiB"], rows,
                   draw if bars else None, (8, 1.2 + 0.3 * len(bars)), more=tables)


# ---- results that were there before ------------------------------------------------------------------

def spike_matrix(result):
    rows, modes = result["rows"], list(dict.fromkeys(row["mode"] for row in result["rows"]))
    rates, weights = (list(dict.fromkeys(row[key] for row in rows)) for key in ("rate_mb_s", "weights"))
    at = {(row["rate_mb_s"], row["weights"], row["mode"]): row for row in rows}
    table = [[rate, kind] + ["-" if row is None else "%d of %d, worst %s ms" % (
        row["killed"] + row["failed"], row["runs"], number(row["worst_ms"], "%.0f"))
        for row in (at.get((rate, kind, mode)) for mode in modes)] for rate in rates for kind in weights]

    def draw(figure):
        import matplotlib
        for axis, mode in zip(figure.subplots(1, len(modes), sharey=True, squeeze=False)[0], modes):
            shares = [[at[rate, kind, mode]["killed"] / at[rate, kind, mode]["runs"] if (rate, kind, mode) in at
                       else float("nan") for rate in rates] for kind in weights]
            axis.imshow(shares, vmin=0, vmax=1, aspect="auto",
                        cmap=matplotlib.colors.LinearSegmentedColormap.from_list("", ["#dcefdc", "#f7d9a8", "#d9534f"]))
            for y, kind in enumerate(weights):
                for x, rate in enumerate(rates):
                    if (row := at.get((rate, kind, mode))) is not None:
                        axis.text(x, y, "%d/%d" % (row["killed"], row["runs"]), ha="center", va="center", fontsize=7.5)
            axis.set_xticks(range(len(rates)), rates, fontsize=8)
            axis.set_yticks(range(len(weights)), weights, fontsize=8)
            axis.set_title(mode, loc="left", fontsize=10, color=COLOURS["stock" if mode == "stock" else "ours"])
            axis.set_xlabel("spike, MB/s", fontsize=8)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)

    return Section("Spikes of 50 MB/s to 4 GB/s: runs with a kill", "Limit just above what stock needs; the spike takes "
                   "what is free and 0.6 of what the cache can give.", ["MB/s", "weights"] + modes, table, draw, (11, 2.3))


def demo(result):
    sides = list(result["rounds"][0])
    sides = [side for side in sides if isinstance(result["rounds"][0][side], dict)]
    runs = {side: [r[side] for r in result["rounds"] if side in r] for side in sides}
    rows = [[side, len(those), sum(bool(r["killed"]) for r in those)] + [
        number(statistics.median(r[key] for r in those), form, scale) for key, form, scale in (
            ("peak_bytes", "%.0f", MIB), ("tokens", "%.0f", 1), ("step_p50_ms", "%.1f", 1), ("step_p99_ms", "%.1f", 1))]
        for side, those in runs.items()]

    def draw(figure):
        axis = figure.subplots()
        dots(axis, runs, "tokens", 0.25, 6)
        axis.set_xlabel("tokens written (x: then killed, o: finished)")

    return Section("The demo, again and again", "One limit, one spike; lazy is ours with its controller off. Medians.",
                   ["side", "rounds", "killed", "peak MiB of the group", "tokens", "p50 ms", "p99 ms"], rows, draw, (8, 2.2))


def paired_step(result):
    turns = [[statistics.median(turn) / 1000 for turn in side] for side in result["steps_us"]]
    low, high = result["interval_95"]
    names = result["sides"]
    rows = [["%s / %s" % (names[1], names[0]), "%.4f" % result["ratio"], "%.4f to %.4f" % (low, high),
             *(number(value, "%.2f") for value in result["median_ms"]), result["prompt_tokens"],
             result.get("evicted", 0), "yes" if result["tokens_identical"] else "no"]]

    def draw(figure):
        axis = figure.subplots()
        for name, values in zip(names, turns):
            axis.plot(values, "-", color=colour(name), label=name, linewidth=1.2)
        axis.set_xlabel("turn (in time)")
        axis.set_ylabel("median step of the turn, ms")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, fontsize=8)
        plain(axis)

    return Section("Step time without pressure%s" % (", a part of our cache evicted" if result.get("evicted") else ""),
                   "Two processes in turn; ratio of medians with a 95 % interval.",
                   ["sides", "ratio", "95 %", "base ms", "other ms", "tokens in the cache", "evicted share",
                    "tokens identical"], rows, draw, (8, 2.4))


def reaction(result):
    parts = [("outside", "from the first sign to pages returned, seen from outside"),
             ("taken", "the same from the spike's first byte"), ("inside", "as the library says it of itself: a bound")]
    rows = [[text, result[key]["count"], *(number(result[key][name]) for name in ("p50_ms", "p99_ms", "most_ms"))]
            for key, text in parts if key in result]

    def draw(figure):
        axis = figure.subplots()
        for key, style, label in (("outside_ms", "-", "from the first sign"), ("taken_ms", "--", "from the first byte")):
            values = sorted(row[key] for row in result["rows"] if row.get(key) is not None)
            axis.plot(values, [(i + 1) / len(values) for i in range(len(values))], style, color=COLOURS["ours"],
                      label=label, drawstyle="steps-post")
        axis.axvline(result["bar_ms"], color=COLOURS["other"], linestyle=":", label="bar for the 99th percentile")
        axis.set_xlabel("ms")
        axis.set_ylabel("share of spikes")
        axis.legend(frameon=False, fontsize=8)
        plain(axis)

    return Section("From the first sign of a spike to pages returned", "%d spikes; the reserve %s." % (
                       len(result["rows"]), "is as at the start" if result["settings"].get("tuning") == "off" else
                       "follows what was found to be needed, so the first MiB may be no reason to act"),
                   ["what", "spikes", "p50 ms", "p99 ms", "most ms"], rows, draw, (8, 2.6))


def restore_against_recompute(result):
    rows = [[r["tokens"], number(r["prefill_us"], "%.0f", 1000), number(r["restore_us"], "%.0f", 1000),
             number(r["ratio"], "%.1f"), number(r["answer_us"], "%.0f", 1000), number(r["answer_ratio"], "%.1f")]
            for r in result["results"]]

    def draw(figure):
        axis = figure.subplots()
        labels, values, colours = [], [], []
        for r in result["results"]:
            for name, key, shade in (("computed again (stock)", "prefill_us", "stock"), ("read back", "restore_us", "ours"),
                                     ("sleeper answers", "answer_us", "light")):
                labels.append("%s, %d tokens" % (name, r["tokens"]))
                values.append(r[key] / 1000)
                colours.append(COLOURS[shade])
        bars = axis.barh(range(len(values)), values, color=colours)
        axis.bar_label(bars, ["%.0f ms" % value for value in values], fontsize=8, padding=3)
        axis.set_yticks(range(len(values)), labels)
        axis.set_xlim(right=max(values) * 1.1)
        axis.set_xlabel("ms")
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)

    return Section("Read back against computed again", "Medians of pairs of processes; the store's page cache dropped.",
                   ["tokens", "prefill of stock ms", "restore ms", "times faster", "sleeper answers ms", "times faster"],
                   rows, draw, (8, 2.0))


def thrash(result):
    rows = [[r["mode"], "killed" if r["killed"] else "alive", number(r["unpressed_ms"]), number(r["median_ms"]),
             number(r["factor"], "%.1f"), number(r["worst_ms"], "%.0f"), number(r["recover_s"], "%.2f")]
            for r in result["runs"]]
    first = {}
    for run in result["runs"]:
        first.setdefault(run["mode"], run)

    def draw(figure):
        axis = figure.subplots()
        for mode, run in first.items():
            name = "stock" if mode == "stock" else "ours, %s" % mode
            axis.plot([at for at, _ in run["steps"]], [ms for _, ms in run["steps"]], ".-", markersize=3, linewidth=0.8,
                      color=colour(name) if mode in ("stock", "auto") else COLOURS["other"], label=name)
        axis.set_yscale("log")
        axis.set_xlabel("seconds from the neighbour's start (first run of each)")
        axis.set_ylabel("step, ms")
        axis.legend(frameon=False, fontsize=8)
        plain(axis)
        plain_log(axis.yaxis)

    return Section("A limit below weights, cache and neighbour", "Weights are mapped, so stock is slow rather than killed.",
                   ["side", "", "unpressed ms", "median ms", "mean while held, times unpressed", "worst ms", "back within 1.5x after s"],
                   rows, draw, (8, 2.8))


def server_soak(result):
    s = result["summary"]
    rows = [["killed", s["kills"]], ["stuck slots", s["stuck"]], ["errors", s["errors"]], ["spikes", s["spikes"]],
            ["answers as unpressed", s["same"] + s["same_after"]], ["wrong answers", s["wrong"]],
            ["not judged", s["not_judged"] + s["not_judged_after"]],
            ["an answer took, p50", "%.1f s" % s["took_p50_s"]], ["an answer took, p99", "%.1f s" % s["took_p99_s"]]]

    def draw(figure):
        axis = figure.subplots()
        zero_s = min(spike["at_s"] for spike in result["spikes"]) / 60
        for spike in result["spikes"]:
            axis.bar(spike["at_s"] / 60 - zero_s, spike["bytes"] / MIB, (spike["end_s"] - spike["at_s"]) / 60,
                     align="edge", color=COLOURS["light"])
        for wrong in result["wrong"]:
            axis.axvline(wrong["at_s"] / 60 - zero_s, color=COLOURS["stock"], linewidth=1)
        axis.set_xlabel("minutes (red: a wrong answer)")
        axis.set_ylabel("spike, MiB")
        plain(axis)

    return Section("llama-server under clients and spikes", "%d clients, limit %.0f MiB. %s" % (
        result["options"]["clients"], result["limit_bytes"] / MIB, result.get("note", "")), ["what", "count"], rows, draw,
        (8, 2.2))


def neighbour(result):
    def share(value):
        return number(value, "%.1f %%", 0.01)
    rows = [[r["where"], share(r["pressure"]["neighbour_some"]), share(r["pressure"]["system_some"]), r["change"]["trims"],
             number(r["highest"]["index"], "%.2f"), number(r["step_median_quiet_ms"]), number(r["step_median_ms"])]
            for r in result["rows"]]

    def draw(figure):
        axis = figure.subplots()
        at = range(len(result["rows"]))
        for shift, key, shade in ((-0.3, "neighbour_some", "other"), (0, "system_some", "light")):
            axis.bar([x + shift for x in at], [100 * r["pressure"][key] for r in result["rows"]], 0.28,
                     color=COLOURS[shade], label=key.split("_")[0] + " stalled")
        axis.bar([x + 0.3 for x in at], [100 * r["highest"]["index"] for r in result["rows"]], 0.28, color=COLOURS["ours"],
                 label="highest pressure index x 100")
        axis.set_xticks(at, ["engine in no group" if r["where"] == "free" else "engine in a %s" % r["where"]
                             for r in result["rows"]])
        axis.set_ylabel("%")
        axis.set_ylim(0, 100)
        axis.legend(frameon=False, fontsize=8, ncol=3, loc="upper right")
        plain(axis)

    return Section("A thrashing neighbour in a group of its own", "%g minutes each: the engine has memory, so it must not "
                   "give any." % result["minutes"], ["engine", "neighbour stalled", "system stalled", "trims",
                                                     "highest index", "step quiet ms", "step ms"], rows, draw, (8, 2.4))


def watcher_cost(result):
    rows = [[r["host"], "%.0f MiB left" % (r["near_bytes"] / MIB) if "near_bytes" in r else
             "none" if r["limit_bytes"] is None else "%.0f MiB" % (r["limit_bytes"] / MIB),
             number(r["core_share"], "%.3f %%", 0.01), number(r["wake_ups_a_second"], "%.2f"),
             number(r["us_a_wake_up"], "%.0f")] for r in result["rows"]]

    def draw(figure):
        axis = figure.subplots()
        bars = axis.barh(range(len(rows)), [100 * r["core_share"] for r in result["rows"]], color=COLOURS["ours"])
        axis.bar_label(bars, [row[2] for row in rows], fontsize=8, padding=3)
        axis.axvline(100 * result["bar"]["core_share"], color=COLOURS["other"], linestyle=":")
        axis.text(100 * result["bar"]["core_share"], 0, "bar ", ha="right", va="center", fontsize=8)
        axis.set_yticks(range(len(rows)), ["%s, %s limit" % (row[0], "no" if row[1] == "none" else row[1]) for row in rows])
        axis.set_xlabel("% of one processor")
        axis.spines[["top", "right"]].set_visible(False)

    return Section("What watching costs", "The watcher's thread without pressure, and decoding near a limit.",
                   ["in", "limit", "of one processor", "wake-ups a second", "us a wake-up"], rows, draw, (8, 2.0))


def cuda_pages(result):
    rows = [[run["pieces"], number(run["give"]["p50_us"], "%.0f"), number(run["give"]["worst_us"], "%.0f"),
             number(run["take"]["p50_us"], "%.0f"), number(run["take"]["worst_us"], "%.0f"),
             number(run["freed_bytes"] / run["promised_bytes"], "%.3f"), run["changed_pieces"]] for run in result["runs"]]

    def draw(figure):
        axis = figure.subplots()
        for what, key, hue in (("given back", "give_us", COLOURS["ours"]), ("taken again", "take_us", COLOURS["other"])):
            axis.hist([us for run in result["runs"] for us in run[key]], bins=80, range=(0, 160), histtype="step",
                      label=what, color=hue)
        axis.set_xlabel("us a piece")
        axis.legend(frameon=False, fontsize=8)
        plain(axis)

    return Section("Giving a GPU's memory back", "CUDA's calls alone, not used by us yet: %s, pieces of %d MiB, %d of them."
                   % (result["gpu"], result["piece_bytes"] // MIB, result["pieces"]),
                   ["pieces that went", "give, us", "worst", "take, us", "worst", "freed of promised", "others changed"],
                   rows, draw, (8, 2.0))


def quality_trials(trials):
    shown = [("fifo", "off"), ("attention", "off"), ("keys", "off"), ("auto", "off"), ("auto", "on")]
    tasks, shares = list(dict.fromkeys(trial["task"] for trial in trials)), (0.25, 0.5, 0.75, 0.9)
    found = {}
    for task in tasks:
        for policy, recall in shown:
            for share in shares:
                pairs = quality.pairs_of(trials, task, quality.key("unseen", policy, recall, share))
                if pairs and task != "continuation":
                    found[task, policy, recall, share] = quality.ratio_interval(pairs)
    tasks = [task for task in tasks if any(key[0] == task for key in found)]
    rows = [[quality.TITLES[task], policy + (" with recall" if recall == "on" else "")] + [
        "-" if (cell := found.get((task, policy, recall, share))) is None else "%.2f (%.2f to %.2f)" % cell
        for share in shares] for task in tasks for policy, recall in shown]

    def draw(figure):
        styles = {"fifo": COLOURS["other"], "attention": "#3b7dd8", "keys": "#2a9d8f", "auto": COLOURS["stock"]}
        for axis, task in zip(figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks):
            for policy, recall in shown:
                points = [(100 * share, found[task, policy, recall, share][0]) for share in shares
                          if (task, policy, recall, share) in found]
                axis.plot(*zip((0, 1), *points), "--" if recall == "on" else "-", color=styles[policy], marker="o",
                          markersize=3, label=policy + (" with recall" if recall == "on" else ""))
            axis.set_title(quality.TITLES[task], loc="left", fontsize=9)
            axis.set_xticks([0, 50, 75, 90])
            axis.set_xlabel("evicted, %", fontsize=8)
            plain(axis)
        figure.axes[0].set_ylabel("score / whole cache's")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncol=len(shown), frameon=False, fontsize=8)

    counts = ", ".join("%s %d" % (quality.TITLES[task], sum(t["task"] == task for t in trials)) for task in tasks)
    return Section("Answers with a part of the cache evicted", "The question is read after the trim. Score as a share of "
                   "the whole cache's, 95 %% intervals. Documents: %s." % counts,
                   ["task", "policy"] + ["%d %% evicted" % (100 * share) for share in shares], rows, draw, (10, 3.2))


def device(result):
    rows = [[what, words] for what, words in board.told(result["board"])]
    rows.append(["warmest part, degrees", "%s before, %s after" % tuple(
        number(value, "%.0f") for value in (result["board"]["warmth_c"], result["warmth_after_c"]))])
    parts = [[part["name"], part.get("left_out") or ("not done" if part.get("result") is None else
              "done in %d s" % part["took_s"] if part["status"] == 0 else "done in %d s, missed its bar" % part["took_s"]),
              len(part.get("raw") or []) or "-"] for part in result["parts"]]
    checks = [[check["state"], check["name"], check["detail"], check["cure"]] for check in (result["doctor"] or {}).get(
        "checks", []) if check["state"] != "ok"]
    more = [(["bench", "", "runs in the file"], parts)]
    if checks:
        more.append((["psi-cache doctor says", "of", "what", "cure"], checks))
    return Section("A board: %s" % (result["board"]["board"] or result["machine"]["cpu"]),
                   "What psi-cache bench device found and left in one file; its benches follow in their places.",
                   ["", "this board"], rows, command="psi-cache bench device", machine=result["machine"], more=more)


# In the order of the page: beginning of a file's name, section, what repeats it where the file does not say.
KINDS = (("psi-cache-device", device, "psi-cache bench device"),
         ("oom-table", oom_table, "make bench-oom-table"),
         ("spike-matrix", spike_matrix, "make bench-spike-matrix"),
         ("demo", demo, "make demo ARGS=\"--quick --runs 20\""),
         ("quality", quality_trials, "make bench-quality"),
         ("context", context, "make bench-context"),
         ("latency", latency, "make bench-latency"),
         ("reaction", reaction, "make bench-reaction"),
         ("scale", scale, "make bench-scale"),
         ("restore-against-recompute", restore_against_recompute, "make bench-restore-against-recompute"),
         ("paired-step", paired_step, "make bench-paired-step"),
         ("thrash", thrash, "make bench-thrash"),
         ("server-soak", server_soak, "make bench-server-soak"),
         ("neighbour", neighbour, "make bench-neighbour"),
         ("watcher-cost", watcher_cost, "make bench-watcher-cost"),
         *report_vllm.KINDS,
         ("cuda_pages", cuda_pages, "python3 bench/cuda_pages.py"))


def section_of(name, value):
    """None for a file that no kind knows."""
    for at, (begin, make, command) in enumerate(KINDS):
        if name == begin or name.startswith(begin + "-"):
            section = make(value)
            from_file = value if isinstance(value, dict) else {}
            section.command = from_file.get("command") or command
            section.machine = from_file.get("machine")
            if from_file.get("note") and from_file["note"] not in section.says:  # by hand, of a result that is kept
                section.says += " " + from_file["note"]
            return at, section
    return None
