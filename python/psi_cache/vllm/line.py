"""Messages from the scheduler's half to every worker, and when all have answered. Its owner's lock guards it."""

from __future__ import annotations

import socket
from typing import Any, Dict, List, Optional, Tuple

from . import channel


class Line:
    """One message at a time or several, to every worker: each is over when all have answered."""

    def __init__(self, peers: List[socket.socket]) -> None:
        self.peers, self.number = peers, 0
        self._answers: Dict[int, Dict[int, Any]] = {}  # of each message: by descriptor

    def send(self, pack: Any) -> Optional[int]:
        """`pack` makes the packet of a number. None: it could not be sent to any. Raises OSError when only some have it: what
        they do of it is not known any more."""
        self.number += 1
        packet = pack(self.number)
        for count, peer in enumerate(self.peers):
            try:
                peer.send(packet, socket.MSG_DONTWAIT)
            except OSError:
                if count == 0:
                    return None
                raise
        self._answers[self.number] = {}
        return self.number

    def hear(self, peer: socket.socket, unpack: Any) -> Optional[Tuple[int, List[Any]]]:
        """A message's number and all its answers, with the last of them."""
        packet = channel.receive(peer)
        if not packet:
            raise ConnectionError("a worker is gone")
        number, answer = unpack(packet)
        if number not in self._answers:
            raise ValueError(f"a worker answers {number}, which nobody asked")
        answers = self._answers[number]
        answers[peer.fileno()] = answer
        if len(answers) < len(self.peers):
            return None
        del self._answers[number]
        return number, list(answers.values())

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        self.peers = []
