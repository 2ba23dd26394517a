"""Two revisions of one hub model, served side by side under two names, over HTTP."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.served import Server, serve

COMMITS = {"small": "1" * 40, "small-2023": "2" * 40}


def write_models_file(directory: Path, demo: Path) -> Path:
    """Make a hub cache with two commits of one repository, the older with different weights; return the models file."""
    cache = directory / "hub" / "hub"
    shutil.copytree(demo / "hub", cache)
    repository = cache / "models--facebook--musicgen-small"
    for name, commit in COMMITS.items():
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        shutil.copy(demo / "compression_state_dict.bin", snapshot)
        package = torch.load(demo / "state_dict.bin", weights_only=True)
        if name == "small-2023":
            for linear in ("linears.0.weight", "linears.1.weight"):
                package["best_state"][linear] = package["best_state"][linear].flip(0)
        torch.save(package, snapshot / "state_dict.bin")
    models = {
        "small": {"revision": COMMITS["small"]},
        "small-2023": {"checkpoint": "facebook/musicgen-small", "revision": COMMITS["small-2023"]},
    }
    (directory / "models.json").write_text(json.dumps(models))
    return directory / "models.json"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("versions")


@pytest.fixture(scope="module")
def server(demo_checkpoints: Path, directory: Path) -> Iterator[Server]:
    models_file = write_models_file(directory, demo_checkpoints / "demo")
    shutil.copytree(demo_checkpoints / "demo", directory / "checkpoints" / "demo")
    settings = {"checkpoints_dir": directory / "checkpoints", "models_file": models_file, "offline": True}
    with serve(directory, result_cache_entries=10, **settings) as running:
        yield running


def generate(server: Server, name: str, seed: int = 7) -> dict[str, Any]:
    fields = {"prompt": "solo cello", "duration": 1, "seed": seed, "model_size": name, "return_type": "base64"}
    response = server.post("/generate", json=fields, timeout=120)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_two_revisions_are_served_side_by_side_under_their_own_names(server: Server) -> None:
    responses = {name: generate(server, name) for name in COMMITS}
    again = {name: generate(server, name) for name in COMMITS}
    for name, commit in COMMITS.items():
        for response, cached in ((responses[name], False), (again[name], True)):
            assert (response["model"], response["revision"], response["cached"]) == (name, commit, cached)
            assert (response["recipe"]["model"], response["recipe"]["revision"]) == (name, commit)
        assert responses[name]["audio"] == again[name]["audio"]
        assert f"{name}@{commit}".encode() in base64.b64decode(responses[name]["audio"])
    first, second = (base64.b64decode(responses[name]["audio"])[44 : 44 + 64_000] for name in COMMITS)
    assert first != second
    models = {model["name"]: model for model in server.get("/models").json()["models"]}
    for name, commit in COMMITS.items():
        assert models[name]["loaded"], "both at once"
        assert (models[name]["revision"], models[name]["loaded_revision"]) == (commit, commit)


def test_a_checkpoint_replaced_on_disk_gets_no_cached_results(server: Server, directory: Path) -> None:
    first = generate(server, "demo")
    assert generate(server, "demo")["cached"]
    path = directory / "checkpoints" / "demo" / "state_dict.bin"
    package = torch.load(path, weights_only=True)
    package["best_state"]["linears.0.weight"] = package["best_state"]["linears.0.weight"].flip(0)
    torch.save(package, path.with_name("new.bin"))
    os.replace(path.with_name("new.bin"), path)
    for _ in range(2):
        response = generate(server, "demo")
        assert (response["cached"], response["revision"]) == (False, first["revision"]), (
            "the loaded model responds, under its own revision"
        )
