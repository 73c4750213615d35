"""Slurm's commands as text: argv builders, `#SBATCH` lines, and parsers of what comes back. Pure.

Text and not JSON, because the text has been the same from 20.11 to 26.05 while `squeue --json` has changed in nearly
every release (and in 22.05 it answers an unreachable controller with an empty list and exit status 0).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .cluster import WAITING_STATES, Job, JobComment
from .spec import Resources

FORMAT = "%i|%T|%r|%N|%B|%S|%e|%l|%L|%V|%P|%j|%b|%k"
"""squeue(1): id, state, reason, nodes, batch host, start, end, limit, time left, submission, partition, name, gres,
comment. The comment is last, since it alone may hold the delimiter."""

NODES_FORMAT = "%P|%N|%o|%T|%G|%c|%m"
"""sinfo(1) with `--Node`: partition (`*` marks the default one), name, address, state, GRES, CPUs, memory in MB."""

_COLUMNS = FORMAT.count("|") + 1
_SACCT_FIELDS = ("JobID", "State", "Reason", "ExitCode", "NodeList")
_PARAMETER_LIMIT = 1024
"""Longest comment, job name or path that slurmctld takes, in bytes (job_mgr.c; measured on 22.05)."""
_NOTHING = frozenset({"", "None", "none", "N/A", "n/a", "(null)", "Unknown", "None assigned"})

# -- argv -------------------------------------------------------------------------------------------------------------


def _on(cluster: str) -> list[str]:
    """`-M` asks slurmdbd where the cluster is, at every call, so it is left out for the default one."""
    return [f"--clusters={cluster}"] if cluster else []


def sbatch(cluster: str = "") -> list[str]:
    """Submit the script on stdin. Its options are `#SBATCH` lines inside it: `ps` shows every user a command line."""
    return ["sbatch", "--parsable", *_on(cluster)]


def squeue(job_name: str, cluster: str = "") -> list[str]:
    """All jobs of ours, ended ones too, in one question."""
    return ["squeue", "--noheader", "--states=all", "--me", f"--name={job_name}", f"--format={FORMAT}", *_on(cluster)]


def scancel(ids: Iterable[str], job_name: str, cluster: str = "") -> list[str]:
    """End jobs, but only those of our name: ids start again from 1 when a cluster is set up anew."""
    return ["scancel", f"--name={job_name}", *_on(cluster), *ids]


def scancel_all(job_name: str, user: str, cluster: str = "") -> list[str]:
    """End every job of ours, pending ones too. `--me` is younger than 21.08 in scancel, so the user is named."""
    return ["scancel", f"--user={user}", f"--name={job_name}", *_on(cluster)]


def scancel_signal(job_id: str, signal: str, job_name: str, cluster: str = "") -> list[str]:
    """Signal the batch shell alone. Without `--batch` only steps would get it, and our jobs have none.

    Of a pending job it would be tried for a minute and a half (measured on 22.05), so only running ones are asked for.
    """
    only = [f"--name={job_name}", "--state=RUNNING"]
    return ["scancel", "--batch", f"--signal={signal}", *only, *_on(cluster), job_id]


def sacct(ids: Iterable[str], cluster: str = "") -> list[str]:
    """How jobs ended. With `--jobs`, sacct(1) looks back to the beginning of time; `--duplicates` shows requeues."""
    options = ["--allocations", "--duplicates", "--parsable2", "--noheader", f"--format={','.join(_SACCT_FIELDS)}"]
    return ["sacct", *options, f"--jobs={','.join(ids)}", *_on(cluster)]


def sbatch_test(cluster: str = "") -> list[str]:
    """Would this script be taken? Nothing is submitted; why not, or when it would start, comes on stderr."""
    return ["sbatch", "--test-only", *_on(cluster)]


def show(what: str, cluster: str = "") -> list[str]:
    """All partitions or reservations, or the configuration. Of the default cluster or another one."""
    return ["scontrol", *_on(cluster), "--oneliner", "show", what]


def ping(cluster: str = "") -> list[str]:
    return ["scontrol", *_on(cluster), "ping"]


def sinfo(cluster: str = "") -> list[str]:
    """Each node, once for each of its partitions, hidden ones too."""
    return ["sinfo", "--noheader", "--Node", "--all", f"--format={NODES_FORMAT}", *_on(cluster)]


def job_ids(ids: Iterable[str]) -> list[str]:
    """Those that can be ids of our jobs, once each. Agents report ids over the network: none may become an option."""
    return [job_id for job_id in dict.fromkeys(ids) if _is_id(job_id)]


def _is_id(text: str) -> bool:
    """Digits alone: `12_3` (arrays) and `12+1` (heterogeneous jobs) are never ours."""
    return text.isascii() and text.isdigit()


# -- the script's #SBATCH lines ---------------------------------------------------------------------------------------


def directives(resources: Resources, *, job_name: str, comment: str, output: str, signal_lead_s: int) -> list[str]:
    """The `#SBATCH` lines of one replica.

    output          the job's log, a path; what sbatch would take for a pattern in it (`%j`) is made literal
    signal_lead_s   the batch shell gets USR1 this long before the wall time, up to 60 s earlier; 0 for no signal

    Raises `ValueError`, naming the option, for what cannot stand in such a line.
    """
    r = resources
    lines = [
        f"--nodes={r.nodes}",
        # one task a node: --gres, --mem and --cpus-per-task are then those of each node
        "--ntasks=1" if r.nodes == 1 else "--ntasks-per-node=1",
        # the gateway's environment holds its secrets; sbatch would hand all of it to the job
        "--export=NONE",
        # every node has it and every user may write there; the directory that the gateway was started in may be missing
        "--chdir=/tmp",
        # Slurm starts a preempted or failed job again by itself, under its id and with its age in the queue,
        # even while the gateway is down; the agent reports each life
        "--requeue",
        "--open-mode=append",
    ]
    if r.gpus:
        # --gres means per node, as --gpus-per-node does, and exists with every version and select plugin
        lines.append(_option("gres", ":".join(["gpu", *([r.gpu_type] if r.gpu_type else []), str(r.gpus)])))
    if r.cpus:
        lines.append(f"--cpus-per-task={r.cpus}")
    if r.memory_mb:
        lines.append(f"--mem={r.memory_mb}M")
    elif r.exclusive:
        lines.append("--mem=0")  # --exclusive gives all CPUs and GPUs, but no more memory than the default
    if r.exclusive:
        lines.append("--exclusive")
    if r.time_limit_s:
        lines.append(f"--time={format_duration(r.time_limit_s)}")
    named = {
        "partition": r.partition,
        "account": r.account,
        "qos": r.qos,
        "constraint": r.constraint,
        "reservation": r.reservation,
    }
    lines.extend(_option(name, value) for name, value in named.items() if value)
    if signal_lead_s:
        if not 0 < signal_lead_s <= 65535:
            raise ValueError(f"--signal: {signal_lead_s} s: sbatch takes 1 to 65535")
        lines.append(f"--signal=B:USR1@{signal_lead_s}")
    lines.extend(_extra(line) for line in r.extra)
    # a later option wins over an earlier one: what a job is found by comes after everything that a site may add
    for name, value in {"job-name": job_name, "comment": comment, "output": output.replace("%", "%%")}.items():
        if len(value.encode()) > _PARAMETER_LIMIT:
            raise ValueError(f"--{name}: longer than the {_PARAMETER_LIMIT} bytes that Slurm takes")
        lines.append(_option(name, value))
    return [f"#SBATCH {line}" for line in lines]


def _option(name: str, value: str) -> str:
    if any(not char.isprintable() for char in value):
        raise ValueError(f"--{name}: {value!r} holds a line break or another control character")
    return f"--{name}={quote(value)}"


def _extra(line: str) -> str:
    if not line.startswith("-") or any(not char.isprintable() for char in line):
        raise ValueError(f"{line!r}: expected one sbatch option on one line, such as --nodelist=n1")
    return line


def quote(value: str) -> str:
    """A value for sbatch's own reading of `#SBATCH` lines (get_argument() in its opt.c, not a shell).

    Either quote groups; a backslash takes the next character as it is, **inside single quotes too**; `#` outside quotes
    ends the line.
    """
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./\[\]-]+", value):
        return value
    if "'" not in value and "\\" not in value:
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# -- times ------------------------------------------------------------------------------------------------------------


def format_duration(seconds: float) -> str:
    """`D-HH:MM:SS`. Slurm rounds it up to whole minutes."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02}:{minute:02}:{second:02}"


def parse_duration(text: str) -> float | None:
    """Seconds of a duration as squeue and sbatch write it; None for UNLIMITED, NOT_SET, INVALID, N/A and the like.

    `D-HH[:MM[:SS]]`, `HH:MM:SS`, `MM:SS`, `MM` (squeue(1), sbatch(1) `--time`).
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?(?:\.\d+)?", text.strip(), re.ASCII)
    if match is None:
        return None
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


# -- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """What squeue showed. `skipped`: lines that are no jobs at all (banners, another format)."""

    jobs: dict[str, Job]
    skipped: tuple[str, ...] = ()


SYNONYMS = {
    "EXPEDITING": "REQUEUED",  # 25.11: requeued, and about to get its old nodes back
    "POWER_UP_NODE": "CONFIGURING",
}
"""States of some versions, in the words that all have."""


def parse_jobs(text: str) -> Listing:
    """squeue's answer in our `FORMAT`.

    Only id and state must be there: of a job in a line cut short less is known, but it is not gone. Job arrays (`12_3`)
    and heterogeneous jobs (`12+1`) are nobody's replicas, whatever their name.
    """
    jobs: dict[str, Job] = {}
    skipped: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        fields = line.split("|", _COLUMNS - 1)
        fields += [""] * (_COLUMNS - len(fields))
        job_id, state = fields[0].strip(), _state(fields[1])
        if not _is_id(job_id) or not state:
            if not (re.match(r"\d+[_+]", job_id) and state):
                skipped.append(line)
            continue
        jobs[job_id] = Job(
            id=job_id,
            state=state,
            reason=_value(fields[2]),
            node=_value(fields[4]),
            time_left_s=parse_duration(fields[8]),
            # of a job that runs, %S is when it did start
            starts_at=_value(fields[5]) if state in WAITING_STATES else "",
            comment=JobComment.loads(fields[13]),
        )
    return Listing(jobs, tuple(skipped))


def _state(text: str) -> str:
    """The word of `RUNNING`, `CANCELLED by 0`, `CANCELLED+`; "" where it is none."""
    match = re.match(r"([A-Z][A-Z_]+)(?:\+|\s|$)", text.strip())
    return SYNONYMS.get(match[1], match[1]) if match else ""


def _value(text: str) -> str:
    return "" if text.strip() in _NOTHING else text.strip()


def parse_ended(text: str) -> dict[str, Job]:
    """sacct's answer: the jobs that are over. Of a requeued one the last incarnation counts.

    sacct's Reason is left aside: it is why the job was last pending, whatever came of it.
    """
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) < len(_SACCT_FIELDS) or not _is_id(fields[0]) or not _state(fields[1]):
            continue
        node = _value(fields[4])
        jobs[fields[0]] = Job(fields[0], _state(fields[1]), reason=_exit(fields[3]), node=node)
    return {job.id: job for job in jobs.values() if job.over}


def _exit(text: str) -> str:
    """`3:0` is exit status and signal."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or text == "0:0":
        return ""
    return f"signal {match[2]}" if match[2] != "0" else f"exit code {match[1]}"


def parse_submitted(text: str) -> str | None:
    """The id in `sbatch --parsable`'s `id` or `id;cluster`, below whatever a site's filter may print; None for none."""
    for line in reversed(text.splitlines()):
        match = re.fullmatch(r"(\d+)(?:;\S+)?", line.strip(), re.ASCII)
        if match is not None:
            return match[1]
    return None


# -- complaints -------------------------------------------------------------------------------------------------------

_PREFIX = re.compile(r"^(?:(?:sbatch|squeue|scancel|sacct|scontrol|sinfo): )?(?:(?:error|fatal|warning): )?")
_VERDICT = "Batch job submission failed: "
_TEST_VERDICT = "allocation failure: "
_NOISE = re.compile(r'^(?:Try "sbatch --help"|Usage: |slurm_send_node_msg)')

_UNANSWERED = re.compile(
    "|".join(
        (
            # slurm_errno.c, 22.05 to 26.05
            r"Unable to contact slurm",
            r"Socket timed out on send/recv",
            r"Zero Bytes were transmitted",
            r"Communication (connection|shutdown) failure",
            r"Message (send|receive) failure",
            r"Connection (timed out|rejected by handler|forced closed)",
            r"Header lengths are longer|Insane message length|Unexpected (message received|missing socket)",
            r"backup controller in standby mode",
            r"Rate limit exceeded",
            r"Incompatible versions of client and server",
            r"Protocol authentication error|Invalid authentication credential|Authentication credential expired",
            r"Authentication failure|TLS missing but required|Rejecting authentication of user",
            r"Unable to create job record, try again|DB index is being set",
            r"is shutting down",
            r"Can't find an address",
            # errno.h, as slurm_strerror passes it on; EAGAIN is "temporarily unable to accept job"
            r"Connection (refused|reset)|Broken pipe|No route to host|Network is unreachable",
            r"Resource temporarily unavailable|temporarily unable to accept job|Job creation temporarily disabled",
            # seen on 22.05: munge away, no configuration, slurmdbd away
            r"Munge (en|de)code failed",
            r"Could not establish a configuration source|cannot stat file|Unable to process configuration file",
            r"Problem talking to (the )?database|can't be reached now|Unable to connect to database",
            r"error while loading shared libraries",
        )
    ),
    re.IGNORECASE,
)


def complaints(stderr: str) -> list[str]:
    """The lines that say something, without `sbatch: error: `."""
    lines = (_PREFIX.sub("", line.strip()).replace(_TEST_VERDICT, _VERDICT, 1) for line in stderr.splitlines())
    return [line for line in dict.fromkeys(lines) if line and not _NOISE.match(line)]


def unanswered(stderr: str) -> bool:
    """Whether a failed command did not get its question through, so that nothing is known.

    Where sbatch gives a verdict it alone counts: the lines before may tell of a first controller that did not answer.
    """
    lines = complaints(stderr)
    verdicts = [line for line in lines if line.startswith(_VERDICT)]
    return not lines or any(_UNANSWERED.search(line) for line in verdicts[-1:] or lines)


def refusal(stderr: str) -> str:
    """Why sbatch was told no, on one line: the verdict, then what was said about it."""
    lines = complaints(stderr)
    verdicts = [line.removeprefix(_VERDICT) for line in lines if line.startswith(_VERDICT)]
    details = [line for line in lines if not line.startswith(_VERDICT)]
    if details and verdicts[-1:] == ["Unspecified error"]:  # a submit plugin's no, which says in its own words why
        verdicts = []
    return "Slurm refused the job: " + "; ".join([*verdicts[-1:], *details[:4]])[:400]


_TEMPORARY = re.compile(
    r"(QOS|Assoc)Max(Submit)?Jobs?\w*Limit|(QOS|Assoc)Grp\w*Limit|Max(Submit)?JobsPerAccount|MaxJobCount|job queue full"
    r"|Requested partition configuration not available now|Required (node|partition) not available",
    re.IGNORECASE,
)


def temporary(refusal: str) -> bool:
    """Whether a no may become a yes by itself: the user's other jobs count, or a partition is closed for a while."""
    return _TEMPORARY.search(refusal) is not None


def not_cancelled(stderr: str) -> list[str]:
    """What scancel complains of, but for jobs that are unknown or have ended: they are as cancelled as can be."""
    return [line for line in complaints(stderr) if not _NOTHING_TO_CANCEL.search(line)]


_NOTHING_TO_CANCEL = re.compile(
    r"Invalid job id specified|Job/step already completing or completed|Job has already finished"
    r"|No active jobs match ALL job filters",
    re.IGNORECASE,
)


def accounting_is_off(stderr: str) -> bool:
    """There is no accounting to ask (no slurmdbd): not a failure, sacct never knows anything here."""
    return "accounting storage is disabled" in stderr.lower()
