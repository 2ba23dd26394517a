"""Repeated requests get the cached audio, on every endpoint; identical concurrent requests are generated once."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from audiocraft_api.config import Config
from audiocraft_api.core.errors import AudioCraftError, Canceled, DeadlineExceeded, OutOfMemory
from audiocraft_api.core.params import AudioInput
from audiocraft_api.core.waiting import Waiter
from audiocraft_api.generation.cache.result_cache import ResultCache
from audiocraft_api.generation.cache.result_key import result_key
from audiocraft_api.generation.cache.sqlite import SqliteResultStore
from audiocraft_api.generation.command import GenerateCommand, GeneratedFile
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.model import checkpoint_file
from audiocraft_api.model.catalog import Catalog
from audiocraft_api.model.revisions import CODEC, LANGUAGE_MODEL
from audiocraft_api.model.stem_separators import StemSeparators
from audiocraft_api.state import schema
from audiocraft_api.state.sqlite import SqliteFile
from audiocraft_api.storage.local import LocalStore
from audiocraft_api.web.services import services_of
from support.celery_workplace import CeleryWorkplace
from support.fakes import REVISION, FakeEngine
from support.http import fake_app, generate
from support.served import wait_until

TIMEOUT_SECONDS = 60.0  # of every wait
COMMAND = GenerateCommand("solo cello", "small", 1.0, seed=7)


def fetch(client: FlaskClient, url: str) -> bytes:
    response = client.get(url, buffered=True)
    assert response.status_code == 200
    return response.get_data()


def run_task(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    submitted = client.post("/generate-async", json={"prompt": "solo cello", "duration": 1} | fields)
    assert submitted.status_code == 202
    task: dict[str, Any] = {}

    def is_done() -> bool:
        task.update(client.get(submitted.headers["Location"]).json)
        return task["status"] != "processing"

    wait_until(is_done, TIMEOUT_SECONDS)
    assert task["status"] == "completed"
    return task


@pytest.mark.parametrize("output_format", ["wav", "mp3"])
def test_a_repeated_request_gets_the_cached_audio_in_a_file_of_its_own(
    client: FlaskClient, engine: FakeEngine, output_format: str
) -> None:
    first, second, third = (generate(client, seed=7, output_format=output_format).json for _ in range(3))
    assert len(engine.submitted) == 1
    assert [response["cached"] for response in (first, second, third)] == [False, True, True]
    assert len({response["audio_url"] for response in (first, second, third)}) == 3
    assert fetch(client, first["audio_url"]) == fetch(client, second["audio_url"]) == fetch(client, third["audio_url"])
    own = {"audio_url", "request_id", "cached", "generation_time"}
    assert {name: first[name] for name in set(first) - own} == {name: second[name] for name in set(second) - own}
    assert second["recipe"] == first["recipe"]


def test_endpoints_share_cached_results(client: FlaskClient, engine: FakeEngine) -> None:
    first = generate(client, seed=7, return_type="base64").json
    file = generate(client, seed=7).json
    task = run_task(client, seed=7)
    again = generate(client, seed=7, return_type="base64").json
    preferred = client.post(
        "/generate", json={"prompt": "solo cello", "duration": 1, "seed": 7}, headers={"Prefer": "wait=20"}
    ).json
    assert len(engine.submitted) == 1
    assert [response["cached"] for response in (first, file, task["result"], again, preferred)] == [False, *[True] * 4]
    audio = base64.b64decode(first["audio"])
    assert audio == base64.b64decode(again["audio"]) == fetch(client, file["audio_url"])
    assert audio == fetch(client, task["audio_url"])
    assert task["result"]["recipe"] == first["recipe"] == preferred["recipe"]


def test_results_of_tasks_are_cached(client: FlaskClient, engine: FakeEngine) -> None:
    assert not run_task(client, seed=7)["result"]["cached"]
    assert generate(client, seed=7).json["cached"]
    assert len(engine.submitted) == 1


@pytest.mark.parametrize(
    "request_audio", [lambda client: generate(client).json, lambda client: run_task(client)["result"]]
)
def test_a_request_without_a_seed_is_not_cached(
    client: FlaskClient, engine: FakeEngine, request_audio: Callable[[FlaskClient], dict[str, Any]]
) -> None:
    first = request_audio(client)
    assert not first["cached"]
    assert not generate(client, seed=first["seed"]).json["cached"]
    assert len(engine.submitted) == 2


def test_by_default_there_is_no_cache(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine).test_client()
    assert [generate(client, seed=7).json["cached"] for _ in range(2)] == [False, False]
    assert len(list((tmp_path / "audio").glob("*.wav"))) == len(engine.submitted) == 2


def test_every_response_has_the_whole_recipe(client: FlaskClient) -> None:
    fields = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "cfg_coef": 4.5, "seed": 11, "output_format": "ogg"}
    recipe = generate(client, **fields).json["recipe"]
    created = recipe.pop("created")
    assert created.endswith("Z")
    assert recipe.pop("service_version")
    assert recipe == {
        "prompt": "solo cello",
        "model": "small",
        "revision": REVISION,
        "duration": 1.0,
        **fields,
        "melody": None,
        "engine": "batching",
        "precision": "exact",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "solo cello "},
        {"prompt": "Solo cello"},
        {"model_size": "medium"},
        {"duration": 1.02},
        {"temperature": 0.999},
        {"top_k": 251},
        {"top_p": 0.1},
        {"cfg_coef": 3.1},
        {"seed": 8},
        {"output_format": "flac"},
    ],
    ids=lambda change: str(change),
)
def test_a_different_request_is_not_served_from_the_cache(client: FlaskClient, change: dict[str, Any]) -> None:
    generate(client, seed=7)
    assert not generate(client, **{"seed": 7, **change}).json["cached"]


def test_the_key_covers_melody_owner_revision_and_settings() -> None:
    melody = AudioInput(np.zeros((1, 9), np.float32), 32_000)
    other_melodies = [AudioInput(np.ones((1, 9), np.float32), 32_000), replace(melody, sample_rate=16_000)]
    config = Config()
    keys = [
        result_key(COMMAND, "r", config),
        result_key(replace(COMMAND, audio_owner="someone"), "r", config),
        result_key(COMMAND, "other", config),
        result_key(COMMAND, "r", Config(precision="exact")),
        result_key(COMMAND, "r", Config(engine="plain")),
        result_key(COMMAND, "r", Config(device="cuda")),
        result_key(COMMAND, "r", Config(tag_prompts=False)),
        *(result_key(replace(COMMAND, melody=audio), "r", config) for audio in (melody, *other_melodies)),
    ]
    assert len(set(keys)) == len(keys)
    same = AudioInput(melody.waveform.copy(), 32_000)
    assert result_key(replace(COMMAND, melody=same), "r", config) == result_key(
        replace(COMMAND, melody=melody), "r", config
    )


def test_deleting_one_responses_file_affects_no_other_response(client: FlaskClient, engine: FakeEngine) -> None:
    store = services_of(client.application).store
    urls = [generate(client, seed=7).json["audio_url"] for _ in range(2)]
    store.delete(urls[0].rpartition("/")[2])
    assert generate(client, seed=7).json["cached"]
    assert fetch(client, urls[1])
    assert len(engine.submitted) == 1


def test_a_cached_result_whose_file_was_deleted_is_generated_again(
    client: FlaskClient, tmp_path: Path, engine: FakeEngine
) -> None:
    generate(client, seed=7)
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    for return_type, cached in (("base64", False), ("base64", True), ("url", True)):
        assert generate(client, seed=7, return_type=return_type).json["cached"] == cached
    assert len(engine.submitted) == 2


def test_an_evicted_result_leaves_no_file(tmp_path: Path) -> None:
    app = fake_app(tmp_path, result_cache_entries=3)
    for seed in range(6):
        generate(app.test_client(), seed=seed, return_type="base64")
    assert len(list((tmp_path / "audio").glob("*.wav"))) == 3
    services_of(app).close()


def test_cached_results_survive_a_restart(tmp_path: Path) -> None:
    cached = []
    for _ in range(2):
        app = fake_app(tmp_path, result_cache_entries=3)
        cached.append(generate(app.test_client(), seed=7).json["cached"])
        services_of(app).close()
    assert cached == [False, True]


def test_celery_workers_share_the_cache(tmp_path: Path, demo_checkpoints: Path) -> None:
    settings = {"checkpoints_dir": demo_checkpoints, "result_cache_entries": 10, "task_concurrency": 4}
    with CeleryWorkplace(tmp_path, **settings).opened() as workplace:
        engine = FakeEngine()
        engine.revision = load_revision(demo_checkpoints / "demo")
        app = fake_app(tmp_path, **workplace.prepared_for(engine))
        client = app.test_client()
        responses = [
            generate(client, seed=7, model_size="demo", return_type=kind).json for kind in ("base64", "url") * 2
        ]
        urls = [response["audio_url"] for response in responses if "audio_url" in response]
        audio = {base64.b64decode(response["audio"]) for response in responses if "audio" in response}
        assert audio == {fetch(client, url) for url in urls}
        assert len(audio) == 1
        assert [response["cached"] for response in responses] == [False, True, True, True]
        assert not generate(client, model_size="demo").json["cached"]
        assert not list((tmp_path / "audio").glob(".*"))
        services_of(app).close()
    assert len(engine.submitted) == 2


def load_revision(checkpoint: Path) -> str:
    return checkpoint_file.fingerprint(checkpoint / LANGUAGE_MODEL, checkpoint / CODEC)


class ServerProcess:
    """The generation service of one process; processes of one directory share their stores."""

    def __init__(self, directory: Path, engine: FakeEngine, revision: str | None = REVISION, **settings: Any) -> None:
        config = Config(audio_dir=directory / "audio", task_lease_seconds=1, **settings)
        self.file = SqliteFile(directory / "state.sqlite3", schema.LAYOUT)
        self.store = SqliteResultStore(self.file, max_entries=10, max_age_seconds=1000)
        self.files = LocalStore(config.storage)
        self.revision = revision
        cache = ResultCache(self.store, self.files, lambda _name: self.revision, config)
        separators = StemSeparators(Catalog(config), config.models)
        self.service = GenerationService(engine, self.files, separators, config, cache)

    def generate(
        self,
        command: GenerateCommand = COMMAND,
        *,
        client_gone: Callable[[], bool] = lambda: False,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> GeneratedFile:
        return self.service.generate_file(command, Waiter(client_gone, timeout_seconds))

    def close(self) -> None:
        self.files.close()
        self.file.close()


class PendingRequest:
    """A request that runs in a thread, and whose client may disconnect (`disconnected`)."""

    def __init__(self, pool: ThreadPoolExecutor, process: ServerProcess, command: GenerateCommand, **options: Any):
        self.waits = threading.Event()
        self.disconnected = threading.Event()
        self.response: Future[GeneratedFile] = pool.submit(
            process.generate, command, client_gone=self._client_gone, **options
        )

    def _client_gone(self) -> bool:
        self.waits.set()
        return self.disconnected.is_set()

    def file(self) -> GeneratedFile:
        return self.response.result(TIMEOUT_SECONDS)

    def error(self) -> BaseException | None:
        return self.response.exception(TIMEOUT_SECONDS)


class RequestSender:
    """Sends requests to processes that share their stores."""

    def __init__(self, pool: ThreadPoolExecutor, processes: list[ServerProcess]) -> None:
        self._pool = pool
        self.processes = processes

    def __call__(self, process: int = 0, command: GenerateCommand = COMMAND, **options: Any) -> PendingRequest:
        """Send a request, and return when it waits."""
        request = PendingRequest(self._pool, self.processes[process], command, **options)
        assert request.waits.wait(TIMEOUT_SECONDS)
        return request


@contextmanager
def slow_generations(
    directory: Path, engine: FakeEngine, num_processes: int = 1, **settings: Any
) -> Iterator[RequestSender]:
    """Run processes whose engine finishes nothing until `engine.open_gate` is set."""
    engine.open_gate.clear()
    processes = [ServerProcess(directory, engine, **settings) for _ in range(num_processes)]
    with ThreadPoolExecutor(16) as pool:
        try:
            yield RequestSender(pool, processes)
        finally:
            engine.open_gate.set()
    for process in processes:
        process.close()


@pytest.fixture
def process(tmp_path: Path, engine: FakeEngine) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path, engine)
    yield process
    process.close()


def test_equal_concurrent_requests_are_generated_once(tmp_path: Path, engine: FakeEngine) -> None:
    with slow_generations(tmp_path, engine) as send:
        requests = [send() for _ in range(8)]
        others = [send(command=replace(COMMAND, seed=seed)) for seed in (8, None, None)]
        engine.open_gate.set()
        files = [request.file() for request in requests]
        assert [other.file().recipe.is_cached for other in others] == [False] * 3
    assert len(engine.submitted) == 1 + 3
    assert sorted(file.recipe.is_cached for file in files) == [False] + [True] * 7
    assert len({file.filename for file in files}) == 8


def test_when_the_leaders_client_disconnects_a_follower_leads(tmp_path: Path, engine: FakeEngine) -> None:
    with slow_generations(tmp_path, engine) as send:
        leader = send()
        followers = [send() for _ in range(4)]
        leader.disconnected.set()
        assert isinstance(leader.error(), Canceled)
        wait_until(lambda: len(engine.submitted) == 2)
        engine.open_gate.set()
        assert sorted(follower.file().recipe.is_cached for follower in followers) == [False, True, True, True]
    assert len(engine.submitted) == 2


def test_a_follower_ends_with_its_own_client_or_deadline(tmp_path: Path, engine: FakeEngine) -> None:
    with slow_generations(tmp_path, engine) as send:
        leader = send()
        disconnecting, late, patient = send(), send(timeout_seconds=0.2), send()
        disconnecting.disconnected.set()
        assert isinstance(disconnecting.error(), Canceled)
        assert isinstance(late.error(), DeadlineExceeded)
        engine.open_gate.set()
        assert (leader.file().recipe.is_cached, patient.file().recipe.is_cached) == (False, True)
    assert len(engine.submitted) == 1


def test_a_leader_that_runs_out_of_time_does_not_end_its_followers(tmp_path: Path, engine: FakeEngine) -> None:
    with slow_generations(tmp_path, engine) as send:
        leader, follower = send(timeout_seconds=0.5), send()
        assert isinstance(leader.error(), DeadlineExceeded)
        engine.open_gate.set()
        assert not follower.file().recipe.is_cached
    assert len(engine.submitted) == 2


def test_an_error_of_the_leader_is_raised_in_each_follower(tmp_path: Path, engine: FakeEngine) -> None:
    engine.failure = OutOfMemory("There is no room.", retry_after_seconds=9.0)
    with slow_generations(tmp_path, engine) as send:
        requests = [send() for _ in range(4)]
        engine.open_gate.set()
        errors = [request.error() for request in requests]
        assert {(type(error), str(error), error.retry_after_seconds) for error in errors} == {
            (OutOfMemory, "There is no room.", 9.0)
        }
        assert len({id(error) for error in errors}) == 4
        assert len(engine.submitted) == 1
        engine.failure = None
        assert not send.processes[0].generate().recipe.is_cached


def test_each_request_generates_its_own_audio_if_the_result_cannot_be_cached(
    tmp_path: Path, engine: FakeEngine
) -> None:
    """The checkpoint was replaced on disk, so the loaded model's audio has another revision than the key."""
    with slow_generations(tmp_path, engine, revision="newer") as send:
        requests = [send() for _ in range(3)]
        engine.open_gate.set()
        assert {request.file().recipe.revision for request in requests} == {REVISION}
        assert not any(request.file().recipe.is_cached for request in requests)
    assert len(engine.submitted) == 3


def test_a_replaced_checkpoint_has_no_cached_results(process: ServerProcess) -> None:
    for revision, cached in ((REVISION, False), (REVISION, True), ("newer", False), (None, False), (REVISION, True)):
        process.revision = revision
        assert process.generate().recipe.is_cached == cached


def test_owners_do_not_share_cached_results(tmp_path: Path, process: ServerProcess) -> None:
    for owner, cached in (("one", False), ("other", False), (None, False), ("one", True), ("other", True)):
        file = process.generate(replace(COMMAND, audio_owner=owner))
        assert file.recipe.is_cached == cached
        assert file.filename.startswith(f"{owner}/" if owner else "")
    own = {path.parent.name for path in (tmp_path / "audio").rglob("*.wav")}
    assert own == {"one", "other", "audio"}
    assert len(list((tmp_path / "audio" / "one").glob("*.wav"))) == 3, "two responses, and the cached result"


def test_processes_that_share_a_store_generate_a_result_once(tmp_path: Path, engine: FakeEngine) -> None:
    with slow_generations(tmp_path, engine, num_processes=2) as send:
        requests = [send(process) for process in (0, 1, 0, 1)]
        engine.open_gate.wait(1.5)  # longer than a lease, which must be renewed
        assert len(engine.submitted) == 1
        engine.open_gate.set()
        assert sorted(request.file().recipe.is_cached for request in requests) == [False, True, True, True]
    assert len(engine.submitted) == 1


def test_the_lease_is_renewed_without_polling_the_client(tmp_path: Path, engine: FakeEngine) -> None:
    """The leader's client check hangs for longer than a lease; another process still waits for the leader."""
    check_hangs, resume = threading.Event(), threading.Event()

    def client_gone() -> bool:
        check_hangs.set()
        return not resume.wait(TIMEOUT_SECONDS)

    with slow_generations(tmp_path, engine, num_processes=2) as send, ThreadPoolExecutor(1) as pool:
        leader = pool.submit(send.processes[0].generate, client_gone=client_gone)
        assert check_hangs.wait(TIMEOUT_SECONDS)
        follower = send(1)
        resume.wait(1.5)  # longer than a lease
        assert len(engine.submitted) == 1
        resume.set()
        engine.open_gate.set()
        assert not leader.result(TIMEOUT_SECONDS).recipe.is_cached
        assert follower.file().recipe.is_cached


def test_a_killed_process_delays_the_others_by_at_most_one_lease(process: ServerProcess) -> None:
    assert process.store.lease(result_key(COMMAND, REVISION, Config()), "killed", 1.0)
    assert not process.generate().recipe.is_cached


def test_with_a_broken_store_audio_is_still_generated(tmp_path: Path, engine: FakeEngine) -> None:
    (tmp_path / "state.sqlite3").write_bytes(b"not a database" * 1000)
    with slow_generations(tmp_path, engine) as send:
        requests = [send() for _ in range(3)]
        engine.open_gate.set()
        assert sorted(request.file().recipe.is_cached for request in requests) == [False, True, True]
        assert not send.processes[0].generate().recipe.is_cached
    assert len(engine.submitted) == 2


def test_a_request_that_waits_for_another_process_ends_with_its_client_or_deadline(
    process: ServerProcess, engine: FakeEngine
) -> None:
    assert process.store.lease(result_key(COMMAND, REVISION, Config()), "another", 1000.0)
    with pytest.raises(Canceled):
        process.generate(client_gone=lambda: True)
    with pytest.raises(DeadlineExceeded):
        process.generate(timeout_seconds=0.1)
    assert not engine.submitted


def test_a_leader_releases_its_lease_before_the_next_leader_acquires_one(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaders of one process share a holder name, so a late release would end the next leader's lease."""
    releases, may_release = threading.Event(), threading.Event()

    def release(key: str, holder: str) -> None:
        releases.set()
        assert may_release.wait(TIMEOUT_SECONDS)
        real_release(key, holder)

    with slow_generations(tmp_path, engine) as send:
        store = send.processes[0].store
        real_release = store.release
        monkeypatch.setattr(store, "release", release)
        leader, follower = send(), send()
        leader.disconnected.set()
        assert releases.wait(TIMEOUT_SECONDS)
        late_follower = send()
        assert len(engine.submitted) == 1, "no follower leads yet"
        may_release.set()
        engine.open_gate.set()
        assert sorted(request.file().recipe.is_cached for request in (follower, late_follower)) == [False, True]
    assert len(engine.submitted) == 2


def test_an_unexpected_error_releases_the_lease_and_every_waiter(
    process: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.files, "save", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            process.generate()
    assert process.store.lease(result_key(COMMAND, REVISION, Config()), "another", 1.0)
    assert not issubclass(ZeroDivisionError, AudioCraftError)
