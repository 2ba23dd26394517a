"""Fixtures of the tests that use an S3 store."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.s3_server import CREDENTIALS, S3Server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """An S3 server. The environment contains its credentials and no other AWS settings."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield server
    server.close()


@pytest.fixture
def bucket(server: S3Server) -> str:
    return server.make_bucket()
