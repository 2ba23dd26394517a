"""Stores audio as objects in an S3-compatible bucket, for any number of servers and workers.

The key of an object is the prefix and the filename. Objects beyond the maximum age are not served. They are deleted
`READERS_SECONDS` later by the sweep of any server, or by a lifecycle rule of the bucket. Knows nothing of requests and
callers.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from botocore.exceptions import HTTPClientError, IncompleteReadError

from audiocraft_api.audio.convert import MEDIA_TYPES
from audiocraft_api.config.storage import StorageSettings
from audiocraft_api.core.errors import NotFound, StorageUnavailable
from audiocraft_api.core.observer import NULL_OBSERVER, Observer
from audiocraft_api.storage.base import (
    CACHE_CONTROL,
    CODES_SUFFIX,
    FILENAME,
    MAX_CODES_BYTES,
    OpenAudio,
    StoredAudio,
    link_of,
    name_of,
    new_filename,
)
from audiocraft_api.storage.s3_client import S3Client
from audiocraft_api.storage.s3_file import MAX_READ_BYTES, RangedFile
from audiocraft_api.storage.sweeper import CLOSE_SECONDS, Sweeper

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3.client import S3Client as BotoClient
    from types_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ObjectTypeDef

READERS_SECONDS = 3600.0  # how long a file that was opened or linked before it expired stays readable


class S3Store:
    """The `AudioStore` that many machines share."""

    def __init__(
        self,
        config: StorageSettings,
        max_calls: int,
        observer: Observer = NULL_OBSERVER,
        *,
        background_sweep: bool = True,
    ) -> None:
        """`max_calls` bounds concurrent calls. With `background_sweep`, the first use starts a thread that sweeps.

        Raises ConfigError for settings that no client can be created from.
        """
        self._bucket = config.s3_bucket
        self._prefix = config.s3_prefix
        self._max_age_seconds = config.max_age_seconds
        self._is_swept = config.s3_sweep and config.max_age_seconds > 0
        self._link_seconds = config.s3_link_seconds
        self._is_presigned = config.s3_delivery == "presigned"
        self._client = S3Client(config, max_calls, observer)
        self._background_sweep = background_sweep
        self._sweeper = Sweeper(lambda: self.sweep(), config.sweep_interval_seconds)

    def check_settings(self) -> None:
        """Raise ConfigError if the store rejects the settings; log a warning if it is unreachable."""
        self._client.check_settings()

    def save(
        self,
        audio: bytes,
        extension: str,
        owner: str | None = None,
        codes: bytes | None = None,
        stem: str | None = None,
    ) -> StoredAudio:
        """Put each object in one request, which is atomic. Raises StorageUnavailable if the audio cannot be put."""
        filename = new_filename(extension, owner, stem)
        self._start_sweeper()
        self._put(filename, audio)
        if codes is not None:
            with suppress(StorageUnavailable):
                self._put(filename + CODES_SUFFIX, codes)
        return StoredAudio(filename, len(audio), time.time(), _etag(filename))

    def open(self, filename: str) -> OpenAudio:
        """Look up the size of an object; its bytes are fetched on reading. Raises NotFound, StorageUnavailable."""
        stored = self._describe(filename)
        self._start_sweeper()
        file = RangedFile(lambda start, end: self._fetch(filename, start, end), stored.size_bytes)
        return OpenAudio(stored, io.BufferedReader(file, MAX_READ_BYTES), is_remote=True)

    def codes_of(self, filename: str) -> bytes | None:
        """Get the object beside the audio. Raises StorageUnavailable."""
        if not FILENAME.fullmatch(filename):
            return None
        key = self._prefix + filename + CODES_SUFFIX
        try:
            return self._client.call(
                "read from", lambda client: _read_whole(client, self._bucket, key), wait_for_slot=False
            )
        except NotFound:
            return None

    def find(self, extension: str, owner: str | None) -> list[StoredAudio]:
        """List the objects of the owner. Raises StorageUnavailable."""
        place: dict[str, Any] = {"Bucket": self._bucket, "Prefix": self._prefix + name_of("", owner), "Delimiter": "/"}
        after: dict[str, Any] = {}
        found: list[StoredAudio] = []
        while True:
            page = self._client.call("list", partial(_list_page, **place, **after))
            for entry in page.get("Contents", []):
                filename, modified_at = entry["Key"].removeprefix(self._prefix), entry["LastModified"].timestamp()
                is_kept = not self._max_age_seconds or time.time() - modified_at <= self._max_age_seconds
                if FILENAME.fullmatch(filename) and filename.endswith(f".{extension}") and is_kept:
                    found.append(StoredAudio(filename, entry["Size"], modified_at, _etag(filename)))
            if not page["IsTruncated"]:
                return sorted(found, key=lambda stored: -stored.modified_at)
            after = {"ContinuationToken": page["NextContinuationToken"]}

    def url_for(self, filename: str) -> str:
        """Return the path of the file on this server, which may redirect."""
        return f"/audio/{link_of(filename)}"

    def redirect_for(self, filename: str, *, is_head: bool = False) -> str | None:
        """Return a presigned URL if the settings enable redirects. Raises NotFound, StorageUnavailable."""
        if not self._is_presigned:
            return None
        self._describe(filename)
        self._start_sweeper()
        method = "head_object" if is_head else "get_object"  # the signature includes the method
        return self._client.sign(method, self._bucket, self._prefix + filename, self._link_seconds)

    def delete(self, filename: str) -> None:
        """Delete a file's objects; later reads of it fail. Raises StorageUnavailable."""
        if not FILENAME.fullmatch(filename):
            return
        for name in (filename + CODES_SUFFIX, filename):
            key = self._prefix + name
            with suppress(NotFound):  # some stores report a missing object
                self._client.call("delete from", partial(_delete, bucket=self._bucket, key=key))

    def sweep(self) -> int:
        """Delete expired objects `READERS_SECONDS` after their expiry. Other objects are left alone.

        Servers may sweep at the same time; the result includes objects that another server has deleted in the meantime,
        and objects with codes. Raises StorageUnavailable.
        """
        if not self._is_swept:
            return 0
        num_deleted, after = 0, f"{self._prefix}!"  # sorts before every name
        while True:
            page = self._list(after)
            found = page.get("Contents", [])
            num_deleted += self._delete_all(self._expired(found))
            if not found or not page["IsTruncated"] or self._sweeper.is_closed:
                return num_deleted
            after = found[-1]["Key"]

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Stop the sweeper. Wait at most `timeout_seconds` for a sweep in progress. Files are kept."""
        self._sweeper.close(timeout_seconds)

    def _put(self, name: str, data: bytes) -> None:
        self._client.call(
            "write to",
            lambda client: client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + name,
                # With a file object, the write timeout applies to each block, not to the whole body. Copies nothing.
                Body=io.BytesIO(data),
                **_headers(name),
            ),
        )

    def _describe(self, filename: str) -> StoredAudio:
        if not FILENAME.fullmatch(filename):
            raise NotFound("There is no such audio file.")
        key = self._prefix + filename
        try:
            found = self._client.call(
                "read from", lambda client: client.head_object(Bucket=self._bucket, Key=key), wait_for_slot=False
            )
        except NotFound:
            # A HEAD response does not distinguish a missing object from a missing bucket; a GET response does.
            self._client.call("read from", lambda client: _read(client, self._bucket, key, 0, 1), wait_for_slot=False)
            raise
        modified_at = found["LastModified"].timestamp()
        if self._max_age_seconds and time.time() - modified_at > self._max_age_seconds:
            raise NotFound("There is no such audio file.")
        return StoredAudio(filename, found["ContentLength"], modified_at, _etag(filename))

    def _fetch(self, filename: str, start: int, end: int) -> bytes:
        key = self._prefix + filename
        return self._client.call(
            "read from", lambda client: _read(client, self._bucket, key, start, end), wait_for_slot=False
        )

    def _start_sweeper(self) -> None:
        if self._is_swept and self._background_sweep:
            self._sweeper.start()

    def _list(self, after: str) -> ListObjectsV2OutputTypeDef:
        """Return up to 1,000 objects whose keys sort after this one."""
        return self._client.call(
            "sweep", lambda client: client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, StartAfter=after)
        )

    def _expired(self, found: Iterable[ObjectTypeDef]) -> list[str]:
        """Return the keys of this store's objects that expired so long ago that no client can still be reading them."""
        before = time.time() - self._max_age_seconds - READERS_SECONDS
        return [
            entry["Key"]
            for entry in found
            if FILENAME.fullmatch(entry["Key"].removeprefix(self._prefix).removesuffix(CODES_SUFFIX))
            and entry["LastModified"].timestamp() < before
        ]

    def _delete_all(self, keys: list[str]) -> int:
        """Delete up to 1,000 objects and return their number. Raises StorageUnavailable."""
        if not keys:
            return 0
        response = self._client.call(
            "sweep",
            lambda client: client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
            ),
        )
        if errors := response.get("Errors"):
            raise self._client.unavailable(
                "sweep", f"{len(errors)} files could not be deleted: {errors[0].get('Code')}"
            )
        return len(keys)


class _Headers(TypedDict):
    ContentType: str
    ContentDisposition: str
    CacheControl: str


def _headers(filename: str) -> _Headers:
    """Return the headers that the store sends with the file: the same as those of the route."""
    link = link_of(filename)
    return {
        "ContentType": MEDIA_TYPES.get(link.rpartition(".")[2], "application/octet-stream"),
        "ContentDisposition": f"attachment; filename={link}",
        "CacheControl": CACHE_CONTROL,
    }


def _etag(filename: str) -> str:
    return link_of(filename).partition(".")[0]


def _read(client: BotoClient, bucket: str, key: str, start: int, end: int) -> bytes:
    """Return all bytes of a range. Retry once if the response is cut short; boto3 does not retry this."""

    def get() -> StreamingBody:
        return client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")["Body"]

    body = get()
    try:
        return _read_all(body, end - start)
    except (HTTPClientError, IncompleteReadError):
        return _read_all(get(), end - start)


def _read_whole(client: BotoClient, bucket: str, key: str) -> bytes:
    """Return all bytes of an object; nothing if it is larger than any that this service stores."""
    response = client.get_object(Bucket=bucket, Key=key)
    with closing(response["Body"]):
        num_bytes = response["ContentLength"]
        return _read_all(response["Body"], num_bytes) if num_bytes <= MAX_CODES_BYTES else b""


def _list_page(client: BotoClient, **place: Any) -> ListObjectsV2OutputTypeDef:
    return client.list_objects_v2(**place)


def _delete(client: BotoClient, bucket: str, key: str) -> None:
    client.delete_object(Bucket=bucket, Key=key)


def _read_all(body: StreamingBody, num_bytes: int) -> bytes:
    with closing(body):
        data = body.read(num_bytes + 1)  # bounded, in case the store ignores the range
    if len(data) != num_bytes:
        raise IncompleteReadError(actual_bytes=len(data), expected_bytes=num_bytes)
    return data
