"""llama-server under psi-cache run, 8 clients, with pressure coming and going: kills, wrong answers, stuck slots.

Each client has conversations about documents of its own: it asks for the numbers that are hidden in one, question
after question, thinks in between (its slot sleeps), sometimes goes away in the middle of an answer, and takes the next
document. The server runs in a memory group with a real limit; neighbours take memory there and give it back, again and
again, so that a part of the cache has to go. What each question's right answer is was found out before, from the same
server with the same clients and no pressure: asked at least twice each. Questions that an unpressed run answers now
this way and now that (batches differ when clients come together) are counted apart.

    make bench-server-soak ARGS="--minutes 30"       # the full form; the default is 3 minutes
"""
import argparse
import collections
import json
import os
import random
import re
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import llama_server  # noqa: E402
import rig  # noqa: E402
from rig import MIB, say  # noqa: E402

REQUEST_LIMIT_S = 180  # a request without an answer for so long is stuck
PEACE_TIMES = 2        # each question is asked so often without pressure


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3, help="of pressure (default 3; the full form is 30)")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--documents", type=int, default=4, help="of each client")
    parser.add_argument("--characters", type=int, default=5000, help="of a document; 4 are about a token")
    parser.add_argument("--think", type=float, default=20.0, help="seconds of a pause between two questions, on average")
    parser.add_argument("--share", type=float, nargs=2, default=(0.2, 0.6), metavar=("LEAST", "MOST"),
                        help="of what the cache can give, wanted by a spike")
    parser.add_argument("--rate", type=float, nargs=2, default=(50, 500), metavar=("LEAST", "MOST"),
                        help="MB a second of a spike")
    parser.add_argument("--hold", type=float, nargs=2, default=(3, 30), metavar=("LEAST", "MOST"), help="seconds")
    parser.add_argument("--rest", type=float, nargs=2, default=(5, 20), metavar=("LEAST", "MOST"), help="seconds between")
    parser.add_argument("--cache-ram", type=int, default=0, metavar="MIB", help="llama-server's own prompt cache")
    parser.add_argument("--unified", action="store_true", help="one cache for all slots")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="1 on a busy machine: two wait for each other")
    parser.add_argument("--reference", metavar="FILE", help="keeps the unpressed answers there, and uses them if they are there")
    parser.add_argument("--exact", action="store_true", help="psi-cache run --exact on: who misses a block waits for it")
    parser.add_argument("--stock", action="store_true", help="the same without psi-cache: it is killed")
    parser.add_argument("--out", help="result file (default build/bench/server_soak.json)")
    return parser.parse_args()


# ---- the clients -------------------------------------------------------------------------------------

def number_in(text):
    found = re.search(r"\d[\d,]*", text)
    return found.group().replace(",", "") if found else text.strip()[:20]


class Clients:
    """All clients, each on a thread of its own. answers: [(client, document, question, number, text, time_s, took_s)]"""

    def __init__(self, server, options, documents, think_s):
        self.server, self.options, self.documents, self.think_s = server, options, documents, think_s
        self.answers, self.errors, self.stuck, self.left = [], [], [], 0
        self.ends = threading.Event()
        self.begun = [None] * options.clients  # when the request that runs began
        self.threads = []

    def ask(self, client, document, question):
        begin_s = time.monotonic()
        self.begun[client] = begin_s
        try:
            answer = self.server.complete(self.documents[client][document].prompts[question], client, 10,
                                          REQUEST_LIMIT_S)
            self.answers.append((client, document, question, number_in(answer["content"]), answer["content"], begin_s,
                                 time.monotonic() - begin_s))
        except llama_server.Refused as problem:
            self.errors.append((client, begin_s, str(problem)))
        except TimeoutError:
            self.stuck.append((client, begin_s))
        except OSError as problem:
            self.errors.append((client, begin_s, "connection: %s" % problem))
        finally:
            self.begun[client] = None

    def _leave(self, client, document, draw):
        try:
            self.server.begin_and_leave(self.documents[client][document].text, client, 64, draw.randrange(1, 6),
                                        REQUEST_LIMIT_S)
            self.left += 1
        except (OSError, llama_server.Refused, llama_server.http.client.HTTPException) as problem:
            self.errors.append((client, time.monotonic(), "leaving: %s" % problem))

    def _converse(self, client):
        draw = random.Random("%d-%d" % (self.options.seed, client))
        while not self.ends.is_set():
            document = draw.randrange(len(self.documents[client]))
            for question in draw.sample(range(3), 3):
                if draw.random() < 0.05:
                    self._leave(client, document, draw)
                self.ask(client, document, question)
                if self.ends.wait(draw.expovariate(1 / self.think_s) if self.think_s else 0):
                    return

    def _ask_all(self, client, times):
        order = [(d, q) for d in range(len(self.documents[client])) for q in range(3)] * times
        random.Random("peace-%d-%d" % (self.options.seed, client)).shuffle(order)
        for document, question in sorted(order, key=lambda pair: pair[0]) if times == 1 else order:
            if self.ends.is_set():
                return
            self.ask(client, document, question)

    def start(self, target, *more):
        self.threads = [threading.Thread(target=target, args=(c, *more), daemon=True) for c in range(self.options.clients)]
        for thread in self.threads:
            thread.start()

    def converse(self):
        self.start(self._converse)

    def ask_all(self):
        """Every question, PEACE_TIMES times: document by document, as conversations do."""
        for _ in range(PEACE_TIMES):
            self.start(self._ask_all, 1)
            for thread in self.threads:
                thread.join()

    def end(self):
        self.ends.set()
        for thread in self.threads:
            thread.join(REQUEST_LIMIT_S + 10)


def make_documents(options):
    return [[llama_server.Document("%d-%d-%d" % (options.seed, client, number), options.characters)
             for number in range(options.documents)] for client in range(options.clients)]


def steady_answers(answers, wanted):
    """{(client, document, question): number} where an unpressed run found the number each time; how many it answered
    now this way and now that."""
    seen = collections.defaultdict(list)
    for client, document, question, number, *_ in answers:
        seen[client, document, question].append(number)
    steady = {key: numbers[0] for key, numbers in seen.items()
              if set(numbers) == {wanted(key)} and len(numbers) >= PEACE_TIMES}
    return steady, sum(len(set(numbers)) > 1 for numbers in seen.values()), len(seen)


# ---- the neighbour -----------------------------------------------------------------------------------

class Neighbour:
    """Spikes in the group, one after the other, on a thread of its own."""

    def __init__(self, stage, server, options):
        self.stage, self.server, self.options = stage, server, options
        self.spikes, self.ends = [], threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        draw = random.Random("neighbour-%d" % self.options.seed)
        while not self.ends.wait(draw.uniform(*self.options.rest)):
            try:
                self._one(draw)
            except (OSError, RuntimeError) as problem:
                say("  no spike: %s" % problem)

    def _one(self, draw):
        share, hold_s = draw.uniform(*self.options.share), draw.uniform(*self.options.hold)
        rate = self.options.rate[0] * (self.options.rate[1] / self.options.rate[0]) ** draw.random()
        free_bytes = self.stage.limit_bytes - self.stage.unreclaimable_bytes("mapped")
        status = self.server.status() if not self.options.stock else {}
        give_bytes = max(0, (status.get("resident_bytes") or 100 * MIB) - self.options.floor_bytes)
        # What the controller keeps free besides is taken from the cache, too: about one and a half reserves.
        kept_bytes = 1.5 * (status.get("reserve_bytes") or 0)
        size = int(free_bytes + share * give_bytes - kept_bytes) // MIB * MIB
        spike = self.stage.spike(size, rate * rig.MB, hold_s)
        begin_s = time.monotonic()
        while spike.process.poll() is None and not self.ends.wait(0.2):
            pass
        if self.ends.is_set():
            spike.end()
        self.spikes.append({"at_s": begin_s, "end_s": time.monotonic(), "bytes": size, "more_than_free_bytes": int(size - free_bytes), "give_bytes": int(give_bytes),
                            "mb_per_s": rate, "hold_s": hold_s, "short": spike.short()})

    def start(self):
        self.thread.start()

    def end(self):
        self.ends.set()
        self.thread.join(60)


# ---- the run -----------------------------------------------------------------------------------------

def server_options(options):
    return ["--cache-ram", str(options.cache_ram), "-kvu" if options.unified else "-no-kvu"]


def peace(options, documents, mode):
    """Without limit and neighbour."""
    run = None if mode == "stock" else ("--controller", "off")
    with llama_server.Server(run, options.clients, options=server_options(options), threads=options.threads) as server:
        clients = Clients(server, options, documents, 0)
        begin_s = time.monotonic()
        clients.ask_all()
        return clients, server.anon_bytes(), time.monotonic() - begin_s


def peace_or_kept(options, documents):
    if options.reference and os.path.exists(options.reference):
        with open(options.reference) as file:
            return json.load(file)
    clients, anon_bytes, took_s = peace(options, documents, "stock")
    if options.reference:
        rig.demo.save(options.reference, [clients.answers, anon_bytes, took_s])
    return clients.answers, anon_bytes, took_s


def tell_progress(begin_s, clients, neighbour, group, server):
    stats = server.status() if server.alive() else {}
    say("  %4.0f s: %d answers, %d errors, %d spikes, %s killed; cache %s resident, %s stored, %s dropped; %s trims, "
        "%s refused" % (time.monotonic() - begin_s, len(clients.answers), len(clients.errors), len(neighbour.spikes),
                        group.oom_kills(), *(rig.demo.mib(stats.get(k) or 0) for k in
                                             ("resident_bytes", "stored_bytes", "dropped_bytes")),
                        stats.get("trims"), stats.get("refusals")))


def pressed(options, documents, stock_bytes):
    limit = stock_bytes + rig.STOCK_SLACK_BYTES
    run = None if options.stock else ("--exact", "on") if options.exact else ()
    rig.demo.forget_file_pages(rig.model_file())
    with rig.Stage(limit) as stage:
        server = llama_server.Server(run, options.clients, options=server_options(options), group=stage.group,
                                     threads=options.threads)
        try:
            server.wait_healthy()
            clients = Clients(server, options, documents, options.think)
            neighbour = Neighbour(stage, server, options)
            clients.converse()
            while server.alive() and len({answer[0] for answer in list(clients.answers)}) < options.clients:
                time.sleep(0.2)  # each has its conversation in its slot
            neighbour.start()
            begin_s, told_s = time.monotonic(), 0
            while time.monotonic() < begin_s + options.minutes * 60 and server.alive():
                time.sleep(1)
                if time.monotonic() - told_s > 60:
                    told_s = time.monotonic()
                    tell_progress(begin_s, clients, neighbour, stage.group, server)
            neighbour.end()
            clients.end()
            lasted_s = time.monotonic() - begin_s
            tell_progress(begin_s, clients, neighbour, stage.group, server)
            return finish(options, stage, server, clients, neighbour, lasted_s, limit)
        finally:
            server.stop()


def finish(options, stage, server, clients, neighbour, lasted_s, limit):
    """After the pressure: every slot must answer again."""
    after = Clients(server, options, clients.documents, 0)
    idle = server.alive() and server.wait_idle(REQUEST_LIMIT_S)
    if server.alive():
        after.start(after._ask_all, 1)
        for thread in after.threads:
            thread.join()
    kills = stage.group.oom_kills() or 0
    return {"lasted_s": lasted_s, "limit_bytes": limit, "kills": kills, "server_alive": server.alive(),
            "stuck_requests": len(clients.stuck) + len(after.stuck), "slots_busy_at_the_end": [] if idle else server.alive()
            and server.busy_slots() or ["?"], "spikes": neighbour.spikes, "answers": clients.answers,
            "answers_after": after.answers, "errors": clients.errors + after.errors, "left": clients.left,
            "status": server.status() if server.alive() else {}, "peak_bytes": stage.group.peak(),
            "log": [line for line in server.said().splitlines() if "psi-cache" in line or " E " in line][-60:]}


def judge(answers, steady, wanted, spikes):
    """Wrong: another number than the unpressed run gave, where that always gave the same one."""
    result = collections.Counter()
    wrong = []
    for client, document, question, number, text, at_s, took_s in answers:
        key = (client, document, question)
        if key not in steady:
            result["not_judged"] += 1
        elif number == steady[key]:
            result["same"] += 1
        else:
            result["wrong"] += 1
            wrong.append({"key": key, "unpressed": steady[key], "pressed": number, "text": text, "at_s": at_s, "hidden_number": wanted(key),
                          "in_spike": any(s["at_s"] <= at_s + took_s and at_s <= s["end_s"] for s in spikes)})
    return result, wrong


def main():
    options = arguments()
    rig.leave_on_signals()
    os.makedirs(rig.BUILD, exist_ok=True)
    rig.model_file()
    rig.program("spike")
    documents = make_documents(options)
    def wanted(key):
        return documents[key[0]][key[1]].numbers[key[2]]
    say(rig.machine_line())
    answers, stock_anon_bytes, took_s = peace_or_kept(options, documents)
    steady, unsteady, asked = steady_answers(answers, wanted)
    say("unpressed: %d questions, asked %d times each by %d clients at once, in %.0f s; %d found both times, %d answered now "
        "this way and now that" % (asked, PEACE_TIMES, options.clients, took_s, len(steady), unsteady))
    # Private memory, and the weights, which are charged where they are read first.
    stock_bytes = stock_anon_bytes + os.path.getsize(rig.model_file()) + 16 * MIB
    options.floor_bytes = 18 * MIB * 32768 // 1024 // 32
    result = pressed(options, documents, stock_bytes)
    judged, wrong = judge(result["answers"], steady, wanted, result["spikes"])
    judged_after, wrong_after = judge(result["answers_after"], steady, wanted, [])
    stuck = result["stuck_requests"] + len(result["slots_busy_at_the_end"])
    took = sorted(answer[6] for answer in result["answers"])
    summary = {"kills": result["kills"], "server_alive": result["server_alive"], "wrong": judged["wrong"] + judged_after["wrong"],
               "same": judged["same"], "not_judged": judged["not_judged"], "same_after": judged_after["same"], "not_judged_after": judged_after["not_judged"],
               "stuck": stuck, "errors": len(result["errors"]), "left": result["left"], "spikes": len(result["spikes"]),
               "took_p50_s": rig.quantile(took, 0.5), "took_p99_s": rig.quantile(took, 0.99), "peak_bytes": result["peak_bytes"]}
    path = options.out or os.path.join(rig.BUILD, "server_soak.json")
    rig.demo.save(path, {"summary": summary, "options": vars(options), "machine": rig.demo.machine(), "wrong": wrong + wrong_after,
                         "judged_questions": len(steady), "unsteady_questions": unsteady, **result})
    say("%s, %.1f minutes, %d clients, %d spikes: killed %d; %d answers as unpressed (%d more after the end), WRONG %d, %d not "
        "judged; STUCK %d; errors %d; %d clients left in the middle"
        % ("stock" if options.stock else "ours", result["lasted_s"] / 60, options.clients, summary["spikes"], summary["kills"],
           summary["same"], summary["same_after"], summary["wrong"], summary["not_judged"] + summary["not_judged_after"], stuck,
           summary["errors"], summary["left"]))
    say("an answer took %.2f s (median), %.2f s (p99); limit %s, peak %s; %s"
        % (summary["took_p50_s"] or 0, summary["took_p99_s"] or 0, rig.demo.mib(result["limit_bytes"]), rig.demo.mib(result["peak_bytes"] or 0), path))
    for one in wrong + wrong_after:
        say("  wrong: %s" % json.dumps(one))
    for line in result["errors"][:20]:
        say("  error: %s" % (line,))
    bad = summary["kills"] or summary["wrong"] or stuck or not summary["server_alive"]
    return 1 if bad and not options.stock else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except rig.NoRights as problem:
        sys.exit(str(problem))
