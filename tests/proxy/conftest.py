from __future__ import annotations

import pytest
from sqlalchemy import Engine


@pytest.fixture
def database(engine: Engine) -> Engine:
    """The gateway's database, once on SQLite and once on PostgreSQL."""
    return engine
