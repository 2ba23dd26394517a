"""The position of a listener: by the clock, by reports, and never beyond the audio that was sent."""

from __future__ import annotations

import pytest

from audiocraft_api.live.playback import Playback


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def playback(clock: Clock) -> Playback:
    """A playback with a lead of 1.5 s that plays, with 1 s of audio."""
    playback = Playback(75, clock)
    playback.play()
    playback.sent(50)
    return playback


def test_playback_begins_with_enough_audio_and_follows_the_clock(clock: Clock) -> None:
    playback = Playback(75, clock)
    playback.play()
    playback.sent(37)
    clock.now += 1.0
    assert (playback.position, playback.is_dry, playback.num_frames_allowed) == (0, True, 75)
    playback.sent(38)
    clock.now += 0.5
    assert (playback.position, playback.is_dry, playback.num_frames_allowed) == (25, False, 100)


def test_a_pause_stops_the_clock(clock: Clock, playback: Playback) -> None:
    clock.now += 0.2
    playback.pause()
    clock.now += 1000.0
    assert playback.position == 10
    playback.play()
    clock.now += 0.2
    assert playback.position == 20


def test_playback_that_runs_dry_waits_for_half_a_lead(clock: Clock, playback: Playback) -> None:
    clock.now += 3.0
    assert (playback.position, playback.is_dry) == (50, True)
    playback.sent(80)
    clock.now += 1.0
    assert (playback.position, playback.is_dry) == (50, True)
    playback.sent(90)
    clock.now += 0.5
    assert (playback.position, playback.is_dry) == (75, False)


@pytest.mark.parametrize(("reported", "position"), [(20.0, 20), (-5.0, 0), (1e9, 50)])
def test_reports_move_the_position_within_the_audio_that_was_sent(
    clock: Clock, playback: Playback, reported: float, position: int
) -> None:
    clock.now += 0.1
    playback.report(reported)
    assert playback.position == position


def test_a_seek_waits_for_audio_of_the_new_frames(clock: Clock, playback: Playback) -> None:
    playback.seek(30)
    clock.now += 1.0
    assert (playback.position, playback.is_dry, playback.num_frames_allowed) == (30, True, 105)
    playback.sent(70)
    clock.now += 0.5
    assert playback.position == 55
