"""A cache with labels, and weights or none, to a task model."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import BaseModel, Field

from pcrl_cli.core.config import Layer, Settings, build, picked
from pcrl_cli.core.config import recipe as recipe_values
from pcrl_cli.core.contract import Architecture, Patients
from pcrl_cli.core.errors import ConfigError, UsageError, blame_memory
from pcrl_cli.core.learner import Learner, Stored, Task
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.data.ahead import CacheOn
from pcrl_cli.data.cache import Cache
from pcrl_cli.engine.distributed import World
from pcrl_cli.engine.run import Run
from pcrl_cli.engine.trainer import Device, TrainConfig, Trainer, require_trainable, resolve_device
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.networks.segment import Decoder, decoder_in
from pcrl_cli.networks.transfer import Stem, Weights, load_decoder, load_encoder
from pcrl_cli.stages import patients, training
from pcrl_cli.stages.report import finetune_report
from pcrl_cli.stages.results import Plan, Result
from pcrl_cli.stages.weights import initial, weights_of
from pcrl_cli.stages.workflows import Work, workflow_of
from pcrl_cli.stages.workspace import Workspace
from pcrl_cli.tasks import TASKS
from pcrl_cli.tasks.base import Segmentation

TaskConfig = TypeVar("TaskConfig", bound=BaseModel)
FROM_SCRATCH = {
    3: Architecture(dim=3, encoder="unet3d", width=32, poolings=5),
    2: Architecture(dim=2, encoder="resnet18", width=64, poolings=5),
}
"""The encoder where there are no weights, by dimension; width and depth can be set."""


class FinetuneSettings(Settings, Generic[TaskConfig]):
    """What decides a task model's weights, besides the cache and the weights it starts from."""

    task: str
    recipe: str
    learner: TaskConfig
    train: TrainConfig
    ratio: float = Field(1.0, gt=0, le=1, description="share of the training patients whose labels are used")
    width: int | None = Field(None, ge=1, description="from the weights; without weights the paper's")
    poolings: int | None = Field(None, ge=1, description="from the weights; without weights 5")
    weights: str | None = Field(None, description="run or file to start from; none: from scratch")
    init: str | None = Field(None, description="imagenet=FILE: a local torchvision state dict to start from, 2D")
    stem: Stem = Field(
        "divide", description="a first convolution of one channel over c: divided by c, or only repeated"
    )
    transfer: Literal["encoder", "encoder_decoder"] = Field(
        "encoder",
        description="what moves from the weights; with the decoder a segmentation is the whole pre-trained U-Net",
    )
    allow_overlap: bool = Field(False, description="accept weights that saw validation or test patients")


class FinetuneResult(Result):
    """`start`: the weights file, or `scratch`. `kept`: best (by validation) or last, and why."""

    schema_name: ClassVar[str] = "pcrl.finetune/1"
    run: Path
    task: str
    start: str
    ratio: float
    labelled_patients: int
    labels: dict[str, int]
    """What was learned from, such as how many nodules."""
    kept: str
    metric: str
    best_validation: float | None
    """Of the metric by which the epoch was chosen."""
    overlap: dict[str, int]
    notes: list[str]
    transfer: dict[str, Any] | None
    weights: Path
    report: Path
    outcome: dict[str, Any]


def finetune_settings(
    task: str | None = None, recipe: str | None = None, layers: Sequence[Layer] = ()
) -> tuple[FinetuneSettings, dict[str, str]]:
    """The resolved settings of `pcrl finetune`, and where each value comes from.

    Raises:
        UsageError: no task is named. ConfigError: a setting does not exist or does not fit.
    """
    task, recipe = task or picked(layers, "task", None), recipe or picked(layers, "recipe", "paper")
    if task is None:
        raise UsageError(f"say which task: --task {', '.join(TASKS)}")
    module = find("task", task, TASKS)
    base = {"learner": {}} | recipe_values(recipe, "finetune", task)
    chosen = {"task": task, "recipe": recipe}
    model = FinetuneSettings[module.Config]  # type: ignore[name-defined]
    return build(model, [(f"recipe {recipe}", base), *layers, ("choice", chosen)])


def finetune(
    cache: Path | None = None,
    *,
    task: str | None = None,
    weights: Path | None = None,
    init: str | None = None,
    recipe: str | None = None,
    layers: Sequence[Layer] = (),
    out: Path | None = None,
    workspace: Workspace | None = None,
    device: Device = "auto",
    cache_on: CacheOn = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> FinetuneResult | Plan:
    """Trains a task from pre-trained weights, or from scratch (TS) without; everything else is the same in both.

    Args:
        cache: defaults to the workspace's only cache with labels for the task.
        weights: a run folder or a weights file; its contract decides the architecture.
        init: imagenet=FILE, in place of weights.

    Raises:
        ConfigError: the weights are of another architecture, or saw patients of the validation or test part.
    """
    listener, workspace = listener or Listener(), workspace or Workspace()
    settings, origin = finetune_settings(task, recipe, layers)
    if weights is not None:
        settings = settings.model_copy(update={"weights": str(weights.resolve())})
    if init is not None:
        settings = settings.model_copy(update={"init": init})
    if settings.init and settings.weights:
        raise UsageError("--weights and --init both say what to start from; give one of them")
    where = resolve_device(device)
    with training.joined(where) as world:
        training.note_begin(world, listener, settings, origin, where)
        return _finetune(settings, cache, out, workspace, where, cache_on, overwrite, dry_run, world, listener)


def _finetune(
    settings: FinetuneSettings,
    cache: Path | None,
    out: Path | None,
    workspace: Workspace,
    device: torch.device,
    cache_on: CacheOn,
    overwrite: bool,
    dry_run: bool,
    world: World,
    listener: Listener,
) -> FinetuneResult | Plan:
    """One rank's part. What can be refused is refused before the run's folder is made."""
    listener = listener if world.talks else Listener()
    module = find("task", settings.task, TASKS)
    path = cache or workspace.find_cache(module.DIM, module.GROUP, getattr(module, "DATA_SET", settings.task))
    opened = training.open_by_all(world, path, workspace.verified, dry_run)
    training.require_group(opened, module.GROUP, f"task {settings.task}")
    training.note_partial(opened, listener)
    copies = training.note_copies(opened, listener)
    loaded = _start(settings)
    architecture_of(settings, loaded, training.dim_of(module, opened))
    start = loaded.contract.model_dump_json() if loaded else "scratch"
    decoder = decoder_of(settings, loaded)
    inputs = [training.manifest_digest(opened), start, loaded.digest if loaded else ""]
    inputs += [loaded.decoder_digest] if loaded and decoder else []
    found = {"width": None, "poolings": None} if loaded else {}  # the weights' own, by now
    decisive = settings.model_copy(
        update={"weights": None, "init": None, **found}
    )  # their content decides, not their place
    fingerprint = training.run_fingerprint("finetune", decisive, *inputs)
    out = out or workspace.run("finetune", settings.task, fingerprint)
    overlap = check_overlap(loaded, opened, settings, listener)
    if dry_run:
        figures = {
            "labelled patients": len(opened.split.first(settings.ratio)),
            "start": settings.weights or settings.init or "scratch",
        }
        return training.plan("finetune", out, settings, fingerprint, figures)
    if not overwrite:
        done = training.already_done(world, out, "finetune", settings, fingerprint, FinetuneResult, listener)
        if done is not None:
            return done
    open_run = partial(training.open_run, out, "finetune", settings, fingerprint, overwrite)
    return _train(settings, opened, loaded, overlap, copies, open_run, out, device, cache_on, world, listener)


def _start(settings: FinetuneSettings) -> Weights | None:
    """What the settings name to start from."""
    if settings.init:
        return initial(settings.init)
    return weights_of(Path(settings.weights)) if settings.weights else None


def _train(
    settings: FinetuneSettings,
    cache: Cache,
    weights: Weights | None,
    overlap: dict[str, int],
    copies: list[str],
    open_run: training.OpenRun,
    out: Path,
    device: torch.device,
    cache_on: CacheOn,
    world: World,
    listener: Listener,
) -> FinetuneResult:
    module = find("task", settings.task, TASKS)
    require_trainable(settings.train, module.TASK)
    workflow, work = workflow_of(module), Work(module, settings, cache, device, listener, world=world)
    architecture = architecture_of(settings, weights, training.dim_of(module, cache))
    decoder = decoder_of(settings, weights)
    task = build_task(settings, architecture, training.stored(cache), decoder)
    report = load_encoder(task.encoder, weights, training.domain_of(cache), settings.stem) if weights else None
    if weights and decoder and report and isinstance(task, Segmentation):
        load_decoder(task.network, weights, report)
    if report:
        training.note_transfer(report, listener)
    labelled = [p for p in cache.split.first(settings.ratio) if p in set(cache.patients("train"))]
    counts = workflow.counts(work, labelled)
    for line in (doubts := workflow.doubts(work, labelled)):
        listener.warn(line)
    source = workflow.source(work, labelled, cache_on, world)
    training.try_views(task, source)
    run = training.open_together(world, open_run, out)
    if world.talks:
        run.write_record(
            cache=str(cache.path.resolve()),
            cache_fingerprint=training.manifest_digest(cache),
            prepared=training.prepared_of(cache),
            architecture=architecture.model_dump(),
            decoder=decoder.model_dump(mode="json") if decoder else None,
            start=str(weights.path) if weights else "scratch",
            weights_contract=weights.contract.model_dump(mode="json") if weights else None,
            overlap=overlap,
        )
    can_validate, kept = workflow.can_validate(work)
    metric = f"val_{module.METRIC}"
    selected = cache.split.val if can_validate else ()
    seen = _seen(weights, cache, labelled, selected, run.record["fingerprint"])
    contract = training.contract_of(cache, architecture, seen, f"task {settings.task}", settings.recipe, 0)

    def validate(learner: Learner, step: int) -> dict[str, float | None]:
        assert isinstance(learner, Task)
        return workflow.validate(work, learner)

    trainer = Trainer(
        task,
        source,
        settings.train,
        run,
        device=device,
        metadata=training.metadata_of(contract),
        world=world,
        validate=validate if can_validate else None,
        best=metric if can_validate else None,
        listener=listener,
    )
    found = " and ".join(f"{n} {name}" for name, n in counts.items())
    listener.say(
        f"task {settings.task} from {weights.path if weights else 'scratch'}: {len(labelled)} labelled patients, "
        f"{found}, {trainer.steps} steps of {settings.train.batch} on {device.type}, cache in {source.residency}"
    )
    if not can_validate:
        listener.warn(kept)
    with blame_memory(f"steps of {settings.train.batch} samples", device.type, _less(settings, architecture.dim)):
        outcome = trainer.fit()
    result = FinetuneResult(
        run=run.folder,
        task=settings.task,
        start=str(weights.path) if weights else "scratch",
        ratio=settings.ratio,
        labelled_patients=len(labelled),
        labels=counts,
        kept=kept,
        metric=module.METRIC,
        best_validation=outcome.best["value"] if outcome.best else None,
        overlap=overlap,
        notes=_notes(overlap) + copies + doubts,
        transfer=asdict(report) if report else None,
        weights=run.weights_path(),
        report=run.folder / "report.html",
        outcome=training.outcome_dict(outcome, run),
    )
    if world.talks:
        finetune_report(run, result)
        run.finish(result.model_dump(mode="json"))
    return result


def _less(settings: FinetuneSettings, dim: int) -> str:
    """What to set when a step does not fit."""
    half = f"--batch {max(2, settings.train.batch // 2)}"
    crop = getattr(settings.learner, "crop", None)
    if crop is None and hasattr(settings.learner, "crop_of"):
        crop = settings.learner.crop_of(dim)
    smaller = [max(16, n // 2) for n in crop or ()]
    return half if crop is None else f"{half} or --set learner.crop=[{','.join(map(str, smaller))}]"


def architecture_of(settings: FinetuneSettings, weights: Weights | None, dim: int) -> Architecture:
    """The weights' architecture; an explicit setting that differs is refused. Without weights, the settings'.

    Raises:
        ConfigError: width or depth was asked for and the weights have another, or another number of axes.
    """
    if weights is None:
        usual = FROM_SCRATCH[dim]
        asked = {"width": settings.width or usual.width, "poolings": settings.poolings or usual.poolings}
        return usual.model_copy(update=asked)
    found = weights.contract.architecture
    if found.dim != dim:
        raise ConfigError(
            f"{weights.path} is a {found.dim}D encoder, and the task {settings.task} is of {dim}D images; give other weights"
        )
    for name in ("width", "poolings"):
        asked = getattr(settings, name)
        if asked is not None and asked != getattr(found, name):
            raise ConfigError(
                f"{name} {asked} was asked for, but {weights.path} has {name} {getattr(found, name)}; leave it out, or give "
                "weights of that architecture"
            )
    return found


def decoder_of(settings: FinetuneSettings, weights: Weights | None) -> Decoder | None:
    """The decoder that moves with the encoder, where that is asked for.

    Raises:
        ConfigError: the task has no decoder, there are no weights, or they hold no decoder of a pre-training.
    """
    if settings.transfer == "encoder":
        return None
    if not issubclass(find("task", settings.task, TASKS).TASK, Segmentation):
        raise ConfigError(f"transfer=encoder_decoder is for segmentation; the task {settings.task} has no decoder")
    if weights is None:
        raise ConfigError("transfer=encoder_decoder needs --weights, the run of a pre-training")
    contract = weights.contract
    found = decoder_in(weights.decoder, contract.architecture, contract.domain.channels)
    if found is None:
        raise ConfigError(
            f"{weights.path} holds no decoder of a pre-training (an export has the encoder alone, and so have methods "
            "that restore nothing); give the run of pcrlv2, genesis, transvw, pcrlv1 or rubik, or leave transfer out"
        )
    return found


def recorded_task(run: Run, settings: FinetuneSettings, stored: Stored) -> Task:
    """A run's task as it was built, from what its record says."""
    decoder = run.record.get("decoder")
    architecture = Architecture.model_validate(run.record["architecture"])
    return build_task(settings, architecture, stored, Decoder.model_validate(decoder) if decoder else None)


def build_task(
    settings: FinetuneSettings, architecture: Architecture, stored: Stored, decoder: Decoder | None = None
) -> Task:
    """The task with weights drawn from the seed, without touching the global generator."""
    module = find("task", settings.task, TASKS)
    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        encoder = build_encoder(architecture, stored.channels)
        task = module.TASK(encoder, settings.learner, stored)
        if decoder is not None:
            task.build_whole(decoder)
        return task


def check_overlap(
    weights: Weights | None, cache: Cache, settings: FinetuneSettings, listener: Listener
) -> dict[str, int]:
    """How many patients of each part the weights saw.

    Raises:
        ConfigError: some of the validation or test part, which would be a leak, unless `allow_overlap`.
    """
    if weights is None:
        return {}
    parts = {"labelled": cache.split.first(settings.ratio), "val": cache.split.val, "test": cache.split.test}
    known = weights.contract.patients
    overlap = {name: len(patients.seen(known, cache, part)) for name, part in parts.items()}
    overlap |= {"unknown": 1} if known.unknown else {}  # imported weights: nobody wrote down whom they saw
    leaked = overlap["val"] + overlap["test"]
    if leaked and not settings.allow_overlap:
        raise ConfigError(
            f"{weights.path} was trained on {leaked} patients of the validation or test part of {cache.path}, so its score "
            "would be a leak; pre-train on this cache's split, or go on with --allow-overlap (the result will say so)"
        )
    for line in _notes(overlap):
        listener.warn(line)
    return overlap


def _notes(overlap: dict[str, int]) -> list[str]:
    notes = [patients.UNKNOWN] if overlap.get("unknown") else []
    if overlap.get("val") or overlap.get("test"):
        notes.append(
            f"the weights saw {overlap['val']} validation and {overlap['test']} test patients in pre-training: a leak, "
            "allowed by --allow-overlap"
        )
    if overlap.get("labelled"):
        notes.append(
            f"the weights saw {overlap['labelled']} of the labelled patients in pre-training (without labels): no leak, but "
            "not the semi-supervised protocol, for which pre-train with --set-aside"
        )
    return notes


def _seen(
    weights: Weights | None, cache: Cache, labelled: Sequence[str], selected: Sequence[str], salt: str
) -> Patients:
    """The labelled patients, those that choose the epoch, and those that the weights carry already."""
    if weights is None or not weights.contract.patients.salt:  # ImageNet has no patients
        return patients.hashed(cache, labelled, salt, selected)
    before = weights.contract.patients
    return before.joined(patients.hashed(cache, labelled, before.salt, selected))
