"""What is drawn, and what comes out, has TorchIO's distributions (Kolmogorov and Smirnov, fixed seeds)."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torchio as tio
from scipy import stats
from torch import Tensor

from pcrl_cli.augment.chains import Ranges, draw_global, global_views, local_views
from pcrl_cli.augment.reference import views_by_torchio

N, SHAPE = 4000, (24, 20, 16)


@pytest.fixture
def torchio_seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        yield


def columns(values: Tensor) -> list[np.ndarray]:
    return list(values.reshape(len(values), -1).T.double().numpy())


def test_parameters_are_uniform_on_their_ranges(make_stream: Callable) -> None:
    drawn = draw_global(make_stream("uniform", N), SHAPE, Ranges())
    expected = [
        (drawn.affine.scale, 0.9, 1.1),
        (drawn.affine.rotation_deg, -10, 10),
        (drawn.blur.sigma_voxel, 0, 2),
        (drawn.noise.std, 0, 0.25),
        (drawn.gamma.exponent.log(), -0.3, 0.3),
    ]
    for values, low, high in expected:
        for column in columns(values):
            assert stats.kstest(column, stats.uniform(low, high - low).cdf).pvalue > 0.005
    flips = drawn.affine.flip.double().mean(dim=0)
    assert abs(flips[0] - 0.5) < 0.03
    assert flips[1:].tolist() == [0, 0]
    assert not drawn.affine.translation_voxel.any()


def test_parameters_are_independent(make_stream: Callable) -> None:
    drawn = draw_global(make_stream("independent", N), SHAPE, Ranges())
    parts = (drawn.affine.scale, drawn.affine.rotation_deg, drawn.blur.sigma_voxel, drawn.noise.std)
    table = np.stack([c for part in (*parts, drawn.gamma.exponent) for c in columns(part)])
    assert np.abs(np.corrcoef(table) - np.eye(len(table))).max() < 0.06


def test_parameters_have_torchios_distributions(make_stream: Callable, torchio_seeded: None) -> None:
    drawn = draw_global(make_stream("torchio", N), SHAPE, Ranges())
    affine = tio.RandomAffine(scales=(0.9, 1.1), degrees=(-10, 10), translation=(0, 0))
    theirs = [affine.get_params(affine.scales, affine.degrees, affine.translation, False) for _ in range(N)]
    for ours, index in ((drawn.affine.scale, 0), (drawn.affine.rotation_deg, 1)):
        for a, b in zip(columns(ours), columns(torch.stack([t[index] for t in theirs])), strict=True):
            assert stats.ks_2samp(a, b).pvalue > 0.005


def test_swap_corners_have_torchios_distribution(make_stream: Callable, torchio_seeded: None) -> None:
    ours = draw_global(make_stream("corners", 40), SHAPE, Ranges()).swap
    assert ours is not None
    pairs = tio.RandomSwap.get_params(torch.empty(1, *SHAPE), np.array((8, 4, 4)), 4000)
    theirs = np.array(pairs).reshape(4000, 6)
    mine = torch.cat([ours.first, ours.second], dim=2).reshape(4000, 6).numpy()
    for a, b in zip(mine.T, theirs.T, strict=True):
        assert set(a) == set(b)
        table = np.stack([np.bincount(a, minlength=a.max() + 1), np.bincount(b, minlength=a.max() + 1)])
        assert stats.chi2_contingency(table).pvalue > 0.005


def statistics(target: Tensor, seen: Tensor) -> dict[str, np.ndarray]:
    t, s = target.flatten(1).double(), seen.flatten(1).double()
    slope = (seen[..., 1:] - seen[..., :-1]).flatten(1).double()
    values = {
        "target mean": t.mean(1),
        "target std": t.std(1),
        "target left against right": (target[:, :, :8].flatten(1) - target[:, :, -8:].flatten(1)).mean(1),
        "target filled": (t == t.amin(1, keepdim=True)).double().mean(1),
        "target roughness": (target[:, :, 1:] - target[:, :, :-1]).abs().flatten(1).mean(1),
        "input skew": (s**3).mean(1),
        "input kurtosis": (s**4).mean(1),
        "input median": s.median(1).values,
        "input largest": s.amax(1),
        "input roughness": slope.abs().mean(1),
    }
    return {name: value.double().numpy() for name, value in values.items()}


@pytest.mark.parametrize("local", [False, True])
def test_views_have_torchios_distributions(make_views: Callable, make_stream: Callable, local: bool) -> None:
    n, shape = (120, (24, 20, 16)) if not local else (200, (16, 16, 16))
    x01 = make_views(1, shape).expand(n, -1, -1, -1, -1).contiguous()
    target, seen = global_views(x01, make_stream("ours", n))
    if local:
        seen = local_views(x01, make_stream("ours", n))
    theirs = statistics(*views_by_torchio(x01, make_stream("theirs", n), local=local))
    for name, ours in statistics(target, seen).items():
        assert stats.ks_2samp(ours, theirs[name]).pvalue > 0.005, name


def test_other_ranges_would_be_seen(make_views: Callable, make_stream: Callable) -> None:
    x01 = make_views(1, (16, 16, 16)).expand(120, -1, -1, -1, -1).contiguous()
    less = Ranges(noise_std=(0.0, 0.15), flip_probability=0.0)
    theirs = statistics(*views_by_torchio(x01, make_stream("theirs", 120), less, local=True))
    ours = statistics(global_views(x01, make_stream("ours", 120))[0], local_views(x01, make_stream("ours", 120)))
    for name in ("target left against right", "input roughness"):
        assert stats.ks_2samp(ours[name], theirs[name]).pvalue < 1e-3, name
