"""The batch file, run by bash with commands of Slurm that only note what they were asked."""

import os
import signal
import subprocess
import time

import pytest

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.stages.slurm import Job, slurm

TRAINING = ["pretrain", "a cache/luna", "--batch", "64"]


def text(**values):
    return slurm(TRAINING, Job(**values)).text


def test_it_asks_for_what_it_was_told():
    made = text(nodes=2, gpus=4, hours=1.5, memory_gb=200, partition="long", account="lab", name="a")
    for line in (
        "--nodes=2",
        "--gpus-per-node=4",
        "--cpus-per-task=32",
        "--time=01:30:00",
        "--mem=200G",
        "--partition=long",
        "--account=lab",
        "--job-name=a",
        "--signal=B:USR1@300",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in made
    assert "torchrun --nnodes=2 --nproc-per-node=4 " in made
    assert "--rdzv-backend=c10d" in made
    assert "--mem" not in text()


def test_what_does_not_train_or_breaks_a_line_is_refused(tmp_path):
    for command in ([], ["evaluate", "a"]):
        with pytest.raises(ConfigError, match="neither trains nor can be dealt out; give one of pretrain, finetune"):
            slurm(command)
    with pytest.raises(ConfigError, match="Slurm wants one word"):
        text(partition="a\n#SBATCH --nodes=99")
    path = tmp_path / "job.sh"
    assert slurm(TRAINING, out=path).text == path.read_text("utf-8")


@pytest.fixture
def cluster(tmp_path):
    """Slurm's commands as scripts that note their arguments; `torchrun` does what the file `do` says."""
    commands = {
        "scontrol": 'echo "scontrol $*" >> "$NOTES"; [ "$1" = show ] && echo node1 && echo node2; exit 0',
        "srun": 'shift; exec "$@"',
        "scancel": 'echo "scancel $*" >> "$NOTES"; kill -USR1 "$(cat "$NOTES.pid")"',
        "torchrun": 'echo $$ > "$NOTES.pid"; for a; do echo "[$a]"; done >> "$NOTES"; eval "$DO"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm(TRAINING, Job(nodes=2, gpus=4), tmp_path / "job.sh")
    return tmp_path


def submit(cluster, do):
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "NOTES": str(cluster / "notes"), "DO": do}
    return subprocess.Popen(
        ["bash", str(cluster / "job.sh")], env={**os.environ, **variables, "PATH": f"{cluster}:{os.environ['PATH']}"}
    )


def notes(cluster):
    return (cluster / "notes").read_text("utf-8").splitlines()


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (5, False), (75, True)])
def test_the_end_of_the_training_is_the_jobs_and_75_goes_back_into_the_queue(cluster, code, requeued):
    assert submit(cluster, f"exit {code}").wait(timeout=30) == code
    assert ("scontrol requeue 7" in notes(cluster)) is requeued
    given = notes(cluster)
    assert given[given.index("[pretrain]") :][:4] == ["[pretrain]", "[a cache/luna]", "[--batch]", "[64]"]
    assert "[--rdzv-endpoint=node1:29400]" in notes(cluster)


def test_slurms_warning_reaches_the_training_which_saves_and_is_requeued(cluster):
    # torchrun ignores the signal by itself; its processes listen, and it ends with 1 when they end with 75
    job = submit(cluster, LISTENS)
    for _ in range(200):
        if (cluster / "notes.ready").exists():
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 75
    assert "scancel --signal=USR1 7" in notes(cluster)
    assert "saved" in notes(cluster)
    assert "scontrol requeue 7" in notes(cluster)


LISTENS = (
    'exec python3 -c "import os,signal,sys,time; n=os.environ[\\"NOTES\\"]\n'
    "def save(*a):\n"
    '    open(n, \\"a\\").write(\\"saved\\\\n\\"); sys.exit(1)\n'
    "signal.signal(signal.SIGUSR1, save)\n"
    'open(n + \\".ready\\", \\"w\\").close()\n'
    'time.sleep(25)"'
)


def test_a_failure_that_nobody_asked_for_is_not_tried_again(cluster):
    assert submit(cluster, "exit 1").wait(timeout=30) == 1
    assert not [line for line in notes(cluster) if line.startswith("scontrol requeue")]


# ------------------------------------------------------------------------------------------------------------- arrays

TABLE = ["table", "my spec.yaml", "--device", "cpu"]


def test_an_array_deals_a_table_out_to_its_tasks():
    made = slurm(TABLE, Job(tasks=4, gpus=1)).text
    for line in ("--array=1-4", "--nodes=1", "--gpus-per-node=1", "--output=%x-%A_%a.log", "--requeue"):
        assert f"#SBATCH {line}\n" in made
    assert "torchrun" not in made
    assert "--gpus-per-node" not in slurm(["prep", "luna"], Job(tasks=16)).text


@pytest.mark.parametrize(
    ("command", "values", "said"),
    [
        (TRAINING, {"tasks": 4}, "--tasks is for prep and table"),
        (TABLE, {"nodes": 2}, "dealt out by --tasks, not --nodes"),
        ([*TABLE, "--shard", "1/4"], {"tasks": 4}, "leave it out and say how many with --tasks"),
        ([*TABLE, "--shard=1/4"], {"tasks": 4}, "leave it out and say how many with --tasks"),
    ],
)
def test_a_job_that_does_not_fit_the_command_is_refused(command, values, said):
    with pytest.raises(ConfigError, match=said):
        slurm(command, Job(**values))


def run_task(cluster, do):
    """Task 3 of an array of 4, its `python` doing what `do` says."""
    (cluster / "python").write_text('#!/bin/bash\nfor a; do echo "[$a]"; done >> "$NOTES"; eval "$DO"\n')
    (cluster / "python").chmod(0o755)
    slurm(TABLE, Job(tasks=4), cluster / "array.sh")
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "NOTES": str(cluster / "notes"), "DO": do}
    return subprocess.Popen(
        ["bash", str(cluster / "array.sh")], env={**os.environ, **task, "PATH": f"{cluster}:{os.environ['PATH']}"}
    )


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (4, False), (75, True)])
def test_a_task_has_its_share_and_goes_back_by_its_own_number(cluster, code, requeued):
    assert run_task(cluster, f"exit {code}").wait(timeout=30) == code
    assert notes(cluster)[:7] == ["[-m]", "[pcrl_cli]", "[table]", "[my spec.yaml]", "[--device]", "[cpu]", "[--shard]"]
    assert notes(cluster)[7] == "[3/4]"
    assert ("scontrol requeue 7_3" in notes(cluster)) is requeued


def test_a_task_that_is_warned_is_stopped_and_requeued(cluster):
    task = run_task(cluster, LISTENS.replace("SIGUSR1", "SIGTERM"))
    for _ in range(200):
        if (cluster / "notes.ready").exists():
            break
        time.sleep(0.05)
    task.send_signal(signal.SIGUSR1)
    assert task.wait(timeout=30) == 75
    assert "saved" in notes(cluster)
    assert "scontrol requeue 7_3" in notes(cluster)
