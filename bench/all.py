"""The benches that fit in an hour, one after the other, and the report of what they found: make bench.

    .venv/bin/python bench/all.py                # goes on where it was stopped
    .venv/bin/python bench/all.py --parts scale,latency
    .venv/bin/python bench/all.py --list

Each part is a bench in its short form. Its result goes to build/bench/all/, with the command that repeats it, and the
report of all to build/report/. A part that was done with this library on this machine is not done again (--fresh does);
benches that can go on where they stopped do so. A part that fails, or misses its bar, is said at the end, and stops no
other; ends with 1 then.
"""
import argparse
import os
import sys
import time

import report
import rig
import suite
from suite import Part

PARTS = (
    Part("scale", "bench/scale.py", (), "bench/scale.json", 2, limit=False),
    Part("restore-against-recompute", "bench/restore_against_recompute.py", ("--tokens", "4000"),
         "bench/restore_against_recompute.json", 2, limit=False),
    Part("paired-step", "bench/paired_step.py", ("--prompt-tokens", "4096"), "bench/paired_step.json", 3, limit=False),
    Part("demo", "demo/demo.py", ("--quick", "--runs", "3"), "demo/runs.json", 4),
    Part("latency", "bench/latency.py", ("--turns", "2", "--cycles", "15"), "bench/latency.json", 6),
    Part("context", "bench/context.py", ("--part", "key", "--quick"), "bench/context.json", 2),
    Part("oom-table", "bench/oom_table.py", ("--quick",), "bench/oom_table.json", 22),
    Part("thrash", "bench/thrash.py", (), "bench/thrash.json", 3),
    Part("reaction", "bench/reaction.py", ("--tuning", "off"), "bench/reaction-untuned.json", 5),
    Part("spike-matrix", "bench/spike_matrix.py", ("--runs", "1", "--compare", "1"), "bench/spike_matrix.json", 9))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="default: all")
    parser.add_argument("--fresh", action="store_true", help="also those that are done")
    parser.add_argument("--list", action="store_true", help="say what would be done, and no more")
    options = parser.parse_args()
    known = {part.name: part for part in PARTS}
    chosen = [name for name in options.parts.split(",") if name]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        parser.error("no such part: %s (there are %s)" % (", ".join(unknown) or "none named", ", ".join(known)))
    options.parts = [known[name] for name in chosen]
    return options


def main():
    options = arguments()
    rig.leave_on_signals()
    os.makedirs(rig.BUILD, exist_ok=True)
    every = suite.Suite("all")
    todo = [part for part in options.parts if options.fresh or not every.done(part)]
    rig.say("%s\n%d of %d parts to do, about %.0f minutes" % (rig.machine_line(), len(todo), len(options.parts),
                                                            sum(part.minutes for part in todo)))
    if options.list:
        for part in todo:
            rig.say("  %-26s about %2.0f min  %s" % (part.name, part.minutes, part.command()))
        return 0
    problems, why, begin_s = {}, suite.may_limit(), time.monotonic()
    for at, part in enumerate(todo):
        rig.say("\n==> %d of %d: %s (about %.0f min; %.0f min for all that is left; %.0f min so far)\n    %s" % (
            at + 1, len(todo), part.name, part.minutes, sum(p.minutes for p in todo[at:]),
            (time.monotonic() - begin_s) / 60, part.command()))
        problem = why if part.limit and why else every.run(part)
        if problem:
            problems[part.name] = problem
            rig.say("    %s: %s" % (part.name, problem))
    return tell(every, problems)


def tell(every, problems):
    rig.say()
    if os.path.isdir(every.directory):
        for file, problem in report.build([every.directory], os.path.join(rig.BUILD, "..", "report")):
            problems["report of " + file] = problem
        rig.say("results: build/bench/all   report: build/report/index.html")
    for name, problem in problems.items():
        rig.say("%s: %s" % (name, problem))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
