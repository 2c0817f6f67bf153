"""The half in each worker's process: threads that give pages back, and carry blocks to the store and from it, when the
scheduler's half asks. They need nothing of vLLM but the tensors, and never wait for a step: the blocks that they are told
of are written by nobody meanwhile."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any, Dict, List, Optional, Sequence

from . import channel
from .pages import NotUnderstood, Pages, planes_of
from .records import Records
from .say import INFO, WARN, say
from .step import Step

SHUT_DOWN_S = 10.0  # for the threads to end


class WorkerHalf:
    def __init__(self, vllm_config: Any, kv_cache_config: Any, engine_id: str, wants_store: bool = True) -> None:
        self._blocks = kv_cache_config.num_blocks
        self._rank = getattr(vllm_config.parallel_config, "rank", 0)
        self._engine_id, self._wants_store = engine_id, wants_store
        self._listener: Optional[socket.socket] = None
        self._peers: List[socket.socket] = []
        self._serving, self._lock = 0, threading.Lock()
        self._threads: List[threading.Thread] = []
        self._stops = False
        self.step = Step()
        self.pages: Optional[Pages] = None
        self.records: Optional[Records] = None

    def register(self, tensors: Dict[str, Any]) -> None:
        """The KV cache is there. Whatever is wrong with it is said in the hello, once, by the scheduler's half."""
        hello: Dict[str, Any] = {"blocks": self._blocks, "block_bytes": 0, "why": "", "records": 0}
        try:
            how = os.environ.get("PSI_CACHE_VLLM_PAGES", "drop")
            self.pages = Pages(planes_of(tensors, self._blocks), self._blocks, how)
            hello["block_bytes"] = self.pages.block_bytes
            hello["records"] = self._open_store(self.pages.block_bytes)
            gone = self.pages.commit_by_touch()
            say(INFO, f"the KV cache is committed by touch: {gone >> 20} MiB went back to the system")
        except (NotUnderstood, OSError) as error:
            self.pages, hello["why"] = None, str(error)
        try:
            self._listener = channel.listen(self._engine_id, self._rank)
        except OSError as error:
            say(WARN, f"worker {self._rank} cannot be told what to give back ({error}); is engine_id used twice?")
            return
        self._start(self._answer_calls, hello)

    def _open_store(self, block_bytes: int) -> int:
        """How many blocks it takes; 0: there is none."""
        if not self._wants_store:
            return 0
        try:
            self.records = Records(block_bytes, self._blocks)
        except OSError as error:
            say(WARN, f"worker {self._rank} has no store, prefixes that go are computed again: {error.strerror}")
            return 0
        return len(self.records)

    def _start(self, run: Any, argument: Any) -> None:
        thread = threading.Thread(target=run, args=(argument,), name="psi-pages", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _answer_calls(self, hello: Dict[str, Any]) -> None:
        """One for pages, one for the store."""
        try:
            assert self._listener is not None
            while len(self._peers) < 2:
                peer = channel.accept(self._listener, hello)
                if peer is not None:
                    self._peers.append(peer)
                    self._count(+1)
                    self._start(self._serve, peer)
            self._listener.close()
        except Exception as error:
            self._say_end(error)

    def _count(self, change: int) -> None:
        """Threads that may be at the store. It goes with the last: nobody can ask for it any more."""
        with self._lock:
            self._serving += change
            if self._serving == 0 and self.records is not None:
                self.records.close()
                self.records = None

    def _say_end(self, error: Exception) -> None:
        if not self._stops:
            say(WARN, f"worker {self._rank} gives nothing back any more: {type(error).__name__}: {error}")

    def _serve(self, peer: socket.socket) -> None:
        try:
            while packet := channel.receive(peer):
                answer = self._do(packet)
                if answer:
                    peer.send(answer)
        except Exception as error:  # the scheduler's half sees the closed socket
            self._say_end(error)
        finally:
            self.step.release()
            peer.close()
            self._count(-1)

    def _do(self, packet: bytes) -> bytes:
        kind = channel.kind_of(packet)
        if kind == channel.HOLD:
            return channel.pack_held(channel.unpack_bare(packet), self.step.hold())
        if kind == channel.RELEASE:
            self.step.release()
            return b""
        if kind == channel.GIVE:
            number, runs = channel.unpack_give(packet)
            return channel.pack_gave(number, self.pages.give(runs) if self.pages is not None else 0)
        kind, number, pairs = channel.unpack_move(packet)
        assert self.pages is not None and self.records is not None
        if kind == channel.FORGET:
            for _, record in pairs:
                self.records.forget(record)
            return channel.pack_moved(number, [0] * len(pairs))
        move = self.records.put if kind == channel.PUT else self.records.get
        return channel.pack_moved(number, [move(record, self.pages.parts(block)) for block, record in pairs])

    def clean(self, blocks: Sequence[int]) -> None:
        """Poisoned blocks that a step may use from now on. As in any vLLM what lies in a new block must be numbers: the
        attention of CPUs multiplies what is behind the text's end by zero."""
        for block in blocks:
            if self.pages is not None:
                self.pages.clean(block)

    def shut_down(self) -> None:
        """Nobody is at the cache's memory afterwards: vLLM may free it (unless a disk does not answer for so long)."""
        self._stops = True
        self.step.release()
        for end in (self._listener, *self._peers):
            if end is not None:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()
        until = time.monotonic() + SHUT_DOWN_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._count(0)
