"""Boxes that radiologists drew round findings of ChestX-ray14: BBox_List_2017.csv, or .gz as it is handed on.

Rows: image name, finding, and x, y, w, h in pixels of the images as NIH gives them, 1024 x 1024.
"""

import csv
import gzip
import zlib
from pathlib import Path

from pcrl_cli.core.errors import DataError, blame_reading

NAMES = ("BBox_List_2017.csv", "BBox_List_2017.csv.gz")
SIDE = 1024
SPELT = {"Infiltrate": "Infiltration"}
"""The list's spelling, where it is not that of Data_Entry_2017.csv."""

Box = tuple[float, float, float, float]
"""left, top, width, height as shares of the image's sides."""


def box_list(root: Path) -> Path | None:
    """The file of boxes in a data set's folder; None where there is none."""
    return next((root / name for name in NAMES if (root / name).is_file()), None)


def boxes(root: Path) -> dict[tuple[str, str], list[Box]]:
    """The boxes of every (image, finding); none where the data set has no list.

    Raises:
        DataError: the list is damaged.
    """
    path = box_list(root)
    if path is None:
        return {}
    try:
        with blame_reading(path):
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
            rows = list(csv.reader(text.splitlines()))
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): copy it again or remove it.") from None
    found: dict[tuple[str, str], list[Box]] = {}
    for line, row in enumerate(rows, start=1):
        if line == 1 or not any(row):
            continue
        try:
            x, y, w, h = (float(value) / SIDE for value in row[2:6])
        except ValueError:
            raise DataError(f"{path}, line {line} is no box: correct or remove it.") from None
        found.setdefault((row[0], SPELT.get(row[1], row[1])), []).append((x, y, w, h))
    return found
