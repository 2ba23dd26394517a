"""Deletes finished tasks and their audio once they are older than the retention time. Knows no worker."""

from __future__ import annotations

import logging
import time

from audiocraft_api.config.tasks import TaskSettings
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.intervals import DEFAULT_INTERVALS, TaskIntervals
from audiocraft_api.tasks.store.base import TaskStore

logger = logging.getLogger(__name__)


class TaskExpiry:
    """Searches for expired tasks at most once per `intervals.expiry` seconds. For one thread at a time."""

    def __init__(
        self, tasks: TaskStore, files: AudioStore, config: TaskSettings, intervals: TaskIntervals = DEFAULT_INTERVALS
    ) -> None:
        self._tasks = tasks
        self._files = files
        self._max_age_seconds = config.max_age_seconds
        self._interval_seconds = intervals.expiry
        self._next = 0.0
        self._undeleted: list[str] = []  # audio files of tasks that are already deleted

    def run_if_due(self) -> None:
        """Delete expired tasks and their files when a search is due. Raises StorageUnavailable."""
        if not self._max_age_seconds or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._interval_seconds
        self._delete_files()
        self._undeleted = self._tasks.expire(time.time() - self._max_age_seconds)
        self._delete_files()

    def _delete_files(self) -> None:
        """Delete the files of expired tasks. If the audio store fails, keep the rest and expire no more tasks."""
        num_deleted = 0
        while self._undeleted:
            self._files.delete(self._undeleted[-1])
            self._undeleted.pop()
            num_deleted += 1
        if num_deleted:
            logger.info("Deleted the audio of %d expired tasks.", num_deleted)
