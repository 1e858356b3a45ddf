"""A captured step that was not finite, shown again."""

import re
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel

from pcrl_cli.core.config import validate
from pcrl_cli.core.errors import ConfigError, IntegrityError
from pcrl_cli.core.learner import Learner
from pcrl_cli.core.names import find
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.engine.layout import arrange
from pcrl_cli.engine.replay import Replayed, replay_step
from pcrl_cli.engine.run import Run, unseal, unseal_capture
from pcrl_cli.engine.trainer import Device, TrainConfig, resolve_device, resolve_precision
from pcrl_cli.methods import METHODS
from pcrl_cli.methods.transvw import Describer
from pcrl_cli.stages.discover import DiscoverSettings
from pcrl_cli.stages.finetune import FinetuneSettings, recorded_task
from pcrl_cli.stages.pretrain import PretrainSettings, build_learner
from pcrl_cli.stages.results import Result
from pcrl_cli.stages.training import stored
from pcrl_cli.tasks import TASKS

_CAPTURE = re.compile(r"step_(\d+)(?:_rank(\d+))?")


class Found(BaseModel):
    """See `engine.replay.Finding`."""

    kind: str
    name: str
    bad: int
    of: int


class ReplayResult(Result):
    """terms, gradient_norm: of this replay, as text, since JSON knows no NaN. captured: the terms when it happened, means
    over the ranks. first: what was the first not to be finite; None where everything is finite here. shown: whether
    anything was.
    """

    schema_name: ClassVar[str] = "pcrl.replay/1"
    capture: Path
    run: Path
    step: int
    rank: int
    device: str
    precision: str
    captured: dict[str, str]
    terms: dict[str, str]
    gradient_norm: str
    shown: bool
    first: str | None
    findings: list[Found]
    notes: list[str]


def replay(capture: Path, cache: Path | None = None, *, device: Device = "auto") -> ReplayResult:
    """Computes the captured step's views, losses and gradients again from the run's checkpoint of that step.

    Args:
        capture: RUN/captures/step_N, or step_N_rankR of another rank.
        cache: where the run's cache is now, if not where it was; only what its manifest says is read.

    Raises:
        ConfigError: it is no capture, or the run has no checkpoint of that step any more.
        IntegrityError: the capture or the checkpoint is damaged.
    """
    match = _CAPTURE.fullmatch(capture.resolve().name)
    if match is None or not (capture / "state.json").is_file():
        raise ConfigError(f"{capture} is no capture; give a folder RUN/captures/step_N, which the failing run named")
    run = Run.load(capture.resolve().parent.parent)
    batch, state = unseal_capture(capture)
    weights = run.folder / "checkpoints" / f"step_{int(match[1]):06d}"
    if not weights.is_dir():
        raise ConfigError(
            f"{run.folder} has no checkpoint of step {int(match[1])} any more, so the step can't be shown"
        )
    where = resolve_device(device)
    learner, train = _learner(run, cache)
    learner.load_state_dict(unseal(weights).model)
    learner = arrange(learner, where)
    precision = resolve_precision(train.precision, where)
    on_device = {name: value.to(where) for name, value in batch.items()}
    done = replay_step(learner, on_device, state["seed"], state["step"], state["steps"], precision)
    return _result(capture, run, state["step"], int(match[2] or 0), state["terms"], done, where.type, precision)


def _learner(run: Run, cache: Path | None) -> tuple[Learner, TrainConfig]:
    """The run's Learner as it was built, and its training settings."""
    verb, values = run.record["verb"], run.record["settings"]
    opened = _cache(run, cache)
    if verb == "pretrain":
        config = find("method", values["method"], METHODS).Config
        settings = validate(PretrainSettings[config], values)  # type: ignore[valid-type]
        return build_learner(settings, opened), settings.train
    if verb == "discover":
        words = validate(DiscoverSettings, values)
        return Describer(words.width, words.thumbnails.shape, stored(opened)), words.train
    config = find("task", values["task"], TASKS).Config
    tuning = validate(FinetuneSettings[config], values)  # type: ignore[valid-type]
    return recorded_task(run, tuning, stored(opened)), tuning.train


def _cache(run: Run, cache: Path | None) -> Cache:
    path = cache or Path(run.record.get("cache", ""))
    try:
        return open_cache(path)
    except (ConfigError, IntegrityError) as error:
        if cache is not None:
            raise
        raise ConfigError(
            f"the cache of {run.folder} can't be opened ({error}); say where it is with --cache"
        ) from None


def _result(
    capture: Path, run: Run, step: int, rank: int, captured: dict[str, str], done: Replayed, device: str, precision: str
) -> ReplayResult:
    several = len(done.terms) > 1
    terms = {
        (f"{player}/{name}" if several else name): repr(value)
        for player, values in done.terms.items()
        for name, value in values.items()
    }
    notes = []
    if not done.findings:
        notes.append(
            "everything is finite here: look at the other ranks' captures, or replay it on the kind of device it "
            "happened on"
        )
    return ReplayResult(
        capture=capture,
        run=run.folder,
        step=step,
        rank=rank,
        device=device,
        precision=precision,
        captured=captured,
        terms=terms,
        gradient_norm=", ".join(repr(value) for value in done.gradient_norm.values()),
        shown=bool(done.findings),
        first=str(done.first) if done.first else None,
        findings=[Found(kind=f.kind, name=f.name, bad=f.bad, of=f.of) for f in done.findings],
        notes=notes,
    )
