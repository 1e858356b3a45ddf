"""What pre-training and fine-tuning share: settings of a run, the opened cache, weights' contracts."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from pcrl_cli import __version__
from pcrl_cli.core import files
from pcrl_cli.core.config import Settings, dump_yaml, told
from pcrl_cli.core.contract import Architecture, Contract, Domain, Patients
from pcrl_cli.core.errors import ConfigError, IntegrityError, MachineError
from pcrl_cli.core.learner import Learner, Stored
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.rng import Rng
from pcrl_cli.core.source import Source
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.data.copies import copies_in
from pcrl_cli.engine import lock
from pcrl_cli.engine.distributed import World
from pcrl_cli.engine.run import Run
from pcrl_cli.engine.trainer import Outcome
from pcrl_cli.networks.transfer import TransferReport, contract_metadata
from pcrl_cli.stages.results import Plan, Result

AnyResult = TypeVar("AnyResult", bound=Result)
OpenRun = Callable[[], Run]
"""Makes the run's folder, or takes it up again; called when nothing can be refused any more."""


def open_verified(path: Path, memory: Path) -> Cache:
    """A cache whose shards' hashes are right; a file is hashed once and remembered in `memory`, if that can be written.

    Raises:
        ConfigError: there is no cache. IntegrityError: a shard is missing, torn or changed.
    """
    cache = open_cache(path)
    with suppress(MachineError):  # of writing the note, which comes last
        cache.verify("full", memory if _may_be_noted(memory) else None)
    return cache


def _may_be_noted(memory: Path) -> bool:
    """A note alone is no reason to make a folder, nor to fail."""
    folder = memory.parent
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK) and (not memory.exists() or os.access(memory, os.R_OK))


def open_present(path: Path) -> Cache:
    """A cache whose shards are there and as large as recorded; hashes nothing and writes nothing."""
    cache = open_cache(path)
    cache.verify("quick")
    return cache


def open_by_all(world: World, path: Path, memory: Path, plan_only: bool = False) -> Cache:
    """The cache on every rank: rank 0 hashes it, then the others look whether it is all there; for a plan, so do all.

    Raises:
        IntegrityError: a shard is missing, torn or changed. MachineError: on the other ranks, that rank 0 refused.
    """
    look = partial(open_present, path)
    return world.first(look if plan_only else partial(open_verified, path, memory), look)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """This process among torchrun's ranks, for as long as a command takes; to be entered before anything is written.

    On leaving, the run folder that the command took is free for the next process.
    """
    world = World.join(device)
    try:
        yield world
    finally:
        lock.release()
        world.leave()


def require_dim(cache: Cache, dim: int) -> None:
    """Refuses a 2D cache for 3D work and the reverse."""
    if cache.manifest["dim"] != dim:
        raise ConfigError(
            f"{cache.path} is a {cache.manifest['dim']}D cache, but --dim {dim}d was asked for; give a {dim}D cache"
        )


def require_group(cache: Cache, group: str, what: str) -> None:
    if group not in cache.groups:
        raise ConfigError(
            f"{cache.path} holds no {group}, which {what} needs (it holds {', '.join(cache.groups)}); give another cache"
        )


def dim_of(task: ModuleType, cache: Cache) -> int:
    """Axes of what a task's module sees: its own, or the cache's where it takes any.

    Raises:
        ConfigError: the cache's images have other axes than the task's.
    """
    there = int(cache.manifest["dim"])
    if task.DIM not in (None, there):
        name = task.__name__.rpartition(".")[2]
        raise ConfigError(
            f"{cache.path} is a {there}D cache, and the task {name} is of {task.DIM}D images; give another"
        )
    return there


def domain_of(cache: Cache) -> Domain:
    """What weights that are trained on this cache have seen."""
    m = cache.manifest
    keys = ("channels", "modality", "intensity", "normalisation")
    order = {"axis_order": "rows, columns"} if m["dim"] == 2 else {}
    names = tuple(m.get("channel_names", ()))
    return Domain(spacing_mm=m.get("spacing_mm"), channel_names=names, **{key: m[key] for key in keys}, **order)


def stored(cache: Cache) -> Stored:
    """What a Learner must know of a cache."""
    m = cache.manifest
    scale, offset = m["to_unit"]
    to_unit, classes = (float(scale), float(offset)), tuple(m.get("classes", ()))
    return Stored(m["dim"], m["channels"], to_unit, classes, regions_in(m))


def regions_in(facts: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The labels of every region, of a manifest or of a run's record of one; empty where the task alone knows them."""
    regions = facts.get("regions", {})
    return {name: tuple(regions[name]) for name in facts.get("classes", ()) if name in regions}


def prepared_of(cache: Cache) -> dict[str, Any]:
    """How the images were prepared, for a run's record: new ones are prepared alike, wherever the cache is then."""
    keys = ("dim", "channels", "channel_names", "classes", "regions", "label_values", "settings")
    return {key: cache.manifest[key] for key in keys if key in cache.manifest}


def note_transfer(report: TransferReport, listener: Listener) -> None:
    """Says how the images differ from what the weights saw, and warns of what the weights could not fill."""
    for line in [*report.adapted, *report.differences]:
        listener.say(f"transfer: {line}")
    for line in report.random:
        listener.warn(f"transfer: {line}")


def note_partial(cache: Cache, listener: Listener) -> None:
    """Says when preparing was not finished: scans or images that nobody refused are missing."""
    m = cache.manifest
    unit = "images" if m["dim"] == 2 else "scans"
    refused = len(m.get("refused", []))
    there = sum(len(set(r["items"]["id"])) if "items" in r else 1 for r in m["cases"])
    expected = m.get("scans", there + refused)
    if there + refused < expected:
        listener.warn(
            f"{cache.path} holds {there} of {expected} {unit} ({refused} refused); run `pcrl prep` again without --limit "
            "or --shard to finish it, if that is not meant"
        )


def note_copies(cache: Cache, listener: Listener) -> list[str]:
    """Says, and returns, that the same image is in several parts of the split; `pcrl prep` said it and what else is doubled."""
    found = copies_in(cache)
    unit = "images" if cache.manifest["dim"] == 2 else "scans"
    told = found.told(unit, "prepare the cache again, see what `pcrl prep` says") if found.other_parts else []
    for line in told:
        listener.warn(line)
    return told


def encoder_at(learner: Learner) -> str:
    """Under which prefix a learner's state holds its encoder."""
    return next(f"{name}." for name, module in learner.named_modules() if module is learner.encoder)


def contract_of(
    cache: Cache, architecture: Architecture, patients: Patients, method: str, recipe: str, steps: int, at: str = ""
) -> Contract:
    return Contract(
        encoder_at=at,
        architecture=architecture,
        domain=domain_of(cache),
        patients=patients,
        method=method,
        recipe=recipe,
        steps=steps,
        cache=cache.manifest["fingerprint"],
        pcrl=__version__,
    )


def metadata_of(contract: Contract) -> Callable[[int], dict[str, str]]:
    """The metadata of a checkpoint's model file at a step."""
    return lambda step: contract_metadata(contract.model_copy(update={"steps": step}))


def run_fingerprint(verb: str, settings: Settings, *inputs: str) -> str:
    """What a run's name and its "same settings" go by: not the place of its caches, but what is in them."""
    return files.fingerprint([verb, settings.model_dump(mode="json"), *inputs])


def finished_result(
    out: Path, verb: str, settings: Settings, fingerprint: str, model: type[AnyResult]
) -> AnyResult | None:
    """The result of a run that was finished with these settings; writes nothing.

    Raises:
        ConfigError: the folder holds other settings. IntegrityError: its record or its weights are damaged.
    """
    if not (out / "run.json").is_file():
        return None
    run = Run.load(out)
    run.require_same(verb, settings.model_dump(mode="json"), fingerprint)
    if not run.finished:
        return None
    run.check_weights()
    try:
        return model.model_validate(run.record["result"])
    except ValidationError:
        raise IntegrityError(
            f"{out / 'run.json'} holds a result of another version of pcrl; use that version, or --overwrite"
        ) from None


def already_done(
    world: World,
    out: Path,
    verb: str,
    settings: Settings,
    fingerprint: str,
    model: type[AnyResult],
    listener: Listener,
) -> AnyResult | None:
    """`finished_result` on every rank, rank 0 first, and a word about it."""
    look = partial(finished_result, out, verb, settings, fingerprint, model)
    done = world.first(look, look)
    if done is not None:
        listener.say(f"{out} is finished with these settings; nothing to do (--overwrite to redo it)")
    return done


def plan(verb: str, out: Path, settings: Settings, fingerprint: str, figures: dict[str, Any]) -> Plan:
    """What `--dry-run` answers."""
    state = state_of(out, fingerprint)
    return Plan(verb=verb, out=out, state=state, settings=settings.model_dump(mode="json"), figures=figures)


def open_run(out: Path, verb: str, settings: Settings, fingerprint: str, overwrite: bool) -> Run:
    return Run.open(out, verb, settings.model_dump(mode="json"), fingerprint, dump_yaml(settings), overwrite)


def open_together(world: World, open_run: OpenRun, out: Path) -> Run:
    """The run on every rank: rank 0 makes or takes up the folder, the others read what it made.

    Raises:
        ConfigError, IntegrityError, MachineError: see `Run.open`; on the other ranks, that rank 0 refused.
    """
    return world.first(open_run, partial(Run.load, out))


def try_views(learner: Learner, source: Source) -> None:
    """Makes the views of a batch's first two samples, so that what cannot be cut from the cache is refused before
    anything is written.

    Raises:
        ConfigError: the learner's settings do not fit the cached arrays.
    """
    batches = source.batches(0)
    try:
        positions, batch = next(batches)
    finally:
        getattr(batches, "close", lambda: None)()  # ends a thread that reads ahead
    with torch.no_grad():
        learner.views({name: array[:2] for name, array in batch.items()}, Rng.at(0, 0, positions[:2]))


def state_of(out: Path, fingerprint: str) -> str:
    """What `--dry-run` says of the run folder."""
    if not (out / "run.json").exists():
        return "new"
    run = Run.load(out)
    if run.record["fingerprint"] != fingerprint:
        return "other settings are there: the command would be refused"
    return "finished: nothing to do" if run.finished else "to be continued"


def outcome_dict(outcome: Outcome, run: Run) -> dict[str, Any]:
    """How training ended, with the last row's terms."""
    rows = run.rows()
    last = {k.removeprefix("loss/"): v for k, v in rows[-1].items() if k.startswith("loss/")} if rows else {}
    values = asdict(outcome)
    for key in ("seconds", "samples_per_second", "data_wait"):
        values[key] = round(values[key], 4)
    return {**values, "last": last}


def manifest_digest(cache: Cache) -> str:
    """What is in a cache: its settings and the hash of every shard."""
    shards = {record["case"]: record["sha256"] for record in cache.manifest["cases"]}
    return files.fingerprint([cache.manifest["fingerprint"], shards, cache.split.model_dump()])


def count_parameters(learner: Learner) -> int:
    return sum(p.numel() for p in learner.parameters())


def note_begin(
    world: World, listener: Listener, settings: Settings, origin: Mapping[str, str], device: torch.device
) -> None:
    """For who wants to know everything: the settings, on what it is computed, and with how many threads."""
    if world.talks:
        for line in told(settings, origin):
            listener.detail(line)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        listener.detail(f"torch {torch.__version__} on {name}, {torch.get_num_threads()} threads")


def note_duration(listener: Listener, what: str, seconds: float, on_cpu: bool, hint: str) -> None:
    """Says what long work will take; on a CPU, when it would be more than a day, also what to do instead."""
    hours = seconds / 3600
    spell = (
        f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
    )
    if hours > 24 * 60:
        spell = f"{hours / 24 / 30:.0f} months"
    text = f"{what} will take about {spell}"
    if on_cpu and hours > 24:
        listener.warn(f"{text} on this CPU; {hint}")
    else:
        listener.say(text)
