"""Finds the files of a model hub's repository: in a checkpoint's own hub cache, in the local cache, on the hub.

Knows which files of a repository are needed, not what they mean. Files on this machine are used as they are; only
missing ones are downloaded, with progress in the log.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiocraft_api.core.errors import ModelUnavailable
from audiocraft_api.core.load_progress import LoadProgress, ReportProgress, ignore

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 5.0


class WrongCheckpoint(Exception):
    """Files are damaged, or are not those of a model of audiocraft's. The message says which file and what is wrong."""

    def __init__(self, message: str, remedy: str = "Fetch or export it again") -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Files:
    """The needed files of a repository: from each group the first that exists, and those of `extra` that exist."""

    groups: tuple[tuple[str, ...], ...]
    extra: tuple[str, ...] = ()

    def are_in(self, directory: Path) -> bool:
        return all(any(list(directory.glob(name)) for name in group) for group in self.groups)


_TOKENIZER_EXTRAS = ("spiece.model", "tokenizer_config.json", "special_tokens_map.json")

# As audiocraft exports a model, as transformers saves one, or as audiocraft's trainer does.
CHECKPOINT = Files(
    (
        ("state_dict.bin", "config.json", "checkpoint.th"),
        ("compression_state_dict.bin", "*.safetensors", "checkpoint.th"),
    ),
    extra=("compression_state_dict.bin", "model.safetensors.index.json", "tokenizer.json", *_TOKENIZER_EXTRAS),
)
CODEC = Files((("config.json",), ("model.safetensors", "pytorch_model.bin")))
TEXT_ENCODER = Files(
    (("config.json",), ("tokenizer.json", "spiece.model"), ("model.safetensors", "pytorch_model.bin")),
    extra=_TOKENIZER_EXTRAS,
)
SEPARATOR = Files((("htdemucs.yaml",), ("*.safetensors",)))


class Hub:
    """Finds repositories: first in `directories` (hub caches of a checkpoint), then in the user's cache."""

    def __init__(self, *directories: Path, offline: bool = False, report: ReportProgress = ignore) -> None:
        """`report` gets the progress of downloads."""
        self._directories = directories
        self._offline = offline
        self._report = report

    def snapshot(self, repository: str, files: Files, revision: str | None = None) -> Path:
        """Return the directory of a repository's files; download them if necessary. Raises ModelUnavailable.

        The directory's name is the commit.
        """
        found = self.present(repository, files, revision)
        if found is not None:
            return found
        if self._offline:
            raise ModelUnavailable(
                f"{repository} is not on this machine, and the server is configured to stay offline. "
                f"Fetch it with `hf download {repository}`, or put the checkpoint under the checkpoints directory. "
                "The model 'demo' works offline.",
                retry_after_seconds=60,
            )
        return _download(repository, files, revision, self._report)

    def present(self, repository: str, files: Files, revision: str | None = None) -> Path | None:
        """Return the directory of a repository's files if they are on this machine, else None.

        Raises ModelUnavailable for an invalid id.
        """
        caches = [directory for directory in self._directories if directory.is_dir()]
        for cache in [*caches, None]:
            found = _cached(repository, files, revision, cache)
            if found is not None:
                return found
        return None


def _snapshot(repository: str, files: Files, revision: str | None, **options: Any) -> Path | None:
    """Return a directory with a file of each group, or None. Fetches second choices only if the first do not exist."""
    from huggingface_hub import snapshot_download

    for rank in range(max(len(group) for group in files.groups)):
        wanted = [group[min(rank, len(group) - 1)] for group in files.groups]
        patterns = [*wanted, *files.extra]
        found = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, **options))
        if files.are_in(found):
            return found
    return None


def _cached(repository: str, files: Files, revision: str | None, cache: Path | None) -> Path | None:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _snapshot(repository, files, revision, cache_dir=cache, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise ModelUnavailable(
            f"{repository!r} is neither a directory on this machine nor the id of a repository of the model hub.",
            retry_after_seconds=60,
        ) from None


def _download(repository: str, files: Files, revision: str | None, report: ReportProgress) -> Path:
    from httpx import HTTPError
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def report_bytes(done: int, total: int) -> None:
        report(LoadProgress("downloading", repository, done, total))

    logger.info("Downloading %s from the model hub.", repository)
    report(LoadProgress("downloading", repository))
    try:
        bars = _progress_class(report_bytes)
        found = _snapshot(repository, files, revision, tqdm_class=bars, library_name="audiocraft-api")
        if found is not None:
            return found
        reason = "its files are not those of a MusicGen model"
    except GatedRepoError:
        reason = "its license must be accepted first: accept it on the hub, then log in with `hf auth login`"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except RepositoryNotFoundError:
        reason = "the hub has no such repository, or it is private: check the id, or log in with `hf auth login`"
    except (HTTPError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            reason = "the disk is full: free some space in the hub's cache directory"
        else:
            logger.warning("The download of %s failed: %s", repository, error)
            reason = "the model hub cannot be reached: check the network, or put the files on this machine"
    raise ModelUnavailable(
        f"{repository} cannot be downloaded: {reason}. The model 'demo' works offline.", retry_after_seconds=60
    )


def _progress_class(report_bytes: Callable[[int, int], None]) -> Any:
    """Return a class of progress bars that write lines to the log, and report bytes done and in total."""
    from tqdm.auto import tqdm

    class LogProgress(tqdm):
        _next_line = 0.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": False, "leave": False})

        def display(self, *_args: Any, **_kwargs: Any) -> bool:
            if self.unit == "B" and self.total:
                report_bytes(int(self.n), int(self.total))
            if self.unit == "B" and self.total and time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + _PROGRESS_SECONDS
                logger.info("Downloaded %.0f of %.0f MB.", self.n / 1e6, self.total / 1e6)
            return True

        def clear(self, *_args: Any, **_kwargs: Any) -> None:
            """Do nothing: nothing was drawn."""

    return LogProgress
