"""The files in deploy/ are valid, agree with the settings, and grant no more rights than necessary."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from audiocraft_api.config import all_settings, load_config, variable_name
from audiocraft_api.telemetry.catalog import METRICS
from support.nginx import PROGRAM, arguments, render
from support.redis_server import RedisServer
from support.served import ROOT, free_port, responds_ok, wait_until

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
TARGETS = ("web", "cpu", "cuda")
BIN = Path(sys.executable).parent
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SECRETS = {"REDIS_PASSWORD": "redis-password", "GRAFANA_PASSWORD": "grafana-password"}


def run(*command: object, **environ: str) -> str:
    """Run a program that must succeed; return its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=os.environ | environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def compose(*files: str) -> dict[str, Any]:
    """Return the services as docker-compose reads them. Do not modify the result."""
    options = [part for file in files for part in ("-f", DEPLOY / file)]
    return dict(yaml.safe_load(run("docker-compose", *options, "config", **SECRETS))["services"])


def objects(*kinds: str) -> list[dict[str, Any]]:
    """Return the objects of the manifests, all or those of some kinds."""
    found = [thing for path in MANIFESTS for thing in yaml.safe_load_all(path.read_text())]
    return [thing for thing in found if not kinds or thing["kind"] in kinds]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for workload in objects("Deployment", "StatefulSet"):
        yield workload["metadata"]["name"], workload["spec"]["template"]


def containers() -> Iterator[dict[str, Any]]:
    for _, pod in pods():
        yield from pod["spec"]["containers"]


def stages() -> dict[str, list[str]]:
    """Return the instructions of each stage of the Dockerfile."""
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = []
        if found and line and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


# --- images


def test_hadolint_finds_nothing() -> None:
    assert run(BIN / "hadolint", DOCKERFILE) == ""


def test_the_images_have_a_supported_python() -> None:
    (version,) = re.findall(r"^ARG PYTHON=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert version.startswith("3.11.")
    bases = {line.split()[1] for lines in stages().values() for line in lines if line.startswith("FROM ")}
    assert {base for base in bases if base not in stages()} == {
        "python:${PYTHON}-bookworm",
        "python:${PYTHON}-slim-bookworm",
        "scratch",
    }


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_as_an_unprivileged_user(target: str) -> None:
    assert stages()[target][-1] == "USER 10001:10001"


def test_a_server_with_celery_works_without_the_packages_that_the_web_image_leaves_out(tmp_path: Path) -> None:
    left_out = re.findall(r"grep -vE '\^\(([a-z|]+)\)==' requirements.in", DOCKERFILE.read_text())[0].split("|")
    assert [name for name in left_out if f"\n{name}==" not in (ROOT / "requirements.in").read_text()] == []
    script = f"""
import sys
sys.modules.update(dict.fromkeys({left_out}))  # importing them fails
from audiocraft_api.config import load_config
from audiocraft_api.factory import create_app
client = create_app(load_config()).test_client()
for path in ("/health", "/ready", "/models", "/openapi.json", "/tasks"):
    assert client.get(path).status_code == 200, path
assert client.post("/generate-stream", json={{"prompt": "x"}}).status_code == 501
assert client.post("/generate-async", json={{"prompt": "x"}}).status_code == 202
"""
    server = RedisServer(tmp_path)
    server.start()
    try:
        run(
            *(sys.executable, "-c", script),
            AUDIOCRAFT_API_TASK_BACKEND="celery",
            AUDIOCRAFT_API_REDIS_URL=server.url,
            AUDIOCRAFT_API_AUDIO_DIR=str(tmp_path / "audio"),
        )
    finally:
        server.kill()


def test_the_entry_point_serves_stops_cleanly_and_runs_other_commands(tmp_path: Path) -> None:
    port = free_port()
    environ = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "AUDIOCRAFT_API_BIND": f"127.0.0.1:{port}",
        "AUDIOCRAFT_API_AUDIO_DIR": str(tmp_path / "audio"),
        "AUDIOCRAFT_API_TASK_DB": str(tmp_path / "tasks.sqlite3"),
        "AUDIOCRAFT_API_STATE_DB": str(tmp_path / "state.sqlite3"),
    }
    entry_point = DEPLOY / "docker" / "entrypoint"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([entry_point], cwd=ROOT, env=environ, stdout=log, stderr=log)
    try:
        wait_until(lambda: responds_ok(f"http://127.0.0.1:{port}/health"))
    finally:
        process.terminate()
    assert process.wait(20) == 0  # the signal reached gunicorn itself
    help_of_worker = run(entry_point, "worker", "--help", PATH=environ["PATH"])
    assert "Start worker instance" in help_of_worker
    assert run(entry_point, "echo", "hello").strip() == "hello"


# --- settings


def test_every_setting_in_deploy_exists() -> None:
    texts = [OPERATIONS, *(path.read_text() for path in DEPLOY.rglob("*") if path.is_file())]
    named = {name for text in texts for name in re.findall(r"AUDIOCRAFT_API_[A-Z0-9_]+", text)}
    assert len(named) > 5
    assert named - {variable_name(field) for field in all_settings()} == set()


def test_every_base_image_is_pinned_to_a_version() -> None:
    images = [service["image"] for service in compose("compose.yml").values()]
    images += [container["image"] for container in containers()]
    own = {f"audiocraft-api:{target}" for target in TARGETS}
    for image in images:
        assert image in own or re.search(r":v?\d+\.\d+\.\d+(-alpine)?$", image), image


def test_processes_get_enough_time_to_stop() -> None:
    grace_seconds = load_config({}).server.graceful_timeout_seconds
    for name in ("server", "worker"):
        assert int(compose("compose.yml")[name]["stop_grace_period"].removesuffix("s")) >= grace_seconds + 10
    for _, pod in pods():
        hooks = [container.get("lifecycle") for container in pod["spec"]["containers"]]
        pause_seconds = sum(int(hook["preStop"]["exec"]["command"][-1]) for hook in hooks if hook)
        assert pod["spec"]["terminationGracePeriodSeconds"] >= pause_seconds + grace_seconds + 10


# --- compose


def test_compose_accepts_the_files_and_only_the_worker_has_a_gpu() -> None:
    services = compose("compose.yml")
    assert set(services) == {"nginx", "server", "worker", "redis", "prometheus", "grafana"}
    with_gpu = compose("compose.yml", "compose.cuda.yml")
    assert with_gpu["worker"]["build"]["target"] == "cuda"
    assert [name for name, service in with_gpu.items() if "reservations" in str(service)] == ["worker"]


def test_compose_requires_passwords_and_contains_none() -> None:
    file = DEPLOY / "compose.yml"
    refused = subprocess.run(["docker-compose", "-f", file, "config"], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "REDIS_PASSWORD" in refused.stderr
    for name in re.findall(r"\$\{(\w+)", file.read_text()):
        assert name in (DEPLOY / ".env.example").read_text() or name.endswith("_PORT")
    assert re.findall(r"^\w+=(?!$)", (DEPLOY / ".env.example").read_text(), re.MULTILINE) == []


def test_containers_of_compose_are_restricted() -> None:
    for name, service in compose("compose.yml").items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert "privileged" not in service, name


def test_the_shipped_redis_is_durable_and_requires_the_password(tmp_path: Path) -> None:
    shipped = (DEPLOY / "redis" / "redis.conf").read_text()
    (in_kubernetes,) = [thing["data"]["redis.conf"] for thing in objects("ConfigMap") if "redis.conf" in thing["data"]]
    assert in_kubernetes.splitlines() == [line for line in shipped.splitlines() if not line.startswith("#")]

    configuration = tmp_path / "redis.conf"
    port = free_port()
    configuration.write_text(shipped.replace("/data", str(tmp_path)) + f"port {port}\nbind 127.0.0.1\n")
    (script,) = compose("compose.yml")["redis"]["command"]
    script = script.replace("$$", "$").replace("/etc/redis.conf", str(configuration))
    (in_kubernetes,) = [c["args"][0] for c in containers() if c["name"] == "redis"]
    assert in_kubernetes.replace("/etc/redis/redis.conf", str(configuration)) == script

    environ = os.environ | {"REDISCLI_AUTH": "secret"}
    process = subprocess.Popen(["/bin/sh", "-c", script], env=environ, stdout=subprocess.DEVNULL)
    try:
        once = Retry(NoBackoff(), 0)
        with (
            redis.Redis(port=port, password="secret", retry=once) as client,
            redis.Redis(port=port, retry=once) as anonymous,
        ):
            wait_until(lambda: _pings(client))
            info = client.info()
            assert (info["aof_enabled"], info["maxmemory_policy"]) == (1, "noeviction")
            with pytest.raises(redis.AuthenticationError):
                anonymous.ping()
    finally:
        process.terminate()
        process.wait(20)


def _pings(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


# --- nginx and Prometheus


def test_nginx_accepts_the_shipped_configuration(tmp_path: Path) -> None:
    configuration = render(tmp_path, port=free_port(), name_server_port=1053, servers_port=5000)
    run(*arguments(tmp_path, configuration), "-t")
    assert shutil.which(PROGRAM)


def test_proxies_accept_what_the_service_accepts() -> None:
    config = load_config({})
    (ingress,) = objects("Ingress")
    values = " ".join(ingress["metadata"]["annotations"].values())
    for text in ((DEPLOY / "nginx" / "nginx.conf").read_text(), values):
        (megabytes,) = set(re.findall(r"\b(\d+)m\b", text.replace("max_temp_file_size 64m", "")))
        assert int(megabytes) * 2**20 > config.audio.max_upload_bytes
        assert (
            max(int(seconds) for seconds in re.findall(r"\b(\d{3})s?\b", text)) > config.engine.request_deadline_seconds
        )


def test_prometheus_accepts_its_configuration() -> None:
    run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")


def test_scrape_jobs_have_the_names_that_the_alerts_expect() -> None:
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    names = [job["job_name"] for job in shipped["scrape_configs"]]
    # The promtool of Debian does not support Kubernetes discovery.
    (shown,) = re.findall(r"```yaml\n(scrape_configs:.*?)```", OPERATIONS, re.DOTALL)
    assert [job["job_name"] for job in yaml.safe_load(shown)["scrape_configs"]] == names
    assert f'job=~"{"|".join(names)}"' in (DEPLOY / "prometheus" / "alerts.yml").read_text()


def test_the_documentation_explains_every_alert() -> None:
    alerts = re.findall(r"- alert: (\w+)", (DEPLOY / "prometheus" / "alerts.yml").read_text())
    assert len(alerts) > 5
    explained = OPERATIONS.partition("## What each alert means")[2]
    assert re.findall(r"^- \*\*(\w+)\*\*", explained, re.MULTILINE) == alerts


def test_grafana_provisions_the_dashboard_and_its_data_source() -> None:
    mounts = " ".join(compose("compose.yml")["grafana"]["volumes"])
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "dashboards.yml").read_text())["providers"]
    assert source["url"] == "http://prometheus:9090"
    assert f":{provider['options']['path']}/dashboard.json:ro" in mounts
    assert (DEPLOY / "grafana" / "dashboard.json").exists()


def test_sizing_uses_the_measured_figures() -> None:
    performance = (ROOT / "docs" / "performance.md").read_text()
    sizing = OPERATIONS.partition("## Sizing")[2].partition("\n## ")[0]
    for figure in ("3.0 s of audio a second", "0.79", "2.64", "2.3 GB", "726"):
        assert figure in performance
        assert figure in sizing


# --- Kubernetes


def test_the_manifests_are_valid() -> None:
    assert run(BIN / "kubernetes-validate", "--strict", *MANIFESTS).count("passed") == len(objects())


def test_pods_are_restricted() -> None:
    for name, pod in pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


def test_containers_have_probes_and_resource_limits() -> None:
    names = []
    for container in containers():
        names.append(container["name"])
        assert {"startupProbe", "livenessProbe", "readinessProbe", "resources"} <= set(container)
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        if container["name"] in ("server", "worker"):
            assert container["livenessProbe"]["httpGet"] == {"path": "/health", "port": "admin"}
            assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "admin"}
    assert sorted(names) == ["redis", "server", "worker"]


def test_manifests_refer_to_secrets_and_contain_none() -> None:
    assert objects("Secret") == []
    referred = 0
    for container in containers():
        for variable in container.get("env", []):
            secret = variable["valueFrom"]["secretKeyRef"]
            assert secret["name"] == "audiocraft-api"
            assert f"--from-literal={secret['key']}=" in OPERATIONS  # the documentation creates it
            referred += 1
    assert referred == 8


def test_every_reference_between_manifests_resolves() -> None:
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in objects()}
    assert {thing["metadata"].get("namespace", "audiocraft") for thing in objects()} == {"audiocraft"}
    labels = [pod["metadata"]["labels"] for _, pod in pods()]
    for thing in objects("Service", "PodDisruptionBudget"):
        selector = thing["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        assert any(selector.items() <= pod.items() for pod in labels), thing
    for scaler in objects("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in names
    (ingress,) = objects("Ingress")
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert ("Service", path["backend"]["service"]["name"]) in names
    for _, pod in pods():
        for volume in pod["spec"].get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in names
            if volume.get("configMap"):
                assert ("ConfigMap", volume["configMap"]["name"]) in names


def test_workers_scale_with_the_length_of_the_queue() -> None:
    (workers,) = [thing for thing in objects("HorizontalPodAutoscaler") if thing["metadata"]["name"] == "worker"]
    (metric,) = workers["spec"]["metrics"]
    name = metric["external"]["metric"]["name"]
    assert [spec.shared for spec in METRICS if spec.full_name == name] == [True]
    assert f"max({name})" in OPERATIONS  # every server reports the whole queue
    assert int(metric["external"]["target"]["averageValue"]) < load_config({}).engine.max_batch_requests
