"""Which blocks have memory, which are withheld, and which go next. Knows the block pool's four calls and numbers, no
system and no process; guarded by its owner's lock (scheduler.py).

A block of vLLM's pool is, for us, in one of four places:

  empty     in the pool, without pages: never used, or given back
  touched   in the pool or with a request, with pages
  going     taken out of the pool, its pages on their way to the system
  withheld  taken out of the pool, without pages

    empty -> touched   vLLM allocates it, and writes it
    touched -> going   a trim chose it (its cached prefix is forgotten)
    empty -> going     under pressure: a block without memory must not get any
    going -> withheld  the workers said that its pages are gone
    withheld -> empty  there is room again; or the floor needs it

One message is under way at a time, and nothing comes back to the pool meanwhile: so a page that two blocks share goes
only while neither can be written.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set

from .channel import MOST_RUNS, Run
from .remote import Counts, Wish

POLICIES = ("lru", "fifo")


def runs_of(blocks: Iterable[int], out: Callable[[int], bool]) -> List[Run]:
    """Neighbours together. `out` says of a block beside a run that it cannot be used meanwhile."""
    runs: List[Run] = []
    for block in sorted(blocks):
        if runs and runs[-1].first + runs[-1].blocks == block:
            runs[-1] = runs[-1]._replace(blocks=runs[-1].blocks + 1)
        else:
            runs.append(Run(block, 1))
    return [run._replace(with_left=out(run.first - 1), with_right=out(run.first + run.blocks)) for run in runs]


class Keeper:
    """`send` takes the runs to give back, and the prefixes' names of those blocks that had one; it answers whether it
    could (the answer comes through `gave`)."""

    def __init__(
        self,
        pool: Any,
        block_bytes: int,
        floor_blocks: int,
        report: Callable[[Counts], Wish],
        send: Callable[[List[Run], Dict[int, Any]], bool],
        policy: str = "lru",
    ) -> None:
        self.pool, self.block_bytes, self.policy = pool, block_bytes, policy
        self.blocks = sum(not block.is_null for block in pool.blocks)
        self.floor_blocks = min(floor_blocks, self.blocks)
        self._report, self._send = report, send
        self.touched: "OrderedDict[int, None]" = OrderedDict()  # the first goes first
        self.going: Dict[int, Any] = {}
        self.withheld: Dict[int, Any] = {}
        self._going_touched = 0
        self._given_bytes = self._taken_bytes = 0  # since the last report
        self.given_bytes = 0  # in all
        self._out_bytes = 0  # given back, and not taken again
        self.preempts = False  # somebody preempts for what is owed: a running request's blocks can go, too
        self.owed = 0  # blocks that a trim wanted and could not get; until there is no pressure
        self.wish = Wish()
        self._kept = Wish()  # asked for while something was already going
        self.returned: List[int] = []  # to the pool; only kept where somebody asks (notes_returned)
        self.notes_returned = False
        self.held = 0  # blocks that our side has for a moment, to fill them: prefixes.py
        self.stored = self.loaded = 0  # what is told of the store: blocks that it has, and that came back so far
        self.store_errors = 0  # since the last report

    # ---- what vLLM does ------------------------------------------------------------------------

    def note_used(self, groups: Sequence[Sequence[int]], fresh_from: Optional[Sequence[int]] = None) -> None:
        """A request holds these blocks. `fresh_from`: of each group, where what it does not share begins."""
        for index, group in enumerate(groups):
            fresh = 0 if fresh_from is None else fresh_from[index]
            for position, block in enumerate(group):
                if block != 0:  # the null block
                    self._note_block(block, position >= fresh)

    def _note_block(self, block: int, fresh: bool) -> None:
        if block not in self.touched:
            taken = min(self.block_bytes, self._out_bytes)
            self._taken_bytes += taken
            self._out_bytes -= taken
            self.touched[block] = None
        elif fresh or self.policy == "lru":
            self.touched.move_to_end(block)

    def note_released(self, groups: Sequence[Sequence[int]]) -> None:
        """A request lets go of them: the end of a text is worth less than its beginning."""
        if self.policy == "lru":
            for group in groups:
                for block in reversed(group):
                    if block in self.touched:
                        self.touched.move_to_end(block)

    # ---- what is where -------------------------------------------------------------------------

    def _free(self) -> int:
        return int(self.pool.get_num_free_blocks())

    def usable(self) -> int:
        """Blocks that vLLM may use, free or not."""
        return self.blocks - len(self.withheld) - len(self.going)

    def all_free(self) -> bool:
        return self._free() == self.usable() - self.held

    def empty(self) -> int:
        return max(0, self.usable() - len(self.touched))

    def evictable(self) -> int:
        """Free blocks with memory."""
        return max(0, min(self._free() - self.empty(), len(self.touched)))

    def counts(self) -> Counts:
        can_go = len(self.touched) if self.preempts else self.evictable()
        return Counts(
            resident=len(self.touched) + self._going_touched,
            evictable=can_go + self._going_touched,
            withheld=len(self.withheld),
            given_bytes=self._given_bytes,
            taken_bytes=self._taken_bytes,
            going_bytes=self._going_touched * self.block_bytes,
            stored=self.stored,
            store_errors=self.store_errors,
        )

    def gauges(self) -> Dict[str, int]:
        return {
            "blocks": self.blocks,
            "resident_blocks": len(self.touched) + self._going_touched,
            "withheld_blocks": len(self.withheld) + len(self.going),
            "given_bytes": self.given_bytes,
            "stored_blocks": self.stored,
            "loaded_blocks": self.loaded,
        }

    # ---- what is wanted ------------------------------------------------------------------------

    def tick(self, idle: bool = False) -> None:
        """Tells the counts, takes the wish, and does of it what can be done now. The pool must be at rest. Nothing is
        taken while pages are on their way: what a person asks for is asked once."""
        if self.going:
            return
        kept, before, self.wish = self._kept, self.wish, self._ask()
        self._kept = Wish()
        if before.pressed and not self.wish.pressed:
            self.owed = 0
        trim_bytes = max(self.wish.trim_bytes, kept.trim_bytes)
        restore_bytes = max(self.wish.restore_bytes, kept.restore_bytes)
        if trim_bytes > 0 or self.wish.pressed or (self._still_owed() > 0 and restore_bytes == 0):
            self._trim(-(-trim_bytes // self.block_bytes), idle)
            if self._going_touched or idle:
                # What goes is told at once: else it would be asked for again. And an idle engine has no next step that says
                # that nothing of what was asked for is on its way: nothing would come back until then.
                self._kept = self._ask()
        elif restore_bytes > 0:
            self.owed = 0
            self._put_back(min(len(self.withheld), -(-restore_bytes // self.block_bytes)))

    def forgive(self) -> None:
        """What a person wanted, and could not be got at the first try, is owed no more: else each new request would be
        preempted for it."""
        if not self.going and not self.wish.pressed:
            self.owed = 0

    def _still_owed(self) -> int:
        return self.owed if self.preempts else 0

    def _ask(self) -> Wish:
        wish = self._report(self.counts())
        self._given_bytes = self._taken_bytes = self.store_errors = 0
        return wish

    def _trim(self, wanted: int, idle: bool) -> None:
        """What was owed is wanted still. Not in addition: a wish is what is needed in all."""
        wanted = max(wanted, self._still_owed())
        chosen = self._choose(wanted)
        self.owed = wanted - len(chosen)
        spare = self._make_room(len(chosen), idle)
        chosen = chosen[:spare]
        if self.wish.pressed:
            most = min(spare - len(chosen), self.blocks - self.floor_blocks - len(self.withheld) - len(chosen))
            chosen += self._empties(min(most, self.empty()))
        self._take(chosen)

    def _may_go(self, block: Any) -> bool:
        return block.ref_cnt == 0 and block.block_id not in getattr(self.pool, "_reuse_watchers", ())

    def _choose(self, wanted: int) -> List[Any]:
        """Free blocks with memory: those without a cached prefix, then the oldest or the longest unused."""
        worthless: List[Any] = []
        cached: List[Any] = []
        if wanted > 0 and self.evictable() > 0:
            for number in self.touched:
                block = self.pool.blocks[number]
                if self._may_go(block):
                    (worthless if block.block_hash is None else cached).append(block)
                if len(worthless) >= wanted:
                    break
        return (worthless + cached)[:wanted]

    def _empties(self, wanted: int) -> List[Any]:
        found: List[Any] = []
        for block in self.pool.blocks if wanted > 0 else ():
            if len(found) >= wanted:
                break
            if not block.is_null and block.block_id not in self.touched and self._may_go(block):
                found.append(block)
        return found

    def _make_room(self, wanted: int, idle: bool) -> int:
        """How many blocks may be taken: the longest request must find room in the pool, and blocks that are withheld
        come back for those that go in their place. An idle engine may miss them for the moment that their going takes."""
        if idle:
            return self._free()
        spare = self.usable() - self.floor_blocks
        if spare < wanted:
            spare += self._put_back(min(wanted - spare, len(self.withheld)))
        return max(0, min(spare, self._free()))

    def _take(self, chosen: List[Any]) -> None:
        if not chosen:
            return
        numbers = {block.block_id for block in chosen}
        runs = runs_of(numbers, self.withheld.__contains__)
        if len(runs) > MOST_RUNS:
            runs = runs[:MOST_RUNS]
            numbers = {number for run in runs for number in range(run.first, run.first + run.blocks)}
            chosen = [block for block in chosen if block.block_id in numbers]
        worth = {block.block_id: block.block_hash for block in chosen if block.block_hash is not None}
        self.pool.touch(chosen)
        self.pool.evict_blocks(set(worth))
        for block in chosen:
            self.going[block.block_id] = block
            if block.block_id in self.touched:
                del self.touched[block.block_id]
                self._going_touched += 1
        if not self._send(runs, worth):
            self.pool.free_blocks(list(self.going.values()))  # with their pages: as before
            self.touched.update((number, None) for number in self.going)
            self.going, self._going_touched = {}, 0

    def gave(self, gone_bytes: int) -> None:
        """The workers gave the pages back. Touches no pool: any thread, under the owner's lock."""
        self.withheld.update(self.going)
        self.going, self._going_touched = {}, 0
        self._given_bytes += gone_bytes
        self.given_bytes += gone_bytes
        self._out_bytes += gone_bytes

    def settle(self) -> None:
        """The floor's share of what was withheld comes back. The pool must be at rest."""
        if not self.going:
            self._put_back(len(self.withheld) - (self.blocks - self.floor_blocks))

    def _put_back(self, count: int) -> int:
        numbers = list(self.withheld)[: max(0, count)]
        if numbers:
            self.pool.free_blocks([self.withheld.pop(number) for number in numbers])
            self.returned += numbers if self.notes_returned else []
        return len(numbers)

    def forget_returned(self, numbers: Set[int]) -> None:
        """They are written as a whole, and need no cleaning."""
        self.returned = [number for number in self.returned if number not in numbers]

    def note_unclean(self, number: int) -> None:
        """It was to be written as a whole, and was not."""
        self.returned += [number] if self.notes_returned else []

    def put_all_back(self) -> None:
        """Without us the engine has its whole pool. Blocks whose pages are still going stay out."""
        self._put_back(len(self.withheld))
