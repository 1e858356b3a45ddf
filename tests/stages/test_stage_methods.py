"""Every compared method pre-trains on the phantoms' cache, and its encoder is fine-tuned."""

import pytest
from chain import finetune_layers, settings

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.methods import METHODS
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.pretrain import pretrain, pretrain_settings

SMALL = {
    "c2l": {"queue": 16},
    "genesis": {"rates": {"windows": 40}},
    "pcrlv1": {"queue": 16, "windows": 40},
    "simsiam": {"outputs": 16, "bottleneck": 8},
}
PASSES = {"c2l": 6, "cpc3d": 1, "genesis": 1, "pcrlv1": 6, "pcrlv2": 3, "rubik": 2, "simsiam": 2}
"""Of encoders a step; the teacher's two groups count as two, rubik's critic restores once more."""


@pytest.mark.parametrize("method", sorted(PASSES))
def test_a_method_pretrains_and_its_encoder_is_fine_tuned(method, chain, tmp_path):
    learner = {"width": 4, "poolings": 3} | SMALL.get(method, {})
    layers = settings(learner=learner, train={"steps": 2, "batch": 8, "check_every": 2}, set_aside=0.5)
    pre = pretrain(chain.cache, dim="3d", method=method, out=tmp_path / "pre", workspace=chain.workspace, layers=layers)
    assert pre.outcome["steps"] == 2
    assert pre.passes == PASSES[method]
    crop = 32 * 32 * 16
    views = (
        2 if method in ("simsiam", "pcrlv2") else 4 if method in ("c2l", "pcrlv1") else 2 if method == "rubik" else 1
    )
    assert pre.voxels >= 8 * views * crop
    tuned = finetune(
        chain.cache, task="luna", weights=pre.run, out=tmp_path / "fine", workspace=chain.workspace,
        layers=finetune_layers(steps=2),
    )  # fmt: skip
    assert tuned.outcome["steps"] == 2


@pytest.mark.parametrize("method", ["rubik", "cpc3d"])
def test_what_is_not_defined_in_2d_is_refused_and_told_where_it_is(method):
    with pytest.raises(ConfigError, match=f"method {method} is not defined for --dim 2d; use --dim 3d"):
        pretrain_settings(method, "paper", "2d")


def test_a_batch_that_makes_batch_norm_meaningless_is_refused(chain, tmp_path):
    layers = settings(learner={"width": 2}, train={"steps": 2, "batch": 4})
    with pytest.raises(ConfigError, match="set --batch to 8 or more"):
        pretrain(chain.cache, method="simsiam", out=tmp_path / "run", workspace=chain.workspace, layers=layers)
    assert not (tmp_path / "run").exists()


def test_every_method_is_in_the_tests_above_or_in_those_of_discover():
    assert {*PASSES, "transvw"} == set(METHODS)
