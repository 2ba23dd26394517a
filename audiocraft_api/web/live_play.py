"""Serves one live session: from the `start` message to the `ended` message.

One thread reads the client's messages and sends audio and answers, so that they have one order. It also ends sessions
that are over a limit, and charges the seconds that were made.
"""

from __future__ import annotations

import logging
import secrets
import time
from datetime import UTC, datetime

from audiocraft_api import __version__
from audiocraft_api.core.constants import FRAME_RATE, MAX_SEED
from audiocraft_api.core.errors import (
    AudioCraftError,
    Canceled,
    ClientDisconnected,
    InvalidRequest,
    NotStreamable,
    QuotaExceeded,
    StorageUnavailable,
)
from audiocraft_api.core.request import AudioInfo
from audiocraft_api.generation.performance_recipe import performance_json
from audiocraft_api.live.session import OUTPUT_RATE, PCM, LiveSession, LiveStart, Message
from audiocraft_api.storage.base import new_stem
from audiocraft_api.web.admission import admitted_live, settle_charge
from audiocraft_api.web.auth import caller, client_address
from audiocraft_api.web.context import request_id
from audiocraft_api.web.live_socket import LiveSocket
from audiocraft_api.web.live_steering import LiveSteering
from audiocraft_api.web.request_checks import require_live
from audiocraft_api.web.schemas.live import StartMessage
from audiocraft_api.web.services import services

POLL_SECONDS = 0.02  # how long a message of the client may wait

logger = logging.getLogger(__name__)


class LivePlay:
    """One session of a client, within the context of its request. Always `close` it."""

    def __init__(self, client: LiveSocket, message: StartMessage, output_format: str | None = None) -> None:
        """`output_format` replaces the format of the message."""
        self._client, self._message = client, message
        self._output_format = output_format or message.format
        self._config = services().config
        self._steering = LiveSteering(services().policy, self._config.limits.max_prompt_characters)
        self._performance_id = new_stem()
        self._reason = ""  # why the session ends
        self._num_seconds_charged = 1
        self._start: LiveStart

    def close(self) -> None:
        self._steering.close()

    def prepare(self) -> None:
        """Check everything about the session. Raises InvalidRequest, PromptRefused, ModerationUnavailable."""
        self._start = self._start_of(self._message)

    def serve(self) -> str:
        """Play the session and return why it ended. Raises ClientDisconnected, or the error to send as the last."""
        with admitted_live([prompt.text for prompt in self._message.prompts]):
            return self._serve_session(is_paused=self._message.paused)

    def _start_of(self, message: StartMessage) -> LiveStart:
        spec, settings = services().catalog.get(message.model_size), self._config.live
        require_live(spec, "model_size")
        stride = spec.stride(message.extend_stride)
        if stride >= spec.window_seconds:
            raise _refusal("extend_stride", f"must be less than {spec.window_seconds:g} for the model {spec.name}")
        seconds = min(message.duration or settings.live_max_seconds, settings.live_max_seconds)
        lead_seconds = min(message.lead or settings.live_lead_seconds, settings.live_lead_seconds)
        return LiveStart(
            model=spec.name,
            seed=secrets.randbelow(MAX_SEED + 1) if message.seed is None else message.seed,
            controls=self._steering.begin(message, spec),
            max_frames=round(seconds * FRAME_RATE),
            lead_frames=round(lead_seconds * FRAME_RATE),
            output_format=self._output_format,
            extend_stride_seconds=stride,
        )

    def _serve_session(self, *, is_paused: bool) -> str:
        engine = services().engine
        if engine is None:
            raise NotStreamable("This server sends generations to Celery workers, and cannot play live.")
        timeout_seconds = self._config.audio.convert_timeout_seconds
        session = LiveSession(engine, self._start, encode_timeout_seconds=timeout_seconds)
        end = "failed"
        try:
            if not is_paused:
                session.play()
            self._run(session)
            end = self._reason or "limit"
        except ClientDisconnected:
            end = "disconnected"
            self._keep(session)
            raise
        except Canceled:
            if not self._reason:  # otherwise it stopped before its first frame
                raise
            end = self._reason
        except AudioCraftError as error:
            self._send_end(session, error.code)
            raise
        finally:
            session.close()
            _count(session, end)
        self._send_end(session, end)
        return end

    def _run(self, session: LiveSession) -> None:
        has_started = False
        while not session.has_ended:
            self._receive_messages(session)
            self._end_if_due(session)
            for event in session.poll(POLL_SECONDS):
                if not has_started and session.info is not None:
                    has_started = True
                    self._send_start(session)
                if isinstance(event, bytes):
                    settle_charge(charged=True)
                    self._client.send_audio(event)
                else:
                    self._send(session, event)
            self._charge(session)

    def _receive_messages(self, session: LiveSession) -> None:
        """Handle what the client has sent. Raises RateLimited, ClientDisconnected."""
        while True:
            for answer in self._steering.finish_check(session):
                self._send(session, answer)
            if self._steering.is_checking or (text := self._client.receive(0)) is None:
                return
            if (message := self._client.read(text)) is None:
                continue
            for answer in self._steering.receive(session, message):
                self._send(session, answer)

    def _send(self, session: LiveSession, message: Message) -> None:
        if message["type"] == "rejected" and isinstance(message.get("to"), dict):  # by the engine
            self._steering.forget_rejected(session)
        self._client.send(message)

    def _end_if_due(self, session: LiveSession) -> None:
        """Stop the session if there is a reason to."""
        settings, now, paused_since = self._config.live, time.monotonic(), self._steering.paused_since
        reasons = {
            "stopped": self._steering.is_stopping,
            "draining": services().draining.is_set(),
            "paused": paused_since is not None and now - paused_since >= settings.live_max_paused_seconds,
            "idle": now - self._client.last_message >= settings.live_idle_seconds,
        }
        if not self._reason and (reason := next((name for name, is_due in reasons.items() if is_due), "")):
            self._end(session, reason)

    def _end(self, session: LiveSession, reason: str) -> None:
        self._reason = reason
        self._client.send({"type": "ending", "reason": reason})
        session.stop(at_once=reason == "draining")

    def _charge(self, session: LiveSession) -> None:
        """Charge each second that was made; without any left, stop the session."""
        while session.num_frames_made > self._num_seconds_charged * FRAME_RATE and not self._reason:
            self._num_seconds_charged += 1
            try:
                services().limits.charge_more(caller(), client_address(), 1.0)
            except QuotaExceeded:
                self._end(session, "quota")

    def _send_start(self, session: LiveSession) -> None:
        assert session.info is not None
        spec, start = services().catalog.get(self._start.model), self._start
        is_pcm = start.output_format == PCM
        rate = session.info.sample_rate if is_pcm else OUTPUT_RATE
        started = {
            "type": "started",
            "model": start.model,
            "revision": session.info.revision,
            "precision": session.info.precision,
            "seed": start.seed,
            "performance": self._performance_id,
            "format": start.output_format,
            "media_type": f"audio/L16;rate={rate};channels={spec.channels}" if is_pcm else "audio/ogg",
            "sample_rate": rate,
            "channels": spec.channels,
            "lead": start.lead_frames / FRAME_RATE,
            "frame_rate": FRAME_RATE,
            "request_id": request_id(),
        }
        self._client.send(started)

    def _send_end(self, session: LiveSession, reason: str) -> None:
        """Keep the performance, and send its ID with the last message."""
        is_kept = self._keep(session)
        num_frames = session.num_frames
        ended = {"type": "ended", "reason": reason, "frames": num_frames, "duration": num_frames / FRAME_RATE}
        ended |= {"performance": self._performance_id if is_kept else None}
        self._client.send(ended | {"seed": self._start.seed, "request_id": request_id()})

    def _keep(self, session: LiveSession) -> bool:
        """Keep the performance, once it is complete, as long as audio is kept. Return whether there is one."""
        session.abandon()
        if not session.num_frames or session.info is None:
            return False
        try:
            self._save(session, session.info)
        except StorageUnavailable as error:
            logger.warning("The performance %s could not be saved: %s", self._performance_id, error)
            return False
        logger.info("The performance %s of a live session was kept.", self._performance_id)
        return True

    def _save(self, session: LiveSession, info: AudioInfo) -> None:
        fields = performance_json(session.performance) | {
            "model": self._start.model,
            "seed": self._start.seed,
            "extend_stride": self._start.extend_stride_seconds,
            "revision": info.revision,
            "precision": info.precision,
            "service_version": __version__,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        services().performances.save(self._performance_id, fields, caller().owner)


def _count(session: LiveSession, end: str) -> None:
    """Count a session that has ended."""
    metrics = services().telemetry.metrics
    metrics.live_ends.labels(end).inc()
    metrics.live_underruns.inc(session.num_underruns)
    for seconds in session.change_seconds:
        metrics.live_change.observe(seconds)


def _refusal(field: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {rule}.", {field: [f"{field} {rule}."]})
