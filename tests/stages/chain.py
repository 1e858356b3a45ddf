"""The whole chain once, on seven small patients; every test of the stages and the command line looks at it.

Views are a quarter of the paper's size and the network has 4 filters, so that all of it takes seconds.
"""

import locale
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from pcrl_cli.core.listener import Listener
from pcrl_cli.data.volume import Volume
from pcrl_cli.phantoms import chest
from pcrl_cli.readers.volume_io import write_mhd, write_nifti
from pcrl_cli.stages.evaluate import EvaluateResult, evaluate
from pcrl_cli.stages.finetune import FinetuneResult, finetune
from pcrl_cli.stages.prep import PrepResult, prep
from pcrl_cli.stages.pretrain import PretrainResult, pretrain
from pcrl_cli.stages.workspace import Workspace

PATIENTS, NEGATIVES = 7, 3
SMALL = {"global_shape": [32, 32, 16], "n_locals": 2}


@dataclass
class Heard(Listener):
    """Keeps what was said."""

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@dataclass(frozen=True)
class Chain:
    workspace: Workspace
    raw: Path
    prepared: PrepResult
    pretrained: PretrainResult
    scratch: FinetuneResult
    tuned: FinetuneResult
    evaluated: EvaluateResult

    @property
    def cache(self) -> Path:
        return self.prepared.cache

    @property
    def root(self) -> Path:
        return self.workspace.root


def settings(**values: Any) -> list[tuple[str, dict[str, Any]]]:
    """Layers of one call."""
    return [("test", values)]


def prep_layers(pairs: int = 4, negatives: int = NEGATIVES, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    return settings(pairs={"pairs": pairs, **SMALL}, candidates={"negatives": negatives}, **more)


def pretrain_layers(steps: int = 3, batch: int = 4, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    train = {"steps": steps, "batch": batch, "check_every": 2}
    return settings(**{"learner": {"width": 4}, "train": train, "set_aside": 0.5, **more})


def finetune_layers(steps: int = 6, batch: int = 4, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    return settings(**{"learner": {"side": 24}, "train": {"steps": steps, "batch": batch}, "ratio": 0.5, **more})


@cache
def build(root: Path) -> Chain:
    """phantoms -> prep -> pretrain -> finetune (scratch, pre-trained) -> evaluate, in a workspace."""
    workspace = Workspace(root)
    chest.make(workspace.data("luna"), PATIENTS)
    prepared = prep("luna", workspace=workspace, layers=prep_layers(), jobs=1)
    pre = pretrain(workspace=workspace, dim="3d", layers=pretrain_layers())
    scratch = finetune(task="luna", workspace=workspace, layers=finetune_layers(width=4))
    tuned = finetune(task="luna", workspace=workspace, weights=pre.run, layers=finetune_layers())
    evaluated = evaluate(tuned.run, workspace=workspace)
    return Chain(workspace, workspace.data("luna"), prepared, pre, scratch, tuned, evaluated)


# ------------------------------------------------------------------------------------------------- small raw scans


def tissue(shape: tuple[int, int, int] = (68, 66, 36), seed: int = 0) -> Volume:
    """A scan of soft tissue, 1 mm voxels, large enough for the smallest pair of crops."""
    array = np.random.default_rng(seed).integers(-100, 200, shape).astype(np.int16)
    return Volume(array, np.ones(3), np.zeros(3), np.eye(3))


def write_scan(path: Path, shape: tuple[int, int, int] = (68, 66, 36), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = tissue(shape, seed)
    if path.suffix == ".nrrd":
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T)), str(path))
    else:
        (write_mhd if path.suffix == ".mhd" else write_nifti)(volume, path)
    return path


def write_dicom(folder: Path, patient: str, uid: str, slices: int = 36, side: int = 66, seed: int = 0) -> Path:
    """A series of one patient, 1 mm apart."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(900, 1200, (slices, side, side)).astype(np.int16)
    before = locale.setlocale(locale.LC_CTYPE)
    for i in range(slices):
        image = sitk.GetImageFromArray(array[i : i + 1])
        tags = {
            "0008|0060": "CT", "0020|000d": f"{uid}.9", "0020|000e": uid, "0008|0018": f"{uid}.{i + 1}",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|0013": str(i + 1), "0020|0032": f"0\\0\\{i}",
            "0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "-1024", "0028|1053": "1", "0010|0020": patient,
        }  # fmt: skip
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(folder / f"{i:03d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_CTYPE, before)  # GDCM's writer leaves the process in locale C
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
