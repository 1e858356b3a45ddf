"""Raw scans to a cache of crops."""

import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from pcrl_cli import __version__
from pcrl_cli.core import files
from pcrl_cli.core.case import Case
from pcrl_cli.core.config import Layer, build, leaves, picked, told
from pcrl_cli.core.config import recipe as recipe_values
from pcrl_cli.core.errors import ConfigError, DataError, IntegrityError, MachineError, UsageError
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.core.plan import CropPlan
from pcrl_cli.data.build import auto_jobs, settings_of, uncut
from pcrl_cli.data.build import build as build_cache
from pcrl_cli.data.cache import Cache, forget_others, images_in, open_cache, read_split
from pcrl_cli.data.copies import copies_in
from pcrl_cli.pure.split import Part
from pcrl_cli.readers import READERS
from pcrl_cli.readers.masks import masks_of
from pcrl_cli.stages.kinds import Noted, PrepSettings, completed, kind_of, peak_of, settled
from pcrl_cli.stages.results import Plan, Result
from pcrl_cli.stages.workspace import Workspace

LABELS = "labels.json"
"""In a cache folder: which labels the masks hold, where nobody named them."""
OF_A_CACHE = frozenset(("manifest.json", "split.json", "bad_cases.jsonl", "shards", LABELS))
"""What a cache folder holds; `--overwrite` deletes nothing else."""
SAID = 20
"""Refusals that are said one by one; the others are counted."""


class PrepResult(Result):
    """What was prepared.

    unit: what is counted: scans, images.
    made, skipped, bad, bad_cases: scans or images, of this call; `bad_cases` are the refused ones and why.
    cases: of the whole cache, per case what was tried, kept and refused by reason; `totals` sums them.
    refused: of the whole cache, how many scans by kind of refusal (`core.errors.DataError` lists the kinds).
    refused_counts: the same counts as in `cases`, of refused scans that came as far as drawing.
    copies: how many of the cache's are the same as another one, under another patient, in another part; see `data.copies`.
    notes: the reader's remarks, and what is to be done about copies.
    """

    schema_name: ClassVar[str] = "pcrl.prep/1"
    cache: Path
    unit: str
    made: int
    skipped: int
    bad: int
    absent_rows: int
    cases: dict[str, dict[str, Any]]
    totals: dict[str, Any]
    bad_cases: dict[str, str]
    refused: dict[str, int]
    refused_counts: dict[str, dict[str, Any]]
    copies: dict[str, int]
    notes: list[str]
    patients: dict[str, int]
    bytes: int
    seconds: float


def prep_settings(
    name: str, recipe: str | None = None, layers: Sequence[Layer] = (), reader: ModuleType | None = None
) -> tuple[PrepSettings, dict[str, str]]:
    """The resolved settings of `pcrl prep NAME`, and where each value comes from. reader: if not the name's own."""
    reader = reader or find("data set", name, READERS)
    recipe_name = recipe or picked(layers, "recipe", "paper")
    base: Layer = (
        f"recipe {recipe_name}",
        {**recipe_values(recipe_name, "prep", reader.KIND), "reader": name, "recipe": recipe_name},
    )
    return build(kind_of(reader).SETTINGS, [base, *layers])


def prep(
    name: str,
    *,
    data: Path | None = None,
    out: Path | None = None,
    workspace: Workspace | None = None,
    recipe: str | None = None,
    layers: Sequence[Layer] = (),
    jobs: int | Literal["auto"] = "auto",
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
    options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> PrepResult | Plan:
    """Prepares a data set into sealed shards; resumable, and spreadable over processes that share `out`.

    Args:
        name: of a reader, see `readers.READERS`.
        data, out: default to the workspace's data/NAME and cache/NAME.
        limit: only the first so many scans, or images; a finished shard that holds more is kept as it is.
        shard: (i, n), this process's share, i from 1.
        options: of the reader: `patients`, a CSV that groups scans by patient; `candidates`, a CSV in place of
            candidates_V2.csv; `labels`, a CSV of a folder of images or scans; see its OPTIONS.

    Raises:
        ConfigError: `out` holds a cache of other settings, or (overwrite) something that is no cache; settings that
            this data set has no use for.
        UsageError: overwrite together with shard. DataError: nothing to read. Bad scans are in the result: see `require`.
    """
    began, listener, workspace = time.perf_counter(), listener or Listener(), workspace or Workspace()
    data, out, given = data or workspace.data(name), out or workspace.cache(name), dict(options or {})
    reader = _reader(name, data, given)
    settings, origin = prep_settings(name, recipe, layers, reader)
    if overwrite and shard is not None:
        raise UsageError("--overwrite with --shard would delete the other shards' work; remove the cache by hand first")
    kind = kind_of(reader)
    settings, peak_bytes = completed(kind, settings, reader, given), peak_of(kind, settings)
    of_reader = given | kind.options(settings)
    cases = _cases(reader, data, of_reader)
    noted = _noted(out)
    if given.get("masks") is not None and given.get("regions") is None and len(masks_of(cases[0])) == 1:
        listener.say(f"looking through the masks of {_count(cases)} {kind.UNIT} for their labels")
    settings = settled(kind, settings, reader, cases, given, noted)
    if regions := getattr(settings, "regions", None):
        listener.say(f"regions: {', '.join(regions)}")
    plans = kind.plans(settings, cases)
    kind.check(settings, origin, reader, plans, data)
    header = _header(settings, reader, plans, data, given) | kind.header(settings, reader, cases)
    header["scans"] = _count(cases)
    fingerprint = settings_of(plans, header, settings.seed)
    state = _state(out, fingerprint, header, cases, overwrite)
    chosen = _first(cases, limit)
    if chosen and not overwrite:  # only the last one may be cut
        chosen[-1] = uncut(chosen[-1], cases[len(chosen) - 1], out, fingerprint, data, reader.files)
    workers = auto_jobs(peak_bytes) if jobs == "auto" else jobs
    i, n = shard or (1, 1)
    mine = chosen[i - 1 :: n]
    known = {} if overwrite else {r["case"]: images_in(r) for r in (_manifest(out) or {}).get("cases", [])}
    missing = [case for case in mine if known.get(case.id) != len(case.images)]
    figures = {
        kind.UNIT: _count(cases),
        "there already": _count(mine) - _count(missing),
        "to prepare": _count(missing),
        "processes": workers,
        "gigabytes": float(f"{kind.nbytes(settings, plans, missing) / 1e9:.2g}"),
    }
    if state == "to be continued" and not missing:
        state = "finished, if no scan has changed"
    if dry_run:
        return Plan(verb="prep", out=out, state=state, settings=settings.model_dump(mode="json"), figures=figures)
    for line in told(settings, origin):
        listener.detail(line)
    listener.say(
        f"{figures['to prepare']} of {_count(cases)} {kind.UNIT} from {data}, {workers} processes (up to "
        f"{peak_bytes / 1e9:.1f} GB of memory each), about {figures['gigabytes']} GB to {out}"
    )
    notes: list[str] = reader.remarks(data, cases, **of_reader) if hasattr(reader, "remarks") else []
    for note in notes:
        listener.warn(note)
    if overwrite and out.exists():
        shutil.rmtree(out)
    forget_others(out, cases)
    if noted:
        with files.blame_machine(out):
            out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / LABELS, noted)
    refused: list[str] = []

    def progress(done: int, total: int, case: str, status: str) -> None:
        refused.extend([case] if status == "refused" else [])
        listener.advance(done, **{"left out": float(len(refused))})

    listener.begin("preparing", len(mine), "shards of images" if any(case.images for case in mine) else "scans")
    try:
        result = build_cache(
            chosen,
            kind.reading(settings, reader.__name__),
            plans,
            out,
            header,
            jobs=workers,
            shard=shard,
            seed=settings.seed,
            progress=progress,
            patients={patient for case in cases for patient in case.patients},
            parts=kind.parts(settings, reader, data) or _own_parts(cases),
            root=data,
            files=reader.files,
            peak_bytes=peak_bytes,
        )
    finally:
        listener.end()
    for case, reason in sorted(result.bad.items())[:SAID]:
        listener.warn(f"left out {case}: {reason}")
    if len(result.bad) > SAID:
        listener.warn(f"and {len(result.bad) - SAID} others: see {out / 'bad_cases.jsonl'}")
    _remember(out, result.made, workspace)
    split = read_split(out)
    copies = copies_in(Cache(out, result.manifest, split))
    for note in (doubled := copies.told(kind.UNIT, _against_copies(reader))):
        listener.warn(note)
    return PrepResult(
        cache=out,
        unit=kind.UNIT,
        made=_usable(mine, result.made, result.bad),
        skipped=_usable(mine, result.skipped, result.bad),
        bad=len(result.bad),
        absent_rows=_absent(reader, data, cases, of_reader),
        cases={r["case"]: r["counts"] for r in result.manifest["cases"]},
        totals=result.manifest["totals"]["counts"],
        bad_cases=result.bad,
        refused=result.manifest["totals"]["refused"],
        refused_counts={r["case"]: r["counts"] for r in result.manifest["refused"] if r["counts"]},
        copies=copies.counts,
        notes=notes + doubled,
        patients={"train": len(split.train), "val": len(split.val), "test": len(split.test)},
        bytes=result.manifest["totals"]["bytes"],
        seconds=round(time.perf_counter() - began, 2),
    )


def _against_copies(reader: ModuleType) -> str:
    """What to do where the same image is there twice."""
    both = "give both the same patient with --patients" if "patients" in reader.OPTIONS else ""
    return f"{both}, or remove one of them, and prepare again with --overwrite".removeprefix(", or ")


def _remember(out: Path, made: Collection[str], workspace: Workspace) -> None:
    """A workspace's own cache is not read again by its first run: the shards' hashes were taken as they were written."""
    if made and out.resolve().is_relative_to(workspace.root.resolve()):
        with suppress(MachineError, IntegrityError, OSError):  # a note is no reason to fail
            workspace.verified.parent.mkdir(exist_ok=True)
            open_cache(out).remember(made, workspace.verified)


def require(result: PrepResult, max_bad: float) -> None:
    """Ends a command whose scans are worse than allowed; everything good is sealed by then.

    Raises:
        DataError: more than max_bad of the scans that this call looked at were refused.
    """
    tried = result.made + result.skipped + result.bad
    if result.bad <= max_bad * tried:
        return
    first, reason = min(result.bad_cases.items())
    raise DataError(
        f"{result.bad} of {tried} {result.unit} could not be used, more than --max-bad {max_bad:g} allows "
        f"(the first: {first}: {reason}): see {result.cache / 'bad_cases.jsonl'}; the good ones are prepared"
    )


def _reader(name: str, data: Path, given: Mapping[str, Any]) -> ModuleType:
    """The reader of that name, or the one that it names for what lies there."""
    reader = find("data set", name, READERS)
    if not hasattr(reader, "module_for"):
        return reader
    if given.get("labels") is not None and given.get("masks") is not None:
        raise ConfigError("--labels and --masks make two caches, one to classify and one to segment; give one of them")
    found = import_module(reader.module_for(data, given.get("labels")))
    if given.get("masks") is None:
        return found
    return import_module(found.WITH_MASKS)


def _count(cases: Iterable[Case]) -> int:
    """How many scans, or images."""
    return sum(len(case.images) or 1 for case in cases)


def _usable(cases: Iterable[Case], names: Collection[str], bad: Collection[str]) -> int:
    """Of the cases with these names: how many scans, or images that could be read."""
    named = set(names)
    return sum(sum(i.id not in bad for i in case.images) or not case.images for case in cases if case.id in named)


def _first(cases: list[Case], limit: int | None) -> list[Case]:
    """So many scans, or images, from the front; a shard of images may be cut."""
    if limit is None or not any(case.images for case in cases):
        return cases[:limit]
    kept, left = list[Case](), limit
    for case in cases:
        if left > 0:
            kept.append(replace(case, images=case.images[:left]))
        left -= len(case.images)
    return kept


def _cases(reader: ModuleType, data: Path, options: Mapping[str, Any]) -> list[Case]:
    """Raises:
    ConfigError: an option that this reader does not know. DataError: there is nothing to read.
    """
    for name in options:
        if name not in reader.OPTIONS:
            raise ConfigError(f"--{name.replace('_', '-')} is not for the reader {reader.NAME}; leave it out")
    found: list[Case] = reader.cases(data, **options)
    if not found:
        raise DataError(f"there is no scan in {data}; point --data at the folder that holds them")
    return found


def _header(
    settings: PrepSettings, reader: ModuleType, plans: list[CropPlan], data: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What the manifest says of any cache; `Kind.header` adds what differs."""
    return {
        "settings": settings.model_dump(mode="json"),
        "kind": reader.KIND,
        "groups": sorted(plan.group for plan in plans),
        "recipe": settings.recipe,
        "reader": {
            "name": reader.NAME,
            "citation": reader.CITATION,
            "license": reader.LICENSE,
            "classes": list(reader.CLASSES),
        },
        "classes": list(reader.CLASSES),
        "data": str(data.resolve()),
        "options": {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in options.items()},
        "pcrl": __version__,
    }


def _state(out: Path, fingerprint: str, header: dict[str, Any], cases: list[Case], overwrite: bool) -> str:
    """Whether the cache is new or to be continued.

    Raises:
        ConfigError: it holds other settings (their names are listed), other patients, or what is no cache.
    """
    require_cache_or_nothing(out)
    path = out / "manifest.json"
    if overwrite and out.exists():
        return "to be made again"
    old = _manifest(out)
    if old is None:  # a torn manifest is gathered again from the records, which carry the settings too
        return "to be continued" if path.exists() else "new"
    _check_patients(out, old, cases)
    if old.get("fingerprint") != fingerprint:
        a, b = dict(leaves(old.get("settings", {}))), dict(leaves(header["settings"]))
        keys = ", ".join(sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))) or "its version"
        raise ConfigError(
            f"{out} holds a cache with other settings (different: {keys}); choose another --out, or --overwrite"
        )
    return "to be continued"


def require_cache_or_nothing(out: Path) -> None:
    """Raises:
    ConfigError: it is a file, or a folder that holds what no cache holds.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, not a folder for a cache; choose another --out")
    strange = sorted(p.name for p in out.glob("*") if p.name not in OF_A_CACHE and not p.name.endswith(".tmp"))
    if strange:
        raise ConfigError(f"{out} holds what no cache holds ({strange[0]}); choose another --out")


def _manifest(out: Path) -> dict[str, Any] | None:
    """What an earlier call made of the folder; None where it made nothing that can be read."""
    try:
        return files.read_sealed(out / "manifest.json") if (out / "manifest.json").exists() else None
    except IntegrityError:
        return None


def _noted(out: Path) -> Noted:
    """The labels that an earlier call found; a torn note is no note."""
    try:
        return dict(files.read_json(out / LABELS)) if (out / LABELS).exists() else {}
    except (IntegrityError, TypeError, ValueError):
        return {}


def _check_patients(out: Path, old: dict[str, Any], cases: list[Case]) -> None:
    """Refuses another grouping of the same scans: patients would change parts.

    Raises:
        ConfigError: a scan belongs to another patient than when the cache was made.
    """
    was = {record["case"]: record["patient"] for record in old.get("refused", []) if record["patient"]}
    for record in old.get("cases", []):
        items = record.get("items", {"id": [record["case"]], "patient": [record["patient"]]})
        was |= dict(zip(items["id"], items["patient"], strict=True))
    now = {owned.id: owned.patient for case in cases for owned in (case.images or (case,))}
    moved = [name for name, patient in now.items() if was.get(name, patient) != patient]
    if moved:
        first, unit = moved[0], "images" if any(case.images for case in cases) else "scans"
        raise ConfigError(
            f"{len(moved)} {unit} of {out} belonged to other patients when it was made (the first: {first} to "
            f"{was[first]}, now {now[first]}); give the same --patients, or choose another --out"
        )


def _own_parts(cases: Sequence[Case]) -> dict[str, Part] | None:
    """The part of every patient, where the user's own table says them."""
    owned = [owned for case in cases for owned in (case.images or (case,))]
    return {o.patient: o.part for o in owned if o.part is not None} or None


def _absent(reader: ModuleType, data: Path, cases: list[Case], options: Mapping[str, Any]) -> int:
    """Rows of tables about scans that are not there: counted, never bad cases."""
    count = getattr(reader, "absent_rows", None)
    return sum(count(data, cases, **options).values()) if count else 0
