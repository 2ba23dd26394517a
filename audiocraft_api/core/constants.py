"""Limits and defaults that the HTTP contract fixes and several packages use."""

MAX_PROMPT_CHARACTERS = 2_000
MIN_DURATION_SECONDS = 1.0
MAX_DURATION_SECONDS = 30.0  # of a synchronous request
MAX_LONG_DURATION_SECONDS = 300.0  # of a task or a stream
WINDOW_SECONDS = 30.0  # that the released models generate at once
MIN_TEMPERATURE = 0.1
MAX_TEMPERATURE = 2.0
CODEBOOK_SIZE = 2048
MAX_SEED = 2**53 - 1  # the largest integer that a JavaScript number represents exactly
MAX_CFG_COEF = 20.0

MAX_VARIATIONS = 8
MAX_BARS = 32
DEFAULT_CANDIDATES, MAX_CANDIDATES = 4, 8  # of a loop
FRAME_RATE = 50  # frames per second of the released codecs
MIN_CONTINUED_SECONDS = 0.1
MAX_SEGMENTS = 32
MIN_SEGMENT_SECONDS = 0.1

DEFAULT_TOP_K = 250
DEFAULT_CFG_COEF = 3.0
DEFAULT_EXTEND_STRIDE_SECONDS = 18.0  # audiocraft's
MIN_EXTEND_STRIDE_SECONDS = 1.0

MAX_LIVE_CHANGES = 2_000  # of a performance
MAX_LIVE_SECONDS = 86_400
MAX_TRANSITION_SECONDS = 30.0

MIN_BPM = 40
MAX_BPM = 240
MIN_LOUDNESS_LUFS = -30.0
MAX_LOUDNESS_LUFS = -8.0
MAX_TRUE_PEAK_DBTP = -1.0  # of audio whose loudness is set
MAX_FADE_SECONDS = 30.0
SILENCE_DBFS = -60.0  # quieter samples are silence
