"""Masks of new patients' scans and pictures, each in the grid of its own file; for runs that classify, see `PREDICTORS`."""

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from pcrl_cli.core import files
from pcrl_cli.core.config import ENVIRONMENT, Layer
from pcrl_cli.core.errors import ConfigError, DataError, IntegrityError, MachineError, UsageError
from pcrl_cli.core.learner import Stored, Task
from pcrl_cli.core.listener import Listener
from pcrl_cli.core.names import find
from pcrl_cli.core.plan import Grid
from pcrl_cli.data.labelled import Imaged, Preparation, Volumes, prepare_images
from pcrl_cli.data.pictures import PicturePreparation, preparation, prepare_picture
from pcrl_cli.data.volume import Volume, as_filed
from pcrl_cli.engine.inference import Inference, ready
from pcrl_cli.engine.run import Run, unseal
from pcrl_cli.engine.tf32 import tf32
from pcrl_cli.engine.trainer import Device, Precision, resolve_device
from pcrl_cli.pure.crops import to_int16
from pcrl_cli.pure.volumes import label_map
from pcrl_cli.readers.brats import find_sequences
from pcrl_cli.readers.headers import suffix
from pcrl_cli.readers.image_io import PLAIN, read_whole, write_labels
from pcrl_cli.readers.tables import safe_name, walk_files
from pcrl_cli.readers.volume_io import SUFFIXES, read_volume, volume_files, write_mask
from pcrl_cli.stages.evaluate import settings_of
from pcrl_cli.stages.finetune import FinetuneSettings, recorded_task
from pcrl_cli.stages.results import Result
from pcrl_cli.stages.training import regions_in
from pcrl_cli.stages.weights import unfinished
from pcrl_cli.stages.workflows.volumes import OF_INFERENCE, UNIT, inference_config, native_regions
from pcrl_cli.tasks import TASKS

SCHEMA = "pcrl.predictions/1"
RECORD, TABLE = "predictions.json", "predictions.csv"
PREDICTORS = {"images": "pcrl_cli.stages.predict_labels"}
"""Cached group -> module that predicts something else than masks, imported on use."""
READS = {2: "pictures (PNG, JPEG or DICOM files)", 3: "scans (NIfTI, MHD or NRRD files, or folders of a DICOM series)"}
Found = TypeVar("Found")


@runtime_checkable
class Tried(Protocol):
    """A result of prediction, whatever was predicted."""

    failed: dict[str, str]


class PredictResult(Result):
    """Where the masks are. made, skipped: cases of this call; failed: inputs that could not be used, and why.

    volumes: by case and region, of every case of the folder, in `unit`: millilitres, or pixels of a picture.
    labels: which regions each number in a mask stands for.
    """

    schema_name: ClassVar[str] = "pcrl.predict/1"
    run: Path
    task: str
    out: Path
    table: Path
    made: list[str]
    skipped: list[str]
    failed: dict[str, str]
    files: dict[str, Path]
    volumes: dict[str, dict[str, float]]
    unit: str
    labels: dict[str, str]
    seconds: dict[str, float]
    notes: list[str]


class PredictLabelsResult(Result):
    """Where the table is. made, skipped: cases of this call; failed: inputs that could not be used, and why.

    probabilities: by case and class, of every case of the folder.
    """

    schema_name: ClassVar[str] = "pcrl.predict-labels/1"
    run: Path
    task: str
    out: Path
    table: Path
    made: list[str]
    skipped: list[str]
    failed: dict[str, str]
    probabilities: dict[str, dict[str, float]]
    seconds: dict[str, float]
    notes: list[str]


@dataclass(frozen=True)
class New:
    """A new case: the images to read by channel name; given: the input as it was named, for messages.

    flat: a picture, which is a file of its own.
    """

    name: str
    given: str
    images: Mapping[str, Path]
    flat: bool = False

    @property
    def source(self) -> list[dict[str, Any]]:
        """What it is recognised by when the command runs again."""
        paths = [path for image in self.images.values() for path in ([image] if self.flat else volume_files(image))]
        found = [(path, path.stat()) for path in paths]
        return [{"path": str(path.resolve()), "size": s.st_size, "mtime_ns": s.st_mtime_ns} for path, s in found]


@dataclass(frozen=True)
class Predictor:
    """A fine-tuned network and how its images were prepared.

    regions: the labels of each, as they are stored; values: what a file holds for these, where it is another number.
    """

    module: ModuleType
    task: Task
    config: Any
    how: Preparation | PicturePreparation
    channels: tuple[str, ...]
    regions: Mapping[str, tuple[int, ...]]
    values: Mapping[int, int]
    device: torch.device
    inference: Inference

    @property
    def flat(self) -> bool:
        """Whether it is of pictures."""
        return isinstance(self.how, PicturePreparation)

    @property
    def unit(self) -> str:
        return "px" if self.flat else "ml"

    @property
    def labels(self) -> dict[str, str]:
        """The regions of each number in a mask."""
        stored = sorted({label for labels in self.regions.values() for label in labels})
        return {
            str(self.values.get(n, n)): " + ".join(name for name, labels in self.regions.items() if n in labels)
            for n in stored
        }

    def __call__(self, case: New) -> tuple[np.ndarray, Volume, dict[str, float], list[str]]:
        """The label map in the axes of the file, the file's grid, the size of each region, and remarks."""
        imaged, filed, shape = self._image(case)
        notes = _doubts(case, imaged, self.how, self.module)
        stored, grid, native = to_int16(imaged.image), imaged.grid, imaged.native
        del imaged
        regions = self._regions(stored, grid, native)
        labels = label_map(regions, list(self.regions.values()))
        one = 1.0 if self.flat else float(np.prod(native.spacing)) / 1000
        sizes = {name: float(np.isin(labels, members).sum()) * one for name, members in self.regions.items()}
        mask = np.ascontiguousarray(as_filed(_valued(labels, self.values), filed.direction))
        assert mask.shape == shape
        return mask, filed, sizes, notes

    def _image(self, case: New) -> tuple[Imaged, Volume, tuple[int, ...]]:
        """The images as they were prepared for training, the file's geometry without its voxels, and its shape."""
        nothing = np.zeros((2, 2, 2), np.int16)
        if isinstance(self.how, PicturePreparation):
            picture = read_whole(case.images[self.channels[0]])
            imaged = prepare_picture(picture.pixels, self.how, case.given)
            place = imaged.native
            return imaged, Volume(nothing, place.spacing, place.origin, place.direction, case.given), place.shape
        volumes = Volumes(tuple(read_volume(case.images[name]) for name in self.channels), self.channels)
        imaged, first = prepare_images(volumes, self.how, identify=False), volumes.images[0]
        return imaged, replace(first, array=nothing), first.array.shape

    def _regions(self, stored: np.ndarray, grid: Grid, native: Grid) -> np.ndarray:
        with tf32(False):  # the same numbers on every card
            found = self.task.infer(torch.from_numpy(stored), self.config)  # type: ignore[operator]
        return native_regions(found.float().numpy(), grid, native, self.config, self.regions)


def predict(
    run: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    modalities: Mapping[str, Path] | None = None,
    layers: Sequence[Layer] = (),
    device: Device = "auto",
    precision: Precision = "auto",
    compile: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> PredictResult | PredictLabelsResult:
    """Writes `out/CASE_pred.nii.gz` (of a picture: .png) for every input, and `out/predictions.csv`.

    A mask has exactly the geometry of its input: probabilities are brought linearly from the working grid to the file's
    and compared with the threshold there. LiTS: 1 is liver. BraTS: 2 oedema, 1 the rest of the core, 4 enhancing tumour.
    One's own: the labels of the masks that were learned from.

    Args:
        run: fine-tuned for segmentation; of a run that classifies see `stages.predict_labels.predict_labels`, which is
            called then and gives a `PredictLabelsResult`.
        inputs: image files (NIfTI, MHD, NRRD) or folders of one DICOM series; for tasks of several sequences, folders
            with CASE_flair.nii.gz and so on; for a network of pictures, their files.
        modalities: one more case, its files by sequence.
        precision: auto is fp32 on every device, so that the masks are those that `evaluate` scores.
        compile: torch.compile of the network, which pays for many scans.
        layers: `learner.*` settings of inference: window, windows, overlap, tta, threshold, largest_component.
        overwrite: predict again what is there; masks of another run or of other settings are deleted.

    Raises:
        UsageError: nothing to do, or two inputs of one name.
        ConfigError: the run is no segmentation, or `out` holds predictions of another run or with other settings.
    """
    listener, opened = listener or Listener(), Run.load(run)
    settings = settings_of(opened, run, None)
    module = find("task", settings.task, TASKS)
    how = Inference.of(precision, compile)
    if module.GROUP in PREDICTORS:
        labels: PredictLabelsResult = import_module(PREDICTORS[module.GROUP]).predict_labels(
            opened,
            settings,
            inputs,
            out,
            modalities=modalities or {},
            layers=layers,
            device=device,
            inference=how,
            overwrite=overwrite,
            listener=listener,
        )
        return labels
    if module.GROUP != "volumes":
        raise ConfigError(
            f"{run} is of the task {settings.task}, which has no masks to predict; give a run of lits, brats or segment"
        )
    where = resolve_device(device)
    predictor = load(opened, settings, module, layers, where, how)
    cases, failed = new_cases(inputs, modalities or {}, predictor.channels, predictor.flat)
    book = Book.open(out, _facts(opened, predictor), overwrite, ".png" if predictor.flat else ".nii.gz")
    made, skipped, notes = list[str](), list[str](), unfinished(run) + how.notes
    listener.begin("predicting", len(cases), UNIT[2 if predictor.flat else 3])
    try:
        for done, case in enumerate(cases, start=1):
            if book.has(case) and not overwrite:
                skipped.append(case.name)
            else:
                reason = None if overwrite else book.taken(case)
                reason = reason or _one(predictor, case, book, notes)
                (made.append(case.name) if reason is None else failed.update({case.given: reason}))
            listener.advance(done, **({"failed": float(len(failed))} if failed else {}))
    finally:
        listener.end()
    for text in [*notes, *(f"left out {name}: {reason}" for name, reason in failed.items())]:
        listener.warn(text)
    book.write_table(tuple(predictor.regions), predictor.unit)
    rows = book.cases
    return PredictResult(
        run=run,
        task=settings.task,
        out=out,
        table=out / TABLE,
        made=made,
        skipped=skipped,
        failed=failed,
        files={name: out / row["file"] for name, row in rows.items()},
        volumes={name: row["ml"] for name, row in rows.items()},
        unit=predictor.unit,
        labels=predictor.labels,
        seconds={name: row["seconds"] for name, row in rows.items()},
        notes=notes,
    )


def require(result: Tried) -> None:
    """Ends a command some of whose inputs could not be used; what the others gave is written by then.

    Raises:
        DataError: there are some.
    """
    if result.failed:
        first, reason = next(iter(result.failed.items()))
        others = f" and {len(result.failed) - 1} more" if len(result.failed) > 1 else ""
        raise DataError(f"{first}{others} could not be used: {reason}")


def _one(predictor: Predictor, case: New, book: "Book", notes: list[str]) -> str | None:
    """Predicts and writes one case; returns why not, where the input cannot be used."""
    began = time.perf_counter()
    found = tried(case.given, lambda: predictor(case))
    if isinstance(found, str):
        return found
    mask, grid, sizes, remarks = found
    notes += remarks
    place = Grid(mask.shape, grid.spacing, grid.origin, grid.direction)
    book.write(case, mask, place, sizes, time.perf_counter() - began)
    return None


def tried(given: str, work: Callable[[], Found]) -> Found | str:
    """What came of one input, or why it cannot be used."""
    try:
        return work()
    except (DataError, IntegrityError) as error:
        return str(error)
    except MachineError as error:
        if isinstance(error.__cause__, OSError):  # this input's permission or disk; others may be read
            return str(error)
        raise
    except MemoryError as error:
        raise MachineError(f"not enough memory for {given}; free some, or leave it out") from error


def load(
    run: Run,
    settings: FinetuneSettings,
    module: ModuleType,
    layers: Sequence[Layer],
    device: torch.device,
    inference: Inference,
) -> Predictor:
    """The run's best or last weights (hash checked), for new images.

    Raises:
        ConfigError: training never came to weights; a setting that is not one of inference.
    """
    prepared = prepared_by(run)
    how, learned = preparation(prepared["settings"]["prepare"]), regions_in(prepared)
    stored = Stored(prepared.get("dim", 3), prepared["channels"], how.to_unit, tuple(prepared["classes"]), learned)
    checkpoint = unseal(run.weights_path().parent)
    task = recorded_task(run, settings, stored)
    task.load_state_dict(checkpoint.model)
    config = _config(settings, layers)
    values = {int(code): int(label) for code, label in prepared.get("label_values", {}).items()}
    channels = tuple(prepared.get("channel_names", ("picture",)))
    regions = module.REGIONS or learned
    return Predictor(module, ready(task, device, inference), config, how, channels, regions, values, device, inference)


def prepared_by(run: Run) -> dict[str, Any]:
    """How the run's images were prepared: its record says, so the cache is not needed."""
    if "prepared" not in run.record or not run.checkpoints:
        raise ConfigError(f"{run.folder} holds no weights yet; run its `pcrl finetune` command again to go on")
    return dict(run.record["prepared"])


def _config(settings: FinetuneSettings, layers: Sequence[Layer]) -> Any:
    """The task's own settings with those that were asked for; variables of other verbs are passed over.

    Raises:
        ConfigError: one of them is not of inference.
    """
    config = settings.learner
    for source, given in layers:
        if source == ENVIRONMENT:
            given = {"learner": {k: v for k, v in given.get("learner", {}).items() if k in OF_INFERENCE}}
        config = inference_config(config, given, source)
    return config


def _facts(run: Run, predictor: Predictor) -> dict[str, Any]:
    """What decides a mask besides the scan."""
    return {
        "weights": files.sha256_file(run.weights_path()),
        "inference": predictor.config.model_dump(mode="json"),
        "autocast": predictor.inference.precision == "bf16",
    } | ({"compile": True} if predictor.inference.compile else {})


def _valued(labels: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    """Stored labels as the data set's files hold them, in as few bits as these need."""
    if not values:
        return labels
    table = np.arange(256)
    table[list(values)] = list(values.values())
    out = np.empty(labels.shape, np.min_scalar_type(max(values.values())))
    for i, plane in enumerate(labels):  # an index takes 8 bytes a voxel
        out[i] = table[plane]
    return out


def _doubts(case: New, imaged: Imaged, how: Preparation | PicturePreparation, module: ModuleType) -> list[str]:
    """Sentences on images that can be used and may not be what they should be."""
    image = imaged.image
    if module.REGIONS is None and how.modality != "ct":
        return []  # nobody knows what one's own images look like
    if how.modality == "ct" and float(image.min()) >= 0:
        return [f"{case.given} holds no value under 0, which CT in HU does; check that its values are HU"]
    if how.modality == "mr" and image[0].size > 0.9 * np.prod(imaged.native.shape) and (image != 0).mean() > 0.9:
        return [f"{case.given} is not 0 nearly everywhere; the network knows brains without skull, with 0 around them"]
    return []


# ------------------------------------------------------------------------------------------------------- the inputs


def new_cases(
    inputs: Sequence[Path], modalities: Mapping[str, Path], channels: tuple[str, ...], flat: bool = False
) -> tuple[list[New], dict[str, str]]:
    """The cases that the inputs name, and those inputs that name none with the reason. flat: they are pictures.

    Raises:
        UsageError: no input, two of one name, or a modality that the network does not see.
    """
    cases, failed = list[New](), dict[str, str]()
    for path in inputs:
        try:
            require_dim(Path(path), 2 if flat else 3)
            cases.append(_picture(Path(path), channels) if flat else _case(Path(path), channels))
        except DataError as error:
            failed[str(path)] = str(error)
    if modalities and flat:
        raise UsageError("the network sees pictures, each a file of its own; name the files and leave --modality out")
    if modalities:
        cases.append(_named(modalities, channels))
    if not cases and not failed:
        what = (
            "the files of the pictures"
            if flat
            else "an image, a folder of one case, or --modality NAME=FILE for each sequence"
        )
        raise UsageError(f"name {what}")
    names = [case.name for case in cases]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UsageError(
                f"{cases[names.index(name)].given} and {cases[i].given} would both become {name}_pred"
                f"{'.png' if flat else '.nii.gz'}; predict them into different folders"
            )
    return cases, failed


def require_dim(path: Path, dim: int) -> None:
    """Raises:
    DataError: the name, or what a folder holds, says that the network of so many axes cannot read it.
    """
    found = _dim_of(path)
    if found is None or found == dim or not path.exists():
        return
    what = f"holds {UNIT[found]}" if path.is_dir() else f"is a {UNIT[found].removesuffix('s')}"
    raise DataError(
        f"{path} {what}, and this run reads {READS[dim]}: give it these, or take a run that was trained on {UNIT[found]}"
    )


def _dim_of(path: Path) -> Literal[2, 3] | None:
    """Of what a file is by its name, or all of a folder's files are; None where that is open, as of DICOM."""
    if not path.is_dir():
        return 3 if suffix(path) in SUFFIXES else 2 if suffix(path) in PLAIN else None
    endings = {suffix(Path(name)) for _, names in walk_files(path) for name in names}
    volumes, pictures = not endings.isdisjoint(SUFFIXES), not endings.isdisjoint(PLAIN)
    dicom = not endings.isdisjoint(("", ".dcm", ".dicom", ".ima"))
    return None if volumes == pictures or dicom else 3 if volumes else 2


def _case(path: Path, channels: tuple[str, ...]) -> New:
    """Raises:
    DataError: it is not there, or lacks sequences that the network sees.
    """
    if not path.exists():
        raise DataError(f"{path} is not there: check the path")
    name = safe_name(path.resolve().name[: -len(suffix(path)) or None] if path.is_file() else path.resolve().name)
    found = (find_sequences(path) | _channels_in(path, channels)) if path.is_dir() else {}
    if all(channel in found for channel in channels):
        return New(name, str(path), {channel: found[channel] for channel in channels})
    if len(channels) == 1 and not found:
        return New(name, str(path), {channels[0]: path})
    lacking = ", ".join(channel for channel in channels if channel not in found)
    if path.is_file():
        raise DataError(
            f"{path} is one image, and the network sees {', '.join(channels)}: name the folder of the case, or give "
            "--modality NAME=FILE for each"
        )
    raise DataError(
        f"{path} holds no image of {lacking} (CASE_NAME.nii.gz): add it, or give --modality NAME=FILE for each"
    )


def _channels_in(folder: Path, channels: tuple[str, ...]) -> dict[str, Path]:
    """The files of a case's folder that end in `_CHANNEL`, of several channels.

    Raises:
        DataError: two end alike.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if len(channels) > 1 else ():
        stem = path.name[: -len(suffix(path)) or None].lower()
        for channel in channels:
            if suffix(path) in SUFFIXES and stem.endswith(f"_{channel.lower()}"):
                if channel in found:
                    raise DataError(
                        f"{found[channel]} and {path} are both {channel}: one folder holds one case; put each into a folder of "
                        "its own, or name the files of one with --modality NAME=FILE"
                    )
                found[channel] = path
    return found


def _picture(path: Path, channels: tuple[str, ...]) -> New:
    """Raises:
    DataError: it is not there, or a folder.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, and a picture is a file: name the files, such as {path}/*.png")
    if not path.exists():
        raise DataError(f"{path} is not there: check the path")
    return New(safe_name(path.name[: -len(suffix(path)) or None]), str(path), {channels[0]: path}, flat=True)


def _named(modalities: Mapping[str, Path], channels: tuple[str, ...]) -> New:
    """Raises:
    UsageError: not the network's sequences. DataError: one of the files is a picture.
    """
    strange = [name for name in modalities if name not in channels]
    lacking = [name for name in channels if name not in modalities]
    if strange or lacking:
        what = f"--modality {strange[0]} is not" if strange else f"--modality {lacking[0]}=FILE is missing: it is"
        raise UsageError(f"{what} among what the network sees ({', '.join(channels)})")
    for path in modalities.values():
        require_dim(path, 3)
    first = modalities[channels[0]]
    stem = first.name[: -len(suffix(first)) or None] if suffix(first) in SUFFIXES else first.name
    name = safe_name(stem.removesuffix(f"_{channels[0]}"))
    return New(name, ", ".join(f"{n}={modalities[n]}" for n in channels), {n: modalities[n] for n in channels})


# ------------------------------------------------------------------------------------------------------ the folder


@dataclass
class Book:
    """What a folder of predictions holds: `predictions.json`, which every case is entered in when its mask is whole."""

    out: Path
    facts: dict[str, Any]
    cases: dict[str, dict[str, Any]]
    ending: str = ".nii.gz"

    @classmethod
    def open(cls, out: Path, facts: dict[str, Any], overwrite: bool, ending: str = ".nii.gz") -> "Book":
        """Raises:
        ConfigError: the folder's predictions are of other weights or settings. IntegrityError: its record is torn.
        MachineError: it cannot be made.
        """
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out} is a file, not a folder for predictions; choose another --out")
        with files.blame_machine(out):
            out.mkdir(parents=True, exist_ok=True)
            files.remove_leftovers(out)
        if not (out / RECORD).exists():
            return cls(out, facts, {}, ending)
        try:
            record = files.read_sealed(out / RECORD)
        except IntegrityError as error:
            if overwrite:
                return cls(out, facts, {}, ending)
            raise IntegrityError(
                f"{out / RECORD} is torn or was changed; predict again with --overwrite, or choose another --out"
            ) from error
        if record.get("schema") != SCHEMA:
            raise ConfigError(f"{out / RECORD} is of another schema than {SCHEMA}; choose another --out")
        if record["facts"] == facts:
            return cls(out, facts, record["cases"], ending)
        if overwrite:
            with files.blame_machine(out):
                for row in record["cases"].values():  # of another network: nobody may take them for this one's
                    if "file" in row:
                        (out / Path(row["file"]).name).unlink(missing_ok=True)
                for name in (TABLE, RECORD):
                    (out / name).unlink(missing_ok=True)
            return cls(out, facts, {}, ending)
        raise ConfigError(
            f"{out} holds predictions of another run or with other settings; choose another --out, or --overwrite"
        )

    def has(self, case: New) -> bool:
        """Whether the case was predicted from these files, and the mask is there as it was written."""
        row = self.cases.get(case.name)
        path = self.out / f"{case.name}_pred{self.ending}"
        return (
            row is not None and row["source"] == case.source and path.is_file() and path.stat().st_size == row["bytes"]
        )

    def taken(self, case: Any) -> str | None:
        """Why the case may not be entered: another file's row has its name."""
        row = self.cases.get(case.name)
        if row is None or {s["path"] for s in row["source"]} & {s["path"] for s in case.source}:
            return None
        return (
            f"{self.out} holds a prediction called {case.name} of {row['source'][0]['path']}; predict into another --out, or "
            "give --overwrite to replace it"
        )

    def write(self, case: New, mask: np.ndarray, grid: Grid, ml: dict[str, float], seconds: float) -> None:
        path = self.out / f"{case.name}_pred{self.ending}"
        if self.ending == ".png":
            write_labels(mask[..., 0], path)
        else:
            write_mask(mask, grid, path)
        self.cases[case.name] = {
            "file": path.name,
            "input": case.given,
            "bytes": path.stat().st_size,
            "source": case.source,
            "ml": {name: round(value, 6) for name, value in ml.items()},
            "seconds": round(seconds, 3),
        }
        self.save()

    def save(self) -> None:
        files.write_sealed(self.out / RECORD, {"schema": SCHEMA, "facts": self.facts, "cases": self.cases})

    def write_table(self, regions: tuple[str, ...], unit: str = "ml") -> None:
        """One row a case of the folder."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", *(f"{name}_{unit}" for name in regions), "file", "input", "seconds"])
        for name, row in sorted(self.cases.items()):
            writer.writerow(
                [name, *(row["ml"][region] for region in regions), row["file"], row["input"], row["seconds"]]
            )
        files.write_atomic(self.out / TABLE, text.getvalue().encode())
