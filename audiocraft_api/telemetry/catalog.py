"""The one table of the metrics: what is not in it is not exposed, and docs/metrics.md is tested against it.

Labels take few values: routes by their template, models by the catalogue, codes by the tree of errors. Nothing that a
client writes (prompt, path, key) is ever one.
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
_FACTORS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 50.0)
_ROWS = tuple(float(bound) for bound in BATCH_ROWS)


@dataclass(frozen=True)
class MetricSpec:
    """One metric. `name` is without the prefix; `place` says which processes have it.

    A `shared` gauge tells of a state that all servers share: each says the same, and queries take the `max`.
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
        "Requests answered, by route template; `unknown` where no route was met.",
        ("method", "route", "status"),
        place="servers",
    ),
    MetricSpec(
        "http_request_duration_seconds",
        "histogram",
        "Time from a request to the beginning of its answer.",
        ("route",),
        _REQUEST_SECONDS,
        "servers",
    ),
    MetricSpec("errors_total", "counter", "Errors that were answered, by their code.", ("code",), place="servers"),
    MetricSpec(
        "refusals_total",
        "counter",
        "Those of the errors that refuse work: over a limit or a quota, by the prompt policy, full or not ready.",
        ("code",),
        place="servers",
    ),
    MetricSpec(
        "waiting_synchronous_requests", "gauge", "Requests that hold a thread while they wait.", place="servers"
    ),
    MetricSpec("max_synchronous_requests", "gauge", "Bound of those.", place="servers"),
    MetricSpec("open_streams", "gauge", "StreamSlots of audio and of events, and WebSockets.", place="servers"),
    MetricSpec("max_streams", "gauge", "Bound of those.", place="servers"),
    # queue
    MetricSpec("queued_tasks", "gauge", "Tasks that wait to be worked.", place="servers", shared=True),
    MetricSpec("processing_tasks", "gauge", "Tasks that are being worked.", place="servers", shared=True),
    MetricSpec("max_queued_tasks", "gauge", "Bound of the tasks that wait to be worked.", place="servers", shared=True),
    MetricSpec("task_ends_total", "counter", "Tasks that this process has brought to an end, by state.", ("state",)),
    MetricSpec("webhook_calls_total", "counter", "Webhooks called, by outcome.", ("outcome",), place="servers"),
    # engine
    MetricSpec("engine_waiting_requests", "gauge", "Requests that wait for this process's engine."),
    MetricSpec("engine_running_requests", "gauge", "Requests that this process's engine runs."),
    MetricSpec("max_waiting_requests", "gauge", "Bound of the requests that wait for the engine."),
    MetricSpec(
        "queue_wait_seconds",
        "histogram",
        "Time from a request's submission until the engine began it, the load of its model included.",
        _MODEL,
        _WAIT_SECONDS,
    ),
    MetricSpec("generations_total", "counter", "Generations ended: `finished`, or an error's code.", ("model", "end")),
    MetricSpec("generated_audio_seconds_total", "counter", "Audio made.", _MODEL),
    MetricSpec("generation_seconds_total", "counter", "Time that the engine ran finished generations for.", _MODEL),
    MetricSpec(
        "real_time_factor",
        "histogram",
        "Seconds of audio made per second of a generation's run; over 1 is faster than real time.",
        _MODEL,
        _FACTORS,
    ),
    MetricSpec(
        "first_audio_seconds", "histogram", "Time from submission to the first block of audio.", _MODEL, _WAIT_SECONDS
    ),
    MetricSpec("batch_rows", "histogram", "Rows decoded together, in each step.", _MODEL, _ROWS),
    MetricSpec("decode_seconds_total", "counter", "Time spent in decode steps.", _MODEL),
    MetricSpec("kv_cache_bytes", "gauge", "Memory kept for keys and values.", _MODEL),
    MetricSpec("kv_cache_used_bytes", "gauge", "Part of it that running requests hold.", _MODEL),
    MetricSpec("models_loaded", "gauge", "Models that are resident."),
    MetricSpec("model_memory_bytes", "gauge", "Weights of a resident model.", _MODEL),
    MetricSpec("engine_up", "gauge", "0 when a thread of the engine has died."),
    MetricSpec("engine_stalled_seconds", "gauge", "Time since the last pass of a decode loop that has work; else 0."),
    MetricSpec("ready", "gauge", "1 when `/ready` answers 200."),
    # results and storage
    MetricSpec("step_seconds", "histogram", "Time to convert, and to store, one result.", ("step",), _STEP_SECONDS),
    MetricSpec("storage_errors_total", "counter", "Operations that a store could not do.", ("store",)),
    MetricSpec("result_cache_hits_total", "counter", "Generations spared: a kept result was the answer."),
    MetricSpec("result_cache_misses_total", "counter", "Generations that a kept result was sought for and not found."),
    # process
    MetricSpec("build_info", "gauge", "1, with the version.", ("version",)),
)


def metrics_table() -> str:
    """Return the table of docs/metrics.md."""
    rows = ["| metric | kind | labels | of | |", "|---|---|---|---|---|"]
    for spec in METRICS:
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        text = f"{spec.help} Shared: take the `max`." if spec.shared else spec.help
        rows.append(f"| `{spec.full_name}` | {spec.kind} | {labels} | {spec.place} | {text} |")
    return "\n".join(rows)
