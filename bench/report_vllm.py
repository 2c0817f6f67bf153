"""What the report shows of the results of vLLM's benches. As report_sections.py, which has the other kinds."""
import statistics

from report_parts import COLOURS, MIB, Section, dots, number, plain


def demo(result):
    """build/demo-vllm/runs.json. A round in which little had to be given is no test."""
    runs = {side: [r for r in result["rounds"] if r["side"] == side and r["is_test"]] for side in result["sides"]}
    rows = [[side, len(those), sum(r["killed"] for r in those), "%d of %d" % (
        sum(r["answered"] for r in those), sum(r["requests"] for r in those)), *(
        number(statistics.median(r[key] for r in those), "%.0f", MIB) for key in ("needed_warm_bytes", "peak_bytes",
                                                                                 "given_bytes"))]
        for side, those in runs.items()]

    def draw(figure):
        axis = figure.subplots()
        dots(axis, runs, "answered", 0.5, 5)
        axis.set_xlabel("requests answered in the round (x: then killed, o: not)")

    return Section("vLLM under a limit and a spike, again and again", "%d clients, a KV cache of %d MiB, a "
                   "limit of %d MiB, a spike of %d MiB; up to %d rounds to a server. Medians." % (
                       result["clients"], result["kv_bytes"] / MIB, result["rounds"][0]["limit_bytes"] / MIB,
                       result["rounds"][0]["spike_bytes"] / MIB, result["runs_per_server"]),
                   ["side", "rounds", "killed", "answered", "needs MiB", "peak MiB", "given back MiB"], rows, draw, (8, 2.4))


def differences(result):
    rows = [[name, row["requests"], len(row["different"]), number(row["largest_gap"], "%.4f"), "%d" % row["preemptions"],
              row["trims"], number(row["given_bytes"], "%.0f", MIB), row["loaded_blocks"],
             row["not_numbers"]] for name, row in result["rows"].items()]

    def draw(figure):
        axis = figure.subplots()
        names, at = list(result["rows"]), range(len(result["rows"]))
        axis.barh(at, [len(row["different"]) for row in result["rows"].values()],
                  color=[COLOURS["stock"] if name in ("reference", "native") else COLOURS["light"] for name in names])
        for y, row in zip(at, result["rows"].values()):
            axis.text(0, y, "  %d of %d" % (len(row["different"]), row["requests"]), fontsize=8, va="center")
        axis.set_yticks(at, names)
        axis.set_xlim(0, max(1, *(len(row["different"]) for row in result["rows"].values())))
        axis.set_xlabel("texts that differ from the reference")
        axis.invert_yaxis()
        plain(axis)

    return Section("vLLM's greedy texts, %s" % result["dtype"], "Against the reference, an engine with a large cache "
                   "and without us. native: without us, in a small cache (%d blocks); keep, drop, poison: in the small "
                   "cache, under random trims, withheld blocks kept, given back, filled with what is not a number. "
                   "%d tokens each." % (result["blocks"], result["tokens"]),
                   ["engine", "requests", "differ", "largest gap of the two best, nats", "preemptions", "trims",
                    "given back MiB", "blocks from the store", "not numbers"], rows, draw, (8, 2.2))


def reaction(result):
    seen_ms = sorted(us / 1000 for us in result["reaction_us"] if us is not None)

    def draw(figure):
        axis = figure.subplots()
        axis.plot(seen_ms, [(at + 1) / len(seen_ms) for at in range(len(seen_ms))], color=COLOURS["ours"],
                  drawstyle="steps-post")
        axis.set_xlabel("ms")
        axis.set_ylabel("share of spikes")
        axis.set_xlim(left=0)
        plain(axis)

    return Section("vLLM, %s: from the first sign of a spike to pages returned" % result["case"],
                   "As the controller counts it. Killed: %d." % result["kills"],
                   ["case", "spikes", "gave memory back", "p50 ms", "p99 ms", "worst ms", "bar", "missed by"],
                   [[result["case"], result["spikes"], result["answered"], *(number(result[key]) for key in (
                       "p50_ms", "p99_ms", "worst_ms")), result["bar"], result["missed"]]],
                   draw if seen_ms else None, (8, 2.2))


def throughput(result):
    ratios, (low, high) = result["ratios"], result["interval"]

    def draw(figure):
        axis = figure.subplots()
        axis.plot(range(1, len(ratios) + 1), ratios, "o", color=COLOURS["ours"])
        axis.axhline(1, color=COLOURS["other"], linewidth=0.8)
        axis.axhspan(low, high, color=COLOURS["light"], alpha=0.4)
        axis.set_xlabel("pair (in time)")
        axis.set_ylabel("ours / stock")
        plain(axis)

    return Section("vLLM's throughput, ours / stock: %s" % result["case"], "Two servers answer the same 16 clients in turn; "
                   "the median is that of two neighbouring pairs' mean, one of each order. "
                   "withheld: ours has given back all but its floor, stock was started with as small a cache.",
                   ["case", "pairs", "median ratio", "95 %", "bar"],
                   [[result["case"], len(ratios), "%.3f" % result["median"], "%.3f to %.3f" % (low, high), result["bar"]]],
                   draw, (8, 2.2))


def prefixes(result):
    rows = [[words, len(size["rounds"]), *(number(size["median"][key], "%.0f") for key in (
        "computed_ms", "cached_ms", "read_ms", "loaded_blocks")), "yes" if all(r["same"] for r in size["rounds"]) else "no"]
        for words, size in result["sizes"].items()]

    def draw(figure):
        axis = figure.subplots()
        for key, hue in (("computed_ms", COLOURS["stock"]), ("read_ms", COLOURS["ours"]), ("cached_ms", COLOURS["other"])):
            axis.plot([int(words) for words in result["sizes"]], [size["median"][key] for size in result["sizes"].values()],
                      "o-", color=hue, label=key.split("_")[0])
        axis.set_xlabel("words of the prompt")
        axis.set_ylabel("ms to its first token")
        axis.legend(frameon=False, fontsize=8)
        plain(axis)

    return Section("vLLM: a prompt whose prefix is computed, in vLLM's cache, or read from the store", "Medians.",
                   ["words", "rounds", "computed ms", "cached ms", "read ms", "blocks read", "same tokens"], rows,
                   draw, (8, 2.4))


KINDS = (("vllm_demo", demo, "make demo-vllm ARGS=\"--quick --runs 50 --runs-per-server 10\""),
         ("vllm_differences", differences, "make bench-vllm-differences"),
         ("vllm_reaction", reaction, "make bench-vllm-reaction"),
         ("vllm_throughput", throughput, "make bench-vllm-throughput"),
         ("vllm_prefixes", prefixes, "make bench-vllm-prefixes"))
