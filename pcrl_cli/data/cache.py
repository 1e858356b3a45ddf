"""A cache folder: sealed HDF5 shards, a sidecar record each, a manifest gathered from the records, a split.

    manifest.json       what was prepared, how, and every shard with its hash
    split.json          training, validation and test patients
    bad_cases.jsonl     scans that could not be used, one line each: {"case", "patient", "reason"}
    labels.json         of masks whose regions nobody named: the labels of every file
    shards/CASE.h5      the arrays of one case (in 2D: of some thousand images); sealed: equal settings and scans give
                        equal bytes
    shards/CASE.json    its record: hash, size, source, settings, counts, shapes, the id of its voxels
    shards/CASE.bad.json   the record of a refused case: its `reason`, the kind of it (`slug`), what was tried (`counts`)

A shard is whole or absent, and no two processes write one file but the gathered ones, which any of them may repeat.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
from jaxtyping import Int
from pydantic import ValidationError

from pcrl_cli.core.case import Case
from pcrl_cli.core.errors import ConfigError, IntegrityError
from pcrl_cli.core.files import (
    blame_machine,
    read_json,
    read_sealed,
    seal,
    sha256_file,
    temporary,
    write_atomic,
    write_json,
    write_sealed,
)
from pcrl_cli.core.plan import Drawn
from pcrl_cli.pure.split import Part, Split, split

SCHEMA = "pcrl.cache/1"
IN_MEMORY = 2 << 30  # bytes of arrays above which a shard is built in a temporary file
LIBVER = ("earliest", "v110")  # fixed, so that the bytes do not depend on the HDF5 library's newest format
REPAIR = "run `pcrl prep` again with the same settings: only the damaged case is made again"

Record = dict[str, Any]
"""What a sidecar holds; JSON values only."""


# ------------------------------------------------------------------------------------------------------- writing


def write_shard(folder: Path, case: str, groups: Mapping[str, Drawn], facts: Record) -> Record:
    """Seals the arrays of one case as `shards/CASE.h5` and then its record as `shards/CASE.json`.

    facts: what the record holds besides (patient, settings, source, scan_ids; of images `items` and `bad`).

    Raises:
        MachineError: the disk is full or the folder may not be written to.
    """
    size, digest = _write_h5(shard_path(folder, case), groups)
    record = {
        **facts,
        "schema": SCHEMA,
        "case": case,
        "bytes": size,
        "sha256": digest,
        "counts": {name: dict(sorted(drawn.counts.items())) for name, drawn in groups.items()},
        "arrays": {name: _shapes(drawn.arrays) for name, drawn in groups.items()},
    }
    write_sealed(record_path(folder, case), record)
    bad_path(folder, case).unlink(missing_ok=True)
    return record


def write_bad(
    folder: Path, case: str, reason: str, facts: Record, slug: str = "unusable", counts: Record | None = None
) -> Record:
    """Records a refused case as `shards/CASE.bad.json`; what an earlier run made of it is removed first."""
    record_path(folder, case).unlink(missing_ok=True)
    shard_path(folder, case).unlink(missing_ok=True)
    record = {**facts, "schema": SCHEMA, "case": case, "reason": reason, "slug": slug, "counts": counts or {}}
    write_sealed(bad_path(folder, case), record)
    return record


def shard_path(folder: Path, case: str) -> Path:
    return folder / "shards" / f"{case}.h5"


def record_path(folder: Path, case: str) -> Path:
    return folder / "shards" / f"{case}.json"


def bad_path(folder: Path, case: str) -> Path:
    return folder / "shards" / f"{case}.bad.json"


def forget_others(folder: Path, cases: Sequence[Case]) -> int:
    """Removes shards of images that the listing has no longer; returns how many.

    A list that has grown or shrunk is cut into other shards, and an image must not be in two of them. Scans in 3D have
    shards of their own, which do no harm.
    """
    here = {case.id for case in cases if case.images}
    gone = []
    for path in (folder / "shards").glob("*.json") if here else ():
        record = read_record(path)
        if record is not None and "items" in record and record["case"] not in here:
            gone.append(record["case"])
    for name in gone:
        record_path(folder, name).unlink(missing_ok=True)
        shard_path(folder, name).unlink(missing_ok=True)
    return len(gone)


def write_split(folder: Path, patients: Iterable[str], seed: int, given: Mapping[str, Part] | None = None) -> Split:
    """Makes or extends `split.json`; patients that it holds already never move. given: see `pure.split`.

    Raises:
        ConfigError: it was made with another seed.
        IntegrityError: the file is torn.
    """
    existing = read_split(folder) if (folder / "split.json").exists() else None
    result = split(patients, seed, existing, given)
    if result != existing:
        write_sealed(folder / "split.json", {"schema": SCHEMA, **result.model_dump()})
    return result


def read_split(folder: Path) -> Split:
    """The split of a cache.

    Raises:
        IntegrityError: it is missing, torn or of another form.
    """
    path = folder / "split.json"
    try:
        value = read_sealed(path)
    except IntegrityError as error:
        again = "run the command that made it again"
        raise IntegrityError(str(error).replace(again, "delete it and run `pcrl prep` again")) from error
    try:
        return Split.model_validate({name: field for name, field in value.items() if name != "schema"})
    except (AttributeError, ValidationError) as error:
        raise IntegrityError(f"{path} is not a split of patients: delete it and run `pcrl prep` again") from error


def gather_manifest(folder: Path, header: Record) -> Record:
    """Writes `manifest.json` and `bad_cases.jsonl` from the records, and returns the manifest.

    header: about the whole cache; `header["fingerprint"]` says which records belong to it; others are ignored.
    Processes that share a folder may all call it: whoever comes last sees every record.
    """
    while True:
        good, bad = _records(folder, header["fingerprint"])
        refused = [
            {key: r.get(key, "unusable") for key in ("case", "patient", "reason", "slug")}
            | {"counts": r.get("counts", {})}
            for r in bad
        ]
        refused += [
            {"case": name, **why, "slug": "unreadable", "counts": {}}
            for r in good
            for name, why in r.get("bad", {}).items()
        ]
        totals = _totals(good) | {"refused": dict(sorted(Counter(row["slug"] for row in refused).items()))}
        manifest = {
            "schema": SCHEMA,
            **header,
            "cases": good,
            "bad_cases": len(refused),
            "refused": refused,
            "totals": totals,
        }
        keys = ("case", "patient", "reason")
        lines = [json.dumps({k: row[k] for k in keys}, ensure_ascii=False) + "\n" for row in refused]
        write_atomic(folder / "bad_cases.jsonl", "".join(lines).encode())
        write_sealed(folder / "manifest.json", manifest)
        if _records(folder, header["fingerprint"]) == (good, bad):  # nobody sealed a case meanwhile
            return manifest


def _records(folder: Path, settings: str) -> tuple[list[Record], list[Record]]:
    """The records of usable and of refused cases, sorted by case; torn ones count as absent."""
    good: list[Record] = []
    bad: list[Record] = []
    for path in (folder / "shards").glob("*.json"):
        record = read_record(path)
        if record is not None and record.get("settings") == settings:
            (bad if "reason" in record else good).append(record)
    return sorted(good, key=lambda r: str(r["case"])), sorted(bad, key=lambda r: str(r["case"]))


def read_record(path: Path) -> Record | None:
    """The record in a sidecar, or None where it is missing, torn or of another schema."""
    try:
        record = read_sealed(path)
    except IntegrityError:
        return None
    return record if record.get("schema") == SCHEMA else None


def _totals(records: list[Record]) -> Record:
    """Sums over cases: cases, patients, bytes, and the counts of every group."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for group, values in record["counts"].items():
            counts.setdefault(group, Counter()).update(values)
    patients = {patient for record in records for patient in patients_of(record)}
    sums = {group: dict(sorted(values.items())) for group, values in sorted(counts.items())}
    return {"cases": len(records), "patients": len(patients), "bytes": sum(r["bytes"] for r in records), "counts": sums}


def patients_of(record: Record) -> frozenset[str]:
    """Everybody in a shard."""
    return frozenset(record["items"]["patient"]) if "items" in record else frozenset((record["patient"],))


def images_in(record: Record) -> int:
    """How many images a shard was made from, those that could not be read too; 0 where it is not of images."""
    return len(record["items"]["id"]) + len(record.get("bad", {})) if "items" in record else 0


def _shapes(arrays: Mapping[str, np.ndarray]) -> Record:
    return {name: {"shape": list(array.shape), "dtype": array.dtype.str} for name, array in sorted(arrays.items())}


def _write_h5(path: Path, groups: Mapping[str, Drawn]) -> tuple[int, str]:
    """Writes a sealed HDF5 file; returns its size and SHA-256."""
    if sum(array.nbytes for drawn in groups.values() for array in drawn.arrays.values()) <= IN_MEMORY:
        image = _image(groups)
        write_atomic(path, image)
        return len(image), hashlib.sha256(image).hexdigest()
    draft = temporary(path)
    with blame_machine(path):
        try:
            with h5py.File(draft, "w", libver=LIBVER, locking=False) as file:
                _fill(file, groups)
            size, digest = draft.stat().st_size, sha256_file(draft)
            seal(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    return size, digest


def _image(groups: Mapping[str, Drawn]) -> bytes:
    """The bytes of an HDF5 file that never was on disk."""
    with h5py.File("shard", "w", driver="core", backing_store=False, libver=LIBVER) as file:
        _fill(file, groups)
        file.flush()
        return file.id.get_file_image()


def _fill(file: h5py.File, groups: Mapping[str, Drawn]) -> None:
    """Raw arrays, one item or what the plan says a chunk, in the order of their names, without a clock."""
    for group in sorted(groups):
        drawn = groups[group]
        for name, array in sorted(drawn.arrays.items()):
            chunks = drawn.chunks.get(name) or ((1, *array.shape[1:]) if array.ndim > 1 and array.size else None)
            if chunks is not None:
                chunks = tuple(min(c, n) for c, n in zip(chunks, array.shape, strict=True))
            packed = {"compression": "gzip", "compression_opts": 4, "shuffle": False} if name in drawn.packed else {}
            file.create_dataset(f"{group}/{name}", data=array, chunks=chunks, track_times=False, **packed)


# ------------------------------------------------------------------------------------------------------- reading


class Items(NamedTuple):
    """Arrays of several cases, joined along their first axis.

    case: for each item the position of its case in case_ids.
    """

    arrays: dict[str, np.ndarray]
    case: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Cache:
    """An opened cache. Holds records only; every read opens and closes its shard, so it may cross processes."""

    path: Path
    manifest: Record
    split: Split

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that its shards hold: `pairs`, `candidates`, ..."""
        return tuple(sorted({group for record in self.manifest["cases"] for group in record["arrays"]}))

    @cached_property
    def records(self) -> dict[str, Record]:
        """The record of every usable case by its id."""
        return {record["case"]: record for record in self.manifest["cases"]}

    @property
    def refused(self) -> tuple[Record, ...]:
        """The scans that could not be used: {case, patient, reason, slug, counts} each."""
        return tuple(self.manifest.get("refused", ()))

    def patients(self, part: Part | Literal["all"] = "all") -> tuple[str, ...]:
        """The patients of a part that have a usable case, sorted."""
        present = {patient for record in self.manifest["cases"] for patient in patients_of(record)}
        return tuple(patient for patient in self.split.part(part) if patient in present)

    def cases(self, part: Part | Literal["all"] = "all", patients: Iterable[str] | None = None) -> tuple[str, ...]:
        """The ids of the usable cases of a part, sorted; of these patients only, if given.

        In 2D: of the shards that hold at least one of their images; `rows` says which images are theirs.
        """
        wanted = set(self.split.part(part))
        if patients is not None:
            wanted &= set(patients)
        return tuple(record["case"] for record in self.manifest["cases"] if patients_of(record) & wanted)

    def rows(self, group: str, array: str, case_ids: Sequence[str], patients: Iterable[str]) -> Int[np.ndarray, " n"]:
        """Where, in the joined arrays of these cases, the items of these patients are."""
        wanted, kept, first = set(patients), [], 0
        for case, size in zip(case_ids, self.sizes(group, array, case_ids), strict=True):
            record = self.records[case]
            owner = record["items"]["patient"] if "items" in record else [record["patient"]] * int(size)
            kept.append(first + np.flatnonzero([patient in wanted for patient in owner]))
            first += int(size)
        return np.concatenate(kept).astype(np.int64) if kept else np.zeros(0, np.int64)

    def owners(self, group: str, array: str, case_ids: Sequence[str]) -> list[str]:
        """The patient of every item in the joined arrays of these cases."""
        found: list[str] = []
        for case, size in zip(case_ids, self.sizes(group, array, case_ids), strict=True):
            record = self.records[case]
            found += record["items"]["patient"] if "items" in record else [record["patient"]] * int(size)
        return found

    def sizes(self, group: str, array: str, case_ids: Sequence[str]) -> Int[np.ndarray, " cases"]:
        """How many items each case has, from the records alone."""
        return np.array([self._facts(group, array, case)["shape"][0] for case in case_ids], dtype=np.int64)

    def nbytes(self, group: str, arrays: Sequence[str], case_ids: Sequence[str]) -> int:
        """Bytes of arrays over some cases, from the records alone."""
        facts = [self._facts(group, name, case) for name in arrays for case in case_ids]
        return sum(math.prod(f["shape"]) * np.dtype(f["dtype"]).itemsize for f in facts)

    def read(
        self, group: str, arrays: Sequence[str], case_ids: Sequence[str], rows: Int[np.ndarray, " n"] | None = None
    ) -> Items:
        """Arrays of one group over some cases, joined in the order of case_ids.

        arrays: names whose first axes are equal in each case.
        rows: positions in the joined arrays to read, in this order; all if None.

        Raises:
            ConfigError: the cache has no such array.
            IntegrityError: a shard is torn or is not what its record says.
        """
        counts = {name: self.sizes(group, name, case_ids) for name in arrays}
        n = counts[arrays[0]]
        assert all(np.array_equal(n, other) for other in counts.values()), f"{arrays} have different first axes"
        case = np.repeat(np.arange(len(n)), n)
        within = np.arange(len(case)) - np.repeat(np.cumsum(n) - n, n)
        if rows is not None:
            case, within = case[rows], within[rows]
        out = {name: self._empty(group, name, case_ids, len(case)) for name in arrays}
        for i in np.unique(case):
            places = np.flatnonzero(case == i)
            self._read_case(group, case_ids[i], within[places], {name: out[name] for name in arrays}, places)
        return Items(out, case)

    def read_box(
        self, case: str, group: str, array: str, start: Sequence[int] = (), size: Sequence[int] = ()
    ) -> np.ndarray:
        """A box of one large array: `start` and `size` are of its last axes, the axes before them are read whole.

        Raises:
            ConfigError: the cache has no such array. IntegrityError: the shard is torn or not what its record says.
        """
        shape = self._facts(group, array, case)["shape"]
        inner = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
        box = (*(slice(None) for _ in range(len(shape) - len(inner))), *inner)
        with self._opened(case) as file:
            stored = file[group][array]
            self._require_shape(case, list(stored.shape), shape)
            return np.asarray(stored[box])

    def verify(self, mode: Literal["full", "quick"] = "full", memory: Path | None = None) -> int:
        """Checks the shards; returns how many were hashed.

        quick: they are there and have the recorded size. full: their SHA-256 too, remembered in the JSON file `memory`
        by path, size, time of change and inode, so that an unchanged file is hashed once.

        Raises:
            IntegrityError: a shard is missing, torn or changed.
        """
        known = _remembered(memory)
        hashed = 0
        for case, record in self.records.items():
            path = shard_path(self.path, case)
            key = self._identity(path, record)
            if mode == "full" and known.get(key) != record["sha256"]:
                hashed += 1
                if sha256_file(path) != record["sha256"]:
                    raise IntegrityError(f"{path} was changed or damaged (its hash differs): {REPAIR}")
                known[key] = record["sha256"]
        if memory and hashed:
            write_json(memory, known)
        return hashed

    def remember(self, cases: Iterable[str], memory: Path) -> None:
        """Notes shards that were hashed while they were written, as `verify` notes those that it has read.

        Raises:
            MachineError: the note cannot be written. IntegrityError: a shard is missing or of another size.
        """
        known = _remembered(memory)
        for case in cases:
            record = self.records[case]
            known[self._identity(shard_path(self.path, case), record)] = record["sha256"]
        write_json(memory, known)

    def _identity(self, path: Path, record: Record) -> str:
        """What a file is recognised by; its size is checked on the way."""
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise IntegrityError(f"{path} is missing: {REPAIR}") from error
        if found.st_size != record["bytes"]:
            raise IntegrityError(f"{path} is torn ({found.st_size} bytes instead of {record['bytes']}): {REPAIR}")
        return f"{path.resolve()}|{found.st_size}|{found.st_mtime_ns}|{found.st_ino}"

    def _facts(self, group: str, array: str, case: str) -> Record:
        """Shape and dtype of an array, as recorded."""
        found: Record | None = self.records[case]["arrays"].get(group, {}).get(array)
        if found is None:
            raise ConfigError(
                f"the cache {self.path} has no {group}/{array} (its groups: {', '.join(self.groups)}): "
                "prepare it again with the recipe that needs it"
            )
        return found

    def _empty(self, group: str, array: str, case_ids: Sequence[str], n: int) -> np.ndarray:
        """Room for n items of an array, in a type that holds those of every case."""
        facts = [self._facts(group, array, case) for case in case_ids]
        dtype = np.result_type(*(np.dtype(f["dtype"]) for f in facts))
        return np.empty((n, *facts[0]["shape"][1:]), dtype)

    def _read_case(
        self,
        group: str,
        case: str,
        rows: Int[np.ndarray, " k"],
        out: dict[str, np.ndarray],
        places: Int[np.ndarray, " k"],
    ) -> None:
        """Items `rows` of one shard into `places` of the arrays in `out`."""
        with self._opened(case) as file:
            for name, target in out.items():
                stored = file[group][name]
                self._require_shape(case, list(stored.shape), self._facts(group, name, case)["shape"])
                if np.array_equal(rows, np.arange(len(stored))):
                    target[places] = stored[()]
                    continue
                for place, row in zip(places, rows, strict=True):
                    target[place] = stored[row]

    def _require_shape(self, case: str, found: list[int], recorded: list[int]) -> None:
        if found != recorded:
            path = shard_path(self.path, case)
            raise IntegrityError(f"{path} is not the file that its record describes: {REPAIR}")

    @contextmanager
    def _opened(self, case: str) -> Iterator[h5py.File]:
        """The shard of a case; what is wrong with it is said in one sentence."""
        path = shard_path(self.path, case)
        try:
            with h5py.File(path, "r", locking=False) as file:
                yield file
        except (OSError, KeyError) as error:
            what = "missing" if not path.exists() else "torn or unreadable"
            raise IntegrityError(f"{path} is {what}: {REPAIR}") from error


def _remembered(memory: Path | None) -> dict[str, str]:
    """Hashes by file, as noted before; a torn note is no note."""
    try:
        found = read_json(memory) if memory and memory.exists() else {}
    except IntegrityError:
        found = {}
    return found if isinstance(found, dict) else {}


def open_cache(path: Path) -> Cache:
    """Opens a cache folder.

    Raises:
        ConfigError: there is no cache, it is of another schema, or it holds no usable case.
        IntegrityError: its manifest or split is torn or missing.
    """
    if not (path / "manifest.json").exists():
        raise ConfigError(
            f"{path} is no cache (it has no manifest.json): make one with `pcrl prep`, or name another folder"
        )
    found = read_json(path / "manifest.json")
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise ConfigError(f"the cache {path} is of schema {schema}, and this version reads {SCHEMA}: prepare it again")
    manifest = read_sealed(path / "manifest.json")
    if not manifest["cases"]:
        raise ConfigError(f"the cache {path} holds no usable case: see its bad_cases.jsonl, and prepare it again")
    return Cache(path, manifest, read_split(path))
