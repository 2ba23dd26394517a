"""Recognizes the errors by which Python, torch and CUDA report that memory has run out."""

from __future__ import annotations


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory has run out. Compares names, because not every caller has torch."""
    # torch's CPU allocator raises a plain RuntimeError: "DefaultCPUAllocator: can't allocate memory".
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )
