"""`pcrl replay` of real runs: pre-training and fine-tuning, by command and by call."""

import json
import shutil

import pytest
import torch
from chain import finetune_layers, pretrain_layers
from typer.testing import CliRunner

from pcrl_cli.cli.app import app
from pcrl_cli.core.errors import ConfigError, IntegrityError, NumericalError
from pcrl_cli.core.files import write_sealed
from pcrl_cli.methods import pcrlv2
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.replay import replay
from pcrl_cli.stages.workspace import Workspace


@pytest.fixture(scope="module")
def failed(chain, tmp_path_factory):
    """A pre-training whose second step meets a weight that is infinite: its first capture."""
    root = tmp_path_factory.mktemp("failed")
    after_step = pcrlv2.PCRLv2.after_step

    def spoil(self, progress):
        with torch.no_grad():
            self.encoder.levels[1][0][0].weight[0, 0, 0, 0, 0] = torch.inf
        return after_step(self, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pcrlv2.PCRLv2, "after_step", spoil)
        with pytest.raises(NumericalError):
            pretrain(chain.cache, out=root / "run", workspace=Workspace(root), layers=pretrain_layers())
    return root / "run/captures/step_000001"


def test_the_step_is_shown_again_with_the_weight_that_spoilt_it(failed):
    done = replay(failed)
    assert done.shown
    assert done.first == "weight net.encoder.levels.1.0.0.weight (1 of 1728 values)"
    assert done.step == 1
    assert set(done.terms) == set(done.captured)
    assert "nan" in done.terms.values()
    assert {f.kind for f in done.findings} >= {"weight", "module", "loss", "gradient"}


def test_the_command_prints_one_object_and_ends_with_0(failed):
    done = CliRunner().invoke(app, ["replay", str(failed), "--json"])
    assert done.exit_code == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["schema"] == "pcrl.replay/1"
    assert value["first"].startswith("weight net.encoder")
    assert CliRunner().invoke(app, ["replay", str(failed)]).exit_code == 0


def test_a_fine_tuning_is_shown_too(chain, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcrl_cli.engine.schedule.factor", lambda *a: 1.0)
        layers = finetune_layers(5, width=4, learner={"side": 24})
        layers = [
            (name, values | {"train": values["train"] | {"lr": 1e30, "warmup_steps": 0}}) for name, values in layers
        ]
        with pytest.raises(NumericalError):
            finetune(chain.cache, task="luna", out=tmp_path / "run", workspace=Workspace(tmp_path), layers=layers)
    done = replay(next((tmp_path / "run/captures").iterdir()))
    assert done.shown
    assert done.first is not None


def test_what_is_no_capture_or_damaged_or_without_weights_is_refused(failed, tmp_path):
    with pytest.raises(ConfigError, match="is no capture; give a folder"):
        replay(failed.parent.parent)
    shutil.copytree(failed.parent.parent, tmp_path / "run")
    capture = tmp_path / "run/captures/step_000001"
    record = tmp_path / "run/run.json"
    write_sealed(record, {**json.loads(record.read_text("utf-8")), "cache": "/gone"})
    with pytest.raises(ConfigError, match=r"say where it is with --cache"):
        replay(capture)
    shutil.rmtree(tmp_path / "run/checkpoints/step_000001")
    with pytest.raises(ConfigError, match="has no checkpoint of step 1 any more"):
        replay(capture)
    batch = capture / "batch.safetensors"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="is torn or was changed"):
        replay(capture)
