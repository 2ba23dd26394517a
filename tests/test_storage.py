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
from pathlib import Path
from typing import Any

import pytest

from audiocraft_api.config import load_config
from audiocraft_api.errors import NotFound, StorageUnavailable
from audiocraft_api.service.storage.base import AudioStore
from audiocraft_api.service.storage.local import LocalStore

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
        assert opened.audio == saved
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

    def test_a_deleted_file_is_gone_and_its_readers_read_on(self, store: AudioStore) -> None:
        filename = store.save(b"audio", "wav").filename
        with store.open(filename).file as file:
            store.delete(filename)
            assert file.read() == b"audio"
        with pytest.raises(NotFound):
            store.open(filename)
        store.delete(filename)

    def test_a_copy_is_a_file_of_its_own(self, store: AudioStore) -> None:
        first = store.save(b"audio", "mp3")
        copies = [store.copy(first.filename), store.copy(first.filename, "some-owner")]
        assert len({audio.filename for audio in (first, *copies)}) == 3
        assert [audio.filename.endswith(".mp3") for audio in copies] == [True, True]
        assert copies[1].filename.startswith("some-owner/")
        store.delete(first.filename)
        for audio in (*copies, store.copy(copies[1].filename)):
            assert audio.size_bytes == 5
            with store.open(audio.filename).file as file:
                assert file.read() == b"audio"

    def test_what_is_not_there_is_not_copied(self, store: AudioStore) -> None:
        gone = store.save(b"audio", "wav").filename
        store.delete(gone)
        for name in (gone, UNKNOWN, *HOSTILE_NAMES):
            with pytest.raises(NotFound):
                store.copy(name)

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
            assert all(pool.map(round_trip, range(200)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "audio"


def make_store(directory: Path, **settings: Any) -> LocalStore:
    return LocalStore(load_config({}, audio_dir=directory, **settings))


def age(directory: Path, filename: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(directory / filename, (then, then))


def readable(store: LocalStore, filename: str) -> bool:
    try:
        store.open(filename).file.close()
    except NotFound:
        return False
    return True


class TestLocalStore(AudioStoreContract):
    @pytest.fixture
    def store(self, directory: Path) -> Iterator[LocalStore]:
        # The sweeper's first round would race with the test's own; it has tests of its own below.
        store = make_store(directory, audio_max_age_seconds=100, audio_max_total_bytes=5_000_000)
        store._closed.set()
        yield store
        store.close()
        assert not list(directory.glob(".*")), "no temporary file is left"

    def test_an_address_is_the_route_of_the_file(self, store: LocalStore) -> None:
        assert store.url_for(UNKNOWN) == f"/audio/{UNKNOWN}"

    def test_a_file_over_the_age_is_swept_and_a_younger_one_stays(self, store: LocalStore, directory: Path) -> None:
        old, young = (store.save(b"audio", "wav").filename for _ in range(2))
        age(directory, old, 101)
        age(directory, young, 90)
        assert store.sweep() == 1
        assert (readable(store, old), readable(store, young)) == (False, True)

    def test_a_copy_is_not_swept_with_what_it_was_copied_from(self, store: LocalStore, directory: Path) -> None:
        first = store.save(b"audio", "wav").filename
        age(directory, first, 101)
        second = store.copy(first).filename
        assert store.sweep() == 1
        assert (readable(store, first), readable(store, second)) == (False, True)

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

    store = make_store(directory, audio_sweep_interval_seconds=3600)
    swept = threading.Event()
    sweep = store.sweep
    monkeypatch.setattr(store, "sweep", lambda: (sweep(), swept.set())[0])
    store.save(b"audio", "wav")
    assert swept.wait(DEADLINE_SECONDS)
    assert not (directory / filename).exists()
    assert store._sweeper is not None
    store.close()
    store.close()
    assert not store._sweeper.is_alive()


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
