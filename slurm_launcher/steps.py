"""Command lines of srun: an engine as a step in its job, on the job's node or on all of its nodes. Pure.

Read: srun(1) of 22.05 to 25.11. What each option is for:

    --export=ALL              the job has SLURM_EXPORT_ENV=NONE, which would leave the step without its secrets; the
                              environment goes by it, and argv stays clean
    --overlap                 the step shares what the job has; without it, it could wait for the batch step (20.11+)
    --mem=0                   all of the job's memory
    --cpu-bind=none           one task with many threads: not bound to one core
    --mpi=none                engines have their own ways to find each other
    --kill-on-bad-exit=1      an engine that ends on one node ends on all
    --label                   each line says which node it is of
"""

from __future__ import annotations

from collections.abc import Sequence

_COMMON = ["--export=ALL", "--overlap", "--mem=0", "--cpu-bind=none", "--mpi=none", "--kill-on-bad-exit=1"]


def on_this_node(argv: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """One task in a job of one node. Slurm has started its shell there, and nothing else."""
    return ["srun", "--nodes=1", "--ntasks=1", *_COMMON, *options, *argv]


def on_all_nodes(nodes: int, python: str, options: Sequence[str] = ()) -> list[str]:
    """One task on each node, rank 0 on the first, which is the batch script's own.

    Each reads its program from srun's stdin; the agent adds how long that is (on_node.py).
    """
    spread = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--label"]
    return ["srun", *spread, *_COMMON, *options, python, "-I", "-S", "-c"]
