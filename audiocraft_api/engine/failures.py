"""Converts what a step raised to the error that ends a request. Does not import torch."""

from __future__ import annotations

import logging

from audiocraft_api.core.errors import AudioCraftError, GenerationFailed, OutOfMemory
from audiocraft_api.core.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)


def as_request_error(error: Exception) -> AudioCraftError:
    """Return the error that ends the request, and log the cause of an unexpected one."""
    if isinstance(error, AudioCraftError):
        return error
    if is_out_of_memory(error):
        logger.error("The engine ran out of memory.", exc_info=error)
        return OutOfMemory("There is not enough memory for this generation. Request less audio or try again later.")
    logger.error("A generation failed in the engine.", exc_info=error)
    return GenerationFailed("The generation failed unexpectedly. The server's log has the cause.")


def not_finite() -> GenerationFailed:
    """Return the error that ends a request whose logits are infinite or NaN."""
    return GenerationFailed(
        "The model produced invalid numbers. Try other parameters, or ask the operator to set a higher precision."
    )
