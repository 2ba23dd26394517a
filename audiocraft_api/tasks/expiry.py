"""Forgets finished tasks and deletes their audio once they are old enough. Knows no worker."""

from __future__ import annotations

import logging
import time

from audiocraft_api.config import Config
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.store.base import TaskStore

EXPIRE_SECONDS = 60.0

logger = logging.getLogger(__name__)


class TaskExpiry:
    """Looks for old tasks once a minute, however often it is asked. For one thread at a time."""

    def __init__(self, tasks: TaskStore, files: AudioStore, config: Config) -> None:
        self._tasks = tasks
        self._files = files
        self._max_age_seconds = config.tasks.max_age_seconds
        self._next = 0.0
        self._undeleted: list[str] = []  # files of tasks that are forgotten

    def run(self) -> None:
        """Expire what is due. Raises StorageUnavailable."""
        if not self._max_age_seconds or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EXPIRE_SECONDS
        self._delete()
        self._undeleted = self._tasks.expire(time.time() - self._max_age_seconds)
        self._delete()

    def _delete(self) -> None:
        """Delete the files of forgotten tasks. What a store in trouble refuses stays, and nothing more is forgotten."""
        num_deleted = 0
        while self._undeleted:
            self._files.delete(self._undeleted[-1])
            self._undeleted.pop()
            num_deleted += 1
        if num_deleted:
            logger.info("Deleted the audio of %d expired tasks.", num_deleted)
