"""Probabilities of new images or scans: `pcrl predict` for runs that classify whole images."""

import csv
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Num

from pcrl_cli.core import files
from pcrl_cli.core.config import ENVIRONMENT, Layer
from pcrl_cli.core.errors import ConfigError, DataError, UsageError
from pcrl_cli.core.learner import Stored, Task
from pcrl_cli.core.listener import Listener
from pcrl_cli.data.volume import prepare
from pcrl_cli.engine.inference import Inference, ready
from pcrl_cli.engine.run import Run, unseal
from pcrl_cli.engine.tf32 import tf32
from pcrl_cli.engine.trainer import resolve_device
from pcrl_cli.pure.crops import whole
from pcrl_cli.readers import folder, image_folder
from pcrl_cli.readers.headers import suffix
from pcrl_cli.readers.image_io import read_image
from pcrl_cli.readers.tables import safe_name
from pcrl_cli.readers.volume_io import read_volume, volume_files
from pcrl_cli.stages.finetune import FinetuneSettings, recorded_task
from pcrl_cli.stages.kinds.crops import CropSettings
from pcrl_cli.stages.kinds.images import GREY, ImageSettings
from pcrl_cli.stages.predict import TABLE, Book, PredictLabelsResult, prepared_by, require_dim, tried
from pcrl_cli.stages.weights import unfinished

AT_ONCE = {2: 64, 3: 1}
"""Images that the network sees together, by their axes; as often the record is written."""


@dataclass(frozen=True)
class NewImage:
    """A new image or scan. name: as `prep folder` would name it; given: the input as it was named, for messages."""

    name: str
    given: str
    path: Path
    dim: int

    @property
    def source(self) -> list[dict[str, Any]]:
        """What it is recognised by when the command runs again."""
        found = [(path, path.stat()) for path in ([self.path] if self.dim == 2 else volume_files(self.path))]
        return [{"path": str(path.resolve()), "size": s.st_size, "mtime_ns": s.st_mtime_ns} for path, s in found]


@dataclass(frozen=True)
class Labeller:
    """A fine-tuned network, and how its images were prepared."""

    task: Task
    classes: tuple[str, ...]
    how: ImageSettings | CropSettings
    device: torch.device

    @property
    def dim(self) -> int:
        return 2 if isinstance(self.how, ImageSettings) else 3

    def read(self, image: NewImage) -> tuple[Num[np.ndarray, "1 *space"], list[str]]:
        """An image as the cache holds it, and remarks.

        Raises:
            DataError: it cannot be used.
        """
        if isinstance(self.how, ImageSettings):
            return read_image(image.path, self.how.size, self.how.aspect).pixels[None], []
        scan = prepare(read_volume(image.path), self.how.intensity, self.how.spacing_mm)
        stored, notes = whole(scan, self.how.whole.shape, self.how.whole.fit)[None], []
        if self.how.intensity.modality == "ct" and float(scan.values.min()) >= 0:
            notes.append(f"{image.given} holds no value under 0, which CT in HU does; check that its values are HU")
        return stored, notes

    def __call__(self, stored: Sequence[Num[np.ndarray, "1 *space"]]) -> Num[np.ndarray, "n k"]:
        """Probabilities, as evaluation computes them."""
        with tf32(False):  # the same numbers on every card
            batch = {"image": torch.from_numpy(np.stack(stored)).to(self.device)}
            return self.task.predict(batch).float().cpu().numpy()


def predict_labels(
    opened: Run,
    settings: FinetuneSettings,
    inputs: Sequence[Path],
    out: Path,
    *,
    modalities: Mapping[str, Path],
    layers: Sequence[Layer],
    device: Any,
    inference: Inference,
    overwrite: bool,
    listener: Listener,
) -> PredictLabelsResult:
    """Writes `out/predictions.csv`, a row an image with one probability a class; see `stages.predict.predict`.

    Args:
        inputs: in 2D PNG, JPEG or DICOM files, or folders of these; in 3D volume files, or folders of volumes or DICOM
            series.

    Raises:
        UsageError: nothing to do, two inputs of one name, or files by modality.
        ConfigError: a setting, of which there are none here; `out` holds predictions of another run.
    """
    _refuse_settings(settings, modalities, layers)
    labeller = load(opened, settings, resolve_device(device), inference)
    cases, failed, notes = new_images(inputs, labeller.dim)
    notes += unfinished(opened.folder) + inference.notes
    facts = {"weights": files.sha256_file(opened.weights_path()), "classes": list(labeller.classes)}
    facts |= {"inference": inference.mark} if inference.mark else {}
    book = cast(LabelBook, LabelBook.open(out, facts, overwrite))
    made, skipped = list[str](), list[str]()
    listener.begin("predicting", len(cases), "images" if labeller.dim == 2 else "scans")
    try:
        for done, group in _groups(cases, AT_ONCE[labeller.dim]):
            wanted = [case for case in group if overwrite or not book.has(case)]
            skipped += [case.name for case in group if case not in wanted]
            taken = {} if overwrite else {case.given: reason for case in wanted if (reason := book.taken(case))}
            failed.update(taken)
            wanted = [case for case in wanted if case.given not in taken]
            made += _some(labeller, wanted, book, failed, notes)
            listener.advance(done, **({"failed": float(len(failed))} if failed else {}))
    finally:
        listener.end()
    for text in [*notes, *(f"left out {name}: {reason}" for name, reason in failed.items())]:
        listener.warn(text)
    book.write_table(labeller.classes)
    return PredictLabelsResult(
        run=opened.folder,
        task=settings.task,
        out=out,
        table=out / TABLE,
        made=made,
        skipped=skipped,
        failed=failed,
        probabilities={name: row["probability"] for name, row in book.cases.items()},
        seconds={name: row["seconds"] for name, row in book.cases.items()},
        notes=notes,
    )


def load(run: Run, settings: FinetuneSettings, device: torch.device, inference: Inference) -> Labeller:
    """The run's best or last weights (hash checked), for new images.

    Raises:
        ConfigError: training never came to weights.
    """
    prepared = prepared_by(run)
    how: ImageSettings | CropSettings
    if prepared["dim"] == 2:
        how, to_unit = ImageSettings.model_validate(prepared["settings"]), GREY
    else:
        how = CropSettings.model_validate(prepared["settings"])
        to_unit = how.intensity.store_scale, how.intensity.store_offset
    stored = Stored(prepared["dim"], prepared["channels"], to_unit, tuple(prepared["classes"]))
    checkpoint = unseal(run.weights_path().parent)
    task = recorded_task(run, settings, stored)
    task.load_state_dict(checkpoint.model)
    return Labeller(ready(task, device, inference), stored.classes, how, device)


def new_images(inputs: Sequence[Path], dim: int) -> tuple[list[NewImage], dict[str, str], list[str]]:
    """The images that the inputs name, those inputs that name none with the reason, and remarks.

    Raises:
        UsageError: no input, or two of one name.
    """
    found, failed, notes = list[NewImage](), dict[str, str](), list[str]()
    for path in map(Path, inputs):
        try:
            require_dim(path, dim)
            found += _in_folder(path, dim, notes) if path.is_dir() else [_file(path, dim)]
        except DataError as error:
            failed[str(path)] = str(error)
    if not found and not failed:
        raise UsageError("name an image or a scan, or a folder of these")
    first: dict[str, NewImage] = {}
    for image in found:
        if first.setdefault(image.name, image) is not image:
            raise UsageError(
                f"{first[image.name].given} and {image.given} would both become the row {image.name}; predict them into "
                "different folders"
            )
    return found, failed, notes


def _file(path: Path, dim: int) -> NewImage:
    """Raises:
    DataError: it is not there.
    """
    if not path.exists():
        raise DataError(f"{path} is not there: check the path")
    return NewImage(path.name if dim == 2 else safe_name(path.name[: -len(suffix(path)) or None]), str(path), path, dim)


def _in_folder(path: Path, dim: int, notes: list[str]) -> list[NewImage]:
    """Raises:
    DataError: there is no image in it.
    """
    if dim == 2:
        refs = [ref for case in image_folder.cases(path) for ref in case.images]
        return [NewImage(ref.id, str(ref.path), ref.path, dim) for ref in refs]
    cases = folder.cases(path)
    notes += folder.remarks(path, [])  # of files that are named like masks
    return [NewImage(case.id, str(case.path), case.path, dim) for case in cases]


def _groups(cases: Sequence[NewImage], n: int) -> Iterator[tuple[int, Sequence[NewImage]]]:
    """So many at a time, with how many have come by then."""
    for start in range(0, len(cases), n):
        group = cases[start : start + n]
        yield start + len(group), group


def _some(
    labeller: Labeller, wanted: Sequence[NewImage], book: "LabelBook", failed: dict[str, str], notes: list[str]
) -> list[str]:
    """Predicts and enters some images; returns their names, those that cannot be used are in `failed`."""
    began, good, stored = time.perf_counter(), list[NewImage](), list[np.ndarray]()
    for image in wanted:
        read: Callable[[], tuple[np.ndarray, list[str]]] = partial(labeller.read, image)
        found = tried(image.given, read)
        if isinstance(found, str):
            failed[image.given] = found
            continue
        good.append(image)
        stored.append(found[0])
        notes += found[1]
    if good:
        rows = labeller(stored).astype(float).tolist()
        found_of = {image: dict(zip(labeller.classes, row, strict=True)) for image, row in zip(good, rows, strict=True)}
        book.enter(found_of, (time.perf_counter() - began) / len(good))
    return [image.name for image in good]


def _refuse_settings(settings: FinetuneSettings, modalities: Mapping[str, Path], layers: Sequence[Layer]) -> None:
    """Raises:
    UsageError: files by modality. ConfigError: a setting; variables of other verbs are passed over.
    """
    if modalities:
        raise UsageError(f"--modality is for scans of several sequences, and the task {settings.task} sees one image")
    for source, given in layers:
        if given and source != ENVIRONMENT:
            raise ConfigError(
                f"{next(iter(given))} (from {source}): the task {settings.task} has no settings to predict with"
            )


@dataclass
class LabelBook(Book):
    """What a folder of predicted labels holds; its rows have no file of their own."""

    def has(self, case: Any) -> bool:
        """Whether the image was predicted from these files."""
        row = self.cases.get(case.name)
        return row is not None and row["source"] == case.source

    def enter(self, found: Mapping[NewImage, Mapping[str, float]], seconds: float) -> None:
        """Some images' probabilities by class. seconds: of each."""
        for image, probability in found.items():
            self.cases[image.name] = {
                "input": image.given,
                "source": image.source,
                "probability": {name: float(f"{value:.9g}") for name, value in probability.items()},
                "seconds": round(seconds, 3),
            }
        self.save()

    def write_table(self, regions: tuple[str, ...], unit: str = "probability") -> None:
        """One row an image of the folder; the regions are the classes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", *(f"{unit} {name}" for name in regions), "input", "seconds"])
        for case, row in sorted(self.cases.items()):
            writer.writerow([case, *(row["probability"][name] for name in regions), row["input"], row["seconds"]])
        files.write_atomic(self.out / TABLE, text.getvalue().encode())
