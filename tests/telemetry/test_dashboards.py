"""Dashboard and alerts ask for what is exposed, in queries that Prometheus takes; every alert has its test."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.http import fake_app
from support.scraped import Scrape
from support.served import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
SHARED = ("queued_tasks", "processing_tasks", "max_queued_tasks")


def queries() -> list[str]:
    """Return every query of dashboard and alerts, with Grafana's variables filled in."""
    asked = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
    return [
        expr.replace("$__rate_interval", "5m").replace("$job", ".+").replace("$instance", ".+") for expr in asked
    ] + [rule["expr"] for rule in RULES]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    app = fake_app(tmp_path_factory.mktemp("app"))
    return Scrape(app.test_client().get("/metrics").get_data(as_text=True))


def test_every_metric_that_is_named_is_exposed(exposed: Scrape) -> None:
    named = {name for query in queries() for name in re.findall(r"\b(?:audiocraft_api|process)_\w+", query)}
    assert len(named) > 30
    assert named <= exposed.names


def test_every_metric_of_ours_is_on_the_dashboard(exposed: Scrape) -> None:
    asked = " ".join(target["expr"] for panel in PANELS for target in panel.get("targets", []))
    ours = {name for name in exposed.families if name.startswith("audiocraft_api_")}
    assert {name for name in ours if not re.search(rf"\b{name}", asked)} == set()


def test_the_metric_that_autoscaling_goes_by_has_its_name(exposed: Scrape) -> None:
    assert "audiocraft_api_queued_tasks" in exposed.names


@pytest.mark.parametrize("name", SHARED)
def test_what_all_servers_share_is_never_added_up(name: str) -> None:
    asking = [query for query in queries() if re.search(rf"audiocraft_api_{name}\b", query)]
    assert asking
    for query in asking:
        assert re.search(rf"max\(audiocraft_api_{name}\b", query), query


def test_promtool_parses_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"query:number_{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(rules)} rules found" in run.stdout


def test_promtool_takes_the_alerts_and_their_tests_pass() -> None:
    for command in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        run = promtool(*command)
        assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_is_tested_firing_and_not_firing() -> None:
    cases = [
        case
        for test in yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


def test_every_alert_says_how_bad_it_is_and_what_is_the_matter() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["for"]


def test_panels_have_an_id_a_place_and_a_data_source_of_their_own() -> None:
    assert max(Counter(panel["id"] for panel in PANELS).values()) == 1
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == [
        *("Traffic", "Queue", "Engine", "Audio", "Limits", "Storage", "Process"),
    ]
    cells = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in PANELS)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert max(cells.values()) == 1
    assert max(x for x, _ in cells) < 24
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["targets"]
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert {source["uid"] for source in sources} == {"${datasource}"}
    used = set(re.findall(r"\$(?!__)\{?(\w+)", json.dumps(PANELS)))
    assert used == set(variables)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
