"""Keeps finished audio as objects of an S3-compatible bucket, for any number of servers and workers.

An object's key is the prefix and the filename. What is over the age is not given out any more, whenever it is deleted:
by the sweep of any server, readers' time later, or by a lifecycle rule of the bucket. Must not know who reads.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from typing import TYPE_CHECKING, TypedDict

from botocore.exceptions import HTTPClientError, IncompleteReadError

from audiocraft_api.audio.convert import MEDIA_TYPES
from audiocraft_api.config import Config
from audiocraft_api.core.errors import NotFound, StorageUnavailable
from audiocraft_api.storage.base import CACHE_CONTROL, FILENAME, OpenAudio, StoredAudio, link_of, new_filename
from audiocraft_api.storage.s3_client import S3Client
from audiocraft_api.storage.s3_file import MAX_READ_BYTES, RangedFile
from audiocraft_api.storage.sweeper import Sweeper

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3.client import S3Client as BotoClient
    from types_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ObjectTypeDef

READERS_SECONDS = 3600.0  # who opened a file, or got a link to it, before it was over the age may read on for so long

logger = logging.getLogger(__name__)


class S3Store:
    """The `AudioStore` of many machines: `config.storage.s3_bucket`. Raises ConfigError for settings no client is made from."""

    def __init__(self, config: Config) -> None:
        self._bucket = config.storage.s3_bucket
        self._prefix = config.storage.s3_prefix
        self._max_age_seconds = config.storage.max_age_seconds
        self._is_swept = config.storage.s3_sweep and config.storage.max_age_seconds > 0
        self._link_seconds = config.storage.s3_link_seconds
        self._is_presigned = config.storage.s3_delivery == "presigned"
        self._client = S3Client(config)
        self._sweeper = Sweeper(lambda: self.sweep(), config.storage.sweep_interval_seconds)

    def check(self) -> None:
        """Raise ConfigError when the store says that the settings are wrong; log when it does not answer."""
        self._client.check()

    def save(self, audio: bytes, extension: str, owner: str | None = None) -> StoredAudio:
        """Put an object, in one request: it appears whole or not at all. Raises StorageUnavailable."""
        filename = new_filename(extension, owner)
        self._start_sweeper()
        self._client.call(
            "written",
            lambda client: client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + filename,
                # Not the bytes themselves: those must be sent within one time-out, and a file's pieces each. No copy.
                Body=io.BytesIO(audio),
                **_headers(filename),
            ),
        )
        return StoredAudio(filename, len(audio), time.time(), _etag(filename))

    def copy(self, filename: str, owner: str | None = None) -> StoredAudio:
        """Copy an object inside the store. Raises NotFound, StorageUnavailable."""
        source = self._describe(filename)
        copied = new_filename(filename.rpartition(".")[2], owner)
        self._client.call(
            "written",
            lambda client: client.copy_object(
                Bucket=self._bucket,
                Key=self._prefix + copied,
                CopySource={"Bucket": self._bucket, "Key": self._prefix + filename},
                MetadataDirective="REPLACE",  # the attachment's name is the copy's
                **_headers(copied),
            ),
        )
        return StoredAudio(copied, source.size_bytes, time.time(), _etag(copied))

    def open(self, filename: str) -> OpenAudio:
        """Ask for an object's size; its bytes are fetched while they are read. Raises NotFound, StorageUnavailable."""
        stored = self._describe(filename)
        self._start_sweeper()
        file = RangedFile(lambda start, end: self._fetch(filename, start, end), stored.size_bytes)
        return OpenAudio(stored, io.BufferedReader(file, MAX_READ_BYTES), is_remote=True)

    def url_for(self, filename: str) -> str:
        """Return the path of the file's route on this server, which may redirect."""
        return f"/audio/{link_of(filename)}"

    def redirect_for(self, filename: str, *, is_head: bool = False) -> str | None:
        """Return a presigned link where the settings want them. Raises NotFound, StorageUnavailable."""
        if not self._is_presigned:
            return None
        self._describe(filename)
        self._start_sweeper()
        method = "head_object" if is_head else "get_object"  # the signature is of the method too
        return self._client.sign(method, self._bucket, self._prefix + filename, self._link_seconds)

    def delete(self, filename: str) -> None:
        """Delete an object; who reads it gets no further. Raises StorageUnavailable."""
        if FILENAME.fullmatch(filename):
            with suppress(NotFound):  # some stores say so
                self._client.call(
                    "deleted", lambda client: client.delete_object(Bucket=self._bucket, Key=self._prefix + filename)
                )

    def sweep(self) -> int:
        """Delete objects over the age, and the time of their readers; those of others stay. Raises StorageUnavailable.

        Servers may sweep at the same time: what another one has deleted counts here too.
        """
        if not self._is_swept:
            return 0
        num_deleted, after = 0, f"{self._prefix}!"  # comes before every name
        while True:
            page = self._list(after)
            found = page.get("Contents", [])
            num_deleted += self._delete_all(self._expired(found))
            if not found or not page["IsTruncated"] or self._sweeper.is_closed:
                return num_deleted
            after = found[-1]["Key"]

    def close(self) -> None:
        """Stop the sweeper. Files stay."""
        self._sweeper.close()

    def _describe(self, filename: str) -> StoredAudio:
        if not FILENAME.fullmatch(filename):
            raise NotFound("There is no such audio file.")
        key = self._prefix + filename
        try:
            found = self._client.call(
                "read", lambda client: client.head_object(Bucket=self._bucket, Key=key), is_patient=False
            )
        except NotFound:
            # The answer to a HEAD cannot say whether the object or the bucket is not there; this one can.
            self._client.call("read", lambda client: _read(client, self._bucket, key, 0, 1), is_patient=False)
            raise
        modified_at = found["LastModified"].timestamp()
        if self._max_age_seconds and time.time() - modified_at > self._max_age_seconds:
            raise NotFound("There is no such audio file.")
        return StoredAudio(filename, found["ContentLength"], modified_at, _etag(filename))

    def _fetch(self, filename: str, start: int, end: int) -> bytes:
        key = self._prefix + filename
        return self._client.call("read", lambda client: _read(client, self._bucket, key, start, end), is_patient=False)

    def _start_sweeper(self) -> None:
        if self._is_swept:
            self._sweeper.start()

    def _list(self, after: str) -> ListObjectsV2OutputTypeDef:
        """Return the first objects, at most 1,000, of those whose keys come after this one."""
        return self._client.call(
            "swept", lambda client: client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, StartAfter=after)
        )

    def _expired(self, found: Iterable[ObjectTypeDef]) -> list[str]:
        """Return the keys of this store's own objects that nobody may read any more."""
        before = time.time() - self._max_age_seconds - READERS_SECONDS
        return [
            entry["Key"]
            for entry in found
            if FILENAME.fullmatch(entry["Key"].removeprefix(self._prefix))
            and entry["LastModified"].timestamp() < before
        ]

    def _delete_all(self, keys: list[str]) -> int:
        """Delete the objects of a page, at most 1,000, and return how many. Raises StorageUnavailable."""
        if not keys:
            return 0
        answer = self._client.call(
            "swept",
            lambda client: client.delete_objects(
                Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
            ),
        )
        if errors := answer.get("Errors"):
            logger.error("The audio store did not delete %d files: %s", len(errors), errors[0].get("Code"))
            raise StorageUnavailable("The audio store cannot be used now; try again later.")
        return len(keys)


class _Headers(TypedDict):
    ContentType: str
    ContentDisposition: str
    CacheControl: str


def _headers(filename: str) -> _Headers:
    """Return what the store answers with a file when clients fetch it there: the same as the route."""
    link = link_of(filename)
    return {
        "ContentType": MEDIA_TYPES.get(link.rpartition(".")[2], "application/octet-stream"),
        "ContentDisposition": f"attachment; filename={link}",
        "CacheControl": CACHE_CONTROL,
    }


def _etag(filename: str) -> str:
    return link_of(filename).partition(".")[0]


def _read(client: BotoClient, bucket: str, key: str, start: int, end: int) -> bytes:
    """Return the bytes of a range, all of them; ask once more when the answer breaks off, which boto3 does not."""

    def ask() -> StreamingBody:
        return client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")["Body"]

    body = ask()
    try:
        return _all_of(body, end - start)
    except (HTTPClientError, IncompleteReadError):
        return _all_of(ask(), end - start)


def _all_of(body: StreamingBody, num_bytes: int) -> bytes:
    with closing(body):
        data = body.read(num_bytes + 1)  # no more, from a store that ignores the range
    if len(data) != num_bytes:
        raise IncompleteReadError(actual_bytes=len(data), expected_bytes=num_bytes)
    return data
