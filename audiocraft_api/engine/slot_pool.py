"""The free slots of a cache. Knows nothing of torch and of what a slot contains."""

from __future__ import annotations

import heapq


class SlotPool:
    """The free slots. Allocates the lowest one first, so that the slots in use stay together at the front."""

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots))

    def __len__(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        return heapq.heappop(self._free)

    def free(self, slot: int) -> None:
        heapq.heappush(self._free, slot)
