"""Segmentation of real scans: LiTS' and BraTS' layouts end to end, and one liver learned by heart."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.data.cache import open_cache
from pcrl_cli.stages.evaluate import EvaluateResult, evaluate
from pcrl_cli.stages.finetune import FinetuneResult, finetune
from pcrl_cli.stages.prep import PrepResult, prep
from pcrl_cli.stages.workspace import Workspace

pytestmark = pytest.mark.real


def chain(
    task: str, raw: Path, root: Path, learner: dict, train: dict, split: str = "test", **more
) -> tuple[PrepResult, FinetuneResult, EvaluateResult]:
    """prep, finetune, evaluate."""
    workspace = Workspace(root)
    prepared = prep(task, data=raw, workspace=workspace, jobs=1, layers=[("test", more.pop("prep", {}))])
    layers = [("test", {"learner": learner, "train": train} | more)]
    tuned = finetune(prepared.cache, task=task, workspace=workspace, layers=layers)
    return prepared, tuned, evaluate(tuned.run, workspace=workspace, split=split)


def rows_of(result: EvaluateResult) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(result.predictions.read_text("utf-8"))))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_patients_of_lits_are_trained_on_chosen_by_and_scored(real_data, tmp_path):
    learner = {"crop": [64, 64, 32], "overlap": 0.0}
    prepared, tuned, scored = chain(
        "lits", real_data / "LiTS", tmp_path, learner, {"steps": 2, "batch": 2}, width=2, poolings=3
    )
    assert (prepared.made, prepared.bad) == (3, 0)
    assert tuned.labels == {"volumes": 1, "without foreground": 0, "smaller than a crop, padded": 0}
    assert tuned.best_validation is not None
    (row,) = rows_of(scored)
    assert 100 < float(row["true_ml_liver"]) < 3000  # a liver, or the part of it that the scan shows
    assert 0 <= scored.metrics["dice"].value <= 1
    assert (scored.evaluation.parent / "overlays" / f"{row['case']}.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_seven_patients_of_brats_with_two_sequences_are_trained_on_and_scored(real_data, tmp_path):
    learner = {"crop": [48, 48, 48], "overlap": 0.0, "loss": "dice_bce"}
    prepared, tuned, scored = chain(
        "brats",
        real_data / "BraTS",
        tmp_path,
        learner,
        {"steps": 2, "batch": 2},
        width=2,
        poolings=3,
        prep={"modalities": ["flair", "t1ce"]},
    )
    cache = open_cache(prepared.cache)
    assert (prepared.made, prepared.bad, cache.manifest["channels"]) == (7, 0, 2)
    assert tuned.labels["volumes"] + len(cache.patients("val")) + len(cache.patients("test")) == 7
    for row in rows_of(scored):
        whole, core, enhancing = (float(row[f"true_ml_{name}"]) for name in ("WT", "TC", "ET"))
        assert whole >= core >= enhancing >= 0
        assert 5 < whole < 400
    values = {name: e.value for name, e in scored.metrics.items()}
    assert values["dice"] == pytest.approx(np.mean([values[f"dice_{r}"] for r in ("WT", "TC", "ET")]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_liver_is_learned_by_heart(real_data, tmp_path):
    """Images, masks, crops, network, loss, sliding window and the way back to the scan's grid fit together.

    Patient 0, whose mask was drawn by hand; on a grid of 3 mm, so that a crop of 96x96x32 sees what makes a liver a liver
    and not a heart; two minutes of one core.
    """
    raw = tmp_path / "raw"
    raw.mkdir()
    for kind in ("volume", "segmentation"):
        (raw / f"{kind}-0.nii.gz").symlink_to((real_data / "LiTS" / f"{kind}-0.nii.gz").resolve())
    learner = {"crop": [96, 96, 32], "loss": "dice_bce", "bce_weight": 0.5}
    train = {"steps": 150, "batch": 2, "optimiser": "adam", "lr": 1e-2, "schedule": "cosine"}
    coarse = {"prepare": {"spacing_mm": 3.0}}
    _, tuned, scored = chain("lits", raw, tmp_path, learner, train, split="train", width=4, poolings=4, prep=coarse)
    assert tuned.labels["volumes"] == 1
    assert scored.metrics["dice"].value > 0.9, scored.metrics
