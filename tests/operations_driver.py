"""One process of the differential test: does what it is told with llama.cpp's contexts, and says what came of it. The same
program runs with psi_cache and without; operations.py compares. Reads one session a line, writes one answer a line.

    python operations_driver.py '{"ours": true}'

An operation is a list: its name, the number of a context, and numbers that are fitted to what the context holds just then,
so that any list of operations is a valid session. What fits is asked of the engine, and so is the same on both sides.

Contexts that are *watched* have an evaluation callback that sees the mask of each attention node. On our side it notes which
columns no row sees; on the other side it hides the same ones. So logits can be compared while blocks are out, too. Contexts
that are not watched compute whole graphs, as ever: there a trim is done in a step whose token is taken back, and blocks come
back before the next one.
"""

import ctypes
import hashlib
import json
import pathlib
import sys
import tempfile
import zlib

options = json.loads(sys.argv[1])
if options["ours"]:
    import psi_cache
    import psi_cache.llama

import llama_cpp  # noqa: E402  after psi_cache.llama
import numpy  # noqa: E402
from llama_cpp import llama_cpp as low  # noqa: E402

OP, SRC, DATA = 80, 152, 248  # offsets in struct ggml_tensor
F32, F16 = 0, 1
ON_DEVICE = 2  # LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
STATES = 4  # kept at once, of each kind


def _quiet(*_):
    pass


_log = low.llama_log_callback(_quiet)
low.llama_log_set(_log, ctypes.c_void_p(0))
low.llama_backend_init()
base = ctypes.CDLL(str(next(pathlib.Path(llama_cpp.__file__).parent.glob("lib/libggml-base.so"))))
base.ggml_op_name.restype = ctypes.c_char_p
op_number = {base.ggml_op_name(i).decode(): i for i in range(80)}
FLASH, SOFT_MAX = op_number["FLASH_ATTN_EXT"], op_number["SOFT_MAX"]


def _field(address: int, offset: int, kind):
    return kind.from_address(address + offset).value


def mask_of(node: int):
    """The mask that an attention node reads, as an array [stream, token, cell]; None: the node is no attention."""
    op = _field(node, OP, ctypes.c_int32)
    if op not in (FLASH, SOFT_MAX):
        return None
    mask = _field(node, SRC + 8 * (3 if op == FLASH else 1), ctypes.c_void_p)
    if mask is None:
        return None
    ne = (ctypes.c_int64 * 4).from_address(mask + 16)
    kind = numpy.float32 if _field(mask, 0, ctypes.c_int32) == F32 else numpy.float16
    count = ne[0] * ne[1] * ne[2] * ne[3]
    raw = (ctypes.c_char * (count * kind().itemsize)).from_address(_field(mask, DATA, ctypes.c_void_p))
    return numpy.frombuffer(raw, dtype=kind).reshape(ne[3], ne[1], ne[0])


class Watch:
    """Sees every node before and after it is computed. Ours notes columns that are hidden from all; stock hides them."""

    def __init__(self):
        self.noted, self.told, self.newly_hidden, self.differ = [], None, 0, 0
        self.as_it_was = None
        self.callback = low.ggml_backend_sched_eval_callback(self.on_node)

    def on_node(self, node, ask, _):
        mask = mask_of(node) if ask else None
        if mask is not None and options["ours"]:
            hidden = numpy.isneginf(mask).all(axis=1)
            self.noted.append([numpy.packbits(hidden).tobytes().hex(), zlib.crc32(mask.tobytes())])
        elif mask is not None and self.told is not None:
            self.as_it_was = (mask, mask.copy())  # layers share a mask, and ours may show other cells in the next one
            self.hide(mask, self.told.pop(0) if self.told else None)
        elif not ask and self.as_it_was is not None:
            mask, content = self.as_it_was
            mask[:] = content
            self.as_it_was = None
        return True

    def hide(self, mask, told):
        """A difference counts: one side computed another number of attention nodes, or shows other cells."""
        if told is None:
            self.differ += 1
            return
        hidden = numpy.unpackbits(numpy.frombuffer(bytes.fromhex(told[0]), dtype=numpy.uint8))
        hidden = hidden[: mask.shape[0] * mask.shape[2]].reshape(mask.shape[0], mask.shape[2]).astype(bool)
        self.newly_hidden += int((hidden & ~numpy.isneginf(mask).all(axis=1)).sum())
        mask.transpose(0, 2, 1)[hidden] = -numpy.inf
        self.differ += zlib.crc32(mask.tobytes()) != told[1]

    def take(self):
        noted, self.noted = self.noted, []
        return noted

    def tell(self, told):
        self.told, self.newly_hidden, self.differ = told, 0, 0

    def heard(self):
        left = len(self.told or [])
        self.told = None
        return {"newly_hidden": self.newly_hidden, "masks_differ": self.differ + left}


models: dict = {}


def model_of(path: str):
    if path not in models:
        models[path] = low.llama_model_load_from_file(path.encode(), low.llama_model_default_params())
        assert models[path], path
    return models[path]


class Context:
    def __init__(self, config: dict, watched: bool):
        self.config = config
        self.watch = Watch() if watched else None
        model = model_of(config["model"])
        p = low.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch = config["cells"], config.get("batch", 96), config.get("ubatch", 32)
        p.n_threads = p.n_threads_batch = config.get("threads", 1)
        p.n_seq_max, p.kv_unified = config.get("sequences", 1), config.get("unified", True)
        p.flash_attn_type, p.swa_full = config.get("flash", 1), config.get("swa_full", True)
        p.type_k, p.type_v = config.get("type_k", 1), config.get("type_v", 1)
        p.embeddings, p.pooling_type = config.get("embeddings", False), config.get("pooling", -1)
        p.no_perf = True
        if self.watch is not None:
            p.cb_eval = ctypes.cast(self.watch.callback, type(p.cb_eval))
        self.context = low.llama_init_from_model(model, p)
        assert self.context, config
        self.memory = low.llama_get_memory(self.context)
        self.words = low.llama_vocab_n_tokens(low.llama_model_get_vocab(model))
        self.width = low.llama_model_n_embd(model)
        self.sequences, self.most = p.n_seq_max, p.n_batch
        self.batch = low.llama_batch_init(self.most, 0, 1)
        self.must_restore = False
        self.copy_waits = False  # the engine copies from stream to stream at its next step
        self.on_device: dict = {}  # sequence -> the state that was saved last

    def free(self):
        low.llama_batch_free(self.batch)
        low.llama_free(self.context)

    def last(self, sequence: int) -> int:
        return low.llama_memory_seq_pos_max(self.memory, sequence)

    def span(self, sequence: int, a: int, b: int):
        """Sixteenths of what the sequence holds, as positions [from, to)."""
        first, last = low.llama_memory_seq_pos_min(self.memory, sequence), self.last(sequence)
        size = last + 1 - first
        return first + size * min(a, b) // 16, first + size * max(a, b) // 16

    def decode(self, parts, every=False) -> dict:
        """parts: [sequence, tokens, seed]; the tokens go to the sequences' ends."""
        count, wanted, batch = 0, [], self.batch
        ends: dict = {}
        for sequence, tokens, seed in parts:
            sequence %= self.sequences
            for i in range(min(tokens, self.most - count)):
                position = ends.get(sequence, self.last(sequence)) + 1
                ends[sequence] = position
                batch.token[count] = (seed * 7919 + i * 104729 + position * 31) % self.words
                batch.pos[count] = position
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = sequence
                batch.logits[count] = bool(every)
                if every:
                    wanted.append(count)
                count += 1
        if count == 0:
            return {}
        if not every:
            batch.logits[count - 1] = True
            wanted.append(count - 1)
        batch.n_tokens = count
        self.copy_waits = False
        if self.config.get("embeddings"):
            for i in range(count):
                batch.logits[i] = True
        code = low.llama_decode(self.context, batch)
        said = {"code": code}
        if code == 0:
            said["outputs"] = self.outputs(wanted)
        return said

    def outputs(self, wanted) -> str:
        hashed = hashlib.sha256()
        for i in wanted:
            if self.config.get("embeddings"):
                pooled = self.config.get("pooling", -1) > 0
                sequence = self.batch.seq_id[i][0]
                get = low.llama_get_embeddings_seq if pooled else low.llama_get_embeddings_ith
                pointer, width = get(self.context, sequence if pooled else i), self.width
            else:
                pointer, width = low.llama_get_logits_ith(self.context, i), self.words
            values = numpy.ctypeslib.as_array(pointer, shape=(width,))
            assert numpy.isfinite(values).all()
            hashed.update(values.tobytes())
        return hashed.hexdigest()[:16]

    def again(self, sequence: int, seed: int) -> dict:
        """A token at the sequence's end that is taken back: a safe point."""
        said = self.decode([[sequence, 1, seed]])
        if said.get("code") == 0:
            sequence %= self.sequences
            said["taken"] = low.llama_memory_seq_rm(self.memory, sequence, self.last(sequence), -1)
        return said

    def positions(self):
        return [
            (low.llama_memory_seq_pos_min(self.memory, s), low.llama_memory_seq_pos_max(self.memory, s))
            for s in range(self.sequences)
        ]


class Session:
    def __init__(self, session: dict, directory: str):
        self.session, self.directory = session, pathlib.Path(directory)
        self.watched = session["watched"]
        self.contexts: dict = {}
        self.states: dict = {}
        self.lossy = session.get("lossy", False)  # no store: what goes is lost, and no state can be compared after it
        self.restore_asked = False

    def close(self):
        for context in self.contexts.values():
            context.free()
        if options["ours"]:
            for name, value in (("policy", "auto"), ("recall", "on")):
                try:
                    psi_cache.set_option(name, value)
                except psi_cache.PsiCacheError:
                    pass  # no cache was opened yet

    def run(self, op, told):
        """`told` is what ours answered: stock does as ours did."""
        name, number = op[0], op[1]
        context = self.contexts.get(number)
        if name in ("new", "free"):
            return getattr(self, "do_" + name)(context, number, *op[2:])
        if context is None:
            return {}
        if context.watch is not None and told is not None:
            context.watch.tell(told.get("masks"))
        said = getattr(self, "do_" + name)(context, *op[2:], **({"told": told} if name.startswith("save") else {}))
        said["positions"] = context.positions()
        if options["ours"]:
            now = psi_cache.stats()
            said["out"] = [now["stored_bytes"], now["dropped_bytes"]]
        if context.watch is not None:
            if options["ours"]:
                said["masks"] = context.watch.take()
            else:
                said.update(context.watch.heard())
        return said

    # ---- Contexts

    def do_new(self, context, number, which):
        if context is not None:
            context.free()
        configs = self.session["configs"]
        self.contexts[number] = Context(configs[which % len(configs)], self.watched)
        return {}

    def do_free(self, context, number):
        if context is not None:
            self.contexts.pop(number).free()
        return {}

    # ---- Steps

    def before_step(self, context):
        if options["ours"] and context.must_restore:
            psi_cache.restore()
            context.must_restore = False

    def after_step(self, said):
        said["whole"] = self.restore_asked and said.get("code") == 0
        self.restore_asked = False
        return said

    def do_decode(self, context, parts, every):
        self.before_step(context)
        return self.after_step(context.decode(parts, every))

    def do_again(self, context, sequence, seed):
        self.before_step(context)
        return self.after_step(context.again(sequence, seed))

    # ---- Trims

    def do_trim(self, context, permille, sequence):
        if options["ours"]:
            psi_cache.trim(max(permille, 1) / 1000)
        self.restore_asked = False
        said = {"steps": []}
        for other in [] if self.watched else self.contexts.values():
            # In this step blocks are hidden, so what it computes differs and is taken back.
            step = other.again(sequence, 1)
            if step.get("code") != 0:
                low.llama_memory_clear(other.memory, True)
                step = other.again(0, 1)
            said["steps"].append([step.get("code"), step.get("taken")])
            other.must_restore = True
        return said

    def do_restore(self, context):
        if options["ours"]:
            psi_cache.restore()
        self.restore_asked = self.watched and len(self.contexts) == 1 and not self.lossy
        return {}

    def do_policy(self, context, which):
        if options["ours"]:
            names = ["auto", "attention", "keys", "fifo", "lru"]
            psi_cache.set_option("policy", names[which % len(names)])
        return {}

    def do_recall(self, context, on):
        if options["ours"]:
            psi_cache.set_option("recall", "on" if on else "off")
        return {}

    # ---- The memory

    def do_remove(self, context, sequence, a, b):
        sequence %= context.sequences
        first, end = context.span(sequence, a, b)
        return {"code": low.llama_memory_seq_rm(context.memory, sequence, first, end)}

    def do_remove_tail(self, context, sequence, a):
        sequence %= context.sequences
        first, _ = context.span(sequence, a, 16)
        return {"code": low.llama_memory_seq_rm(context.memory, sequence, first, -1)}

    def do_remove_all(self, context, sequence):
        return {"code": low.llama_memory_seq_rm(context.memory, sequence % (context.sequences + 1) - 1, -1, -1)}

    def do_copy(self, context, source, target, a, b):
        source, target = source % context.sequences, target % context.sequences
        if source == target:
            return {}
        low.llama_memory_seq_rm(context.memory, target, -1, -1)
        if context.config.get("unified", True):
            first, end = context.span(source, a, b)
            low.llama_memory_seq_cp(context.memory, source, target, first, end)
        else:  # across streams the engine copies whole sequences only
            low.llama_memory_seq_cp(context.memory, source, target, -1, -1)
            context.copy_waits = True
        return {}

    def do_keep(self, context, sequence):
        low.llama_memory_seq_keep(context.memory, sequence % context.sequences)
        return {}

    def do_shift(self, context, sequence, a, b):
        """As a context shift is done: a piece goes, and what follows moves down."""
        sequence %= context.sequences
        first, end = context.span(sequence, a, b)
        if first == end or not low.llama_memory_can_shift(context.memory):
            return {}
        code = low.llama_memory_seq_rm(context.memory, sequence, first, end)
        low.llama_memory_seq_add(context.memory, sequence, end, -1, first - end)
        return {"code": code}

    def do_add(self, context, sequence, a, by):
        sequence %= context.sequences
        first, _ = context.span(sequence, a, 16)
        if first >= 0 and low.llama_memory_can_shift(context.memory):
            low.llama_memory_seq_add(context.memory, sequence, first, -1, by)
        return {}

    def do_divide(self, context, sequence, by):
        if low.llama_memory_can_shift(context.memory):
            low.llama_memory_seq_div(context.memory, sequence % context.sequences, -1, -1, by)
        return {}

    def do_clear(self, context, data):
        low.llama_memory_clear(context.memory, bool(data))
        return {}

    # ---- States

    def settle_copy(self, context):
        """Stock saves a sequence whose copy waits with whatever lay in its cells before, and writes the copy over one that was
        loaded meanwhile: what was taken back in a step with hidden blocks, too. No two engines agree on that."""
        if context.copy_waits and self.do_again(context, 0, 1).get("code") != 0:
            low.llama_memory_clear(context.memory, True)
            self.do_again(context, 0, 1)

    def may_save(self, told):
        """Ours says; stock does the same."""
        if options["ours"]:
            return not (self.lossy and psi_cache.stats()["trims"] > 0)
        return told.get("saved", False)

    def path(self, kind, slot):
        return str(self.directory / f"{kind}{slot % STATES}").encode()

    def do_save(self, context, slot, to_file, told=None):
        self.settle_copy(context)
        if not self.may_save(told):
            return {"saved": False}
        if to_file:
            tokens = (low.llama_token * 1)(7)
            code = low.llama_state_save_file(context.context, self.path("whole", slot), tokens, 1)
            state = pathlib.Path(self.path("whole", slot).decode()).read_bytes()
        else:
            size = low.llama_state_get_size(context.context)
            state = (ctypes.c_uint8 * size)()
            code = low.llama_state_get_data(context.context, state, size)
        self.states["whole", slot % STATES] = (state, context.config, bool(to_file))
        return {"saved": True, "code": code, "state": hashlib.sha256(bytes(state)).hexdigest()[:16]}

    def do_load(self, context, slot):
        state, config, from_file = self.states.get(("whole", slot % STATES), (None, None, None))
        if config != context.config:
            return {}
        self.settle_copy(context)
        if from_file:
            tokens, count = (low.llama_token * 8)(), ctypes.c_size_t()
            code = low.llama_state_load_file(context.context, self.path("whole", slot), tokens, 8, ctypes.byref(count))
        else:
            code = low.llama_state_set_data(context.context, state, len(state))
        return {"code": code}

    def do_save_sequence(self, context, sequence, slot, way, told=None):
        """way 0: in memory, 1: a file, 2: on the device, which is a second buffer."""
        self.settle_copy(context)
        if not self.may_save(told):
            return {"saved": False}
        sequence %= context.sequences
        if way == 2 and {context.config.get("type_k", F16), context.config.get("type_v", F16)} != {F16}:
            way = 0  # stock brings back only part of a quantised state from its second buffer: the rest is what lay there
        if way == 1:
            tokens = (low.llama_token * 1)(7)
            code = low.llama_state_seq_save_file(context.context, self.path("one", slot), sequence, tokens, 1)
            state = pathlib.Path(self.path("one", slot).decode()).read_bytes()
        else:
            flags = ON_DEVICE if way == 2 else 0
            size = low.llama_state_seq_get_size_ext(context.context, sequence, flags)
            state = (ctypes.c_uint8 * size)()
            code = low.llama_state_seq_get_data_ext(context.context, state, size, sequence, flags)
        self.states["one", slot % STATES] = (state, context.config, way, sequence)
        if way == 2:
            context.on_device[sequence] = state
        return {"saved": True, "code": code, "state": hashlib.sha256(bytes(state)).hexdigest()[:16]}

    def do_load_sequence(self, context, sequence, slot):
        state, config, way, source = self.states.get(("one", slot % STATES), (None,) * 4)
        sequence %= context.sequences
        if config != context.config:
            return {}
        self.settle_copy(context)
        if way == 1:
            tokens, count = (low.llama_token * 8)(), ctypes.c_size_t()
            code = low.llama_state_seq_load_file(
                context.context, self.path("one", slot), sequence, tokens, 8, ctypes.byref(count)
            )
        elif way == 2:
            if context.on_device.get(source) is not state:  # the engine keeps one a sequence, and aborts for another
                return {}
            code = low.llama_state_seq_set_data_ext(context.context, state, len(state), source, ON_DEVICE)
        else:
            code = low.llama_state_seq_set_data_ext(context.context, state, len(state), sequence, 0)
        return {"code": code}


def answer(session: dict) -> list:
    told = session.get("told") or [None] * len(session["ops"])
    with tempfile.TemporaryDirectory() as directory:
        running = Session(session, directory)
        try:
            return [running.run(op, what) for op, what in zip(session["ops"], told)]
        finally:
            running.close()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
