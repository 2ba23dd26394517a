"""Stores of finished audio: one contract for every backend, then what is the local store's own."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.config import load_config
from audiocraft_api.core.errors import NotFound, StorageUnavailable
from audiocraft_api.storage.base import AudioStore, link_of, name_of
from audiocraft_api.storage.local import LocalStore
from audiocraft_api.storage.s3 import READERS_SECONDS, S3Store
from support.s3_server import CREDENTIALS, REGION, S3Server

DEADLINE_SECONDS = 30.0

UNKNOWN = f"{uuid.uuid4()}.wav"
HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "/",
    "../secret.wav",
    "..\\secret.wav",
    "../../../../etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "\\\\server\\share",
    "C:\\secret.wav",
    "%2e%2e%2fsecret.wav",
    "..%2fsecret.wav",
    "..%c0%afsecret.wav",
    "%252e%252e%252fsecret.wav",
    "....//secret.wav",
    "..;/secret.wav",
    "./secret.wav",
    "file:///etc/passwd",
    "~/secret.wav",
    "secret.wav",
    "secret.wav\x00.wav",
    f"{UNKNOWN}\x00",
    f"{UNKNOWN}\n",
    f"{UNKNOWN}/",
    f"{UNKNOWN}/../secret.wav",
    f"../audio/{UNKNOWN}",
    f" {UNKNOWN}",
    UNKNOWN.upper(),
    UNKNOWN.replace("-", "—"),
    f"{UNKNOWN[:-4]}.wav.part",
    f".{UNKNOWN}.part",
    UNKNOWN[:-4],
    f"{UNKNOWN[:-4]}.",
    "１" + UNKNOWN[1:],
    "a" * 10_000,
]


class AudioStoreContract:
    """What every backend promises. A subclass gives the fixture `store`."""

    def test_a_saved_file_is_read_back_whole(self, store: AudioStore) -> None:
        saved = store.save(b"some audio", "wav")
        opened = store.open(saved.filename)
        with opened.file as file:
            assert file.read() == b"some audio"
            file.seek(5)
            assert file.read() == b"audio"
        # A store that is another server has a clock of its own.
        assert replace(opened.audio, modified_at=saved.modified_at) == saved
        assert abs(opened.audio.modified_at - saved.modified_at) < 60
        assert saved.size_bytes == 10
        assert abs(saved.modified_at - time.time()) < 60

    def test_a_name_is_new_and_ends_in_the_extension(self, store: AudioStore) -> None:
        saved = [store.save(b"same", extension) for extension in ("wav", "mp3", "flac") for _ in range(5)]
        assert len({audio.filename for audio in saved}) == len({audio.etag for audio in saved}) == 15
        for audio in saved:
            assert uuid.UUID(audio.filename.partition(".")[0]).version == 4
            assert audio.filename.partition(".")[2] in ("wav", "mp3", "flac")
            assert '"' not in audio.etag

    def test_an_address_names_the_file(self, store: AudioStore) -> None:
        filename = store.save(b"audio", "ogg").filename
        assert filename in store.url_for(filename)

    def test_an_extension_that_is_none_is_refused(self, store: AudioStore) -> None:
        for extension in ("", "../wav", "w/v", "WAV", "wav\x00", "much-too-long"):
            with pytest.raises(ValueError, match="not a file name extension"):
                store.save(b"audio", extension)

    def test_an_unknown_name_is_not_found(self, store: AudioStore) -> None:
        with pytest.raises(NotFound):
            store.open(UNKNOWN)

    @pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
    def test_a_name_that_no_store_makes_is_not_found(self, store: AudioStore, name: str) -> None:
        store.save(b"audio", "wav")
        with pytest.raises(NotFound):
            store.open(name)
        store.delete(name)

    def test_a_deleted_file_is_gone(self, store: AudioStore) -> None:
        filename = store.save(b"audio", "wav").filename
        store.delete(filename)
        with pytest.raises(NotFound):
            store.open(filename)
        store.delete(filename)

    def test_an_owner_s_file_is_nobody_else_s(self, store: AudioStore) -> None:
        filename = store.save(b"audio", "wav", "alice").filename
        link = link_of(filename)
        assert (filename, store.url_for(filename)) == (f"alice/{link}", f"/audio/{link}")
        with store.open(name_of(link, "alice")).file as file:
            assert file.read() == b"audio"
        for other in (None, "bob", "ali"):
            with pytest.raises(NotFound):
                store.open(name_of(link, other))
        with pytest.raises(ValueError, match="not an owner"):
            store.save(b"audio", "wav", "../bob")

    def test_parts_are_read_in_any_order(self, store: AudioStore) -> None:
        data = os.urandom(400_000)
        with store.open(store.save(data, "wav").filename).file as file:
            for start, end in [(399_990, 400_000), (0, 10), (5, 300_000), (70_000, 70_001), (400_000, 400_000)]:
                file.seek(start)
                assert file.read(end - start) == data[start:end]
            assert file.read() == b""
            assert file.seek(-4, os.SEEK_END) == 399_996
            assert file.read() == data[-4:]

    def test_an_empty_file_and_a_large_one_are_kept(self, store: AudioStore) -> None:
        for data in (b"", os.urandom(3_000_001)):
            with store.open(store.save(data, "wav").filename).file as file:
                assert file.read() == data

    def test_many_threads_save_open_delete_and_sweep_at_once(self, store: AudioStore) -> None:
        def round_trip(index: int) -> bool:
            data = str(index).encode() * 1000
            filename = store.save(data, "wav").filename
            if index % 10 == 0:
                store.sweep()
            with store.open(filename).file as file:
                read = file.read()
            store.delete(filename)
            return read == data

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(round_trip, range(100)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "audio"


def make_store(directory: Path, **settings: Any) -> LocalStore:
    return LocalStore(load_config({}, audio_dir=directory, **settings).storage)


def age(directory: Path, filename: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(directory / filename, (then, then))


def readable(store: AudioStore, filename: str) -> bool:
    try:
        store.open(filename).file.close()
    except NotFound:
        return False
    return True


class TestLocalStore(AudioStoreContract):
    @pytest.fixture
    def store(self, directory: Path) -> Iterator[LocalStore]:
        # The sweeper's first round would race with the test's own; it has tests of its own below.
        config = load_config({}, audio_dir=directory, audio_max_age_seconds=100, audio_max_total_bytes=5_000_000)
        store = LocalStore(config.storage, background_sweep=False)
        yield store
        store.close()
        assert not list(directory.glob(".*")), "no temporary file is left"

    def test_an_address_is_the_route_of_the_file(self, store: LocalStore) -> None:
        assert store.url_for(UNKNOWN) == f"/audio/{UNKNOWN}"

    def test_a_deleted_file_s_readers_read_on(self, store: LocalStore) -> None:
        filename = store.save(b"audio", "wav").filename
        with store.open(filename).file as file:
            store.delete(filename)
            assert file.read() == b"audio"

    def test_no_client_is_sent_elsewhere(self, store: LocalStore) -> None:
        assert store.redirect_for(store.save(b"audio", "wav").filename) is None

    def test_a_file_over_the_age_is_swept_and_a_younger_one_stays(self, store: LocalStore, directory: Path) -> None:
        old, young = (store.save(b"audio", "wav").filename for _ in range(2))
        age(directory, old, 101)
        age(directory, young, 90)
        assert store.sweep() == 1
        assert (readable(store, old), readable(store, young)) == (False, True)

    def test_the_oldest_files_beyond_the_total_size_are_swept(self, store: LocalStore, directory: Path) -> None:
        names = [store.save(bytes(2_000_000), "wav").filename for _ in range(4)]
        for index, filename in enumerate(names):
            age(directory, filename, 50 - index)
        assert store.sweep() == 2
        assert [readable(store, filename) for filename in names] == [False, False, True, True]

    def test_no_limit_keeps_everything(self, directory: Path) -> None:
        store = make_store(directory, audio_max_age_seconds=0, audio_max_total_bytes=0)
        filename = store.save(bytes(1000), "wav").filename
        age(directory, filename, 1e9)
        assert store.sweep() == 0
        assert readable(store, filename)
        store.close()

    def test_a_file_being_served_is_not_swept_until_its_last_reader_closes(
        self, store: LocalStore, directory: Path
    ) -> None:
        filename = store.save(b"audio", "wav").filename
        first, second = store.open(filename).file, store.open(filename).file
        age(directory, filename, 1e6)
        assert store.sweep() == 0
        first.close()
        first.close()
        assert store.sweep() == 0
        assert second.read() == b"audio"
        second.close()
        assert store.sweep() == 1
        assert not readable(store, filename)

    def test_a_served_file_counts_for_the_size_and_others_go_for_it(self, store: LocalStore, directory: Path) -> None:
        names = [store.save(bytes(2_000_000), "wav").filename for _ in range(3)]
        for index, filename in enumerate(names):
            age(directory, filename, 50 - index)
        with store.open(names[0]).file:
            assert store.sweep() == 1
        assert [readable(store, filename) for filename in names] == [True, False, True]

    def test_a_reader_that_is_forgotten_ends_its_lease(self, store: LocalStore, directory: Path) -> None:
        filename = store.save(b"audio", "wav").filename
        with pytest.warns(ResourceWarning):
            store.open(filename)
        age(directory, filename, 1e6)
        assert store.sweep() == 1

    def test_a_failed_open_leaves_no_lease(self, store: LocalStore) -> None:
        for _ in range(10):
            with pytest.raises(NotFound):
                store.open(UNKNOWN)
        assert not store._leases

    def test_files_of_others_are_neither_swept_nor_opened(self, store: LocalStore, directory: Path) -> None:
        store.save(b"audio", "wav")
        others = [".gitkeep", "notes.txt", "song.wav", f".{UNKNOWN}", f"{UNKNOWN}.part"]
        for name in others:
            (directory / name).write_bytes(b"mine")
            age(directory, name, 1e6)
        store.sweep()
        assert all((directory / name).exists() for name in others)
        for name in others:
            with pytest.raises(NotFound):
                store.open(name)
            (directory / name).unlink()

    def test_links_pipes_and_directories_in_the_store_are_not_served(
        self, store: LocalStore, directory: Path, tmp_path: Path
    ) -> None:
        store.save(b"audio", "wav")
        (tmp_path / "secret").write_bytes(b"secret")
        names = [f"{uuid.uuid4()}.wav" for _ in range(4)]
        (directory / names[0]).symlink_to(tmp_path / "secret")
        (directory / names[1]).symlink_to(directory / "nowhere")
        os.mkfifo(directory / names[2])
        (directory / names[3]).mkdir()
        for name in names:
            os.utime(directory / name, (0, 0), follow_symlinks=False)
        assert store.sweep() == 0
        num_descriptors = len(os.listdir("/dev/fd"))
        for name in names:
            with pytest.raises(NotFound):
                store.open(name)
        assert len(os.listdir("/dev/fd")) == num_descriptors
        assert not store._leases

    def test_temporary_files_of_dead_writers_are_removed_and_those_of_live_ones_stay(
        self, store: LocalStore, directory: Path
    ) -> None:
        store.save(b"audio", "wav")
        dead, live = (f".{uuid.uuid4()}.wav.part" for _ in range(2))
        for name in (dead, live):
            (directory / name).write_bytes(b"half")
        age(directory, dead, 4000)
        store.sweep()
        assert ((directory / dead).exists(), (directory / live).exists()) == (False, True)
        (directory / live).unlink()

    def test_a_full_disk_is_a_503_and_leaves_nothing_half_written(
        self, store: LocalStore, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept = store.save(b"audio", "wav").filename
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))  # a write beyond it fails half-way, as on a full disk
        try:
            with pytest.raises(StorageUnavailable) as caught:
                store.save(bytes(1_000_000), "wav")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.status == 503
        assert str(directory) not in caught.value.message
        assert os.strerror(errno.EFBIG) in caplog.text
        assert [path.name for path in directory.iterdir()] == [kept]


def test_a_directory_that_cannot_be_written_is_a_503(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = make_store(tmp_path / "file" / "audio")
    with pytest.raises(StorageUnavailable):
        store.save(b"audio", "wav")
    with pytest.raises(NotFound):
        store.open(UNKNOWN)
    store.close()


def test_a_store_that_is_not_used_makes_neither_directory_nor_thread(directory: Path) -> None:
    num_threads = threading.active_count()
    store = make_store(directory)
    store.url_for(UNKNOWN)
    store.close()
    assert not directory.exists()
    assert threading.active_count() == num_threads


def test_a_directory_removed_while_running_is_made_again(directory: Path) -> None:
    store = make_store(directory)
    store.delete(store.save(b"audio", "wav").filename)
    directory.rmdir()
    assert store.sweep() == 0
    assert readable(store, store.save(b"audio", "wav").filename)
    store.close()


def test_the_sweeper_starts_with_the_first_use_sweeps_what_an_earlier_run_left_and_stops_on_close(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = make_store(directory)
    filename = earlier.save(b"audio", "wav").filename
    earlier.close()
    age(directory, filename, 1e6)

    num_threads = threading.active_count()
    store = make_store(directory, audio_sweep_interval_seconds=3600)
    swept = threading.Event()
    sweep = store.sweep
    monkeypatch.setattr(store, "sweep", lambda: (sweep(), swept.set())[0])
    store.save(b"audio", "wav")
    assert swept.wait(DEADLINE_SECONDS)
    assert not (directory / filename).exists()
    store.close()
    store.close()
    assert threading.active_count() <= num_threads


def test_the_sweeper_sweeps_again_after_each_interval_and_survives_a_failure(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(directory, audio_sweep_interval_seconds=0.01)
    rounds = threading.Semaphore(0)
    files = store._files

    def fail_first() -> list[tuple[str, os.stat_result]]:
        rounds.release()
        if not caplog.records:
            raise OSError(errno.EIO, "the disk is broken")
        return files()

    monkeypatch.setattr(store, "_files", fail_first)
    store.save(b"audio", "wav")
    for _ in range(3):
        assert rounds.acquire(timeout=DEADLINE_SECONDS)
    store.close()
    assert "the disk is broken" in caplog.text


# --- S3


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield server
    server.close()


@contextmanager
def opened_s3_store(server: S3Server, bucket: str, **others: Any) -> Iterator[S3Store]:
    settings = {"s3_endpoint_url": server.url, "s3_region": REGION, "s3_bucket": bucket} | others
    config = load_config({}, audio_store="s3", audio_max_age_seconds=100, **settings)
    store = S3Store(config.storage, max_calls=32, background_sweep=False)
    yield store
    store.close()


@pytest.fixture(scope="module")
def shared_s3_store(server: S3Server) -> Iterator[S3Store]:
    with opened_s3_store(server, server.make_bucket()) as store:
        yield store


class TestS3Store(AudioStoreContract):
    @pytest.fixture
    def store(self, shared_s3_store: S3Store) -> S3Store:
        return shared_s3_store


@pytest.fixture
def bucket(server: S3Server) -> str:
    return server.make_bucket()


@pytest.fixture
def s3_store(server: S3Server, bucket: str) -> Iterator[S3Store]:
    with opened_s3_store(server, bucket) as store:
        yield store


def test_an_object_has_the_headers_of_the_route(s3_store: S3Store, server: S3Server, bucket: str) -> None:
    filename = s3_store.save(b"audio", "mp3", "alice").filename
    found = server.objects(bucket)
    assert list(found) == [f"audio/{filename}"]
    metadata = {name.lower(): value for name, value in found[f"audio/{filename}"].metadata.items()}
    assert metadata["content-type"] == "audio/mpeg"
    assert metadata["content-disposition"] == f"attachment; filename={link_of(filename)}"
    assert "immutable" in metadata["cache-control"]


def test_what_is_over_the_age_is_gone_at_once_and_deleted_when_its_readers_had_their_time(
    s3_store: S3Store, server: S3Server, bucket: str
) -> None:
    young, read, old = (s3_store.save(b"audio", "wav", owner).filename for owner in (None, "alice", "bob"))
    server.age(bucket, f"audio/{young}", 90)
    server.age(bucket, f"audio/{old}", 105 + READERS_SECONDS)
    with s3_store.open(read).file as file:
        server.age(bucket, f"audio/{read}", 95 + READERS_SECONDS)  # lists cut times to whole seconds
        assert [readable(s3_store, filename) for filename in (young, read, old)] == [True, False, False]
        assert s3_store.sweep() == 1
        assert file.read() == b"audio"
    assert set(server.objects(bucket)) == {f"audio/{young}", f"audio/{read}"}


def test_the_objects_of_others_are_neither_swept_nor_opened(s3_store: S3Store, server: S3Server, bucket: str) -> None:
    others = [
        f"audio/{UNKNOWN}.part",
        "audio/notes.txt",
        "audio/",
        UNKNOWN,
        f"audio/a/b/{UNKNOWN}",
        f"audi/{UNKNOWN}",
    ]
    for key in others:
        server.put(bucket, key)
        server.age(bucket, key, 1e6)
        with pytest.raises(NotFound):
            s3_store.open(key)
    assert s3_store.sweep() == 0
    assert set(server.objects(bucket)) == set(others)


@pytest.mark.parametrize("prefix", ["", "a/b/"])
def test_a_prefix_may_be_empty_or_deep(server: S3Server, bucket: str, prefix: str) -> None:
    with opened_s3_store(server, bucket, s3_prefix=prefix) as store:
        old, young = (store.save(b"audio", "wav", owner).filename for owner in ("-", None))
        assert set(server.objects(bucket)) == {prefix + old, prefix + young}
        server.age(bucket, prefix + old, 101 + READERS_SECONDS)
        assert store.sweep() == 1
        assert set(server.objects(bucket)) == {prefix + young}


def test_many_pages_are_swept_by_several_servers_at_once(s3_store: S3Store, server: S3Server, bucket: str) -> None:
    for index in range(1010):
        key = f"audio/{uuid.uuid4()}.wav"
        server.put(bucket, key)
        server.age(bucket, key, 1e6 if index % 2 else 0)
    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(lambda _: s3_store.sweep(), range(3)))
    assert sum(counts) >= 505
    assert len(server.objects(bucket)) == 505
