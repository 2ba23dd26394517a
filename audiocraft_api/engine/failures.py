"""What goes wrong in a step, as the error that ends a request."""

from __future__ import annotations

import logging

from audiocraft_api.core.errors import AudioCraftError, GenerationFailed, OutOfMemory

logger = logging.getLogger(__name__)


def as_request_error(error: Exception) -> AudioCraftError:
    """Turn what a step raised into the error that ends a request, and log the cause of an unexpected one."""
    if isinstance(error, AudioCraftError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        logger.error("Out of memory in the engine: %s", error)
        return OutOfMemory("There is not enough memory for this generation now; try again later or ask for less audio.")
    logger.error("A generation failed in the engine.", exc_info=error)
    return GenerationFailed("The generation failed.")


def not_finite() -> GenerationFailed:
    """Return the error of a request whose logits are not numbers."""
    return GenerationFailed("The model's numbers overflowed; other parameters or another precision may help.")
