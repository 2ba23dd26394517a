"""Reads Prometheus' text format, as Prometheus' own client does."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """What one process has exposed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = [sample for family in self.families.values() for sample in family.samples]

    @property
    def names(self) -> set[str]:
        """All names that a query may use, of families without a series too."""
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
        return {
            name + suffix for name, family in self.families.items() for suffix in suffixes.get(family.type, ("",))
        } | {sample.name for sample in self._samples}

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of our series of a name with these labels, 0 where there is none."""
        wanted = labels.items()
        found = [s.value for s in self._samples if s.name == f"audiocraft_api_{name}" and wanted <= s.labels.items()]
        return sum(found)

    def values(self, name: str, label: str) -> set[str]:
        """Return the values that a label has."""
        return {s.labels[label] for s in self._samples if s.name == f"audiocraft_api_{name}"}
