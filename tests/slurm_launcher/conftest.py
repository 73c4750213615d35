"""What the tests of the agent share: the identity of one replica, and a gateway that knows it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from slurm_launcher.spec import Secrets
from tests.fakes.gateway import FakeGateway

LAUNCH = Secrets(b"a secret of the gateway").launch("tiny-0001")


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    made = FakeGateway(LAUNCH.token)
    yield made
    with contextlib.suppress(OSError):
        made.close()
