"""The socket between the halves: the scheduler asks for pages, each worker says what went.

One Unix socket a worker, in the abstract name space, named after the engine and the worker's rank, so nothing has to be
set and no file is left behind; both ends look at the other's user. The scheduler calls twice: what goes to the store and
comes from it has a line of its own, so that no page waits for a disk. One message a packet:

  worker -> scheduler, once      HELLO, JSON: blocks, block_bytes, why (a text: the worker cannot), records (of its store)
  scheduler -> worker            GIVE, number, runs of blocks (see Run)
  worker -> scheduler            GAVE, number, bytes that were in memory and are not any more
  scheduler -> worker            HOLD, number: the step that runs is not to end before RELEASE
  worker -> scheduler            HELD, number, 1, or 0: none runs
  scheduler -> worker            PUT, GET or FORGET, number, pairs of block and record
  worker -> scheduler            MOVED, number, an errno a pair (0: done)
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

GIVE, GAVE, PUT, GET, MOVED, HOLD, HELD, RELEASE, FORGET = range(1, 10)
_HEADER = struct.Struct("<II")
_RUN = struct.Struct("<IIBB")
_GAVE = struct.Struct("<IIQ")
_PAIR = struct.Struct("<II")
MOST_PAIRS = 32  # a packet: other work comes between
MOST_RUNS = 4096  # a packet; a socket's buffer takes it
_PACKET = 1 << 16


class Run(NamedTuple):
    """Blocks first, first + 1, ... that go together. A page that is shared with a neighbour may go only if the
    neighbour cannot be used meanwhile, either."""

    first: int
    blocks: int
    with_left: bool = False
    with_right: bool = False


def address(engine_id: str, rank: int) -> str:
    return f"\0psi-cache-vllm-{engine_id}-{rank}"


def _same_user(peer: socket.socket) -> bool:
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.geteuid())


def listen(engine_id: str, rank: int) -> socket.socket:
    """Raises OSError (EADDRINUSE: another engine of the same name)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(address(engine_id, rank))
        listener.listen(2)
    except OSError:
        listener.close()
        raise
    return listener


def accept(listener: socket.socket, hello: Dict[str, Any]) -> Optional[socket.socket]:
    """A call of the scheduler's, answered; None: somebody else's."""
    peer, _ = listener.accept()
    if not _same_user(peer):
        peer.close()
        return None
    peer.send(json.dumps(hello).encode())
    return peer


def connect(engine_id: str, rank: int, timeout_s: float = 10.0) -> Tuple[socket.socket, Dict[str, Any]]:
    """The worker's end and its hello. Raises OSError: no such worker on this machine, or another user's."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        peer.settimeout(timeout_s)
        peer.connect(address(engine_id, rank))
        if not _same_user(peer):
            raise PermissionError("it belongs to another user")
        hello = json.loads(peer.recv(_PACKET).decode())
    except ValueError as error:
        peer.close()
        raise OSError(f"its hello is not understood: {error}") from None
    except OSError:
        peer.close()
        raise
    return peer, hello


def pack_give(number: int, runs: Iterable[Run]) -> bytes:
    return _HEADER.pack(GIVE, number) + b"".join(_RUN.pack(*run) for run in runs)


def unpack_give(packet: bytes) -> Tuple[int, List[Run]]:
    """Raises ValueError for anything else."""
    if len(packet) < _HEADER.size or (len(packet) - _HEADER.size) % _RUN.size != 0:
        raise ValueError(f"a packet of {len(packet)} bytes")
    kind, number = _HEADER.unpack_from(packet)
    if kind != GIVE:
        raise ValueError(f"a message of kind {kind}")
    runs = _RUN.iter_unpack(packet[_HEADER.size :])
    return number, [Run(first, blocks, bool(left), bool(right)) for first, blocks, left, right in runs]


def pack_gave(number: int, gone_bytes: int) -> bytes:
    return _GAVE.pack(GAVE, number, gone_bytes)


def pack_held(number: int, is_held: bool) -> bytes:
    return _GAVE.pack(HELD, number, is_held)


def unpack_answer(packet: bytes) -> Tuple[int, Tuple[int, int]]:
    """Of GAVE and HELD: number, and kind with its value. Raises ValueError for anything else."""
    if len(packet) != _GAVE.size:
        raise ValueError(f"a packet of {len(packet)} bytes")
    kind, number, value = _GAVE.unpack(packet)
    if kind not in (GAVE, HELD):
        raise ValueError(f"a message of kind {kind}")
    return number, (kind, value)


def pack_bare(kind: int, number: int) -> bytes:
    """HOLD and RELEASE."""
    return _HEADER.pack(kind, number)


def unpack_bare(packet: bytes) -> int:
    if len(packet) != _HEADER.size:
        raise ValueError(f"a packet of {len(packet)} bytes")
    return int(_HEADER.unpack(packet)[1])


def pack_move(kind: int, number: int, pairs: Iterable[Tuple[int, int]]) -> bytes:
    return _HEADER.pack(kind, number) + b"".join(_PAIR.pack(*pair) for pair in pairs)


def unpack_move(packet: bytes) -> Tuple[int, int, List[Tuple[int, int]]]:
    """Kind, number, pairs. Raises ValueError for anything else."""
    if len(packet) < _HEADER.size or (len(packet) - _HEADER.size) % _PAIR.size != 0:
        raise ValueError(f"a packet of {len(packet)} bytes")
    kind, number = _HEADER.unpack_from(packet)
    if kind not in (PUT, GET, FORGET):
        raise ValueError(f"a message of kind {kind}")
    return kind, number, [(block, record) for block, record in _PAIR.iter_unpack(packet[_HEADER.size :])]


def pack_moved(number: int, errors: Iterable[int]) -> bytes:
    return _HEADER.pack(MOVED, number) + bytes(min(error, 255) for error in errors)


def unpack_moved(packet: bytes) -> Tuple[int, List[int]]:
    """Number and an errno a pair. Raises ValueError for anything else."""
    if len(packet) < _HEADER.size:
        raise ValueError(f"a packet of {len(packet)} bytes")
    kind, number = _HEADER.unpack_from(packet)
    if kind != MOVED:
        raise ValueError(f"a message of kind {kind}")
    return number, list(packet[_HEADER.size :])


def kind_of(packet: bytes) -> int:
    """Of a message from the scheduler; 0 for what is too short to be one."""
    return int(_HEADER.unpack_from(packet)[0]) if len(packet) >= _HEADER.size else 0


def receive(peer: socket.socket) -> bytes:
    """One packet; b"": the other end is gone."""
    try:
        return peer.recv(_PACKET)
    except ConnectionError:
        return b""
