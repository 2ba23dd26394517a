"""Submitting tasks over HTTP and polling them, as clients do."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient

from support.served import wait_until

REQUEST = {"prompt": "solo cello", "duration": 1}


def submit(client: FlaskClient, headers: dict[str, str] | None = None, **fields: Any) -> str:
    """Submit a task and return its id."""
    response = client.post("/generate-async", json=REQUEST | fields, headers=headers)
    assert response.status_code == 202, response.get_data()
    return str(response.json["task_id"])


def get_task(client: FlaskClient, task_id: str) -> dict[str, Any]:
    response = client.get(f"/tasks/{task_id}")
    assert response.status_code == 200, response.get_data()
    found: dict[str, Any] = response.json
    return found


def wait_for(client: FlaskClient, task_id: str, *states: str, seconds: float = 10.0) -> dict[str, Any]:
    """Poll until the task is in one of `states`, by default a final one."""
    wanted = states or ("completed", "failed", "canceled")
    wait_until(lambda: get_task(client, task_id)["state"] in wanted, seconds)
    return get_task(client, task_id)
