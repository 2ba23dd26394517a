"""The same question gets the stored answer, at every door; equal questions at the same time are worked once."""

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
from audiocraft_api.generation.cache.result_cache import ResultCache
from audiocraft_api.generation.cache.result_key import result_key
from audiocraft_api.generation.cache.sqlite import SqliteResultStore
from audiocraft_api.generation.command import GenerateCommand, GeneratedFile
from audiocraft_api.generation.service import GenerationService
from audiocraft_api.model import checkpoint_file
from audiocraft_api.model.revisions import CODEC, LANGUAGE_MODEL
from audiocraft_api.state import schema
from audiocraft_api.state.sqlite import SqliteFile
from audiocraft_api.storage.local import LocalStore
from audiocraft_api.web.services import services_of
from support.celery_workplace import CeleryWorkplace
from support.fakes import REVISION, FakeEngine
from support.http import fake_app, generate
from support.served import wait_until

SECONDS = 20.0  # deadline of every wait
COMMAND = GenerateCommand("solo cello", "small", 1.0, seed=7)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(tmp_path: Path, engine: FakeEngine) -> Iterator[FlaskClient]:
    app = fake_app(tmp_path, engine, result_cache_entries=10)
    yield app.test_client()
    services_of(app).close()


def fetch(client: FlaskClient, url: str) -> bytes:
    response = client.get(url, buffered=True)
    assert response.status_code == 200
    return response.get_data()


def run_task(client: FlaskClient, **fields: Any) -> dict[str, Any]:
    submitted = client.post("/generate-async", json={"prompt": "solo cello", "duration": 1} | fields)
    assert submitted.status_code == 202
    shown: dict[str, Any] = {}

    def is_done() -> bool:
        shown.update(client.get(submitted.headers["Location"]).json)
        return shown["status"] != "processing"

    wait_until(is_done, SECONDS)
    assert shown["status"] == "completed"
    return shown


@pytest.mark.parametrize("output_format", ["wav", "mp3"])
def test_the_same_question_gets_the_stored_audio_in_a_file_of_its_own(
    client: FlaskClient, engine: FakeEngine, output_format: str
) -> None:
    first, second, third = (generate(client, seed=7, output_format=output_format).json for _ in range(3))
    assert len(engine.submitted) == 1
    assert [answer["cached"] for answer in (first, second, third)] == [False, True, True]
    assert len({answer["audio_url"] for answer in (first, second, third)}) == 3
    assert fetch(client, first["audio_url"]) == fetch(client, second["audio_url"]) == fetch(client, third["audio_url"])
    own = {"audio_url", "request_id", "cached", "generation_time"}
    assert {name: first[name] for name in set(first) - own} == {name: second[name] for name in set(second) - own}
    assert second["recipe"] == first["recipe"]


def test_every_door_gets_what_another_has_made(client: FlaskClient, engine: FakeEngine) -> None:
    made = generate(client, seed=7, return_type="base64").json
    file = generate(client, seed=7).json
    task = run_task(client, seed=7)
    again = generate(client, seed=7, return_type="base64").json
    preferred = client.post(
        "/generate", json={"prompt": "solo cello", "duration": 1, "seed": 7}, headers={"Prefer": "wait=20"}
    ).json
    assert len(engine.submitted) == 1
    assert [answer["cached"] for answer in (made, file, task["result"], again, preferred)] == [False, *[True] * 4]
    audio = base64.b64decode(made["audio"])
    assert audio == base64.b64decode(again["audio"]) == fetch(client, file["audio_url"])
    assert audio == fetch(client, task["audio_url"])
    assert task["result"]["recipe"] == made["recipe"] == preferred["recipe"]


def test_a_task_fills_the_cache_too(client: FlaskClient, engine: FakeEngine) -> None:
    assert not run_task(client, seed=7)["result"]["cached"]
    assert generate(client, seed=7).json["cached"]
    assert len(engine.submitted) == 1


@pytest.mark.parametrize("ask", [lambda client: generate(client).json, lambda client: run_task(client)["result"]])
def test_without_a_seed_of_the_clients_nothing_is_remembered(
    client: FlaskClient, engine: FakeEngine, ask: Callable[[FlaskClient], dict[str, Any]]
) -> None:
    first = ask(client)
    assert not first["cached"]
    assert not generate(client, seed=first["seed"]).json["cached"]
    assert len(engine.submitted) == 2


def test_by_default_there_is_no_cache(tmp_path: Path, engine: FakeEngine) -> None:
    client = fake_app(tmp_path, engine).test_client()
    assert [generate(client, seed=7).json["cached"] for _ in range(2)] == [False, False]
    assert len(list((tmp_path / "audio").iterdir())) == len(engine.submitted) == 2


def test_every_answer_has_the_whole_recipe(client: FlaskClient) -> None:
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
def test_another_question_is_not_answered_with_this_one(client: FlaskClient, change: dict[str, Any]) -> None:
    generate(client, seed=7)
    assert not generate(client, **{"seed": 7, **change}).json["cached"]


def test_the_key_covers_tune_owner_revision_and_settings() -> None:
    tune = AudioInput(np.zeros((1, 9), np.float32), 32_000)
    other_tunes = [AudioInput(np.ones((1, 9), np.float32), 32_000), replace(tune, sample_rate=16_000)]
    config = Config()
    keys = [
        result_key(COMMAND, "r", config),
        result_key(replace(COMMAND, audio_owner="someone"), "r", config),
        result_key(COMMAND, "other", config),
        result_key(COMMAND, "r", Config(precision="exact")),
        result_key(COMMAND, "r", Config(engine="plain")),
        result_key(COMMAND, "r", Config(device="cuda")),
        result_key(COMMAND, "r", Config(tag_prompts=False)),
        *(result_key(replace(COMMAND, melody=melody), "r", config) for melody in (tune, *other_tunes)),
    ]
    assert len(set(keys)) == len(keys)
    same = AudioInput(tune.waveform.copy(), 32_000)
    assert result_key(replace(COMMAND, melody=same), "r", config) == result_key(
        replace(COMMAND, melody=tune), "r", config
    )


def test_answers_do_not_hang_on_each_others_files(client: FlaskClient, engine: FakeEngine) -> None:
    store = services_of(client.application).store
    urls = [generate(client, seed=7).json["audio_url"] for _ in range(2)]
    store.delete(urls[0].rpartition("/")[2])
    assert generate(client, seed=7).json["cached"]
    assert fetch(client, urls[1])
    assert len(engine.submitted) == 1


def test_a_known_file_that_is_gone_is_made_again(client: FlaskClient, tmp_path: Path, engine: FakeEngine) -> None:
    generate(client, seed=7)
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    for return_type, cached in (("base64", False), ("base64", True), ("url", True)):
        assert generate(client, seed=7, return_type=return_type).json["cached"] == cached
    assert len(engine.submitted) == 2


def test_what_is_pushed_out_leaves_no_file(tmp_path: Path) -> None:
    app = fake_app(tmp_path, result_cache_entries=3)
    for seed in range(6):
        generate(app.test_client(), seed=seed, return_type="base64")
    assert len(list((tmp_path / "audio").iterdir())) == 3
    services_of(app).close()


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    cached = []
    for _ in range(2):
        app = fake_app(tmp_path, result_cache_entries=3)
        cached.append(generate(app.test_client(), seed=7).json["cached"])
        services_of(app).close()
    assert cached == [False, True]


def test_celery_workers_answer_from_the_cache_that_they_share(tmp_path: Path, demo_checkpoints: Path) -> None:
    settings = {"checkpoints_dir": demo_checkpoints, "result_cache_entries": 10, "task_concurrency": 4}
    with CeleryWorkplace(tmp_path, **settings).opened() as workplace:
        engine = FakeEngine()
        engine.revision = load_revision(demo_checkpoints / "demo")
        app = fake_app(tmp_path, **workplace.prepared_for(engine))
        client = app.test_client()
        answers = [generate(client, seed=7, model_size="demo", return_type=kind).json for kind in ("base64", "url") * 2]
        urls = [answer["audio_url"] for answer in answers if "audio_url" in answer]
        audio = {base64.b64decode(answer["audio"]) for answer in answers if "audio" in answer}
        assert audio == {fetch(client, url) for url in urls}
        assert len(audio) == 1
        assert [answer["cached"] for answer in answers] == [False, True, True, True]
        assert not generate(client, model_size="demo").json["cached"]
        assert not list((tmp_path / "audio").glob(".*"))
        services_of(app).close()
    assert len(engine.submitted) == 2


def load_revision(checkpoint: Path) -> str:
    return checkpoint_file.fingerprint(checkpoint / LANGUAGE_MODEL, checkpoint / CODEC)


class Desk:
    """The generation service of one process over shared stores, and clients that it can be asked for."""

    def __init__(self, directory: Path, engine: FakeEngine, revision: str | None = REVISION, **settings: Any) -> None:
        config = Config(audio_dir=directory / "audio", task_lease_seconds=1, **settings)
        self.file = SqliteFile(directory / "state.sqlite3", schema.LAYOUT)
        self.store = SqliteResultStore(self.file, max_entries=10, max_age_seconds=1000)
        self.files = LocalStore(config)
        self.revision = revision
        self.results = ResultCache(self.store, self.files, lambda _name: self.revision, config)
        self.generation = GenerationService(engine, self.files, config, self.results)

    def close(self) -> None:
        self.files.close()
        self.file.close()


class Asker:
    """A client that waits in a thread, may leave, and whose waiting is seen."""

    def __init__(
        self, pool: ThreadPoolExecutor, desk: Desk, command: GenerateCommand = COMMAND, **options: Any
    ) -> None:
        self.waits = threading.Event()
        self.left = threading.Event()
        self.answer: Future[GeneratedFile] = pool.submit(desk.generation.generate_file, command, self._gone, **options)

    def _gone(self) -> bool:
        self.waits.set()
        return self.left.is_set()

    def file(self) -> GeneratedFile:
        return self.answer.result(SECONDS)

    def error(self) -> BaseException | None:
        return self.answer.exception(SECONDS)


@contextmanager
def asking(directory: Path, engine: FakeEngine, num_desks: int = 1, **settings: Any) -> Iterator[Any]:
    """Give a way to have questions asked at a desk, while the engine holds back what it makes."""
    engine.open_gate.clear()
    desks = [Desk(directory, engine, **settings) for _ in range(num_desks)]
    with ThreadPoolExecutor(16) as pool:

        def ask(desk: int = 0, command: GenerateCommand = COMMAND, **options: Any) -> Asker:
            asker = Asker(pool, desks[desk], command, **options)
            assert asker.waits.wait(SECONDS)
            return asker

        ask.desks = desks  # type: ignore[attr-defined]
        try:
            yield ask
        finally:
            engine.open_gate.set()
    for desk in desks:
        desk.close()


def test_equal_questions_at_the_same_time_are_worked_once(tmp_path: Path, engine: FakeEngine) -> None:
    with asking(tmp_path, engine) as ask:
        askers = [ask() for _ in range(8)]
        others = [ask(command=replace(COMMAND, seed=seed)) for seed in (8, None, None)]
        engine.open_gate.set()
        files = [asker.file() for asker in askers]
        assert [other.file().recipe.is_cached for other in others] == [False] * 3
    assert len(engine.submitted) == 1 + 3
    assert sorted(file.recipe.is_cached for file in files) == [False] + [True] * 7
    assert len({file.filename for file in files}) == 8


def test_when_the_leaders_client_leaves_another_leads(tmp_path: Path, engine: FakeEngine) -> None:
    with asking(tmp_path, engine) as ask:
        leader = ask()
        followers = [ask() for _ in range(4)]
        leader.left.set()
        assert isinstance(leader.error(), Canceled)
        wait_until(lambda: len(engine.submitted) == 2)
        engine.open_gate.set()
        assert sorted(follower.file().recipe.is_cached for follower in followers) == [False, True, True, True]
    assert len(engine.submitted) == 2


def test_a_follower_leaves_when_its_client_does_or_its_time_is_up(tmp_path: Path, engine: FakeEngine) -> None:
    with asking(tmp_path, engine) as ask:
        leader = ask()
        leaving, late, patient = ask(), ask(deadline_seconds=0.2), ask()
        leaving.left.set()
        assert isinstance(leaving.error(), Canceled)
        assert isinstance(late.error(), DeadlineExceeded)
        engine.open_gate.set()
        assert (leader.file().recipe.is_cached, patient.file().recipe.is_cached) == (False, True)
    assert len(engine.submitted) == 1


def test_a_leader_that_runs_out_of_time_does_not_end_the_others(tmp_path: Path, engine: FakeEngine) -> None:
    with asking(tmp_path, engine) as ask:
        leader, follower = ask(deadline_seconds=0.5), ask()
        assert isinstance(leader.error(), DeadlineExceeded)
        engine.open_gate.set()
        assert not follower.file().recipe.is_cached
    assert len(engine.submitted) == 2


def test_a_failure_is_told_to_each_as_its_own(tmp_path: Path, engine: FakeEngine) -> None:
    engine.failure = OutOfMemory("There is no room.", retry_after_seconds=9.0)
    with asking(tmp_path, engine) as ask:
        askers = [ask() for _ in range(4)]
        engine.open_gate.set()
        errors = [asker.error() for asker in askers]
    assert {(type(error), str(error), error.retry_after_seconds) for error in errors} == {
        (OutOfMemory, "There is no room.", 9.0)
    }
    assert len({id(error) for error in errors}) == 4
    assert len(engine.submitted) == 1
    engine.failure = None
    desk = Desk(tmp_path, engine)
    assert not desk.generation.generate_file(COMMAND, lambda: False).recipe.is_cached
    desk.close()


def test_what_cannot_be_kept_is_made_by_each(tmp_path: Path, engine: FakeEngine) -> None:
    """The checkpoint changed under a loaded model: what it makes is of another revision than was asked for."""
    with asking(tmp_path, engine, revision="newer") as ask:
        askers = [ask() for _ in range(3)]
        engine.open_gate.set()
        assert {asker.file().recipe.revision for asker in askers} == {REVISION}
        assert not any(asker.file().recipe.is_cached for asker in askers)
    assert len(engine.submitted) == 3


def test_a_checkpoint_that_is_replaced_is_asked_anew(tmp_path: Path, engine: FakeEngine) -> None:
    desk = Desk(tmp_path, engine)
    for revision, cached in ((REVISION, False), (REVISION, True), ("newer", False), (None, False), (REVISION, True)):
        desk.revision = revision
        assert desk.generation.generate_file(COMMAND, lambda: False).recipe.is_cached == cached
    desk.close()


def test_nobody_is_answered_with_what_another_owner_asked_for(tmp_path: Path, engine: FakeEngine) -> None:
    desk = Desk(tmp_path, engine)
    for owner, cached in (("one", False), ("other", False), (None, False), ("one", True), ("other", True)):
        file = desk.generation.generate_file(replace(COMMAND, audio_owner=owner), lambda: False)
        assert file.recipe.is_cached == cached
        assert file.filename.startswith(f"{owner}/" if owner else "")
    own = {path.parent.name for path in (tmp_path / "audio").rglob("*.wav")}
    assert own == {"one", "other", "audio"}
    assert len(list((tmp_path / "audio" / "one").iterdir())) == 3, "two answers, and what is known"
    desk.close()


def test_processes_that_share_a_store_work_a_question_once(tmp_path: Path, engine: FakeEngine) -> None:
    with asking(tmp_path, engine, num_desks=2) as ask:
        askers = [ask(desk) for desk in (0, 1, 0, 1)]
        engine.open_gate.wait(1.5)  # longer than a lease: it is renewed
        assert len(engine.submitted) == 1
        engine.open_gate.set()
        assert sorted(asker.file().recipe.is_cached for asker in askers) == [False, True, True, True]
    assert len(engine.submitted) == 1


def test_a_process_that_was_killed_holds_the_others_for_a_lease_at_most(tmp_path: Path, engine: FakeEngine) -> None:
    desk = Desk(tmp_path, engine)
    key = result_key(COMMAND, REVISION, Config())
    assert desk.store.lease(key, "killed", 1.0)
    assert not desk.generation.generate_file(COMMAND, lambda: False).recipe.is_cached
    desk.close()


def test_a_store_that_cannot_be_used_costs_only_the_cache(tmp_path: Path, engine: FakeEngine) -> None:
    (tmp_path / "state.sqlite3").write_bytes(b"not a database" * 1000)
    with asking(tmp_path, engine) as ask:
        askers = [ask() for _ in range(3)]
        engine.open_gate.set()
        assert sorted(asker.file().recipe.is_cached for asker in askers) == [False, True, True]
        assert not ask.desks[0].generation.generate_file(COMMAND, lambda: False).recipe.is_cached
    assert len(engine.submitted) == 2


def test_while_another_process_works_the_client_may_leave(tmp_path: Path, engine: FakeEngine) -> None:
    desk = Desk(tmp_path, engine)
    assert desk.store.lease(result_key(COMMAND, REVISION, Config()), "another", 1000.0)
    with pytest.raises(Canceled):
        desk.generation.generate_file(COMMAND, lambda: True)
    with pytest.raises(DeadlineExceeded):
        desk.generation.generate_file(COMMAND, lambda: False, deadline_seconds=0.1)
    assert not engine.submitted
    desk.close()


def test_a_leader_does_not_take_the_lease_from_the_next_one(
    tmp_path: Path, engine: FakeEngine, monkeypatch: Any
) -> None:
    desk = Desk(tmp_path, engine)
    released: list[bool] = []
    monkeypatch.setattr(desk.store, "release", lambda key, _holder: released.append(key in desk.results._flights))
    desk.generation.generate_file(COMMAND, lambda: False)
    assert released == [True], "before another can lead in this process, under the same holder's name"
    desk.close()


def test_an_error_that_nobody_foresaw_holds_nobody(tmp_path: Path, engine: FakeEngine, monkeypatch: Any) -> None:
    desk = Desk(tmp_path, engine)
    monkeypatch.setattr(desk.files, "save", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            desk.generation.generate_file(COMMAND, lambda: False)
    assert not desk.results._flights
    assert desk.store.lease(result_key(COMMAND, REVISION, Config()), "somebody", 1.0)
    assert not issubclass(ZeroDivisionError, AudioCraftError)
    desk.close()
