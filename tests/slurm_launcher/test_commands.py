"""Slurm's answers as text. Recorded on 22.05.8; where another version is meant, its source is named."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_launcher import commands
from slurm_launcher.cluster import JobComment
from slurm_launcher.spec import Resources

MARK = JobComment("main", "Qwen/Qwen2.5-7B", "qwen-1", "abc")

SQUEUE_22_05 = f"""\
2|COMPLETED|None|n1|n1|2026-11-22T17:38:59|2026-11-22T17:38:59|10:00|10:00|2026-11-22T17:38:58|gpu|q|N/A|(null)
13|FAILED|BadConstraints||n/a|2026-11-22T17:38:58|2026-11-22T17:38:58|10:00|10:00|2026-11-22T17:38:58|gpu|q|gres:gpu:9|(null)
29|CANCELLED|BeginTime||n/a|2026-11-22T18:42:44|2026-11-22T17:44:19|10:00|10:00|2026-11-22T17:42:44|gpu|q|N/A|(null)
7|PENDING|BeginTime||n/a|2026-11-22T17:46:55|2026-11-22T17:56:55|10:00|10:00|2026-11-22T17:46:49|gpu|q|N/A|(null)
20|PENDING|PartitionConfig||n/a|N/A|N/A|10:00|10:00|2026-11-22T17:38:58|gpu|q|N/A|(null)
10_1|RUNNING|None|n1|n1|2026-11-22T17:46:47|2026-11-22T17:56:47|10:00|9:58|2026-11-22T17:46:47|gpu|q|N/A|(null)
1|RUNNING|None|n1|n1|2026-11-22T17:38:59|2026-11-22T17:48:59|10:00|9:59|2026-11-22T17:38:58|gpu|q|gres:gpu:2|{MARK.dumps()}
"""


def test_each_line_of_squeue_becomes_a_job() -> None:
    listing = commands.parse_jobs(SQUEUE_22_05)
    assert list(listing.jobs) == ["2", "13", "29", "7", "20", "1"]
    running = listing.jobs["1"]
    assert (running.state, running.reason, running.node) == ("RUNNING", "", "n1")
    assert (running.time_left_s, running.comment, running.starts_at) == (599.0, MARK, "")
    assert listing.jobs["13"].reason == "BadConstraints"
    assert listing.jobs["13"].over


def test_only_a_pending_job_has_an_expected_start() -> None:
    jobs = commands.parse_jobs(SQUEUE_22_05).jobs
    assert (jobs["7"].node, jobs["7"].starts_at) == ("", "2026-11-22T17:46:55")
    assert jobs["20"].starts_at == ""


def test_job_arrays_and_heterogeneous_jobs_are_nobodys_replicas() -> None:
    assert commands.parse_jobs(SQUEUE_22_05).skipped == ()
    assert commands.parse_jobs("12_[3-9%2]|PENDING|None\n12+1|RUNNING|None|n1|n1\n") == commands.Listing({})


@pytest.mark.parametrize(
    "line",
    [
        "CLUSTER: lab",  # squeue -M without -h
        "This system will be down on Monday.",
        "|||||||||||||",
        "7",
        "7|?|None|n1",  # job_state_string() for a state that it does not know
        "-1|RUNNING|None",
        "²|RUNNING|None",
    ],
)
def test_a_line_that_is_no_job_is_skipped_and_kept_for_the_operator(line: str) -> None:
    assert commands.parse_jobs(f"\n{line}\n") == commands.Listing({}, (line,))


def test_a_line_cut_short_still_shows_that_its_job_is_there() -> None:
    listing = commands.parse_jobs("41|RUNNING|None|n1|n1|2026-11-22T17:3")
    assert (listing.jobs["41"].state, listing.jobs["41"].comment, listing.skipped) == ("RUNNING", None, ())


def test_a_comment_may_hold_the_delimiter() -> None:
    line = "41|PENDING|Priority||n/a|N/A|N/A|1-00:00:00|1-00:00:00|x|gpu|q|gres/gpu:2|a|b|c"
    listing = commands.parse_jobs(line)
    assert (listing.jobs["41"].comment, listing.jobs["41"].time_left_s) == (None, 86400.0)


def test_a_reason_keeps_its_commas() -> None:
    line = "41|PENDING|ReqNodeNotAvail, UnavailableNodes:n4||n/a|N/A|N/A|UNLIMITED|UNLIMITED|x|gpu|q|gres/gpu:h100:4|y"
    job = commands.parse_jobs(line).jobs["41"]
    assert (job.reason, job.time_left_s) == ("ReqNodeNotAvail, UnavailableNodes:n4", None)


def test_an_expedited_requeue_is_a_requeue() -> None:
    """26.05's new state (slurm_protocol_defs.c): not known to it, a reader would take the job for over."""
    assert commands.parse_jobs("41|EXPEDITING|None").jobs["41"].waiting


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04", 93784.0),
        ("02:03:04", 7384.0),
        ("9:59", 599.0),
        ("0:00", 0.0),
        ("10", 600.0),
        ("2-12", 216000.0),
        ("2-12:30", 217800.0),
        ("365-00:00:00", 31536000.0),
        ("00:10.250", 10.0),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("N/A", None),
        ("(null)", None),
        ("", None),
        ("1:2:3:4", None),
    ],
)
def test_durations_as_squeue_writes_them(text: str, seconds: float | None) -> None:
    assert commands.parse_duration(text) == seconds


@given(st.integers(0, 10**8))
def test_a_duration_comes_back_as_it_went(seconds: int) -> None:
    assert commands.parse_duration(commands.format_duration(seconds)) == seconds


# -- marks ------------------------------------------------------------------------------------------------------------

models = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(models)
def test_a_mark_survives_whatever_the_model_is_called(model: str) -> None:
    mark = JobComment("main", model, "r-1", "abc")
    text = mark.dumps()
    assert text.isascii()
    assert text.isprintable()
    assert not set(text) & set(" |\\'#")
    assert JobComment.loads(text) == mark


def test_a_mark_stays_readable() -> None:
    assert '"model":"Qwen/Qwen2.5-7B"' in MARK.dumps()


@pytest.mark.parametrize("text", ["", "(null)", "7", "[]", '"slurmgate"', '{"slurmgate":2}', '{"slurmgate":1}', "{"])
def test_the_comments_of_others_are_no_marks(text: str) -> None:
    assert JobComment.loads(text) is None


# -- #SBATCH lines ----------------------------------------------------------------------------------------------------


def directives(resources: Resources, **changes: object) -> list[str]:
    values = {"job_name": "slurmgate-main", "comment": MARK.dumps(), "output": "/logs/a.log", "signal_lead_s": 0}
    return commands.directives(resources, **(values | changes))  # type: ignore[arg-type]


def test_several_nodes_get_one_task_each_and_the_same_gpus_each() -> None:
    lines = directives(Resources(nodes=2, gpus=4, cpus=16))
    assert lines[:2] == ["#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1"]
    assert "#SBATCH --gres=gpu:4" in lines
    assert "#SBATCH --cpus-per-task=16" in lines


def test_what_is_not_asked_for_is_left_to_the_partition() -> None:
    assert directives(Resources()) == [
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks=1",
        "#SBATCH --export=NONE",
        "#SBATCH --chdir=/tmp",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --job-name=slurmgate-main",
        f"#SBATCH --comment='{MARK.dumps()}'",
        "#SBATCH --output=/logs/a.log",
    ]


def test_everything_that_can_be_asked_for() -> None:
    resources = Resources(
        gpus=2,
        gpu_type="h100",
        cpus=8,
        memory_mb=64000,
        time_limit_s=90061,
        partition="gpu",
        account="lab",
        qos="tiny",
        constraint="a100|h100&nvlink",
        reservation="tests",
        exclusive=True,
        extra=("--nodelist=n1", "--no-requeue"),
    )
    lines = directives(resources, signal_lead_s=300)
    assert lines[6:-3] == [
        "#SBATCH --gres=gpu:h100:2",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=64000M",
        "#SBATCH --exclusive",
        "#SBATCH --time=1-01:01:01",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
        "#SBATCH --qos=tiny",
        "#SBATCH --constraint='a100|h100&nvlink'",
        "#SBATCH --reservation=tests",
        "#SBATCH --signal=B:USR1@300",
        "#SBATCH --nodelist=n1",
        "#SBATCH --no-requeue",
    ]


def test_an_exclusive_node_comes_with_all_of_its_memory() -> None:
    assert "#SBATCH --mem=0" in directives(Resources(exclusive=True))
    assert "#SBATCH --mem=0" not in directives(Resources(exclusive=True, memory_mb=1))


def test_gpus_of_any_type() -> None:
    assert "#SBATCH --gres=gpu:1" in directives(Resources(gpus=1))


def test_a_percent_sign_in_the_log_path_is_not_a_pattern() -> None:
    assert directives(Resources(), output="/logs/50%j.log")[-1] == "#SBATCH --output=/logs/50%%j.log"


@pytest.mark.parametrize(
    ("resources", "changes", "option"),
    [
        (Resources(partition="gpu\n#SBATCH --uid=0"), {}, "--partition"),
        (Resources(account="a\rb"), {}, "--account"),
        (Resources(qos="a\0b"), {}, "--qos"),
        (Resources(extra=("--nodelist=n1\nrm -rf /",)), {}, "--nodelist"),
        (Resources(extra=("rm -rf /",)), {}, "rm -rf"),
        (Resources(), {"output": "/logs/a\u2028b"}, "--output"),
        (Resources(), {"comment": "x" * 1025}, "--comment"),
        (Resources(), {"signal_lead_s": 70000}, "--signal"),
        (Resources(), {"signal_lead_s": -1}, "--signal"),
    ],
)
def test_what_cannot_stand_in_a_line_is_refused_by_name(
    resources: Resources, changes: dict[str, object], option: str
) -> None:
    with pytest.raises(ValueError, match=option):
        directives(resources, **changes)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc", "Zl", "Zp"])))
def test_a_quoted_value_is_read_back_by_sbatchs_own_rules(value: str) -> None:
    assert get_argument(commands.quote(value)) == value


def get_argument(text: str) -> str:
    """sbatch's reader (src/sbatch/opt.c, the same from 17.11 to 26.05): any quote, and `\\` escapes inside both."""
    out, quoted, i = "", "", 0
    while i < len(text) and (quoted or not text[i].isspace()):
        char = text[i]
        if char == "\\":
            i += 1
            out += text[i : i + 1]
        elif quoted:
            out, quoted = (out, "") if char == quoted else (out + char, quoted)
        elif char in "\"'":
            quoted = char
        elif char == "#":
            break
        else:
            out += char
        i += 1
    assert not quoted
    assert i >= len(text)
    return out


# -- argv -------------------------------------------------------------------------------------------------------------


def test_one_question_for_all_jobs() -> None:
    expected = f"squeue --noheader --states=all --me --name=slurmgate-main '--format={commands.FORMAT}'"
    assert commands.squeue("slurmgate-main") == shlex.split(expected)


def test_a_named_cluster_is_asked_by_name() -> None:
    for argv in (
        commands.sbatch("lab"),
        commands.squeue("x", "lab"),
        commands.scancel(["1"], "x", "lab"),
        commands.scancel_all("x", "0", "lab"),
        commands.scancel_signal("1", "USR1", "x", "lab"),
        commands.sacct(["1"], "lab"),
    ):
        assert "--clusters=lab" in argv


def test_ids_are_digits_and_never_options() -> None:
    assert commands.job_ids(["7", "--user=root", "8_1", "7", "", "9+0", " 3", "٣", "12"]) == ["7", "12"]


# -- submissions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "job_id"),
    [
        ("17\n", "17"),
        ("5;lab\n", "5"),
        ("Welcome!\nYour quota: 80 %\n17\n", "17"),
        ("67109017;fed1\n", "67109017"),
        ("", None),
        ("Submitted batch job 17\n", None),
    ],
)
def test_the_new_jobs_id(text: str, job_id: str | None) -> None:
    assert commands.parse_submitted(text) == job_id


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "sbatch: error: invalid partition specified: nope\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
            "Invalid partition name specified; invalid partition specified: nope",
        ),
        (
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\n"
            "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's"
            " size and/or time limits)\n",
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits);"
            " QOSMaxSubmitJobPerUserLimit",
        ),
        (
            "sbatch: error: Invalid generic resource (gres) specification\n",
            "Invalid generic resource (gres) specification",
        ),
        ("sbatch: error: Invalid --time specification\n", "Invalid --time specification"),
        (
            "sbatch: unrecognized option '--bogus'\nTry \"sbatch --help\" for more information\n",
            "unrecognized option '--bogus'",
        ),
        (
            "sbatch: fatal: stdin: line 3: Unmatched `'` in [--comment='a]: \n",
            "stdin: line 3: Unmatched `'` in [--comment='a]:",
        ),
        (
            # the first controller is away, the second one has answered
            "sbatch: error: Unable to contact slurm controller (connect failure)\n"
            "sbatch: error: Batch job submission failed: Invalid qos specification\n",
            "Invalid qos specification; Unable to contact slurm controller (connect failure)",
        ),
        (
            # a job_submit plugin's message, and then ESLURM_MAX_JOB_COUNT
            "sbatch: error: Slurm job queue full, sleeping and retrying\n"
            "sbatch: error: Batch job submission failed: MaxJobCount limit reached\n",
            "MaxJobCount limit reached; Slurm job queue full, sleeping and retrying",
        ),
    ],
)
def test_a_no_is_told_in_slurms_own_words(stderr: str, reason: str) -> None:
    assert not commands.unanswered(stderr)
    assert commands.refusal(stderr) == f"Slurm refused the job: {reason}"


SILENCE_22_05 = [
    "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "scancel: error: Kill job error on job id 28: Socket timed out on send/recv operation",
    "sbatch: error: If munged is up, restart with --num-threads=10\n"
    'sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file or directory (Did'
    " you start munged?)\n"
    "sbatch: error: slurm_send_node_msg: auth_g_create: REQUEST_SUBMIT_BATCH_JOB has authentication error\n"
    "sbatch: error: Batch job submission failed: Protocol authentication error",
    "sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\nsbatch: error: fetch_config: DNS SRV"
    " lookup failed\nsbatch: error: _establish_config_source: failed to fetch config\n"
    "sbatch: fatal: Could not establish a configuration source",
    "squeue: error: s_p_parse_file: cannot stat file /etc/slurm/slurm.conf: No such file or directory, retrying in 1sec"
    " up to 60sec",
    "sbatch: error: Problem talking to database\nsbatch: error: 'other' can't be reached now, or it is an invalid entry"
    " for --cluster.  Use 'sacctmgr list clusters' to see available clusters.",
    "sacct: error: Sending PersistInit msg: Connection refused\n"
    "sacct: error: Problem talking to the database: Connection refused",
]
SILENCE_26_05 = [  # slurm_errno.c
    "sbatch: error: Batch job submission failed: Rate limit exceeded, please retry momentarily",
    "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
    "sbatch: error: Batch job submission failed: Slurm backup controller in standby mode",
    "sbatch: error: Batch job submission failed: Connection timed out establishing",
    "sbatch: error: Batch job submission failed: Process is shutting down and closing all communications",
    "sbatch: error: Batch job submission failed: Incompatible versions of client and server code",
    "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
    "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
]


@pytest.mark.parametrize("stderr", ["", "\n", *SILENCE_22_05, *SILENCE_26_05])
def test_a_question_that_did_not_get_through_is_not_a_no(stderr: str) -> None:
    assert commands.unanswered(stderr)


def test_a_refusal_is_one_line_and_not_endless() -> None:
    text = commands.refusal("\n".join(f"sbatch: error: {i} {'x' * 200}" for i in range(100)))
    assert "\n" not in text
    assert len(text) < 450


# -- ends -------------------------------------------------------------------------------------------------------------

SACCT_22_05 = """\
1|RUNNING|None|0:0|n1
2|PENDING|QOSMaxJobsPerUserLimit|0:0|None assigned
6|FAILED|None|1:0|None assigned
7|REQUEUED|None|0:0|n1
8|FAILED|None|3:0|n1
9|FAILED|None|0:9|n1
10_1|COMPLETED|None|0:0|n1
11|PREEMPTED|None|0:0|n2
11|RUNNING|None|0:0|n3
7|CANCELLED by 0|BeginTime|0:0|n1
"""


def test_sacct_tells_how_jobs_ended_and_nothing_of_those_that_have_not() -> None:
    jobs = commands.parse_ended(SACCT_22_05)
    assert {job.id: (job.state, job.reason, job.node) for job in jobs.values()} == {
        "6": ("FAILED", "exit code 1", ""),
        "7": ("CANCELLED", "", "n1"),
        "8": ("FAILED", "exit code 3", "n1"),
        "9": ("FAILED", "signal 9", "n1"),
    }


def test_of_a_requeued_job_the_last_life_counts() -> None:
    text = "7|NODE_FAIL|None|0:0|n1\n7|REQUEUED|None|0:0|n2\n7|OUT_OF_MEMORY|None|0:125|n3\n"
    assert commands.parse_ended(text)["7"].state == "OUT_OF_MEMORY"


def test_no_accounting_is_told_from_accounting_that_does_not_answer() -> None:
    assert commands.accounting_is_off("Slurm accounting storage is disabled\n")
    assert not commands.accounting_is_off("sacct: error: Problem talking to the database: Connection refused\n")


def test_a_job_that_is_not_there_counts_as_cancelled() -> None:
    assert not commands.not_cancelled("scancel: error: Kill job error on job id 28: Invalid job id specified\n")
    ended = "scancel: error: Kill job error on job id 29: Job/step already completing or completed\n"
    assert not commands.not_cancelled(ended)
    assert commands.not_cancelled("scancel: error: Kill job error on job id 27: Access/permission denied\n")
