"""Shards of many images, which are of many patients, and boxes of large arrays."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pcrl_cli.core.case import Case, ImageRef
from pcrl_cli.core.errors import IntegrityError
from pcrl_cli.core.plan import Drawn, Pictures
from pcrl_cli.data.build import BuildResult, build
from pcrl_cli.data.cache import Cache, open_cache, shard_path
from pcrl_cli.data.loader import Loader

HEADER = {"settings": {}, "reader": {"name": "toy"}}


class Plan:
    group = "images"

    def draw(self, scan: Pictures, case: Case, rng: np.random.Generator) -> Drawn:
        return Drawn({"image": scan.image, "label": scan.label})


def read(case: Case) -> Pictures:
    good = [image for image in case.images if "bad" not in image.id]
    pixels = np.array([int(image.id.split("-")[1]) for image in good], np.uint8)
    return Pictures(
        image=np.ones((1, 2, 2), np.uint8) * pixels[:, None, None, None],
        id=tuple(image.id for image in good),
        patient=tuple(image.patient for image in good),
        label=np.array([image.label for image in good], np.int8).reshape(len(good), 1),
        scan_ids=tuple(f"{p:020d}" for p in pixels),
        bad={image.id: "no image" for image in case.images if "bad" in image.id},
    )


def listed(root: Path, names: list[str], size: int = 4) -> list[Case]:
    """Image i of patient i // 2, `size` images a shard."""
    images = [ImageRef(name, f"p{int(name.split('-')[1]) // 2}", root / name, (i % 2,)) for i, name in enumerate(names)]
    return [
        Case(f"images-{k:05d}", "", root, images=tuple(images[k * size : (k + 1) * size]))
        for k in range(-(-len(images) // size))
    ]


def make(tmp_path: Path, names: list[str]) -> BuildResult:
    cases = listed(tmp_path, names)
    return build(cases, read, [Plan()], tmp_path / "c", HEADER, jobs=1, files=lambda case: [])


@pytest.fixture
def cache(tmp_path) -> Cache:
    make(tmp_path, [f"i-{i}" for i in range(20)])
    return open_cache(tmp_path / "c")


def test_patients_of_a_shard_are_split_one_by_one(cache):
    assert sum(len(cache.patients(part)) for part in ("train", "val", "test")) == 10
    for part in ("train", "val", "test"):
        cases = cache.cases(part)
        rows = cache.rows("images", "image", cases, cache.split.part(part))
        pixels = cache.read("images", ("image",), cases, rows=rows).arrays["image"][:, 0, 0, 0]
        assert {f"p{i // 2}" for i in pixels} == set(cache.patients(part))
        assert len(rows) == 2 * len(cache.patients(part))
    owners = cache.owners("images", "image", cache.cases())
    assert owners == [f"p{i // 2}" for i in range(20)]


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_loader_goes_through_the_rows_it_was_given_and_no_others(cache, where):
    patients = cache.patients("train")
    cases = cache.cases(patients=patients)
    rows = cache.rows("images", "image", cases, patients)
    loader = Loader(cache, "images", ("image",), cases, 2, 0, torch.device("cpu"), where, rows=rows)
    assert loader.items == 2 * len(patients)
    batches = loader.batches(0)
    seen = [int(v) for _ in range(loader.steps_per_epoch) for v in next(batches)[1]["image"][:, 0, 0, 0]]
    batches.close()
    assert sorted(seen) == sorted(i for i in range(20) if f"p{i // 2}" in patients)


def test_images_that_cannot_be_used_are_listed_and_listed_again(tmp_path):
    names = ["i-0", "bad-1", "i-2", "i-3", "i-4"]
    assert make(tmp_path, names).bad == {"bad-1": "no image"}
    again = make(tmp_path, names)
    assert (again.made, len(again.skipped), again.bad) == ([], 2, {"bad-1": "no image"})
    lines = (tmp_path / "c/bad_cases.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["case"] for line in lines] == ["bad-1"]
    assert again.manifest["totals"]["refused"] == {"unreadable": 1}


def test_a_box_of_an_array_is_read_by_itself(cache, tmp_path):
    case = cache.cases()[0]
    box = cache.read_box(case, "images", "image", (1, 0), (1, 2))
    assert box.shape == (4, 1, 1, 2)
    assert box[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    shard_path(cache.path, case).write_bytes(b"torn")
    with pytest.raises(IntegrityError, match="torn or unreadable"):
        cache.read_box(case, "images", "image", (1, 0), (1, 2))
