"""The half in the scheduler's process. vLLM's own thread calls it at its hooks, between two changes of the block pool;
a thread of ours waits for the controller and for the workers, and acts itself only while the engine is idle.

Idle is known, not guessed: the last schedule was empty, no request is there, and every block that is not withheld is free.
The first thing that a new request does is to call on_new_request, which takes the lock; so nobody else is at the pool.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import Any, Dict, List, Optional, Set

from . import channel, hooks
from .keeper import POLICIES, Keeper
from .remote import Remote
from .say import ERROR, INFO, WARN, say


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


class SchedulerHalf:
    def __init__(self, vllm_config: Any, kv_cache_config: Any, engine_id: str, extra: Dict[str, Any]) -> None:
        self._vllm_config, self._kv_cache_config = vllm_config, kv_cache_config
        self._engine_id, self._extra = engine_id, extra
        self.keeper: Optional[Keeper] = None
        self.lock = threading.RLock()
        self._remote: Optional[Remote] = None
        self._peers: List[socket.socket] = []
        self._number, self._gone_bytes = 0, 0
        self._answers: Set[int] = set()
        self._requests: Set[str] = set()
        self._idle = False
        self._thread: Optional[threading.Thread] = None
        self._stops = self._failed = False
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
        self._thread = threading.Thread(target=self._watch, name="psi-vllm", daemon=True)
        self._idle = True  # nobody used the pool yet
        self._thread.start()
        say(
            INFO,
            f"{blocks} blocks of {block_bytes // 1024} KiB follow the memory pressure, {policy}; "
            f"{self.keeper.floor_blocks} always stay in use (one longest request)",
        )

    def _connect(self) -> int:
        """All workers' bytes of a block. Raises Unfit."""
        block_bytes = 0
        for rank in range(self._vllm_config.parallel_config.world_size):
            try:
                peer, hello = channel.connect(self._engine_id, rank)
            except OSError as error:
                raise Unfit(f"worker {rank} is not reached on this machine ({error})") from None
            self._peers.append(peer)
            if hello.get("why"):
                raise Unfit(hello["why"])
            if hello.get("blocks") != self._kv_cache_config.num_blocks:
                raise Unfit(f"worker {rank} has {hello.get('blocks')} blocks, the scheduler {self._kv_cache_config.num_blocks}")
            block_bytes += hello["block_bytes"]
        return block_bytes

    # ---- vLLM's thread ---------------------------------------------------------------------------

    def new_request(self, request_id: str) -> None:
        with self.lock:
            self._idle = False
            self._requests.add(request_id)

    def allocated(self, groups: Any) -> None:
        if self.keeper is not None:
            with self.lock:
                self.keeper.note_used(groups)

    def finished(self, request_id: str, groups: Any) -> None:
        with self.lock:
            self._requests.discard(request_id)
            if self.keeper is not None:
                self.keeper.note_released(groups)

    def scheduled(self, output: Any) -> None:
        """A schedule is made, and its step not begun."""
        if self.keeper is None:
            return
        with self.lock:
            if self._failed:
                self._leave(self.keeper)
                return
            self._note_schedule(self.keeper, output)
            self.keeper.tick()
            self.keeper.settle()
            empty = output.total_num_scheduled_tokens == 0
            self._idle = empty and not self._requests and self.keeper.all_free()

    def _note_schedule(self, keeper: Keeper, output: Any) -> None:
        sizes = [group.kv_cache_spec.block_size for group in self._kv_cache_config.kv_cache_groups]
        for new in output.scheduled_new_reqs:
            shared = [new.num_computed_tokens // size for size in sizes]
            keeper.note_used(new.block_ids, shared)
        for groups in output.scheduled_cached_reqs.new_block_ids:
            if groups is not None:
                keeper.note_used(groups)

    def _leave(self, keeper: Keeper) -> None:
        """The engine gets its pool back, and goes on without us."""
        keeper.put_all_back()
        self.keeper = None

    def take_returned(self) -> List[int]:
        """Blocks that came back to the pool since the last call."""
        with self.lock:
            returned = self.keeper.returned if self.keeper is not None else []
            if self.keeper is not None:
                self.keeper.returned = []
            return returned

    def make_way(self) -> int:
        """For the scheduler class: takes what can be had, and answers how many blocks more are wanted."""
        if self.keeper is None:
            return 0
        with self.lock:
            self.keeper.preempts = True
            self.keeper.tick()
            return 0 if self.keeper.going else self.keeper.owed

    # ---- our thread ------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            assert self._remote is not None
            poll = select.poll()
            for descriptor in [self._remote.wake_fd, *(peer.fileno() for peer in self._peers)]:
                poll.register(descriptor, select.POLLIN)
            while not self._stops:
                ready = {descriptor for descriptor, _ in poll.poll()}
                if not self._stops:
                    self._answer(ready)
        except Exception as error:  # the engine goes on without us
            if not self._stops:
                gone = isinstance(error, ConnectionError)  # as when an engine ends
                say(INFO if gone else ERROR, f"stopped following the memory pressure: {type(error).__name__}: {error}")
                self._failed = True

    def _answer(self, ready: Set[int]) -> None:
        with self.lock:
            if self._remote is None or self.keeper is None:
                return
            if self._remote.wake_fd in ready:
                self._remote.silence()
            for peer in self._peers:
                if peer.fileno() in ready:
                    self._hear(peer)
            if self._idle or self.pool_is_guarded:
                self.keeper.settle()
                self.keeper.tick(idle=self._idle)
                self.keeper.settle()

    def _hear(self, peer: socket.socket) -> None:
        packet = channel.receive(peer)
        if not packet:
            raise ConnectionError("a worker is gone")
        number, gone_bytes = channel.unpack_gave(packet)
        if number != self._number:
            raise ValueError(f"a worker answers {number}, not {self._number}")
        self._answers.add(peer.fileno())
        self._gone_bytes += gone_bytes
        if len(self._answers) == len(self._peers) and self.keeper is not None:
            self.keeper.gave(self._gone_bytes)

    def _send(self, runs: List[channel.Run]) -> bool:
        self._number += 1
        self._answers, self._gone_bytes = set(), 0
        packet = channel.pack_give(self._number, runs)
        for count, peer in enumerate(self._peers):
            try:
                peer.send(packet, socket.MSG_DONTWAIT)
            except OSError:
                if count == 0:
                    return False
                raise  # some have it: what went is not known any more
        return True

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
            for peer in self._peers:
                peer.close()
            self._peers = []
            if self._remote is not None:
                self._remote.close()
                self._remote = None
