"""A torchvision state dict as weights: any torch format, every key accounted for, nothing run, nothing fetched."""

import pickle

import pytest
import torch

from pcrl_cli.core.contract import Domain
from pcrl_cli.core.errors import ConfigError, IntegrityError
from pcrl_cli.networks.imagenet import read_imagenet
from pcrl_cli.networks.resnet2d import ResNet18Encoder
from pcrl_cli.networks.transfer import load_encoder

DOMAIN = Domain(channels=1, modality="xray", spacing_mm=None, intensity={}, normalisation="ImageNet")


def state(width=4, old=False):
    """As torchvision's files: with `fc`; the oldest are without `num_batches_tracked`."""
    torch.manual_seed(3)
    made = ResNet18Encoder(3, width).state_dict()
    made |= {"fc.weight": torch.ones(10, 8 * width), "fc.bias": torch.ones(10)}
    return {k: v for k, v in made.items() if not (old and k.endswith("num_batches_tracked"))}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["resnet18-5c106cde.pth", "weights", "w.pt"])
def test_both_torch_formats_load_under_any_name_and_fc_is_left_out(tmp_path, zipped, name):
    torch.save(state(), tmp_path / name, _use_new_zipfile_serialization=zipped)
    weights = read_imagenet(tmp_path / name)
    assert weights.others == ("fc.bias", "fc.weight")
    encoder = ResNet18Encoder(3, 4)
    report = load_encoder(encoder, weights, DOMAIN)
    assert report.share == 1
    assert (len(report.loaded), report.missing, report.unexpected, report.wrong_shape) == (120, [], [], [])
    assert report.not_encoder == ["fc.bias", "fc.weight"]
    assert all(torch.equal(v, state()[k]) for k, v in encoder.state_dict().items())
    assert any("photograph" in line for line in report.differences)
    architecture = weights.contract.architecture
    assert (architecture.dim, architecture.encoder, architecture.width) == (2, "resnet18", 4)


def test_a_state_dict_may_lie_in_a_checkpoint_of_a_wrapped_model(tmp_path):
    wrapped = {"state_dict": {f"module.{k}": v.half() for k, v in state().items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "c.pth")
    weights = read_imagenet(tmp_path / "c.pth")
    assert weights.tensors["conv1.weight"].dtype == torch.float32
    assert load_encoder(ResNet18Encoder(3, 4), weights, DOMAIN).share == 1


def test_counters_that_old_files_lack_are_reported_as_missing(tmp_path):
    torch.save(state(old=True), tmp_path / "old.pth")
    report = load_encoder(ResNet18Encoder(3, 4), read_imagenet(tmp_path / "old.pth"), DOMAIN)
    assert len(report.missing) == 20
    assert all(k.endswith("num_batches_tracked") for k in report.missing)
    assert report.share > 0.99


def test_an_absent_file_is_a_sentence_that_says_where_to_get_it(tmp_path):
    with pytest.raises(ConfigError, match=r"downloads nothing; .*torchvision"):
        read_imagenet(tmp_path / "none.pth")


def test_another_network_or_width_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.ones(3)}, tmp_path / "vgg.pth")
    with pytest.raises(ConfigError, match="no ResNet-18"):
        read_imagenet(tmp_path / "vgg.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(IntegrityError, match="no dictionary of tensors"):
        read_imagenet(tmp_path / "list.pth")
    torch.save(state(), tmp_path / "narrow.pth")
    with pytest.raises(ConfigError, match="of another shape"):
        load_encoder(ResNet18Encoder(3, 8), read_imagenet(tmp_path / "narrow.pth"), DOMAIN)


@pytest.mark.parametrize("more", ["layer1.2.conv1.weight", "layer3.10.bn1.bias", "layer2.0.conv3.weight"])
def test_a_deeper_resnet_is_not_taken_for_a_resnet_18(tmp_path, more):
    torch.save(state() | {more: torch.ones(3)}, tmp_path / "deep.pth")
    with pytest.raises(ConfigError, match=rf"deeper ResNet than ResNet-18 \({more}\)"):
        read_imagenet(tmp_path / "deep.pth")


class Runs:
    def __reduce__(self):
        return (print, ("ran",))


def test_a_pickle_that_wants_to_run_code_is_not_opened_and_torn_files_are_told(tmp_path, capsys):
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"conv1.weight": Runs()}))
    with pytest.raises(IntegrityError, match="not opened"):
        read_imagenet(tmp_path / "bad.pth")
    torch.save({"x": Runs()}, tmp_path / "worse.pth")
    with pytest.raises(IntegrityError, match="not opened"):
        read_imagenet(tmp_path / "worse.pth")
    assert capsys.readouterr().out == ""
    torch.save(state(), tmp_path / "torn.pth")
    whole = (tmp_path / "torn.pth").read_bytes()
    for cut in (0, 100, len(whole) // 2):
        (tmp_path / "torn.pth").write_bytes(whole[:cut])
        with pytest.raises(IntegrityError):
            read_imagenet(tmp_path / "torn.pth")


@pytest.mark.parametrize("shape", [(), (4,), (0, 3, 7, 7)], ids=str)
def test_a_first_tensor_that_is_no_convolution_is_refused_in_a_sentence(tmp_path, shape):
    torch.save(state() | {"conv1.weight": torch.zeros(shape)}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"first convolution in .*w\.pth has shape"):
        read_imagenet(tmp_path / "w.pth")
