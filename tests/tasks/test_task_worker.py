"""The embedded worker over a real store, real files and a fake engine, and once over a real model."""

from __future__ import annotations

import json
import resource
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiocraft_api.config import Config
from audiocraft_api.core.engine import Engine
from audiocraft_api.core.errors import (
    AudioCraftError,
    DeadlineExceeded,
    GenerationFailed,
    IdempotencyConflict,
    ModelUnavailable,
    NotFound,
    OutOfMemory,
    QueueFull,
    StorageUnavailable,
)
from audiocraft_api.core.melody_line import REST, LineNote, MelodyLine
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.core.params import AudioInput, GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.stem_separators import StemSeparators
from audiocraft_api.storage.base import StoredAudio
from audiocraft_api.storage.local import LocalStore
from audiocraft_api.tasks import runner as runner_module
from audiocraft_api.tasks.command import decode_command, encode_command
from audiocraft_api.tasks.expiry import TaskExpiry
from audiocraft_api.tasks.intervals import TaskIntervals
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.service import TaskService
from audiocraft_api.tasks.store.sqlite import SqliteTaskStore
from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.worker import TaskWorker
from support.fakes import FakeEngine
from support.intervals import FAST_INTERVALS

COMMAND = GenerateCommand(prompt="solo cello", model="small", duration_seconds=1.0)
DEADLINE_SECONDS = 30.0
MELODY = AudioInput(np.random.default_rng(1).standard_normal((2, 44_100), dtype=np.float32), 44_100)


class WorkerHarness:
    """A task service, store, runner and worker in one directory: everything between the routes and the engine."""

    def __init__(
        self, directory: Path, engine: Engine, intervals: TaskIntervals = FAST_INTERVALS, **settings: Any
    ) -> None:
        self.config = Config(
            audio_dir=directory / "audio",
            task_db=directory / "tasks.sqlite3",
            **{"task_concurrency": 4, "task_lease_seconds": 2.0, **settings},
        )
        self.engine = engine
        self.files = LocalStore(self.config.storage)
        self.store = SqliteTaskStore(self.config.tasks.db, max_attempts=self.config.tasks.attempts)
        separators = StemSeparators(Catalog(self.config), self.config.models)
        self.generation = GenerationService(engine, self.files, separators, self.config)
        self.tasks = TaskService(self.store, self.config.tasks, lambda _: self.worker.wake())
        self.intervals = intervals
        self.replace_worker()

    def replace_worker(self, max_age_seconds: float | None = None) -> None:
        """Create a worker, as a restart of the server does; it deletes tasks older than `max_age_seconds`."""
        settings = self.config.tasks
        if max_age_seconds is not None:
            settings = settings.model_copy(update={"max_age_seconds": max_age_seconds})
        self.worker = TaskWorker(
            self.store,
            self.create_runner(),
            TaskExpiry(self.store, self.files, settings, self.intervals),
            concurrency=settings.concurrency,
            lease_seconds=settings.lease_seconds,
            intervals=self.intervals,
        )

    def create_runner(self, observer: Observer = NULL_OBSERVER) -> TaskRunner:
        return TaskRunner(self.store, self.generation, self.files, self.config.tasks, observer, self.intervals)

    def wait_for(self, task: Task, reached: Callable[[Task], bool] = lambda task: task.is_final) -> Task:
        """Wait until a task is final, or until `reached` returns True for it."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        task = self.tasks.get(task.id, task.owner)
        while not reached(task):
            assert time.monotonic() < deadline, f"the task is still {task.state}: {task.error}"
            task = self.tasks.wait_for_change(task, 0.5)
        return task

    def audio_files(self) -> list[Path]:
        """Return all files in the store but those with codes."""
        return sorted(path for path in self.config.storage.directory.glob("*") if path.suffix != ".codes")

    def close(self) -> None:
        if isinstance(self.engine, FakeEngine):
            self.engine.gate.set()
        self.worker.close(5.0)
        self.engine.close(5.0)
        self.store.close()
        self.files.close()


def is_processing(task: Task) -> bool:
    return task.state == "processing" and task.num_frames_total > 0


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def harness(tmp_path: Path, engine: FakeEngine) -> Iterator[WorkerHarness]:
    harness = WorkerHarness(tmp_path, engine)
    yield harness
    harness.close()


class TestWork:
    def test_a_completed_task_has_a_file_and_its_parameters(self, harness: WorkerHarness) -> None:
        harness.worker.start()
        done = harness.wait_for(harness.tasks.submit(replace(COMMAND, output_format="flac", seed=7)))
        assert (done.state, done.attempts, done.error) == ("completed", 1, None)
        assert done.result is not None
        assert done.result["success"] is True
        assert (done.result["format"], done.result["sample_rate"], done.result["seed"]) == ("flac", 32_000, 7)
        assert (done.result["duration"], done.result["model"]) == (1.0, "small")
        with harness.files.open(done.result["filename"]).file as file:
            assert soundfile.info(file).frames == 32_000
        assert done.finished is not None
        assert done.started is not None

    def test_tasks_run_concurrently_up_to_the_setting(self, harness: WorkerHarness, engine: FakeEngine) -> None:
        engine.gate.clear()
        harness.worker.start()
        tasks = [harness.tasks.submit(COMMAND) for _ in range(6)]
        for task in tasks[:4]:
            harness.wait_for(task, is_processing)
        assert len(engine.submitted) == 4
        assert [harness.tasks.estimate(harness.tasks.get(task.id)).position for task in tasks[4:]] == [1, 2]
        engine.gate.set()
        assert {harness.wait_for(task).state for task in tasks} == {"completed"}

    def test_progress_comes_from_the_engine_and_gives_an_eta(self, harness: WorkerHarness, engine: FakeEngine) -> None:
        engine.gate.clear()
        harness.worker.start()
        task = harness.wait_for(harness.tasks.submit(COMMAND), is_processing)
        engine.submitted[0].advance(20)
        task = harness.wait_for(task, lambda task: task.num_frames_done > 0)
        assert (task.num_frames_done, task.num_frames_total) == (20, 50)
        eta_seconds = harness.tasks.estimate(task).eta_seconds
        assert eta_seconds is not None
        assert 0 <= eta_seconds < DEADLINE_SECONDS

    def test_a_melody_reaches_the_engine_bit_for_bit_and_is_deleted_afterwards(
        self, harness: WorkerHarness, engine: FakeEngine
    ) -> None:
        harness.worker.start()
        task = harness.wait_for(harness.tasks.submit(replace(COMMAND, model="melody", melody=MELODY)))
        melody = engine.submitted[0].params.melody
        assert melody is not None
        assert melody.sample_rate == MELODY.sample_rate
        np.testing.assert_array_equal(melody.waveform, MELODY.waveform)
        assert harness.store.audio(task.id) is None

    def test_no_thread_runs_before_start_or_after_close(self, harness: WorkerHarness, engine: FakeEngine) -> None:
        before = {thread.name for thread in threading.enumerate()}
        task = harness.tasks.submit(COMMAND)
        assert {thread.name for thread in threading.enumerate()} == before
        harness.worker.close()
        harness.worker.start()
        assert {thread.name for thread in threading.enumerate()} == before
        assert harness.tasks.get(task.id).state == "queued"
        assert engine.submitted == []


class TestCancel:
    def test_a_running_task_stops_within_a_step_and_leaves_no_file(
        self, harness: WorkerHarness, engine: FakeEngine
    ) -> None:
        engine.gate.clear()
        harness.worker.start()
        task = harness.wait_for(harness.tasks.submit(COMMAND), is_processing)
        assert harness.tasks.cancel(task.id).cancel_requested
        assert harness.wait_for(task).state == "canceled"
        assert harness.tasks.cancel(task.id).state == "canceled"
        with pytest.raises(AudioCraftError):
            engine.submitted[0].result(DEADLINE_SECONDS)
        assert harness.audio_files() == []

    def test_a_canceled_task_lets_the_next_one_run(self, harness: WorkerHarness, engine: FakeEngine) -> None:
        engine.gate.clear()
        harness.worker.start()
        tasks = [harness.wait_for(harness.tasks.submit(COMMAND), is_processing) for _ in range(4)]
        waiting = harness.tasks.submit(COMMAND)
        harness.tasks.cancel(tasks[0].id)
        harness.wait_for(waiting, is_processing)

    @pytest.mark.parametrize("n", [1, 3])
    def test_a_result_that_arrives_after_the_cancellation_is_deleted(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, n: int
    ) -> None:
        task = harness.tasks.submit(replace(COMMAND, n=n))
        run_before_save(harness, monkeypatch, lambda: harness.tasks.cancel(task.id))
        harness.worker.start()
        assert harness.wait_for(task).state == "canceled"
        harness.worker.close(DEADLINE_SECONDS)
        assert harness.audio_files() == []


class TestFailures:
    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            (GenerationFailed("The model made no sound."), "generation_failed"),
            (DeadlineExceeded("It took too long."), "deadline_exceeded"),
        ],
    )
    def test_a_permanent_error_fails_the_task_at_once(
        self, harness: WorkerHarness, engine: FakeEngine, failure: AudioCraftError, code: str
    ) -> None:
        engine.failure = failure
        harness.worker.start()
        failed = harness.wait_for(harness.tasks.submit(COMMAND))
        assert (failed.state, failed.error, failed.error_code) == ("failed", failure.message, code)
        assert failed.attempts == 1

    @pytest.mark.parametrize("error_class", [ModelUnavailable, OutOfMemory])
    def test_a_temporary_shortage_costs_an_attempt_and_keeps_the_seed(
        self, harness: WorkerHarness, engine: FakeEngine, error_class: type[ModelUnavailable | OutOfMemory]
    ) -> None:
        engine.failure = error_class("Not now.", retry_after_seconds=0.01)
        submit = engine.submit

        def fail_first_submit(params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
            if engine.submitted:
                engine.failure = None
            return submit(params, deadline=deadline)

        engine.submit = fail_first_submit  # type: ignore[method-assign]
        harness.worker.start()
        done = harness.wait_for(harness.tasks.submit(COMMAND))
        assert (done.state, done.attempts) == ("completed", 2)
        first, second = (request.params for request in engine.submitted)
        assert first.seed == second.seed

    @pytest.mark.parametrize("error_class", [ModelUnavailable, OutOfMemory])
    def test_a_lasting_shortage_fails_the_task_after_two_attempts(
        self, harness: WorkerHarness, engine: FakeEngine, error_class: type[ModelUnavailable | OutOfMemory]
    ) -> None:
        engine.failure = error_class("There is none.", retry_after_seconds=0.01)
        harness.worker.start()
        failed = harness.wait_for(harness.tasks.submit(COMMAND))
        assert (failed.state, failed.error) == ("failed", "There is none.")
        assert (failed.error_code, failed.attempts) == (error_class.code, 2)
        assert len(engine.submitted) == 2

    @pytest.mark.parametrize("output_format", ["wav", "mp3"])
    def test_a_full_disk_while_saving_audio_costs_an_attempt_and_leaves_no_file(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, output_format: str
    ) -> None:
        saves: list[str] = []
        save = harness.files.save

        def save_or_be_full(audio: bytes, extension: str, owner: str | None, codes: bytes | None) -> Any:
            saves.append(extension)
            if len(saves) > 1:
                return save(audio, extension, owner, codes)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # a write fails half-way, as on a full disk
            try:
                return save(audio, extension, owner, codes)
            except StorageUnavailable as error:
                error.retry_after_seconds = 0.05
                raise
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        monkeypatch.setattr(harness.files, "save", save_or_be_full)
        harness.worker.start()
        done = harness.wait_for(harness.tasks.submit(replace(COMMAND, output_format=output_format)))
        assert (done.state, done.attempts, saves) == ("completed", 2, [output_format] * 2)
        assert len(harness.audio_files()) == 1

    def test_a_full_disk_while_saving_a_variation_leaves_no_file(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save = harness.files.save
        num_saved = 0

        def save_or_be_full(audio: bytes, extension: str, owner: str | None, codes: bytes | None) -> StoredAudio:
            nonlocal num_saved
            num_saved += 1
            if num_saved == 3:
                raise StorageUnavailable("The audio store is full.", retry_after_seconds=0.05)
            return save(audio, extension, owner, codes)

        monkeypatch.setattr(harness.files, "save", save_or_be_full)
        harness.worker.start()
        done = harness.wait_for(harness.tasks.submit(replace(COMMAND, n=3)))
        assert (done.state, done.attempts) == ("completed", 2)
        assert len(harness.audio_files()) == 3

    def test_a_full_disk_during_a_conversion_fails_the_task_with_a_clear_error(
        self, harness: WorkerHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
        harness.worker.start()
        failed = harness.wait_for(harness.tasks.submit(replace(COMMAND, output_format="mp3")))
        assert (failed.state, failed.error_code) == ("failed", "conversion_failed")
        assert str(tmp_path) not in (failed.error or "")
        assert harness.audio_files() == []

    def test_an_unexpected_error_fails_the_task_without_revealing_its_cause(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def save(*_: Any) -> StoredAudio:
            raise RuntimeError("secret cause")

        monkeypatch.setattr(harness.files, "save", save)
        harness.worker.start()
        failed = harness.wait_for(harness.tasks.submit(COMMAND))
        assert (failed.state, failed.error_code) == ("failed", "internal_error")
        assert failed.error == "The task failed because of an internal server error."
        assert "secret cause" in caplog.text

    def test_an_attempt_that_takes_too_long_fails_the_task(self, tmp_path: Path, engine: FakeEngine) -> None:
        engine.gate.clear()
        harness = WorkerHarness(tmp_path, engine, task_deadline_seconds=0.2)
        harness.worker.start()
        failed = harness.wait_for(harness.tasks.submit(COMMAND))
        assert (failed.state, failed.error_code) == ("failed", "deadline_exceeded")
        harness.close()

    def test_a_full_engine_costs_no_attempt(self, harness: WorkerHarness, engine: FakeEngine) -> None:
        engine.capacity = 0
        refused = threading.Event()
        submit = engine.submit

        def count(params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
            try:
                return submit(params, deadline=deadline)
            except QueueFull:
                refused.set()
                raise

        engine.submit = count  # type: ignore[method-assign]
        harness.worker.start()
        task = harness.tasks.submit(COMMAND)
        for _ in range(3):
            assert refused.wait(DEADLINE_SECONDS)
            refused.clear()
        engine.capacity = 1
        assert harness.wait_for(task).attempts == 1

    def test_a_result_is_written_after_an_outage_of_the_store(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        num_outages = 3
        complete = harness.store.complete

        def complete_after_outages(task: Task, result: dict[str, Any]) -> bool:
            nonlocal num_outages
            if num_outages:
                num_outages -= 1
                raise StorageUnavailable("The task store cannot be used now; try again later.")
            return complete(task, result)

        monkeypatch.setattr(harness.store, "complete", complete_after_outages)
        harness.worker.start()
        done = harness.wait_for(harness.tasks.submit(COMMAND))
        assert (done.state, done.attempts, num_outages) == ("completed", 1, 0)
        assert len(harness.audio_files()) == 1

    @pytest.mark.parametrize("is_stopping", [False, True])
    def test_a_result_is_kept_if_only_the_stores_response_was_lost(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, is_stopping: bool
    ) -> None:
        complete, stopping = harness.store.complete, threading.Event()

        def complete_and_lose_the_response(task: Task, result: dict[str, Any]) -> bool:
            if complete(task, result):
                raise StorageUnavailable("The connection broke.")
            return False

        monkeypatch.setattr(harness.store, "complete", complete_and_lose_the_response)
        if is_stopping:
            run_before_save(harness, monkeypatch, stopping.set)
        task = harness.tasks.submit(COMMAND)
        claimed = harness.store.claim("worker", 30.0)
        assert claimed is not None
        ended: list[str] = []
        observer = Observer()
        monkeypatch.setattr(observer, "task_ended", ended.append)
        harness.create_runner(observer).run(claimed, stopping)
        done = harness.tasks.get(task.id)
        assert (done.state, ended) == ("completed", ["completed"])
        assert done.result is not None
        assert [file.name for file in harness.audio_files()] == [done.result["filename"]]

    def test_a_worker_survives_an_unexpected_error(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enter, num_failures = runner_module.TaskHeartbeat.__enter__, 4  # as many as there are threads

        def enter_or_fail(heartbeat: runner_module.TaskHeartbeat) -> runner_module.TaskHeartbeat:
            nonlocal num_failures
            if num_failures:
                num_failures -= 1
                raise RuntimeError("can't start new thread")
            return enter(heartbeat)

        monkeypatch.setattr(runner_module.TaskHeartbeat, "__enter__", enter_or_fail)
        harness.worker.start()
        lost = [harness.tasks.submit(COMMAND) for _ in range(4)]
        assert harness.wait_for(harness.tasks.submit(COMMAND)).state == "completed"
        assert {harness.wait_for(task).state for task in lost} == {"completed"}  # once their leases are over

    def test_a_worker_that_was_replaced_deletes_its_late_result(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = harness.tasks.submit(COMMAND)
        stolen: list[Task | None] = []

        def steal() -> None:
            # in one statement, because the worker's other threads look for work too
            with closing(sqlite3.connect(harness.config.tasks.db, isolation_level=None)) as db:
                db.execute(
                    "UPDATE tasks SET lease = 'other/1', attempts = 2, held_until = held_until + 30, hold_seconds = 60"
                )
            stolen.append(harness.store.get(task.id))

        run_before_save(harness, monkeypatch, steal)
        harness.worker.start()
        harness.wait_for(task, lambda task: task.attempts == 2)
        harness.worker.close(DEADLINE_SECONDS)
        assert harness.audio_files() == []
        assert stolen[0] is not None
        assert harness.store.complete(stolen[0], {"filename": "other.wav"})


def refuse(_filename: str) -> None:
    raise StorageUnavailable("The audio store cannot be used now.")


def run_before_save(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something at the last moment before the audio is stored."""
    save = harness.files.save

    def act_and_save(audio: bytes, extension: str, owner: str | None, codes: bytes | None) -> StoredAudio:
        action()
        return save(audio, extension, owner, codes)

    monkeypatch.setattr(harness.files, "save", act_and_save)


class TestRestart:
    def test_a_stop_lets_running_tasks_finish_and_leaves_the_others_queued(
        self, harness: WorkerHarness, engine: FakeEngine
    ) -> None:
        engine.gate.clear()
        harness.worker.start()
        tasks = [harness.tasks.submit(COMMAND) for _ in range(6)]
        for task in tasks[:4]:
            harness.wait_for(task, is_processing)
        closing = threading.Thread(target=harness.worker.close, args=(DEADLINE_SECONDS,))
        closing.start()
        engine.gate.set()
        closing.join()
        states = [harness.tasks.get(task.id).state for task in tasks]
        assert states == ["completed"] * 4 + ["queued"] * 2

    def test_a_stop_releases_tasks_that_exceed_the_grace_period_and_the_next_start_finishes_them(
        self, harness: WorkerHarness, engine: FakeEngine
    ) -> None:
        others = threading.enumerate()
        engine.gate.clear()
        harness.worker.start()
        tasks = [harness.wait_for(harness.tasks.submit(COMMAND), is_processing) for _ in range(3)]
        harness.worker.close(0.1)
        given_back = [harness.tasks.get(task.id) for task in tasks]
        assert [(task.state, task.attempts) for task in given_back] == [("queued", 0)] * 3
        own = [thread.name for thread in threading.enumerate() if thread not in others]
        assert not any(name.startswith(("task-worker", "heartbeat")) for name in own)
        harness.replace_worker()
        harness.worker.start()
        engine.gate.set()
        assert [(harness.wait_for(task).state, harness.wait_for(task).attempts) for task in tasks] == [
            ("completed", 1)
        ] * 3

    def test_tasks_of_a_killed_server_run_again_when_their_lease_ends(self, harness: WorkerHarness) -> None:
        task = harness.tasks.submit(COMMAND)
        assert harness.store.claim("killed", 0.2) is not None
        harness.worker.start()
        done = harness.wait_for(task)
        assert (done.state, done.attempts) == ("completed", 2)
        assert len(harness.audio_files()) == 1

    def test_a_long_task_keeps_its_lease(self, harness: WorkerHarness, engine: FakeEngine) -> None:
        engine.gate.clear()
        harness.worker.start()
        task = harness.wait_for(harness.tasks.submit(COMMAND), is_processing)
        beats = []
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(beats) < 50 and time.monotonic() < deadline:  # 50 beats of 0.05 s are longer than the lease
            engine.submitted[0].advance(len(beats) + 1)
            task = harness.wait_for(task, lambda task: task.num_frames_done > len(beats))
            beats.append(task.num_frames_done)
            assert harness.store.claim("other", 1.0) is None
        engine.gate.set()
        assert harness.wait_for(task).attempts == 1


class TestExpiry:
    def test_files_that_could_not_be_deleted_are_deleted_before_more_tasks_expire(
        self, harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        harness.worker.start()
        for _ in range(3):
            harness.wait_for(harness.tasks.submit(COMMAND))
        expiry = TaskExpiry(
            harness.store, harness.files, Config(task_max_age_seconds=1e-9).tasks, TaskIntervals(expiry=0.0)
        )
        with monkeypatch.context() as patch:
            patch.setattr(harness.files, "delete", refuse)
            with pytest.raises(StorageUnavailable):
                expiry.run_if_due()
            kept = harness.wait_for(harness.tasks.submit(COMMAND))
            with pytest.raises(StorageUnavailable):
                expiry.run_if_due()
            assert harness.tasks.get(kept.id).state == "completed"
            assert len(harness.audio_files()) == 4
        expiry.run_if_due()
        assert harness.audio_files() == []

    @pytest.mark.parametrize("n", [1, 3])
    def test_finished_tasks_and_their_files_expire_together(self, harness: WorkerHarness, n: int) -> None:
        harness.worker.start()
        done = harness.wait_for(harness.tasks.submit(replace(COMMAND, n=n)))
        assert len(harness.audio_files()) == n
        harness.worker.close(DEADLINE_SECONDS)
        harness.replace_worker(max_age_seconds=0.01)
        harness.worker.start()
        with pytest.raises(NotFound):
            harness.wait_for(done, lambda _: False)
        harness.worker.close(DEADLINE_SECONDS)
        assert harness.audio_files() == []


class TestService:
    def test_only_its_owner_can_see_a_task(self, harness: WorkerHarness) -> None:
        task = harness.tasks.submit(COMMAND, owner="me")
        assert harness.tasks.get(task.id, "me").id == task.id
        for stranger in ("you", None):
            with pytest.raises(NotFound, match="There is no such task"):
                harness.tasks.get(task.id, stranger)
            with pytest.raises(NotFound):
                harness.tasks.cancel(task.id, stranger)
            assert harness.tasks.page(stranger) == []
        assert [mine.id for mine in harness.tasks.page("me")] == [task.id]

    def test_an_idempotency_key_stands_for_the_whole_request(self, harness: WorkerHarness) -> None:
        command = replace(COMMAND, melody=MELODY)
        task = harness.tasks.submit(command, idempotency_key="once")
        assert harness.tasks.submit(replace(command), idempotency_key="once").id == task.id
        other_melody = AudioInput(MELODY.waveform * 0.5, MELODY.sample_rate)
        for other in (replace(command, seed=1), replace(command, melody=None), replace(command, melody=other_melody)):
            with pytest.raises(IdempotencyConflict):
                harness.tasks.submit(other, idempotency_key="once")
        with pytest.raises(IdempotencyConflict):
            harness.tasks.submit(command, idempotency_key="once", webhook_url="https://example.org")

    def test_a_full_queue_suggests_when_to_retry(self, tmp_path: Path, engine: FakeEngine) -> None:
        harness = WorkerHarness(tmp_path, engine, max_queued_tasks=1)
        harness.tasks.submit(COMMAND)
        with pytest.raises(QueueFull) as caught:
            harness.tasks.submit(COMMAND)
        assert 1.0 <= caught.value.retry_after_seconds <= 60.0
        harness.close()

    def test_a_queued_task_has_an_eta_once_the_speed_is_known(self, harness: WorkerHarness) -> None:
        task = harness.tasks.submit(COMMAND)
        assert harness.tasks.estimate(task).eta_seconds is None
        harness.worker.start()
        harness.wait_for(task)
        harness.worker.close(DEADLINE_SECONDS)
        eta_seconds = harness.tasks.estimate(harness.tasks.submit(COMMAND)).eta_seconds
        assert eta_seconds is not None
        assert eta_seconds >= 0

    def test_a_command_is_encoded_deterministically_and_decoded_unchanged(self) -> None:
        command = replace(COMMAND, prompt="naïve 🎺", seed=2**53 - 1, melody=MELODY)
        assert encode_command(command) == encode_command(command)
        unpacked = decode_command(*encode_command(command))
        assert unpacked.melody is not None
        np.testing.assert_array_equal(unpacked.melody.waveform, MELODY.waveform)
        assert replace(unpacked, melody=None).__dict__ == replace(command, melody=None).__dict__

    def test_a_melody_of_notes_is_stored_with_its_command(self) -> None:
        line = MelodyLine((LineNote(500, 60), LineNote(750, REST), LineNote(1000, 127)))
        plain, audio = encode_command(replace(COMMAND, melody=line, bpm=90))
        assert audio is None
        unpacked = decode_command(json.loads(json.dumps(plain)), audio)
        assert unpacked.melody == unpacked.followed == line
        plain, audio = encode_command(replace(COMMAND, notes="C4:1 -:1/2", bpm=90))
        unpacked = decode_command(json.loads(json.dumps(plain)), audio)
        assert unpacked.melody is None
        assert unpacked.followed == MelodyLine((LineNote(667, 60), LineNote(1000, REST)))

    def test_a_task_of_an_incompatible_release_fails_with_a_clear_error(self) -> None:
        with pytest.raises(GenerationFailed, match="another release"):
            decode_command({"prompt": "a", "unheard_of": 1}, None)


class TestRealModel:
    def test_tasks_share_the_engine_and_make_the_same_audio_as_a_synchronous_call(
        self, tmp_path: Path, demo_checkpoints: Path, request: pytest.FixtureRequest
    ) -> None:
        from audiocraft_api.engine.batching import BatchingEngine
        from audiocraft_api.model.catalog import Catalog
        from audiocraft_api.model.model_cache import ModelCache

        config = Config(checkpoints_dir=demo_checkpoints, device="cpu", offline=True, precision="exact")
        cache = ModelCache(Catalog(config), config)
        harness = WorkerHarness(tmp_path, BatchingEngine(cache, config.engine))
        commands = [replace(COMMAND, model="demo", seed=seed) for seed in (1, 2, 3)]
        request.addfinalizer(cache.close)
        request.addfinalizer(harness.close)
        harness.worker.start()
        done = [harness.wait_for(task) for task in [harness.tasks.submit(command) for command in commands]]
        assert [(task.state, task.error) for task in done] == [("completed", None)] * 3
        for task, command in zip(done, commands, strict=True):
            assert task.result is not None
            alone = harness.generation.generate_file(command, Waiter())
            with (
                harness.files.open(task.result["filename"]).file as made,
                harness.files.open(alone.filename).file as expected,
            ):
                assert made.read() == expected.read()
