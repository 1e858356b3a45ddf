"""Findings on radiographs: what training and prediction see, the masked loss, activation maps."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pcrl_cli.augment.images import normalise
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Progress, Stored
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.resnet2d import ResNet18Encoder
from pcrl_cli.tasks.chest import Chest, Config

STORED = Stored(2, 1, (1 / 255, 0.0), ("Mass", "Nodule", "Hernia"))
NOW = Progress(0, 1)


def task(stored=STORED, **config):
    torch.manual_seed(0)
    return Chest(ResNet18Encoder(3, 4), Config(**{"side": 32, "resize": 40} | config), stored)


def images(n=3, side=40):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 1, 7, 7, generator=generator)
    return (F.interpolate(coarse, (side, side), mode="bilinear") * 255).to(torch.uint8)


def batch(n=3, side=40):
    return {"image": images(n, side), "label": torch.tensor([[1, 0, -1], [0, 0, 1], [-1, 1, 0]], dtype=torch.int8)[:n]}


def rng(n=3, step=0):
    return Rng.at(0, step, torch.arange(n))


def test_the_defaults_are_the_papers():
    config = Config()
    assert (config.side, config.resize, config.area) == (224, 256, (0.3, 1.0))
    assert config.rotation_deg == (-10, 10)
    assert config.flip_probability == 0.5


def test_prediction_sees_the_normalised_centre():
    seen = task().centre(batch())
    assert torch.allclose(seen, normalise(images()[:, :, 4:36, 4:36] / 255), atol=1e-5)
    assert seen.shape == (3, 3, 32, 32)


@pytest.mark.parametrize("side", [64, 40, 25])
def test_a_cache_of_another_size_is_resized_first_with_antialiasing(side):
    unit = task().centre_unit(batch(side=side))[0, 0].numpy()
    pillow = Image.fromarray(images(side=side)[0, 0].numpy()).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.abs(unit - np.asarray(pillow)[4:36, 4:36] / 255).max() < 1.01 / 255  # Pillow rounds to grey levels


def test_training_views_are_crops_of_their_own_image_turned_and_normalised():
    quiet = task(area=(1.0, 1.0), rotation_deg=(0, 0), flip_probability=0.0, resize=40, side=40)
    x = quiet.views(batch(), rng())["x"]
    assert torch.allclose(x, normalise(images() / 255), atol=1e-4)
    flipped = task(area=(1.0, 1.0), rotation_deg=(0, 0), flip_probability=1.0, side=40).views(batch(), rng())["x"]
    assert torch.allclose(flipped, x.flip(-1), atol=1e-4)
    several = [task().views(batch(), rng(step=s))["x"] for s in range(6)]
    assert len({v.sum().item() for v in several}) == 6
    black = normalise(torch.zeros(1, 1, 1, 1))[0, 0].item()
    corners = [task(rotation_deg=(10, 10)).views(batch(), rng(step=s))["x"][:, 0, 0, 0] for s in range(3)]
    assert torch.allclose(torch.stack(corners), torch.tensor(black))


def test_the_loss_is_the_mean_over_known_labels():
    model = task().eval()
    views = {"x": model.centre(batch()), "label": batch()["label"]}
    p = model.predict(batch())
    expected = []
    for i, row in enumerate(views["label"].tolist()):
        expected += [-math.log(p[i, k] if y else 1 - p[i, k]) for k, y in enumerate(row) if y >= 0]
    assert len(expected) == 7
    assert model.losses(views, NOW)["bce"].item() == pytest.approx(sum(expected) / 7, rel=1e-5)


def test_what_is_not_known_teaches_nothing():
    model = task().eval()
    x, label = model.centre(batch()), batch()["label"]
    nothing = model.losses({"x": x, "label": torch.full_like(label, -1)}, NOW)["bce"]
    assert nothing.item() == 0
    nothing.backward()
    assert not any(p.grad.any() for p in model.parameters())
    model.zero_grad()
    one = torch.full_like(label, -1)
    one[1, 2] = 1
    model.losses({"x": x, "label": one}, NOW)["bce"].backward()
    assert model.network.linear.weight.grad[2].any()
    assert not model.network.linear.weight.grad[:2].any()


def test_the_mean_of_an_activation_map_is_its_logit():
    model = task().eval()
    with torch.no_grad():
        logits = model.network(model.centre(batch()))
        maps = model.network.activation(model.centre(batch()))
    assert maps.shape[:2] == (3, 3)
    assert torch.allclose(maps.flatten(2).mean(2), logits, atol=1e-5)


def test_activation_maps_lie_over_what_the_network_sees():
    model = task(side=96, resize=96).eval()
    maps = model.activation({"image": images(side=96)})
    assert maps.shape == (3, 3, 96, 96)
    small = model.network.activation(model.centre({"image": images(side=96)}))
    assert torch.allclose(maps[:, :, 16, 16], small[:, :, 0, 0], atol=0.1 * small.std().item() + 1e-4)


def test_a_cache_without_labels_is_refused_and_settings_that_do_not_fit_too():
    with pytest.raises(ConfigError, match="no labels"):
        task(Stored(2, 1, (1 / 255, 0.0)))
    for wrong in ({"side": 50}, {"area": (0.5, 0.2)}, {"rotation_deg": (3, 1)}):
        with pytest.raises(ValueError, match=r"larger|above"):
            Config(**{"side": 32, "resize": 40} | wrong)


def test_pictures_have_x_to_the_right():
    model = task()
    views = model.views(batch(), rng())
    assert torch.equal(model.pictures(views)["training views"][1, 0], views["x"][1, 0].T)
