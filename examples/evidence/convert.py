"""Two public files of small 3D images to folders that `pcrl prep folder --labels` reads.

    python convert.py nodules lidc_solid_nodules.npz data/nodules
    python convert.py adrenal adrenalmnist3d_64.npz data/adrenal

nodules: stacks of 64 x 64 slices of solid nodules out of LIDC-IDRI (arrays `slices`, `start`, `count`, `label`, `exam_id`,
`nodule_id`), background masked to 0. The file has no spacing. Slices are taken to lie three pixels apart, and empty ones are
added in equal number below and above until there are 11, so that crops of 32 voxels fit. An exam counts as a patient.
adrenal: AdrenalMNIST3D of MedMNIST+ (64^3 shapes; arrays `train_images`, `train_labels`, ...), in its official parts.

Grey levels 0 .. 255 become -1000 .. 1000, so that they fill the range which CT is kept in; these are no Hounsfield units. The
last line says how well the number of voxels that are not 0 tells the classes apart by itself (adrenal: on the test part),
which is what a network has to beat.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pcrl_cli.pure.metrics import auroc

SLICES, SLICE_MM = 11, 3.0


def main() -> None:
    """Reads the arguments and converts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(CONVERTERS))
    parser.add_argument("file", type=Path, help="the .npz")
    parser.add_argument("out", type=Path, help="folder to make: images and labels.csv")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with np.load(given.file) as arrays:
        rows, sizes = zip(*CONVERTERS[given.what](dict(arrays), given.out), strict=True)
    with (given.out / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    tested = np.array([row.get("part", "test") == "test" for row in rows])
    labels = np.array([int(list(row.values())[-1]) for row in rows])
    alone = auroc(labels[tested], np.array(sizes, np.float64)[tested])
    print(f"{given.out}: {len(rows)} images; AUROC of the volume alone, {tested.sum()} of them: {alone:.3f}")


def nodules(arrays: dict[str, np.ndarray], out: Path) -> Iterator[tuple[dict[str, str], int]]:
    """One image a nodule; its row: path, patient, malignant; and how many voxels are not 0."""
    columns = (arrays[name].tolist() for name in ("start", "count", "label", "exam_id", "nodule_id"))
    for i, (start, count, label, exam, nodule) in enumerate(zip(*columns, strict=True)):
        name = f"{i:04d}-{exam}-{nodule}.nii.gz".replace("/", "_").replace(" ", "_")
        missing = max(0, SLICES - count)
        stack = np.pad(
            arrays["slices"][start : start + count], ((missing // 2, missing - missing // 2), (0, 0), (0, 0))
        )
        write(stack, (1.0, 1.0, SLICE_MM), out / name)
        yield {"path": name, "patient": exam, "malignant": str(label)}, int((stack > 0).sum())


def adrenal(arrays: dict[str, np.ndarray], out: Path) -> Iterator[tuple[dict[str, str], int]]:
    """One image a gland; its row: path, patient (the gland), part, hyperplasia; and how many voxels are not 0."""
    for part in ("train", "val", "test"):
        labels = arrays[f"{part}_labels"].ravel().tolist()
        for i, (image, label) in enumerate(zip(arrays[f"{part}_images"], labels, strict=True)):
            name = f"{part}-{i:04d}.nii.gz"
            write(image, (1.0, 1.0, 1.0), out / name)
            row = {"path": name, "patient": f"{part}-{i:04d}", "part": part, "hyperplasia": str(label)}
            yield row, int((image > 0).sum())


CONVERTERS = {"nodules": nodules, "adrenal": adrenal}


def write(grey: np.ndarray, spacing: tuple[float, float, float], path: Path) -> None:
    """(z, y, x) uint8 to an image of 16-bit integers; spacing (x, y, z) in mm."""
    image = sitk.GetImageFromArray(np.rint(grey * (2000 / 255) - 1000).astype(np.int16))
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path), useCompression=True)


if __name__ == "__main__":
    main()
