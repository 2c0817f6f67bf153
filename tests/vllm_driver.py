"""A real vLLM in this process: one engine, several looks at it. Prints one line of JSON.
vllm_driver.py MODEL SCENARIO...   (a process of its own: an engine cannot be started twice in one)

Scheduler and worker run in this process, so that the test can ask for trims and look at the pool.
"""
import json
import os
import random
import sys
import threading
import time

SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING",
            "PSI_CACHE_CONTROLLER": "off"}  # trims by hand only: the same on each machine
FLAG = {"kv_connector": "PsiCacheConnector", "kv_role": "kv_producer"}
WORDS = "the river ran under an old bridge while children counted boats and a grey heron stood still in the reeds".split()


def prompts(count, seed, shared=True):
    """Texts of 20 to 180 words; most begin alike, so that there are prefixes to be cached."""
    chance = random.Random(seed)
    opening = " ".join(WORDS * 8) if shared else ""
    return [opening + " ".join(chance.choices(WORDS, k=chance.randrange(20, 180))) for _ in range(count)]


class Engine:
    def __init__(self, model, **options):
        from vllm import LLM, SamplingParams

        self.sampling = SamplingParams(temperature=0, max_tokens=int(os.environ.get("DRIVER_TOKENS", "24")))
        settings = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True, "max_num_seqs": 8,
                    "kv_cache_memory_bytes": 96 << 20, "kv_transfer_config": FLAG, "disable_log_stats": False, **options}
        self.llm = LLM(model, **settings)
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        connector = self.scheduler.connector
        self.connector = next((c for c in [connector, *getattr(connector, "sub_connectors", [])]
                               if hasattr(c, "scheduler_half")), None)
        self.half = getattr(self.connector, "scheduler_half", None)

    def texts(self, asked):
        done = self.llm.generate(asked, self.sampling, use_tqdm=False)
        self.llm.llm_engine.step()  # the empty one, as a server's loop makes it: now the engine is idle
        return [list(each.outputs[0].token_ids) for each in done]

    @property
    def keeper(self):
        return self.half and self.half.keeper

    def worker_pid(self):
        workers = getattr(self.core.model_executor, "workers", None)
        return workers[0].proc.pid if workers else os.getpid()


def anon_bytes(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def wait(true, seconds=60):
    """Not a bar: as long as a busy machine needs."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.01)
    return False


def returned(engine):
    """An idle engine is asked for all: what its worker says went, and what the kernel says."""
    import psi_cache

    pid, keeper = engine.worker_pid(), engine.keeper
    engine.texts(prompts(24, 1, shared=False))  # fills the prefix cache
    resident = len(keeper.touched)
    before, given_before = anon_bytes(pid), keeper.given_bytes
    psi_cache.trim(1.0)
    reacted = wait(lambda: keeper.given_bytes > given_before and not keeper.going)
    promised, went = keeper.given_bytes - given_before, before - anon_bytes(pid)
    stats = psi_cache.stats()
    psi_cache.restore()
    back = wait(lambda: not keeper.withheld and not keeper.going)
    return {"reacted": reacted, "resident_blocks": resident, "promised_bytes": promised, "went_bytes": went,
            "withheld_bytes": stats["withheld_bytes"], "all_back": back and keeper.all_free(),
            "floor_blocks": keeper.floor_blocks, "blocks": keeper.blocks,
            "usable_at_floor": keeper.blocks - stats["withheld_bytes"] // keeper.block_bytes}


class Presser(threading.Thread):
    """Trims and restores by hand after random numbers of steps, within one or between two: as often on a slow machine."""

    def __init__(self, seed):
        super().__init__(daemon=True)
        self.over, self.trims, self._chance = False, 0, random.Random(seed)

    def _let_steps_pass(self, count):
        import psi_cache

        until = psi_cache.stats()["steps"] + count
        while not self.over and psi_cache.stats()["steps"] < until:
            time.sleep(0.005)

    def run(self):
        import psi_cache

        while not self.over:
            if self._chance.random() < 0.7:
                psi_cache.trim(self._chance.choice((0.2, 0.5, 1.0)))
                self.trims += 1
            else:
                psi_cache.restore()
            self._let_steps_pass(self._chance.randrange(2, 16))


def identical(engine):
    """Greedy texts under trims and restores against those without."""
    count = int(os.environ.get("DRIVER_REQUESTS", "40"))
    asked = prompts(count, 2)
    wanted = engine.texts(asked)
    presser, given_before = Presser(3), engine.keeper.given_bytes
    presser.start()
    got = engine.texts(asked)
    presser.over = True
    presser.join()
    return {"requests": count, "different": sum(a != b for a, b in zip(wanted, got)), "trims": presser.trims,
            "given_bytes": engine.keeper.given_bytes - given_before, "block_bytes": engine.keeper.block_bytes,
            "preemptions": preemptions(engine), "works": engine.connector.works}


def written(engine):
    """Greedy texts, with how near each token was to being another one: for bench/vllm_differences.py. Under trims and
    restores where there is a connector and DRIVER_PRESSED is not 0."""
    from vllm import SamplingParams

    asked = prompts(int(os.environ.get("DRIVER_REQUESTS", "40")), 2)
    sampling = SamplingParams(temperature=0, max_tokens=engine.sampling.max_tokens, logprobs=2, ignore_eos=True)
    presser = Presser(3) if engine.keeper and os.environ.get("DRIVER_PRESSED", "1") != "0" else None
    if presser:
        presser.start()
    done = engine.llm.generate(asked, sampling, use_tqdm=False)
    if presser:
        presser.over = True
        presser.join()
    answers = [each.outputs[0] for each in done]
    gaps = [[round(gap_of(place), 4) for place in answer.logprobs] for answer in answers]
    return {"tokens": [list(answer.token_ids) for answer in answers], "gaps": gaps, "preemptions": preemptions(engine),
            "trims": presser.trims if presser else 0, "given_bytes": engine.keeper.given_bytes if presser else 0}


def gap_of(place):
    """Between the two best tokens' log-probabilities."""
    best = sorted((each.logprob for each in place.values()), reverse=True)
    return best[0] - best[1] if len(best) > 1 else 99.0


def preemptions(engine):
    for metric in engine.llm.get_metrics():
        if metric.name == "vllm:num_preemptions":
            return metric.value
    return None


def prefixes(engine):
    """Cached prefixes that were given back are computed again, and those that were not are still hit."""
    import psi_cache

    asked = prompts(4, 5)
    wanted = engine.texts(asked)
    psi_cache.trim(0.5)
    wait(lambda: engine.keeper.withheld and not engine.keeper.going)
    half = engine.texts(asked)
    psi_cache.restore()
    return {"same": half == wanted}


def untouched(engine):
    """What the engine does where we do not work."""
    return {"texts": engine.texts(prompts(2, 7)), "works": engine.connector.works,
            "keeper": engine.keeper is not None}


SCENARIOS = {"returned": returned, "identical": identical, "prefixes": prefixes, "untouched": untouched,
             "written": written}


def main():
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    model, names = sys.argv[1], sys.argv[2:]
    options = json.loads(os.environ.get("DRIVER_OPTIONS", "{}"))
    engine = Engine(model, **options)
    print("RESULT " + json.dumps({name: SCENARIOS[name](engine) for name in names}), flush=True)


if __name__ == "__main__":
    main()
