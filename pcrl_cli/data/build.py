"""Cases + crop plans -> cache: parallel, resumable, one seed a case, spreadable over machines that share a folder.

Each worker reads one scan, executes the plans and seals the shard itself; what comes back is a small record. So a case
is either finished or untouched, whatever stops the process.
"""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from pydantic import BaseModel
from threadpoolctl import threadpool_limits

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError, DataError, IntegrityError, MachineError, blame_reading
from pcrl_cli.core.files import blame_machine, fingerprint, remove_leftovers
from pcrl_cli.core.plan import CropPlan, Drawn, Pictures, Scan
from pcrl_cli.data.cache import (
    SCHEMA,
    Record,
    gather_manifest,
    images_in,
    read_record,
    record_path,
    shard_path,
    write_bad,
    write_shard,
    write_split,
)
from pcrl_cli.pure.split import Part

PEAK_BYTES = 3 << 30  # what a case may take at its peak, where the caller has no better estimate
MEMORY_SHARE = 0.7  # of the free memory, for all workers together
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")

Status = Literal["made", "skipped", "refused"]
Read = Callable[[Case], Scan]
Files = Callable[[Case], list[Path]]
Bad = dict[str, str]
"""Why something could not be used, by the case or, of a shard of images, by the image."""
Outcomes = Generator[tuple[str, Status, Bad], None, None]
Report = Callable[[int, int, str, Status], None]
"""Called after each case: how many are done, of how many, which one, and what became of it."""


@dataclass
class BuildResult:
    """What a build did; the manifest is of the whole folder, the rest of this process's share of the cases."""

    folder: Path
    manifest: Record
    made: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    bad: Bad = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """One case and all that a worker needs for it."""

    case: Case
    read: Read
    plans: tuple[CropPlan, ...]
    folder: Path
    seed: int
    facts: Record


def build(
    cases: Sequence[Case],
    read: Read,
    plans: Sequence[CropPlan],
    out: Path,
    header: Record,
    *,
    jobs: int | Literal["auto"] = "auto",
    shard: tuple[int, int] | None = None,
    seed: int = 0,
    progress: Report | None = None,
    patients: Iterable[str] | None = None,
    parts: Mapping[str, Part] | None = None,
    root: Path | None = None,
    files: Files | None = None,
    peak_bytes: int = PEAK_BYTES,
) -> BuildResult:
    """Executes the plans on every case and seals one shard each.

    Args:
        cases: those to prepare. read: a picklable function.
        header: JSON values for the manifest; `header["settings"]` (what changes the voxels: spacing, window, ...) is part
            of the fingerprint, the rest is not.
        shard: (i, n), with 1 <= i <= n: every n-th case of the sorted list from the i-th on.
        patients: all of the data set, before any limit, for the split; those of `cases` if None.
        parts: of patients whose part the data set's own lists decide.
        root: what the sources' recorded paths are relative to.
        files: those that `read` reads; if one changes, the case is made again (None: see `source_of`).

    A case that was finished before, with the same settings and an unchanged source, is not made again; one that was refused
    is tried again.

    Raises:
        ConfigError: shard is not 1 <= i <= n, or the folder was split with another seed.
        MachineError: disk, memory or permission, of the scans too; a worker died. What is finished is kept.
    """
    ordered = sorted(cases, key=lambda case: case.id)
    patients = {patient for case in ordered for patient in case.patients} if patients is None else patients
    mine = _share(ordered, shard)
    with blame_machine(out):
        (out / "shards").mkdir(parents=True, exist_ok=True)
    for folder in (out, out / "shards"):
        remove_leftovers(folder)
    write_split(out, patients, seed, parts)
    full_header = header | {"seed": seed, "plans": _described(plans), "fingerprint": settings_of(plans, header, seed)}
    todo = [_job(case, read, plans, out, full_header, source_of(case, root, files)) for case in mine]
    result = BuildResult(out, {})
    try:
        with closing(_outcomes(todo, jobs, peak_bytes)) as outcomes:
            for done, (case_id, status, bad) in enumerate(outcomes, start=1):
                _note(result, case_id, status, bad)
                if progress is not None:
                    progress(done, len(todo), case_id, status)
    finally:  # also after an interruption: what was sealed is in the manifest
        result.manifest = gather_manifest(out, full_header)
    return result


def _share(cases: list[Case], shard: tuple[int, int] | None) -> list[Case]:
    i, n = shard or (1, 1)
    if not 1 <= i <= n:
        raise ConfigError(f"shard {i}/{n} does not exist: --shard I/N takes 1 <= I <= N")
    assert len({case.id for case in cases}) == len(cases), "a reader gave two cases the same id"
    return cases[i - 1 :: n]


def settings_of(plans: Sequence[CropPlan], header: Record, seed: int) -> str:
    """The fingerprint of all that decides a shard's bytes, but for the scan itself."""
    return fingerprint([SCHEMA, seed, _described(plans), header.get("settings", {})])


def auto_jobs(peak_bytes: int = PEAK_BYTES) -> int:
    """Workers for `--jobs auto`: the cores this process may use, or what 70 % of the free memory holds."""
    return max(1, min(_cores(), int(MEMORY_SHARE * _free_memory() / peak_bytes)))


def case_rng(seed: int, case_id: str, group: str) -> np.random.Generator:
    """The generator of one plan on one case, keyed by sha256("SEED:CASE:GROUP"); independent of every other plan."""
    digest = hashlib.sha256(f"{seed}:{case_id}:{group}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def source_of(case: Case, root: Path | None, files: Files | None = None) -> Record:
    """What a case was made from: its files (path, size, time of change), its patient, and the rows of its tables.

    files: names the case's files; without it these are all in its folder, or all of its name with any ending. Of images
    the record holds only a fingerprint, so that a shard of thousands stays small.

    Raises:
        MachineError: a file cannot be looked at.
    """
    with blame_reading(case.path):
        found = [_file_facts(path, root or case.path.parent) for path in (files or _files)(case)]
    if case.images:
        rows = [[image.id, image.patient, image.label] for image in case.images]
        return {"files": fingerprint(found), "tables": fingerprint(rows), "patient": ""}
    tables = [case.points.world.tolist(), case.points.label.tolist(), case.points.id] if case.points is not None else []
    findings = [found.tolist() if found is not None else [] for found in (case.lesions, case.excluded)]
    labels = [list(case.label)] if case.label else []
    return {"files": found, "tables": fingerprint([tables, *findings, *labels]), "patient": case.patient}


def _files(case: Case) -> list[Path]:
    if case.path.is_dir():
        return [path for path in sorted(case.path.rglob("*")) if path.is_file()]
    return sorted({case.path, *case.path.parent.glob(f"{escape(case.path.stem)}.*")} if case.path.exists() else [])


def _file_facts(path: Path, root: Path) -> Record:
    found = path.stat()
    name = path.relative_to(root) if path.is_relative_to(root) else path
    return {"path": name.as_posix(), "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def uncut(cut: Case, whole: Case, out: Path, settings: str, root: Path | None, files: Files | None = None) -> Case:
    """A case of images that a limit has cut, or as many of the whole case's images as its sealed shard holds already.

    So a limit never makes a finished shard smaller. settings: see `settings_of`.
    """
    record = read_record(record_path(out, cut.id)) or {}
    n = images_in(record)
    if not len(cut.images) < n <= len(whole.images):
        return cut
    held = replace(whole, images=whole.images[:n])
    return held if _holds(out, held.id, _facts_of(held, settings, source_of(held, root, files))) else cut


def _job(case: Case, read: Read, plans: Sequence[CropPlan], out: Path, header: Record, source: Record) -> _Job:
    return _Job(case, read, tuple(plans), out, header["seed"], _facts_of(case, header["fingerprint"], source))


def _facts_of(case: Case, settings: str, source: Record) -> Record:
    """What decides whether a sealed shard still is that of the case."""
    return {"patient": case.patient, "settings": settings, "source": source}


def _described(plans: Sequence[CropPlan]) -> list[Any]:
    """The plans as JSON: their group, kind and options."""
    return [
        {"group": plan.group, "kind": type(plan).__name__}
        | (plan.model_dump(mode="json") if isinstance(plan, BaseModel) else {})
        for plan in plans
    ]


# ------------------------------------------------------------------------------------------------------ one case


def _is_made(job: _Job) -> bool:
    """Whether an earlier run sealed the case and that still holds; refusals are no reason not to try again."""
    return _holds(job.folder, job.case.id, job.facts)


def _holds(folder: Path, case_id: str, facts: Record) -> bool:
    """Whether the case's shard is there and was made from these facts."""
    record, shard = read_record(record_path(folder, case_id)), shard_path(folder, case_id)
    if record is None or "scan_ids" not in record:  # a record of before there were ids: nor has the shard every array
        return False
    same = all(record.get(key) == value for key, value in facts.items())
    return same and shard.exists() and shard.stat().st_size == record["bytes"]


def _make(job: _Job) -> tuple[str, Status, Bad]:
    """Reads one scan, draws from it and seals the shard; a scan that cannot serve is recorded with its reason."""
    case, group, drawn = job.case, "", dict[str, Drawn]()
    try:
        with blame_reading(case.path):
            scan = job.read(case)
        for plan in job.plans:
            group = plan.group
            drawn[group] = plan.draw(scan, case, case_rng(job.seed, case.id, group))
    except (DataError, IntegrityError) as error:
        write_bad(job.folder, case.id, str(error), job.facts, *_kind(error, group))
        return case.id, "refused", {case.id: str(error)}
    except MemoryError as error:
        raise MachineError(f"not enough memory for the scan {case.id}: run again with fewer --jobs") from error
    record = write_shard(job.folder, case.id, drawn, job.facts | _facts(scan, case, drawn))
    return case.id, "made", _reasons(record)


def _facts(scan: Scan, case: Case, drawn: Mapping[str, Drawn]) -> Record:
    """Who and what is in the shard, for splits and for the search for leaks."""
    if not isinstance(scan, Pictures):
        return {"scan_ids": list(scan.scan_ids)}
    source = next((one.source.tolist() for one in drawn.values() if one.source is not None), range(len(scan.id)))
    columns = {"id": scan.id, "patient": scan.patient, "scan_id": scan.scan_ids}
    items = {name: [column[i] for i in source] for name, column in columns.items()}
    whose = {image.id: image.patient for image in case.images}
    bad = {name: {"patient": whose.get(name, ""), "reason": reason} for name, reason in sorted(scan.bad.items())}
    return {"scan_ids": [], "items": items, "bad": bad}


def _reasons(record: Record) -> Bad:
    """Why images of a shard could not be used."""
    return {name: why["reason"] for name, why in record.get("bad", {}).items()}


def _kind(error: DataError | IntegrityError, group: str) -> tuple[str, Record]:
    """A refusal's slug, and its counts by the group whose plan refused; without a group reading did."""
    slug = error.slug if isinstance(error, DataError) else "unreadable"
    counts = error.counts if isinstance(error, DataError) else {}
    return ("unreadable" if slug == "unusable" and not group else slug), ({group: counts} if counts else {})


def _note(result: BuildResult, case_id: str, status: Status, bad: Bad) -> None:
    result.bad.update(bad)
    if status != "refused":
        (result.made if status == "made" else result.skipped).append(case_id)


# ---------------------------------------------------------------------------------------------------- many cases


def _outcomes(todo: list[_Job], jobs: int | Literal["auto"], peak_bytes: int) -> Outcomes:
    """Case, status and reason of each job as it ends; those that need no work first."""
    work = []
    for job in todo:
        if _is_made(job):
            record = read_record(record_path(job.folder, job.case.id)) or {}
            yield job.case.id, "skipped", _reasons(record)
        else:
            work.append(job)
    n = min(auto_jobs(peak_bytes) if jobs == "auto" else jobs, len(work))
    yield from _in_pool(work, n) if n > 1 else _here(work)


def _here(work: list[_Job]) -> Outcomes:
    with threadpool_limits(1):  # as in a worker: the same sums in the same order
        for job in work:
            yield _make(job)


def _in_pool(work: list[_Job], jobs: int) -> Outcomes:
    """At most two cases a worker are under way; after an interruption the running ones are finished and sealed."""
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_start_worker)
    waiting, running = iter(work), set[Future[tuple[str, Status, Bad]]]()
    try:
        while True:
            while len(running) < 2 * jobs and (job := next(waiting, None)) is not None:
                with _sigint_held():  # a worker that starts now must not answer Ctrl-C before it knows better
                    running.add(pool.submit(_make, job))
            if not running:
                return
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()
    except BrokenProcessPool as error:
        raise MachineError(
            "a worker process died, most likely for want of memory (or, called from a script of your own, for want of "
            "an `if __name__ == '__main__'` guard): run again with fewer --jobs; "
            "what was finished is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _sigint_held() -> Iterator[None]:
    """Ctrl-C waits until this is over; processes that start meanwhile never hear of it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _start_worker() -> None:
    """One thread a worker; the parent alone answers Ctrl-C; no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_memory() -> int:
    """Bytes that this process may still take: free memory, or what its control group leaves."""
    free, limit = int(psutil.virtual_memory().available), _from_cgroup()
    return free if limit is None else min(free, limit)


def _from_cgroup() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)
