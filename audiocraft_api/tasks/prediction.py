"""A task as Replicate and Cog show it: a prediction. Knows the store of audio, and no HTTP."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from audiocraft_api.audio.convert import ALL_FORMATS
from audiocraft_api.core.errors import NotFound
from audiocraft_api.storage.base import AudioStore
from audiocraft_api.tasks.command import VIEW
from audiocraft_api.tasks.task import State, Task
from audiocraft_api.tasks.view import task_json

PREDICTION = "prediction"  # the `VIEW` of a task whose webhook has a prediction as its body
STATUSES: Mapping[State, str] = {
    "queued": "starting",
    "processing": "processing",
    "completed": "succeeded",
    "failed": "failed",
    "canceled": "canceled",
}
# The names of Replicate's meta/musicgen, by the fields of a command.
INPUTS = {
    "prompt": "prompt",
    "model": "model_version",
    "duration_seconds": "duration",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "cfg_coef": "classifier_free_guidance",
    "output_format": "output_format",
    "seed": "seed",
}
BAR_CHARACTERS = 10
# The idempotency key of a prediction whose client chose its ID. No header can contain the space.
CLIENT_ID = "prediction "


def webhook_json(task: Task, files: AudioStore) -> dict[str, Any]:
    """Return the body of a task's webhook, as the client that submitted the task expects it."""
    return prediction_json(task, files) if task.command.get(VIEW) == PREDICTION else task_json(task, files)


def prediction_json(task: Task, files: AudioStore) -> dict[str, Any]:
    """Return a task as a prediction. The output is a data URL; it is null once the audio is no longer stored."""
    has_own_id = task.idempotency_key is not None and task.idempotency_key.startswith(CLIENT_ID)
    prediction_id = (task.idempotency_key or "").removeprefix(CLIENT_ID) if has_own_id else task.id
    path = f"/v1/predictions/{prediction_id}"
    is_timed = task.state == "completed" and task.started is not None and task.finished is not None
    return {
        "id": prediction_id,
        "model": "meta/musicgen",
        "version": task.model,
        "status": STATUSES[task.state],
        "input": {name: task.command[field] for field, name in INPUTS.items() if field in task.command},
        "output": _data_url(task, files),
        "error": task.error,
        "logs": _logs(task),
        "metrics": {"predict_time": round((task.finished or 0) - (task.started or 0), 3)} if is_timed else {},
        "created_at": timestamp(task.created),
        "started_at": timestamp(task.started),
        "completed_at": timestamp(task.finished),
        "urls": {"get": path, "cancel": f"{path}/cancel"},
    }


def _data_url(task: Task, files: AudioStore) -> str | None:
    if task.filename is None or task.result is None:
        return None
    try:
        with files.open(task.filename).file as file:
            audio = base64.b64encode(file.read()).decode()
    except NotFound:
        return None
    return f"data:{ALL_FORMATS[task.result['format']].media_type};base64,{audio}"


def _logs(task: Task) -> str:
    """Return the seed, and the progress as a bar of tqdm, which clients read."""
    lines = [f"Using seed {task.seed}"]
    if task.num_frames_total:
        done, total = task.num_frames_done, task.num_frames_total
        bar = "█" * (BAR_CHARACTERS * done // total)
        lines.append(f"{100 * done // total:3d}%|{bar:<{BAR_CHARACTERS}}| {done}/{total}")
    return "\n".join(lines)


def timestamp(seconds: float | None) -> str | None:
    """Return seconds since the epoch as text in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
