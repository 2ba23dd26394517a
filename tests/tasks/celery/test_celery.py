"""Tasks on many machines: a real Redis, real Celery workers, a real gunicorn, killed at will.

The workers make tones with a fake engine, but for one that loads a model.
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
from support.rabbit_server import RabbitServer
from support.redis_server import RedisServer
from support.served import ROOT, Server, free_port, serve, wait_until

REQUEST = {"prompt": "solo cello", "duration": 1}
LEASE_SECONDS = 2.0
CONCURRENCY = 4
SECONDS = 40.0  # deadline of every wait


class Site:
    """Several machines in one: a server, a store and broker, workers, and the disk that they share."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.hold = directory / "hold"  # while it is there, generations go on
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

    def serve(self) -> None:
        self.server = self._serving.enter_context(serve(self.directory, **self.settings))

    def add_worker(self, **options: Any) -> CeleryProcess:
        log = self.directory / f"worker-{len(self.workers)}.log"
        worker = CeleryProcess(log, self.hold, **self.settings | options)
        worker.start()
        self.workers.append(worker)
        return worker

    def submit(self, **fields: Any) -> str:
        answer = self.server.post("/generate-async", json=REQUEST | fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    def look(self, task_id: str) -> dict[str, Any]:
        answer = self.server.get(f"/tasks/{task_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait_for(self, task_id: str, *states: str, seconds: float = SECONDS) -> dict[str, Any]:
        """Poll until the task is in one of `states`, by default a final one."""
        wanted = states or ("completed", "failed", "canceled")
        wait_until(lambda: self.look(task_id)["state"] in wanted, seconds)
        return self.look(task_id)

    def open_store(self) -> RedisTaskStore:
        return RedisTaskStore(self.redis.url, max_attempts=2)

    def audio_files(self) -> set[str]:
        return {path.name for path in (self.directory / "audio").glob("*.wav")}

    def close(self) -> None:
        self.hold.unlink(missing_ok=True)
        for worker in self.workers:
            worker.kill()
        self._serving.close()
        self.redis.kill()


@pytest.fixture(scope="module")
def standing_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    try:
        site.add_worker()
        site.serve()
        yield site
    finally:
        site.close()


@pytest.fixture
def site(standing_site: Site) -> Iterator[Site]:
    """A site with a worker, which tests leave as they found it."""
    yield standing_site
    standing_site.hold.unlink(missing_ok=True)


@pytest.fixture
def open_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Opens a site of the test's own, without workers, for tests that break things."""
    with ExitStack() as opened:

        def open_site(**settings: Any) -> Site:
            site = Site(tmp_path, **settings)
            opened.callback(site.close)
            site.serve()
            return site

        yield open_site


class TestStandingSite:
    def test_a_worker_makes_what_the_server_accepts_and_serves(self, site: Site) -> None:
        done = site.wait_for(site.submit(output_format="flac", seed=7))
        assert (done["state"], done["attempts"], done["seed"]) == ("completed", 1, 7)
        assert (done["result"]["format"], done["result"]["duration"]) == ("flac", 1.0)
        audio = site.server.get(done["audio_url"])
        assert (audio.status_code, audio.content[:4]) == (200, b"fLaC")

    def test_tasks_run_side_by_side_and_the_others_wait_in_line(self, site: Site) -> None:
        site.hold.touch()
        running = [site.submit() for _ in range(CONCURRENCY)]
        for task_id in running:
            assert site.wait_for(task_id, "processing")
        waiting = [site.submit() for _ in range(2)]
        assert [site.look(task_id)["queue_position"] for task_id in waiting] == [1, 2]
        wait_until(lambda: site.server.get("/health").json()["queue"] == {"waiting": 2, "running": CONCURRENCY})
        wait_until(lambda: site.look(running[0])["total"] == 50)
        site.hold.unlink()
        assert {site.wait_for(task_id)["state"] for task_id in running + waiting} == {"completed"}

    def test_a_worker_starts_the_next_task_as_soon_as_a_thread_is_free(self, site: Site) -> None:
        tasks = [site.submit() for _ in range(20 * CONCURRENCY)]
        site.wait_for(tasks[-1], seconds=6)  # left alone, Celery looks once a second: 13 s here

    def test_a_queued_task_is_canceled_at_once_and_a_running_one_soon(self, site: Site) -> None:
        site.hold.touch()
        running = [site.submit() for _ in range(CONCURRENCY)]
        for task_id in running:
            site.wait_for(task_id, "processing")
        queued = site.submit()
        assert site.server.delete(f"/tasks/{queued}").json()["state"] == "canceled"
        assert site.server.delete(f"/tasks/{running[0]}").status_code == 202
        assert site.wait_for(running[0], seconds=5)["state"] == "canceled"
        again = site.server.delete(f"/tasks/{running[0]}")
        assert (again.status_code, again.json()["state"]) == (200, "canceled")
        site.hold.unlink()
        assert {site.wait_for(task_id)["state"] for task_id in running[1:]} == {"completed"}
        assert site.look(queued)["state"] == "canceled"

    @pytest.mark.parametrize("task_id", ["nothing", "00000000-0000-4000-8000-000000000000"])
    def test_an_unknown_task_is_404(self, site: Site, task_id: str) -> None:
        assert site.server.get(f"/tasks/{task_id}").status_code == 404
        assert site.server.delete(f"/tasks/{task_id}").status_code == 404

    def test_the_synchronous_route_answers_with_a_file_or_with_the_audio(self, site: Site) -> None:
        by_url = site.server.post("/generate", json=REQUEST | {"seed": 7})
        assert by_url.status_code == 200, by_url.text
        audio = site.server.get(by_url.json()["audio_url"]).content
        files = site.audio_files()
        in_answer = site.server.post("/generate", json=REQUEST | {"seed": 7, "return_type": "base64"})
        assert base64.b64decode(in_answer.json()["audio"]) == audio
        assert site.audio_files() == files
        ignored = {"request_id", "generation_time", "audio", "audio_url"}
        answers = [
            {name: answer.json()[name] for name in set(answer.json()) - ignored} for answer in (by_url, in_answer)
        ]
        for answer in answers:
            assert answer["recipe"].pop("created")
        assert answers[0] == answers[1]

    def test_a_tune_reaches_the_worker(self, site: Site) -> None:
        file = io.BytesIO()
        soundfile.write(file, [0.1, -0.1] * 8000, 16_000, format="WAV")
        form = {"prompt": "a", "duration": "1"}
        answer = site.server.post("/generate-with-melody", data=form, files={"melody": file.getvalue()})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "melody"

    def test_a_client_that_leaves_cancels_its_generation(self, site: Site) -> None:
        site.hold.touch()
        with pytest.raises(requests.Timeout):
            site.server.post("/generate", json=REQUEST, timeout=1)
        store = site.open_store()
        newest = store.page(INTERACTIVE_OWNER)[0]
        wait_until(lambda: store.get(newest.id).is_final, SECONDS)
        assert store.get(newest.id).state == "canceled"
        store.close()
        assert newest.id not in site.server.get("/tasks").text

    def test_a_client_that_waits_does_not_wait_behind_the_queue(self, site: Site) -> None:
        site.hold.touch()
        tasks = [site.submit() for _ in range(CONCURRENCY * 6)]
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(site.server.post, "/generate", json=REQUEST)
            wait_until(lambda: site.server.get("/health").json()["queue"]["waiting"] == CONCURRENCY * 5 + 1)
            site.hold.unlink()
            assert answer.result().status_code == 200
        store = site.open_store()
        waited_for = store.page(INTERACTIVE_OWNER)[0]
        finished = [site.wait_for(task_id)["task_id"] for task_id in tasks]
        num_before = sum(store.get(task_id).started < waited_for.started for task_id in finished)
        store.close()
        assert num_before <= CONCURRENCY * 3

    def test_streams_are_refused_in_a_sentence(self, site: Site) -> None:
        answer = site.server.post("/generate-stream", json=REQUEST)
        assert (answer.status_code, answer.json()["code"]) == (501, "not_streamable")
        assert "/generate" in answer.json()["error"]

    def test_the_server_loads_neither_torch_nor_a_model(self, site: Site) -> None:
        children = subprocess.run(
            ["pgrep", "-P", str(site.server.process.pid)], capture_output=True, text=True, check=True
        )
        (process,) = children.stdout.split()
        assert site.server.post("/generate", json=REQUEST).status_code == 200
        assert "libtorch" not in Path(f"/proc/{process}/maps").read_text()
        assert site.server.get("/health").json()["models_loaded"] == []


class TestFaults:
    def test_a_killed_workers_task_runs_again_within_its_lease_and_five_seconds(
        self, open_site: Callable[..., Site]
    ) -> None:
        site = open_site()
        site.hold.touch()
        worker = site.add_worker()
        task_id = site.submit()
        site.wait_for(task_id, "processing")
        other = site.add_worker()
        wait_until(lambda: "Receiving tasks" in other.log, SECONDS)
        worker.kill()
        killed = time.monotonic()
        wait_until(lambda: site.look(task_id)["attempts"] == 2, SECONDS)
        seconds = time.monotonic() - killed
        print(f"ran again {seconds:.1f} s after the kill, with a lease of {LEASE_SECONDS:g} s")
        site.hold.unlink()
        assert site.wait_for(task_id)["state"] == "completed"
        assert seconds <= LEASE_SECONDS + 5
        assert len(site.audio_files()) == 1

    def test_a_stopping_worker_finishes_what_it_can_and_gives_back_the_rest(
        self, open_site: Callable[..., Site]
    ) -> None:
        site = open_site(graceful_timeout_seconds=3)
        worker = site.add_worker()
        site.hold.touch()
        task_id = site.submit()
        site.wait_for(task_id, "processing")
        assert worker.terminate() == 0
        given_back = site.look(task_id)
        assert (given_back["state"], given_back["attempts"]) == ("processing", 0) or given_back["state"] == "queued"
        worker = site.add_worker()
        site.wait_for(task_id, "processing")
        with ThreadPoolExecutor() as threads:
            status = threads.submit(worker.terminate)
            wait_until(lambda: "Draining" in worker.log)
            site.hold.unlink()
            assert status.result() == 0
        done = site.look(task_id)
        assert (done["state"], done["attempts"]) == ("completed", 1)

    def test_a_stopping_server_lets_waiting_clients_have_their_audio_and_ends_the_others(
        self, open_site: Callable[..., Site]
    ) -> None:
        site = open_site(graceful_timeout_seconds=4)
        site.add_worker()
        site.hold.touch()
        with ThreadPoolExecutor() as threads:
            for is_held, status in ((False, 200), (True, 503)):
                answer = threads.submit(site.server.post, "/generate", json=REQUEST)
                wait_until(lambda: site.server.get("/health").json()["queue"]["running"] == 1, SECONDS)
                stopped = threads.submit(site.server.terminate)
                wait_until(lambda: "Draining" in site.server.log)
                if not is_held:
                    site.hold.unlink()
                assert answer.result().status_code == status
                assert stopped.result() == 0
                site.hold.touch()
                site.serve()
            store = site.open_store()
            wait_until(lambda: {task.state for task in store.page(INTERACTIVE_OWNER)} == {"completed", "canceled"})
            store.close()

    def test_tasks_outlive_a_broker_that_comes_back_empty(
        self, open_site: Callable[..., Site], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        broker = RedisServer(tmp_path_factory.mktemp("broker"), appendonly=False)
        broker.start()
        try:
            site = open_site(broker_url=broker.url)
            tasks = [site.submit() for _ in range(2 * CONCURRENCY)]
            transport = CeleryTransport(create_celery(Config(**site.settings)))
            wait_until(lambda: transport.num_waiting() == len(tasks))
            broker.kill()
            tasks.append(site.submit())  # accepted, since the store is there
            broker.start()
            assert transport.num_waiting() == 0
            site.add_worker()
            assert {site.wait_for(task_id)["state"] for task_id in tasks} == {"completed"}
            broker.kill()
            tasks = [site.submit() for _ in range(CONCURRENCY)]
            broker.start()
            assert {site.wait_for(task_id)["state"] for task_id in tasks} == {"completed"}
            assert len(site.audio_files()) == 3 * CONCURRENCY + 1
        finally:
            site.close()
            broker.kill()

    @pytest.mark.parametrize("seconds", [5, pytest.param(20, marks=pytest.mark.fault)])
    def test_an_outage_of_redis_refuses_new_tasks_and_loses_none(
        self, open_site: Callable[..., Site], seconds: float
    ) -> None:
        site = open_site(task_lease_seconds=15)
        site.add_worker()
        site.hold.touch()
        task_id = site.submit()
        site.wait_for(task_id, "processing")
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(site.server.post, "/generate", json=REQUEST)
            wait_until(lambda: site.server.get("/health").json()["queue"]["running"] == 2)
            site.redis.kill()
            down = time.monotonic()
            for route in ("/generate", "/generate-async"):
                refused = site.server.post(route, json=REQUEST, timeout=10)
                assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
                assert "Retry-After" in refused.headers
            assert site.server.get(f"/tasks/{task_id}").status_code == 503
            assert site.server.get("/health", timeout=1).status_code == 200
            site.hold.unlink()
            threading.Event().wait(seconds - (time.monotonic() - down))
            site.redis.start()
            assert answer.result().status_code == 200
        assert site.wait_for(task_id)["state"] == "completed"
        assert site.wait_for(site.submit())["state"] == "completed"

    @pytest.mark.fault
    def test_a_task_that_kills_its_workers_fails_after_two_attempts(self, open_site: Callable[..., Site]) -> None:
        site = open_site()
        site.hold.touch()
        task_id = site.submit()
        for attempt in (1, 2):
            worker = site.add_worker()
            wait_until(lambda: site.look(task_id)["attempts"] == attempt, SECONDS)  # noqa: B023
            worker.kill()
        site.hold.unlink()
        site.add_worker()
        assert site.wait_for(task_id)["code"] == "task_interrupted"
        assert site.wait_for(site.submit())["state"] == "completed"

    @pytest.mark.fault
    def test_everything_killed_and_started_again_finishes_what_was_accepted(
        self, open_site: Callable[..., Site]
    ) -> None:
        site = open_site(task_attempts=3)  # both kills may meet the same task
        site.add_worker(seconds=0.5)
        tasks = [site.submit() for _ in range(40)]
        for task_id in (tasks[5], tasks[15]):
            site.wait_for(task_id)
            site.hold.touch()  # so that some are running when everything is killed
            wait_until(lambda: site.server.get("/health").json()["queue"]["running"] > 0, SECONDS)
            site.redis.kill()
            site.workers[-1].kill()
            site.server.process.kill()
            site.server.process.wait()
            site.hold.unlink()
            site.redis.start()
            site.serve()
            site.add_worker(seconds=0.5)
        states = [site.wait_for(task_id)["state"] for task_id in tasks]
        assert states == ["completed"] * len(tasks)

    @pytest.mark.fault
    def test_25_random_kills_of_workers_over_300_tasks_lose_none_and_double_none(
        self, open_site: Callable[..., Site]
    ) -> None:
        site = open_site(max_queued_tasks=300, task_lease_seconds=1, task_attempts=10)
        random_ = random.Random(1)
        tasks = [site.submit() for _ in range(300)]
        workers = [site.add_worker(seconds=1.6) for _ in range(2)]
        for _ in range(25):
            threading.Event().wait(random_.uniform(0.5, 3.0))
            queue = site.server.get("/health").json()["queue"]
            assert queue["waiting"] + queue["running"] > 0, "the kills came too late to matter"
            worker = random_.choice(workers)
            worker.kill()
            worker.start()
        done = [site.wait_for(task_id, seconds=120) for task_id in tasks]
        filenames = [task["result"]["filename"] for task in done if task["state"] == "completed"]
        num_again = sum(task["attempts"] > 1 for task in done)
        num_orphans = len(site.audio_files() - set(filenames))
        print(f"25 kills: {len(filenames)} of 300 finished, {num_again} ran again, {num_orphans} files nobody has")
        assert len(set(filenames)) == 300
        assert set(filenames) <= site.audio_files()
        assert num_again > 0


class TestRabbit:
    def test_rabbitmq_carries_tasks_and_redis_keeps_them(
        self, open_site: Callable[..., Site], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        broker = RabbitServer(tmp_path_factory.mktemp("rabbit"))
        broker.start()
        try:
            site = open_site(broker_url=broker.url)
            tasks = [site.submit() for _ in range(2 * CONCURRENCY)]
            transport = CeleryTransport(create_celery(Config(**site.settings)))
            wait_until(lambda: transport.num_waiting() == len(tasks))
            site.add_worker()
            done = [site.wait_for(task_id) for task_id in tasks]
            assert [(task["state"], task["attempts"]) for task in done] == [("completed", 1)] * len(tasks)
            assert site.server.post("/generate", json=REQUEST).status_code == 200
            wait_until(lambda: transport.num_waiting() == 0)
        finally:
            site.close()
            broker.stop()


class TestProcess:
    def test_a_real_model_is_loaded_by_the_worker_alone(
        self, open_site: Callable[..., Site], demo_checkpoints: Path
    ) -> None:
        site = open_site(checkpoints_dir=demo_checkpoints, device="cpu", preload_models="demo")
        worker = site.add_worker(app="audiocraft_api.celery_app")
        assert site.server.get("/ready").status_code == 200  # it loads nothing itself
        wait_until(lambda: "demo is loaded and ready" in worker.log, SECONDS)
        answer = site.server.post("/generate", json=REQUEST | {"model_size": "demo", "seed": 7})
        assert (answer.status_code, answer.json()["model"]) == (200, "demo")
        assert site.server.get(answer.json()["audio_url"]).status_code == 200
        assert site.server.get("/health").json()["models_loaded"] == []

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
