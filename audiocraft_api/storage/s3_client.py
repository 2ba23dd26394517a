"""Calls an S3-compatible store. Every call ends within its timeout and raises only this service's errors. Knows nothing
of audio.

boto3 bounds each connect, each wait for data and the number of attempts, but not the whole call: a server that sends
one byte per second can prolong a call indefinitely. Each call therefore runs in a thread of its own, which its caller
abandons after the timeout; the thread ends when its connection does. The number of calls, including abandoned calls, is
bounded.
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

from audiocraft_api.config import ConfigError, variable_name
from audiocraft_api.config.storage import StorageSettings
from audiocraft_api.core.errors import NotFound, StorageUnavailable
from audiocraft_api.core.observer import NULL_OBSERVER, Observer

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client as BotoClient

SLOT_WAIT_SECONDS = 1.0  # for calls whose caller occupies one of the server's threads
NOT_FOUND = ("NoSuchKey", "404")  # 404: response to a HEAD, which has no body
WRONG_BUCKET = ("NoSuchBucket", "InvalidBucketName")
WRONG_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301")
WRONG_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch")

T = TypeVar("T")

logger = logging.getLogger(__name__)


class S3Client:
    """boto3's client with bounded calls. Thread-safe."""

    def __init__(self, config: StorageSettings, max_calls: int, observer: Observer = NULL_OBSERVER) -> None:
        """Raises ConfigError for settings that no client can be created from."""
        self._config = config
        self._timeout_seconds = config.s3_timeout_seconds
        self._observer = observer
        self._slots = threading.BoundedSemaphore(max_calls)
        self._boto = _boto_client(config, config.s3_endpoint_url, max_calls)
        self._signer = self._boto
        if config.s3_link_endpoint_url:
            self._signer = _boto_client(config, config.s3_link_endpoint_url, 1)

    def call(self, verb: str, function: Callable[[BotoClient], T], *, wait_for_slot: bool = True) -> T:
        """Call `function` with boto3's client and return its result. `verb` completes the log message.

        If too many calls are running, wait for a slot for up to the timeout of the call, or only for
        `SLOT_WAIT_SECONDS` if `wait_for_slot` is False. Raises NotFound, StorageUnavailable.
        """
        slot_seconds = self._timeout_seconds if wait_for_slot else SLOT_WAIT_SECONDS
        try:
            return self._run(function, slot_seconds)
        except ClientError as error:
            if _code_of(error) in NOT_FOUND:
                raise NotFound("There is no such audio file.") from None
            raise self.unavailable(verb, error) from error
        except (BotoCoreError, ResponseParserError, OSError) as error:
            raise self.unavailable(verb, error) from error

    def sign(self, method: str, bucket: str, key: str, seconds: int) -> str:
        """Return a presigned URL for one method and one file. Raises StorageUnavailable."""
        parameters = {"Bucket": bucket, "Key": key}
        # Signing does not contact the store, but it may have to fetch credentials; so it runs as a bounded call.
        return self.call(
            "sign a link to",
            lambda _: self._signer.generate_presigned_url(method, Params=parameters, ExpiresIn=seconds),
            wait_for_slot=False,
        )

    def unavailable(self, verb: str, error: object) -> StorageUnavailable:
        """Log and count a failure, and return the error to raise."""
        self._observer.storage_failed("audio")
        logger.error("Could not %s the audio store: %s", verb, error)
        return StorageUnavailable("The audio store is unavailable. Try again later.")

    def check_settings(self) -> None:
        """Raise ConfigError if the store rejects the settings; log a warning if it is unreachable."""
        try:
            self._run(
                lambda client: client.list_objects_v2(
                    Bucket=self._config.s3_bucket, Prefix=self._config.s3_prefix, MaxKeys=1
                ),
                self._timeout_seconds,
            )
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise ConfigError(
                f"{variable_name('audio_store')}=s3 requires AWS credentials, such as the variables "
                f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: {error}"
            ) from None
        except ClientError as error:
            if problem := self._problem(_code_of(error)):
                raise ConfigError(problem) from None
            logger.warning("The audio store does not allow listing its bucket: %s", error)
        except (BotoCoreError, ResponseParserError, OSError) as error:
            logger.warning("The audio store is unreachable: %s", error)

    def _problem(self, code: str) -> str | None:
        config = self._config
        if code in WRONG_BUCKET:
            return f"{variable_name('s3_bucket')}={config.s3_bucket} is not valid: expected an existing bucket"
        if code in WRONG_REGION:
            return f"{variable_name('s3_region')}={config.s3_region} is not valid: expected the region of the bucket"
        if code in WRONG_CREDENTIALS:
            return (
                f"{variable_name('audio_store')}=s3 requires valid AWS credentials: the store rejected these ({code})"
            )
        return None

    def _run(self, function: Callable[[BotoClient], T], slot_seconds: float) -> T:
        """Call `function` in a new thread. Raises TimeoutError, and any exception of `function`."""
        until = time.monotonic() + self._timeout_seconds
        if not self._slots.acquire(timeout=min(slot_seconds, self._timeout_seconds)):
            raise TimeoutError("too many concurrent calls")
        future: Future[T] = Future()
        try:
            # A daemon thread, so that a stopping process does not wait for abandoned calls.
            threading.Thread(target=self._complete, args=(future, function), name="s3-call", daemon=True).start()
        except RuntimeError as error:
            self._slots.release()
            raise TimeoutError("cannot start a thread for the call") from error
        try:
            return future.result(max(until - time.monotonic(), 0.0))
        except TimeoutError:
            raise TimeoutError(f"no response within {self._timeout_seconds:g} seconds") from None

    def _complete(self, future: Future[T], function: Callable[[BotoClient], T]) -> None:
        try:
            future.set_result(function(self._boto))
        except BaseException as error:  # noqa: BLE001 re-raised in the caller's thread
            future.set_exception(error)
        finally:
            self._slots.release()


def _boto_client(config: StorageSettings, endpoint_url: str, num_connections: int) -> BotoClient:
    try:
        return boto3.client(
            "s3",
            endpoint_url=endpoint_url or None,
            region_name=config.s3_region or None,
            config=BotoConfig(
                connect_timeout=config.s3_connect_timeout_seconds,
                read_timeout=config.s3_read_timeout_seconds,
                retries={"mode": "standard", "total_max_attempts": config.s3_attempts},
                max_pool_connections=num_connections,
                signature_version="s3v4",
                # Not every store supports the newer checksums; the signature already covers the body's hash.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"{variable_name('audio_store')}=s3 cannot be used: {error}") from None


def _code_of(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")
