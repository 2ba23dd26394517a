"""Calls an S3-compatible store: every call ends within its time, and fails with one of our errors. Knows no audio.

boto3 bounds each connect, each silence and the number of attempts, but not the whole: a server that sends a byte
every second holds a call for as long as it likes. So a call runs in a thread of its own, which its caller leaves
behind when the time is over; it ends with its connection. The number of calls is bounded, left ones included.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from botocore.parsers import ResponseParserError

from audiocraft_api.config import Config, ConfigError, variable_name
from audiocraft_api.core.errors import NotFound, StorageUnavailable

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client as BotoClient

IMPATIENT_SECONDS = 1.0  # for a place, where waiting would hold one of the server's threads
NOT_FOUND = ("NoSuchKey", "404")  # 404 is that of a HEAD, which has no body
WRONG_BUCKET = ("NoSuchBucket", "InvalidBucketName")
WRONG_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301")
WRONG_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch")

T = TypeVar("T")

logger = logging.getLogger(__name__)


class S3Client:
    """boto3's client, bounded. Thread-safe. Raises ConfigError for settings that no client can be made from."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._timeout_seconds = config.storage.s3_timeout_seconds
        # Half of the threads: a store that hangs leaves the other half to requests that do not need it.
        num_places = max(config.server.threads // 2, 2)
        self._places = threading.BoundedSemaphore(num_places)
        self._boto = _boto_client(config, config.storage.s3_endpoint_url, num_places)
        self._signer = self._boto
        if config.storage.s3_link_endpoint_url:
            self._signer = _boto_client(config, config.storage.s3_link_endpoint_url, 1)

    def call(self, verb: str, function: Callable[[BotoClient], T], *, is_patient: bool = True) -> T:
        """Return what `function` makes of boto3's client. Raises NotFound, StorageUnavailable; `verb` is for the log.

        All places taken, a patient call waits for one as long as it may take at all.
        """
        patience_seconds = self._timeout_seconds if is_patient else IMPATIENT_SECONDS
        try:
            return self._run(function, patience_seconds)
        except ClientError as error:
            if _code_of(error) in NOT_FOUND:
                raise NotFound("There is no such audio file.") from None
            raise _unavailable(verb, error) from error
        except (BotoCoreError, ResponseParserError, OSError) as error:
            raise _unavailable(verb, error) from error

    def sign(self, method: str, bucket: str, key: str, seconds: int) -> str:
        """Return an address that is good for one method of one file. Raises StorageUnavailable."""
        parameters = {"Bucket": bucket, "Key": key}
        # A call, although it asks the store nothing: the credentials may have to be fetched.
        return self.call(
            "signed for",
            lambda _: self._signer.generate_presigned_url(method, Params=parameters, ExpiresIn=seconds),
            is_patient=False,
        )

    def check(self) -> None:
        """Raise ConfigError when the store says that the settings are wrong; log when it does not answer."""
        try:
            self._run(
                lambda client: client.list_objects_v2(
                    Bucket=self._config.storage.s3_bucket, Prefix=self._config.storage.s3_prefix, MaxKeys=1
                ),
                self._timeout_seconds,
            )
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise ConfigError(
                f"{variable_name('audio_store')}=s3 needs AWS credentials, such as the variables AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY: {error}"
            ) from None
        except ClientError as error:
            if problem := self._problem(_code_of(error)):
                raise ConfigError(problem) from None
            logger.warning("The audio store does not let its bucket be listed: %s", error)
        except (BotoCoreError, ResponseParserError, OSError) as error:
            logger.warning("The audio store does not answer yet: %s", error)

    def _problem(self, code: str) -> str | None:
        config = self._config
        if code in WRONG_BUCKET:
            return (
                f"{variable_name('s3_bucket')}={config.storage.s3_bucket} is not valid: expected a bucket that exists"
            )
        if code in WRONG_REGION:
            return f"{variable_name('s3_region')}={config.storage.s3_region} is not valid: expected the region of the bucket"
        if code in WRONG_CREDENTIALS:
            return f"{variable_name('audio_store')}=s3 needs valid AWS credentials: the store refuses these ({code})"
        return None

    def _run(self, function: Callable[[BotoClient], T], patience_seconds: float) -> T:
        """Raises what `function` raises, TimeoutError."""
        until = time.monotonic() + self._timeout_seconds
        if not self._places.acquire(timeout=min(patience_seconds, self._timeout_seconds)):
            raise TimeoutError("too many calls are going on")
        future: Future[T] = Future()
        try:
            # A daemon: a process that stops does not wait for a call that was left behind.
            threading.Thread(target=self._settle, args=(future, function), name="s3-call", daemon=True).start()
        except RuntimeError as error:
            self._places.release()
            raise TimeoutError("there is no thread for the call") from error
        try:
            return future.result(max(until - time.monotonic(), 0.0))
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._timeout_seconds:g} seconds") from None

    def _settle(self, future: Future[T], function: Callable[[BotoClient], T]) -> None:
        try:
            future.set_result(function(self._boto))
        except BaseException as error:  # noqa: BLE001 whoever waits gets it
            future.set_exception(error)
        finally:
            self._places.release()


def _boto_client(config: Config, endpoint_url: str, num_connections: int) -> BotoClient:
    try:
        return boto3.client(
            "s3",
            endpoint_url=endpoint_url or None,
            region_name=config.storage.s3_region or None,
            config=BotoConfig(
                connect_timeout=config.storage.s3_connect_timeout_seconds,
                read_timeout=config.storage.s3_read_timeout_seconds,
                retries={"mode": "standard", "total_max_attempts": config.storage.s3_attempts},
                max_pool_connections=num_connections,
                signature_version="s3v4",
                # Other stores than AWS's do not all know the newer check sums; the signature has one of the body anyway.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"{variable_name('audio_store')}=s3 cannot be used: {error}") from None


def _code_of(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _unavailable(verb: str, error: object) -> StorageUnavailable:
    logger.error("The audio store could not be %s: %s", verb, error)
    return StorageUnavailable("The audio store cannot be used now; try again later.")
