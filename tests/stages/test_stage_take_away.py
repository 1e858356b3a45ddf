"""export, probe, embed, report, inspect, doctor, config, workspace: what is done with a finished run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import contents
from safetensors import safe_open
from safetensors.torch import load_file

from pcrl_cli.core.errors import ConfigError, IntegrityError, UsageError
from pcrl_cli.core.files import write_sealed
from pcrl_cli.data.cache import open_cache
from pcrl_cli.networks.transfer import read_weights
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.stages.config import resolved
from pcrl_cli.stages.doctor import doctor
from pcrl_cli.stages.export import export
from pcrl_cli.stages.features import extract
from pcrl_cli.stages.inspect import inspect
from pcrl_cli.stages.pretrain import training_patients
from pcrl_cli.stages.probe import embed, probe_run
from pcrl_cli.stages.report import join_reports
from pcrl_cli.stages.weights import encoder_of
from pcrl_cli.stages.workspace import Workspace


@pytest.fixture(scope="module")
def exported(chain, tmp_path_factory) -> Path:
    return export(chain.pretrained.run, tmp_path_factory.mktemp("out") / "new folder/encoder.safetensors").file


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))


def run_features(chain, image) -> torch.Tensor:
    """F_0 by the whole checkpoint of the run."""
    tensors = load_file(chain.pretrained.weights)
    encoder = UNet3dEncoder(1, 4, 5).eval()
    prefix = "net.encoder."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return encoder(image)[-1]


def test_an_exported_encoder_loads_in_five_lines_and_has_the_runs_features(chain, exported, image):
    with safe_open(exported, "pt") as file:
        a = json.loads(file.metadata()["pcrl"])["architecture"]
    encoder = UNet3dEncoder(1, a["width"], a["poolings"]).eval()
    encoder.load_state_dict(load_file(exported))
    assert torch.equal(encoder(image)[-1], run_features(chain, image))


@pytest.mark.parametrize(("name", "format"), [("e.pt", None), ("e.pth", None), ("e.bin", "torch")])
def test_a_torch_export_loads_without_pickle(chain, image, tmp_path, name, format):
    result = export(chain.pretrained.run, tmp_path / name, format=format)
    content = torch.load(result.file, weights_only=True)
    encoder = UNet3dEncoder(1, 4, 5).eval()
    encoder.load_state_dict(content)
    assert torch.equal(encoder(image)[-1], run_features(chain, image))
    assert json.loads((tmp_path / f"{name}.json").read_text("utf-8"))["schema_"] == "pcrl.weights/1"


def test_an_export_can_be_exported_and_fine_tuned_runs_too(chain, exported, tmp_path):
    again = export(exported, tmp_path / "again.pt")
    assert read_weights(again.file).digest == read_weights(exported).digest
    tuned = export(chain.tuned.run, tmp_path / "tuned.safetensors")
    assert tuned.contract.method == "task luna"


def test_the_model_card_says_what_the_weights_are(exported):
    card = exported.with_name(exported.name + ".md").read_text("utf-8")
    for text in (
        "pcrlv2 (recipe paper) after 3 steps",
        "base width 4, 5 poolings",
        "[-1000, 1000] HU",
        "patients seen | 2 ",
    ):
        assert text in card
    digest = re.search(r"SHA-256 \| ([0-9a-f]{64})", card)
    import hashlib

    assert digest is not None
    assert digest[1] == hashlib.sha256(exported.read_bytes()).hexdigest()


def test_an_existing_file_is_not_overwritten_unless_asked(chain, exported):
    before = contents(exported.parent)
    with pytest.raises(UsageError, match="exists; name another file, or --overwrite"):
        export(chain.tuned.run, exported)
    assert contents(exported.parent) == before
    assert export(chain.pretrained.run, exported, overwrite=True).file == exported
    assert contents(exported.parent) == before


def test_an_unknown_suffix_is_a_usage_error(chain, tmp_path):
    with pytest.raises(UsageError, match=r"says no format; end it in \.safetensors or \.pt"):
        export(chain.pretrained.run, tmp_path / "encoder.onnx")


def test_a_pickle_that_wants_to_run_code_is_not_opened(tmp_path):
    import os

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Evil(), "pcrl": "{}"}, tmp_path / "evil.pt")
    with pytest.raises(IntegrityError, match="was not opened, since a pickle can run code"):
        export(tmp_path / "evil.pt", tmp_path / "out.safetensors")
    assert not (tmp_path / "ran").exists()


# -------------------------------------------------------------------------------------------------- probe, embed


def test_both_probes_score_the_test_part(chain):
    result = probe_run(chain.pretrained.run, workspace=chain.workspace)
    cache = open_cache(chain.cache)
    assert 0 <= result.knn_auroc <= 1
    assert 0 <= result.linear_auroc <= 1
    assert result.train == cache.sizes("candidates", "label", cache.cases("train")).sum()
    assert result.tested == chain.evaluated.counts["candidates"]
    assert result.reason is None


def test_a_probe_on_patients_that_were_seen_warns(chain, heard, tmp_path):
    shutil.copytree(chain.cache, tmp_path / "c")
    split = json.loads((tmp_path / "c/split.json").read_text("utf-8"))
    seen = training_patients(open_cache(chain.cache), 0.5)[0]
    split["train"], split["test"] = [p for p in split["train"] if p != seen], [*split["test"], seen]
    write_sealed(tmp_path / "c/split.json", split)
    probe_run(chain.pretrained.run, tmp_path / "c", workspace=chain.workspace, listener=heard)
    assert heard.warnings == ["1 patients of the test part were seen in pre-training; the probe is optimistic"]


def test_embedded_features_are_the_encoders(chain, tmp_path):
    npz = embed(chain.pretrained.run, tmp_path / "new/f.npz", workspace=chain.workspace)
    embed(chain.pretrained.run, tmp_path / "f.csv", workspace=chain.workspace)
    stored = np.load(npz.out)
    cache = open_cache(chain.cache)
    encoder, _, _ = encoder_of(chain.pretrained.run, cache)
    own = extract(encoder, cache, "luna", ["train", "val", "test"], torch.device("cpu"))
    np.testing.assert_array_equal(stored["features"], own.values)
    assert stored["features"].shape == (npz.rows, npz.width) == (npz.rows, 64)
    assert set(stored["part"]) == {"train", "val", "test"}
    header, *rows = (tmp_path / "f.csv").read_text("utf-8").splitlines()
    assert header.split(",")[:5] == ["id", "patient", "part", "label", "f0"]
    assert [row.split(",")[0] for row in rows] == stored["id"].tolist()


def test_features_are_not_overwritten_and_go_to_known_formats(chain, tmp_path):
    (tmp_path / "f.npz").write_bytes(b"")
    with pytest.raises(UsageError, match="exists"):
        embed(chain.pretrained.run, tmp_path / "f.npz", workspace=chain.workspace)
    with pytest.raises(UsageError, match=r"must end in \.npz or \.csv"):
        embed(chain.pretrained.run, tmp_path / "f.txt", workspace=chain.workspace)


# -------------------------------------------------------------------------------------------------------- report


def test_runs_are_joined_in_one_page(chain, tmp_path):
    runs = [chain.pretrained.run, chain.scratch.run, chain.tuned.run]
    page = join_reports(runs, tmp_path / "new/report.html").report.read_text("utf-8")
    assert all(run.name in page for run in runs)
    assert "ROC curves" in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


def test_a_report_needs_runs_and_sound_evaluations(chain, tmp_path):
    with pytest.raises(ConfigError, match="there is no run"):
        join_reports([], tmp_path / "r.html")
    with pytest.raises(ConfigError, match="is not a run folder"):
        join_reports([tmp_path], tmp_path / "r.html")
    shutil.copytree(chain.tuned.run, tmp_path / "run")
    whole = (tmp_path / "run/evaluation/test/evaluation.json").read_text("utf-8")
    (tmp_path / "run/evaluation/test/evaluation.json").write_text(whole[:99])
    with pytest.raises(IntegrityError, match="torn"):
        join_reports([tmp_path / "run"], tmp_path / "r.html")
    (tmp_path / "run/evaluation/test/evaluation.json").write_text(whole)
    (tmp_path / "run/evaluation/test/predictions.csv").unlink()
    with pytest.raises(IntegrityError, match=r"predictions\.csv is missing or torn"):
        join_reports([tmp_path / "run"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_an_evaluation_has_a_page_with_the_papers_numbers(chain):
    page = chain.evaluated.report.read_text("utf-8")
    assert "Beside the paper" in page
    assert "ROC curve" in page


# ------------------------------------------------------------------------------------------------------- inspect


def test_a_cache_a_run_and_weights_are_told_apart(chain, exported):
    cache, run, weights = (inspect(path) for path in (chain.cache, chain.tuned.run, exported))
    assert (cache.kind, run.kind, weights.kind) == ("cache", "run", "weights")
    assert cache.facts["patients"] == chain.prepared.patients
    assert run.facts["status"] == "finished"
    assert "test" in run.facts["evaluations"]
    assert weights.facts["architecture"]["width"] == 4
    assert weights.facts["patients"] == 2


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("notes.txt", b"hello", ConfigError),
        ("empty.safetensors", b"", IntegrityError),
        ("nonsense.safetensors", b"hello", IntegrityError),
        ("nonsense.pt", b"hello", IntegrityError),
        ("torn.pt", b"PK\x03\x04abc", IntegrityError),
        ("run.json/x", b"", ConfigError),
    ],
)
def test_nonsense_is_named(tmp_path, name, content, error):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(error):
        inspect(path if path.suffix else path.parent.parent)


def test_torn_files_of_ours_are_integrity_errors(chain, tmp_path):
    shutil.copytree(chain.cache, tmp_path / "c")
    shard = next((tmp_path / "c/shards").glob("*.h5"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="is torn"):
        inspect(tmp_path / "c")
    (tmp_path / "c/manifest.json").write_text('{"schema": ')
    with pytest.raises(IntegrityError, match="torn"):
        inspect(tmp_path / "c")
    (tmp_path / "r").mkdir()
    (tmp_path / "r/run.json").write_text("[1")
    with pytest.raises(IntegrityError, match="torn"):
        inspect(tmp_path / "r")


def test_torn_weights_are_an_integrity_error(exported, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(exported.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="no sound safetensors file"):
        inspect(tmp_path / "w.safetensors")


# ---------------------------------------------------------------------------------------- doctor, config, workspace


def test_the_doctor_checks_what_training_needs(tmp_path):
    result = doctor(tmp_path / "not/there")
    names = {check.name: check.state for check in result.checks}
    assert set(names) == {"torch", "gpu", "bf16 conv3d", "memory", "disk", "packages"}
    assert result.fit == ("failed" not in names.values())
    assert result.facts["conv3d GFLOP/s (float32)"] > 0


def test_settings_say_where_they_come_from():
    result = resolved("pretrain", None, None, [("--set", {"train": {"lr": 0.5}})])
    assert result.settings["train"]["lr"] == 0.5
    assert result.origin["train.lr"] == "--set"
    assert result.origin["train.epochs"] == "recipe paper"
    assert "train.momentum" not in result.origin
    assert resolved("prep", "luna", "released", []).settings["pairs"]["pair_rule"] == "blind"
    assert resolved("finetune", "luna", "released", []).settings["train"]["optimiser"] == "adam"


def test_a_workspace_passes_over_what_it_cannot_read(chain, tmp_path):
    shutil.copytree(chain.cache, tmp_path / "cache/good")
    shutil.copytree(chain.tuned.run, tmp_path / "runs/good")
    for name, content in (("list", "[1, 2]"), ("torn", '{"dim": 3')):
        for folder, file in (("cache", "manifest.json"), ("runs", "run.json")):
            (tmp_path / folder / name).mkdir()
            (tmp_path / folder / name / file).write_text(content)
    workspace = Workspace(tmp_path)
    assert workspace.find_cache(3, "pairs") == tmp_path / "cache/good"
    assert workspace.find_run("finetune", "luna") == tmp_path / "runs/good"


def test_the_workspace_is_the_argument_then_the_variable_then_here(monkeypatch, tmp_path):
    monkeypatch.setenv("PCRL_WORKSPACE", str(tmp_path))
    assert Workspace().root == tmp_path
    assert Workspace(tmp_path / "a").root == tmp_path / "a"
    monkeypatch.delenv("PCRL_WORKSPACE")
    assert Workspace().root == Path()
