"""Words in radiographs: all is cut from the cached images, whose shards hold some thousand each."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pcrl_cli.core.case import Case, ImageRef
from pcrl_cli.core.plan import Pictures
from pcrl_cli.data.cache import Cache, shard_path
from pcrl_cli.pure.words import Words
from pcrl_cli.stages.corpora import Making, Members, word_names

INPUT = 224
"""Pixels of the paper's 2D views; a square becomes as large, or as a smaller image is."""
BLACK = 13.0
"""Grey levels, of 256, under which a film shows nothing: the rim of the collimated field."""


def defaults(source: Cache) -> dict[str, Any]:
    """The published numbers of CT as shares of an image of 224 pixels; training for a hundred times as many images."""
    side = source.read("images", ("image",), source.cases()[:1], rows=np.zeros(1, np.int64)).arrays["image"].shape[-1]
    inner = min(side, INPUT)

    def share(pixels: int) -> int:
        return max(1, round(pixels * side / INPUT))

    return {
        "width": 64,
        "thumbnails": {"shape": [inner, inner]},
        "words": {"border": [side // 8, side // 8], "apart": 5 * side / INPUT},
        "cubes": {
            "cube": [share(64), share(64)],
            "resized": [inner, inner],
            "sides": [share(50), share(79)],
            "shift": share(10),
        },
        "train": {"epochs": 10, "batch": 64},
    }


class Corpus:
    """See `corpora.Corpus`."""

    def __init__(self, source: Cache, patients: tuple[str, ...], data: Path | None) -> None:
        self.source, self.patients = source, patients
        self.cases = source.cases(patients=patients)
        self.rows = source.rows("images", "image", self.cases, patients)
        records = [source.records[case] for case in self.cases]
        names = [name for record in records for name in record["items"]["id"]]
        self.row = {names[i]: int(i) for i in self.rows}

    def members(self, folder: Path, shape: tuple[int, ...], make: Making) -> Members:
        owners = self.source.owners("images", "image", self.cases)
        side = self.source.records[self.cases[0]]["arrays"]["images"]["image"]["shape"][-1]
        shapes = np.full((len(self.rows), 2), side, np.int64)
        return Members(
            self.source, "images", self.cases, self.rows, tuple(self.row), tuple(owners[i] for i in self.rows), shapes
        )

    def whole(self, name: str) -> tuple[np.ndarray, float]:
        items = self.source.read("images", ("image",), self.cases, rows=np.array([self.row[name]]))
        return items.arrays["image"][0, 0], BLACK

    def cut(self, plan: Words, folder: Path, words: int, make: Making) -> Cache:
        cases = [_case(self.source, shard, plan) for shard in self.cases]
        used = [case for case in cases if case.images]
        reading = partial(read_pictures, self.source)
        most = max(len(case.images) for case in used)
        of_image, of_word = int(np.prod(self._side())), int(np.prod(plan.stored))
        peak = 200_000_000 + most * (2 * of_image + 8 * (1 + plan.others) * of_word)
        facts = {"scans": len(plan.instances), "classes": word_names(words), "size": plan.stored[0]}
        return make(used, reading, plan, folder, no_files, self.source.path, peak, **facts)

    def _side(self) -> tuple[int, ...]:
        return tuple(self.source.records[self.cases[0]]["arrays"]["images"]["image"]["shape"][1:])


def _case(source: Cache, shard: str, plan: Words) -> Case:
    """The images of a shard that belong to words."""
    items, path = source.records[shard]["items"], shard_path(source.path, shard)
    pairs = zip(items["id"], items["patient"], strict=True)
    images = tuple(ImageRef(name, patient, path) for name, patient in pairs if name in plan.instances)
    return Case(shard, "", path, images=images)


def no_files(case: Case) -> list[Path]:
    """What a shard of words is made from: the cache's hashes, which are in the mark, say it already."""
    return []


def read_pictures(source: Cache, case: Case) -> Pictures:
    """The images that a case names, from their cached shard; runs in a worker process."""
    items = source.records[case.id]["items"]
    at = {name: i for i, name in enumerate(items["id"])}
    rows = [at[image.id] for image in case.images]
    image = source.read("images", ("image",), [case.id], rows=np.array(rows)).arrays["image"]
    ids, patients, scans = (tuple(items[key][i] for i in rows) for key in ("id", "patient", "scan_id"))
    return Pictures(image, ids, patients, np.zeros((len(rows), 0), np.int8), scans)
