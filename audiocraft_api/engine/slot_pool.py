"""The free slots of a cache. Knows neither torch nor what a slot holds."""

from __future__ import annotations

import heapq


class SlotPool:
    """The free slots. The lowest is given out first, so that those in use stay together at the front."""

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots))

    def __len__(self) -> int:
        return len(self._free)

    def take(self) -> int:
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        heapq.heappush(self._free, slot)
