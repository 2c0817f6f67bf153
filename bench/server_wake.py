"""A sleeping slot's turn comes: how long llama-server takes when its cache is in memory, in the store, or to be computed anew.

A slot of llama-server holds a conversation of --tokens tokens and sleeps; psi-cache trim takes it all out of memory while
another slot works. Then it is asked for one more token. In memory, stored with the page cache warm, stored with the file
read from the disk (its pages dropped first), and computed anew (cache_prompt off), in turn, --rounds times. The time is the
server's own prompt time: for the last token of the prompt and what comes back before it.
"""
import argparse
import os
import statistics
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import llama_server  # noqa: E402
import rig  # noqa: E402
from rig import say  # noqa: E402

WAYS = ("resident", "stored", "disk", "recomputed")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=(1000, 4000, 8000))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recomputed-rounds", type=int, default=2, help="the slow way is taken fewer times")
    parser.add_argument("--threads", type=int, default=2, help="1 on a busy machine: two wait for each other")
    parser.add_argument("--bar", type=float, default=50, help="recomputed / stored, at 4,000 tokens and more")
    return parser.parse_args()


def store_files(pid):
    """The process's unlinked files: the stores."""
    folder = "/proc/%d/fd" % pid
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            if "/#" in os.readlink(path) and "(deleted)" in os.readlink(path):
                yield path
        except OSError:
            continue


def forget_store(pid):
    """Drops the stores' pages from the page cache."""
    count = 0
    for path in store_files(pid):
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            count += 1
        finally:
            os.close(descriptor)
    return count


def prompt_of(server, tokens):
    text = llama_server.hay("wake", tokens * 6)
    ids = server.request("POST", "/tokenize", {"content": text, "add_special": True})["tokens"]
    return ids[:tokens]


def send_to_sleep(server):
    server.tool("trim", str(server.pid), "1")
    server.complete("Hello", 1, 1, cache_prompt=False)
    stored = None
    for _ in range(20):  # the server tells twice a second what it holds
        before, stored = stored, server.status().get("stored_bytes")
        if stored and stored == before:
            return stored
        time.sleep(1)
    raise SystemExit("nothing was stored")


def measure(server, tokens, options):
    prompt = prompt_of(server, tokens)
    times_ms, bits, stored = {way: [] for way in WAYS}, [], 0
    server.complete(prompt, 0, 1)

    def ask(way, **more):
        answer = server.complete(prompt, 0, 1, n_probs=1, **more)
        times_ms[way].append(answer["timings"]["prompt_ms"])
        return str(answer["completion_probabilities"])
    for turn in range(options.rounds):
        same = {ask("resident")}
        stored = send_to_sleep(server)
        same.add(ask("stored"))
        send_to_sleep(server)
        if forget_store(server.pid):
            same.add(ask("disk"))
        bits.append(same)  # of one turn: computed anew, the tokens may lie in other cells, and are summed up in another order
        if turn < options.recomputed_rounds:
            ask("recomputed", cache_prompt=False)
            server.complete(prompt, 0, 1)
    return times_ms, all(len(same) == 1 for same in bits), stored


def main():
    options = arguments()
    rig.leave_on_signals()
    os.makedirs(rig.BUILD, exist_ok=True)
    rig.model_file()
    say(rig.machine_line())
    result, good = {"machine": rig.demo.machine()}, True
    most = max(options.tokens)
    with llama_server.Server(("--controller", "off"), 2, 2 * (most + 256), ["-no-kvu", "--cache-ram", "0"], threads=options.threads) as server:
        for tokens in options.tokens:
            times_ms, exact, stored = measure(server, tokens, options)
            medians = {way: statistics.median(ms) for way, ms in times_ms.items() if ms}
            ratio = medians["recomputed"] / medians["stored"]
            woken = medians["recomputed"] / max(medians["stored"] - medians["resident"], 0.001)
            say("%5d tokens, %s stored: in memory %.1f ms, stored %.1f ms, from the disk %s ms, recomputed %.0f ms; recomputed / "
                "stored %.1f (coming back alone: %.1f); %s"
                % (tokens, rig.demo.mib(stored), medians["resident"], medians["stored"],
                   "%.1f" % medians["disk"] if "disk" in medians else "-", medians["recomputed"], ratio, woken,
                   "the same bits" if exact else "DIFFERENT bits"))
            result[str(tokens)] = {"times_ms": times_ms, "exact": exact, "stored_bytes": stored, "ratio": ratio}
            good = good and exact and (tokens < 4000 or ratio >= options.bar)
    rig.demo.save(os.path.join(rig.BUILD, "server_wake.json"), result)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
