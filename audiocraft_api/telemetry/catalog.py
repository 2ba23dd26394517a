"""The table of all metrics. Only these are exposed, and docs/metrics.md is tested against it.

Each label has few values, such as route templates, model names from the catalog and error codes. Text from clients
(prompts, paths, keys) is never a label value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from audiocraft_api.core.engine import BATCH_ROWS

PREFIX = "audiocraft_api_"

Kind = Literal["counter", "gauge", "histogram"]
Place = Literal["servers", "workers", "both"]

_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_WAIT_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_STEP_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_CHANGE_SECONDS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 5.0, 10.0, 30.0)
_FACTORS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 50.0)
_ROWS = tuple(float(bound) for bound in BATCH_ROWS)


@dataclass(frozen=True)
class MetricSpec:
    """One metric. `name` omits the prefix; `place` says which processes expose the metric.

    A `shared` gauge describes state that all servers share. Every server reports the same value, so that queries must
    use `max` instead of `sum`.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    place: Place = "both"
    shared: bool = False

    @property
    def full_name(self) -> str:
        return PREFIX + self.name


_MODEL = ("model",)

METRICS: tuple[MetricSpec, ...] = (
    # traffic
    MetricSpec(
        "http_requests_total",
        "counter",
        "HTTP requests. `route` is the template of the route, or `unknown` if none matched.",
        ("method", "route", "status"),
        place="servers",
    ),
    MetricSpec(
        "http_request_duration_seconds",
        "histogram",
        "Time from the request to the start of the response.",
        ("route",),
        _REQUEST_SECONDS,
        "servers",
    ),
    MetricSpec("errors_total", "counter", "Error responses, by error code.", ("code",), place="servers"),
    MetricSpec(
        "refusals_total",
        "counter",
        "Error responses that refuse work: rate limit, quota, prompt policy, full queue, or not ready.",
        ("code",),
        place="servers",
    ),
    MetricSpec(
        "waiting_synchronous_requests",
        "gauge",
        "Synchronous requests that are waiting; each occupies a thread.",
        place="servers",
    ),
    MetricSpec("max_synchronous_requests", "gauge", "Maximum number of waiting synchronous requests.", place="servers"),
    MetricSpec("open_streams", "gauge", "Open audio streams, event streams and WebSockets.", place="servers"),
    MetricSpec("max_streams", "gauge", "Maximum number of open streams.", place="servers"),
    MetricSpec("live_sessions", "gauge", "Open live sessions.", place="servers"),
    MetricSpec(
        "live_session_ends_total", "counter", "Live sessions that ended, by reason.", ("reason",), place="servers"
    ),
    MetricSpec(
        "live_change_seconds",
        "histogram",
        "Time from a change in a live session to the playback of the frame from which it holds.",
        buckets=_CHANGE_SECONDS,
        place="servers",
    ),
    MetricSpec("live_underruns_total", "counter", "Times that playback of a live session ran dry.", place="servers"),
    # queue
    MetricSpec("queued_tasks", "gauge", "Tasks waiting in the queue.", place="servers", shared=True),
    MetricSpec("processing_tasks", "gauge", "Tasks being processed.", place="servers", shared=True),
    MetricSpec("max_queued_tasks", "gauge", "Maximum number of tasks in the queue.", place="servers", shared=True),
    MetricSpec("task_ends_total", "counter", "Tasks that this process finished, by state.", ("state",)),
    MetricSpec(
        "webhook_calls_total", "counter", "Attempts to deliver webhooks, by outcome.", ("outcome",), place="servers"
    ),
    # engine
    MetricSpec("engine_waiting_requests", "gauge", "Requests waiting for the engine of this process."),
    MetricSpec("engine_running_requests", "gauge", "Requests running in the engine of this process."),
    MetricSpec("max_waiting_requests", "gauge", "Maximum number of requests waiting for the engine."),
    MetricSpec(
        "queue_wait_seconds",
        "histogram",
        "Time from submission until the engine starts a request, including the time to load its model.",
        _MODEL,
        _WAIT_SECONDS,
    ),
    MetricSpec(
        "generations_total", "counter", "Finished generations. `end` is `finished` or an error code.", ("model", "end")
    ),
    MetricSpec("generated_audio_seconds_total", "counter", "Duration of generated audio.", _MODEL),
    MetricSpec("generation_seconds_total", "counter", "Time the engine spent on successful generations.", _MODEL),
    MetricSpec(
        "real_time_factor",
        "histogram",
        "Seconds of audio per second of generation; above 1 is faster than real time.",
        _MODEL,
        _FACTORS,
    ),
    MetricSpec(
        "first_audio_seconds", "histogram", "Time from submission to the first block of audio.", _MODEL, _WAIT_SECONDS
    ),
    MetricSpec("batch_rows", "histogram", "Rows decoded together in one step.", _MODEL, _ROWS),
    MetricSpec("decode_seconds_total", "counter", "Time spent in decode steps.", _MODEL),
    MetricSpec("kv_cache_bytes", "gauge", "Memory reserved for attention keys and values.", _MODEL),
    MetricSpec("kv_cache_used_bytes", "gauge", "Part of that memory in use by running requests.", _MODEL),
    MetricSpec("models_loaded", "gauge", "Models in memory."),
    MetricSpec("model_memory_bytes", "gauge", "Size of the weights of a model in memory.", _MODEL),
    MetricSpec("engine_up", "gauge", "0 if a thread of the engine has died, otherwise 1."),
    MetricSpec(
        "engine_stalled_seconds",
        "gauge",
        "Time since the decode loop last made progress while it has work; otherwise 0.",
    ),
    MetricSpec("ready", "gauge", "1 if `/ready` returns 200, otherwise 0."),
    # results and storage
    MetricSpec("step_seconds", "histogram", "Time of one step that follows a generation.", ("step",), _STEP_SECONDS),
    MetricSpec("storage_errors_total", "counter", "Failed operations of a store.", ("store",)),
    MetricSpec("result_cache_hits_total", "counter", "Requests served from the result cache."),
    MetricSpec(
        "result_cache_misses_total", "counter", "Requests that were looked up in the result cache and not found."
    ),
    # process
    MetricSpec("build_info", "gauge", "Always 1; `version` is the version of the service.", ("version",)),
)


def metrics_table() -> str:
    """Return the table of docs/metrics.md."""
    rows = ["| Metric | Type | Labels | Exposed by | Description |", "|---|---|---|---|---|"]
    for spec in METRICS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        text = f"{spec.help} Shared: use `max`." if spec.shared else spec.help
        rows.append(f"| `{spec.full_name}` | {spec.kind} | {labels} | {spec.place} | {text} |")
    return "\n".join(rows)
