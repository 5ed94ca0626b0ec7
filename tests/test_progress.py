"""The time left of a run: the estimate, told what happens when; what Snakemake then says of it."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from l0plane.progress import EVERY, Progress, TimeLeft

ROOT = Path(__file__).parents[1]
KINDS = {"train_relu": "trainings", "train_topk": "trainings", "evaluate_topk": "evaluations"}
PLAN = {"corpus": 1, "train_relu": 4, "train_topk": 4, "evaluate_topk": 1, "all": 1}


@pytest.fixture
def left():
    """Two trainings of TopK have finished, 60 s each, side by side, after 600 s of corpus."""
    left = TimeLeft(KINDS)
    left.plan(PLAN)
    left.start(0, "corpus", 0.0)
    left.end(0, 600.0)
    for job in (1, 2):
        left.start(job, "train_topk", 600.0)
    for job in (1, 2):
        left.end(job, 660.0)
    return left


def test_what_is_left_takes_the_mean_of_its_rule_its_kind_or_of_all(left):
    # Two of TopK, four of its kind; the two others as corpus and the trainings on average.
    assert left.seconds(660.0) == pytest.approx((6 * 60 + 2 * 240) / 2)
    for job in (3, 4):
        left.start(job, "train_relu", 660.0)
    left.end(3, 780.0)
    left.end(4, 780.0)
    # Two of ReLU at 120 s, two of TopK at 60 s, two at the mean of five.
    assert left.seconds(780.0) == pytest.approx((2 * 120 + 2 * 60 + 2 * 192) / 2)


def test_a_job_that_makes_several_counts_for_all_of_them():
    left = TimeLeft({**KINDS, "together_topk": "trainings"}, {"together_topk": 8})
    left.plan({"together_topk": 2, "train_topk": 4, "all": 1})
    left.start(0, "together_topk", 0.0)
    left.end(0, 80.0)
    # One more of eight, four of one, and `all` like one of those that have been made.
    assert left.seconds(80.0) == pytest.approx(80 + 4 * 10 + 10)
    assert left.line(80.0) == "about 2 min left: 8 of 20 trainings"
    left.start(1, "train_topk", 80.0)
    left.end(1, 96.0)
    assert left.seconds(96.0) == pytest.approx(80 + 3 * 16 + 96 / 9)


def test_what_runs_counts_for_its_rest_and_never_for_less_than_nothing(left):
    before = left.seconds(660.0)
    for job in (3, 4):
        left.start(job, "train_topk", 660.0)
    assert left.seconds(690.0) == pytest.approx(before - 30)
    assert left.seconds(720.0) == left.seconds(999.0) == pytest.approx(before - 60)


def test_nothing_is_known_before_one_of_most_jobs_has_finished():
    left = TimeLeft(KINDS)
    assert left.line(0.0) is None
    left.plan(PLAN)
    left.start(0, "corpus", 0.0)
    left.end(0, 600.0)
    left.start(1, "train_topk", 600.0)
    assert left.line(700.0) is None
    left.end(1, 700.0)
    assert left.line(700.0).startswith("about ")


def test_the_line_names_the_kinds_of_which_something_is_left(left):
    assert left.line(660.0) == "about 7 min left: 2 of 8 trainings, 0 of 1 evaluations"
    for job, rule in enumerate(["train_topk"] * 2 + ["train_relu"] * 4, 3):
        left.start(job, rule, 660.0)
        left.end(job, 670.0)
    assert left.line(670.0).endswith(" left: 0 of 1 evaluations")
    left.start(9, "evaluate_topk", 670.0)
    left.end(9, 680.0)
    assert re.fullmatch(r"about \d+ min left", left.line(680.0))
    left.start(10, "all", 680.0)
    left.end(10, 680.0)
    assert left.line(680.0) is None


@pytest.mark.parametrize(("seconds", "said"), [(1, "1 min"), (6000, "100 min"), (9000, "2.5 h")])
def test_times_are_as_fine_as_they_are_certain(seconds, said):
    left = TimeLeft({"train": "trainings"})
    left.plan({"train": 2})
    left.start(0, "train", 0.0)
    left.end(0, seconds)
    assert left.line(seconds) == f"about {said} left: 1 of 2 trainings"


def test_a_job_that_failed_counts_as_ended_until_it_is_tried_again(left):
    before = left.seconds(660.0)
    left.start(3, "train_topk", 660.0)
    for _ in range(2):  # as Snakemake does where the executor and the job both say so
        left.end(3, 660.0, failed=True)
    assert left.seconds(660.0) == pytest.approx(before - 30)
    assert left.line(660.0).split(": ")[1].startswith("3 of 8 trainings")
    left.start(3, "train_topk", 660.0)
    assert left.seconds(660.0) == pytest.approx(before)


def test_the_documents_show_such_a_line():
    left = TimeLeft({rule: rule for rule in ("trainings", "evaluations", "figures")})
    left.plan({"trainings": 90, "evaluations": 9, "figures": 13})
    for job in range(50):
        left.start(job, "trainings", 4.0 * job)
        left.end(job, 4.0 * (job + 1))
    line = left.line(200.0)
    for page in ("README.md", "docs/scaling.md"):
        assert line in (ROOT / page).read_text()
    assert f"at most every {EVERY:.0f} seconds" in (ROOT / "docs/scaling.md").read_text()


# --- among Snakemake's handlers


def record(event, **facts):
    return logging.makeLogRecord({"event": event, **facts})


def finish(progress, job, rule="train_topk"):
    progress.handle(record(LogEvent.JOB_INFO, jobid=job, rule_name=rule))
    progress.handle(record(LogEvent.JOB_FINISHED, job_id=job))
    progress.handle(record(LogEvent.PROGRESS, done=1, total=2))


def test_a_line_comes_when_a_job_has_finished_and_not_too_often():
    said, now = [], [100.0]
    progress = Progress(KINDS, said.append, clock=lambda: now[0])
    progress.handle(record(LogEvent.RUN_INFO, stats={"train_topk": 5, "total": 5}))
    finish(progress, 1)
    finish(progress, 2)
    assert said == ["about 1 min left: 1 of 5 trainings"]
    now[0] += EVERY
    progress.handle(logging.makeLogRecord({"msg": "no event"}))
    assert len(said) == 1
    finish(progress, 3)
    assert said[1:] == ["about 1 min left: 3 of 5 trainings"]


def test_without_a_plan_there_is_no_line():
    said = []
    finish(Progress(KINDS, said.append), 1)
    assert said == []


def test_a_mistake_in_it_stops_no_run(capsys):
    Progress(KINDS, print).handle(record(LogEvent.JOB_INFO))
    assert "KeyError" in capsys.readouterr().err


WORKFLOW = """
METHODS = SERIES = {{"a": {{}}}}
FIGURE_TABLES = {{}}
GROUPS = {{}}

include: "{rules}/progress.smk"

rule all:
    input:
        expand("{{n}}.txt", n=range(3)),

rule train_a:
    output:
        "{{n}}.txt",
    run:
        open(output[0], "w").close()
"""


def test_a_run_says_it_and_nothing_else_does(tmp_path):
    (tmp_path / "Snakefile").write_text(WORKFLOW.format(rules=ROOT / "workflow/rules"))

    def snakemake(*arguments):
        command = [Path(sys.executable).parent / "snakemake", "--cores", "1", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert " left" not in snakemake("--dry-run")
    said = snakemake()
    done = re.findall(r"^about \d+ min left: (\d) of 3 trainings$", said, re.MULTILINE)
    # At once, and not by the jobs' own processes as well.
    assert done[0] == "1" and done == sorted(set(done))
    assert said.index("1 of 4 steps") < said.index(" left") < said.index("2 of 4 steps")
    assert " left" not in snakemake("--forceall", "--quiet", "progress")
