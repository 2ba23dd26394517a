"""Tasks on many machines: a real Redis, real Celery workers, a real gunicorn, killed at will.

The workers generate tones with a fake engine; one test loads a real model.
"""

from __future__ import annotations

import base64
import io
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import requests
import soundfile

from audiocraft_api.config import Config
from audiocraft_api.core.errors import Unavailable
from audiocraft_api.tasks.celery.remote import INTERACTIVE_OWNER
from audiocraft_api.tasks.celery.transport import CeleryTransport, create_celery
from audiocraft_api.tasks.store.redis import RedisTaskStore
from audiocraft_api.tasks.task import Task
from support.celery_worker import CeleryProcess
from support.melodies import midi_file
from support.rabbit_server import RabbitServer
from support.redis_server import RedisServer
from support.served import ROOT, Server, free_port, serve, wait_until

REQUEST = {"prompt": "solo cello", "duration": 1}
LEASE_SECONDS = 2.0
CONCURRENCY = 4
TIMEOUT_SECONDS = 120.0  # of every wait: a worker that loads a real model imports for half a minute on busy cores


class Deployment:
    """A server, a Redis as store and broker, workers, and an audio directory that they share."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.hold_file = directory / "hold"  # while it exists, generations do not finish
        self.redis = RedisServer(directory)
        self.settings = {
            "task_backend": "celery",
            "redis_url": self.redis.url,
            "audio_dir": directory / "audio",
            "task_lease_seconds": LEASE_SECONDS,
            "task_concurrency": CONCURRENCY,
            "graceful_timeout_seconds": 5,
            "offline": True,
        } | settings
        self.server: Server
        self.workers: list[CeleryProcess] = []
        self._serving = ExitStack()
        self.redis.start()

    def start_server(self) -> None:
        self.server = self._serving.enter_context(serve(self.directory, **self.settings))

    def start_worker(self, **options: Any) -> CeleryProcess:
        log = self.directory / f"worker-{len(self.workers)}.log"
        worker = CeleryProcess(log, self.hold_file, **self.settings | options)
        worker.start()
        self.workers.append(worker)
        return worker

    def pause_generation(self) -> None:
        """Keep generations from finishing until `resume_generation`."""
        self.hold_file.touch()

    def resume_generation(self) -> None:
        self.hold_file.unlink(missing_ok=True)

    def submit(self, **fields: Any) -> str:
        response = self.server.post("/generate-async", json=REQUEST | fields)
        assert response.status_code == 202, response.text
        return str(response.json()["task_id"])

    def get_task(self, task_id: str) -> dict[str, Any]:
        response = self.server.get(f"/tasks/{task_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def wait_for(self, task_id: str, *states: str, seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
        """Poll until the task is in one of `states`, by default a final one."""
        wanted = states or ("completed", "failed", "canceled")
        wait_until(lambda: self.get_task(task_id)["state"] in wanted, seconds)
        return self.get_task(task_id)

    def open_store(self) -> RedisTaskStore:
        return RedisTaskStore(self.redis.url, max_attempts=2)

    def audio_files(self) -> set[str]:
        return {path.name for path in (self.directory / "audio").glob("*.wav")}

    def close(self) -> None:
        self.resume_generation()
        for worker in self.workers:
            worker.kill()
        self._serving.close()
        self.redis.kill()


@pytest.fixture(scope="module")
def shared_deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        deployment.start_worker()
        deployment.start_server()
        yield deployment
    finally:
        deployment.close()


@pytest.fixture
def deployment(shared_deployment: Deployment) -> Iterator[Deployment]:
    """A deployment with a worker, which tests leave as they found it."""
    yield shared_deployment
    shared_deployment.resume_generation()


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Callable[..., Deployment]]:
    """Opens a deployment of the test's own, without workers, for tests that break things."""
    with ExitStack() as opened:

        def deploy(**settings: Any) -> Deployment:
            deployment = Deployment(tmp_path, **settings)
            opened.callback(deployment.close)
            deployment.start_server()
            return deployment

        yield deploy


class TestSharedDeployment:
    def test_a_worker_makes_what_the_server_accepts_and_serves(self, deployment: Deployment) -> None:
        done = deployment.wait_for(deployment.submit(output_format="flac", seed=7))
        assert (done["state"], done["attempts"], done["seed"]) == ("completed", 1, 7)
        assert (done["result"]["format"], done["result"]["duration"]) == ("flac", 1.0)
        audio = deployment.server.get(done["audio_url"])
        assert (audio.status_code, audio.content[:4]) == (200, b"fLaC")

    def test_tasks_run_side_by_side_and_the_others_wait_in_line(self, deployment: Deployment) -> None:
        deployment.pause_generation()
        running = [deployment.submit() for _ in range(CONCURRENCY)]
        for task_id in running:
            assert deployment.wait_for(task_id, "processing")
        waiting = [deployment.submit() for _ in range(2)]
        assert [deployment.get_task(task_id)["queue_position"] for task_id in waiting] == [1, 2]
        wait_until(lambda: deployment.server.get("/health").json()["queue"] == {"waiting": 2, "running": CONCURRENCY})
        wait_until(lambda: deployment.get_task(running[0])["total"] == 50)
        deployment.resume_generation()
        assert {deployment.wait_for(task_id)["state"] for task_id in running + waiting} == {"completed"}

    def test_a_worker_starts_the_next_task_as_soon_as_a_thread_is_free(self, deployment: Deployment) -> None:
        tasks = [deployment.submit() for _ in range(20 * CONCURRENCY)]
        deployment.wait_for(tasks[-1], seconds=6)  # left alone, Celery looks once a second: 13 s here
        for task_id in tasks:  # the last one may overtake others, which would then hold threads in the next test
            deployment.wait_for(task_id)

    def test_a_queued_task_is_canceled_at_once_and_a_running_one_soon(self, deployment: Deployment) -> None:
        deployment.pause_generation()
        running = [deployment.submit() for _ in range(CONCURRENCY)]
        for task_id in running:
            deployment.wait_for(task_id, "processing")
        queued = deployment.submit()
        assert deployment.server.delete(f"/tasks/{queued}").json()["state"] == "canceled"
        assert deployment.server.delete(f"/tasks/{running[0]}").status_code == 202
        assert deployment.wait_for(running[0], seconds=5)["state"] == "canceled"
        again = deployment.server.delete(f"/tasks/{running[0]}")
        assert (again.status_code, again.json()["state"]) == (200, "canceled")
        deployment.resume_generation()
        assert {deployment.wait_for(task_id)["state"] for task_id in running[1:]} == {"completed"}
        assert deployment.get_task(queued)["state"] == "canceled"

    @pytest.mark.parametrize("task_id", ["nothing", "00000000-0000-4000-8000-000000000000"])
    def test_an_unknown_task_is_404(self, deployment: Deployment, task_id: str) -> None:
        assert deployment.server.get(f"/tasks/{task_id}").status_code == 404
        assert deployment.server.delete(f"/tasks/{task_id}").status_code == 404

    def test_the_synchronous_route_answers_with_a_file_or_with_the_audio(self, deployment: Deployment) -> None:
        by_url = deployment.server.post("/generate", json=REQUEST | {"seed": 7})
        assert by_url.status_code == 200, by_url.text
        audio = deployment.server.get(by_url.json()["audio_url"]).content
        files = deployment.audio_files()
        inline = deployment.server.post("/generate", json=REQUEST | {"seed": 7, "return_type": "base64"})
        assert base64.b64decode(inline.json()["audio"]) == audio
        assert deployment.audio_files() == files
        ignored = {"request_id", "generation_time", "audio", "audio_url"}
        results = [
            {name: response.json()[name] for name in set(response.json()) - ignored} for response in (by_url, inline)
        ]
        for response in results:
            assert response["recipe"].pop("created")
        assert results[0] == results[1]

    def test_the_synchronous_route_answers_with_variations(self, deployment: Deployment) -> None:
        request = REQUEST | {"seed": 7, "n": 2}
        by_url = deployment.server.post("/generate", json=request).json()["variations"]
        assert [variation["seed"] for variation in by_url] == [7, 8]
        audio = [deployment.server.get(variation["audio_url"]).content for variation in by_url]
        files = deployment.audio_files()
        inline = deployment.server.post("/generate", json=request | {"return_type": "base64"}).json()["variations"]
        assert [base64.b64decode(variation["audio"]) for variation in inline] == audio
        assert deployment.audio_files() == files

    def test_stems_come_from_the_worker(self, deployment: Deployment) -> None:
        request = REQUEST | {"seed": 7, "model_size": "demo", "stems": True}
        by_url = deployment.server.post("/generate", json=request).json()["stems"]
        stems = {name: deployment.server.get(url).content for name, url in by_url.items()}
        files = deployment.audio_files()
        inline = deployment.server.post("/generate", json=request | {"return_type": "base64"}).json()["stems"]
        assert {name: base64.b64decode(stem) for name, stem in inline.items()} == stems
        assert deployment.audio_files() == files

    def test_a_melody_reaches_the_worker(self, deployment: Deployment) -> None:
        file = io.BytesIO()
        soundfile.write(file, [0.1, -0.1] * 8000, 16_000, format="WAV")
        form = {"prompt": "a", "duration": "1"}
        response = deployment.server.post("/generate-with-melody", data=form, files={"melody": file.getvalue()})
        assert response.status_code == 200, response.text
        assert response.json()["model"] == "melody"

    @pytest.mark.parametrize("kind", ["notes", "a MIDI file"])
    def test_notes_reach_the_worker(self, deployment: Deployment, kind: str) -> None:
        form = {"prompt": "a", "duration": "1"} | ({"notes": "C4:1 E4:1", "bpm": "90"} if kind == "notes" else {})
        files = {} if kind == "notes" else {"melody": midi_file([(60, 1), (64, 1)])}
        response = deployment.server.post("/generate-with-melody", data=form, files=files)
        assert response.status_code == 200, response.text
        recipe = response.json()["recipe"]
        assert recipe.get("notes") == form.get("notes")
        assert (recipe["melody"] is None) == (kind == "notes")

    def test_a_client_that_leaves_cancels_its_generation(self, deployment: Deployment) -> None:
        deployment.pause_generation()
        with pytest.raises(requests.Timeout):
            deployment.server.post("/generate", json=REQUEST, timeout=1)
        store = deployment.open_store()
        newest = store.page(INTERACTIVE_OWNER)[0]
        wait_until(lambda: store.get(newest.id).is_final, TIMEOUT_SECONDS)
        assert store.get(newest.id).state == "canceled"
        store.close()
        assert newest.id not in deployment.server.get("/tasks").text

    def test_a_client_that_waits_does_not_wait_behind_the_queue(self, deployment: Deployment) -> None:
        deployment.pause_generation()
        tasks = [deployment.submit() for _ in range(CONCURRENCY * 6)]
        with ThreadPoolExecutor() as threads:
            response = threads.submit(deployment.server.post, "/generate", json=REQUEST)
            wait_until(lambda: deployment.server.get("/health").json()["queue"]["waiting"] == CONCURRENCY * 5 + 1)
            deployment.resume_generation()
            assert response.result().status_code == 200
        store = deployment.open_store()
        waited_for = store.page(INTERACTIVE_OWNER)[0]
        finished = [deployment.wait_for(task_id)["task_id"] for task_id in tasks]
        num_before = sum(store.get(task_id).started < waited_for.started for task_id in finished)
        store.close()
        assert num_before <= CONCURRENCY * 3

    def test_streams_are_refused_in_a_sentence(self, deployment: Deployment) -> None:
        response = deployment.server.post("/generate-stream", json=REQUEST)
        assert (response.status_code, response.json()["code"]) == (501, "not_streamable")
        assert "/generate" in response.json()["error"]

    def test_the_server_loads_neither_torch_nor_a_model(self, deployment: Deployment) -> None:
        children = subprocess.run(
            ["pgrep", "-P", str(deployment.server.process.pid)], capture_output=True, text=True, check=True
        )
        (process,) = children.stdout.split()
        assert deployment.server.post("/generate", json=REQUEST).status_code == 200
        assert "libtorch" not in Path(f"/proc/{process}/maps").read_text()
        assert deployment.server.get("/health").json()["models_loaded"] == []


class TestFaults:
    @pytest.mark.timing
    def test_a_killed_workers_task_runs_again_within_its_lease_and_five_seconds(
        self, deploy: Callable[..., Deployment]
    ) -> None:
        deployment = deploy()
        deployment.pause_generation()
        worker = deployment.start_worker()
        task_id = deployment.submit()
        deployment.wait_for(task_id, "processing")
        other = deployment.start_worker()
        wait_until(lambda: "Receiving tasks" in other.log, TIMEOUT_SECONDS)
        worker.kill()
        killed = time.monotonic()
        wait_until(lambda: deployment.get_task(task_id)["attempts"] == 2, TIMEOUT_SECONDS)
        seconds = time.monotonic() - killed
        print(f"ran again {seconds:.1f} s after the kill, with a lease of {LEASE_SECONDS:g} s")
        deployment.resume_generation()
        assert deployment.wait_for(task_id)["state"] == "completed"
        assert seconds <= LEASE_SECONDS + 5
        assert len(deployment.audio_files()) == 1

    @pytest.mark.fault
    def test_a_stopping_worker_finishes_what_it_can_and_gives_back_the_rest(
        self, deploy: Callable[..., Deployment]
    ) -> None:
        deployment = deploy(graceful_timeout_seconds=3)
        worker = deployment.start_worker()
        deployment.pause_generation()
        task_id = deployment.submit()
        deployment.wait_for(task_id, "processing")
        assert worker.terminate() == 0
        released = deployment.get_task(task_id)
        assert (released["state"], released["attempts"]) == ("processing", 0) or released["state"] == "queued"
        worker = deployment.start_worker()
        deployment.wait_for(task_id, "processing")
        with ThreadPoolExecutor() as threads:
            status = threads.submit(worker.terminate)
            wait_until(lambda: "Draining" in worker.log)
            deployment.resume_generation()
            assert status.result() == 0
        done = deployment.get_task(task_id)
        assert (done["state"], done["attempts"]) == ("completed", 1)

    @pytest.mark.fault
    def test_a_stopping_server_lets_waiting_clients_have_their_audio_and_ends_the_others(
        self, deploy: Callable[..., Deployment]
    ) -> None:
        deployment = deploy(graceful_timeout_seconds=4)
        deployment.start_worker()
        deployment.pause_generation()
        with ThreadPoolExecutor() as threads:
            for is_held, status in ((False, 200), (True, 503)):
                response = threads.submit(deployment.server.post, "/generate", json=REQUEST)
                wait_until(lambda: deployment.server.get("/health").json()["queue"]["running"] == 1, TIMEOUT_SECONDS)
                stopped = threads.submit(deployment.server.terminate)
                wait_until(lambda: "Draining" in deployment.server.log)
                if not is_held:
                    deployment.resume_generation()
                assert response.result().status_code == status
                assert stopped.result() == 0
                deployment.pause_generation()
                deployment.start_server()
            store = deployment.open_store()
            wait_until(lambda: {task.state for task in store.page(INTERACTIVE_OWNER)} == {"completed", "canceled"})
            store.close()

    @pytest.mark.fault
    def test_tasks_outlive_a_broker_that_comes_back_empty(
        self, deploy: Callable[..., Deployment], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        broker = RedisServer(tmp_path_factory.mktemp("broker"), appendonly=False)
        broker.start()
        try:
            deployment = deploy(broker_url=broker.url)
            tasks = [deployment.submit() for _ in range(2 * CONCURRENCY)]
            transport = CeleryTransport(create_celery(Config(**deployment.settings)))
            wait_until(lambda: transport.num_waiting() == len(tasks))
            broker.kill()
            tasks.append(deployment.submit())  # accepted, since the store is there
            broker.start()
            assert transport.num_waiting() == 0
            deployment.start_worker()
            assert {deployment.wait_for(task_id)["state"] for task_id in tasks} == {"completed"}
            broker.kill()
            tasks = [deployment.submit() for _ in range(CONCURRENCY)]
            broker.start()
            assert {deployment.wait_for(task_id)["state"] for task_id in tasks} == {"completed"}
            assert len(deployment.audio_files()) == 3 * CONCURRENCY + 1
        finally:
            deployment.close()
            broker.kill()

    @pytest.mark.fault
    @pytest.mark.parametrize("seconds", [5, 20])
    def test_an_outage_of_redis_refuses_new_tasks_and_loses_none(
        self, deploy: Callable[..., Deployment], seconds: float
    ) -> None:
        deployment = deploy(task_lease_seconds=15)
        deployment.start_worker()
        deployment.pause_generation()
        task_id = deployment.submit()
        deployment.wait_for(task_id, "processing")
        with ThreadPoolExecutor() as threads:
            response = threads.submit(deployment.server.post, "/generate", json=REQUEST)
            wait_until(lambda: deployment.server.get("/health").json()["queue"]["running"] == 2)
            deployment.redis.kill()
            down = time.monotonic()
            for route in ("/generate", "/generate-async"):
                refused = deployment.server.post(route, json=REQUEST, timeout=10)
                assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
                assert "Retry-After" in refused.headers
            assert deployment.server.get(f"/tasks/{task_id}").status_code == 503
            assert deployment.server.get("/health").status_code == 200
            deployment.resume_generation()
            threading.Event().wait(seconds - (time.monotonic() - down))
            deployment.redis.start()
            assert response.result().status_code == 200
        assert deployment.wait_for(task_id)["state"] == "completed"
        assert deployment.wait_for(deployment.submit())["state"] == "completed"

    @pytest.mark.fault
    def test_a_task_that_kills_its_workers_fails_after_two_attempts(self, deploy: Callable[..., Deployment]) -> None:
        deployment = deploy()
        deployment.pause_generation()
        task_id = deployment.submit()
        for attempt in (1, 2):
            worker = deployment.start_worker()
            wait_until(lambda: deployment.get_task(task_id)["attempts"] == attempt, TIMEOUT_SECONDS)  # noqa: B023
            worker.kill()
        deployment.resume_generation()
        deployment.start_worker()
        assert deployment.wait_for(task_id)["code"] == "task_interrupted"
        assert deployment.wait_for(deployment.submit())["state"] == "completed"

    @pytest.mark.fault
    def test_everything_killed_and_started_again_finishes_what_was_accepted(
        self, deploy: Callable[..., Deployment]
    ) -> None:
        deployment = deploy(task_attempts=3)  # both kills may meet the same task
        deployment.start_worker(seconds=0.5)
        tasks = [deployment.submit() for _ in range(40)]
        for task_id in (tasks[5], tasks[15]):
            deployment.wait_for(task_id)
            deployment.pause_generation()  # so that some are running when everything is killed
            wait_until(lambda: deployment.server.get("/health").json()["queue"]["running"] > 0, TIMEOUT_SECONDS)
            deployment.redis.kill()
            deployment.workers[-1].kill()
            deployment.server.process.kill()
            deployment.server.process.wait()
            deployment.resume_generation()
            deployment.redis.start()
            deployment.start_server()
            deployment.start_worker(seconds=0.5)
        states = [deployment.wait_for(task_id)["state"] for task_id in tasks]
        assert states == ["completed"] * len(tasks)

    @pytest.mark.fault
    def test_25_random_kills_of_workers_over_300_tasks_lose_none_and_double_none(
        self, deploy: Callable[..., Deployment]
    ) -> None:
        deployment = deploy(max_queued_tasks=300, task_lease_seconds=1, task_attempts=10)
        random_ = random.Random(1)
        tasks = [deployment.submit() for _ in range(300)]
        workers = [deployment.start_worker(seconds=1.6) for _ in range(2)]
        for _ in range(25):
            threading.Event().wait(random_.uniform(0.5, 3.0))
            queue = deployment.server.get("/health").json()["queue"]
            assert queue["waiting"] + queue["running"] > 0, "the kills came too late to matter"
            worker = random_.choice(workers)
            worker.kill()
            worker.start()
        done = [deployment.wait_for(task_id, seconds=120) for task_id in tasks]
        filenames = [task["result"]["filename"] for task in done if task["state"] == "completed"]
        num_again = sum(task["attempts"] > 1 for task in done)
        num_unreferenced = len(deployment.audio_files() - set(filenames))
        print(
            f"25 kills: {len(filenames)} of 300 finished, {num_again} ran again, {num_unreferenced} unreferenced files"
        )
        assert len(set(filenames)) == 300
        assert set(filenames) <= deployment.audio_files()
        assert num_again > 0


class TestRabbit:
    @pytest.mark.fault
    def test_rabbitmq_carries_tasks_and_redis_keeps_them(
        self, deploy: Callable[..., Deployment], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        broker = RabbitServer(tmp_path_factory.mktemp("rabbit"))
        broker.start()
        try:
            deployment = deploy(broker_url=broker.url)
            tasks = [deployment.submit() for _ in range(2 * CONCURRENCY)]
            transport = CeleryTransport(create_celery(Config(**deployment.settings)))
            wait_until(lambda: transport.num_waiting() == len(tasks))
            deployment.start_worker()
            done = [deployment.wait_for(task_id) for task_id in tasks]
            assert [(task["state"], task["attempts"]) for task in done] == [("completed", 1)] * len(tasks)
            assert deployment.server.post("/generate", json=REQUEST).status_code == 200
            wait_until(lambda: transport.num_waiting() == 0)
        finally:
            deployment.close()
            broker.stop()


class TestProcess:
    def test_a_real_model_is_loaded_by_the_worker_alone(
        self, deploy: Callable[..., Deployment], demo_checkpoints: Path
    ) -> None:
        deployment = deploy(checkpoints_dir=demo_checkpoints, device="cpu", preload_models="demo")
        worker = deployment.start_worker(app="audiocraft_api.celery_app")
        assert deployment.server.get("/ready").status_code == 200  # it loads nothing itself
        wait_until(lambda: "Preloaded demo" in worker.log, TIMEOUT_SECONDS)
        response = deployment.server.post("/generate", json=REQUEST | {"model_size": "demo", "seed": 7})
        assert (response.status_code, response.json()["model"]) == (200, "demo")
        assert deployment.server.get(response.json()["audio_url"]).status_code == 200
        assert deployment.server.get("/health").json()["models_loaded"] == []

    @pytest.mark.parametrize(
        ("arguments", "settings", "sentence"),
        [
            (["-P", "processes"], {}, "neither CUDA nor the engine's threads survive a fork"),
            ([], {"AUDIOCRAFT_API_THREADS": "0"}, "AUDIOCRAFT_API_THREADS=0 is not valid"),
        ],
        ids=["prefork", "setting"],
    )
    def test_a_worker_that_cannot_work_does_not_start(
        self, arguments: list[str], settings: dict[str, str], sentence: str
    ) -> None:
        run = subprocess.run(
            [Path(sys.executable).parent / "celery", "-A", "audiocraft_api.celery_app", "worker", *arguments],
            cwd=ROOT,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.returncode != 0
        assert sentence in run.stderr
        assert "Traceback" not in run.stderr


class TestTransport:
    @pytest.mark.timing
    def test_a_broker_that_is_down_holds_up_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        url = f"amqp://127.0.0.1:{free_port()}//"
        transport = CeleryTransport(create_celery(Config(broker_url=url)))
        started = time.monotonic()
        for _ in range(100):
            transport.announce(cast(Task, None))
        assert time.monotonic() - started < 1
        with pytest.raises(Unavailable):
            transport.announce_claimable(1)
        with pytest.raises(Unavailable):
            transport.num_waiting()
        wait_until(lambda: "The message broker cannot be used" in caplog.text)
        transport.close()
