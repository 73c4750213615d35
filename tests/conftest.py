"""Fixtures for every test."""

from tests.slurm_fixture import slurm_accounting_lab, slurm_lab  # real clusters, booted when a test asks for one

__all__ = ["slurm_accounting_lab", "slurm_lab"]
