from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchio as tio
from scipy import ndimage

from pcrl_cli.augment.chains import take
from pcrl_cli.augment.intensity import (
    Blur,
    Gamma,
    Noise,
    blur,
    blur_matrix,
    constant,
    draw_blur,
    draw_gamma,
    draw_noise,
    gamma,
    noise,
    normals,
    radius,
    z_normalise,
)


def difference(ours: torch.Tensor, theirs: list[torch.Tensor]) -> float:
    return (ours - torch.stack(theirs)).abs().max().item()


@pytest.mark.parametrize("shape", [(20, 18, 12), (64, 64, 32), (5, 3, 2)])
def test_blur_equals_torchio(make_views: Callable, make_stream: Callable, shape: tuple[int, int, int]) -> None:
    batch, params = make_views(6, shape, c=2), draw_blur(make_stream("blur", 6))
    theirs = [tio.Blur(std=tuple(s.tolist()))(v) for s, v in zip(params.sigma_voxel, batch, strict=True)]
    assert difference(blur(batch, params), theirs) < 1e-6


def test_blur_wider_than_the_view_equals_torchio(make_views: Callable) -> None:
    batch, sigma = make_views(1, (6, 4, 3)), torch.tensor([[5.0, 3.0, 4.0]])
    theirs = [tio.Blur(std=(5.0, 3.0, 4.0))(batch[0])]
    assert difference(blur(batch, Blur(sigma, reach=radius(5.0))), theirs) < 1e-6


@pytest.mark.parametrize("sigma", [0.0, 0.1249])
def test_a_sigma_below_an_eighth_changes_nothing(make_views: Callable, sigma: float) -> None:
    batch = make_views(2)
    assert torch.equal(blur(batch, Blur(torch.full((2, 3), sigma), reach=8)), batch)


@pytest.mark.parametrize("sigma", [0.125, 0.3749, 0.375, 1.0, 1.999])
def test_kernel_has_scipys_radius(sigma: float) -> None:
    impulse = np.zeros(41)
    impulse[20] = 1.0
    expected = ndimage.gaussian_filter(impulse, sigma)
    column = blur_matrix(torch.tensor([sigma]), 41, reach=8)[0, :, 20]
    assert np.array_equal(column.numpy() > 0, expected > 0)
    assert np.allclose(column.numpy(), expected, atol=1e-6)


def test_other_borders_and_widths_would_be_seen(make_views: Callable) -> None:
    batch = make_views(1)
    ours = blur(batch, Blur(torch.full((1, 3), 1.5), reach=8))[0, 0].numpy()
    for wrong in ({"mode": "mirror"}, {"mode": "nearest"}, {"truncate": 3.0}):
        assert np.abs(ndimage.gaussian_filter(batch[0, 0].numpy(), 1.5, **wrong) - ours).max() > 1e-4


def test_noise_adds_its_normals_times_std(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(6), draw_noise(make_stream("noise", 6))
    added = normals(params, batch.shape[1:])
    theirs = [v + (z * s.item() + 0.0) for v, z, s in zip(batch, added, params.std, strict=True)]
    assert difference(noise(batch, params), theirs) < 1e-6
    assert torch.equal(noise(batch, params), noise(batch, params))


def test_noise_is_standard_normal_and_differs_from_view_to_view(make_stream: Callable) -> None:
    drawn = normals(draw_noise(make_stream("normals", 3)), torch.Size((1, 32, 32, 32)))
    assert drawn.mean().abs() < 0.02
    assert abs(drawn.std().item() - 1) < 0.02
    assert torch.corrcoef(drawn.flatten(1)).fill_diagonal_(0).abs().max() < 0.03


def test_zero_std_changes_nothing(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(2), draw_noise(make_stream("quiet", 2), std=(0.0, 0.0))
    assert torch.equal(noise(batch, params), batch)


def test_gamma_equals_torchio_also_below_zero(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(6, c=2) - 0.5, draw_gamma(make_stream("gamma", 6))
    batch[:, :, 0] = 0
    assert batch.min() < 0
    theirs = [tio.Gamma(gamma=g.item())(v) for g, v in zip(params.exponent, batch, strict=True)]
    assert difference(gamma(batch, params), theirs) < 1e-6


def test_an_exponent_of_one_changes_nothing(make_views: Callable) -> None:
    batch = make_views(2) - 0.5
    assert torch.allclose(gamma(batch, Gamma(torch.ones(2))), batch, rtol=0, atol=1e-7)


def test_z_normalisation_equals_torchio(make_views: Callable) -> None:
    batch = make_views(4, (64, 64, 32), c=2)
    assert difference(z_normalise(batch), [tio.ZNormalization()(v) for v in batch]) < 2e-6


def test_z_normalisation_divides_by_n_minus_one() -> None:
    batch = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1)
    assert torch.allclose(z_normalise(batch).flatten(), torch.tensor([-1.0, 1.0]) / 2**0.5)


def test_constant_views_become_zeros_and_are_counted(make_views: Callable) -> None:
    batch = make_views(5)
    batch[1], batch[3], batch[4] = 0.1, 0.0, 1.0 / 3
    batch[4, 0, 0, 0, 0] += 3e-8  # rounding is no structure
    out = z_normalise(batch)
    assert constant(batch).tolist() == [False, True, False, True, True]
    assert torch.equal(constant(out), constant(batch))
    assert (out[[1, 3, 4]] == 0).all()
    assert out.isfinite().all()


def test_one_voxel_that_differs_by_one_hounsfield_unit_is_no_constant_view() -> None:
    batch = torch.full((1, 1, 64, 64, 32), 0.5)
    batch[0, 0, 3, 4, 5] += 1 / 2000
    assert not constant(batch).any()
    assert z_normalise(batch).std().item() == pytest.approx(1, abs=1e-3)


def test_a_nan_is_not_taken_for_a_constant_view(make_views: Callable) -> None:
    batch = make_views(2)
    batch[0, 0, 0, 0, 0] = torch.nan
    assert not constant(batch).any()
    assert z_normalise(batch)[0].isnan().all()
    assert z_normalise(batch)[1].isfinite().all()


def test_batch_equals_each_view_alone(make_views: Callable, make_stream: Callable) -> None:
    batch = make_views(5, c=2)
    steps: list[tuple[Callable, Blur | Noise | Gamma]] = [
        (blur, draw_blur(make_stream("b", 5))),
        (noise, draw_noise(make_stream("n", 5))),
        (gamma, draw_gamma(make_stream("g", 5))),
    ]
    for step, params in steps:
        alone = torch.cat([step(batch[i : i + 1], take(params, slice(i, i + 1))) for i in range(5)])
        assert torch.allclose(step(batch, params), alone, rtol=0, atol=1e-6), step.__name__
    alone = torch.cat([z_normalise(view[None]) for view in batch])
    assert torch.allclose(z_normalise(batch), alone, rtol=0, atol=2e-6)


def test_blur_stays_float32_under_autocast(make_views: Callable, make_stream: Callable) -> None:
    batch, params = make_views(2), draw_blur(make_stream("cast", 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = blur(batch, params)
    assert torch.equal(inside, blur(batch, params))
