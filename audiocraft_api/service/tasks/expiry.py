"""Forgets finished tasks and deletes their audio once they are old enough. Knows no worker."""

from __future__ import annotations

import logging
import time

from audiocraft_api.config import Config
from audiocraft_api.service.storage.base import AudioStore
from audiocraft_api.service.tasks.store import TaskStore

EXPIRE_SECONDS = 60.0

logger = logging.getLogger(__name__)


class TaskExpiry:
    """Looks for old tasks once a minute, however often it is asked. For one thread at a time."""

    def __init__(self, tasks: TaskStore, files: AudioStore, config: Config) -> None:
        self._tasks = tasks
        self._files = files
        self._max_age_seconds = config.task_max_age_seconds
        self._next = 0.0

    def run(self) -> None:
        """Expire what is due. Raises StorageUnavailable."""
        if not self._max_age_seconds or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EXPIRE_SECONDS
        filenames = self._tasks.expire(time.time() - self._max_age_seconds)
        for filename in filenames:
            self._files.delete(filename)
        if filenames:
            logger.info("Expired %d finished tasks and their audio.", len(filenames))
