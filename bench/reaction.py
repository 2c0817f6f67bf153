"""Reaction: from the first sign of a spike to pages returned, while the engine decodes. Many moderate spikes against
one living engine.

    .venv/bin/python bench/reaction.py                # about 4 minutes: 120 spikes
    .venv/bin/python bench/reaction.py --prefill      # the engine reads a prompt instead, 512 tokens a step

A ballast leaves the group just above the headroom that psi_cache keeps, so that each spike is a reason to act from
its first MiB on. Between spikes the cache is filled again. What is measured:

  outside   by a program that looks at the group and the engine each millisecond and knows nothing of psi_cache: from
            the group's usage having grown by --sign MiB since the spike began, to the engine's private memory
            (RssAnon) having dropped by 1 MiB; a drop before the sign counts as 0
  taken     the same from the spike's first byte
  scarce    the same from the moment when less than 1/16 of the limit is free
  inside    what the library says of itself (reaction_last_us), where this build says it: from its last reading that
            needed nothing, so the sleep before the spike was seen counts too; a bound, not the reaction itself

Bar: p99 of outside at most 20 ms (--prefill: 100 ms), the sampler's own gap (p99) added; and nobody killed. Ends with 1 when it is missed.
Writes build/bench/reaction.json (reaction-prefill.json, reaction-prefill-untuned.json).
"""
import argparse
import subprocess
import sys
import time

import rig

BAR_MS, PREFILL_BAR_MS = 20.0, 100.0
PIECE_TOKENS = 512       # of a prompt, in a step
DROP_BYTES = rig.MIB
RESERVE_SHARE = 1 / 16   # of the limit: the headroom that is kept (psicache.h, reserve_bytes)
NEAR = 1.3               # the ballast leaves so many times that
REST_S = 0.35            # between filling and spike: readings have settled
HOLD_S = 0.15
SPAN_TOKENS = 4096       # tokens are not taken back between two fillings: that would look like a drop


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spikes", type=int, default=120)
    parser.add_argument("--rate", type=float, default=500, metavar="MB/S")
    parser.add_argument("--beyond", type=float, default=32, metavar="MIB", help="of the spike, beyond what is free")
    parser.add_argument("--sign", type=float, default=8, metavar="MIB", help="of growth that is a sign (default 8)")
    parser.add_argument("--mode", choices=("auto", "psi", "avg10"), default="auto")
    parser.add_argument("--weights", choices=rig.WEIGHTS, default="locked")
    parser.add_argument("--prefill", action="store_true", help="steps of 512 tokens, as a prompt is read")
    parser.add_argument("--tuning", choices=("on", "off"), default="on",
                        help="off: the reserve stays a sixteenth of the limit. On, it shrinks to what a device that reacts in "
                             "milliseconds needs: then the first MiB are no reason to act (default on)")
    parser.add_argument("--far", action="store_true",
                        help="no ballast: the spike begins far from the limit, and the first MiB are no reason to act")
    parser.add_argument("--refill", choices=("reload", "restore"), default="reload",
                        help="between spikes: the cache is loaded anew (nothing of it is in the store yet; default), "
                             "or restored as psi-cache restore does")
    return parser.parse_args()


def free_bytes(stage, weights):
    return stage.limit_bytes - stage.unreclaimable_bytes(weights)


def refill(stage, engine, options):
    if options.refill == "reload":
        engine.reload()
        return
    subprocess.run([rig.tool(), "restore", str(engine.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(REST_S)
    # What it cannot give, no spike may ask for: a kill would then say nothing.
    floor = rig.FLOOR_SHARE * (engine.last_stats().get("capacity_bytes") or 0)
    least = floor + 2 * options.beyond * rig.MIB + RESERVE_SHARE * stage.limit_bytes
    if (engine.last_stats().get("resident_bytes") or 0) < least:
        engine.reload()


def ballast(stage, options):
    """Other programs of the machine: hold what is free but for a little more than the reserve."""
    size = free_bytes(stage, options.weights) - NEAR * RESERVE_SHARE * stage.limit_bytes
    if options.far or size < rig.MIB:
        return 0
    held = stage.spike(size, 200 * rig.MB, hold_s=3600)
    held.wait_full(20)
    return int(size)


def one_spike(stage, engine, options):
    refill(stage, engine, options)
    time.sleep(REST_S)
    free = free_bytes(stage, options.weights)
    size = free + options.beyond * rig.MIB
    before = engine.last_stats()
    sampler = stage.sampler(engine, most_s=15)
    time.sleep(0.03)
    spike = stage.spike(size, options.rate * rig.MB, hold_s=HOLD_S)
    spike.wait(12)
    time.sleep(0.06)  # the engine's next report
    row = facts(sampler.stop(), spike, free, options)
    after = engine.last_stats()
    trims = (after.get("trims") or 0) - (before.get("trims") or 0)
    row.update(spike_bytes=int(size), resident_before=before.get("resident_bytes"), trims=trims,
               inside_us=after.get("reaction_last_us") if trims else None,
               inside_most_us=after.get("reaction_most_us"))
    return row


def facts(samples, spike, free, options):
    """From the samples of one spike; None where it did not come to that."""
    within = [s for s in samples if s[0] >= spike.begin_s]
    before = [s for s in samples if s[0] < spike.begin_s]
    row = {"outside_ms": None, "taken_ms": None, "scarce_ms": None, "free_at_drop_bytes": None, "gap_ms": None}
    if not before or not within:
        return row
    row["gap_ms"] = max((b[0] - a[0] for a, b in zip(within, within[1:])), default=0) * 1e3
    usage, most = before[-1][1], before[-1][2]
    sign_s = scarce_s = None
    for time_s, used, anon in within:
        most = max(most, anon)
        left = free - (used - usage)
        if sign_s is None and used - usage >= options.sign * rig.MIB:
            sign_s = time_s
        if scarce_s is None and left < RESERVE_SHARE * options.limit_bytes:
            scarce_s = time_s
        if most - anon >= DROP_BYTES:
            row.update(outside_ms=since(sign_s, time_s), scarce_ms=since(scarce_s, time_s),
                       taken_ms=since(spike.begin_s, time_s), free_at_drop_bytes=int(left))
            break
    return row


def since(from_s, until_s):
    """Milliseconds; 0 when what it counts from has not come yet."""
    return 0.0 if from_s is None else round((until_s - from_s) * 1e3, 3)


def figures(rows, key, scale=1.0):
    values = [row[key] * scale for row in rows if row.get(key) is not None]
    if not values:
        return None
    return {"count": len(values), "p50_ms": rig.median(values), "p99_ms": rig.quantile(values, 0.99),
            "most_ms": max(values)}


def tell(name, what):
    if what is None:
        rig.say("  %-8s not said by this build" % name)
    else:
        rig.say("  %-8s p50 %7.1f ms   p99 %7.1f ms   most %7.1f ms   (%d spikes)"
                % (name, what["p50_ms"], what["p99_ms"], what["most_ms"], what["count"]))


def run(options, plan):
    """Rows of all spikes, and what was killed."""
    rows = []
    with rig.Stage(plan.limit_bytes) as stage:
        engine = stage.engine(options.mode, weights=options.weights, span=SPAN_TOKENS, stats_ms=20,
                              environment={"PSI_CACHE_TUNING": options.tuning},
                              piece=PIECE_TOKENS if options.prefill else 1)
        time.sleep(1.0)
        held = ballast(stage, options)
        rig.say("limit %s, ballast %s, free %s; about %.0f minutes" % (
            rig.demo.mib(plan.limit_bytes), rig.demo.mib(held), rig.demo.mib(free_bytes(stage, options.weights)),
            options.spikes * 2.0 / 60))
        for number in range(options.spikes):
            rows.append(one_spike(stage, engine, options))
            if not engine.alive() or stage.kills()["count"]:
                rig.say("  spike %d: KILLED %s" % (number + 1, stage.kills()))
                break
            if sys.stderr.isatty():
                sys.stderr.write("\r%d of %d" % (number + 1, options.spikes))
        kills, steps = stage.kills(), [ms for _, ms in engine.steps]
        return rows, kills, steps


def main():
    options = arguments()
    rig.leave_on_signals()
    plan = rig.plan_for(options.weights, piece=PIECE_TOKENS if options.prefill else 1)
    options.limit_bytes = plan.limit_bytes
    rig.say(rig.machine_line())
    rows, kills, steps = run(options, plan)
    outside, taken = figures(rows, "outside_ms"), figures(rows, "taken_ms")
    inside, gap = figures(rows, "inside_us", 1e-3), figures(rows, "gap_ms")
    answered = sum(row["outside_ms"] is not None for row in rows)
    rig.say("%d spikes at %.0f MB/s, %d of them answered by a drop; median step %.1f ms; killed: %d"
            % (len(rows), options.rate, answered, rig.median(steps) or 0, kills["count"]))
    for name, what in (("outside", outside), ("taken", taken), ("scarce", figures(rows, "scarce_ms")),
                       ("inside", inside), ("(gap)", gap)):
        tell(name, what)
    bar_ms = PREFILL_BAR_MS if options.prefill else BAR_MS
    rig.say("  gap: the longest time between two outside samples of a spike, their error; bar: %.0f ms" % bar_ms)
    name = "reaction" + ("-prefill" if options.prefill else "") + ("-untuned" if options.tuning == "off" else "")
    rig.save(name + ".json", {"rows": rows, "outside": outside, "taken": taken, "inside": inside, "kills": kills,
                               "settings": {k: v for k, v in vars(options).items()}, "bar_ms": bar_ms,
                               "build": rig.library_build(), "machine": rig.demo.machine()})
    held = outside is not None and outside["p99_ms"] + gap["p99_ms"] <= bar_ms
    return 0 if held and answered == len(rows) >= options.spikes and not kills["count"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as error:
        sys.exit(str(error))
