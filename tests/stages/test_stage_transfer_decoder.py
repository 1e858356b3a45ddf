"""`transfer: encoder_decoder`: the whole pre-trained U-Net is fine-tuned for segmentation, with another last layer."""

import numpy as np
import pytest
import torch
from chain import finetune_layers, settings
from test_workflow_volumes import write_lits

from pcrl_cli.core.errors import ConfigError, NumericalError
from pcrl_cli.data.cache import open_cache
from pcrl_cli.engine.run import Run
from pcrl_cli.networks.segment import WholeSegmenter
from pcrl_cli.networks.transfer import read_tensors
from pcrl_cli.stages.evaluate import evaluate, settings_of
from pcrl_cli.stages.export import export
from pcrl_cli.stages.finetune import finetune, recorded_task
from pcrl_cli.stages.predict import predict
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.replay import replay
from pcrl_cli.stages.training import stored
from pcrl_cli.stages.workspace import Workspace

NATIVE = {"width": 4, "poolings": 3, "up": "deconv", "rates": {"windows": 20}}


def layers(transfer="encoder_decoder", **train):
    steps = {"steps": 2, "batch": 2, "optimiser": "adam", "lr": 1e-6, "check_every": 1}
    return settings(learner={"crop": [16, 16, 16], "overlap": 0.25}, train=steps | train, transfer=transfer)


@pytest.fixture(scope="module")
def liver(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("liver"))
    write_lits(workspace.data("lits"))
    prep("lits", workspace=workspace, layers=settings(prepare={"margin": 2}), jobs=1)
    return workspace


@pytest.fixture(scope="module")
def genesis(chain, tmp_path_factory):
    """A U-Net with skips and transposed convolutions."""
    of = settings(learner=NATIVE, train={"steps": 2, "batch": 4})
    out = tmp_path_factory.mktemp("genesis") / "run"
    return pretrain(chain.cache, method="genesis", workspace=chain.workspace, out=out, layers=of).run


def weights_in(run, prefix):
    tensors = read_tensors(Run.load(run).weights_path())
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("of", ["genesis", "pcrlv2"])
def test_encoder_and_decoder_start_from_the_pretraining_and_the_run_is_evaluated_and_predicts(
    of, genesis, chain, liver, tmp_path
):
    source = genesis if of == "genesis" else chain.pretrained.run
    tuned = finetune(task="lits", workspace=liver, weights=source, out=tmp_path / "run", layers=layers())
    before = weights_in(source, "restorer.net." if of == "genesis" else "net.")
    after = weights_in(tuned.run, "network.")
    assert any(key.startswith("stages.") for key in before)
    assert after.keys() == {*before, "out.weight", "out.bias"}
    for key, value in before.items():
        if value.is_floating_point() and "running" not in key:  # the learning rate hardly moves them
            assert torch.allclose(value, after[key], atol=1e-4), key
    assert {*tuned.transfer["loaded"]} >= {key for key in before if key.startswith("stages.")}
    assert not any(".stages." in key for key in tuned.transfer["not_encoder"])
    assert evaluate(tuned.run, workspace=liver, split="all").metrics["dice"].value is not None
    found = predict(tuned.run, [liver.data("lits") / "volume-0.nii.gz"], out=tmp_path / "masks")
    assert found is not None
    run = Run.load(tuned.run)
    task = recorded_task(run, settings_of(run, tuned.run, None), stored(open_cache(liver.cache("lits"))))
    assert isinstance(task.network, WholeSegmenter)
    assert any(task.network.skips) == (of == "genesis")


def test_another_decoder_is_another_run_and_the_encoder_alone_is_the_default(genesis, liver, tmp_path):
    whole = finetune(task="lits", workspace=liver, weights=genesis, layers=layers(), dry_run=True)
    alone = finetune(task="lits", workspace=liver, weights=genesis, layers=layers("encoder"), dry_run=True)
    assert whole.out != alone.out


def test_what_has_no_decoder_is_refused(genesis, chain, liver, tmp_path):
    with pytest.raises(ConfigError, match="is for segmentation; the task luna has no decoder"):
        finetune(
            chain.cache, task="luna", weights=genesis, workspace=chain.workspace,
            layers=[*finetune_layers(), *settings(transfer="encoder_decoder")],
        )  # fmt: skip
    with pytest.raises(ConfigError, match="needs --weights"):
        finetune(task="lits", workspace=liver, layers=layers())
    export(genesis, to=tmp_path / "encoder.safetensors")
    tuned = finetune(task="lits", workspace=liver, weights=genesis, out=tmp_path / "alone", layers=layers("encoder"))
    for source in (tmp_path / "encoder.safetensors", tuned.run, chain.tuned.run):
        with pytest.raises(ConfigError, match="holds no decoder of a pre-training"):
            finetune(task="lits", workspace=liver, weights=source, layers=[*layers(), *settings(allow_overlap=True)])


def test_a_step_that_breaks_down_is_shown_again(genesis, liver, tmp_path, monkeypatch):
    monkeypatch.setattr("pcrl_cli.engine.schedule.factor", lambda *a: 1.0)
    with pytest.raises(NumericalError):
        finetune(task="lits", workspace=liver, weights=genesis, out=tmp_path / "run", layers=layers(lr=1e30, steps=4))
    (capture,) = (tmp_path / "run" / "captures").glob("*")
    assert np.isin("dice", list(replay(capture).terms))
