"""The authors' released weights: recognised, accounted for name by name, and equal in what they compute."""

import json

import pytest
import torch
from chain import finetune_layers
from original import random_model, save
from safetensors import safe_open

from pcrl_cli.core.contract import Architecture, Contract, Domain, Patients
from pcrl_cli.core.errors import ConfigError, UsageError
from pcrl_cli.networks import encoders
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.networks.released import expected_2d, expected_3d, recognise
from pcrl_cli.networks.transfer import load_encoder, read_weights, write_weights
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.stages.evaluate import evaluate
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.import_ import import_weights
from pcrl_cli.stages.inspect import inspect
from pcrl_cli.stages.weights import weights_of


def features(file, x):
    weights = read_weights(file)
    encoder = build_encoder(weights.contract.architecture, weights.contract.domain.channels)
    report = load_encoder(encoder, weights, weights.contract.domain)
    assert (report.share, report.missing, report.unexpected) == (1.0, [], [])
    return encoder.eval()(x)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_features_equal_the_original_modules_in_both_formats_from_a_gpu(tmp_path, monkeypatch, legacy):
    model, x = random_model(), torch.randn(2, 1, 16, 24, 8, generator=torch.Generator().manual_seed(1))
    with monkeypatch.context() as patch:  # the file says that its tensors were on a GPU
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        file = save(tmp_path / "w.pt", model.state_dict(), legacy)
    assert b"cuda:0" in file.read_bytes()
    assert (file.read_bytes()[:2] == b"PK") != legacy
    done = import_weights(file, tmp_path / "new folder" / "out")
    assert done.format == ("legacy" if legacy else "zip")
    for ours, theirs in zip(features(done.file, x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (done.missing, done.unexpected, done.wrong_shape, done.share) == ([], [], [], 1.0)
    assert (done.expected, done.tensors, done.not_encoder) == (169, 56, 113)
    assert (done.epoch, done.options["epochs"], done.options["nothing"]) == (240, 240, None)


def test_the_names_are_those_of_the_module():
    assert sorted(expected_3d()) == sorted(random_model(2).state_dict())
    assert len(set(expected_2d())) == 120


def test_the_full_width_is_the_papers_architecture(tmp_path):
    model = random_model(32)
    known = recognise(model.state_dict(), "x")
    a = known.architecture
    assert (a.dim, a.encoder, a.width, a.poolings, len(known.tensors)) == (3, "unet3d", 32, 3, 56)
    assert sum(t.numel() for t in known.tensors.values()) > 7_027_776


def test_a_data_parallel_models_prefix_makes_no_difference(tmp_path):
    model = random_model()
    file = save(tmp_path / "w.pt", {f"module.{k}": v for k, v in model.state_dict().items()})
    done = import_weights(file, tmp_path / "out")
    assert (done.missing, done.unexpected, done.tensors) == ([], [], 56)


def test_differences_are_reported_name_by_name(tmp_path):
    state = dict(random_model().state_dict())
    del state["down_tr64.ops.0.bn1.num_batches_tracked"], state["out_tr.final_conv.bias"]
    state["down_tr64.ops.0.bn1.bias"] = torch.zeros(5)
    state["projector.weight"] = torch.zeros(2)
    state["not a tensor"] = 3
    done = import_weights(save(tmp_path / "w.pt", state), tmp_path / "out")
    assert done.missing == ["down_tr64.ops.0.bn1.num_batches_tracked", "out_tr.final_conv.bias"]
    assert done.unexpected == ["projector.weight"]
    assert done.wrong_shape == ["levels.0.0.1.bias: (5,) in the file, (4,) in the network"]
    assert 0.9 < done.share < 1
    assert any("no tensors and were left out" in note for note in done.notes)


def test_another_networks_weights_are_refused_and_nothing_is_written(tmp_path):
    state = dict(random_model().state_dict())
    few = {k: v for k, v in state.items() if not k.startswith("down_tr512")}
    with pytest.raises(ConfigError, match=r"only \d+\.\d % of the encoder's values"):
        import_weights(save(tmp_path / "few.pt", few), tmp_path / "out")
    with pytest.raises(ConfigError, match="neither the released 3D model"):
        import_weights(save(tmp_path / "other.pt", {"a": torch.ones(2)}), tmp_path / "out")
    with pytest.raises(ConfigError, match="there is no file"):
        import_weights(tmp_path / "none.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten_unless_asked(tmp_path):
    file = save(tmp_path / "w.pt", random_model().state_dict())
    first = import_weights(file, tmp_path / "out")
    with pytest.raises(UsageError, match="exists; name another --out, or --overwrite"):
        import_weights(file, tmp_path / "out")
    assert import_weights(file, tmp_path / "out", overwrite=True).sha256 == first.sha256


def test_the_file_says_that_its_patients_are_unknown(tmp_path):
    done = import_weights(save(tmp_path / "w.pt", random_model().state_dict()), tmp_path / "out")
    with safe_open(done.file, "pt") as file:
        patients = json.loads(file.metadata()["pcrl"])["patients"]
    assert patients["unknown"] is True
    assert patients["hashes"] == []
    assert "patients seen | unknown |" in done.card.read_text("utf-8")
    assert inspect(done.file).facts["architecture"]["poolings"] == 3
    other = Patients.of(["a"], patients["salt"])
    assert Patients.model_validate(patients).joined(other).unknown
    assert other.joined(Patients.model_validate(patients)).unknown
    assert not other.unknown


def resnet18_state():
    shapes = {"conv1.weight": (64, 3, 7, 7)}
    widths = {1: 64, 2: 128, 3: 256, 4: 512}
    for name in expected_2d():
        if not name.startswith("layer"):
            continue
        layer, block = int(name[5]), int(name[7])
        c, before = widths[layer], widths[layer] if block or layer == 1 else widths[layer] // 2
        if name.endswith("conv1.weight"):
            shapes[name] = (c, before, 3, 3)
        elif name.endswith("conv2.weight"):
            shapes[name] = (c, c, 3, 3)
        elif name.endswith("downsample.0.weight"):
            shapes[name] = (c, before, 1, 1)
    g = torch.Generator().manual_seed(0)
    state = {}
    for name in expected_2d():
        width = 64 if not name.startswith("layer") else widths[int(name[5])]
        shape = shapes.get(name, () if name.endswith("tracked") else (width,))
        state[name] = torch.tensor(5) if shape == () else torch.rand(shape, generator=g)
    return state


@pytest.mark.parametrize("prefix", ["", "module.encoder."])
def test_the_2d_encoder_is_a_resnet18_by_torchvisions_names(tmp_path, prefix):
    state = resnet18_state()
    file = save(
        tmp_path / "w.pt", {f"{prefix}{k}": v for k, v in state.items()} | {f"{prefix}fc.weight": torch.ones(2)}
    )
    known = recognise(torch.load(file, weights_only=False)["state_dict"], "x")
    assert (known.architecture.dim, known.architecture.encoder, known.architecture.width) == (2, "resnet18", 64)
    assert known.others == ("fc.weight",)
    assert known.tensors.keys() == state.keys()
    try:
        done = import_weights(file, tmp_path / "out")
    except ConfigError as error:
        if "does not know" not in str(error):
            raise
        pytest.skip("this version has no 2D encoder")
    assert (done.expected, done.missing, done.unexpected, done.tensors) == (120, [], ["fc.weight"], 120)
    encoder = build_encoder(done.contract.architecture, 3)
    encoder.load_state_dict(read_weights(done.file).tensors)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_deeper_resnet_is_refused():
    with pytest.raises(ConfigError, match="deeper ResNet"):
        recognise(
            {k: torch.ones(2, 2, 2, 2) for k in ("conv1.weight", "layer1.0.conv1.weight", "layer1.2.conv1.weight")}, "x"
        )


def test_fine_tuning_and_evaluation_say_that_a_leak_cannot_be_ruled_out(chain, tmp_path, heard):
    done = import_weights(save(tmp_path / "w.pt", random_model().state_dict()), tmp_path / "out")
    tuned = finetune(
        task="luna", weights=done.file, workspace=chain.workspace, out=tmp_path / "run",
        layers=finetune_layers(1), listener=heard,
    )  # fmt: skip
    assert any("can't be ruled out" in text for text in heard.warnings)
    assert any("can't be ruled out" in text for text in tuned.notes)
    assert tuned.overlap["unknown"] == 1
    assert tuned.transfer is not None
    assert tuned.transfer["share"] == 1.0
    scored = evaluate(tuned.run, workspace=chain.workspace)
    assert any("can't be ruled out" in text for text in scored.notes)


def allocates_nothing(monkeypatch):
    """From here on a 3D encoder may only be built on `meta`."""

    def build(*args):
        assert torch.get_default_device().type == "meta"
        return UNet3dEncoder(*args)

    monkeypatch.setattr(encoders, "UNet3dEncoder", build)


def test_a_small_file_that_promises_a_huge_network_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    allocates_nothing(monkeypatch)
    wide = {"down_tr64.ops.0.conv1.weight": torch.zeros(4000, 1, 3, 3, 3), "down_tr64.ops.0.bn1.weight": torch.ones(4)}
    with pytest.raises(ConfigError, match=r"only 0\.0 % of the encoder's values"):
        import_weights(save(tmp_path / "w.pt", wide), tmp_path / "out")
    huge = Architecture(dim=3, encoder="unet3d", width=4096, poolings=5)
    domain = Domain(channels=1, modality="ct", spacing_mm=1.0, intensity={}, normalisation="z")
    tensors = {"levels.0.0.0.bias": torch.ones(4096)}
    write_weights(tmp_path / "w.safetensors", tensors, Contract(architecture=huge, domain=domain), "safetensors")
    with pytest.raises(ConfigError, match=r"only 0\.0 % of the values"):
        weights_of(tmp_path / "w.safetensors")


@pytest.mark.parametrize("shape", [(), (8,), (8, 3), (0, 1, 3, 3, 3), (9999, 1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize(
    "names", [("down_tr64.ops.0.conv1.weight", "x"), ("conv1.weight", "layer1.0.conv1.weight")], ids=["3d", "2d"]
)
def test_a_first_tensor_that_is_no_convolution_is_refused_in_a_sentence(names, shape):
    with pytest.raises(ConfigError, match=r"first convolution in w\.pt has shape \("):
        recognise({name: torch.zeros(shape) for name in names}, "w.pt")
