"""Nodule candidates: which crops are seen in training and in prediction, and what an epoch is."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Progress, Stored
from pcrl_cli.core.rng import Rng, Stream
from pcrl_cli.networks.unet3d import UNet3dEncoder
from pcrl_cli.tasks.luna import Config, Luna, epoch_order, rotated_crop

TO_UNIT = (1 / 2000, 0.5)


def streams(n, name="crop"):
    return Stream.of(name).keyed(torch.arange(n))


def task(side=8):
    torch.manual_seed(0)
    return Luna(UNet3dEncoder(1, 2, 2), Config(side=side), Stored(3, 1, TO_UNIT))


def numbered(n, b=1, c=1):
    return torch.arange(b * c * n**3).view(b, c, n, n, n)


def test_a_crop_equals_numpys_slices_flips_and_transpose_for_the_same_drawn_values():
    from itertools import permutations

    blocks, side = numbered(7, b=40, c=2), 5
    drawn = streams(40)
    start, order = drawn.integers(3, 3), [list(permutations(range(3)))[i] for i in drawn.integers(6)]
    flip = drawn.integers(2, 3).bool()
    taken = rotated_crop(blocks, side, streams(40))
    for i, block in enumerate(blocks.numpy()):
        cut = block[(slice(None), *(slice(s, s + side) for s in start[i].tolist()))]
        cut = np.flip(cut, [1 + axis for axis in range(3) if flip[i, axis]])
        expected = np.transpose(cut, (0, *(1 + axis for axis in order[i])))
        assert np.array_equal(taken[i].numpy(), expected)


def test_all_48_symmetries_of_the_cube_are_reached_alike():
    taken = rotated_crop(numbered(3).expand(2400, -1, -1, -1, -1), 3, streams(2400)).flatten(1)
    kinds, counts = taken.unique(dim=0, return_counts=True)
    assert len(kinds) == 48
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_every_start_corner_is_reached_alike_on_every_axis():
    n, side = 20, 4
    blocks = numbered(n).expand(1700, -1, -1, -1, -1)
    lowest = rotated_crop(blocks, side, streams(1700)).flatten(1).min(1).values
    for start in (lowest // n**2, lowest // n % n, lowest % n):
        counts = torch.bincount(start, minlength=17)
        assert len(counts) == 17
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_a_crop_of_a_sample_does_not_depend_on_its_batch():
    blocks, positions = numbered(9, b=6), torch.tensor([3, 8, 1, 0, 7, 2**40])
    whole = rotated_crop(blocks, 5, Rng.at(0, 2, positions).sample)
    for i in range(6):
        alone = rotated_crop(blocks[i : i + 1], 5, Rng.at(0, 2, positions[i : i + 1]).sample)
        assert torch.equal(whole[i : i + 1], alone)


def test_the_centre_crop_has_the_candidates_voxel_in_its_middle():
    blocks = torch.full((1, 1, 64, 64, 64), -1000, dtype=torch.int16)
    blocks[0, 0, 32, 32, 32] = 1000
    centre = task(48).centre({"blocks": blocks})
    assert centre.shape == (1, 1, 48, 48, 48)
    assert [int(i) for i in np.unravel_index(int(centre.argmax()), (48, 48, 48))] == [24, 24, 24]


def test_training_crops_of_the_default_side_always_hold_the_candidate():
    blocks = torch.full((50, 1, 64, 64, 64), -1000, dtype=torch.int16)
    blocks[:, 0, 32, 32, 32] = 1000
    taken = rotated_crop(blocks, Config().side, streams(50))
    assert ((taken == 1000).flatten(1).sum(1) == 1).all()


def test_inputs_are_z_normalised_and_the_loss_is_binary_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    batch = {
        "blocks": torch.randint(-1000, 1001, (6, 1, 12, 12, 12), generator=generator, dtype=torch.int16),
        "label": torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.uint8),
    }
    model = task()
    views = model.views(batch, Rng.at(0, 0, torch.arange(6)))
    x = views["x"].flatten(1)
    assert x.mean(1).abs().max() < 1e-4
    assert (x.std(1) - 1).abs().max() < 1e-4
    p = torch.sigmoid(model.network(views["x"])).flatten()
    y = batch["label"].float()
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert model.losses(views, Progress(0, 1))["bce"].item() == pytest.approx(expected.item(), rel=1e-5)
    model.eval()
    centre = torch.sigmoid(model.network(model.centre(batch)))
    assert torch.equal(model.predict(batch), centre.detach())


def test_ten_steps_learn_to_tell_bright_from_dark_middles():
    blocks = torch.full((8, 1, 12, 12, 12), -800, dtype=torch.int16)
    blocks[::2, :, 4:8, 4:8, 4:8] = 300
    blocks += (50 * torch.randn(blocks.shape, generator=torch.Generator().manual_seed(0))).to(torch.int16)
    batch = {"blocks": blocks, "label": torch.tensor([1, 0] * 4, dtype=torch.uint8)}
    model = task()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(10):
        optimiser.zero_grad()
        loss = model(model.views(batch, Rng.at(0, step, torch.arange(8))), Progress(step, 10))["bce"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(2), abs=0.3)
    assert losses[-1] < 0.3


def test_a_side_larger_than_the_blocks_is_a_configuration_error():
    batch = {"blocks": numbered(12).to(torch.int16), "label": torch.zeros(1)}
    with pytest.raises(ConfigError, match=r"side 16 is larger than the cached blocks of 12"):
        task(16).views(batch, Rng.at(0, 0, torch.arange(1)))
    with pytest.raises(ConfigError, match="side 16"):
        task(16).predict(batch)


LABELS = np.array([0] * 90 + [1] * 10 + [0] * 50, np.uint8)


def test_an_epoch_has_every_nodule_once_and_twice_as_many_others_once():
    order = epoch_order(LABELS, Config(), 0, 0)
    assert len(order) == 30
    assert len(np.unique(order)) == 30
    assert sorted(order[LABELS[order] == 1]) == list(range(90, 100))
    assert epoch_order(LABELS, Config(negatives_per_positive=0.5), 0, 0).size == 15
    assert epoch_order(LABELS, Config(negatives_per_positive=99.0), 0, 0).size == 150


def test_others_are_drawn_afresh_each_epoch_and_all_get_their_turn():
    epochs = [epoch_order(LABELS, Config(), 0, e) for e in range(60)]
    assert len({tuple(e) for e in epochs}) == 60
    assert set(np.concatenate(epochs).tolist()) == set(range(150))
    first_half = np.mean([(LABELS[e[:15]] == 1).mean() for e in epochs])
    assert abs(first_half - 1 / 3) < 0.05  # mixed, not nodules first


def test_an_epochs_order_is_a_function_of_seed_and_epoch():
    assert np.array_equal(epoch_order(LABELS, Config(), 4, 7), epoch_order(LABELS, Config(), 4, 7))
    assert not np.array_equal(epoch_order(LABELS, Config(), 4, 7), epoch_order(LABELS, Config(), 5, 7))
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    epoch_order(LABELS, Config(), 0, 0)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_a_constant_block_gives_a_finite_loss():
    batch = {"blocks": torch.full((4, 1, 12, 12, 12), -1000, dtype=torch.int16), "label": torch.tensor([0, 1, 0, 1])}
    model = task()
    views = model.views(batch, Rng.at(0, 0, torch.arange(4)))
    assert not views["x"].any()
    assert torch.isfinite(model.losses(views, Progress(0, 1))["bce"])
    assert F.relu(model.predict(batch)).isfinite().all()
