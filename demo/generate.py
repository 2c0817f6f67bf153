"""One side of the demo: a language model that reads a long log and goes on writing it.

Run by demo.py and by the benches as a child process, inside a memory group. Reports what happens as
JSON lines, one write(2) each, so that a SIGKILL loses nothing that had happened before it.
Modes: stock (llama.cpp as it is), lazy and ours (with psi_cache; lazy has its controller off).
"""
import argparse
import ctypes
import json
import os
import sys
import threading
import time

CONTEXT_TOKENS = 32768
BATCH_TOKENS = 512
THREADS = 2
STATS_INTERVAL_S = 0.05
REFUSED_WAIT_S = 0.02   # llama_decode said "no room now": the cache is as before, so wait and ask again
REFUSED_LIMIT_S = 60.0


def rss_anon_bytes(pid="self"):
    with open("/proc/%s/status" % pid) as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return None


class Events:
    """JSON lines to a descriptor. Each is one write, so lines of two threads do not mix."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def __call__(self, event, **fields):
        line = json.dumps({"event": event, "time_s": time.monotonic(), **fields}) + "\n"
        with self._lock:
            os.write(self._descriptor, line.encode())


def load_psi_cache(mode):
    """Must come before llama_cpp is imported: the stand-in has to be in the process first."""
    if mode == "stock":
        return None
    if mode == "lazy":
        os.environ["PSI_CACHE_CONTROLLER"] = "off"
    try:
        import psi_cache.llama  # noqa: F401
    except ModuleNotFoundError:
        # Straight from the source tree, where nothing is installed.
        sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))
        import psi_cache.llama  # noqa: F401
    import psi_cache
    return psi_cache


class Engine:
    """llama.cpp through its C interface: no copies of logits, no Python per token but the argmax."""

    def __init__(self, model_path, context_tokens=CONTEXT_TOKENS, flash_attention=False, lock_weights=True,
                 threads=THREADS, verbose=False):
        import llama_cpp
        import numpy
        self._numpy, self._api = numpy, llama_cpp
        if not verbose:
            self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
            llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_load_model_from_file(model_path.encode(), self._model_params(lock_weights))
        if not self._model:
            raise RuntimeError("cannot load the model " + model_path)
        self._context = llama_cpp.llama_init_from_model(
            self._model, self._context_params(context_tokens, flash_attention, threads))
        if not self._context:
            raise RuntimeError("cannot make a context of %d tokens" % context_tokens)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_tokens = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.position = 0

    def _model_params(self, lock_weights):
        params = self._api.llama_model_default_params()
        # Locked weights: they stay resident as in a robot that must answer in time. Without the lock
        # the kernel would first re-read them from disk at every token, a different (slower) death.
        if hasattr(params, "load_mode"):
            params.load_mode = (self._api.LLAMA_LOAD_MODE_MMAP_MLOCK if lock_weights
                                else self._api.LLAMA_LOAD_MODE_MMAP)
        else:  # llama-cpp-python before 0.3.3x
            params.use_mmap, params.use_mlock = True, lock_weights
        return params

    def _context_params(self, context_tokens, flash_attention, threads):
        params = self._api.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.swa_full = True
        if hasattr(params, "n_outputs_max"):
            params.n_outputs_max = 1  # one row of logits, not a batch of them (512 MiB here)
        if hasattr(params, "flash_attn_type"):
            params.flash_attn_type = 1 if flash_attention else 0
        else:
            params.flash_attn = flash_attention
        return params

    def tokenize(self, text):
        raw = text.encode()
        room = len(raw) + 8
        tokens = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, raw, len(raw), tokens, room, True, False)
        if count < 0:
            raise RuntimeError("the prompt does not fit its token buffer")
        return list(tokens[:count])

    def text(self, token):
        buffer = ctypes.create_string_buffer(128)
        count = self._api.llama_token_to_piece(self._vocab, token, buffer, 128, 0, True)
        return buffer.raw[:max(count, 0)].decode("utf-8", "replace")

    def decode(self, tokens):
        """Evaluates up to BATCH_TOKENS tokens; llama_decode's own return code."""
        batch, last = self._batch, len(tokens) - 1
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == last
        code = self._api.llama_decode(self._context, batch)
        if code == 0:
            self.position += len(tokens)
        return code

    def best_token(self):
        """Greedy choice, read where the engine left the logits. Waits for the computation."""
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return int(self._numpy.ctypeslib.as_array(logits, (self.vocab_tokens,)).argmax())


def decode_or_wait(engine, tokens, events):
    """One decode. 1 means "no room for these now" and leaves the cache untouched, so it is asked again."""
    since = time.monotonic()
    while True:
        code = engine.decode(tokens)
        if code == 0:
            return
        if code != 1 or time.monotonic() - since > REFUSED_LIMIT_S:
            raise RuntimeError("llama_decode returned %d" % code)
        events("refused", position=engine.position)
        time.sleep(REFUSED_WAIT_S)


# ---- the prompt: a robot's log, ours, the same every time -------------------------------------------

PLACES = ("the loading dock", "aisle four", "the charging station", "the cold store", "gate two",
          "the packing table", "the service lift", "the ramp", "the inspection cell", "the north door")
THINGS = ("a blue crate", "two pallets of bearings", "a box of gaskets", "a bundle of cable", "a toolbox",
          "an empty trolley", "a drum of coolant", "a tray of sensors", "a roll of film", "a spare wheel")
DEEDS = ("carried", "scanned", "lifted", "found", "delivered", "weighed", "photographed", "turned back with",
         "waited beside", "handed over")
REMARKS = ("The path was clear.", "A person crossed and I waited.", "The floor was wet near the wall.",
           "The label could not be read at first.", "The battery stood at {n} per cent.",
           "The left wheel slipped once.", "I asked for help and got it.", "The lamp above me flickered.",
           "The camera needed {n} milliseconds more than usual.", "Nothing else happened.")


def robot_log(sentences, seed):
    """Text of our own with some order and some surprise; an own generator, so that it is the same
    under every Python."""
    state = (seed * 2654435761 + 12345) & 0xFFFFFFFF
    lines = ["This is the log of a warehouse robot. Each entry has a time, a place and what was done.\n"]

    def draw(count):
        nonlocal state
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        return (state >> 8) % count

    for i in range(sentences):
        minute = 6 * 60 + 2 * i
        lines.append("%02d:%02d At %s I %s %s. %s\n" % (
            minute // 60 % 24, minute % 60, PLACES[draw(10)], DEEDS[draw(10)], THINGS[draw(10)],
            REMARKS[draw(10)].format(n=10 + draw(90))))
    return "".join(lines)


def prompt_tokens(engine, count, seed):
    tokens = engine.tokenize(robot_log(count // 16 + 16, seed))
    if len(tokens) < count:
        raise RuntimeError("the prompt has %d tokens, %d are wanted" % (len(tokens), count))
    return tokens[:count]


# ---- running -----------------------------------------------------------------------------------------

def report_stats(psi_cache, events, stop):
    while not stop.wait(STATS_INTERVAL_S):
        try:
            events("stats", stats=psi_cache.stats())
        except Exception as error:  # a report must not end the run it reports on
            events("stats_error", text=repr(error))
            return


def prefill(engine, tokens, events):
    for start in range(0, len(tokens), BATCH_TOKENS):
        part = tokens[start:start + BATCH_TOKENS]
        begin = time.monotonic()
        decode_or_wait(engine, part, events)
        token = engine.best_token()
        events("prefill", done=start + len(part), of=len(tokens), step_us=round((time.monotonic() - begin) * 1e6))
    return token


def generate(engine, token, count, events):
    for index in range(count):
        begin = time.monotonic()
        decode_or_wait(engine, [token], events)
        token = engine.best_token()
        events("token", index=index, id=token, step_us=round((time.monotonic() - begin) * 1e6))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("stock", "lazy", "ours"), default="stock")
    parser.add_argument("--model", required=True)
    parser.add_argument("--context", type=int, default=CONTEXT_TOKENS)
    parser.add_argument("--prompt-tokens", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1, help="of the prompt's text")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--flash-attention", choices=("on", "off"), default="on")
    parser.add_argument("--lock-weights", choices=("on", "off"), default="on")
    parser.add_argument("--events-fd", type=int, default=1)
    parser.add_argument("--show-text", action="store_true", help="add each token's text to its event")
    parser.add_argument("--verbose", action="store_true", help="llama.cpp's own log on stderr")
    return parser.parse_args()


def main():
    options = arguments()
    events = Events(options.events_fd)
    psi_cache = load_psi_cache(options.mode)
    stop = threading.Event()
    events("start", mode=options.mode, pid=os.getpid())
    engine = Engine(options.model, options.context, options.flash_attention == "on",
                    options.lock_weights == "on", options.threads, options.verbose)
    events("context_made", rss_anon_bytes=rss_anon_bytes())
    if psi_cache is not None:
        threading.Thread(target=report_stats, args=(psi_cache, events, stop), daemon=True).start()
    tokens = prompt_tokens(engine, options.prompt_tokens, options.seed)
    first = prefill(engine, tokens, events)
    events("prefill_done", id=first, rss_anon_bytes=rss_anon_bytes())
    generate(engine, first, options.tokens, events)
    stop.set()
    if psi_cache is not None:
        events("stats", stats=psi_cache.stats())
    events("done", rss_anon_bytes=rss_anon_bytes())
    sys.stdout.flush()
    os._exit(0)  # nothing to tidy: the process is the measurement


if __name__ == "__main__":
    main()
