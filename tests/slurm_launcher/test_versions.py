"""Slurm 21.08 to 26.05, as text: each file of recorded/ says in its first line where it comes from."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_launcher import commands, facilities
from slurm_launcher.cluster import OVER_STATES, WAITING_STATES, Job, JobComment
from slurm_launcher.observing import stuck
from slurm_launcher.versions import Capabilities, Version, parse_version, refused_option

RECORDED = Path(__file__).with_name("recorded")
RELEASES = ["21.08", "22.05", "23.02", "23.11", "24.05", "24.11", "25.05", "25.11", "26.05"]
FEDERATED = {"24.05": 1, "25.11": 2}
MARK = JobComment("main", "org/m", "m-1", "abc")


def recorded(release: str) -> dict[str, str]:
    """Command -> its output."""
    text = (RECORDED / f"{release}.txt").read_text()
    parts = re.split(r"(?m)^== (\w+)\n", re.sub(r"(?m)^#.*\n", "", text))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def number(release: str, job: int) -> str:
    """A job's id: in a federation the cluster's number is in the bits above the 25th."""
    return str((FEDERATED.get(release, 0) << 26) + job)


each_release = pytest.mark.parametrize("release", RELEASES)
of_the_sources = pytest.mark.parametrize("release", [r for r in RELEASES if r != "22.05"])


def test_every_recorded_file_is_of_a_release_and_says_where_it_comes_from() -> None:
    assert sorted(path.stem for path in RECORDED.glob("*.txt")) == RELEASES
    for release in RELEASES:
        first = (RECORDED / f"{release}.txt").read_text().splitlines()[0]
        assert first.startswith(("# recorded on ", "# made from "))
        assert release in first


@each_release
def test_the_version(release: str) -> None:
    version = parse_version(recorded(release)["version"])
    assert version is not None
    assert f"{version.major}.{version.minor:02}" == release
    assert str(version).startswith(release)


@each_release
def test_no_line_of_squeue_is_lost(release: str) -> None:
    text = recorded(release)["squeue"]
    listing = commands.parse_jobs(text)
    assert listing.skipped == ()
    ours = [line for line in text.splitlines() if line.split("|")[0].isdigit()]
    assert list(listing.jobs) == [line.split("|")[0] for line in ours]


@each_release
def test_a_running_job_with_its_mark(release: str) -> None:
    job = commands.parse_jobs(recorded(release)["squeue"]).jobs[number(release, 3)]
    assert (job.alive, job.waiting, job.over, job.node, job.comment) == (True, False, False, "n1", MARK)
    assert job.time_left_s is not None
    assert job.time_left_s > 500


@each_release
def test_what_waits_what_lives_and_what_is_over(release: str) -> None:
    jobs = commands.parse_jobs(recorded(release)["squeue"]).jobs
    for job in jobs.values():
        assert job.state in WAITING_STATES | OVER_STATES | {"RUNNING", "SUSPENDED", "COMPLETING"}
        assert job.waiting == (job.state in {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"})
        assert job.over == (job.state in OVER_STATES)
        assert job.alive == (job.state in {"RUNNING", "SUSPENDED"} or job.waiting)


@each_release
def test_a_job_that_asks_for_too_much_time_is_given_up_with_the_reason(release: str) -> None:
    job = commands.parse_jobs(recorded(release)["squeue"]).jobs[number(release, 4)]
    failure = stuck(job)
    assert failure is not None
    assert failure.kind == "hopeless"
    assert failure.message.endswith("asks for more time than its partition allows: Slurm says PartitionTimeLimit.")


@of_the_sources
def test_reasons_in_words_keep_their_commas(release: str) -> None:
    jobs = commands.parse_jobs(recorded(release)["squeue"]).jobs
    busy = jobs[number(release, 12)]
    assert busy.reason == "ReqNodeNotAvail, UnavailableNodes:n[3-4]"
    assert stuck(busy) is None
    held = stuck(jobs[number(release, 15)])
    assert held is not None
    assert held.kind == "launch"


@pytest.mark.parametrize("release", ["25.11", "26.05"])
def test_an_expedited_requeue_waits_to_run_again(release: str) -> None:
    assert commands.parse_jobs(recorded(release)["squeue"]).jobs[number(release, 23)].waiting


@pytest.mark.parametrize("release", ["23.02", "24.11", "26.05"])
def test_constraints_that_cannot_be_met_just_now_are_waited_for(release: str) -> None:
    assert stuck(commands.parse_jobs(recorded(release)["squeue"]).jobs[number(release, 21)]) is None


def test_a_state_of_a_slurm_to_come_ends_no_replica() -> None:
    job = Job("7", "HIBERNATING")
    assert (job.alive, job.over, job.waiting) == (True, False, False)


@each_release
def test_how_jobs_ended(release: str) -> None:
    ended = {job.id: (job.state, job.reason) for job in commands.parse_ended(recorded(release)["sacct"]).values()}
    if release == "22.05":
        assert ended == {
            "6": ("FAILED", "exit code 3"),
            "7": ("FAILED", "signal 9"),
            "8": ("COMPLETED", ""),
            "9": ("CANCELLED", ""),
        }
    else:
        assert ended == {
            number(release, 6): ("FAILED", "exit code 3"),
            number(release, 8): ("COMPLETED", ""),
            number(release, 9): ("CANCELLED", ""),
            number(release, 10): ("NODE_FAIL", "exit code 1"),
            number(release, 11): ("OUT_OF_MEMORY", "signal 125"),
            number(release, 13): ("TIMEOUT", ""),
        }


@of_the_sources
def test_the_new_jobs_id_where_there_is_a_federation_and_where_there_is_none(release: str) -> None:
    job_id = commands.parse_submitted(recorded(release)["submitted"])
    assert job_id == number(release, 3)
    assert commands.job_ids([job_id]) == [job_id]


@each_release
def test_a_maintenance_and_its_times(release: str) -> None:
    found = {r.name: r for r in facilities.parse_reservations(recorded(release)["reservation"])}
    assert set(found) == {"maint", "course"}  # one without nodes keeps nobody out
    maint = found["maint"]
    assert maint.nodes == {"n1", "n2"}
    assert "MAINT" in maint.flags
    assert maint.starts_at == datetime(2026, 11, 29, 8, tzinfo=UTC).timestamp()
    assert maint.ends_at - maint.starts_at == 4 * 3600
    assert "MAINT" not in found["course"].flags


@each_release
def test_partitions(release: str) -> None:
    found = {p.name: p for p in facilities.parse_partitions(recorded(release)["partition"])}
    assert set(found) == {"gpu", "preempt", "short"}
    gpu = found["gpu"]
    assert (gpu.default, gpu.state, gpu.nodes, gpu.max_time_s) == (True, "UP", ("n1", "n2"), 7200.0)
    assert facilities.asked_for(found.values(), "") == [gpu]
    if release != "22.05":
        assert found["preempt"].state == "DRAIN"
        assert found["preempt"].denied_accounts == {"guests"}
        assert found["short"].allowed_accounts == {"lab", "chem"}
        assert found["short"].max_time_s is None


@each_release
def test_nodes_and_their_gpus(release: str) -> None:
    nodes = facilities.parse_nodes(recorded(release)["sinfo"])
    first = nodes[0]
    assert (first.name, first.partition, first.usable, first.gpus) == ("n1", "gpu", True, {"h100": 4})
    assert (first.cpus, first.memory_mb) == (16, 64000)
    if release != "22.05":
        assert [(n.name, n.usable) for n in nodes[2:]] == [("n2", True), ("n3", False), ("n4", False), ("n5", True)]
        assert nodes[-1].gpus == {"a100": 2, "h100": 1}
        assert nodes[3].gpus == {"": 2}


@each_release
def test_whether_the_controller_answers(release: str) -> None:
    found = facilities.parse_ping(recorded(release)["ping"])
    assert next(iter(found.values()))
    if release != "22.05":
        assert found == {"c1": True, "c2": False}


@each_release
def test_a_no_is_told_from_no_answer(release: str) -> None:
    said = recorded(release)
    for refusal in said["refusal"].strip().split("\n\n"):
        assert not commands.unanswered(refusal)
        assert commands.refusal(refusal).startswith("Slurm refused the job: ")
    for silence in said["silence"].strip().split("\n\n"):
        assert commands.unanswered(silence)
    assert not commands.not_cancelled(said["cancelled"])


def test_a_limit_that_others_have_used_up_is_a_no_for_a_while() -> None:
    for text in ("QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit", "MaxJobCount limit reached"):
        assert commands.temporary(f"Slurm refused the job: {text}")
    for text in ("Invalid partition name specified", "Invalid qos specification", "QOSMaxWallDurationPerJobLimit"):
        assert not commands.temporary(f"Slurm refused the job: {text}")


# -- versions and what they lack --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("slurm 24.11.5\n", Version(24, 11, 5)),
        ("slurm-wlm 22.05.8", Version(22, 5, 8)),
        ("Welcome!\nslurm 25.11.0-0rc1\n", Version(25, 11, 0)),
        ("slurm 20.11", Version(20, 11)),
        ("sbatch: error", None),
        ("", None),
    ],
)
def test_versions_as_they_are_told(text: str, version: Version | None) -> None:
    assert parse_version(text) == version


@each_release
def test_a_refused_option_is_named(release: str) -> None:
    said = recorded(release).get("option", "")
    assert refused_option(said) == "--bogus"


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("squeue: unrecognized option '--me'", "--me"),
        ("squeue: unrecognized option `--me'", "--me"),
        ("squeue: unrecognized option: me", "--me"),
        ("scontrol: invalid option -- 'o'", "--o"),
        ("squeue: error: Invalid job id specified", None),
        ("", None),
    ],
)
def test_options_as_getopt_refuses_them(text: str, option: str | None) -> None:
    assert refused_option(text) == option


def test_an_option_that_was_refused_is_said_otherwise_from_then_on() -> None:
    asked = ["squeue", "--me", "--name=x"]
    knows = Capabilities()
    assert knows.argv(asked, 1000) == asked
    assert knows.can_do_without("squeue", "--me")
    learnt = knows.without("squeue", "--me")
    assert learnt.argv(asked, 1000) == ["squeue", "--user=1000", "--name=x"]
    assert learnt.argv(["scancel", "--me"], 1000) == ["scancel", "--me"]
    assert not learnt.can_do_without("squeue", "--me")
    assert not learnt.can_do_without("squeue", "--name=x")


# -- lists of hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,1]", ["n08", "n09", "n10", "n1"]),
        ("login,gpu[1-2]-ib[0-1]", ["login", "gpu1-ib0", "gpu1-ib1", "gpu2-ib0", "gpu2-ib1"]),
        ("r[1-2]n[1-2]-x", ["r1n1-x", "r1n2-x", "r2n1-x", "r2n2-x"]),
        ("(null)", []),
        ("", []),
    ],
)
def test_a_list_of_hosts_is_expanded(text: str, names: list[str]) -> None:
    assert facilities.expand_hosts(text) == names


@pytest.mark.parametrize("text", ["n[1-", "n1]", "n[a-b]", "n[1[2]]", "a b", "n[1-999999999]", "n[]", "a,,b", "²"])
def test_what_is_no_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host"):
        facilities.expand_hosts(text)


@given(st.text(alphabet="n1[]-,0 x", max_size=20))
def test_any_text_is_a_list_of_hosts_or_none(text: str) -> None:
    try:
        names = facilities.expand_hosts(text)
    except ValueError:
        return
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


@given(st.integers(0, 999), st.integers(0, 60), st.integers(1, 4))
def test_a_range_has_all_its_hosts(first: int, more: int, width: int) -> None:
    names = facilities.expand_hosts(f"n[{first:0{width}}-{first + more:0{width}}]")
    assert [int(name[1:]) for name in names] == list(range(first, first + more + 1))
