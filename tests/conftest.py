"""Fixtures for every test."""

from tests.postgres_fixture import database_url, engine, postgres_server  # a real PostgreSQL, like the clusters below
from tests.slurm_fixture import slurm_accounting_lab, slurm_lab  # real clusters, booted when a test asks for one

__all__ = ["database_url", "engine", "postgres_server", "slurm_accounting_lab", "slurm_lab"]
