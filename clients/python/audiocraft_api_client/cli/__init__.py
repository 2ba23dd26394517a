"""The command `audiocraft`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Optional

from audiocraft_api_client._sync import AudioCraft
from audiocraft_api_client.cli.parser import build_parser
from audiocraft_api_client.errors import (
    AudioCraftError,
    ConnectionFailedError,
    ForbiddenError,
    InvalidRequestError,
    LimitExceededError,
    UnauthorizedError,
    UnavailableError,
)

FAILED = 1
USAGE = 2  # also the status of argparse
TRY_AGAIN = 3
NOT_ALLOWED = 4
INTERRUPTED = 130


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a command and return its exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        with AudioCraft(options.url) as client:
            options.run(client, options)
            sys.stdout.flush()
        return 0
    except AudioCraftError as error:
        _report(error, options.json)
        return exit_status(error)
    except BrokenPipeError:  # the reader of a pipe has left, such as a player
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python reports it again at exit
        return FAILED
    except (OSError, RuntimeError) as error:
        _report(AudioCraftError(str(error), code="client_failed"), options.json)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def exit_status(error: AudioCraftError) -> int:
    """Return the exit status for an error of the server."""
    if isinstance(error, InvalidRequestError):
        return USAGE
    if isinstance(error, (ConnectionFailedError, LimitExceededError, UnavailableError)):
        return TRY_AGAIN
    return NOT_ALLOWED if isinstance(error, (UnauthorizedError, ForbiddenError)) else FAILED


def _report(error: AudioCraftError, as_json: bool) -> None:
    details = {"errors": error.errors, "suggestion": error.suggestion, "request_id": error.request_id}
    if as_json:
        known = {name: value for name, value in details.items() if value}
        print(json.dumps({"error": error.message, "code": error.code, **known}), file=sys.stderr)
        return
    print(f"audiocraft: {error.message}", file=sys.stderr)
    if error.suggestion:
        print(f"audiocraft: {error.suggestion}", file=sys.stderr)
