"""The configuration as jobs: the site, the cluster, and the submission of a replica."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from structlog.typing import FilteringBoundLogger

from slurm_launcher.cluster import Cluster, JobComment, Submission
from slurm_launcher.commands import directives
from slurm_launcher.fit_check import check_fit, line, missing_weights
from slurm_launcher.local import LocalCluster
from slurm_launcher.reconcile import Submit
from slurm_launcher.script import render
from slurm_launcher.slurm import SlurmCluster
from slurm_launcher.spec import ModelSpec, Resources, Secrets, Site
from slurm_launcher.wanting import LEAD_SHARE

from .config import Config, ConfigError
from .state import StateDir

SIGNAL_LEAD_S = 120
"""Slurm warns the agent at most this long before the wall time (and may do so up to a minute early)."""

SUCCESSOR_FIRST_S = 180
"""... and so much later than the successor is asked for: that early minute, and two for the successor to come."""


def site_of(config: Config, state: StateDir, gateway_url: str) -> Site:
    section = config.launcher
    shared = section.shared_dir.expanduser() if section.shared_dir is not None else None
    return Site(
        service=section.service,
        gateway_url=gateway_url,
        rendezvous=str((shared or state.path) / state.url_file.name),
        log_directory=(shared or state.path) / state.logs.name,
        python=section.python,
        heartbeat_s=section.heartbeat_s,
        orphan_timeout_s=section.orphan_timeout_s,
    )


def clusters_of(config: Config, state: StateDir) -> dict[str, Cluster]:
    """By name; "" is the default one, which is always among them."""
    if config.launcher.kind == "local":
        return {"": LocalCluster(state.jobs, config.launcher.service)}
    names = {"", *(kind.resources.cluster for spec in config.specs.values() for kind in spec.kinds)}
    return {name: SlurmCluster(f"slurmgate-{config.launcher.service}", name=name) for name in sorted(names)}


class Builder:
    """Makes the submission of a new replica: the whole script, and the mark by which its job is found again."""

    def __init__(self, config: Config, site: Site, secrets: Secrets) -> None:
        self._local = config.launcher.kind == "local"
        self._site = site
        self._secrets = secrets

    def check(self, specs: Mapping[str, ModelSpec]) -> None:
        """Raises `ConfigError` for values that cannot stand in a batch script: now, not when a replica is needed."""
        mistakes = []
        for spec in (kind for model in specs.values() for kind in model.variants):
            try:
                self.script(spec, "REPLICA", redact=True)
            except ValueError as error:
                mistakes.append(f"{spec.path}: {error}")
        if mistakes:
            raise ConfigError("configuration", mistakes)

    def check_fit(self, config: Config, log: FilteringBoundLogger) -> None:
        """Whether models fit into the GPUs they ask for, and have their weights, as far as local files tell it.

        Raises `ConfigError` where the configuration wants it refused; else it is said in the log.
        """
        if self._local:
            return
        refused = []
        for name, spec in config.specs.items():
            mode = config.models[name].fit
            for kind in spec.variants:
                if (verdict := check_fit(kind, mode)) is not None:
                    if mode == "refuse":
                        refused.append(line(kind, verdict))
                    else:
                        log.warning("model_may_not_fit", model=name, why=line(kind, verdict))
            if (missing := missing_weights(spec)) is not None:
                log.warning("weights_not_found", model=name, why=missing)
        if refused:
            raise ConfigError("configuration", refused)

    def __call__(self, spec: ModelSpec, replica_id: str, submit: Submit) -> Submission:
        mark = self._mark(spec, replica_id)
        log = self._site.log_directory / f"{replica_id}.log"
        return Submission(replica_id, self.script(spec, replica_id, submit), mark, log)

    def _mark(self, spec: ModelSpec, replica_id: str) -> JobComment:
        return JobComment(self._site.service, spec.name, replica_id, spec.config_hash, spec.placement)

    def script(self, spec: ModelSpec, replica_id: str, submit: Submit | None = None, *, redact: bool = False) -> str:
        mark = self._mark(spec, replica_id)
        lines: list[str] = []
        if not self._local:
            lines = directives(
                asked(spec.resources, submit) if submit is not None else spec.resources,
                job_name=self._site.job_name,
                comment=mark.dumps(),
                output=str(self._site.log_directory / f"{replica_id}.log"),
                signal_lead_s=signal_lead_s(spec),
            )
        return render(
            spec,
            self._secrets.launch(replica_id),
            self._site,
            directives=lines,
            host="127.0.0.1" if self._local else None,
            redact=redact,
        )


def signal_lead_s(spec: ModelSpec) -> int:
    """How long before its wall time Slurm signals a replica; 0 for never.

    The signal makes an agent drain by itself, whoever else there is. It is for gateways that are away: one that is
    there says drain once the successor is ready. So it must not come before that.
    """
    limit_s = spec.resources.time_limit_s
    successor_s = min(spec.lead_s, LEAD_SHARE * limit_s) if limit_s else spec.lead_s
    return max(0, min(SIGNAL_LEAD_S, int(successor_s) - SUCCESSOR_FIRST_S))


def asked(resources: Resources, submit: Submit) -> Resources:
    """What is asked of Slurm now: the model's resources with what the moment adds to them."""
    if submit.exclude:
        resources = replace(resources, extra=(*resources.extra, f"--exclude={','.join(submit.exclude)}"))
    if submit.time_limit_s is not None:
        resources = replace(resources, time_limit_s=submit.time_limit_s)
    return resources
