"""A cache of crop pairs to a pre-trained encoder."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import numpy as np
import torch
from pydantic import BaseModel, Field

from pcrl_cli.core.config import Layer, Settings, build, picked
from pcrl_cli.core.config import preset as preset_values
from pcrl_cli.core.config import recipe as recipe_values
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Learner
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.core.rng import Rng
from pcrl_cli.data.ahead import CacheOn
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.data.loader import Loader
from pcrl_cli.engine.distributed import World
from pcrl_cli.engine.trainer import (
    Device,
    TrainConfig,
    Trainer,
    Validate,
    require_trainable,
    resolve_device,
    resolve_precision,
)
from pcrl_cli.methods import METHODS
from pcrl_cli.networks.encoder import Encoder
from pcrl_cli.networks.transfer import TransferReport, Weights, load_encoder
from pcrl_cli.stages import cost, training
from pcrl_cli.stages import patients as patients_of
from pcrl_cli.stages.probe import probe_features, why_not
from pcrl_cli.stages.report import pretrain_report
from pcrl_cli.stages.results import Plan, Result
from pcrl_cli.stages.weights import initial
from pcrl_cli.stages.workspace import Workspace

MethodConfig = TypeVar("MethodConfig", bound=BaseModel)
PROBES = 10
"""Between so many looks at its features a run's epochs are divided, where there are as many and the cache has labels."""


class PretrainSettings(Settings, Generic[MethodConfig]):
    """What decides a pre-training's weights, besides the cache."""

    method: str
    recipe: str
    preset: Literal["matched", "native"] | None = Field(
        None, description="whose training: section 4.3's for all, or the method's own; none: PCRLv2's, its recipe"
    )
    dim: Literal["2d", "3d"]
    learner: MethodConfig
    train: TrainConfig
    set_aside: float = Field(0.0, ge=0, lt=1, description="share of the training patients kept for fine-tuning")
    init: str | None = Field(
        None, description="imagenet=FILE: a local torchvision state dict that the 2D encoder starts from"
    )
    any_recipe: bool = Field(False, description="accept a cache that was made for another recipe")
    probe_every_epochs: int | None = Field(
        None,
        ge=0,
        description="k-NN and linear probe while training; none: every tenth of the run, in 2D never; 0: never",
    )


class PretrainResult(Result):
    schema_name: ClassVar[str] = "pcrl.pretrain/1"
    run: Path
    weights: Path
    report: Path
    patients: int
    samples: int
    """Items of an epoch: crop pairs in 3D, images in 2D."""
    parameters: int
    passes: int
    """Of encoders a step, over all networks: views of one size that pass together count once."""
    voxels: int
    """That enter encoders in a step of this rank."""
    start: str = "random"
    """What the encoder started from: a file, or random numbers."""
    transfer: dict[str, Any] | None = None
    """What became of every key of that file."""
    residency: str
    outcome: dict[str, Any]


def pretrain_settings(
    method: str | None = None,
    recipe: str | None = None,
    dim: str | None = None,
    layers: Sequence[Layer] = (),
    preset: str | None = None,
) -> tuple[PretrainSettings, dict[str, str]]:
    """The resolved settings of `pcrl pretrain`, and where each value comes from.

    Raises:
        ConfigError: a setting does not exist or does not fit.
    """
    method, recipe = method or picked(layers, "method", "pcrlv2"), recipe or picked(layers, "recipe", "paper")
    dim = dim or picked(layers, "dim", "3d")
    module = find("method", method, METHODS)
    if axes(dim) not in module.GROUPS:
        defined = ", ".join(f"--dim {n}d" for n in module.GROUPS)
        raise ConfigError(f"method {method} is not defined for --dim {dim}; use {defined}")
    preset = preset or picked(layers, "preset", None) or "matched"
    own, base = preset_values(preset, method, dim), recipe_values(recipe, "pretrain", method, dim)
    chosen = {"method": method, "recipe": recipe, "dim": dim, "preset": preset if own else None}
    model = PretrainSettings[module.Config]  # type: ignore[name-defined]
    return build(model, [(f"preset {preset}", own), (f"recipe {recipe}", base), *layers, ("choice", chosen)])


def pretrain(
    cache: Path | None = None,
    *,
    dim: Literal["2d", "3d"] | None = None,
    method: str | None = None,
    recipe: str | None = None,
    preset: str | None = None,
    layers: Sequence[Layer] = (),
    out: Path | None = None,
    workspace: Workspace | None = None,
    device: Device = "auto",
    cache_on: CacheOn = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> PretrainResult | Plan:
    """Pre-trains a method on the training part of a cache. The same call again continues, or does nothing if finished.

    Args:
        cache: defaults to the workspace's only cache of this dimension.
        layers: settings over the recipe's, e.g. [("call", {"train": {"lr": 1e-3}})].
        out: defaults to the workspace's runs/pretrain-CACHE-FINGERPRINT.

    Raises:
        ConfigError, DataError, NumericalError, MachineError, IntegrityError, Preempted: see core/errors.py.
    """
    listener, workspace = listener or Listener(), workspace or Workspace()
    if dim is not None and cache is not None:
        training.require_dim(open_cache(cache), axes(dim))
    settings, origin = pretrain_settings(method, recipe, dim, layers, preset)
    where = resolve_device(device)
    with training.joined(where) as world:
        training.note_begin(world, listener, settings, origin, where)
        return _pretrain(settings, cache, out, workspace, where, cache_on, overwrite, dry_run, world, listener)


def _pretrain(
    settings: PretrainSettings,
    cache: Path | None,
    out: Path | None,
    workspace: Workspace,
    device: torch.device,
    cache_on: CacheOn,
    overwrite: bool,
    dry_run: bool,
    world: World,
    listener: Listener,
) -> PretrainResult | Plan:
    """One rank's part. What can be refused is refused before the run's folder is made."""
    listener = listener if world.talks else Listener()
    dim = axes(settings.dim)
    group = find("method", settings.method, METHODS).GROUPS[dim]
    path = cache or workspace.find_cache(dim, group)
    opened = training.open_by_all(world, path, workspace.verified, dry_run)
    training.require_dim(opened, dim)
    training.require_group(opened, group, f"method {settings.method}")
    _require_recipe(opened, settings)
    _require_batch(settings, world)
    training.note_partial(opened, listener)
    training.note_copies(opened, listener)
    _note_words(opened, settings, listener)
    start = _start(settings)
    decisive = settings.model_copy(update={"init": None})  # the file's content decides, not its place
    inputs = (training.manifest_digest(opened), *([start.digest] if start else []))
    fingerprint = training.run_fingerprint("pretrain", decisive, *inputs)
    if start is None and settings.dim == "2d" and settings.recipe == "released":
        listener.warn("recipe released starts from ImageNet's weights; without --init imagenet=FILE this run is random")
    out = out or workspace.run("pretrain", path.name, fingerprint)
    if dry_run:
        figures = _cost(settings, opened, device)
        return training.plan("pretrain", out, settings, fingerprint, figures)
    if not overwrite:
        done = training.already_done(world, out, "pretrain", settings, fingerprint, PretrainResult, listener)
        if done is not None:
            return done
    open_run = partial(training.open_run, out, "pretrain", settings, fingerprint, overwrite)
    return _train(settings, opened, start, open_run, out, device, cache_on, world, listener)


def _train(
    settings: PretrainSettings,
    cache: Cache,
    start: Weights | None,
    open_run: training.OpenRun,
    out: Path,
    device: torch.device,
    cache_on: CacheOn,
    world: World,
    listener: Listener,
) -> PretrainResult:
    require_trainable(settings.train, find("method", settings.method, METHODS).LEARNER)
    patients = training_patients(cache, settings.set_aside)
    learner = build_learner(settings, cache)
    transfer = _load(learner, start, cache) if start else None
    if transfer:
        training.note_transfer(transfer, listener)
    loader = source(settings, cache, patients, device, cache_on, world)
    training.try_views(learner, loader)
    validate = _probing(settings, learner, cache, device, loader)
    run = training.open_together(world, open_run, out)
    if world.talks:
        run.write_record(cache=str(cache.path.resolve()), cache_fingerprint=training.manifest_digest(cache))
    seen = patients_of.hashed(cache, patients, run.record["fingerprint"])
    at = training.encoder_at(learner)
    contract = training.contract_of(cache, learner.architecture, seen, settings.method, settings.recipe, 0, at)
    trainer = Trainer(
        learner,
        loader,
        settings.train,
        run,
        device=device,
        metadata=training.metadata_of(contract),
        world=world,
        validate=validate,
        listener=listener,
    )
    listener.say(
        f"{settings.method} on {loader.items} samples of {len(patients)} patients, {trainer.steps} steps of "
        f"{loader.batch_size}, {trainer.precision} on {device.type}, cache in {loader.residency}"
    )
    heavy = device.type == "cpu" and getattr(settings.learner, "width", 0) >= 16
    flops = _step_flops(settings, cache) if heavy else None
    if flops is not None:
        seconds = flops * trainer.steps / cost.machine_rate(device)
        hint = "try `--width 8 --steps 200` here, or use a CUDA GPU"
        training.note_duration(listener, "this run", seconds, True, hint)
    outcome = trainer.fit()
    pictures, (passes, voxels) = _look(trainer, loader)
    result = PretrainResult(
        run=run.folder,
        weights=run.weights_path(),
        report=run.folder / "report.html",
        patients=len(patients),
        samples=loader.items,
        parameters=training.count_parameters(learner),
        passes=passes,
        voxels=voxels,
        start=str(start.path) if start else "random",
        transfer=asdict(transfer) if transfer else None,
        residency=loader.residency,
        outcome=training.outcome_dict(outcome, run),
    )
    if world.talks:
        pretrain_report(run, result, pictures)
        run.finish(result.model_dump(mode="json"))
    return result


def _start(settings: PretrainSettings) -> Weights | None:
    """What the settings name to start from.

    Raises:
        ConfigError: it is for 2D alone; see also `weights.initial`.
    """
    if settings.init is None:
        return None
    if settings.dim != "2d":
        raise ConfigError("--init imagenet=FILE is for --dim 2d: ImageNet's images have two dimensions; leave it out")
    return initial(settings.init)


def _load(learner: Learner, start: Weights, cache: Cache) -> TransferReport:
    """The encoder starts from these weights, every key accounted for.

    Raises:
        ConfigError: they are of another width.
    """
    own, found = learner.architecture, start.contract.architecture
    if own != found:
        raise ConfigError(
            f"{start.path} is {found.encoder} of width {found.width}, and the encoder would be {own.encoder} of width "
            f"{own.width}; set --width {found.width}"
        )
    return load_encoder(learner.encoder, start, training.domain_of(cache))


def training_patients(cache: Cache, set_aside: float) -> tuple[str, ...]:
    """Patients to pre-train on: the training part without the first ceil(set_aside) of its order.

    Raises:
        ConfigError: nobody is left.
    """
    aside = set(cache.split.first(set_aside)) if set_aside else set()
    left = tuple(p for p in cache.patients("train") if p not in aside)
    if not left:
        raise ConfigError(
            f"no training patient of {cache.path} is left to pre-train on; lower --set-aside or prepare more scans"
        )
    return left


def source(
    settings: PretrainSettings,
    cache: Cache,
    patients: Sequence[str],
    device: torch.device,
    cache_on: CacheOn = "auto",
    world: World | None = None,
) -> Loader:
    """The items of these patients, every one once an epoch."""
    dim, world = axes(settings.dim), world or World()
    group, arrays = find("method", settings.method, METHODS).GROUPS[dim], settings.learner.arrays(dim)
    cases = cache.cases(patients=patients)
    return Loader(
        cache,
        group,
        arrays,
        cases,
        settings.train.batch,
        settings.train.seed,
        device,
        cache_on,
        rank=world.rank,
        ranks=world.size,
        deals=settings.train.deals,
        rows=cache.rows(group, arrays[0], cases, patients),
    )


def axes(dim: str) -> int:
    """3 of `3d`."""
    return int(dim[0])


def build_learner(settings: PretrainSettings, cache: Cache) -> Learner:
    """The method's Learner with weights drawn from the seed, without touching the global generator."""
    module = find("method", settings.method, METHODS)
    with torch.random.fork_rng():
        torch.manual_seed(settings.train.seed)
        return module.LEARNER(settings.learner, training.stored(cache))


def _require_batch(settings: PretrainSettings, world: World) -> None:
    least = getattr(find("method", settings.method, METHODS), "LEAST_BATCH", 2)
    each = settings.train.batch // world.size
    if each < least:
        raise ConfigError(
            f"method {settings.method} compares features behind a batch norm, which {each} samples a rank make "
            f"meaningless; set --batch to {least * world.size} or more"
        )


def _require_recipe(cache: Cache, settings: PretrainSettings) -> None:
    if settings.dim == "2d":  # whole images are cached, alike for both recipes
        return
    made_for = cache.manifest["recipe"]
    if made_for != settings.recipe and not settings.any_recipe:
        raise ConfigError(
            f"{cache.path} was made with recipe {made_for}, not {settings.recipe}; prepare it again with "
            f"--recipe {settings.recipe}, pre-train with --recipe {made_for}, or accept it with --set any_recipe=true"
        )


def _note_words(cache: Cache, settings: PretrainSettings, listener: Listener) -> None:
    """Patients who are set aside now may have helped to find the words."""
    aside = cache.manifest.get("set_aside", settings.set_aside)
    if aside < settings.set_aside:
        listener.warn(
            f"the words of {cache.path} were found with {f'{aside:g}' if aside else 'nobody'} set aside: patients whom "
            f"--set-aside {settings.set_aside:g} keeps for fine-tuning counted among the neighbours, though none of their "
            f"cubes is trained on; find words without them with `pcrl discover --set-aside {settings.set_aside:g}`"
        )


def _probing(
    settings: PretrainSettings, learner: Learner, cache: Cache, device: torch.device, loader: Loader
) -> Validate | None:
    """Probes the frozen encoder at the end of every few epochs, on train against val, where the cache has labels.

    Raises:
        ConfigError: it was asked for, and the cache cannot serve.
    """
    every = settings.probe_every_epochs
    if every is None and settings.dim == "2d":  # a whole data set of images is too much to look at by default
        return None
    if every is None:
        steps = settings.train.steps or settings.train.epochs * loader.steps_per_epoch
        every = steps // loader.steps_per_epoch // PROBES
    reason = why_not(cast(Encoder, learner.encoder), cache) if every else None
    if not every or (reason is not None and settings.probe_every_epochs is None):
        return None
    if reason is not None:
        raise ConfigError(
            f"{cache.path} cannot serve to probe while pre-training ({reason}); "
            "leave --probe-every out or give another cache"
        )
    period = every * loader.steps_per_epoch

    def validate(learner: Learner, step: int) -> dict[str, float | None]:
        if step % period:
            return {}
        figures, _ = probe_features(cast(Encoder, learner.encoder), cache, device, "val")
        return {f"probe/{name}": value for name, value in figures.items()}

    return validate


def _look(trainer: Trainer, loader: Loader) -> tuple[dict[str, Any], tuple[int, int]]:
    """Four samples as the network sees them now, with batch statistics as in training, for the report; and what a step costs."""
    learner = trainer.learner.train()
    positions, batch = next(loader.batches(0))
    with torch.no_grad():
        views = learner.views(batch, Rng.at(trainer.config.seed, 0, positions))
        pictures = {name: image[:4].float().cpu().numpy() for name, image in learner.pictures(views).items()}
    return pictures, cost.encoder_passes(learner, views)


def _cost(settings: PretrainSettings, cache: Cache, device: torch.device) -> dict[str, Any]:
    patients = training_patients(cache, settings.set_aside)
    loader = source(settings, cache, patients, device, "disk")  # reads nothing yet
    steps = settings.train.steps or settings.train.epochs * loader.steps_per_epoch
    figures: dict[str, Any] = {
        "patients": len(patients),
        "samples": loader.items,
        "steps": steps,
        "device": device.type,
    }
    figures["cache GB (training samples)"] = round(loader.bytes / 1e9, 3)
    flops = _step_flops(settings, cache)
    figures["parameters"] = training.count_parameters(build_learner(settings, cache))
    if flops is not None:
        figures |= _price(settings, cache, device, flops, steps)
    return figures | {"cache bytes": sum(r["bytes"] for r in cache.manifest["cases"])}


def _price(settings: PretrainSettings, cache: Cache, device: torch.device, flops: float, steps: int) -> dict[str, Any]:
    """What is counted (arithmetic, memory, disk) and, from a convolution timed here, hours, rate and energy."""
    train = settings.train
    bf16 = resolve_precision(train.precision, device) == "bf16"
    rate = cost.machine_rate(device, bf16)
    hours = flops * steps / rate / 3600
    figures: dict[str, Any] = {
        "tflop per step": round(flops / 1e12, 3),
        "hours (arithmetic alone)": round(hours, 2),
        "samples/s at best": float(f"{train.batch * rate / flops:.3g}"),
        "rate measured now": f"{rate / 1e9:.0f} GFLOP/s of a {'bf16' if bf16 else 'float32'} 3D convolution on one {device.type}",
    }
    if isinstance(settings.learner, cost.Config):
        momenta = 2 if train.optimiser == "adam" else 1
        shapes, dim = _shapes(settings, cache), axes(settings.dim)
        gb = cost.memory(settings.learner, train.batch, momenta, bf16, shapes, dim)
        figures["memory GB (counted, costliest scale)"] = gb
        figures["disk GB of checkpoints"] = round((train.keep + 1) * (gb["weights"] + gb["optimiser"]), 3)
    watts = cost.watts(device)
    if watts is not None:
        figures["kWh at most"] = (
            f"{watts * hours / 1000:.1f} at the GPU's limit of {watts:.0f} W, without the machine round it"
        )
    return figures


def _step_flops(settings: PretrainSettings, cache: Cache) -> float | None:
    """Of one step with this cache's crops; None where a method's losses cannot be counted without arithmetic."""
    if isinstance(settings.learner, cost.Config):
        shapes = _shapes(settings, cache)
        return cost.step_flops(settings.learner, settings.train.batch, shapes=shapes, dim=axes(settings.dim))
    dim = axes(settings.dim)
    group = find("method", settings.method, METHODS).GROUPS[dim]
    batch = cache.read(group, settings.learner.arrays(dim), cache.cases("train")[:2], rows=np.arange(2)).arrays
    two = {name: torch.from_numpy(array) for name, array in batch.items()}
    try:
        return cost.learner_flops(build_learner(settings, cache), two, settings.train.batch)
    except (NotImplementedError, RuntimeError):
        return None


def _shapes(settings: PretrainSettings, cache: Cache) -> cost.Shapes:
    """Of what a step of PCRLv2 sees: in 3D as it is cached, in 2D as the views are cut."""
    dim = axes(settings.dim)
    group = find("method", settings.method, METHODS).GROUPS[dim]
    return cost.item_shapes(cache, group) if dim == 3 else cost.view_shapes(settings.learner)
