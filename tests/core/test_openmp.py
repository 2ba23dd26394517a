"""How idle PyTorch threads wait, unless the environment already configures it."""

from __future__ import annotations

import pytest

from audiocraft_api.core import openmp


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
    ids=["default", "count given", "policy given"],
)
def test_spinning_is_limited_unless_the_environment_configures_it(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    openmp.limit_spinning(given)
    assert given == expected
