"""The embedded worker over a real store, real files and a fake engine of fixed speed; at the end, over a real model."""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
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
from audiocraft_api.core.observer import Observer
from audiocraft_api.core.params import AudioInput, GenerationParams
from audiocraft_api.core.request import EngineRequest
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.command import GenerateCommand
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.storage.base import StoredAudio
from audiocraft_api.storage.local import LocalStore
from audiocraft_api.tasks import expiry as expiry_module
from audiocraft_api.tasks import runner as runner_module
from audiocraft_api.tasks import worker as worker_module
from audiocraft_api.tasks.command import pack, unpack
from audiocraft_api.tasks.expiry import TaskExpiry
from audiocraft_api.tasks.runner import TaskRunner
from audiocraft_api.tasks.service import TaskService
from audiocraft_api.tasks.store.sqlite import SqliteTaskStore
from audiocraft_api.tasks.task import Task
from audiocraft_api.tasks.worker import TaskWorker
from support.fakes import FakeEngine

COMMAND = GenerateCommand(prompt="solo cello", model="small", duration_seconds=1.0)
DEADLINE_SECONDS = 30.0
MELODY = AudioInput(np.random.default_rng(1).standard_normal((2, 44_100), dtype=np.float32), 44_100)


class House:
    """Everything between the routes and the engine, on a directory of its own."""

    def __init__(self, directory: Path, engine: Engine, **settings: Any) -> None:
        self.config = Config(
            audio_dir=directory / "audio",
            task_db=directory / "tasks.sqlite3",
            **{"task_concurrency": 4, "task_lease_seconds": 2.0, **settings},
        )
        self.engine = engine
        self.files = LocalStore(self.config)
        self.store = SqliteTaskStore(self.config.tasks.db, max_attempts=self.config.tasks.attempts)
        self.generation = GenerationService(engine, self.files, self.config)
        self.runner = TaskRunner(self.store, self.generation, self.files, self.config)
        self.worker = TaskWorker(self.store, self.runner, self.files, self.config)
        self.tasks = TaskService(self.store, self.config, lambda _: self.worker.wake())

    def replace_worker(self) -> None:
        """Put a new worker in the place of the closed one, as a restart does."""
        self.runner = TaskRunner(self.store, self.generation, self.files, self.config)
        self.worker = TaskWorker(self.store, self.runner, self.files, self.config)

    def wait_for(self, task: Task, reached: Callable[[Task], bool] = lambda task: task.is_final) -> Task:
        """Follow a task until it is final, or as far as asked."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        task = self.tasks.get(task.id, task.owner)
        while not reached(task):
            assert time.monotonic() < deadline, f"the task is still {task.state}: {task.error}"
            task = self.tasks.wait_for_change(task, 0.5)
        return task

    def audio_files(self) -> list[Path]:
        return sorted(self.config.storage.directory.glob("*")) if self.config.storage.directory.exists() else []

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
def house(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(runner_module, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(runner_module, "ENGINE_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(runner_module, "STORE_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0.05)
    house = House(tmp_path, engine)
    yield house
    house.close()


class TestWork:
    def test_a_task_ends_with_a_file_and_says_how_it_was_made(self, house: House) -> None:
        house.worker.start()
        done = house.wait_for(house.tasks.submit(replace(COMMAND, output_format="flac", seed=7)))
        assert (done.state, done.attempts, done.error) == ("completed", 1, None)
        assert done.result is not None
        assert done.result["success"] is True
        assert (done.result["format"], done.result["sample_rate"], done.result["seed"]) == ("flac", 32_000, 7)
        assert (done.result["duration"], done.result["model"]) == (1.0, "small")
        with house.files.open(done.result["filename"]).file as file:
            assert soundfile.info(file).frames == 32_000
        assert done.finished is not None
        assert done.started is not None

    def test_tasks_run_side_by_side_up_to_the_setting(self, house: House, engine: FakeEngine) -> None:
        engine.gate.clear()
        house.worker.start()
        tasks = [house.tasks.submit(COMMAND) for _ in range(6)]
        for task in tasks[:4]:
            house.wait_for(task, is_processing)
        assert len(engine.submitted) == 4
        assert [house.tasks.estimate(house.tasks.get(task.id)).position for task in tasks[4:]] == [1, 2]
        engine.gate.set()
        assert {house.wait_for(task).state for task in tasks} == {"completed"}

    def test_progress_is_the_engines_and_gives_an_eta(self, house: House, engine: FakeEngine) -> None:
        engine.gate.clear()
        house.worker.start()
        task = house.wait_for(house.tasks.submit(COMMAND), is_processing)
        engine.submitted[0].advance(20)
        task = house.wait_for(task, lambda task: task.num_frames_done > 0)
        assert (task.num_frames_done, task.num_frames_total) == (20, 50)
        eta_seconds = house.tasks.estimate(task).eta_seconds
        assert eta_seconds is not None
        assert 0 <= eta_seconds < DEADLINE_SECONDS

    def test_a_tune_reaches_the_engine_to_the_bit_and_is_forgotten_afterwards(
        self, house: House, engine: FakeEngine
    ) -> None:
        house.worker.start()
        task = house.wait_for(house.tasks.submit(replace(COMMAND, model="melody", melody=MELODY)))
        melody = engine.submitted[0].params.melody
        assert melody is not None
        assert melody.sample_rate == MELODY.sample_rate
        np.testing.assert_array_equal(melody.waveform, MELODY.waveform)
        assert house.store.audio(task.id) is None

    def test_nothing_runs_before_the_start_nor_after_the_end(self, house: House, engine: FakeEngine) -> None:
        before = {thread.name for thread in threading.enumerate()}
        task = house.tasks.submit(COMMAND)
        assert {thread.name for thread in threading.enumerate()} == before
        house.worker.close()
        house.worker.start()
        assert {thread.name for thread in threading.enumerate()} == before
        assert house.tasks.get(task.id).state == "queued"
        assert engine.submitted == []


class TestCancel:
    def test_a_running_task_stops_within_a_step_and_leaves_no_file(self, house: House, engine: FakeEngine) -> None:
        engine.gate.clear()
        house.worker.start()
        task = house.wait_for(house.tasks.submit(COMMAND), is_processing)
        assert house.tasks.cancel(task.id).cancel_requested
        assert house.wait_for(task).state == "canceled"
        assert house.tasks.cancel(task.id).state == "canceled"
        with pytest.raises(AudioCraftError):
            engine.submitted[0].result(DEADLINE_SECONDS)
        assert house.audio_files() == []

    def test_a_canceled_task_makes_room_for_the_next(self, house: House, engine: FakeEngine) -> None:
        engine.gate.clear()
        house.worker.start()
        tasks = [house.wait_for(house.tasks.submit(COMMAND), is_processing) for _ in range(4)]
        waiting = house.tasks.submit(COMMAND)
        house.tasks.cancel(tasks[0].id)
        house.wait_for(waiting, is_processing)

    def test_a_result_that_comes_after_the_cancel_is_deleted(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = house.tasks.submit(COMMAND)
        run_before_save(house, monkeypatch, lambda: house.tasks.cancel(task.id))
        house.worker.start()
        assert house.wait_for(task).state == "canceled"
        house.worker.close(DEADLINE_SECONDS)
        assert house.audio_files() == []


class TestFailures:
    @pytest.mark.parametrize(
        ("failure", "code"),
        [
            (GenerationFailed("The model made no sound."), "generation_failed"),
            (DeadlineExceeded("It took too long."), "deadline_exceeded"),
        ],
    )
    def test_an_error_that_would_come_again_fails_the_task_at_once(
        self, house: House, engine: FakeEngine, failure: AudioCraftError, code: str
    ) -> None:
        engine.failure = failure
        house.worker.start()
        failed = house.wait_for(house.tasks.submit(COMMAND))
        assert (failed.state, failed.error, failed.error_code) == ("failed", failure.message, code)
        assert failed.attempts == 1

    @pytest.mark.parametrize("error_class", [ModelUnavailable, OutOfMemory])
    def test_a_lack_that_passes_costs_an_attempt_and_the_seed_stays(
        self, house: House, engine: FakeEngine, error_class: type[ModelUnavailable | OutOfMemory]
    ) -> None:
        engine.failure = error_class("Not now.", retry_after_seconds=0.01)
        submit = engine.submit

        def submit_with_luck_at_the_second(params: GenerationParams, *, deadline: float | None = None) -> EngineRequest:
            if engine.submitted:
                engine.failure = None
            return submit(params, deadline=deadline)

        engine.submit = submit_with_luck_at_the_second  # type: ignore[method-assign]
        house.worker.start()
        done = house.wait_for(house.tasks.submit(COMMAND))
        assert (done.state, done.attempts) == ("completed", 2)
        first, second = (request.params for request in engine.submitted)
        assert first.seed == second.seed

    @pytest.mark.parametrize("error_class", [ModelUnavailable, OutOfMemory])
    def test_a_lack_that_stays_fails_the_task_after_two_attempts(
        self, house: House, engine: FakeEngine, error_class: type[ModelUnavailable | OutOfMemory]
    ) -> None:
        engine.failure = error_class("There is none.", retry_after_seconds=0.01)
        house.worker.start()
        failed = house.wait_for(house.tasks.submit(COMMAND))
        assert (failed.state, failed.error) == ("failed", "There is none.")
        assert (failed.error_code, failed.attempts) == (error_class.code, 2)
        assert len(engine.submitted) == 2

    @pytest.mark.parametrize("output_format", ["wav", "mp3"])
    def test_a_full_disk_under_the_audio_costs_an_attempt_and_leaves_no_file(
        self, house: House, monkeypatch: pytest.MonkeyPatch, output_format: str
    ) -> None:
        saves: list[str] = []
        save = house.files.save

        def save_or_be_full(audio: bytes, extension: str, owner: str | None = None) -> Any:
            saves.append(extension)
            if len(saves) > 1:
                return save(audio, extension, owner)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # a write fails half-way, as on a full disk
            try:
                return save(audio, extension, owner)
            except StorageUnavailable as error:
                error.retry_after_seconds = 0.05
                raise
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        monkeypatch.setattr(house.files, "save", save_or_be_full)
        house.worker.start()
        done = house.wait_for(house.tasks.submit(replace(COMMAND, output_format=output_format)))
        assert (done.state, done.attempts, saves) == ("completed", 2, [output_format] * 2)
        assert len(house.audio_files()) == 1

    def test_a_full_disk_under_a_conversion_ends_the_task_in_a_sentence(
        self, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
        house.worker.start()
        failed = house.wait_for(house.tasks.submit(replace(COMMAND, output_format="mp3")))
        assert (failed.state, failed.error_code) == ("failed", "conversion_failed")
        assert str(tmp_path) not in (failed.error or "")
        assert house.audio_files() == []

    def test_an_error_nobody_foresaw_fails_the_task_without_telling_its_cause(
        self, house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def save(*_: Any) -> StoredAudio:
            raise RuntimeError("secret cause")

        monkeypatch.setattr(house.files, "save", save)
        house.worker.start()
        failed = house.wait_for(house.tasks.submit(COMMAND))
        assert (failed.state, failed.error_code) == ("failed", "internal_error")
        assert failed.error == "The task failed because of an error in the server."
        assert "secret cause" in caplog.text

    def test_an_attempt_that_takes_too_long_fails_the_task(self, tmp_path: Path, engine: FakeEngine) -> None:
        engine.gate.clear()
        house = House(tmp_path, engine, task_deadline_seconds=0.2)
        house.worker.start()
        failed = house.wait_for(house.tasks.submit(COMMAND))
        assert (failed.state, failed.error_code) == ("failed", "deadline_exceeded")
        house.close()

    def test_a_full_engine_costs_no_attempt(self, house: House, engine: FakeEngine) -> None:
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
        house.worker.start()
        task = house.tasks.submit(COMMAND)
        for _ in range(3):
            assert refused.wait(DEADLINE_SECONDS)
            refused.clear()
        engine.capacity = 1
        assert house.wait_for(task).attempts == 1

    def test_a_result_waits_for_a_store_that_has_an_outage(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        num_outages = 3
        complete = house.store.complete

        def complete_after_outages(task: Task, result: dict[str, Any]) -> bool:
            nonlocal num_outages
            if num_outages:
                num_outages -= 1
                raise StorageUnavailable("The task store cannot be used now; try again later.")
            return complete(task, result)

        monkeypatch.setattr(house.store, "complete", complete_after_outages)
        house.worker.start()
        done = house.wait_for(house.tasks.submit(COMMAND))
        assert (done.state, done.attempts, num_outages) == ("completed", 1, 0)
        assert len(house.audio_files()) == 1

    @pytest.mark.parametrize("is_stopping", [False, True])
    def test_a_result_whose_answer_was_lost_is_kept(
        self, house: House, monkeypatch: pytest.MonkeyPatch, is_stopping: bool
    ) -> None:
        complete, stopping = house.store.complete, threading.Event()

        def complete_and_lose_the_answer(task: Task, result: dict[str, Any]) -> bool:
            if complete(task, result):
                raise StorageUnavailable("The connection broke.")
            return False

        monkeypatch.setattr(house.store, "complete", complete_and_lose_the_answer)
        if is_stopping:
            run_before_save(house, monkeypatch, stopping.set)
        task = house.tasks.submit(COMMAND)
        claimed = house.store.claim("worker", 30.0)
        assert claimed is not None
        ended: list[str] = []
        observer = Observer()
        monkeypatch.setattr(observer, "task_ended", ended.append)
        TaskRunner(house.store, house.generation, house.files, house.config, observer).run(claimed, stopping)
        done = house.tasks.get(task.id)
        assert (done.state, ended) == ("completed", ["completed"])
        assert done.result is not None
        assert [file.name for file in house.audio_files()] == [done.result["filename"]]

    def test_a_worker_goes_on_after_an_error_that_nobody_foresaw(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enter, num_failures = runner_module.Heartbeat.__enter__, 4  # as many as there are threads

        def enter_or_fail(heartbeat: runner_module.Heartbeat) -> runner_module.Heartbeat:
            nonlocal num_failures
            if num_failures:
                num_failures -= 1
                raise RuntimeError("can't start new thread")
            return enter(heartbeat)

        monkeypatch.setattr(runner_module.Heartbeat, "__enter__", enter_or_fail)
        house.worker.start()
        lost = [house.tasks.submit(COMMAND) for _ in range(4)]
        assert house.wait_for(house.tasks.submit(COMMAND)).state == "completed"
        assert {house.wait_for(task).state for task in lost} == {"completed"}  # once their leases are over

    def test_a_worker_that_was_replaced_deletes_its_late_result(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = house.tasks.submit(COMMAND)
        stolen: list[Task | None] = []

        def steal() -> None:
            with house.store._file.write() as db:  # at once: the worker's other threads look for work too
                db.execute(
                    "UPDATE tasks SET lease = 'other/1', attempts = 2, held_until = held_until + 30, hold_seconds = 60"
                )
            stolen.append(house.store.get(task.id))

        run_before_save(house, monkeypatch, steal)
        house.worker.start()
        house.wait_for(task, lambda task: task.attempts == 2)
        house.worker.close(DEADLINE_SECONDS)
        assert house.audio_files() == []
        assert stolen[0] is not None
        assert house.store.complete(stolen[0], {"filename": "other.wav"})


def refuse(_filename: str) -> None:
    raise StorageUnavailable("The audio store cannot be used now.")


def run_before_save(house: House, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something at the last moment before the audio is stored."""
    save = house.files.save

    def act_and_save(audio: bytes, extension: str, owner: str | None = None) -> StoredAudio:
        action()
        return save(audio, extension, owner)

    monkeypatch.setattr(house.files, "save", act_and_save)


class TestRestart:
    def test_a_stop_lets_running_tasks_finish_and_leaves_the_others_queued(
        self, house: House, engine: FakeEngine
    ) -> None:
        engine.gate.clear()
        house.worker.start()
        tasks = [house.tasks.submit(COMMAND) for _ in range(6)]
        for task in tasks[:4]:
            house.wait_for(task, is_processing)
        closing = threading.Thread(target=house.worker.close, args=(DEADLINE_SECONDS,))
        closing.start()
        engine.gate.set()
        closing.join()
        states = [house.tasks.get(task.id).state for task in tasks]
        assert states == ["completed"] * 4 + ["queued"] * 2

    def test_a_stop_gives_back_what_the_grace_did_not_suffice_for_and_the_next_start_finishes_it(
        self, house: House, engine: FakeEngine
    ) -> None:
        others = threading.enumerate()
        engine.gate.clear()
        house.worker.start()
        tasks = [house.wait_for(house.tasks.submit(COMMAND), is_processing) for _ in range(3)]
        started = time.monotonic()
        house.worker.close(0.1)
        assert time.monotonic() - started < 5.0
        given_back = [house.tasks.get(task.id) for task in tasks]
        assert [(task.state, task.attempts) for task in given_back] == [("queued", 0)] * 3
        own = [thread.name for thread in threading.enumerate() if thread not in others]
        assert not any(name.startswith(("task-worker", "heartbeat")) for name in own)
        house.replace_worker()
        house.worker.start()
        engine.gate.set()
        assert [(house.wait_for(task).state, house.wait_for(task).attempts) for task in tasks] == [("completed", 1)] * 3

    def test_the_tasks_of_a_killed_server_run_again_when_their_lease_is_over(self, house: House) -> None:
        task = house.tasks.submit(COMMAND)
        assert house.store.claim("killed", 0.2) is not None
        house.worker.start()
        done = house.wait_for(task)
        assert (done.state, done.attempts) == ("completed", 2)
        assert len(house.audio_files()) == 1

    def test_a_long_task_keeps_its_lease(self, house: House, engine: FakeEngine) -> None:
        engine.gate.clear()
        house.worker.start()
        task = house.wait_for(house.tasks.submit(COMMAND), is_processing)
        beats = []
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(beats) < 50 and time.monotonic() < deadline:  # 50 beats of 0.05 s are longer than the lease
            engine.submitted[0].advance(len(beats) + 1)
            task = house.wait_for(task, lambda task: task.num_frames_done > len(beats))
            beats.append(task.num_frames_done)
            assert house.store.claim("other", 1.0) is None
        engine.gate.set()
        assert house.wait_for(task).attempts == 1


class TestExpiry:
    def test_files_that_could_not_be_deleted_are_deleted_later_and_before_more_is_forgotten(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(expiry_module, "EXPIRE_SECONDS", 0.0)
        house.worker.start()
        for _ in range(3):
            house.wait_for(house.tasks.submit(COMMAND))
        expiry = TaskExpiry(house.store, house.files, Config(task_max_age_seconds=1e-9))
        with monkeypatch.context() as patch:
            patch.setattr(house.files, "delete", refuse)
            with pytest.raises(StorageUnavailable):
                expiry.run()
            kept = house.wait_for(house.tasks.submit(COMMAND))
            with pytest.raises(StorageUnavailable):
                expiry.run()
            assert house.tasks.get(kept.id).state == "completed"
            assert len(house.audio_files()) == 4
        expiry.run()
        assert house.audio_files() == []

    def test_finished_tasks_and_their_files_expire_together(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(expiry_module, "EXPIRE_SECONDS", 0.0)
        house.worker.start()
        done = house.wait_for(house.tasks.submit(COMMAND))
        assert len(house.audio_files()) == 1
        house.worker.close(DEADLINE_SECONDS)
        house.config = house.config.model_copy(
            update={"tasks": house.config.tasks.model_copy(update={"max_age_seconds": 0.01})}
        )
        house.replace_worker()
        house.worker.start()
        with pytest.raises(NotFound):
            house.wait_for(done, lambda _: False)
        house.worker.close(DEADLINE_SECONDS)
        assert house.audio_files() == []


class TestService:
    def test_a_task_is_unknown_to_everybody_but_its_owner(self, house: House) -> None:
        task = house.tasks.submit(COMMAND, owner="me")
        assert house.tasks.get(task.id, "me").id == task.id
        for stranger in ("you", None):
            with pytest.raises(NotFound, match="There is no such task"):
                house.tasks.get(task.id, stranger)
            with pytest.raises(NotFound):
                house.tasks.cancel(task.id, stranger)
            assert house.tasks.page(stranger) == []
        assert [mine.id for mine in house.tasks.page("me")] == [task.id]

    def test_an_idempotency_key_stands_for_the_whole_request(self, house: House) -> None:
        command = replace(COMMAND, melody=MELODY)
        task = house.tasks.submit(command, idempotency_key="once")
        assert house.tasks.submit(replace(command), idempotency_key="once").id == task.id
        other_tune = AudioInput(MELODY.waveform * 0.5, MELODY.sample_rate)
        for other in (replace(command, seed=1), replace(command, melody=None), replace(command, melody=other_tune)):
            with pytest.raises(IdempotencyConflict):
                house.tasks.submit(other, idempotency_key="once")
        with pytest.raises(IdempotencyConflict):
            house.tasks.submit(command, idempotency_key="once", webhook_url="https://example.org")

    def test_a_full_queue_says_when_to_come_again(self, tmp_path: Path, engine: FakeEngine) -> None:
        house = House(tmp_path, engine, max_queued_tasks=1)
        house.tasks.submit(COMMAND)
        with pytest.raises(QueueFull) as caught:
            house.tasks.submit(COMMAND)
        assert 1.0 <= caught.value.retry_after_seconds <= 60.0
        house.close()

    def test_a_queued_task_has_an_eta_once_the_speed_is_known(self, house: House) -> None:
        task = house.tasks.submit(COMMAND)
        assert house.tasks.estimate(task).eta_seconds is None
        house.worker.start()
        house.wait_for(task)
        house.worker.close(DEADLINE_SECONDS)
        eta_seconds = house.tasks.estimate(house.tasks.submit(COMMAND)).eta_seconds
        assert eta_seconds is not None
        assert eta_seconds >= 0

    def test_a_command_is_packed_the_same_way_twice_and_unpacked_whole(self) -> None:
        command = replace(COMMAND, prompt="naïve 🎺", seed=2**53 - 1, melody=MELODY)
        assert pack(command) == pack(command)
        unpacked = unpack(*pack(command))
        assert unpacked.melody is not None
        np.testing.assert_array_equal(unpacked.melody.waveform, MELODY.waveform)
        assert replace(unpacked, melody=None).__dict__ == replace(command, melody=None).__dict__

    def test_a_task_of_another_release_fails_in_a_sentence(self) -> None:
        with pytest.raises(GenerationFailed, match="another release"):
            unpack({"prompt": "a", "unheard_of": 1}, None)


class TestRealModel:
    def test_tasks_share_the_engine_and_make_what_the_synchronous_call_makes(
        self, tmp_path: Path, demo_checkpoints: Path, request: pytest.FixtureRequest
    ) -> None:
        from audiocraft_api.engine.batching import BatchingEngine
        from audiocraft_api.model.catalog import Catalog
        from audiocraft_api.model.model_cache import ModelCache

        config = Config(checkpoints_dir=demo_checkpoints, device="cpu", offline=True, precision="exact")
        cache = ModelCache(Catalog(config), config)
        house = House(tmp_path, BatchingEngine(cache, config.engine))
        commands = [replace(COMMAND, model="demo", seed=seed) for seed in (1, 2, 3)]
        request.addfinalizer(cache.close)
        request.addfinalizer(house.close)
        house.worker.start()
        done = [house.wait_for(task) for task in [house.tasks.submit(command) for command in commands]]
        assert [(task.state, task.error) for task in done] == [("completed", None)] * 3
        for task, command in zip(done, commands, strict=True):
            assert task.result is not None
            alone = house.generation.generate_file(command, Waiter())
            with house.files.open(task.result["filename"]).file as made, house.files.open(alone.filename).file as twin:
                assert made.read() == twin.read()
