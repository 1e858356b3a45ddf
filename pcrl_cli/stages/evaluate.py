"""A fine-tuned run to numbers: metrics with intervals, a row a case, a report; what they are is the task's affair."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pcrl_cli.core import files
from pcrl_cli.core.config import validate as validate_settings
from pcrl_cli.core.contract import Contract
from pcrl_cli.core.errors import ConfigError, ThresholdError, UsageError
from pcrl_cli.core.learner import Task
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.data.cache import Cache
from pcrl_cli.data.pictures import preparation
from pcrl_cli.engine.inference import Inference, ready
from pcrl_cli.engine.run import Run, unseal
from pcrl_cli.engine.tf32 import tf32
from pcrl_cli.engine.trainer import Device, Precision, resolve_device
from pcrl_cli.networks.transfer import read_weights
from pcrl_cli.stages import patients, training
from pcrl_cli.stages.finetune import FinetuneSettings, recorded_task
from pcrl_cli.stages.report import EVALUATION, evaluation_report
from pcrl_cli.stages.results import Result
from pcrl_cli.stages.weights import unfinished
from pcrl_cli.stages.workflows import Estimate, SplitName, Work, workflow_of
from pcrl_cli.stages.workspace import Workspace
from pcrl_cli.tasks import TASKS

FEW = 10


class EvaluateResult(Result):
    """`metrics`: by name; `headline`: the one that joint tables show; `counts`: of what was scored."""

    schema_name: ClassVar[str] = EVALUATION
    run: Path
    task: str
    cache: Path
    split: str
    start: str
    ratio: float
    patients: int
    counts: dict[str, int]
    metrics: dict[str, Estimate]
    headline: str
    details: dict[str, Any]
    overlap: int
    notes: list[str]
    predictions: Path
    report: Path
    evaluation: Path


def evaluate(
    run: Path | None = None,
    cache: Path | None = None,
    *,
    task: str | None = None,
    split: SplitName = "test",
    options: Mapping[str, Any] | None = None,
    fail_under: Mapping[str, float] | None = None,
    workspace: Workspace | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: bool = False,
    listener: Listener | None = None,
) -> EvaluateResult:
    """Scores a fine-tuned run on a part of its cache, or of another one (an external test).

    Args:
        run: defaults to the newest finished run of the task. cache: defaults to the one it was trained on.
        options: of the task's workflow, such as `all_candidates`, by which candidates that are not cached are read
            from the raw scans, or `set`, settings of inference: {"learner": {"tta": True}}.
        precision: auto is fp32 on every device, so that the numbers are the same again and those that chose the epoch.
        compile: torch.compile of the network.
        fail_under: least values, of which only the names are looked at here: see `require`.

    Raises:
        UsageError: an unknown option or metric.
        ConfigError: the run saw patients of the part, which would be a leak; the cache's images are not prepared as
            those that the run learned from.
    """
    listener, workspace, where = listener or Listener(), workspace or Workspace(), resolve_device(device)
    if run is None and task is None:
        raise UsageError(
            f"say which: `pcrl evaluate --task {'|'.join(TASKS)}` for the newest run of the task, or `pcrl evaluate RUN`"
        )
    folder = run or workspace.find_run("finetune", task)
    opened_run = Run.load(folder)
    settings = settings_of(opened_run, folder, task)
    own = _own_cache(opened_run, needed=cache is None)
    opened = training.open_verified(cache or own, workspace.verified)
    module = find("task", settings.task, TASKS)
    training.require_group(opened, module.GROUP, f"task {settings.task}")
    external = opened.path.resolve() != own
    same = training.manifest_digest(opened) == opened_run.record["cache_fingerprint"]
    contract = read_weights(opened_run.weights_path()).contract
    require_alike(opened_run, contract, opened)
    notes = _leaks(contract, opened, split, settings, external and not same) + _differences(contract, opened)
    notes += unfinished(folder) + _few(opened, split)
    if not external and not same:
        notes.append(f"{own} has changed since the run was trained on it")
    how = Inference.of(precision, compile)
    workflow, given = workflow_of(module), _options(module, settings.task, options or {})
    out = folder_of(folder, settings.task, split, options or {}, opened.path if external else None, how.mark)
    learned = tuple(opened_run.record.get("prepared", {}).get("classes") or ())
    work = Work(module, settings, opened, where, listener, out, learned=learned)
    check_thresholds(fail_under or {}, workflow.metric_names(work))
    model = ready(load_task(opened_run, settings, opened), where, how)
    with tf32(False):  # the same numbers on every card
        scores = workflow.score(work, model, split, given)
    result = EvaluateResult(
        run=folder,
        task=settings.task,
        cache=opened.path,
        split=split,
        start=opened_run.record["start"],
        ratio=settings.ratio,
        patients=len(opened.patients(split)),
        counts=scores.counts,
        metrics=scores.metrics,
        headline=scores.headline,
        details=scores.details,
        overlap=sum(v for k, v in opened_run.record["overlap"].items() if k in ("val", "test")),
        notes=notes + how.notes + scores.notes,
        predictions=out / "predictions.csv",
        report=out / "report.html",
        evaluation=out / "evaluation.json",
    )
    with files.blame_machine(out):
        out.mkdir(parents=True, exist_ok=True)
    files.write_atomic(result.predictions, scores.csv)
    files.write_json(result.evaluation, result.to_json())
    evaluation_report(result, scores.sections, module.METRIC)
    for note in result.notes:
        listener.warn(note)
    return result


def _options(module: Any, task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given.

    Raises:
        UsageError: one that this task's workflow does not know.
    """
    known = workflow_of(module).OPTIONS
    given = {name: value for name, value in options.items() if value not in (None, False, {})}
    for name in given:
        if name not in known:
            raise UsageError(f"--{name.replace('_', '-')} is not for the task {task}; leave it out")
    return given


def folder_of(
    run: Path, task: str, split: SplitName, options: Mapping[str, Any], external: Path | None = None, mark: str = ""
) -> Path:
    """Where the evaluation of a run with these options is.

    external: the cache, if that is not the run's own. mark: see `Inference`.

    Raises:
        UsageError: an option that this task's workflow does not know.
    """
    given = _options(find("task", task, TASKS), task, options)
    name = split if external is None else f"{split}-{external.name}"
    return (
        run
        / "evaluation"
        / "-".join([name, *(_mark(key, value) for key, value in given.items()), *([mark] if mark else [])])
    )


def _mark(option: str, value: Any) -> str:
    """Of an option in the name of the evaluation's folder."""
    return option.split("_")[0] if value is True else f"{option}-{files.fingerprint(value)[:6]}"


def settings_of(run: Run, folder: Path, task: str | None) -> FinetuneSettings:
    """A fine-tuned run's settings.

    Raises:
        ConfigError: the run is of another verb or task.
    """
    if run.record["verb"] != "finetune":
        raise ConfigError(
            f"{folder} is a {run.record['verb']} run, which predicts nothing; give a run of `pcrl finetune`"
        )
    found = run.record["settings"]["task"]
    if task is not None and task != found:
        raise ConfigError(f"{folder} is of task {found}, not {task}; leave --task out or give another run")
    module = find("task", found, TASKS)
    return validate_settings(FinetuneSettings[module.Config], run.record["settings"])  # type: ignore[name-defined]


def load_task(run: Run, settings: FinetuneSettings, cache: Cache) -> Task:
    """The run's best or last weights, hash checked."""
    checkpoint = unseal(run.weights_path().parent)
    stored = training.stored(cache)
    learned = run.record.get("prepared", {}).get("classes") or stored.classes  # another cache may have other labels
    regions = training.regions_in(run.record.get("prepared", {})) or stored.regions
    stored = replace(stored, classes=tuple(learned), regions=regions)
    model = recorded_task(run, settings, stored)
    model.load_state_dict(checkpoint.model)
    return model


def _own_cache(run: Run, needed: bool) -> Path:
    """The cache that the run was trained on; of its name in the same workspace where that was copied or renamed.

    Raises:
        ConfigError: training never began, so there is nothing to evaluate; or the cache is needed and gone.
    """
    if "cache" not in run.record or not run.checkpoints:
        raise ConfigError(f"{run.folder} holds no weights yet; run its `pcrl finetune` command again to go on")
    path = Path(run.record["cache"])
    moved = run.folder.resolve().parent.parent / "cache" / path.name
    if not path.exists() and moved.exists():
        return moved
    if needed and not path.exists():
        raise ConfigError(
            f"the cache of {run.folder}, {path}, is gone; give its new place: pcrl evaluate {run.folder} CACHE"
        )
    return path


def _differences(contract: Contract, cache: Cache) -> list[str]:
    """Where the cache's images differ from what the run was trained on."""
    found = contract.domain.differences(training.domain_of(cache))
    return [f"{key}: the run was trained on {saw}, {cache.path} has {now}" for key, saw, now in found]


def require_alike(run: Run, contract: Contract, cache: Cache) -> None:
    """Refuses images that mean something else to the network than those that it learned from.

    Raises:
        ConfigError: another number of axes or channels, other channels or another order of them; scans with masks of another
            spacing, window or normalisation; labelled scans of another shape or fit.
    """
    dim, own = cache.manifest["dim"], contract.architecture.dim
    if dim != own:
        raise ConfigError(f"{cache.path} is a {dim}D cache, and the run was trained on {own}D images; give another")
    there, saw = cache.manifest["channels"], contract.domain.channels
    if there != saw:
        raise ConfigError(
            f"{cache.path} holds images of {there} channels, and the run was trained on {saw}; give a cache of {saw}"
        )
    learned, found = run.record.get("prepared", {}), training.prepared_of(cache)
    saw_names, names = learned.get("channel_names"), found.get("channel_names")
    if saw_names and saw_names != names:
        raise ConfigError(
            f"the channels of {cache.path} are {', '.join(names or ['not named'])}, and the run was trained on "
            f"{', '.join(saw_names)}; prepare a cache of these"
        )
    if learned.get("settings", {}).get("whole"):
        _require_fitted_alike(learned["settings"], found["settings"], cache)
    if "volumes" in cache.groups and "prepare" in learned.get("settings", {}):
        _require_prepared_alike(learned["settings"]["prepare"], found["settings"]["prepare"], cache)


def _require_fitted_alike(learned: Mapping[str, Any], found: Mapping[str, Any], cache: Cache) -> None:
    """Scans of another shape, or cut where others were resized, show the network things of another size."""
    for key in ("shape", "fit"):
        saw, now = (settings.get("whole", {}).get(key) for settings in (learned, found))
        if saw != now:
            raise ConfigError(
                f"{cache.path} was prepared with whole.{key} {now}, and the run was trained on {saw}; prepare the scans again "
                f"with --set whole.{key}={str(saw).replace(' ', '')}"
            )


def _require_prepared_alike(learned: Mapping[str, Any], found: Mapping[str, Any], cache: Cache) -> None:
    saw, now = (preparation(values).of_images for values in (learned, found))
    keys = sorted(key for key in saw.keys() | now.keys() if saw.get(key) != now.get(key))
    if keys:
        said = ", ".join(f"prepare.{key} {now.get(key)} instead of {saw.get(key)}" for key in keys)
        raise ConfigError(
            f"{cache.path} was prepared otherwise than what the run was trained on ({said}); prepare the scans again with "
            "the run's settings"
        )


def _leaks(contract: Contract, cache: Cache, split: SplitName, settings: FinetuneSettings, external: bool) -> list[str]:
    """Patients of the part that pre-training or fine-tuning saw; the rule of `finetune`, for external tests too.

    external: the cache is not the run's own, where the parts `train` and `all` hold its patients by definition, and
    `val` those that chose the epoch.

    Raises:
        ConfigError: there are some, and the run was not made with --allow-overlap.
    """
    known, names = contract.patients, cache.split.part(split)
    if split in ("train", "all") and not external:
        return [
            f"the {split} part holds patients that the run was trained on: these numbers say nothing about new patients"
        ]
    chosen = ["the epoch was chosen by this part, so its numbers are optimistic"]
    notes = chosen if split == "val" and not external and known.selected else []
    notes = [*notes, patients.UNKNOWN] if known.unknown else notes
    seen = patients.seen(known, cache, names, selected_too=external)
    if not seen:
        return notes
    text = (
        f"{len(seen)} of {len(names)} patients of the {split} part of {cache.path} were trained on, or chose the epoch"
    )
    if settings.allow_overlap:
        return [*notes, f"{text}: a leak, allowed by --allow-overlap"]
    raise ConfigError(
        f"{text}, so the score would be a leak; evaluate on another part, or fine-tune with --allow-overlap"
    )


def _few(cache: Cache, split: SplitName) -> list[str]:
    """A bootstrap over a handful of patients has too few ways to be drawn."""
    n = len(cache.patients(split))
    return (
        [f"{n} patients: the interval by patient says little, and no comparison with the paper does"] if n < FEW else []
    )


def check_thresholds(fail_under: Mapping[str, float], known: Sequence[str]) -> None:
    """Refuses an unknown metric, before any work is done.

    Raises:
        UsageError: it is not among the known.
    """
    for name in fail_under:
        if name not in known:
            raise UsageError(f"--fail-under {name}: the metrics of this task are {', '.join(known)}")


def require(result: EvaluateResult, fail_under: Mapping[str, float]) -> None:
    """Holds a written result against least values.

    Args:
        fail_under: metric -> least value.

    Raises:
        UsageError: an unknown metric. ThresholdError: a metric is under its threshold, or null.
    """
    check_thresholds(fail_under, list(result.metrics))
    for name, least in fail_under.items():
        found = result.metrics[name]
        if found.value is None:
            raise ThresholdError(
                f"{name} is null ({found.reason}), so --fail-under {name}={least:g} is not met; "
                f"results are in {result.evaluation}"
            )
        if found.value < least:
            raise ThresholdError(f"{name} is {found.value:.4f}, under {least:g}; results are in {result.evaluation}")
