"""A cache of crop pairs to a cache of visual words, which TransVW pre-trains on.

    scans -> thumbnails -> an auto-encoder's descriptors -> words: corners that like patients share -> their cubes

Every step leaves its sealed result, so that an interrupted call goes on where it stopped.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from pcrl_cli.augment.pairs import to_unit
from pcrl_cli.core.case import Case
from pcrl_cli.core.config import Layer, Settings, build, told
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.files import fingerprint as fingerprint_of
from pcrl_cli.core.files import write_atomic
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.core.plan import CropPlan, Prepared
from pcrl_cli.data.build import build as build_cache
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.data.loader import Loader
from pcrl_cli.engine import lock
from pcrl_cli.engine.run import Run
from pcrl_cli.engine.trainer import Device, TrainConfig, Trainer, resolve_device
from pcrl_cli.methods.transvw import Describer
from pcrl_cli.networks.blocks import gap
from pcrl_cli.pure.words import Corner, Thumbnails, Words, discover, instances
from pcrl_cli.readers import READERS
from pcrl_cli.report import figures
from pcrl_cli.report.html import Picture, Report, Section, write_report
from pcrl_cli.stages import patients as patients_of
from pcrl_cli.stages import training
from pcrl_cli.stages.kinds import kind_of
from pcrl_cli.stages.prep import OF_A_CACHE, require_cache_or_nothing
from pcrl_cli.stages.prep import _manifest as manifest_in
from pcrl_cli.stages.results import Plan, Result
from pcrl_cli.stages.workspace import Workspace

SHOWN_WORDS, SHOWN_SCANS = 3, 8
KEPT = (
    "kind", "dim", "channels", "modality", "spacing_mm", "to_unit", "intensity", "normalisation", "excluded_findings",
    "recipe", "reader", "data", "options", "pcrl",
)  # fmt: skip
"""What a cache of words says as the cache that it was made for."""


class WordSettings(Settings):
    """What words are looked for."""

    classes: int = Field(44, ge=2, description="words")
    neighbours: int = Field(200, ge=1, description="scans a word, its reference included; at most all there are")
    border: tuple[int, int, int] = Field((100, 100, 30), description="voxels kept free at the faces")
    apart: float = Field(5.0, ge=0, description="least distance of two corners, voxels")
    max_background: float = Field(0.85, ge=0, le=1, description="share of a reference crop that may be air")


class DiscoverSettings(Settings):
    """What decides a cache of words, besides the scans."""

    source: str = Field(description="fingerprint of the cache that names the scans")
    seed: int = Field(0, ge=0)
    width: int = Field(32, ge=1, description="of the describing auto-encoder")
    thumbnails: Thumbnails = Thumbnails()
    words: WordSettings = WordSettings()
    cubes: Words = Words()
    train: TrainConfig = TrainConfig(
        epochs=100, batch=8, optimiser="adam", lr=1e-3, weight_decay=0.0, schedule="constant"
    )


class DiscoverResult(Result):
    """What was found. instances: crops a word; cubes: in the cache; patients: who can be chosen."""

    schema_name: ClassVar[str] = "pcrl.discover/1"
    cache: Path
    words: int
    instances: int
    cubes: int
    patients: int
    notes: list[str]
    report: Path
    seconds: float


def discover_settings(source: Cache, layers: Sequence[Layer] = ()) -> tuple[DiscoverSettings, dict[str, str]]:
    """The resolved settings of `pcrl discover`, and where each value comes from."""
    return build(DiscoverSettings, [*layers, ("choice", {"source": source.manifest["fingerprint"]})])


def discover_words(
    cache: Path | None = None,
    *,
    out: Path | None = None,
    data: Path | None = None,
    workspace: Workspace | None = None,
    layers: Sequence[Layer] = (),
    jobs: int | Literal["auto"] = "auto",
    device: Device = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> DiscoverResult | Plan:
    """Finds visual words in a cache's training scans and cuts their cubes into a cache of their own.

    Args:
        cache: of crop pairs; its reader, settings and split are the words' too. Default: the workspace's only one.
        out: defaults to the workspace's cache/NAME-words. data: where the scans are now, if they were moved.
        overwrite: deletes words that lie there, and nothing else.

    Raises:
        ConfigError: the cache is not of scans; `out` holds something else than words, or (without overwrite) others.
        DataError: there is no place for so many words.
    """
    began, listener, workspace = time.perf_counter(), listener or Listener(), workspace or Workspace()
    path = cache or workspace.find_cache(3, "pairs")
    source = open_cache(path)
    if source.manifest["kind"] != "crops":
        raise ConfigError(
            f"{path} is a cache of {source.manifest['kind']}; words are found in scans that gave crop pairs"
        )
    settings, origin = discover_settings(source, layers)
    out = out or workspace.cache(f"{path.name}-words")
    mark = fingerprint_of([settings.model_dump(mode="json"), training.manifest_digest(source)])
    work = workspace.run("discover", path.name, mark)
    _require_ours(out, mark, source, overwrite)
    cases, reading = _scans(source, data)
    notes: list[str] = []
    members = min(settings.words.neighbours, len(cases))
    if members > len(cases) / 2:
        notes.append(
            f"every word holds {members} of {len(cases)} scans, mostly the same ones: labels then say little but the position"
        )
    if dry_run:
        figures = {"scans": len(cases), "words": settings.words.classes, "scans a word": members, "notes": notes}
        state = "to be continued" if work.exists() or out.exists() else "new"
        return Plan(verb="discover", out=out, state=state, settings=settings.model_dump(mode="json"), figures=figures)
    for line in told(settings, origin):
        listener.detail(line)
    for note in notes:
        listener.warn(note)
    if overwrite:
        _clear(out)
        shutil.rmtree(work, ignore_errors=True)
    root = Path(data or source.manifest["data"])
    scans = _build(source, cases, reading, settings.thumbnails, work / "scans", mark, jobs, root, listener)
    descriptors, shapes, names = _describe(settings, scans, work / "describer", mark, resolve_device(device), listener)
    by_id = {case.id: case for case in cases}
    words = discover(
        descriptors,
        shapes,
        _Judge(reading, [by_id[name] for name in names], settings.cubes.cube, settings.words.max_background),
        np.random.default_rng([settings.seed, 0x3047]),
        settings.words.classes,
        min(members, len(names)),
        settings.cubes.cube,
        settings.words.border,
        settings.words.apart,
    )
    plan = settings.cubes.model_copy(update={"instances": instances(words, names)})
    chosen = [by_id[name] for name in plan.instances]
    made = _build(source, chosen, reading, plan, out, mark, jobs, root, listener, settings.words.classes)
    report = work / "report.html"
    _show(made, report, len(words), plan.others + 1)
    return DiscoverResult(
        cache=out,
        report=report,
        words=len(words),
        instances=len(words[0].members),
        cubes=int(made.sizes("words", "label", made.cases("train")).sum()),
        patients=len(names),
        notes=notes,
        seconds=round(time.perf_counter() - began, 2),
    )


def _show(words: Cache, path: Path, n: int, an_instance: int) -> None:
    """Exact crops of some words, a row a scan: whether scans lie alike is seen at once."""
    items = words.read("words", ("word", "label"), words.cases("train")).arrays
    exact = np.arange(len(items["label"])) % an_instance == 0
    pictures = {}
    for label in range(min(n, SHOWN_WORDS)):
        cubes = items["word"][exact & (items["label"] == label)][:SHOWN_SCANS, :, :, :, items["word"].shape[-1] // 2]
        pictures[f"word {label}"] = cubes.astype(np.float32)
    caption = (
        "Middle slices of the same place in the scans of a word. Where they do not look alike, its label is noise."
    )
    section = Section("Words", [Picture(figures.views_figure(pictures), caption)])
    write_report(path, Report("Visual words", str(words.path), [section]))


class _Judge:
    """Whether the crop of a scan at a corner is more than air; holds the last scan that was asked for."""

    def __init__(self, reading: Any, cases: Sequence[Case], cube: tuple[int, int, int], most: float) -> None:
        self.reading, self.cases, self.cube, self.most = reading, cases, cube, most
        self.last: tuple[int, Prepared] | None = None

    def __call__(self, scan: int, corner: Corner) -> bool:
        if self.last is None or self.last[0] != scan:
            self.last = scan, self.reading(self.cases[scan])
        prepared = self.last[1]
        crop = prepared.values[tuple(slice(c, c + n) for c, n in zip(corner, self.cube, strict=True))]
        return bool((crop < prepared.background).mean() <= self.most)


def _scans(source: Cache, data: Path | None) -> tuple[list[Case], Any]:
    """The cache's training scans, and how a worker reads one."""
    manifest = source.manifest
    name = manifest["reader"]["name"]
    reader = find("data set", name, READERS)
    kind = kind_of(reader)
    settings = kind.SETTINGS.model_validate(manifest["settings"])
    given = {key: Path(v) if isinstance(v, str) else v for key, v in manifest["options"].items()}
    root = Path(data or manifest["data"])
    if not root.is_dir():
        raise ConfigError(f"the scans of {source.path} are no more in {root}; say with --data where they are")
    wanted = set(source.cases("train"))
    cases = [c for c in reader.cases(root, **given | kind.options(settings)) if c.id in wanted]
    if not cases:
        raise ConfigError(f"{root} holds none of the training scans of {source.path}; say with --data where they are")
    return sorted(cases, key=lambda case: case.id), kind.reading(settings, READERS[name])


def _build(
    source: Cache,
    cases: Sequence[Case],
    reading: Any,
    plan: CropPlan,
    folder: Path,
    mark: str,
    jobs: int | Literal["auto"],
    root: Path,
    listener: Listener,
    words: int = 0,
) -> Cache:
    """One array group of these scans as a cache with the source's split."""
    manifest = source.manifest
    reader = find("data set", manifest["reader"]["name"], READERS)
    header = {key: manifest[key] for key in KEPT if key in manifest}
    header |= {"groups": [plan.group], "scans": len(cases), "discovered": mark}
    header |= {"settings": manifest["settings"] | {"discovered": mark}, "classes": [f"word {i}" for i in range(words)]}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "split.json").exists():
        write_atomic(folder / "split.json", (source.path / "split.json").read_bytes())
    listener.begin(f"cutting {plan.group}", len(cases), "scans")
    try:
        build_cache(
            cases,
            reading,
            [plan],
            folder,
            header,
            jobs=jobs,
            seed=source.split.seed,
            progress=lambda done, total, case, status: listener.advance(done),
            patients=[p for part in ("train", "val", "test") for p in source.split.part(part)],
            root=root,
            files=reader.files,
            peak_bytes=kind_of(reader).PEAK_BYTES,
        )
    finally:
        listener.end()
    return open_cache(folder)


def _describe(
    settings: DiscoverSettings, scans: Cache, folder: Path, mark: str, device: torch.device, listener: Listener
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Descriptors (n, c) and shapes (n, 3) of the scans, and their names."""
    cases = scans.cases("train")
    train = settings.train.model_copy(update={"batch": min(settings.train.batch, max(2, len(cases)))})
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        describer = Describer(settings.width, training.stored(scans))
    try:
        _fit(
            describer,
            scans,
            train,
            training.open_run(folder, "discover", settings, mark, overwrite=False),
            device,
            listener,
        )
    finally:
        lock.release()  # for the next process
    describer.eval()
    items = scans.read("thumbnails", ("image", "shape"), cases)
    rows = []
    with torch.no_grad():
        for image in torch.from_numpy(items.arrays["image"]).split(1):
            x = to_unit(image.to(device), describer.stored)
            rows.append(gap(describer.encoder(x)[-1])[0].double().cpu().numpy())
    return np.stack(rows), items.arrays["shape"].astype(np.int64), list(cases)


def _fit(
    describer: Describer, scans: Cache, train: TrainConfig, run: Run, device: torch.device, listener: Listener
) -> None:
    """Trains it; the run says on what, so that `pcrl replay` can show a step that broke down."""
    mark, seed, cases = run.record["fingerprint"], run.record["settings"]["seed"], scans.cases("train")
    run.write_record(cache=str(scans.path.resolve()), cache_fingerprint=training.manifest_digest(scans))
    loader = Loader(scans, "thumbnails", ("image",), cases, train.batch, seed, device)
    seen = patients_of.hashed(scans, scans.patients("train"), mark)
    contract = training.contract_of(scans, describer.architecture, seen, "discover", scans.manifest["recipe"], 0)
    Trainer(
        describer, loader, train, run, device=device, metadata=training.metadata_of(contract), listener=listener
    ).fit()


def _require_ours(out: Path, mark: str, source: Cache, overwrite: bool) -> None:
    """Refuses a folder that holds something else, which `overwrite` would delete.

    Words whose manifest is not there yet, or torn, are known by the split, which is the source's and written first.

    Raises:
        ConfigError: another cache, words of other settings (these may be overwritten), or what is no cache.
    """
    require_cache_or_nothing(out)
    if not out.exists() or not any(out.iterdir()):
        return
    manifest, split = manifest_in(out), out / "split.json"
    if manifest is None and not (split.exists() and split.read_bytes() == (source.path / "split.json").read_bytes()):
        raise ConfigError(f"{out} holds something else than visual words; choose another --out")
    found = mark if manifest is None else manifest.get("discovered")
    if found is None:
        raise ConfigError(f"{out} holds a cache that is not of visual words; choose another --out")
    if found != mark and not overwrite:
        raise ConfigError(f"{out} holds a cache of other words; choose another --out, or --overwrite")


def _clear(out: Path) -> None:
    """Deletes what a cache consists of."""
    for path in [*(out / name for name in OF_A_CACHE), *out.glob("*.tmp")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
