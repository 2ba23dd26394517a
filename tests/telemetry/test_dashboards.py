"""The dashboard and the alerts query exposed metrics with valid queries, and every alert is tested."""

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
    """Return all queries of the dashboard and the alerts, with values for Grafana's variables."""
    panel_queries = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
    return [
        expr.replace("$__rate_interval", "5m").replace("$job", ".+").replace("$instance", ".+")
        for expr in panel_queries
    ] + [rule["expr"] for rule in RULES]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    app = fake_app(tmp_path_factory.mktemp("app"))
    return Scrape(app.test_client().get("/metrics").get_data(as_text=True))


def test_every_queried_metric_is_exposed(exposed: Scrape) -> None:
    queried = {name for query in queries() for name in re.findall(r"\b(?:audiocraft_api|process)_\w+", query)}
    assert len(queried) > 30
    assert queried <= exposed.names


def test_every_metric_of_this_service_is_on_the_dashboard(exposed: Scrape) -> None:
    panel_queries = " ".join(target["expr"] for panel in PANELS for target in panel.get("targets", []))
    ours = {name for name in exposed.families if name.startswith("audiocraft_api_")}
    assert {name for name in ours if not re.search(rf"\b{name}", panel_queries)} == set()


def test_the_metric_for_autoscaling_is_exposed(exposed: Scrape) -> None:
    assert "audiocraft_api_queued_tasks" in exposed.names


@pytest.mark.parametrize("name", SHARED)
def test_metrics_that_all_servers_share_are_never_summed(name: str) -> None:
    matching = [query for query in queries() if re.search(rf"audiocraft_api_{name}\b", query)]
    assert matching
    for query in matching:
        assert re.search(rf"max\(audiocraft_api_{name}\b", query), query


def test_promtool_parses_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"query:number_{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(rules)} rules found" in run.stdout


def test_promtool_accepts_the_alerts_and_their_tests_pass() -> None:
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


def test_every_alert_has_a_severity_a_summary_and_a_duration() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["for"]


def test_panels_have_unique_ids_do_not_overlap_and_use_the_selected_data_source() -> None:
    assert max(Counter(panel["id"] for panel in PANELS).values()) == 1
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == [
        *("Traffic", "Queue", "Engine", "Audio", "Live", "Limits", "Storage", "Process"),
    ]
    cells = Counter(
        (x, y)
        for position in (panel["gridPos"] for panel in PANELS)
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
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
