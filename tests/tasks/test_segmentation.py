"""Segmentation tasks: what is mirrored and what counts, and whole volumes by sliding window."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pcrl_cli.core.errors import MachineError
from pcrl_cli.core.learner import Progress, Stored
from pcrl_cli.core.rng import Rng
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.pure.losses import soft_dice, voxel_bce
from pcrl_cli.pure.volumes import PADDED
from pcrl_cli.tasks import brats, lits
from pcrl_cli.tasks.base import mean_over_mirrors, mirrored, mirrors_of

HU = Stored(3, 1, (1 / 400, 0.5))
NOW = Progress(0, 1)


def liver(**options):
    torch.manual_seed(0)
    config = lits.Config(**{"crop": (8, 8, 8), "overlap": 0.5} | options)
    return lits.TASK(UNet3dEncoder(1, 2, 2), config, HU).eval()


def tumour(**options):
    torch.manual_seed(0)
    return brats.TASK(UNet3dEncoder(2, 2, 2), brats.Config(crop=(8, 8, 8), **options), Stored(3, 2, (1e-3, 0.0))).eval()


class Pointwise(nn.Module):
    """A network without a neighbourhood: what it says of a voxel does not depend on the window; keeps what it saw."""

    def __init__(self, channels=1, regions=1):
        super().__init__()
        self.conv = nn.Conv3d(channels, regions, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.conv(x)


def hounsfield(*shape, seed=0):
    return torch.randint(-200, 201, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int16)


def crops(channels=1, b=4):
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 5, (b, 6, 5, 4), generator=generator, dtype=torch.uint8)
    return {"image": hounsfield(b, channels, 6, 5, 4), "mask": mask}


# --------------------------------------------------------------------------------------------------------- training


def test_image_and_mask_are_mirrored_alike_in_every_one_of_eight_ways():
    n = 400
    numbers = torch.arange(6 * 5 * 4, dtype=torch.int16).view(1, 1, 6, 5, 4).expand(n, -1, -1, -1, -1)
    image, mask = mirrored(numbers, numbers[:, 0], Rng.at(0, 0, torch.arange(n)).sample)
    assert torch.equal(image[:, 0], mask)
    kinds = {tuple(a) for a in mask.flatten(1).tolist()}
    expected = {tuple(numbers[0, 0].flip([a - 2 for a in axes]).flatten().tolist()) for axes in mirrors_of(3)}
    assert len(kinds) == 8
    assert kinds == expected


def test_regions_of_brats_are_the_labels_that_belong_to_them():
    mask = torch.tensor([0, 1, 2, 3, 4, PADDED], dtype=torch.uint8).view(1, 6, 1, 1)
    found = tumour().target(mask)[0, :, :, 0, 0].tolist()
    assert found == [[0, 1, 1, 1, 1, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0]]


def test_the_tumour_lies_in_the_liver():
    mask = torch.tensor([0, 1, 2], dtype=torch.uint8).view(1, 3, 1, 1)
    assert liver().target(mask).flatten().tolist() == [0, 1, 1]


def test_the_loss_is_soft_dice_and_optionally_weighted_cross_entropy():
    task = tumour(loss="dice_bce", bce_weight=0.3)
    batch = crops(2)
    views = {"x": task.input(batch["image"]), "mask": batch["mask"]}
    logits, target = task.network(views["x"]), task.target(batch["mask"])
    terms = task.losses(views, NOW)
    assert terms["dice"].item() == pytest.approx(soft_dice(logits, target).item())
    assert terms["bce"].item() == pytest.approx(0.3 * voxel_bce(logits, target).item())
    assert list(tumour().losses(views, NOW)) == ["dice"]


def test_what_lies_beyond_the_volume_counts_in_no_loss():
    task = liver(loss="dice_bce")
    task.network = Pointwise()
    batch = crops()
    batch["mask"][:, 4:] = PADDED
    views = {"x": task.input(batch["image"]), "mask": batch["mask"]}
    before = task.losses(views, NOW)
    other = views["x"].clone()
    other[:, :, 4:] += 3
    after = task.losses(views | {"x": other}, NOW)
    assert all(torch.equal(before[name], after[name]) for name in before)
    other[:, :, 3] += 3
    assert not torch.equal(task.losses(views | {"x": other}, NOW)["dice"], before["dice"])


def test_the_network_sees_the_window_as_0_to_1():
    x = liver().input(torch.tensor([-200, 0, 200], dtype=torch.int16).view(1, 1, 3, 1, 1))
    assert x.flatten().tolist() == [0, 0.5, 1]


# ---------------------------------------------------------------------------------------------------- whole volumes


@pytest.mark.parametrize("options", [{}, {"tta": True}, {"overlap": 0.0}, {"windows": 3, "overlap": 0.7}])
@pytest.mark.parametrize("shape", [(8, 8, 8), (19, 8, 13), (5, 20, 3)])
def test_windows_padding_and_mirrors_leave_no_trace_where_voxels_do_not_see_each_other(options, shape):
    task = liver(**options)
    task.network = Pointwise()
    image = hounsfield(1, *shape)
    expected = torch.sigmoid(task.network.conv(task.input(image)[None]))[0].detach()
    found = task.infer(image)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-6)


def test_regions_come_back_in_their_order():
    task = tumour()
    task.network = Pointwise(2, 3)
    image = hounsfield(2, 9, 10, 11)
    expected = torch.sigmoid(task.network.conv(task.input(image)[None]))[0].detach()
    assert torch.allclose(task.infer(image), expected, atol=1e-6)


def test_windows_without_overlap_are_predicted_each_by_itself():
    task, image = liver(overlap=0.0), hounsfield(1, 16, 8, 8)
    halves = [task.predict({"image": half[None]})[0] for half in image.split(8, dim=1)]
    assert torch.allclose(task.infer(image), torch.cat(halves, dim=1), atol=1e-6)


def test_a_volume_smaller_than_a_window_is_padded_with_what_lies_beyond_a_scan():
    task = liver()
    task.network = Pointwise()
    image = torch.full((1, 4, 8, 6), 200, dtype=torch.int16)
    assert task.infer(image).shape == (1, 4, 8, 6)
    (seen,) = task.network.seen
    assert seen.shape == (1, 1, 8, 8, 8)
    assert seen.sum() == 4 * 8 * 6
    assert (seen[:, :, 2:6, :, 1:7] == 1).all()


def test_mirror_augmentation_is_the_mean_over_all_eight_mirrors():
    task, image = liver(), hounsfield(1, 8, 8, 8)
    plain = []
    for axes in mirrors_of(3):
        there = [a - 1 for a in axes]
        plain.append(task.infer(image.flip(there)).flip(there))
    found = task.infer(image, task.config.model_copy(update={"tta": True}))
    assert torch.allclose(found, torch.stack(plain).mean(0), atol=1e-6)
    assert not torch.allclose(found, plain[0], atol=1e-4)


def test_what_is_mirrored_is_turned_back():
    x = torch.rand(2, 1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mean_over_mirrors(lambda y: 2 * y, x, mirrors_of(3)), 2 * x)


def test_the_same_volume_as_integers_or_floats_is_predicted_alike_and_left_alone():
    task, image = liver(), hounsfield(1, 12, 9, 10)
    kept = image.clone()
    one, other = task.infer(image), task.infer(image.float())
    assert torch.equal(one, other)
    assert torch.equal(image, kept)
    assert not one.requires_grad


MEASURE = """
import resource, torch
from pcrl_cli.core.errors import MachineError
from pcrl_cli.core.learner import Stored
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.tasks import lits
torch.manual_seed(0)
task = lits.TASK(UNet3dEncoder(1, 1, 1), lits.Config(overlap=0.0), Stored(3, 1, (1 / 400, 0.5))).eval()
found = task.infer(torch.zeros(1, 512, 512, 700, dtype=torch.int16))
assert found.shape == (1, 512, 512, 700)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize(
    ("error", "windows", "instead"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "learner.windows=1"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), 1, "[128,128,32]"),
        (MemoryError(), 1, "[128,128,32]"),
    ],
)
def test_windows_that_do_not_fit_say_which_to_try(error, windows, instead):
    task = liver(crop=(256, 256, 64), windows=windows)

    class Large(nn.Module):
        def forward(self, x):
            raise error

    task.network = nn.ModuleList([Large(), nn.Linear(1, 1)])
    task.network.forward = task.network[0].forward
    with pytest.raises(MachineError, match="256x256x64") as caught:
        task.infer(hounsfield(1, 4, 4, 4))
    assert instead in str(caught.value)


def test_other_errors_of_a_network_stay_what_they_are():
    task = tumour()
    with pytest.raises(RuntimeError, match="channels"):
        task.infer(hounsfield(1, 8, 8, 8))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_scan_of_512_by_512_by_700_voxels_stays_below_6_gb():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 6e9
