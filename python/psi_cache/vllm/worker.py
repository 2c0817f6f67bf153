"""The half in each worker's process: a thread that gives pages back when the scheduler's half asks, and answers. It needs
nothing of vLLM but the tensors, and never waits for a step: the blocks that it is told of belong to nobody."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any, Dict, Optional, Sequence

from . import channel
from .pages import NotUnderstood, Pages, planes_of
from .say import INFO, WARN, say


class WorkerHalf:
    def __init__(self, vllm_config: Any, kv_cache_config: Any, engine_id: str) -> None:
        self._blocks = kv_cache_config.num_blocks
        self._rank = getattr(vllm_config.parallel_config, "rank", 0)
        self._engine_id = engine_id
        self._listener: Optional[socket.socket] = None
        self._peer: Optional[socket.socket] = None
        self._stops = False
        self.pages: Optional[Pages] = None

    def register(self, tensors: Dict[str, Any]) -> None:
        """The KV cache is there. Whatever is wrong with it is said in the hello, once, by the scheduler's half."""
        hello: Dict[str, Any] = {"blocks": self._blocks, "block_bytes": 0, "why": ""}
        try:
            how = os.environ.get("PSI_CACHE_VLLM_PAGES", "drop")
            self.pages = Pages(planes_of(tensors, self._blocks), self._blocks, how)
            hello["block_bytes"] = self.pages.block_bytes
            gone = self.pages.commit_by_touch()
            say(INFO, f"the KV cache is committed by touch: {gone >> 20} MiB went back to the system")
        except (NotUnderstood, OSError) as error:
            self.pages, hello["why"] = None, str(error)
        try:
            self._listener = channel.listen(self._engine_id, self._rank)
        except OSError as error:
            say(WARN, f"worker {self._rank} cannot be told what to give back ({error}); is engine_id used twice?")
            return
        threading.Thread(target=self._serve, args=(hello,), name="psi-pages", daemon=True).start()

    def _serve(self, hello: Dict[str, Any]) -> None:
        try:
            assert self._listener is not None
            while self._peer is None:
                self._peer = channel.accept(self._listener, hello)
            self._listener.close()
            while packet := channel.receive(self._peer):
                number, runs = channel.unpack_give(packet)
                gone = self.pages.give(runs) if self.pages is not None else 0
                self._peer.send(channel.pack_gave(number, gone))
        except Exception as error:  # the scheduler's half sees the closed socket
            if not self._stops:
                say(WARN, f"worker {self._rank} gives nothing back any more: {type(error).__name__}: {error}")
        finally:
            if self._peer is not None:
                self._peer.close()

    def clean(self, blocks: Sequence[int]) -> None:
        """Poisoned blocks that a step may use from now on. As in any vLLM what lies in a new block must be numbers: the
        attention of CPUs multiplies what is behind the text's end by zero."""
        for block in blocks:
            if self.pages is not None:
                self.pages.clean(block)

    def shut_down(self) -> None:
        self._stops = True
        for end in (self._listener, self._peer):
            if end is not None:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()
