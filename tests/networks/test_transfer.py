"""Weights in and out: every key is accounted for, and no file is trusted."""

import os
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pcrl_cli.core.contract import Architecture, Contract, Domain, Patients
from pcrl_cli.core.errors import ConfigError, IntegrityError, PcrlError
from pcrl_cli.networks.classify import Classifier
from pcrl_cli.networks.nsunet import NsUNet
from pcrl_cli.networks.transfer import Weights, contract_metadata, load_encoder, read_weights, write_weights
from pcrl_cli.networks.unet3d import UNet3dEncoder

DOMAIN = Domain(channels=1, modality="ct", spacing_mm=1.0, intensity={"hu_min": -1000.0}, normalisation="z")
FORMATS = {"safetensors": "w.safetensors", "torch": "w.pt"}


def contract(**changes):
    architecture = Architecture(dim=3, encoder="unet3d", width=2, poolings=2)
    return Contract(architecture=architecture, domain=DOMAIN, patients=Patients.of(["a"], "s"), **changes)


def encoder(seed=0, channels=1, poolings=2):
    torch.manual_seed(seed)
    made = UNet3dEncoder(channels, 2, poolings)
    made.train()(torch.randn(3, channels, 8, 8, 8))  # running statistics that are worth carrying
    return made.eval()


def weights(tensors, others=()):
    return Weights(Path("made"), tensors, contract(), others)


def x(channels=1):
    return torch.randn(2, channels, 9, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("format", FORMATS)
def test_a_round_trip_gives_the_same_features_bit_for_bit_and_the_same_contract(tmp_path, format):
    source, path = encoder(0), tmp_path / FORMATS[format]
    write_weights(path, source, contract(steps=5), format)
    read = read_weights(path)
    target = encoder(1)
    report = load_encoder(target, read, DOMAIN)
    assert read.contract == contract(steps=5)
    assert all(torch.equal(a, b) for a, b in zip(source(x()), target(x()), strict=True))
    assert report.share == 1.0
    assert sorted(source.state_dict()) == report.loaded
    assert not any((report.missing, report.unexpected, report.wrong_shape, report.adapted, report.differences))


def test_files_open_with_the_plain_libraries(tmp_path):
    write_weights(tmp_path / "w.safetensors", encoder(), contract(), "safetensors")
    write_weights(tmp_path / "w.pt", encoder(), contract(), "torch")
    plain = torch.load(tmp_path / "w.pt", weights_only=True)
    assert plain.keys() == load_file(tmp_path / "w.safetensors").keys() == encoder().state_dict().keys()


@pytest.mark.parametrize("format", FORMATS)
def test_the_digest_tells_the_values_and_not_the_file(tmp_path, format):
    write_weights(tmp_path / FORMATS[format], encoder(0), contract(), format)
    assert read_weights(tmp_path / FORMATS[format]).digest == weights(encoder(0).state_dict()).digest
    assert read_weights(tmp_path / FORMATS[format]).digest != weights(encoder(1).state_dict()).digest


@pytest.mark.parametrize("prefix", ["net.encoder.", "network.encoder.", "encoder.", ""])
def test_the_encoder_is_found_inside_whole_models_and_the_rest_is_named(tmp_path, prefix):
    tensors = {prefix + key: value for key, value in encoder().state_dict().items()}
    rest = {"net.stages.0.weight": torch.ones(3), "compare.1.bn.bias": torch.ones(2)} if prefix else {}
    write_weights(tmp_path / "w.safetensors", tensors | rest, contract(), "safetensors")
    report = load_encoder(encoder(1), read_weights(tmp_path / "w.safetensors"), DOMAIN)
    assert report.share == 1.0
    assert report.not_encoder == sorted(rest)


@pytest.mark.parametrize(
    "model", [lambda e: NsUNet(e), lambda e: Classifier(e, 1)], ids=["decoder beside it", "classifier"]
)
def test_every_key_of_a_real_model_is_loaded_or_named_as_no_part_of_the_encoder(tmp_path, model):
    torch.manual_seed(0)
    whole = model(encoder(0))
    write_weights(tmp_path / "w.pt", whole, contract(), "torch")
    target = encoder(1)
    report = load_encoder(target, read_weights(tmp_path / "w.pt"), DOMAIN)
    assert len(report.loaded) + len(report.not_encoder) == len(whole.state_dict())
    assert torch.equal(target(x())[-1], whole.encoder(x())[-1])


def test_a_renamed_a_missing_and_a_misshapen_key_are_each_reported():
    tensors = encoder(0).state_dict()
    tensors["levels.0.0.9.bias"] = tensors.pop("levels.0.0.0.bias")
    tensors["levels.0.1.0.bias"] = torch.zeros(99)
    target = encoder(1)
    before = target.state_dict()["levels.0.0.0.bias"].clone()
    report = load_encoder(target, weights(tensors), DOMAIN)
    assert report.unexpected == ["levels.0.0.9.bias"]
    assert report.missing == ["levels.0.0.0.bias"]
    assert report.wrong_shape == ["levels.0.1.0.bias: (99,) in the file, (4,) in the network"]
    assert set(report.loaded) == target.state_dict().keys() - {"levels.0.0.0.bias", "levels.0.1.0.bias"}
    assert torch.equal(target.state_dict()["levels.0.0.0.bias"], before)


@pytest.mark.parametrize("keep", [0.5, 0.88, 0.92, 1.0])
def test_less_than_nine_tenths_of_the_values_is_refused_and_changes_nothing(keep):
    tensors, total = encoder(0).state_dict(), sum(v.numel() for v in encoder(0).state_dict().values())
    while sum(v.numel() for v in tensors.values()) > keep * total:
        tensors.pop(min(tensors, key=lambda k: tensors[k].numel()))
    target = encoder(1)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    share = sum(v.numel() for v in tensors.values()) / total
    if share < 0.9:
        with pytest.raises(ConfigError, match=r"only \d+\.\d % of the encoder"):
            load_encoder(target, weights(tensors), DOMAIN)
        assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())
    else:
        assert load_encoder(target, weights(tensors), DOMAIN).share == pytest.approx(share)


def test_weights_of_another_depth_or_of_nothing_are_refused():
    for tensors in (encoder(0, poolings=1).state_dict(), {}):
        with pytest.raises(ConfigError, match="of another network"):
            load_encoder(encoder(1), weights(tensors), DOMAIN)


def test_a_stem_of_one_channel_gives_four_equal_channels_the_same_features():
    source, target = encoder(0), encoder(1, channels=4)
    report = load_encoder(target, weights(source.state_dict()), DOMAIN.model_copy(update={"channels": 4}))
    assert report.adapted == ["levels.0.0.0.weight: repeated over 4 channels and divided by 4"]
    assert report.differences == ["channels: the weights saw 1, now 4"]
    assert report.share == 1.0
    assert torch.allclose(target(x().expand(-1, 4, -1, -1, -1))[-1], source(x())[-1], atol=1e-5)


def test_a_stem_may_be_repeated_without_being_divided_and_the_report_says_so():
    source, target = encoder(0), encoder(1, channels=4)
    report = load_encoder(target, weights(source.state_dict()), DOMAIN, "repeat")
    assert report.adapted == ["levels.0.0.0.weight: repeated over 4 channels and not divided"]
    name = "levels.0.0.0.weight"
    assert torch.equal(target.state_dict()[name], source.state_dict()[name].expand(-1, 4, -1, -1, -1))


def test_tensors_that_start_random_are_named_but_for_counters():
    tensors = encoder(0, channels=2).state_dict()
    tensors.pop("levels.0.1.0.bias")
    tensors.pop("levels.0.1.1.num_batches_tracked")
    report = load_encoder(encoder(1, channels=4), weights(tensors), DOMAIN)
    assert report.random == [
        "levels.0.0.0.weight: (2, 2, 3, 3, 3) in the file, (2, 4, 3, 3, 3) in the network; it starts random",
        "levels.0.1.0.bias: not in the file; it starts random",
    ]


def test_every_difference_of_the_data_is_named():
    now = Domain(channels=1, modality="mr", spacing_mm=2.0, intensity={}, normalisation="z")
    report = load_encoder(encoder(1), weights(encoder(0).state_dict()), now)
    assert [line.split(":")[0] for line in report.differences] == ["modality", "spacing_mm", "intensity"]


def test_other_channels_are_a_difference_where_both_have_names():
    now = DOMAIN.model_copy(update={"channel_names": ("t1", "t2")})
    saw = DOMAIN.model_copy(update={"channel_names": ("flair", "t1ce")})
    named = Weights(Path("made"), encoder(0).state_dict(), contract().model_copy(update={"domain": saw}))
    assert load_encoder(encoder(1), named, now).differences == [
        'channel_names: the weights saw ["flair", "t1ce"], now ["t1", "t2"]'
    ]
    assert load_encoder(encoder(1), weights(encoder(0).state_dict()), now).differences == []


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, zipped):
    bomb = {"state_dict": {"a": torch.ones(1), "b": Bomb(tmp_path / "boom")}}
    torch.save(bomb, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(IntegrityError, match="can run code"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "boom").exists()


def outcome(path):
    try:
        return read_weights(path)
    except PcrlError as error:
        return error


@pytest.mark.parametrize("kind", ["safetensors", "torch", "legacy"])
def test_a_torn_or_flipped_file_is_an_integrity_error_or_the_weights_never_a_crash(tmp_path, kind):
    path = tmp_path / FORMATS.get(kind, "w.pt")
    if kind == "legacy":
        content = {"state_dict": encoder().state_dict(), **contract_metadata(contract())}
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        write_weights(path, encoder(), contract(), kind)
    whole, rng = path.read_bytes(), random.Random(0)
    for i in range(120):
        torn = bytearray(whole[: rng.randrange(len(whole))] if i % 2 else whole)
        if not i % 2:
            torn[rng.randrange(min(3000, len(torn)))] = rng.randrange(256)
        path.write_bytes(torn)
        found = outcome(path)
        assert not isinstance(found, PcrlError) or "\n" not in str(found)
        assert isinstance(found, IntegrityError | ConfigError) or (isinstance(found, Weights) and i % 2 == 0), found


def test_no_file_no_contract_and_no_weights_are_three_sentences(tmp_path):
    with pytest.raises(ConfigError, match="there is no weights file"):
        read_weights(tmp_path / "w.safetensors")
    save_file(encoder().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="carries no pcrl contract"):
        read_weights(tmp_path / "w.safetensors")
    save_file(encoder().state_dict(), tmp_path / "w.safetensors", {"pcrl": '{"schema_": "pcrl.weights/9"}'})
    with pytest.raises(IntegrityError, match="damaged or of another version"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [{"state_dict": {"a": torch.ones(1)}}, {"a": 3}, [1, 2], {5: torch.ones(1)}])
def test_a_torch_file_of_something_else_is_a_configuration_error(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="is not a file that"):
        read_weights(tmp_path / "w.pt")
