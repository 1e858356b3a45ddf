"""A cache of crop pairs or images to a cache of visual words, which TransVW pre-trains on.

    scans -> thumbnails -> an auto-encoder's descriptors -> words: corners that like patients share -> their cubes

Every step leaves its sealed result, so that an interrupted call goes on where it stopped. What differs between scans and
images is in `corpora`.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import Field, PositiveInt, model_validator

from pcrl_cli.augment.pairs import slices
from pcrl_cli.core.config import Layer, Settings, build, told
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.files import fingerprint as fingerprint_of
from pcrl_cli.core.listener import Listener
from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.data.loader import Loader
from pcrl_cli.engine import lock
from pcrl_cli.engine.run import Run
from pcrl_cli.engine.trainer import Device, TrainConfig, Trainer, resolve_device
from pcrl_cli.methods.transvw import Describer
from pcrl_cli.pure.words import Corner, Thumbnails, Words, discover, instances
from pcrl_cli.report import figures
from pcrl_cli.report.html import Picture, Report, Section, write_report
from pcrl_cli.stages import patients as patients_of
from pcrl_cli.stages import training
from pcrl_cli.stages.corpora import Corpus, Jobs, Making, Members, corpus_of, defaults
from pcrl_cli.stages.prep import OF_A_CACHE, require_cache_or_nothing
from pcrl_cli.stages.prep import _manifest as manifest_in
from pcrl_cli.stages.pretrain import training_patients
from pcrl_cli.stages.results import Plan, Result
from pcrl_cli.stages.workspace import Workspace

SHOWN_WORDS, SHOWN_SCANS = 3, 8


class WordSettings(Settings):
    """What words are looked for."""

    classes: int = Field(44, ge=2, description="words")
    neighbours: int = Field(200, ge=1, description="patients a word, its reference included; at most all there are")
    border: tuple[int, ...] = Field((100, 100, 30), description="voxels kept free at the faces; 2D: an eighth")
    apart: float = Field(5.0, ge=0, description="least distance of two corners, voxels; 2D: at 224 pixels")
    max_background: float = Field(0.85, ge=0, le=1, description="share of a reference crop that may be air, or black")


class DiscoverSettings(Settings):
    """What decides a cache of words, besides the scans. The defaults of images: `corpora.images.defaults`."""

    source: str = Field(description="fingerprint of the cache that names the scans")
    seed: int = Field(0, ge=0)
    set_aside: float = Field(0.0, ge=0, lt=1, description="share of the training patients kept for fine-tuning")
    width: PositiveInt = Field(32, description="of the describing auto-encoder; 2D: 64")
    thumbnails: Thumbnails = Thumbnails()
    words: WordSettings = WordSettings()
    cubes: Words = Words()
    train: TrainConfig = TrainConfig(
        epochs=100, batch=8, optimiser="adam", lr=1e-3, weight_decay=0.0, schedule="constant"
    )

    @model_validator(mode="after")
    def _agree(self) -> "DiscoverSettings":
        sizes = {len(self.thumbnails.shape), len(self.words.border), len(self.cubes.cube), len(self.cubes.stored)}
        if len(sizes) > 1:
            raise ValueError("thumbnails.shape, words.border, cubes.cube and cubes.resized must have as many axes")
        return self


class DiscoverResult(Result):
    """What was found. instances: patients a word; cubes: in the cache; patients: who can be chosen."""

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
    """The resolved settings of `pcrl discover`, and where each value comes from.

    Raises:
        ConfigError: the cache is not of crop pairs or images, or a setting does not fit.
    """
    own, chosen = defaults(source), {"source": source.manifest["fingerprint"]}
    settings, origin = build(DiscoverSettings, [("the cache", own), *layers, ("choice", chosen)])
    if len(settings.cubes.cube) != source.manifest["dim"]:
        raise ConfigError(
            f"{source.path} is a {source.manifest['dim']}D cache, and cubes.cube is {settings.cubes.cube}"
        )
    return settings, origin


def discover_words(
    cache: Path | None = None,
    *,
    dim: Literal["2d", "3d"] | None = None,
    out: Path | None = None,
    data: Path | None = None,
    workspace: Workspace | None = None,
    layers: Sequence[Layer] = (),
    jobs: Jobs = "auto",
    device: Device = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> DiscoverResult | Plan:
    """Finds visual words in a cache's training scans or images and cuts their cubes into a cache of their own.

    Args:
        cache: of crop pairs or images; its reader, settings and split are the words' too. Default: the workspace's only
            one of this dimension.
        out: defaults to the workspace's cache/NAME-words, with -aside-F where patients are set aside.
        data: where the scans are now, if they were moved; of images nothing but the cache is read.
        overwrite: deletes words that lie there, and nothing else.

    Raises:
        ConfigError: the cache is not of scans or images; `out` holds something else than words, or (without overwrite)
            others. DataError: there is no place for so many words.
    """
    began, listener, workspace = time.perf_counter(), listener or Listener(), workspace or Workspace()
    path = cache or (workspace.find_cache(2, "images") if dim == "2d" else workspace.find_cache(3, "pairs"))
    source = open_cache(path)
    if dim is not None:
        training.require_dim(source, int(dim[0]))
    settings, origin = discover_settings(source, layers)
    out = out or workspace.cache(words_name(path.name, settings.set_aside))
    mark = fingerprint_of([settings.model_dump(mode="json"), training.manifest_digest(source)])
    work = workspace.run("discover", path.name, mark)
    _require_ours(out, mark, source, overwrite)
    corpus = corpus_of(source, training_patients(source, settings.set_aside), data)
    n = len(corpus.patients)
    many, notes = min(settings.words.neighbours, n), []
    if many > n / 2:
        notes.append(
            f"every word holds {many} of {n} patients, mostly the same ones: labels then say little but the position"
        )
    if dry_run:
        facts = {"patients": n, "words": settings.words.classes, "patients a word": many, "notes": notes}
        state = "to be continued" if work.exists() or out.exists() else "new"
        return Plan(verb="discover", out=out, state=state, settings=settings.model_dump(mode="json"), figures=facts)
    for line in told(settings, origin):
        listener.detail(line)
    for note in notes:
        listener.warn(note)
    if overwrite:
        _clear(out)
        shutil.rmtree(work, ignore_errors=True)
    make = Making(source, mark, settings.set_aside, jobs, listener)
    members = corpus.members(work / "scans", settings.thumbnails.shape, make)
    descriptors = _describe(settings, members, work / "describer", mark, resolve_device(device), listener)
    who, owners = np.unique(members.patients, return_inverse=True)
    words = discover(
        descriptors,
        members.shapes,
        owners,
        _Judge(corpus, members.names, settings.cubes.cube, settings.words.max_background),
        np.random.default_rng([settings.seed, 0x3047]),
        settings.words.classes,
        min(many, len(who)),
        settings.cubes.cube,
        settings.words.border,
        settings.words.apart,
    )
    plan = settings.cubes.model_copy(update={"instances": instances(words, members.names)})
    made = corpus.cut(plan, out, len(words), make)
    report = work / "report.html"
    _show(made, report, len(words), plan.others + 1)
    return DiscoverResult(
        cache=out,
        report=report,
        words=len(words),
        instances=len(words[0].members),
        cubes=int(made.sizes("words", "label", made.cases("train")).sum()),
        patients=len(who),
        notes=notes,
        seconds=round(time.perf_counter() - began, 2),
    )


def words_name(cache: str, set_aside: float) -> str:
    """What the words of a cache are called in a workspace."""
    return f"{cache}-words" + (f"-aside-{set_aside:g}" if set_aside else "")


def _show(words: Cache, path: Path, n: int, an_instance: int) -> None:
    """Exact crops of some words, a row a word: whether scans lie alike is seen at once."""
    items = words.read("words", ("label",), words.cases("train")).arrays["label"]
    exact = np.arange(len(items)) % an_instance == 0
    pictures = {}
    for label in range(min(n, SHOWN_WORDS)):
        rows = np.flatnonzero(exact & (items == label))[:SHOWN_SCANS]
        cubes = words.read("words", ("word",), words.cases("train"), rows=rows).arrays["word"]
        pictures[f"word {label}"] = slices(torch.from_numpy(cubes).float()).transpose(0, 1).numpy()
    caption = "The same place in the scans of a word (middle slices). Where they do not look alike, its label is noise."
    section = Section("Words", [Picture(figures.views_figure(pictures), caption)])
    write_report(path, Report("Visual words", str(words.path), [section]))


class _Judge:
    """Whether the crop of a scan at a corner is more than air; holds the last scan that was asked for."""

    def __init__(self, corpus: Corpus, names: Sequence[str], cube: Corner, most: float) -> None:
        self.corpus, self.names, self.cube, self.most = corpus, names, cube, most
        self.last: tuple[int, np.ndarray, float] | None = None

    def __call__(self, scan: int, corner: Corner) -> bool:
        if self.last is None or self.last[0] != scan:
            self.last = scan, *self.corpus.whole(self.names[scan])
        _, values, background = self.last
        crop = values[tuple(slice(c, c + n) for c, n in zip(corner, self.cube, strict=True))]
        return bool((crop < background).mean() <= self.most)


def _describe(
    settings: DiscoverSettings, members: Members, folder: Path, mark: str, device: torch.device, listener: Listener
) -> Float64[np.ndarray, "n c"]:
    """The descriptors of the scans."""
    train = settings.train.model_copy(update={"batch": min(settings.train.batch, max(2, len(members.names)))})
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        describer = Describer(settings.width, settings.thumbnails.shape, training.stored(members.cache))
    try:
        run = training.open_run(folder, "discover", settings, mark, overwrite=False)
        _fit(describer, members, train, run, device, listener)
    finally:
        lock.release()  # for the next process
    describer.eval()
    found = []
    with torch.no_grad():
        for rows in np.array_split(members.rows, -(-len(members.rows) // train.batch)):
            image = members.cache.read(members.group, ("image",), members.cases, rows=rows).arrays["image"]
            found.append(describer.describe(torch.from_numpy(image).to(device)).double().cpu().numpy())
    return np.concatenate(found)


def _fit(
    describer: Describer, members: Members, train: TrainConfig, run: Run, device: torch.device, listener: Listener
) -> None:
    """Trains it; the run says on what, so that `pcrl replay` can show a step that broke down."""
    cache, mark, seed = members.cache, run.record["fingerprint"], run.record["settings"]["seed"]
    run.write_record(cache=str(cache.path.resolve()), cache_fingerprint=training.manifest_digest(cache))
    loader = Loader(cache, members.group, ("image",), members.cases, train.batch, seed, device, rows=members.rows)
    seen = patients_of.hashed(cache, sorted(set(members.patients)), mark)
    contract = training.contract_of(cache, describer.architecture, seen, "discover", cache.manifest["recipe"], 0)
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
