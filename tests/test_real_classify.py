"""Real adrenal shapes of MedMNIST3D as one's own scans: a table of labels with their official parts, in and out."""

import csv

import numpy as np
import pytest

from pcrl_cli.data.cache import open_cache
from pcrl_cli.data.volume import Volume
from pcrl_cli.readers.volume_io import write_nifti
from pcrl_cli.stages.evaluate import evaluate
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.predict import predict
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.workspace import Workspace

pytestmark = pytest.mark.real

TAKEN = {"train": 24, "val": 10, "test": 12}


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory):
    """`pcrl prep folder --labels FILE --pairs 0` on some of the official file's volumes."""
    source = real_data / "nodules" / "adrenalmnist3d_64.npz"
    if not source.exists():
        pytest.skip(f"there is no {source}")
    workspace = Workspace(tmp_path_factory.mktemp("real"))
    raw = workspace.data("folder")
    raw.mkdir(parents=True)
    rows = []
    with np.load(source) as file:
        for part, n in TAKEN.items():
            images, labels = file[f"{part}_images"], file[f"{part}_labels"].ravel()
            for i in [*np.flatnonzero(labels == 0)[: n // 2], *np.flatnonzero(labels == 1)[: n // 2]]:
                name = f"{part}{i:04}.nii.gz"
                values = 255 * (images[i] > 0).astype(np.int16)
                write_nifti(Volume(values, np.ones(3), np.zeros(3), np.eye(3)), raw / name)
                rows.append([name, int(labels[i]), part])
    table = workspace.root / "labels.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "hyperplasia", "part"], *rows])
    layers = [("test", {"pairs": {"pairs": 0}, "whole": {"shape": [32, 32, 32]}, "intensity": {"modality": "mr"}})]
    prep("folder", workspace=workspace, options={"labels": table}, layers=layers, jobs=1)
    return workspace


def test_the_official_parts_are_kept(real):
    cache = open_cache(real.cache("folder"))
    for part, n in TAKEN.items():
        assert {name.removesuffix(name[-4:]) for name in cache.split.part(part)} == {part}
        assert len(cache.split.part(part)) == n
    image = cache.read("images", ("image",), cache.cases()).arrays["image"]
    assert image.min() == 0
    assert (image.reshape(len(image), -1).max(axis=1) > 20_000).all()


def test_real_shapes_are_learned_scored_and_predicted(real, tmp_path):
    layers = [("test", {"width": 2, "poolings": 3, "train": {"steps": 12, "batch": 8, "lr": 0.03}})]
    tuned = finetune(task="classify", workspace=real, layers=layers)
    assert np.isfinite(tuned.outcome["last"]["bce"])
    result = evaluate(tuned.run, workspace=real)
    assert result.counts["scans"] == TAKEN["test"]
    assert 0 <= result.metrics["auroc_hyperplasia"].value <= 1
    assert result.metrics["auroc"].value == pytest.approx(result.metrics["auroc_hyperplasia"].value)
    found = predict(tuned.run, [real.data("folder")], tmp_path / "out").probabilities
    with result.predictions.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            expected = float(row["probability hyperplasia"])
            assert found[row["id"]]["hyperplasia"] == pytest.approx(expected, abs=2e-6)
