"""Which cached prefixes the store has, and in which record. Knows keys and numbers only; its owner's lock guards it.

A record is free, taken (a write is on its way), or has a key. One that a load reads is held, and not written meanwhile.
Where all have keys, the one that was longest unused makes room."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any, List, Optional, Set


class Shelf:
    def __init__(self, records: int) -> None:
        self._free: List[int] = list(range(records - 1, -1, -1))
        self._record_of: "OrderedDict[Any, int]" = OrderedDict()  # the first was longest unused
        self._held: "Counter[int]" = Counter()
        self._nameless: Set[int] = set()  # held, and their keys are forgotten

    def __len__(self) -> int:
        return len(self._record_of)

    def __contains__(self, key: Any) -> bool:
        return key in self._record_of

    # ---- writes ------------------------------------------------------------------------------------

    def take(self) -> Optional[int]:
        """A record to be written; None: each is taken, or held."""
        if self._free:
            return self._free.pop()
        key = next((key for key, record in self._record_of.items() if not self._held[record]), None)
        return None if key is None else self._record_of.pop(key)

    def put(self, key: Any, record: int) -> None:
        """It is written."""
        if key in self._record_of:
            self.hand_back(record)  # another write of the same was faster
        else:
            self._record_of[key] = record

    def hand_back(self, record: int) -> None:
        """It is not."""
        self._free.append(record)

    # ---- loads -------------------------------------------------------------------------------------

    def hold(self, key: Any) -> int:
        """The record of a key that is here, until `let_go`."""
        self._record_of.move_to_end(key)
        record = self._record_of[key]
        self._held[record] += 1
        return record

    def let_go(self, key: Any, record: int, is_lost: bool = False) -> None:
        if is_lost and self._record_of.get(key) == record:
            self._forget(key)
        self._held[record] -= 1
        if self._held[record] <= 0:
            del self._held[record]
            if record in self._nameless:
                self._nameless.remove(record)
                self._free.append(record)

    def _forget(self, key: Any) -> None:
        record = self._record_of.pop(key)
        if self._held[record]:
            self._nameless.add(record)
        else:
            self._free.append(record)

    def clear(self) -> List[int]:
        """Nothing that is here is right any more. The records that are free by that."""
        before = len(self._free)
        for key in list(self._record_of):
            self._forget(key)
        return self._free[before:]
