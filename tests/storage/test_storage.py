"""Audio stores: one contract for every backend, then the tests of each backend."""

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
from support.s3_server import REGION, S3Server

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
    """The contract of every backend. Subclasses define the fixture `store`."""

    def test_a_saved_file_is_read_back_completely(self, store: AudioStore) -> None:
        saved = store.save(b"some audio", "wav")
        opened = store.open(saved.filename)
        with opened.file as file:
            assert file.read() == b"some audio"
            file.seek(5)
            assert file.read() == b"audio"
        # A remote store has its own clock.
        assert replace(opened.audio, modified_at=saved.modified_at) == saved
        assert abs(opened.audio.modified_at - saved.modified_at) < 60
        assert saved.size_bytes == 10
        assert abs(saved.modified_at - time.time()) < 60

    def test_filenames_are_unique_and_end_in_the_extension(self, store: AudioStore) -> None:
        saved = [store.save(b"same", extension) for extension in ("wav", "mp3", "flac") for _ in range(5)]
        assert len({audio.filename for audio in saved}) == len({audio.etag for audio in saved}) == 15
        for audio in saved:
            assert uuid.UUID(audio.filename.partition(".")[0]).version == 4
            assert audio.filename.partition(".")[2] in ("wav", "mp3", "flac")
            assert '"' not in audio.etag

    def test_a_url_contains_the_filename(self, store: AudioStore) -> None:
        filename = store.save(b"audio", "ogg").filename
        assert filename in store.url_for(filename)

    def test_an_invalid_extension_is_refused(self, store: AudioStore) -> None:
        for extension in ("", "../wav", "w/v", "WAV", "wav\x00", "much-too-long"):
            with pytest.raises(ValueError, match="not a file name extension"):
                store.save(b"audio", extension)

    def test_an_unknown_name_is_not_found(self, store: AudioStore) -> None:
        with pytest.raises(NotFound):
            store.open(UNKNOWN)

    @pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
    def test_an_invalid_name_is_not_found(self, store: AudioStore, name: str) -> None:
        store.save(b"audio", "wav")
        with pytest.raises(NotFound):
            store.open(name)
        store.delete(name)

    def test_a_deleted_file_is_not_found(self, store: AudioStore) -> None:
        filename = store.save(b"audio", "wav").filename
        store.delete(filename)
        with pytest.raises(NotFound):
            store.open(filename)
        store.delete(filename)

    def test_a_file_is_found_only_for_its_owner(self, store: AudioStore) -> None:
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

    def test_files_are_found_by_owner_and_extension(self, store: AudioStore) -> None:
        first, second = (store.save(b"abc", "upload", "alice").filename for _ in range(2))
        store.save(b"abcd", "wav", "alice", codes=b"codes")
        store.save(b"abc", "upload", "bob")
        everyones = store.save(b"abcde", "upload").filename
        assert {found.filename for found in store.find("upload", "alice")} == {first, second}
        (found,) = store.find("upload", None)
        assert (found.filename, found.size_bytes) == (everyones, 5)
        assert store.find("upload", "carol") == []

    def test_codes_are_stored_beside_their_file_and_are_not_audio(self, store: AudioStore) -> None:
        filename = store.save(b"audio", "wav", "alice", b"codes").filename
        assert store.codes_of(filename) == b"codes"
        assert store.codes_of(store.save(b"audio", "wav", "alice").filename) is None
        for name in (f"{filename}.codes", f"{filename[:-4]}.codes", link_of(filename) + ".codes"):
            with pytest.raises(NotFound):
                store.open(name)
        for name in (link_of(filename), name_of(link_of(filename), "bob"), *HOSTILE_NAMES):
            assert store.codes_of(name) is None

    def test_codes_are_deleted_with_their_file(self, store: AudioStore) -> None:
        filename = store.save(b"audio", "wav", codes=b"codes").filename
        store.delete(filename)
        assert store.codes_of(filename) is None
        with pytest.raises(NotFound):
            store.open(filename)

    def test_ranges_are_read_in_any_order(self, store: AudioStore) -> None:
        data = os.urandom(400_000)
        with store.open(store.save(data, "wav").filename).file as file:
            for start, end in [(399_990, 400_000), (0, 10), (5, 300_000), (70_000, 70_001), (400_000, 400_000)]:
                file.seek(start)
                assert file.read(end - start) == data[start:end]
            assert file.read() == b""
            assert file.seek(-4, os.SEEK_END) == 399_996
            assert file.read() == data[-4:]

    def test_an_empty_file_and_a_large_file_are_stored(self, store: AudioStore) -> None:
        for data in (b"", os.urandom(3_000_001)):
            with store.open(store.save(data, "wav").filename).file as file:
                assert file.read() == data

    def test_many_threads_save_open_delete_and_sweep_concurrently(self, store: AudioStore) -> None:
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
    """Make a file look `seconds` old."""
    then = time.time() - seconds
    os.utime(directory / filename, (then, then))


def is_readable(store: AudioStore, filename: str) -> bool:
    try:
        store.open(filename).file.close()
    except NotFound:
        return False
    return True


class TestLocalStore(AudioStoreContract):
    @pytest.fixture
    def store(self, directory: Path) -> Iterator[LocalStore]:
        # The first sweep of the background thread would race with sweeps of the test. Other tests cover that thread.
        config = load_config({}, audio_dir=directory, audio_max_age_seconds=100, audio_max_total_bytes=5_000_000)
        store = LocalStore(config.storage, background_sweep=False)
        yield store
        store.close()
        assert not list(directory.glob(".*")), "a temporary file is left"

    def test_a_url_is_the_route_of_the_file(self, store: LocalStore) -> None:
        assert store.url_for(UNKNOWN) == f"/audio/{UNKNOWN}"

    def test_a_deleted_file_can_still_be_read_by_its_readers(self, store: LocalStore) -> None:
        filename = store.save(b"audio", "wav").filename
        with store.open(filename).file as file:
            store.delete(filename)
            assert file.read() == b"audio"

    def test_clients_are_never_redirected(self, store: LocalStore) -> None:
        assert store.redirect_for(store.save(b"audio", "wav").filename) is None

    def test_only_files_beyond_the_maximum_age_are_swept(self, store: LocalStore, directory: Path) -> None:
        old, young = (store.save(b"audio", "wav").filename for _ in range(2))
        age(directory, old, 101)
        age(directory, young, 90)
        assert store.sweep() == 1
        assert (is_readable(store, old), is_readable(store, young)) == (False, True)

    def test_the_oldest_files_beyond_the_total_size_are_swept(self, store: LocalStore, directory: Path) -> None:
        names = [store.save(bytes(2_000_000), "wav").filename for _ in range(4)]
        for index, filename in enumerate(names):
            age(directory, filename, 50 - index)
        assert store.sweep() == 2
        assert [is_readable(store, filename) for filename in names] == [False, False, True, True]

    def test_without_limits_every_file_is_kept(self, directory: Path) -> None:
        store = make_store(directory, audio_max_age_seconds=0, audio_max_total_bytes=0)
        filename = store.save(bytes(1000), "wav").filename
        age(directory, filename, 1e9)
        assert store.sweep() == 0
        assert is_readable(store, filename)
        store.close()

    def test_codes_are_swept_with_their_file_and_count_toward_the_size(
        self, store: LocalStore, directory: Path
    ) -> None:
        names = [store.save(bytes(1_900_000), "wav", "alice", bytes(100_000)).filename for _ in range(4)]
        for index, filename in enumerate(names):
            age(directory, filename, [200, 50, 49, 48][index])
        assert store.sweep() == 2
        assert [is_readable(store, filename) for filename in names] == [False, False, True, True]
        assert [store.codes_of(filename) is None for filename in names] == [True, True, False, False]
        assert len(list((directory / "alice").iterdir())) == 4

    def test_codes_that_lost_their_file_are_removed_after_an_hour(self, store: LocalStore, directory: Path) -> None:
        filename, other = (store.save(b"audio", "wav", codes=b"codes").filename for _ in range(2))
        for name in (filename, other):
            (directory / name).unlink()
        age(directory, f"{filename}.codes", 4000)
        store.sweep()
        assert [path.name for path in directory.iterdir()] == [f"{other}.codes"]

    def test_audio_is_stored_if_there_is_no_space_for_its_codes(self, store: LocalStore, directory: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
        try:
            filename = store.save(b"audio", "wav", codes=bytes(100_000)).filename
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [path.name for path in directory.iterdir()] == [filename]

    def test_an_open_file_is_not_swept_until_its_last_reader_closes_it(
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
        assert not is_readable(store, filename)

    def test_an_open_file_counts_toward_the_size_but_is_not_swept(self, store: LocalStore, directory: Path) -> None:
        names = [store.save(bytes(2_000_000), "wav").filename for _ in range(3)]
        for index, filename in enumerate(names):
            age(directory, filename, 50 - index)
        with store.open(names[0]).file:
            assert store.sweep() == 1
        assert [is_readable(store, filename) for filename in names] == [True, False, True]

    def test_garbage_collection_of_an_unclosed_file_ends_its_lease(self, store: LocalStore, directory: Path) -> None:
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

    def test_foreign_files_are_neither_swept_nor_opened(self, store: LocalStore, directory: Path) -> None:
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

    def test_temporary_files_of_dead_writers_are_removed_and_those_of_live_writers_kept(
        self, store: LocalStore, directory: Path
    ) -> None:
        store.save(b"audio", "wav")
        dead, live = (f".{uuid.uuid4()}.wav.part" for _ in range(2))
        dead_codes = f".{uuid.uuid4()}.wav.codes.part"
        for name in (dead, dead_codes, live):
            (directory / name).write_bytes(b"partial")
        age(directory, dead, 4000)
        age(directory, dead_codes, 4000)
        store.sweep()
        assert [(directory / name).exists() for name in (dead, dead_codes, live)] == [False, False, True]
        (directory / live).unlink()

    def test_a_full_disk_is_a_503_and_leaves_no_partial_file(
        self, store: LocalStore, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept = store.save(b"audio", "wav").filename
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))  # a larger write fails part-way, as on a full disk
        try:
            with pytest.raises(StorageUnavailable) as caught:
                store.save(bytes(1_000_000), "wav")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.status == 503
        assert str(directory) not in caught.value.message
        assert os.strerror(errno.EFBIG) in caplog.text
        assert [path.name for path in directory.iterdir()] == [kept]


def test_a_directory_that_is_not_writable_is_a_503(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = make_store(tmp_path / "file" / "audio")
    with pytest.raises(StorageUnavailable):
        store.save(b"audio", "wav")
    with pytest.raises(NotFound):
        store.open(UNKNOWN)
    store.close()


def test_an_unused_store_creates_neither_a_directory_nor_a_thread(directory: Path) -> None:
    num_threads = threading.active_count()
    store = make_store(directory)
    store.url_for(UNKNOWN)
    store.close()
    assert not directory.exists()
    assert threading.active_count() == num_threads


def test_a_directory_removed_while_running_is_created_again(directory: Path) -> None:
    store = make_store(directory)
    store.delete(store.save(b"audio", "wav").filename)
    directory.rmdir()
    assert store.sweep() == 0
    assert is_readable(store, store.save(b"audio", "wav").filename)
    store.close()


def test_the_sweeper_starts_on_first_use_sweeps_files_of_an_earlier_run_and_stops_on_close(
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


def test_the_sweeper_sweeps_at_each_interval_and_survives_a_failure(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(directory, audio_sweep_interval_seconds=0.01)
    sweeps = threading.Semaphore(0)
    files = store._files

    def fail_first() -> list[tuple[str, os.stat_result]]:
        sweeps.release()
        if not caplog.records:
            raise OSError(errno.EIO, "the disk is broken")
        return files()

    monkeypatch.setattr(store, "_files", fail_first)
    store.save(b"audio", "wav")
    for _ in range(3):
        assert sweeps.acquire(timeout=DEADLINE_SECONDS)
    store.close()
    assert "the disk is broken" in caplog.text


# --- S3


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
def s3_store(server: S3Server, bucket: str) -> Iterator[S3Store]:
    with opened_s3_store(server, bucket) as store:
        yield store


def test_an_object_has_the_same_headers_as_the_route(s3_store: S3Store, server: S3Server, bucket: str) -> None:
    filename = s3_store.save(b"audio", "mp3", "alice").filename
    found = server.objects(bucket)
    assert list(found) == [f"audio/{filename}"]
    metadata = {name.lower(): value for name, value in found[f"audio/{filename}"].metadata.items()}
    assert metadata["content-type"] == "audio/mpeg"
    assert metadata["content-disposition"] == f"attachment; filename={link_of(filename)}"
    assert "immutable" in metadata["cache-control"]


def test_an_expired_object_is_not_found_and_is_deleted_after_the_time_for_readers(
    s3_store: S3Store, server: S3Server, bucket: str
) -> None:
    young, read, old = (s3_store.save(b"audio", "wav", owner).filename for owner in (None, "alice", "bob"))
    server.age(bucket, f"audio/{young}", 90)
    server.age(bucket, f"audio/{old}", 105 + READERS_SECONDS)
    with s3_store.open(read).file as file:
        server.age(bucket, f"audio/{read}", 95 + READERS_SECONDS)  # lists truncate times to whole seconds
        assert [is_readable(s3_store, filename) for filename in (young, read, old)] == [True, False, False]
        assert s3_store.sweep() == 1
        assert file.read() == b"audio"
    assert set(server.objects(bucket)) == {f"audio/{young}", f"audio/{read}"}


def test_codes_are_swept_with_their_object(s3_store: S3Store, server: S3Server, bucket: str) -> None:
    old, young = (s3_store.save(b"audio", "wav", "alice", b"codes").filename for _ in range(2))
    for name in (old, f"{old}.codes"):
        server.age(bucket, f"audio/{name}", 105 + READERS_SECONDS)
    assert s3_store.sweep() == 2
    assert set(server.objects(bucket)) == {f"audio/{young}", f"audio/{young}.codes"}


def test_codes_that_are_too_large_are_not_fetched(s3_store: S3Store, server: S3Server, bucket: str) -> None:
    filename = s3_store.save(b"audio", "wav", codes=b"codes").filename
    server.put(bucket, f"audio/{filename}.codes", bytes(2**20 + 1))
    assert s3_store.codes_of(filename) == b""


def test_foreign_objects_are_neither_swept_nor_opened(s3_store: S3Store, server: S3Server, bucket: str) -> None:
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


def test_several_servers_sweep_many_pages_concurrently(s3_store: S3Store, server: S3Server, bucket: str) -> None:
    for index in range(1010):
        key = f"audio/{uuid.uuid4()}.wav"
        server.put(bucket, key)
        server.age(bucket, key, 1e6 if index % 2 else 0)
    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(lambda _: s3_store.sweep(), range(3)))
    assert sum(counts) >= 505
    assert len(server.objects(bucket)) == 505
