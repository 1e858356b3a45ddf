"""Classes of one's own: what is seen of an image and of a scan, and which settings belong to which."""

import math

import pytest
import torch

from pcrl_cli.augment.cubes import rotated_crop
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Progress, Stored
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.networks.resnet2d import ResNet18Encoder
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.tasks import chest
from pcrl_cli.tasks.classify import Classify, Config

FLAT, SOLID = Stored(2, 1, (1 / 255, 0.0), ("x", "y")), Stored(3, 1, (1 / 2000, 0.5), ("x", "y"))


def solid(**config):
    torch.manual_seed(0)
    return Classify(UNet3dEncoder(1, 2, 2), Config(**config), SOLID)


def flat(**config):
    torch.manual_seed(0)
    return Classify(ResNet18Encoder(3, 4), Config(**config), FLAT)


def scans(n=4, shape=(16, 20, 24)):
    values = torch.randint(-1000, 1001, (n, 1, *shape), generator=torch.Generator().manual_seed(1))
    return {"image": values.to(torch.int16), "label": torch.tensor([[1, -1], [0, 1], [-1, -1], [0, 0]]).to(torch.int8)}


def rng(n=4, step=0):
    return Rng.at(0, step, torch.arange(n))


def normal(x):
    flat = x.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(x)


def test_prediction_sees_the_middle_cube_of_a_scan_normalised():
    batch = scans()
    seen = solid(side=12).centre(batch)
    expected = normal(batch["image"][:, :, 2:14, 4:16, 6:18].float() / 2000 + 0.5)
    assert torch.allclose(seen, expected, atol=1e-4)


def test_the_side_is_by_default_seven_eighths_of_the_shortest():
    assert solid().centre(scans()).shape == (4, 1, 14, 14, 14)
    assert solid().views(scans(), rng())["x"].shape == (4, 1, 14, 14, 14)


def test_training_sees_cubes_from_everywhere_turned():
    blocks = torch.arange(5 * 6 * 7).view(1, 1, 5, 6, 7).expand(20_000, -1, -1, -1, -1)
    taken = rotated_crop(blocks, 4, Stream.of("crop").keyed(torch.arange(20_000))).flatten(1)
    lowest = taken.min(1).values
    starts = torch.stack([lowest // 42, lowest // 7 % 6, lowest % 7])
    assert [len(s.unique()) for s in starts] == [2, 3, 4]
    assert len(taken.unique(dim=0)) == 2 * 3 * 4 * 48


@pytest.mark.parametrize(("symmetries", "kinds"), [("all", 48), ("mirrors", 8), ("none", 1)])
def test_symmetries_may_be_fewer(symmetries, kinds):
    model = solid(side=8, symmetries=symmetries)
    image = torch.arange(512.0).view(1, 1, 8, 8, 8).expand(1500, -1, -1, -1, -1)
    seen = model.look.drawn(image, Stream.of("s").keyed(torch.arange(1500)))
    assert len(seen.flatten(1).unique(dim=0)) == kinds
    if symmetries == "none":
        assert torch.equal(seen, image)


def test_the_loss_is_the_mean_over_known_labels():
    model, batch = solid().eval(), scans()
    p = model.predict(batch)
    views = {"x": model.centre(batch), "label": batch["label"]}
    expected = [
        -math.log(p[i, k] if y else 1 - p[i, k]) for i, row in enumerate(batch["label"].tolist())
        for k, y in enumerate(row) if y >= 0
    ]  # fmt: skip
    assert len(expected) == 5
    assert model.losses(views, Progress(0, 1))["bce"].item() == pytest.approx(sum(expected) / 5, rel=1e-5)


def test_maps_lie_over_the_cube_that_is_seen():
    model = solid(side=16).eval()
    assert model.activation(scans()).shape == (4, 2, 16, 16, 16)


def test_images_are_seen_as_radiographs_are():
    image = torch.randint(0, 256, (3, 1, 48, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    torch.manual_seed(0)
    other = chest.Chest(ResNet18Encoder(3, 4), chest.Config(side=32, resize=40), FLAT)
    assert torch.equal(flat(side=32, resize=40).centre({"image": image}), other.centre({"image": image}))
    assert flat().look.ranges == chest.Config().ranges
    assert (flat().look.side, flat().look.resize) == (224, 256)
    assert flat(side=300).look.resize == 300


def test_settings_that_do_not_fit_are_refused_in_one_sentence():
    with pytest.raises(ConfigError, match=r"learner\.area changes nothing for 3D images; leave it out"):
        solid(area=(0.5, 1.0))
    with pytest.raises(ConfigError, match=r"learner\.symmetries changes nothing for 2D"):
        flat(symmetries="all")
    with pytest.raises(ConfigError, match="side 64 is cut from 40 pixels"):
        flat(side=64, resize=40)
    with pytest.raises(
        ConfigError, match=r"side 17 is larger than the cached scans \(16 x 20 x 24 voxels\).*whole\.shape=\[17"
    ):
        solid(side=17).views(scans(), rng())
    with pytest.raises(ConfigError, match="no labels, which the task classify needs; prepare it with --labels"):
        Classify(UNet3dEncoder(1, 2, 2), Config(), Stored(3, 1, (1.0, 0.0)))
