"""The task segment: regions of the cache, in 3D and of pictures."""

import pytest
import torch
from torch import nn

from pcrl_cli.augment.images import normalise
from pcrl_cli.core.config import validate
from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Progress, Stored
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.resnet2d import ResNet18Encoder
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.tasks import lits, segment

REGIONS = {"a": (1, 2, 5), "b": tuple(range(2, 9))}
PICTURES, SCANS = Stored(2, 1, (1 / 255, 0.0), ("a", "b"), REGIONS), Stored(3, 2, (1e-3, 0.0), ("a", "b"), REGIONS)


def task(stored=PICTURES, **options):
    torch.manual_seed(0)
    encoder = ResNet18Encoder(3, 2) if stored.dim == 2 else UNet3dEncoder(stored.channels, 2, 2)
    return segment.TASK(encoder, segment.Config(**options), stored).eval()


def batch(b=3):
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (b, 1, 40, 33, 1), generator=generator, dtype=torch.int16)
    return {"image": image, "mask": torch.randint(0, 9, (b, 40, 33, 1), generator=generator, dtype=torch.uint8)}


def test_a_cache_without_regions_is_refused():
    with pytest.raises(ConfigError, match="names no regions, which the task segment needs"):
        task(Stored(3, 1, (1.0, 0.0), ("liver",)))


@pytest.mark.parametrize(("dim", "crop"), [(2, (224, 224)), (3, (96, 96, 96))])
def test_a_crop_that_is_left_open_has_the_axes_of_the_images(dim, crop):
    assert segment.Config().crop_of(dim) == segment.Config().window_of(dim) == crop
    assert segment.Config(crop=crop[:dim], window=(32,) * dim).window_of(dim) == (32,) * dim


def test_sizes_of_other_axes_are_refused_with_what_to_set():
    with pytest.raises(ConfigError, match=r"learner.crop is 8x8x8, and the images have 2 axes.*=\[224,224\]"):
        segment.Config(crop=(8, 8, 8)).crop_of(2)
    with pytest.raises(ConfigError, match=r"learner.window is 8x8, and the images have 3 axes"):
        lits.Config(window=(8, 8)).window_of(3)


def test_a_picture_is_seen_as_imagenet_weights_expect_it():
    found = task().views(batch(), Rng.at(0, 0, torch.arange(3)))
    assert found["x"].shape == (3, 3, 40, 33)
    assert found["mask"].shape == (3, 40, 33)
    plain = task(mirror=False).views(batch(), Rng.at(0, 0, torch.arange(3)))["x"]
    torch.testing.assert_close(plain, normalise(batch()["image"][..., 0] / 255))


def test_without_mirrors_every_step_shows_the_crops_as_they_are():
    one, two = (task(mirror=False).views(batch(), Rng.at(0, step, torch.arange(3))) for step in (0, 7))
    assert torch.equal(one["x"], two["x"])
    assert torch.equal(one["mask"], batch()["mask"][..., 0])
    with pytest.raises(ConfigError, match="tta shows the network mirrored images"):
        validate(segment.Config, {"mirror": False, "tta": True})


def test_many_labels_of_a_region_are_looked_up_as_few_are_compared():
    mask = torch.arange(12, dtype=torch.uint8).view(1, 3, 4)
    found = task().target(mask)
    assert found[0, 0].flatten().tolist() == [int(n in REGIONS["a"]) for n in range(12)]
    assert found[0, 1].flatten().tolist() == [int(n in REGIONS["b"]) for n in range(12)]


class Pointwise(nn.Module):
    """Says of a pixel what its own value is; no neighbourhood."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x[:, :2]


@pytest.mark.parametrize("shape", [(50, 70), (20, 70), (9, 7)])
@pytest.mark.parametrize("options", [{}, {"tta": True}, {"overlap": 0.0}, {"windows": 3}])
def test_windows_leave_no_trace_in_a_picture(shape, options):
    found = task(crop=(32, 24), **options)
    found.network = Pointwise()
    image = torch.randint(0, 256, (1, *shape, 1), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    wanted = torch.sigmoid(normalise(image[None, ..., 0] / 255))[0, :2, ..., None]
    torch.testing.assert_close(found.infer(image), wanted, atol=1e-5, rtol=0)


def test_beyond_a_small_picture_is_black():
    class Keeps(Pointwise):
        def forward(self, x):
            self.seen = x
            return x[:, :2]

    found = task(crop=(32, 32))
    found.network = Keeps()
    found.infer(torch.full((1, 8, 8, 1), 255, dtype=torch.int16))
    torch.testing.assert_close(found.network.seen[..., 0, 0], normalise(torch.zeros(1, 1, 1, 1))[..., 0, 0])


def test_prediction_equals_inference_of_one_window():
    found, one = task(crop=(40, 33)), batch(1)
    torch.testing.assert_close(found.predict(one)[0], found.infer(one["image"][0])[..., 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("stored", [PICTURES, SCANS])
def test_training_views_are_shown_with_their_regions(stored):
    shape = (3, 1, 40, 33, 1) if stored.dim == 2 else (3, 2, 16, 12, 8)
    image = torch.randint(0, 256, shape, dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    views = task(stored).views({"image": image, "mask": image[:, 0].to(torch.uint8) % 9}, Rng.at(0, 0, torch.arange(3)))
    shown = task(stored).pictures(views)["training views"]
    assert shown.shape == ((3, 3, 33, 40) if stored.dim == 2 else (3, 3, 16, 12))
    assert torch.isfinite(sum(task(stored).losses(views, Progress(0, 1)).values()))
