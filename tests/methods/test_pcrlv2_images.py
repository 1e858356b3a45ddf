"""PCRLv2 on 2D images: the same losses around ResNet-18, and views that are cut from whole images."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pcrl_cli.augment import images as im
from pcrl_cli.core.config import recipe
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Progress, Stored
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.methods.pcrlv2 import Config, PCRLv2, draw_scales
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.pure import losses

STORED = Stored(2, 1, (1 / 255, 0.0))
START = Progress(0, 10)
SIDES = {"global_side": 48, "local_side": 32, "cutout_side": 8}


def of_recipe(name, **options):
    values = recipe(name, "pretrain", "pcrlv2", "2d")["learner"]
    values["images"] = values["images"] | SIDES | options.pop("images", {})
    return Config(**values | {"width": 4} | options)


@pytest.fixture
def make_2d():
    def make_(name="paper", seed=0, **options):
        torch.manual_seed(seed)
        return PCRLv2(of_recipe(name, **options), STORED)

    return make_


@pytest.fixture
def image_batch():
    """Three grey images of 64 x 64 as cached, uint8."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(3, 1, 9, 9, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic", align_corners=False)
    return {"image": (fine.clamp(0.05, 1) * 255).to(torch.uint8)}


def rng(step=0, seed=0):
    return Rng.at(seed, step, torch.tensor([4, 0, 9]))


both = pytest.mark.parametrize("name", ["paper", "released"])


@both
@pytest.mark.parametrize("crop", ["multi", "sub", "none"])
def test_views_are_two_globals_and_six_locals_of_the_settings_sizes(make_2d, image_batch, name, crop):
    views = make_2d(name, crop=crop).views(image_batch, rng())
    assert views["x"].shape == views["g"].shape == (3, 2, 3, 48, 48)
    assert ("l" in views) == (crop != "none")
    if crop != "none":
        assert views["l"].shape == (3, 6, 3, 32, 32)
        assert views["scales"].local
    assert all(torch.isfinite(v).all() for k, v in views.items() if k != "scales")


def test_targets_are_the_imagenet_normalisation_of_the_moved_crops_and_inputs_are_corrupted(make_2d, image_batch):
    learner, sample = make_2d(), rng().sample.fork("image")
    views = learner.views(image_batch, rng())
    boxes = im.draw_multi(sample, (64, 64), learner.config.images)[0]
    drawn = im.draw_crop(sample.fork("global").each(2).fork("crop"), boxes.flatten(0, 1), learner.config.images, 64)
    moved = im.crop(image_batch["image"] / 255, drawn, 48)
    assert torch.allclose(views["x"].flatten(0, 1), im.normalise(moved), atol=1e-5)
    changed = (views["x"] - views["g"]).abs() > 1e-4
    assert 0.05 < changed.float().mean() < 0.95
    holes = views["g"] == 0
    assert holes.flatten(2).any(2).all()
    assert not (views["l"] == 0).any()


def test_a_quiet_configuration_only_normalises(make_2d, image_batch):
    quiet = {
        "flip_probability": 0.0, "rotation_deg": (0, 0), "blur_probability": 0.0, "cutout_holes": 0,
        "global_area": (1.0, 1.0), "aspect": (1.0, 1.0), "global_side": 64,
    }  # fmt: skip
    views = make_2d(images=quiet).views(image_batch, rng())
    expected = im.normalise(image_batch["image"] / 255)
    for m in range(2):
        assert torch.allclose(views["x"][:, m], expected, atol=1e-4)
        assert torch.allclose(views["g"][:, m], expected, atol=1e-4)


def test_sub_crops_see_what_the_globals_see(make_2d):
    # a bright stripe along one edge of a dark image: where no global box holds it, no local view may
    image = torch.zeros(40, 1, 64, 64, dtype=torch.uint8)
    image[:, :, :3] = 255
    views = make_2d(crop="sub").views({"image": image}, Rng.at(0, 0, torch.arange(40)))
    bright = [(views[name].flatten(2) > 0).any(2) for name in ("x", "l")]  # dark is below 0 after normalisation
    without = ~bright[0].any(1)
    assert 3 < without.sum() < 37
    assert not bright[1][without].any()
    multi = make_2d(crop="multi").views({"image": image}, Rng.at(0, 0, torch.arange(40)))
    assert (multi["l"].flatten(2) > 0).any(2)[~(multi["x"].flatten(2) > 0).any(2).any(1)].any()


@both
def test_the_terms_are_equations_4_9_and_10(make_2d, image_batch, name):
    learner = make_2d(name)
    views = learner.views(image_batch, rng(3))
    scales, x, g, local = views["scales"], views["x"], views["g"], views["l"]
    terms = learner.losses(views, START)
    with torch.no_grad():
        pyramids = [learner.net(g[:, m]) for m in range(2)]
        restored = [learner.restore[str(scales.restore)](pyramids[m][scales.restore], (48, 48)) for m in range(2)]
        mse = [F.mse_loss(restored[m], x[:, m]).item() for m in range(2)]
        together = learner.net(local.flatten(0, 1))
        pairs = []
        for m in range(2):
            for k in range(6):
                i = scales.local[m][k]
                v, p = (t.view(3, 6, -1)[:, k] for t in learner.compare[str(i)](together[i]))
                pairs.append(losses.comparison(v, p, *learner.compare[str(i)](pyramids[m][i])).item())
    paper = name == "paper"
    assert terms["restore"].item() == pytest.approx(sum(mse) if paper else mse[0], rel=1e-4)
    assert terms["local"].item() == pytest.approx(sum(pairs) / (1 if paper else 12), abs=1e-4)
    assert terms.keys() == {"restore", "compare", "local"} | (set() if paper else {"full"})
    if not paper:
        full = F.conv2d(pyramids[0][5], learner.full[0].weight, learner.full[0].bias, padding=1)
        assert terms["full"].item() == pytest.approx(F.mse_loss(full, x[:, 0]).item(), rel=1e-4)


@both
def test_decoding_to_the_drawn_scale_changes_nothing(make_2d, image_batch, name):
    results = []
    for how in ("drawn", "all"):
        learner = make_2d(name, decode=how)
        terms = learner.losses(learner.views(image_batch, rng(1)), START)
        torch.stack(list(terms.values())).sum().backward()
        results.append((terms, [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters()]))
    assert all(torch.equal(results[0][0][t], results[1][0][t]) for t in results[0][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_a_restoration_leaves_the_unit_range_as_its_targets_do(make_2d, image_batch):
    learner = make_2d()
    views = learner.views(image_batch, rng())
    assert views["x"].min() < 0
    assert not any(isinstance(m, nn.Sigmoid) for m in learner.modules())
    assert not learner.restore["1"].sigmoid


@both
def test_the_recipes_are_the_table_of_the_two_readings(name):
    config = of_recipe(name, images={"global_side": 224, "cutout_side": 32})
    paper = name == "paper"
    raw = recipe(name, "pretrain", "pcrlv2", "2d")
    assert (raw["train"]["lr"], raw["train"]["batch"], raw["train"]["epochs"]) == (
        (0.01, 256, 240) if paper else (0.01, 64, 241)
    )
    assert raw["train"]["weight_decay"] == (1e-5 if paper else 1e-4)
    assert raw["learner"]["images"]["local_side"] == (224 if paper else 96)
    assert config.crop == "multi"
    assert config.restored_views == ("both" if paper else "first")
    assert config.images.jitter == (not paper)
    assert (config.poolings, config.up, config.decoder_bias) == (5, "nearest", False)
    defaults = im.ImageRanges()
    assert (defaults.global_area, defaults.local_area, defaults.locals) == ((0.3, 1.0), (0.05, 0.3), 6)
    drawn = [draw_scales(config, Stream.of("s", i), 6) for i in range(200)]
    assert {d.restore for d in drawn} == {1, 2, 3, 4, 5}


@both
def test_at_full_width_the_network_is_resnet18_and_a_decoder_of_256_to_16(name):
    with torch.device("meta"):
        learner = PCRLv2(of_recipe(name, width=64), STORED)
    assert learner.net.widths == (512, 256, 128, 64, 32, 16)
    assert sum(p.numel() for p in learner.encoder.parameters()) == 11_176_512
    built = build_encoder(learner.architecture, 3)
    assert built.state_dict().keys() == learner.encoder.state_dict().keys()


def test_starting_values_follow_the_recipe(make_2d):
    he, released = make_2d("paper", width=32), make_2d("released", width=32)
    for learner, normal in ((he, True), (released, False)):
        w = learner.net.stages[0].convs[0][0].weight
        bound = math.sqrt(6 / (w[0].numel()))
        assert (w.abs().max() > bound) == normal
        assert w.std().item() == pytest.approx(math.sqrt(2 / w[0].numel()), rel=0.05)


@pytest.mark.parametrize(
    ("wrong", "match"), [({"poolings": 3}, "ResNet-18 has 5"), ({"augmentation": "torchio"}, "torchio is for 3D")]
)
def test_what_2d_does_not_have_is_refused(make_2d, wrong, match):
    with pytest.raises(ConfigError, match=match):
        make_2d(**wrong)


@both
def test_pictures_are_rows_of_images_with_x_to_the_right(make_2d, image_batch, name):
    learner = make_2d(name).eval()
    with torch.no_grad():
        views = learner.views(image_batch, rng())
        shown = learner.pictures(views)
    assert {n: tuple(p.shape) for n, p in shown.items() if n in ("x1", "restored from F5", "local views")} == {
        "x1": (3, 1, 48, 48),
        "restored from F5": (3, 1, 48, 48),
        "local views": (3, 6, 32, 32),
    }
    assert torch.equal(shown["x1"][1, 0], views["x"][1, 0, 0].T)
    assert torch.equal(shown["local views"][2, 4], views["l"][2, 4, 0].T)


def test_constant_views_are_counted_in_spite_of_the_normalisation(make_2d, image_batch):
    learner = make_2d(images={"cutout_holes": 0, "rotation_deg": (0, 0)})
    image_batch["image"][1] = 7
    views = learner.views(image_batch, rng())
    assert learner.figures(views)["constant_views"].item() == 8


def test_what_is_watched_has_a_row_a_global_view(make_2d, image_batch):
    learner = make_2d()
    watched = learner.diagnostics(learner.views(image_batch, rng()))
    assert watched.keys() == {"encoder", "v1", "v2", "v3", "v4", "v5"}
    assert all(len(w.before) == 6 and torch.isfinite(w.after).all() for w in watched.values())
