"""Cached prefixes go to the store and come back from it. In the scheduler's process, under its lock.

A block of vLLM's pool that is free and has a hash is a prefix that nobody writes: it is copied to the store ahead of need,
or when it goes and there is time. A request whose prefix the store has waits (vLLM asks again: "needs more time") while
its blocks are read into free blocks of the pool; then they get their hashes, and vLLM finds them as it finds every other
prefix. What cannot be read gets no hash, and vLLM computes it. So no request ever holds a block that is not whole, none
can fail of the store, and one that is aborted or preempted meanwhile needs no care.

The pool's blocks move only at its safe point (`collect`), and where a request is told to wait (`must_wait`).
"""

from __future__ import annotations

import errno
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import channel
from .keeper import Keeper
from .say import INFO, WARN, say
from .shelf import Shelf

PATIENCE_S = 5.0  # so long a request waits for the store
PAUSE_S, LONGEST_PAUSE_S = 10.0, 600.0  # no writes after one that failed
LOOK_AGAIN_S = 0.1  # for a request that waits for room, and of which the store had nothing
Send = Callable[[int, List[Tuple[int, int]]], Optional[int]]  # kind, pairs of block and record: the message's number


class Group(NamedTuple):
    """A KV cache group of vLLM's: its layers see the last `window` tokens, or all (0)."""

    block_tokens: int
    window: int

    def first_needed(self, blocks: int) -> int:
        """To go on after so many blocks."""
        return max(0, blocks - -(-(self.window - 1) // self.block_tokens)) if self.window else 0


class Item(NamedTuple):
    """One block of one request on its way from the store."""

    block: Any
    key: Any
    record: int
    group: int
    index: int


class Put:
    """Blocks on their way to the store. `whole`: nobody else can have them meanwhile."""

    def __init__(self, items: List[Tuple[Any, Any, int]], whole: bool) -> None:
        self.items, self.whole = items, whole  # block, key, record
        self.is_torn = False  # their pages went before they were written


class Load:
    def __init__(self, request: Any, items: List[Item], pinned: List[Any], now_s: float) -> None:
        self.request, self.items, self.pinned, self.began_s = request, items, pinned, now_s
        self.errors: Dict[int, int] = {}  # of each item that came
        self.is_stale = False  # the prefix cache was reset meanwhile
        self.is_over = False

    @property
    def is_done(self) -> bool:
        return len(self.errors) == len(self.items)


def key_of(block_hash: bytes, group: int) -> bytes:
    """As vLLM names a cached block (make_block_hash_with_group_id); a name that is another finds nothing."""
    return block_hash + group.to_bytes(4, "big")


class Prefixes:
    def __init__(
        self, keeper: Keeper, groups: Sequence[Group], records: int, send: Send, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.keeper, self.pool, self.groups = keeper, keeper.pool, list(groups)
        self.shelf, self._send, self._clock = Shelf(records), send, clock
        self._puts: Dict[int, Put] = {}
        self._gets: Dict[int, Tuple[Load, int]] = {}  # load and its first item
        self._loads: Dict[str, Load] = {}  # by request that waits for it, or for which it is over
        self._open: List[Load] = []  # their blocks are ours
        self._nothing_until_s: Dict[str, float] = {}  # by request that was looked for in vain
        self._map = self.pool.cached_block_hash_to_block
        self.may_be_unwritten = False  # there may be blocks to write: a request ended since the last look
        self._pause_s, self._again_s, self._said = PAUSE_S, 0.0, False
        self._queue: List[Tuple[Any, Any]] = []  # going blocks that are to be written first
        self._then: Optional[Callable[[], None]] = None
        self.margin = 1  # free blocks that a load leaves to what runs
        self.loaded = self.errors = 0  # blocks that came back; writes and reads that failed, since the last report

    # ---- to the store ------------------------------------------------------------------------------

    def write_ahead(self) -> None:
        """The blocks that would go first, one message at a time."""
        self._look_for_reset()
        if self._puts or self._queue or not self.may_be_unwritten or self._clock() < self._again_s:
            return
        found: List[Tuple[Any, Any]] = []
        for number in self.keeper.touched:
            block = self.pool.blocks[number]
            if block.ref_cnt == 0 and self._is_whole(block) and block.block_hash not in self.shelf:
                found.append((block, block.block_hash))
                if len(found) >= channel.MOST_PAIRS:
                    break
        if len(found) < channel.MOST_PAIRS:
            self.may_be_unwritten = False
        self._put(found, whole=False)

    def _is_whole(self, block: Any) -> bool:
        """Full, and under one name."""
        if block.block_hash is None or block.block_id in getattr(self.pool, "cached_block_hashes_by_block", ()):
            return False
        tokens = getattr(block, "block_hash_num_tokens", None)
        return tokens is None or tokens % self.groups[0].block_tokens == 0

    def write_then(self, worth: Dict[int, Any], then: Callable[[], None]) -> bool:
        """Blocks that are going, by their number, with their hashes: they are written first. False: there is nothing to
        be written, and `then` is not called."""
        self._look_for_reset()
        self._queue = [(self.pool.blocks[n], key) for n, key in worth.items() if key not in self.shelf]
        if not self._queue or self._clock() < self._again_s:
            self._queue = []
            return False
        self._then = then
        self._go_on_writing()
        return True

    @property
    def is_writing_first(self) -> bool:
        return self._then is not None

    def hurry(self) -> None:
        """There is no time for the disk any more."""
        self._queue = []
        for put in self._puts.values():
            put.is_torn = put.is_torn or put.whole
        self._end_writing_first()

    def _go_on_writing(self) -> None:
        if any(put.whole for put in self._puts.values()):
            return
        part, self._queue = self._queue[: channel.MOST_PAIRS], self._queue[channel.MOST_PAIRS :]
        if not (part and self._clock() >= self._again_s and self._put(part, whole=True)):
            self._queue = []
            self._end_writing_first()

    def _end_writing_first(self) -> None:
        then, self._then = self._then, None
        if then is not None:
            then()

    def _put(self, found: List[Tuple[Any, Any]], whole: bool) -> bool:
        items = []
        for block, key in found:
            record = self.shelf.take()
            if record is not None:
                items.append((block, key, record))
        number = self._send(channel.PUT, [(block.block_id, record) for block, _, record in items]) if items else None
        if number is None:
            for _, _, record in items:
                self.shelf.hand_back(record)
            return False
        self._puts[number] = Put(items, whole)
        return True

    # ---- from the store ----------------------------------------------------------------------------

    def must_wait(self, request: Any, tokens_here: int) -> bool:
        """vLLM asks for a request that it would begin, of which its own cache has so many tokens. Where this answers True
        the request must not be begun in this schedule: blocks that it looked up may be others by now."""
        self._look_for_reset()
        load = self._loads.get(request.request_id)
        if load is not None:
            if not load.is_over and not load.is_done and self._clock() - load.began_s > PATIENCE_S:
                load.is_over = True  # the request goes on without it
            return not load.is_over
        if not len(self.shelf) or getattr(request, "skip_reading_prefix_cache", False):
            return False
        if self._clock() < self._nothing_until_s.get(request.request_id, 0.0):
            return False
        wanted, blocks = self._wanted(request)
        if not wanted or blocks * self.groups[0].block_tokens <= tokens_here:
            self._nothing_until_s[request.request_id] = self._clock() + LOOK_AGAIN_S
            return False
        return self._are_coming(request, wanted) or self._begin(request, wanted, blocks)

    def _are_coming(self, request: Any, wanted: List[Tuple[int, int]]) -> bool:
        """Another request that begins alike has some of them read just now."""
        since_s = self._clock() - PATIENCE_S
        coming = {item.key for load in self._open if load.began_s >= since_s for item in load.items}
        return any(key_of(request.block_hashes[index], group) in coming for group, index in wanted)

    def begun(self, request_id: str) -> None:
        """It runs. Should it come again (preempted), it may load again."""
        self._loads.pop(request_id, None)
        self._nothing_until_s.pop(request_id, None)

    ended = begun  # whatever is on its way comes all the same

    def _have(self, request: Any, group: int, index: int) -> Tuple[Any, bool]:
        """The block that the pool has, and whether the pool or the store has it."""
        block_hash = request.block_hashes[index]
        found = self.pool.get_cached_block(block_hash, [group])
        return (found[0], True) if found else (None, key_of(block_hash, group) in self.shelf)

    def _wanted(self, request: Any) -> Tuple[List[Tuple[int, int]], int]:
        """Group and index of what is to be read, and how many blocks of the text are there then."""
        most = min(len(request.block_hashes), (request.num_tokens - 1) // self.groups[0].block_tokens)
        groups = list(enumerate(self.groups))
        blocks = 0
        while blocks < most and all(self._have(request, g, blocks)[1] for g, group in groups if not group.window):
            blocks += 1
        shrinks = True
        while shrinks:  # a window with a hole in it: no text goes on there
            shrinks = False
            for g, group in groups:
                for index in range(blocks - 1, group.first_needed(blocks) - 1, -1) if group.window else ():
                    if not self._have(request, g, index)[1]:
                        blocks, shrinks = index, True
                        break
        needed = [(g, i) for g, group in groups for i in range(group.first_needed(blocks), blocks)]
        return [(g, i) for g, i in needed if self._have(request, g, i)[0] is None], blocks

    def _begin(self, request: Any, wanted: List[Tuple[int, int]], blocks: int) -> bool:
        here = [self._have(request, g, i)[0] for g, group in enumerate(self.groups)
                for i in range(group.first_needed(blocks), blocks)]
        pinned = [block for block in here if block is not None and block.ref_cnt == 0]
        self.pool.touch(pinned)  # else the new blocks may be made of these
        if self.pool.get_num_free_blocks() - len(wanted) < self.margin:
            self.pool.free_blocks(list(reversed(pinned)))
            return False
        taken = self.pool.get_new_blocks(len(wanted))
        self.keeper.note_used([[block.block_id for block in taken]])
        self.keeper.held += len(taken) + len(pinned)
        self.keeper.forget_returned({block.block_id for block in taken})
        items = []
        for block, (group, index) in zip(taken, wanted):
            key = key_of(request.block_hashes[index], group)
            items.append(Item(block, key, self.shelf.hold(key), group, index))
        load = Load(request, items, pinned, self._clock())
        self._loads[request.request_id] = load
        self._open.append(load)
        self._ask_for(load)
        return True

    def _ask_for(self, load: Load) -> None:
        for first in range(0, len(load.items), channel.MOST_PAIRS):
            part = load.items[first : first + channel.MOST_PAIRS]
            number = self._send(channel.GET, [(item.block.block_id, item.record) for item in part])
            if number is None:  # their line is full
                load.errors.update((first + i, errno.EAGAIN) for i in range(len(part)))
            else:
                self._gets[number] = (load, first)

    # ---- what the workers say ------------------------------------------------------------------------

    def moved(self, number: int, errors: Sequence[int]) -> None:
        """Touches no pool: any thread, under the owner's lock."""
        if number in self._puts:
            self._written(self._puts.pop(number), errors)
        elif number in self._gets:
            load, first = self._gets.pop(number)
            load.errors.update((first + i, error) for i, error in enumerate(errors))

    def _written(self, put: Put, errors: Sequence[int]) -> None:
        for (block, key, record), error in zip(put.items, errors):
            # The very name that it had: whoever takes a block for something else takes its name off first.
            is_right = not put.is_torn and (put.whole or block.block_hash is key)
            if error == 0 and is_right:
                self.shelf.put(key, record)
            else:
                self.shelf.hand_back(record)
        bad = next((error for error in errors if error), 0)
        if bad:
            self._pause(bad)
        else:
            self._pause_s = PAUSE_S
            self._said = False
        if put.whole and self._then is not None:
            self._go_on_writing()

    def _pause(self, error: int) -> None:
        self.errors += error != errno.EDQUOT
        self._again_s = self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self.may_be_unwritten = True
        if not self._said:
            self._said = True
            why = "the hour's bound is reached" if error == errno.EDQUOT else errno.errorcode.get(error, str(error))
            say(INFO if error == errno.EDQUOT else WARN,
                f"prefixes cannot be stored ({why}): those that go meanwhile are computed again")

    # ---- the safe point ------------------------------------------------------------------------------

    def collect(self) -> None:
        """What was read gets its name, and goes to the pool. The pool must be at rest."""
        self._look_for_reset()
        for load in self._open:
            if load.is_done:
                self._land(load)
        self._open = [load for load in self._open if not load.is_done]

    def _land(self, load: Load) -> None:
        load.is_over = True
        try:
            for place, item in enumerate(load.items):
                self._land_one(load, item, load.errors[place])
        finally:
            self._let_go(load)

    def _land_one(self, load: Load, item: Item, error: int) -> None:
        is_lost = error not in (0, errno.EAGAIN)
        self.shelf.let_go(item.key, item.record, is_lost)
        self.errors += is_lost
        if error == 0 and not load.is_stale:
            self._name(load.request, item)
        elif error != 0:
            self.keeper.note_unclean(item.block.block_id)

    def _let_go(self, load: Load) -> None:
        blocks = [item.block for item in load.items] + load.pinned
        self.keeper.held -= len(blocks)
        self.pool.free_blocks(list(reversed(blocks)))

    def give_up(self) -> None:
        """The engine gets its pool back, but for what a worker may still write."""
        for load in self._open:
            if load.is_done:
                self._let_go(load)
            else:
                self.pool.free_blocks(list(reversed(load.pinned)))
        self._open = []

    def _name(self, request: Any, item: Item) -> None:
        hashes = request.block_hashes
        if item.index >= len(hashes) or key_of(hashes[item.index], item.group) != item.key:
            return  # another text by now
        if self.pool.get_cached_block(hashes[item.index], [item.group]):
            return  # somebody computed it meanwhile
        row = [self.pool.blocks[0]] * item.index + [item.block]
        self.pool.cache_full_blocks(request=request, blocks=row, num_cached_blocks=item.index,
                                    num_full_blocks=item.index + 1, block_size=self.groups[0].block_tokens,
                                    kv_cache_group_id=item.group)
        self.loaded += 1

    def _look_for_reset(self) -> None:
        """vLLM tells no connector that its prefix cache was reset, as after new weights: but the table is another then."""
        if self.pool.cached_block_hash_to_block is not self._map:
            self.reset()

    def reset(self) -> None:
        self._map = self.pool.cached_block_hash_to_block
        free = self.shelf.clear()
        for first in range(0, len(free), channel.MOST_PAIRS):  # before any of them is written anew: they come in order
            self._send(channel.FORGET, [(0, record) for record in free[first : first + channel.MOST_PAIRS]])
        for put in self._puts.values():
            put.is_torn = True
        for load in self._open:
            load.is_stale = True
        self._queue = []
