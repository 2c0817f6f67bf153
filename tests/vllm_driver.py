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
    """Greedy texts under trims and restores against those without. The last of them are in the store when it begins: whether
    a trim that requests overtake has stored anything is chance."""
    count = int(os.environ.get("DRIVER_REQUESTS", "40"))
    asked = prompts(count, 2)
    wanted = engine.texts(asked)
    give_all(engine)
    presser, given_before = Presser(3), engine.keeper.given_bytes
    presser.start()
    got = engine.texts(asked)
    presser.over = True
    presser.join()
    return {"requests": count, "different": sum(a != b for a, b in zip(wanted, got)), "trims": presser.trims,
            "given_bytes": engine.keeper.given_bytes - given_before, "block_bytes": engine.keeper.block_bytes,
            "preemptions": preemptions(engine), "works": engine.connector.works, "loaded": loaded(engine)}


def written(engine):
    """Greedy texts, with how near each token was to being another one: for bench/vllm_differences.py. Under trims and
    restores where there is a connector and DRIVER_PRESSED is not 0."""
    from vllm import SamplingParams

    first, count = int(os.environ.get("DRIVER_FIRST", "0")), int(os.environ.get("DRIVER_REQUESTS", "40"))
    asked = prompts(first + count, 2)[first:]
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
            "trims": presser.trims if presser else 0, "given_bytes": engine.keeper.given_bytes if presser else 0,
            "loaded": loaded(engine)}


def gap_of(place):
    """Between the two best tokens' log-probabilities."""
    best = sorted((each.logprob for each in place.values()), reverse=True)
    return best[0] - best[1] if len(best) > 1 else 99.0


def preemptions(engine):
    for metric in engine.llm.get_metrics():
        if metric.name == "vllm:num_preemptions":
            return metric.value
    return None


def loaded(engine):
    prefixes = engine.half and engine.half.prefixes
    return prefixes.loaded if prefixes else 0


def give_all(engine):
    """An idle engine's cache goes, and its blocks may be used again."""
    import psi_cache

    before = engine.keeper.given_bytes
    psi_cache.trim(1.0)
    gone = wait(lambda: engine.keeper.given_bytes > before and not engine.keeper.going)
    psi_cache.restore()
    return gone and wait(lambda: not engine.keeper.withheld)


def prefixes(engine):
    """Cached prefixes that go are stored, and come back for the next that begin alike."""
    asked = prompts(6, 5)
    wanted = engine.texts(asked)
    gone, stored, before = give_all(engine), len(engine.half.prefixes.shelf), loaded(engine)
    again = engine.texts(asked)
    return {"gone": gone, "stored": stored, "loaded": loaded(engine) - before, "same": again == wanted,
            "errors": psi_stats()["store_errors"]}


def psi_stats():
    import psi_cache

    return psi_cache.stats()


def worker_half():
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    group = get_kv_transfer_group()
    return next(each.worker_half for each in [group, *getattr(group, "_connectors", [])] if hasattr(each, "worker_half"))


def store_files():
    """Descriptors of this process's store."""
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if path.startswith(os.environ["PSI_CACHE_STORE_DIR"]) and "(deleted)" in path:
            yield f"/proc/self/fd/{name}"


def lost(engine):
    """Every record is another by one byte, then cut short, then the disk is full: what is lost is computed again."""
    asked, found = prompts(6, 9), {}
    wanted = engine.texts(asked)
    for fault in ("changed", "short"):
        gone, stored, before = give_all(engine), len(engine.half.prefixes.shelf), loaded(engine)
        for path in store_files():
            with open(path, "r+b", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                for place in range(0, size, engine.keeper.block_bytes):
                    os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, place)[0] ^ 1]), place)
                os.ftruncate(file.fileno(), 0) if fault == "short" else None
        again = engine.texts(asked)
        found[fault] = {"gone": gone, "stored": stored, "loaded": loaded(engine) - before, "same": again == wanted}
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    gone, before = give_all(engine), loaded(engine)
    again = engine.texts(asked)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found["full"] = {"gone": gone, "stored": 0, "loaded": loaded(engine) - before, "same": again == wanted}
    return {**found, "works": engine.connector.works, "errors": psi_stats()["store_errors"]}


def meanwhile(engine):
    """While a load is under way: its request is aborted, the prefix cache reset, another text with the same prefix asked,
    the engine short of blocks. The store is slow here, so that there is a meanwhile."""
    from vllm import SamplingParams

    half, records = engine.half, worker_half().records
    get, asked = records.get, prompts(6, 11)
    wanted = engine.texts(asked)
    gone = give_all(engine)
    records.get = lambda number, parts: (time.sleep(0.05), get(number, parts))[1]
    core, sampling = engine.llm.llm_engine, SamplingParams(temperature=0, max_tokens=4)
    core.add_request("doomed", asked[0], sampling)
    core.step()
    was_under_way = bool(half.prefixes._open)
    reset_answers = core.reset_prefix_cache()
    core.abort_request(["doomed"])
    while core.has_unfinished_requests():
        core.step()
    under_way, before = bool(half.prefixes._open), loaded(engine)
    again = engine.texts(asked[:2])  # the same prefix: some of it is coming
    landed = wait(lambda: not half.prefixes._open, 20)
    records.get = get
    everything = engine.texts(asked)
    return {"gone": gone, "was_under_way": was_under_way, "under_way": under_way, "reset_answers": reset_answers,
            "loaded": loaded(engine) - before, "landed": landed, "held": engine.keeper.held,
            "same": again == wanted[:2] and everything == wanted, "all_free": engine.keeper.all_free(),
            "works": engine.connector.works}


def reset(engine):
    """After a reset of the prefix cache, as after new weights, nothing old comes from the store."""
    asked = prompts(4, 13)
    wanted = engine.texts(asked)
    gone, stored, before = give_all(engine), len(engine.half.prefixes.shelf), loaded(engine)
    answered = engine.llm.llm_engine.reset_prefix_cache()
    again = engine.texts(asked)
    return {"gone": gone, "stored": stored, "answered": answered, "loaded": loaded(engine) - before,
            "same": again == wanted}


def untouched(engine):
    """What the engine does where we do not work."""
    return {"texts": engine.texts(prompts(2, 7)), "works": engine.connector.works,
            "keeper": engine.keeper is not None, "stores": bool(engine.half and engine.half.prefixes)}


SCENARIOS = {"returned": returned, "identical": identical, "prefixes": prefixes, "untouched": untouched,
             "written": written, "lost": lost, "meanwhile": meanwhile, "reset": reset}


def main():
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    model, names = sys.argv[1], sys.argv[2:]
    options = json.loads(os.environ.get("DRIVER_OPTIONS", "{}"))
    engine, found = Engine(model, **options), {}
    for name in names:
        found[name] = SCENARIOS[name](engine)
        print(f"{name}: done", found[name] if len(str(found[name])) < 1000 else "", file=sys.stderr, flush=True)
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
