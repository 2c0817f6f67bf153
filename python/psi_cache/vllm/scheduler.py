"""The half in the scheduler's process. vLLM's own thread calls it at its hooks, between two changes of the block pool;
a thread of ours waits for the controller and for the workers, and acts itself while nobody else can be at the pool:

- while the engine is idle. That is known, not guessed: the last schedule was empty, no request is there, and every block
  that is not withheld is free. The first thing that a new request does is to call on_new_request, which takes the lock.
- within a step that every worker holds open for us (step.py): vLLM's thread waits for its result.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from . import channel, hooks
from .keeper import POLICIES, Keeper
from .line import Line
from .prefixes import Group, Prefixes
from .remote import Remote
from .say import ERROR, INFO, WARN, say

ASK_AGAIN_MS, LONGEST_ASK_MS = 5.0, 100.0  # for a step, where there was none: a program may be long in making the next


class Unfit(Exception):
    """Why this engine runs untouched."""


def floor_of(vllm_config: Any, kv_cache_config: Any) -> int:
    """Blocks that one longest request needs, in all groups, and the scheduler's own margin."""
    length = vllm_config.model_config.max_model_len
    blocks = 0
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        try:
            needed = -(-spec.max_memory_usage_bytes(vllm_config) // spec.page_size_bytes)
        except Exception:
            needed = -(-length // spec.block_size)
        blocks += needed + 1
    share = getattr(vllm_config.scheduler_config, "watermark", 0.01) or 0.01
    return int(blocks + max(1, share * kv_cache_config.num_blocks))


def policy_of(asked: Optional[str]) -> str:
    """vLLM gives no scores: what goes by them goes as lru."""
    name = asked or os.environ.get("PSI_CACHE_POLICY", "lru")
    return name if name in POLICIES else "lru"


def groups_of(kv_cache_config: Any) -> List[Group]:
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    return [Group(spec.block_size, int(getattr(spec, "sliding_window", None) or 0)) for spec in specs]


class SchedulerHalf:
    def __init__(self, vllm_config: Any, kv_cache_config: Any, engine_id: str, extra: Dict[str, Any]) -> None:
        self._vllm_config, self._kv_cache_config = vllm_config, kv_cache_config
        self._engine_id, self._extra = engine_id, extra
        self.keeper: Optional[Keeper] = None
        self.lock = threading.RLock()
        self._pages_went = threading.Condition(self.lock)
        self._remote: Optional[Remote] = None
        self.prefixes: Optional[Prefixes] = None
        self._pages, self._store = Line([]), Line([])
        self._requests: Set[str] = set()
        self._idle = False
        self._thread: Optional[threading.Thread] = None
        self._stops = self._failed = False
        self._wants_step = False  # there is something to do, and the engine is busy
        self._hold: Optional[int] = None  # asked for
        self._ask_again_ms = ASK_AGAIN_MS
        self._gives_later: Optional[List[List[channel.Run]]] = None  # while a step is held: what is to go after it
        overlaps = hooks.overlap_of_steps(vllm_config) is not None or getattr(vllm_config, "max_concurrent_batches", 1) != 1
        self._may_hold = not overlaps
        self.pool_is_guarded = False  # every change of the pool is made under our lock: preempt.py

    # ---- start -----------------------------------------------------------------------------------

    def bind(self, pool: Any) -> None:
        """Begins, or says in one line why not."""
        try:
            self._begin(pool)
        except (Unfit, OSError) as error:
            self._end()
            say(WARN, f"the engine runs untouched: {error}")

    def _begin(self, pool: Any) -> None:
        lacks = hooks.missing_in_pool(pool)
        if lacks is None and not hooks.works_as_expected(pool):
            lacks = "its block pool does not hand out and take back blocks as known here"
        if lacks is not None:
            raise Unfit(f"{lacks}; this version of vLLM is not known to this version of psi_cache")
        block_bytes = self._connect()
        blocks = len(pool.blocks) - 1
        self._remote = Remote(blocks, block_bytes)
        floor = floor_of(self._vllm_config, self._kv_cache_config)
        policy = policy_of(self._extra.get("policy"))
        self.keeper = Keeper(pool, block_bytes, floor, self._remote.report, self._send, policy)
        self.keeper.notes_returned = os.environ.get("PSI_CACHE_VLLM_PAGES") == "poison"
        stored = self._begin_store(self.keeper)
        self._thread = threading.Thread(target=self._watch, name="psi-vllm", daemon=True)
        self._idle = True  # nobody used the pool yet
        self._thread.start()
        say(
            INFO,
            f"{blocks} blocks of {block_bytes // 1024} KiB follow the memory pressure, {policy}; "
            f"{self.keeper.floor_blocks} always stay in use (one longest request); {stored}",
        )

    def _connect(self) -> int:
        """All workers' bytes of a block. Raises Unfit."""
        block_bytes, self._records = 0, 2**32
        for rank in range(self._vllm_config.parallel_config.world_size):
            try:
                peer, hello = channel.connect(self._engine_id, rank)
            except OSError as error:
                raise Unfit(f"worker {rank} is not reached on this machine ({error})") from None
            self._pages.peers.append(peer)
            if hello.get("why"):
                raise Unfit(hello["why"])
            blocks = self._kv_cache_config.num_blocks
            if hello.get("blocks") != blocks:
                raise Unfit(f"worker {rank} has {hello.get('blocks')} blocks, the scheduler {blocks}")
            block_bytes += hello["block_bytes"]
            self._records = min(self._records, hello.get("records", 0))
        return block_bytes

    def _begin_store(self, keeper: Keeper) -> str:
        """What is said of it."""
        if not self._records:
            return "prefixes that go are computed again"
        why = hooks.missing_for_store(self._vllm_config, self._kv_cache_config, keeper.pool)
        if why is None:
            try:
                for rank in range(len(self._pages.peers)):
                    self._store.peers.append(channel.connect(self._engine_id, rank)[0])
            except OSError as error:
                why = f"worker {rank} is not reached a second time ({error})"
        if why is not None:
            self._store.close()
            return f"prefixes that go are computed again: {why or 'none are kept'}"
        self.prefixes = Prefixes(keeper, groups_of(self._kv_cache_config), self._records, self._move)
        return f"the store takes {self._records} blocks of prefixes"

    # ---- vLLM's thread ---------------------------------------------------------------------------

    def new_request(self, request_id: str) -> None:
        with self.lock:
            self._idle = False
            self._requests.add(request_id)
            if self.keeper is not None and self.keeper.usable() < self.keeper.floor_blocks:
                self._hurry()  # an idle engine gave more than a busy one may

    def _hurry(self) -> None:
        if self.prefixes is not None and self.prefixes.is_writing_first:
            self.prefixes.hurry()

    def must_wait(self, request: Any, tokens_here: int) -> bool:
        """Its prefix is on its way from the store."""
        if self.prefixes is None or self.keeper is None or self._failed:
            return False
        with self.lock:
            try:
                return self.prefixes.must_wait(request, tokens_here)
            except Exception as error:
                self._end_store(error)
                return True  # what it looked up may be gone: it is asked again, and then not of the store

    def _end_store(self, error: Exception) -> None:
        """An engine that does otherwise than is known here. Blocks that are on their way stay out of the pool."""
        prefixes, self.prefixes = self.prefixes, None
        say(ERROR, f"prefixes are not stored any more, they are computed again: {type(error).__name__}: {error}")
        if prefixes is not None:
            prefixes.hurry()

    def begun(self, request_id: str) -> None:
        if self.prefixes is not None:
            with self.lock:
                self.prefixes.begun(request_id)

    def allocated(self, groups: Any) -> None:
        if self.keeper is not None:
            with self.lock:
                self.keeper.note_used(groups)

    def forget_stored(self) -> None:
        """vLLM's caches are reset, as after new weights."""
        if self.prefixes is not None:
            with self.lock:
                self.prefixes.reset()

    def finished(self, request_id: str, groups: Any) -> None:
        with self.lock:
            self._requests.discard(request_id)
            if self.keeper is not None:
                self.keeper.note_released(groups)
            if self.prefixes is not None:
                self.prefixes.ended(request_id)
                self.prefixes.may_be_unwritten = True

    def scheduled(self, output: Any) -> None:
        """A schedule is made, and its step not begun."""
        if self.keeper is None:
            return
        with self.lock:
            if self._failed:
                self._leave(self.keeper)
                return
            self._note_schedule(self.keeper, output)
            self._wants_step = False
            self._act(self.keeper, idle=False)
            empty = output.total_num_scheduled_tokens == 0
            self._idle = empty and not self._requests and self.keeper.all_free()

    def _act(self, keeper: Keeper, idle: bool) -> None:
        """The pool is at rest."""
        prefixes = self.prefixes
        if prefixes is not None:
            try:
                prefixes.collect()
            except Exception as error:
                self._end_store(error)
            keeper.stored, keeper.loaded = len(prefixes.shelf), prefixes.loaded
            keeper.store_errors, prefixes.errors = keeper.store_errors + prefixes.errors, 0
        keeper.settle()
        keeper.tick(idle)
        keeper.settle()
        if self.prefixes is not None and keeper.wish.write_ahead:
            self.prefixes.write_ahead()

    def _note_schedule(self, keeper: Keeper, output: Any) -> None:
        sizes = [group.kv_cache_spec.block_size for group in self._kv_cache_config.kv_cache_groups]
        for new in output.scheduled_new_reqs:
            shared = [new.num_computed_tokens // size for size in sizes]
            keeper.note_used(new.block_ids, shared)
        for groups in output.scheduled_cached_reqs.new_block_ids:
            if groups is not None:
                keeper.note_used(groups)
        if self.prefixes is not None:  # each may need a block more before its load is here
            self.prefixes.margin = 1 + len(output.num_scheduled_tokens)

    def _leave(self, keeper: Keeper) -> None:
        """The engine gets its pool back, and goes on without us."""
        if self.prefixes is not None:
            self.prefixes.give_up()
        keeper.put_all_back()
        self.keeper = self.prefixes = None

    def take_returned(self) -> List[int]:
        """Blocks that came back to the pool since the last call."""
        with self.lock:
            returned = self.keeper.returned if self.keeper is not None else []
            if self.keeper is not None:
                self.keeper.returned = []
            return returned

    def make_way(self, until_s: float) -> int:
        """For the scheduler class, before a schedule: takes what can be had, and answers how many blocks more are wanted.
        Under pressure it waits for pages that are on their way, until then at most: a step that begins before takes the
        processor from the threads that give them back, and new pages for itself."""
        with self.lock:
            if self.keeper is None:
                return 0
            self.keeper.preempts = True
            self._wait_for_pages(self.keeper, until_s)
            self.keeper.tick()
            self._wait_for_pages(self.keeper, until_s)
            return 0 if self.keeper.going else self.keeper.owed

    def made_way(self) -> None:
        """Whoever could be preempted was."""
        with self.lock:
            if self.keeper is not None:
                self.keeper.forgive()

    def _wait_for_pages(self, keeper: Keeper, until_s: float) -> None:
        """Without the lock: our thread hears of it. vLLM's thread is here meanwhile, and the pool at rest."""
        while keeper.going and keeper.wish.pressed and not self._failed and (left_s := until_s - time.monotonic()) > 0:
            self._pages_went.wait(left_s)

    # ---- our thread ------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            assert self._remote is not None
            poll = select.poll()
            peers = [*self._pages.peers, *self._store.peers]
            for descriptor in [self._remote.wake_fd, *(peer.fileno() for peer in peers)]:
                poll.register(descriptor, select.POLLIN)
            while not self._stops:
                waits = self._wants_step and self._hold is None
                ready = {descriptor for descriptor, _ in poll.poll(self._ask_again_ms if waits else None)}
                if not self._stops:
                    self._answer(ready)
        except Exception as error:  # the engine goes on without us
            if not self._stops:
                gone = isinstance(error, ConnectionError)  # as when an engine ends
                say(INFO if gone else ERROR, f"stopped following the memory pressure: {type(error).__name__}: {error}")
                self._failed = True
                with self.lock:
                    self._pages_went.notify_all()
            self._release()

    def _answer(self, ready: Set[int]) -> None:
        with self.lock:
            if self._remote is None or self.keeper is None:
                return
            if self._remote.wake_fd in ready:
                self._remote.silence()
                self._hurry()
            for peer in self._pages.peers:
                if peer.fileno() in ready:
                    self._hear_pages(peer)
            for peer in self._store.peers:
                if peer.fileno() in ready:
                    self._hear_store(peer)
            if self._idle or self.pool_is_guarded:
                self._wants_step = False
                self._act(self.keeper, self._idle)
            elif self._may_hold:
                if self._remote.wake_fd in ready:
                    self._wants_step, self._ask_again_ms = True, ASK_AGAIN_MS
                self._ask_for_step()

    def _hear_pages(self, peer: socket.socket) -> None:
        told = self._pages.hear(peer, channel.unpack_answer)
        if told is None or self.keeper is None:
            return
        number, answers = told
        if number == self._hold:
            self._hold = None
            self._within_step(all(value for _, value in answers))
        else:
            self.keeper.gave(sum(value for _, value in answers))
            self._pages_went.notify_all()
            self._wants_step = self._wants_step or self.keeper.wish.pressed  # and is there more?

    def _ask_for_step(self) -> None:
        if self._wants_step and self._hold is None:
            self._hold = self._pages.send(lambda number: channel.pack_bare(channel.HOLD, number))

    def _within_step(self, is_held: bool) -> None:
        """Every worker holds its step open, or one has none: then it is asked again, if no schedule comes before."""
        try:
            self._ask_again_ms = ASK_AGAIN_MS if is_held else min(2 * self._ask_again_ms, LONGEST_ASK_MS)
            self._gives_later = []
            if is_held and self.keeper is not None and self._wants_step:
                self._wants_step = False
                self._act(self.keeper, idle=False)
        finally:
            later, self._gives_later = self._gives_later or [], None
            self._release()
        for runs in later:  # the pool is the engine's again, and the step need not wait for pages
            self._give_now(runs)

    def _release(self) -> None:
        for peer in self._pages.peers:
            try:
                peer.send(channel.pack_bare(channel.RELEASE, 0), socket.MSG_DONTWAIT)
            except OSError:
                peer.close()  # it releases what it holds, then, too

    def _hear_store(self, peer: socket.socket) -> None:
        told = self._store.hear(peer, channel.unpack_moved)
        if told is not None and self.prefixes is not None:
            number, answers = told  # done where every worker has done it
            self.prefixes.moved(number, [max(errors) for errors in zip(*answers)])

    def _send(self, runs: List[channel.Run], worth: Dict[int, Any]) -> bool:
        """Pages go at once under pressure; else the prefixes among them are written first."""
        if self.prefixes is not None and self.keeper is not None and worth and not self.keeper.wish.pressed:
            if self.prefixes.write_then(worth, lambda: self._give_now(runs)):
                return True
        return self._give(runs)

    def _give(self, runs: List[channel.Run]) -> bool:
        if self._gives_later is not None:
            self._gives_later.append(runs)
            return True
        return self._pages.send(lambda number: channel.pack_give(number, runs)) is not None

    def _give_now(self, runs: List[channel.Run]) -> None:
        if not self._give(runs):
            raise OSError("the blocks that are written cannot be given back: a worker does not take the message")

    def _move(self, kind: int, pairs: List[Tuple[int, int]]) -> Optional[int]:
        return self._store.send(lambda number: channel.pack_move(kind, number, pairs))

    # ---- end -------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """On vLLM's thread, between two changes of the pool."""
        with self.lock:
            if self.keeper is not None:
                self._leave(self.keeper)
        self._end()

    def _end(self) -> None:
        self._stops = True
        with self.lock:
            self._pages.close()
            self._store.close()
            if self._remote is not None:
                self._remote.close()
                self._remote = None
