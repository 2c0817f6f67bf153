"""The benches' engine: llama.cpp with a full cache, decoding without an end, one JSON line a step.

Run by rig.py as a child process, inside a memory group. It loads its cache from a saved state rather than
reading a prompt, so that it stands with a full cache after a second or two; or it reads a document (--document).
Each line is one write(2), so a SIGKILL loses nothing that had happened before it. On standard input it takes the lines pause, resume, reload
(the cache is filled from the state again), trim SHARE and restore (asked of psi_cache; stock does nothing, and says
so all the same: then both have the same windows in their steps), ask FILE (reads the tokens in it behind what it
has, answers, and takes both back), stop.
"""
import argparse
import ctypes
import json
import os
import queue
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "demo"))
import generate  # noqa: E402

CACHE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 8}  # ggml_type
ANSWER_TOKENS = 8
FIRST_TOKEN = 108  # decoding goes on from here; what it says does not matter


class Engine(generate.Engine):
    """The demo's engine with the third way to have weights, and with a cache out of a file."""

    def __init__(self, options):
        self._weights, self._making_state = options.weights, options.make_state
        self._cache_type, self._ubatch_tokens = CACHE_TYPES[options.cache_type], options.ubatch
        super().__init__(options.model, options.context, flash_attention=True, lock_weights=options.weights == "locked",
                         threads=options.threads)

    def _context_params(self, *arguments):
        params = super()._context_params(*arguments)
        params.type_k = params.type_v = self._cache_type
        params.n_ubatch = self._ubatch_tokens
        if self._making_state:
            params.n_seq_max, params.kv_unified, params.n_outputs_max = 2, True, 2
        return params

    def _model_params(self, lock_weights):
        params = super()._model_params(lock_weights)
        if self._making_state:
            # A state leaves out the cells behind a layer's sliding window. Here none is behind it, so that
            # the saved state has what a prompt leaves in the cache: all layers of all tokens.
            self._overrides = (self._api.llama_model_kv_override * 2)()
            self._overrides[0].tag = self._api.LLAMA_KV_OVERRIDE_TYPE_INT
            self._overrides[0].key = b"gemma3.attention.sliding_window"
            self._overrides[0].value.val_i64 = 1 << 20
            params.kv_overrides = self._overrides
        if self._weights == "unreclaimable":  # read into private memory: no page of it can be taken back
            if hasattr(params, "load_mode"):
                params.load_mode = self._api.LLAMA_LOAD_MODE_NONE
            else:
                params.use_mmap, params.use_mlock = False, False
        return params

    def make_state(self, tokens, path):
        """Fills sequence 0 with pieces that do not look at each other: minutes less than one long prompt, and
        to memory the same. Each is read as sequence 1, at its place, and becomes a part of sequence 0."""
        batch, memory = self._batch, self._api.llama_get_memory(self._context)
        for begin in range(0, len(tokens), generate.BATCH_TOKENS):
            part = tokens[begin:begin + generate.BATCH_TOKENS]
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, begin + i, i == len(part) - 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 1
            if self._api.llama_decode(self._context, batch) != 0:
                raise RuntimeError("cannot fill the cache for " + path)
            self._api.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            self._api.llama_memory_seq_rm(memory, 1, -1, -1)
        self._save_state(path)

    def _save_state(self, path):
        saved = self._api.llama_state_seq_save_file(self._context, path.encode(), 0, (ctypes.c_int32 * 1)(), 0)
        if not saved:
            raise RuntimeError("cannot save the state to " + path)

    def load_state(self, path, tokens):
        count = ctypes.c_size_t(0)
        loaded = self._api.llama_state_seq_load_file(self._context, path.encode(), 0, (ctypes.c_int32 * 1)(), 1,
                                                     ctypes.byref(count))
        if not loaded:
            raise RuntimeError("cannot load the state " + path)
        self.position = tokens

    def forget_from(self, position):
        memory = self._api.llama_get_memory(self._context)
        if not self._api.llama_memory_seq_rm(memory, 0, position, -1):
            raise RuntimeError("cannot take tokens back")
        self.position = position


class Orders:
    """pause, resume, reload, trim, restore, ask and stop, one a line, from standard input. Its end is a stop, too."""

    def __init__(self):
        self.stopped = threading.Event()
        self.reload = threading.Event()
        self.moves = queue.SimpleQueue()  # trims, restores and questions
        self.may_run = threading.Event()
        self.may_run.set()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in sys.stdin:
            order = line.strip()
            if order == "pause":
                self.may_run.clear()
            elif order == "resume":
                self.may_run.set()
            elif order == "reload":
                self.reload.set()
            elif order.startswith(("trim ", "restore", "ask ")):
                self.moves.put(order)
            elif order == "stop":
                break
        self.stopped.set()
        self.may_run.set()


def read_prompt(engine, options, events):
    """--prompt-tokens of a text that --prompt-seed chooses, behind the state. The first token of its answer."""
    token = FIRST_TOKEN
    tokens = generate.prompt_tokens(engine, options.prompt_tokens + 1, options.prompt_seed)[1:]  # one begin is enough
    for at in range(0, len(tokens), options.prompt_piece):
        begin_s = time.monotonic()
        generate.decode_or_wait(engine, tokens[at:at + options.prompt_piece], events)
        token = engine.best_token()
        events("prompt", done=at + options.prompt_piece, ms=round((time.monotonic() - begin_s) * 1e3, 3))
    return token


def read_document(engine, path, events):
    """The tokens in a file, in pieces of a batch."""
    with open(path) as file:
        tokens = json.load(file)
    for at in range(0, len(tokens), generate.BATCH_TOKENS):
        begin_s = time.monotonic()
        generate.decode_or_wait(engine, tokens[at:at + generate.BATCH_TOKENS], events)
        engine.best_token()  # waits for the computation
        events("prompt", done=at + generate.BATCH_TOKENS, ms=round((time.monotonic() - begin_s) * 1e3, 3))
    events("read", rss_anon_bytes=generate.rss_anon_bytes())


def answer(engine, path, events):
    """Reads a question behind what it has, answers greedily, and takes both back."""
    with open(path) as file:
        tokens = json.load(file)
    begin, ids = engine.position, []
    generate.decode_or_wait(engine, tokens, events)
    for _ in range(ANSWER_TOKENS):
        ids.append(engine.best_token())
        generate.decode_or_wait(engine, ids[-1:], events)
    engine.forget_from(begin)
    events("answer", ids=ids, text="".join(map(engine.text, ids)))


def move(order, events, psi_cache):
    """Asks for a trim or a restore; the next step does it."""
    name, _, share = order.partition(" ")
    if psi_cache is not None:
        if name == "trim":
            psi_cache.trim(float(share))
        else:
            psi_cache.restore()
    events("asked", move=name)


def decode_forever(engine, token, options, events, orders, psi_cache):
    """Decodes --span tokens behind the state, --piece at once, takes them back, and so on, until it is told to stop."""
    begin_position = engine.position
    while not orders.stopped.is_set():
        orders.may_run.wait()
        if orders.reload.is_set():
            orders.reload.clear()
            engine.forget_from(0)
            engine.load_state(options.state, options.state_tokens)
            events("reloaded", rss_anon_bytes=generate.rss_anon_bytes())
        if engine.position - begin_position + options.piece > options.span:
            engine.forget_from(begin_position)
        if not orders.moves.empty():
            order = orders.moves.get()
            if order.startswith("ask "):
                engine.forget_from(begin_position)
                answer(engine, order[4:], events)
            else:
                move(order, events, psi_cache)
        begin_s = time.monotonic()
        generate.decode_or_wait(engine, [token] * options.piece, events)
        token = engine.best_token()
        events("step", ms=round((time.monotonic() - begin_s) * 1e3, 3), id=token)
        if options.rest_ms:
            time.sleep(options.rest_ms / 1e3)


def report_stats(psi_cache, events, stop, interval_s):
    while not stop.wait(interval_s):
        try:
            events("stats", stats=psi_cache.stats())
        except Exception as error:  # a report must not end the run it reports on
            events("stats_error", text=repr(error))
            return


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("stock", "ours"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", choices=("mapped", "locked", "unreclaimable"), default="locked")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--state", help="the cache is loaded from it")
    parser.add_argument("--state-tokens", type=int)
    parser.add_argument("--document", help="a file of tokens that is read in a state's place")
    parser.add_argument("--make-state", action="store_true", help="read a prompt, save the state, end")
    parser.add_argument("--span", type=int, default=1024, help="tokens decoded before they are taken back")
    parser.add_argument("--piece", type=int, default=1, help="tokens in a step, as a prompt's piece has (at most 512)")
    parser.add_argument("--cache-type", choices=sorted(CACHE_TYPES), default="f16")
    parser.add_argument("--ubatch", type=int, default=generate.BATCH_TOKENS, help="tokens that are computed at once (512)")
    parser.add_argument("--prompt-tokens", type=int, default=0, help="read behind the state before it decodes")
    parser.add_argument("--prompt-seed", type=int, default=1)
    parser.add_argument("--prompt-piece", type=int, default=64, help="tokens in a step of it")
    parser.add_argument("--rest-ms", type=float, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stats-ms", type=float, default=50, help="0: none")
    parser.add_argument("--events-fd", type=int, default=1)
    return parser.parse_args()


def main():
    options = arguments()
    events = generate.Events(options.events_fd)
    orders = Orders()
    psi_cache = generate.load_psi_cache(options.mode)
    events("start", pid=os.getpid())
    engine = Engine(options)
    events("context_made", rss_anon_bytes=generate.rss_anon_bytes())
    if options.make_state:
        engine.make_state(generate.prompt_tokens(engine, options.state_tokens, 1), options.state)
        os._exit(0)
    if options.state:
        engine.load_state(options.state, options.state_tokens)
    events("loaded", rss_anon_bytes=generate.rss_anon_bytes(), stats=psi_cache.stats() if psi_cache else None)
    if psi_cache is not None and options.stats_ms:
        threading.Thread(target=report_stats, args=(psi_cache, events, orders.stopped, options.stats_ms / 1e3),
                         daemon=True).start()
    if options.document:
        read_document(engine, options.document, events)
    token = read_prompt(engine, options, events) if options.prompt_tokens else FIRST_TOKEN
    decode_forever(engine, token, options, events, orders, psi_cache)
    events("done", stats=psi_cache.stats() if psi_cache else None)
    os._exit(0)  # nothing to tidy: the process is the measurement


if __name__ == "__main__":
    main()
