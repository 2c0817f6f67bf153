"""The OOM table's runs as one row a side, with intervals. Reads records, runs nothing."""
import figures

MIB = 1024 * 1024
QUANTILES = {"step_p50_ms": 0.5, "step_p99_ms": 0.99}
BOOTSTRAP_DRAWS = 400


def pressed_steps(run):
    """Times of the steps of one token that touch the time of the spike. A step that was under way at a kill is not among
    them: it has no end."""
    begin_s, _, end_s = run["spike_s"]
    if begin_s is None:
        return []
    return [ms for at_s, ms in run["steps_ms"] if at_s >= begin_s and (end_s is None or at_s - ms / 1e3 <= end_s)]


def figure_with_interval(runs, key):
    values = [[run[key]] for run in runs if run[key] is not None]
    flat = [value[0] for value in values]
    return figures.mean(flat), figures.bootstrap(values, figures.mean, BOOTSTRAP_DRAWS)


def row(name, runs):
    killed = sum(run["killed"] for run in runs)
    steps = [pressed_steps(run) for run in runs]
    flat = [ms for run in steps for ms in run]
    side = {"name": name, "runs": len(runs), "kills": killed, "kills_share_interval": figures.wilson(killed, len(runs)),
            "engine_kills": sum(run["kills"]["engine"] for run in runs),
            "spike_kills": sum(run["kills"]["spike"] for run in runs),
            "failed": sum(run["failed"] for run in runs), "refused": sum(run["refused"] for run in runs),
            "trimmed_runs": sum(bool(run["trims"]) for run in runs),
            "builds": sorted({run["build"] for run in runs}),
            "context_tokens": runs[0]["context_tokens"], "fill_tokens": runs[0]["fill_tokens"]}
    for key in ("peak_bytes", "mean_bytes", "group_peak_bytes", "tokens"):
        side[key], side[key + "_interval"] = figure_with_interval(runs, key)
    side["peak_most_bytes"] = max((run["peak_bytes"] for run in runs if run["peak_bytes"]), default=None)
    for key, share in QUANTILES.items():
        side[key] = figures.quantile(flat, share)
        side[key + "_interval"] = figures.bootstrap(steps, lambda ms, share=share: figures.quantile(ms, share),
                                                    BOOTSTRAP_DRAWS)
    side["step_worst_ms"], side["steps"] = max(flat, default=None), len(flat)
    side["quality"] = quality(runs)
    again = [run["again"] for run in runs if run.get("again")]
    if again:  # killed, and started again: how long until it went on, and how often it had to be started
        waited = [each["again_s"] for each in again if each["again_s"] is not None]
        side |= {"again_p50_s": figures.quantile(waited, 0.5), "again_worst_s": max(waited, default=None),
                 "again_runs": len(again), "again_starts": sum(each["starts"] for each in again)}
    return side


def quality(runs):
    """Of the runs that were not killed: how many have none but the unpressed run's tokens; and which share of a
    run's tokens, on average, are those of an unpressed one, of the same kind and of stock's whole 16-bit cache."""
    judged = [run["quality"] for run in runs if not run["killed"] and run["quality"]["unpressed"]["of"]]
    same = sum(q["unpressed"]["same"] == q["unpressed"]["of"] for q in judged)
    result = {"judged_runs": len(judged), "as_unpressed_runs": same,
              "as_unpressed_share_interval": figures.wilson(same, len(judged)) if judged else None}
    for kind in ("unpressed", "stock"):
        shares = [q[kind]["same"] / q[kind]["of"] for q in judged if q[kind]["of"]]
        result["tokens_as_%s_share" % kind] = figures.mean(shares)
        result["tokens_as_%s_share_interval" % kind] = figures.bootstrap([[s] for s in shares], figures.mean,
                                                                         BOOTSTRAP_DRAWS)
    return result


def ratio(sides, over, under, key):
    try:
        return sides[over][key] / sides[under][key]
    except (KeyError, TypeError, ZeroDivisionError):
        return None  # a side that is not there


def paired_ratio(runs, over, under, share):
    """(ratio of two sides' quantiles over the numbers that both have, that is over the same spikes; its 95 % interval, by
    drawing numbers again; how many numbers)."""
    steps = {name: {run["number"]: pressed_steps(run) for run in runs if run["side"] == name} for name in (over, under)}
    numbers = sorted(number for number in steps[over] if steps[over][number] and steps[under].get(number))

    def of(drawn):
        above, below = ([ms for number in drawn for ms in steps[name][number]] for name in (over, under))
        return figures.quantile(above, share) / figures.quantile(below, share)
    if not numbers:
        return None, None, 0
    return of(numbers), figures.bootstrap_of(numbers, of, BOOTSTRAP_DRAWS), len(numbers)


STEP_RATIOS = {"step_p50_ours_to_unpressed": ("ours-auto", "ours-unpressed", 0.5),
               "step_p99_ours_to_unpressed": ("ours-auto", "ours-unpressed", 0.99),
               "step_p50_unpressed_ours_to_stock": ("ours-unpressed", "stock-unpressed", 0.5)}


def summary(runs, order):
    sides = [row(side.name, mine) for side in order if (mine := [run for run in runs if run["side"] == side.name])]
    named = {side["name"]: side for side in sides}
    ratios = {"peak_ours_to_static": ratio(named, "ours-auto", "stock-static", "peak_bytes")}
    for key, (over, under, share) in STEP_RATIOS.items():
        ratios[key], ratios[key + "_interval"], ratios[key + "_runs"] = paired_ratio(runs, over, under, share)
    return {"sides": sides, "ratios": ratios}


def command(options):
    """What repeats this: the options that are not about where it runs."""
    return ("make bench-oom-table ARGS=\"--runs %d --others %d --seed %d --context %d --fill %d --slack-mib %d "
            "--threads %d --reference-tokens %d --sides %s\""
            % (options.runs, options.others, options.seed, options.context, options.fill, options.slack_mib,
               options.threads, options.reference_tokens, ",".join(side.name for side in options.sides)))


def number(value, form="%.0f", scale=1):
    return "-" if value is None else form % (value / scale)


def table(result):
    lines = ["%-19s %6s %6s %-12s %9s %9s %8s %8s %9s %7s %10s %9s" % (
        "side", "runs", "kills", "95 %", "peak MiB", "mean MiB", "p50 ms", "p99 ms", "worst ms", "tokens", "unpressed",
        "as stock")]
    for s in result["sides"]:
        q = s["quality"]
        lines.append("%-19s %6d %6d %-12s %9s %9s %8s %8s %9s %7s %10s %9s" % (
            s["name"], s["runs"], s["kills"] + s["failed"], "%.2f to %.2f" % tuple(s["kills_share_interval"]),
            number(s["peak_bytes"], scale=MIB), number(s["mean_bytes"], scale=MIB), number(s["step_p50_ms"], "%.1f"),
            number(s["step_p99_ms"], "%.1f"), number(s["step_worst_ms"]), number(s["tokens"]),
            "%d of %d" % (q["as_unpressed_runs"], q["judged_runs"]), number(q["tokens_as_stock_share"], "%.2f")))
    for s in result["sides"]:
        if "again_runs" in s:
            lines.append("%s: after a kill %s s (median; worst %s) until the next token, %d starts in %d runs" % (
                s["name"], number(s["again_p50_s"], "%.1f"), number(s["again_worst_s"], "%.1f"), s["again_starts"],
                s["again_runs"]))
    return "\n".join(lines)
