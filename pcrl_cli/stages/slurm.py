"""A batch file for Slurm: a training on some nodes, or a preparation or a table dealt out to the tasks of an array.

Either puts itself back in the queue until it is finished.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from pcrl_cli.core.config import Settings
from pcrl_cli.core.errors import ConfigError, Preempted
from pcrl_cli.core.files import write_atomic
from pcrl_cli.stages.results import Result

VERBS = ("pretrain", "finetune")
"""What trains, and so what several processes and a continuation are for."""
DEALT = ("prep", "table")
"""What takes --shard I/N: a task of an array each."""

PORT = 29400


class Job(Settings):
    """What is asked of Slurm."""

    nodes: int = Field(1, ge=1)
    gpus: int = Field(1, ge=1, description="a node")
    hours: float = Field(24, gt=0, description="after which Slurm ends the job; it is told `warn_seconds` before")
    warn_seconds: int = Field(300, ge=60, description="enough for a step and a checkpoint")
    cpus_a_gpu: int = Field(8, ge=1)
    tasks: int | None = Field(None, ge=1, description="of an array; for what is dealt out, prep and table")
    memory_gb: int | None = Field(None, ge=1, description="a node; none: what the partition gives")
    name: str = "pcrl"
    partition: str | None = None
    account: str | None = None
    setup: str = Field("", description="shell lines before the start, e.g. `source .venv/bin/activate`")


class SlurmResult(Result):
    schema_name: ClassVar[str] = "pcrl.slurm/1"
    path: Path | None
    text: str


def slurm(command: Sequence[str], job: Job | None = None, out: Path | None = None) -> SlurmResult:
    """The batch file that runs `pcrl COMMAND...` under torchrun on every node of a job, or in every task of an array.

    Args:
        command: a verb and its options, e.g. ["pretrain", "cache/luna", "--out", "runs/a"] or ["table", "spec.yaml"].
        out: where it is written; nowhere if None.

    Raises:
        ConfigError: the command neither trains nor can be dealt out, the job does not fit it, or a text would break out
            of its line. MachineError: `out` cannot be written.
    """
    job = job or Job()
    if not command or command[0] not in VERBS + DEALT:
        raise ConfigError(
            f"`pcrl {shlex.join(command)}` neither trains nor can be dealt out; give one of {', '.join(VERBS + DEALT)} with "
            "its options after --"
        )
    dealt = command[0] in DEALT
    _check_fit(command, job, dealt)
    for name in ("name", "partition", "account"):
        value = getattr(job, name)
        if value is not None and (not value or any(c.isspace() for c in value)):
            raise ConfigError(f"{name} {value!r} holds white space or nothing; Slurm wants one word")
    text = array_file(command, job) if dealt else batch_file(command, job)
    if out is not None:
        write_atomic(out, text.encode())
    return SlurmResult(path=out, text=text)


def _check_fit(command: Sequence[str], job: Job, dealt: bool) -> None:
    """Raises:
    ConfigError: an array of what is not dealt out, several nodes for what is, or a share that the array would give.
    """
    if job.tasks is not None and not dealt:
        raise ConfigError(f"--tasks is for {' and '.join(DEALT)}; `pcrl {command[0]}` takes --nodes and --gpus")
    if dealt and job.nodes > 1:
        raise ConfigError(f"`pcrl {command[0]}` is dealt out by --tasks, not --nodes; leave --nodes out")
    if dealt and any(word.split("=")[0] == "--shard" for word in command):
        raise ConfigError("the array gives every task its --shard; leave it out and say how many with --tasks")


def batch_file(command: Sequence[str], job: Job) -> str:
    """One srun task a node; torchrun starts a process a GPU and finds the other nodes by the first one's name.

    Slurm sends SIGUSR1 to the batch shell (`B:`) before the time is over, and the shell lets Slurm send it to every
    process of the job's step. They save and leave with 75, and the job goes back into the queue under its own number.
    """
    start = TRAINING.format(nodes=job.nodes, gpus=job.gpus, port=PORT, command=shlex.join(command))
    return _framed(
        job,
        own=[f"--nodes={job.nodes}", f"--gpus-per-node={job.gpus}", "--output=%x-%j.log"],
        before=NODES,
        ask='scancel --signal=USR1 "$SLURM_JOB_ID"',
        start=start,
        number="$SLURM_JOB_ID",
    )


def array_file(command: Sequence[str], job: Job) -> str:
    """One task a share of the work, all in one folder; --shard is 1/N .. N/N.

    A task that is warned before its time is over stops what it does, and goes back into the queue under its own number.
    """
    gpus = [] if command[0] == "prep" else [f"--gpus-per-node={job.gpus}"]
    tasks = job.tasks or 1
    return _framed(
        job,
        own=[f"--array=1-{tasks}", "--nodes=1", *gpus, "--output=%x-%A_%a.log"],
        before="",
        ask='kill -TERM "$work" 2>/dev/null',
        start=f'python -m pcrl_cli {shlex.join(command)} --shard "$SLURM_ARRAY_TASK_ID/{tasks}"',
        number="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}",
    )


def _framed(job: Job, own: Sequence[str], before: str, ask: str, start: str, number: str) -> str:
    """The batch file of a job or of an array.

    own: options of sbatch. before: lines before the start. ask: what tells the work to save. number: what is requeued.
    """
    return FRAME.format(
        head=_head(job, own),
        setup=f"{job.setup.strip()}\n" if job.setup.strip() else "",
        threads=job.cpus_a_gpu,
        before=before,
        ask=ask,
        start=start,
        number=number,
        stopped=Preempted.exit_code,
    )


def _head(job: Job, own: Sequence[str]) -> str:
    """The lines that sbatch reads. own: of this kind of file."""
    minutes = max(1, round(job.hours * 60))
    asked = [
        f"--job-name={job.name}",
        *own,
        "--ntasks-per-node=1",
        f"--cpus-per-task={job.gpus * job.cpus_a_gpu}",
        f"--time={minutes // 60:02d}:{minutes % 60:02d}:00",
        f"--signal=B:USR1@{job.warn_seconds}",
        "--requeue",
        "--open-mode=append",
    ]
    asked += [f"--mem={job.memory_gb}G"] if job.memory_gb else []
    asked += [f"--partition={job.partition}"] if job.partition else []
    asked += [f"--account={job.account}"] if job.account else []
    return "\n".join(f"#SBATCH {line}" for line in asked)


FRAME = """#!/bin/bash
{head}
# written by `pcrl slurm`; submit with: sbatch THIS_FILE

{setup}export OMP_NUM_THREADS={threads}
{before}
# before the time is over, or when the job is to make room: what is being done is saved, or stopped, and goes on later
asked=0
save() {{
    asked=1
    {ask}
}}
trap save USR1 TERM

{start} &
work=$!
while true; do
    wait "$work"
    code=$?
    kill -0 "$work" 2>/dev/null || break  # a signal ended the wait, and the work goes on
done

# after a request to save any failure means: go on later
if [ "$code" -eq {stopped} ] || {{ [ "$asked" -eq 1 ] && [ "$code" -ne 0 ]; }}; then
    scontrol requeue "{number}"
    exit {stopped}
fi
exit "$code"
"""

NODES = """\
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
"""

TRAINING = """\
# torchrun would die of the signal; what is ignored here is ignored there, and pcrl's processes listen for themselves;
# it ends with 1 whatever they ended with
srun --kill-on-bad-exit=0 bash -c 'trap "" USR1; exec torchrun --nnodes={nodes} --nproc-per-node={gpus} --max-restarts=0 \\
    --rdzv-backend=c10d --rdzv-id="$0" --rdzv-endpoint="$1:{port}" -m pcrl_cli "${{@:2}}"' \\
    "$id" "$first" {command}"""
