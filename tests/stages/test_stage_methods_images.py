"""Every compared method that has a 2D form pre-trains on radiographs, and its encoder is fine-tuned."""

import pytest
from chain import settings

from pcrl_cli.core.names import find
from pcrl_cli.methods import METHODS
from pcrl_cli.phantoms import radiograph
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.workspace import Workspace

IMAGES = {"global_side": 32, "cutout_side": 6}
SMALL = {
    "c2l": {"queue": 16},
    "genesis": {"rates": {"windows": 40}},
    "pcrlv1": {"queue": 16},
    "simsiam": {"outputs": 16, "bottleneck": 8},
}
FINE = settings(
    learner={"side": 32, "resize": 36},
    train={"steps": 2, "batch": 8, "check_every": 2, "optimiser": "adam", "lr": 1e-3},
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("images"))
    radiograph.make(workspace.data("nih"), 24)
    prep("nih", workspace=workspace, layers=settings(size=40), jobs=1)
    return workspace


@pytest.mark.parametrize("method", sorted(SMALL))
def test_a_method_pretrains_on_radiographs_and_its_encoder_is_fine_tuned(method, images, tmp_path):
    layers = settings(
        learner={"width": 4, "images": IMAGES} | SMALL[method], train={"steps": 2, "batch": 8, "check_every": 2}
    )
    pre = pretrain(dim="2d", method=method, workspace=images, out=tmp_path / "pre", layers=layers)
    assert pre.outcome["steps"] == 2
    assert pre.voxels % (8 * 3 * 32 * 32) == 0
    tuned = finetune(task="chest", workspace=images, weights=pre.run, out=tmp_path / "fine", layers=FINE)
    assert tuned.outcome["steps"] == 2
    assert tuned.transfer["share"] == 1.0


def test_all_methods_with_a_2d_form_are_here():
    of_images = {m for m in METHODS if 2 in find("method", m, METHODS).GROUPS}
    assert of_images == {*SMALL, "pcrlv2", "transvw"}  # transvw: test_stage_discover_images.py
