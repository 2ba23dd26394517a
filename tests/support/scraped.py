"""Parses the Prometheus text format with the parser of the Prometheus client."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """The metrics in one response of `/metrics`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    @property
    def names(self) -> set[str]:
        """All names that a query may use, including families without a series."""
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        return {
            name + suffix for name, family in self.families.items() for suffix in suffixes.get(family.type, ("",))
        } | {sample.name for sample in self._samples}

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all series of one of our metrics with these labels; 0 if there is none."""
        wanted = labels.items()
        found = [s.value for s in self._samples if s.name == f"audiocraft_api_{name}" and wanted <= s.labels.items()]
        return sum(found)

    def values(self, name: str, label: str) -> set[str]:
        """Return all values of a label."""
        return {s.labels[label] for s in self._samples if s.name == f"audiocraft_api_{name}"}
