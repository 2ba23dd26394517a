"""A live session over a request that the test plays: pace, changes, seeking, and what happens at its end."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import pytest
import soundfile

from audiocraft_api.audio.resampled_pcm import ResampledPcm
from audiocraft_api.core.errors import GenerationFailed, InvalidRequest
from audiocraft_api.core.live_request import LiveRequest
from audiocraft_api.core.performance import Change, Controls, WeightedPrompt
from audiocraft_api.live.session import MAX_PENDING_CHANGES, STEREO_48K, LiveSession, LiveStart
from support.fakes import FRAME_RATE, SAMPLE_RATE, FakeEngine, block
from support.served import wait_until

TIMEOUT_SECONDS = 20.0

JAZZ, ROCK = (Controls((WeightedPrompt(text),)) for text in ("jazz", "rock"))


class HeldEngine(FakeEngine):
    """Keeps its live requests for the test, which generates their frames."""

    def submit_live(self, request: LiveRequest) -> None:
        request.start(1000, sample_rate=SAMPLE_RATE, frame_rate=FRAME_RATE, revision="fake", precision="exact")
        self.request = request

    def make(self, num_frames: int) -> None:
        """Generate up to a frame."""
        done = self.request.num_frames_done
        self.request.push(block(done, num_frames))
        self.request.advance(num_frames)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine() -> HeldEngine:
    return HeldEngine()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(engine: HeldEngine, clock: Clock) -> LiveSession:
    start = LiveStart("demo", 1, JAZZ, max_frames=1000, lead_frames=50)
    return LiveSession(engine, start, encode_timeout_seconds=5.0, clock=clock)


def poll(session: LiveSession) -> tuple[bytes, list[Any]]:
    """Return the audio and the messages that are ready."""
    events = list(session.poll(0))
    audio = b"".join(event for event in events if isinstance(event, bytes))
    return audio, [event for event in events if not isinstance(event, bytes)]


def change_at(frame: int, session: LiveSession, engine: HeldEngine) -> None:
    """Ask for rock, which the engine applies at a frame."""
    session.change(ROCK, 0.0, f"rock at {frame}")
    draft = engine.request.next_draft()
    assert draft is not None
    engine.request.settle(draft, Change(frame, ROCK))


def samples(first: int, last: int) -> bytes:
    return np.rint(block(first, last).T * 32768).astype("<i2").tobytes()


def test_the_engine_may_go_as_far_as_the_lead(session: LiveSession, engine: HeldEngine, clock: Clock) -> None:
    session.play()
    poll(session)
    assert engine.request.num_frames_allowed == 50
    engine.make(50)
    assert poll(session) == (samples(0, 50), [])
    clock.now += 0.5
    poll(session)
    assert engine.request.num_frames_allowed == 75
    session.pause()
    clock.now += 100
    poll(session)
    assert engine.request.num_frames_allowed == 75


def test_a_slow_engine_is_reported_with_its_factor_and_playback_resumes(
    session: LiveSession, engine: HeldEngine, clock: Clock
) -> None:
    session.play()
    engine.make(30)
    poll(session)
    clock.now += 1.0
    engine.make(40)
    assert poll(session)[1] == [{"type": "underrun", "frame": 30, "factor": 0.2}]
    assert poll(session)[1] == []
    engine.make(60)
    assert poll(session)[1] == [{"type": "resumed", "frame": 30}]


def test_a_change_is_answered_with_its_frame_or_with_the_reason_why_it_is_rejected(
    session: LiveSession, engine: HeldEngine
) -> None:
    session.change(ROCK, 0.5, "a", resets_context=True)
    session.change(JAZZ, 0.0, "b")
    first, second = engine.request.next_draft(), engine.request.next_draft()
    assert first is not None
    assert second is not None
    engine.request.settle(first, Change(20, first.controls, first.transition_frames, first.resets_context))
    engine.request.reject(second, InvalidRequest("too long"))
    applied, rejected = poll(session)[1]
    assert applied == {"type": "applied", "to": "a", "frame": 20}
    assert (rejected["to"], rejected["error"].message) == ("b", "too long")
    assert session.controls is ROCK
    engine.make(30)
    assert session.performance.changes == (Change(0, JAZZ), Change(20, ROCK, 25, True))
    assert session.performance.num_frames == 30


def test_the_time_from_a_change_to_its_playback_is_measured(
    session: LiveSession, engine: HeldEngine, clock: Clock
) -> None:
    session.play()
    engine.make(50)
    poll(session)
    change_at(60, session, engine)
    engine.make(100)
    poll(session)
    clock.now += 1.0  # frame 50 is heard
    poll(session)
    assert session.change_seconds == []
    clock.now += 0.25
    poll(session)
    assert session.change_seconds == [1.25]


def test_waiting_changes_are_bounded(session: LiveSession) -> None:
    for _ in range(MAX_PENDING_CHANGES):
        session.change(ROCK, 0.0, "a")
    with pytest.raises(InvalidRequest, match="Too many changes"):
        session.change(ROCK, 0.0, "a")


def test_seeking_replays_what_is_kept_without_sending_it(session: LiveSession, engine: HeldEngine) -> None:
    session.play()
    engine.make(60)
    poll(session)
    before = engine.request
    session.seek_back(40, ROCK, "a")
    assert before.should_stop
    assert engine.request.changes == (Change(0, JAZZ), Change(40, ROCK))
    assert poll(session) == (b"", [{"type": "applied", "to": "a", "frame": 40}])
    assert engine.request.num_frames_allowed == 90
    engine.make(30)
    engine.make(55)
    assert poll(session)[0] == samples(40, 55)
    assert session.num_frames_made == 75
    for frame in (0, 56):
        with pytest.raises(InvalidRequest, match="position"):
            session.seek_back(frame, None, "b")


def test_seeking_past_what_was_sent_first_sends_the_audio_before(session: LiveSession, engine: HeldEngine) -> None:
    session.play()
    engine.make(50)
    poll(session)
    engine.request.advance(60)  # the codec has not decoded the last frames yet
    session.seek_back(52, None, "a")
    assert poll(session) == (b"", [])
    engine.make(40)
    assert poll(session) == (b"", [])
    engine.make(70)
    assert list(session.poll(0)) == [
        samples(50, 52),
        {"type": "applied", "to": "a", "frame": 52},
        samples(52, 70),
    ]
    assert session.playback.position == 0


def test_seeking_twice_answers_both_before_the_audio_that_follows(session: LiveSession, engine: HeldEngine) -> None:
    engine.make(50)
    poll(session)
    engine.request.advance(60)
    session.seek_back(55, ROCK, "a")
    assert list(session.answers()) == []
    session.seek_back(56, JAZZ, "b")
    engine.make(70)
    assert list(session.poll(0)) == [
        samples(50, 56),
        {"type": "applied", "to": "a", "frame": 56},
        {"type": "applied", "to": "b", "frame": 56},
        samples(56, 70),
    ]
    session.seek_back(30, ROCK, "c")
    assert [message["to"] for message in session.answers()] == ["c"]
    session.seek_back(31, JAZZ, "d")
    engine.make(40)
    assert list(session.poll(0)) == [
        samples(30, 31),
        {"type": "applied", "to": "d", "frame": 31},
        samples(31, 40),
    ]


def test_seeking_answers_all_changes_that_wait(session: LiveSession, engine: HeldEngine) -> None:
    engine.make(60)
    poll(session)
    change_at(60, session, engine)
    session.change(JAZZ, 0.0, "waiting")
    session.change(JAZZ, 0.0, "reset", resets_context=True)
    session.seek_back(40, ROCK, "back")
    assert [(m["to"], m["type"], m["frame"]) for m in session.answers()] == [
        ("rock at 60", "applied", 60),
        ("waiting", "applied", 40),
        ("reset", "applied", 40),
        ("back", "applied", 40),
    ]
    assert engine.request.changes == (Change(0, JAZZ), Change(40, ROCK, resets_context=True))
    assert poll(session)[1] == []
    engine.make(60)
    session.change(JAZZ, 0.0, "waiting")
    session.seek_back(30, None, "back")
    assert [(m["to"], m["type"]) for m in poll(session)[1]] == [("waiting", "rejected"), ("back", "applied")]
    assert session.controls is JAZZ


def test_a_session_that_is_stopped_while_it_seeks_keeps_what_was_played(
    session: LiveSession, engine: HeldEngine
) -> None:
    session.play()
    engine.make(60)
    poll(session)
    session.seek_back(40, None, "a")
    session.stop()
    engine.make(39)
    poll(session)
    assert not engine.request.is_stopping
    engine.make(40)
    poll(session)
    assert engine.request.is_stopping
    session.seek_back(20, None, "b")
    session.stop(at_once=True)
    assert engine.request.is_stopping


def test_a_session_ends_after_its_last_audio(session: LiveSession, engine: HeldEngine) -> None:
    session.stop()
    assert engine.request.is_stopping
    engine.make(10)
    engine.request.finish()
    assert poll(session)[0] == samples(0, 10)
    assert not session.has_ended
    poll(session)
    assert session.has_ended


def test_a_failure_is_raised_after_the_audio_before_it(session: LiveSession, engine: HeldEngine) -> None:
    engine.make(10)
    engine.request.fail(GenerationFailed("It failed."))
    assert poll(session)[0] == samples(0, 10)
    with pytest.raises(GenerationFailed):
        poll(session)


def test_a_session_that_ends_early_can_send_opus(engine: HeldEngine, clock: Clock) -> None:
    start = LiveStart("demo", 1, JAZZ, max_frames=1000, lead_frames=50, output_format="opus")
    session = LiveSession(engine, start, encode_timeout_seconds=5.0, clock=clock)
    engine.make(100)
    engine.request.finish()
    audio = poll(session)[0] + poll(session)[0]
    session.close()
    assert audio.startswith(b"OggS")
    assert soundfile.info(io.BytesIO(audio)).duration == pytest.approx(2.0, abs=0.1)


def test_a_session_can_send_stereo_at_48_khz(engine: HeldEngine, clock: Clock) -> None:
    start = LiveStart("demo", 1, JAZZ, max_frames=1000, lead_frames=50, output_format=STEREO_48K)
    session = LiveSession(engine, start, encode_timeout_seconds=5.0, clock=clock)
    engine.make(30)
    audio = poll(session)[0]
    engine.make(100)
    engine.request.finish()
    audio += poll(session)[0] + poll(session)[0]
    session.close()
    whole = ResampledPcm(2, SAMPLE_RATE, 48_000)
    assert audio == whole.feed(block(0, 100)) + whole.finish()


def test_an_abandoned_session_is_complete(session: LiveSession, engine: HeldEngine) -> None:
    engine.make(60)
    poll(session)
    session.seek_back(40, ROCK, "a")
    waiting = threading.Thread(target=session.abandon)
    waiting.start()
    engine.make(39)
    engine.request.wait(0.1)
    assert not engine.request.is_stopping
    engine.make(40)
    wait_until(lambda: engine.request.is_stopping)
    engine.request.finish()
    waiting.join(TIMEOUT_SECONDS)
    assert session.performance.num_frames == 40
