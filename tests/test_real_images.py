"""Real radiographs of NIH ChestX-ray14: the chain in two dimensions, geometry of the cache, boxes over the lungs."""

import gzip

import numpy as np
import pytest
from PIL import Image

from pcrl_cli.data.cache import open_cache
from pcrl_cli.readers.nih import CLASSES
from pcrl_cli.stages.discover import discover_words
from pcrl_cli.stages.evaluate import evaluate
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.workspace import Workspace

pytestmark = pytest.mark.real

SMALL = {"images": {"global_side": 48, "local_side": 32, "cutout_side": 8}, "width": 4}


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory):
    """`pcrl prep nih` on the 497 images."""
    workspace = Workspace(tmp_path_factory.mktemp("real"))
    layers = [("test", {"size": 64})]
    result = prep("nih", data=real_data / "ChestXray14", workspace=workspace, layers=layers, jobs=1)
    return workspace, open_cache(result.cache), real_data / "ChestXray14"


def test_every_image_is_cached_with_its_labels_and_its_patient_in_one_part(real):
    _, cache, raw = real
    stored = cache.read("images", ("image", "label", "id", "patient"), cache.cases()).arrays
    assert len(stored["id"]) == len(list((raw / "images").iterdir())) == 497
    assert (stored["label"] == 1).any(axis=0).all()  # all 14 findings are there
    assert stored["image"].std() > 30
    parts = [set(cache.split.part(p)) for p in ("train", "val", "test")]
    assert not (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])


def test_a_cached_image_is_the_file_made_smaller(real):
    _, cache, raw = real
    stored = cache.read("images", ("image", "id"), cache.cases()).arrays
    for i in range(0, 497, 71):
        with Image.open(raw / "images" / stored["id"][i].decode()) as file:
            want = np.asarray(file.convert("L").resize((64, 64), Image.Resampling.BOX), np.float64)
        assert np.abs(stored["image"][i, 0] - want).mean() < 1.5


def test_the_chain_runs_on_real_radiographs(real):
    workspace, cache, _ = real
    pre = pretrain(
        cache.path, dim="2d", workspace=workspace,
        layers=[("test", {"learner": SMALL, "set_aside": 0.2, "train": {"steps": 6, "batch": 16, "check_every": 3}})],
    )  # fmt: skip
    assert all(np.isfinite(v) for v in pre.outcome["last"].values())
    fine = [("test", {"learner": {"side": 48, "resize": 56}, "ratio": 0.2, "train": {"steps": 8, "batch": 16}})]
    tuned = finetune(cache.path, task="chest", workspace=workspace, weights=pre.run, layers=fine)
    assert tuned.overlap == {"labelled": 0, "val": 0, "test": 0}
    result = evaluate(tuned.run, workspace=workspace)
    assert result.counts["images"] == 99  # one image a patient, a fifth of the patients
    assert set(result.details["findings"]) == set(CLASSES)
    assert 0.2 < result.metrics["auroc"].value < 0.8
    assert result.details["pointing"]


def test_boxes_lie_where_lungs_are(real):
    """The official boxes, brought to a cached image, are brighter or darker places of it and never outside."""
    _, cache, raw = real
    from pcrl_cli.readers.nih_boxes import boxes

    found = boxes(raw)
    names = {n.decode() for n in cache.read("images", ("id",), cache.cases()).arrays["id"]}
    mine = [box for (image, _), each in found.items() if image in names for box in each]
    assert len(mine) > 5
    centres = np.array([(x + w / 2, y + h / 2) for x, y, w, h in mine])
    assert ((centres > 0.05) & (centres < 0.95)).all()
    assert gzip.decompress((raw / "BBox_List_2017.csv.gz").read_bytes()).count(b"\n") >= 984


def test_words_of_real_radiographs_are_places_that_look_alike(real):
    workspace, cache, _ = real
    layers = [("test", {"width": 4, "words": {"classes": 8, "neighbours": 20}, "train": {"steps": 6, "batch": 16}})]
    found = discover_words(cache.path, workspace=workspace, layers=layers, jobs=1)
    words = open_cache(found.cache)
    items = words.read("words", ("word", "label"), words.cases()).arrays
    assert np.bincount(items["label"]).tolist() == [60] * 8
    exact, label = items["word"][::3, 0].astype(float), items["label"][::3]
    exact -= exact.mean(axis=(1, 2), keepdims=True)
    exact /= exact.std(axis=(1, 2), keepdims=True) + 1e-6
    alike = np.einsum("ixy,jxy->ij", exact, exact) / exact[0].size
    same = (label[:, None] == label) & ~np.eye(len(label), dtype=bool)
    assert alike[same].mean() > alike[label[:, None] != label].mean() + 0.15
    learner = [("test", {"learner": {"width": 4}, "train": {"steps": 4, "batch": 16}})]
    pre = pretrain(found.cache, dim="2d", method="transvw", workspace=workspace, layers=learner)
    assert all(np.isfinite(v) for v in pre.outcome["last"].values())
