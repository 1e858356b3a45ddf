"""2D views against Pillow, SciPy and plain loops, image by image, with the parameters that were drawn."""

import math

import numpy as np
import pydantic
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage, stats

from pcrl_cli.augment import images as im
from pcrl_cli.augment.chains import take
from pcrl_cli.augment.images import Crop, ImageRanges
from pcrl_cli.core.rng import Stream

GLOBAL, LOCAL, ASPECT = (0.3, 1.0), (0.05, 0.3), (3 / 4, 4 / 3)


def streams(name, n):
    return Stream.of("images", name).each(n)


def pictures(n, h=48, w=48, c=1):
    """Structure at several sizes, no two alike, in [0, 1]."""
    stream = Stream.of("pictures").each(n)
    coarse = F.interpolate(stream.uniform(c, 6, 6), size=(h, w), mode="bicubic", align_corners=False)
    fine = F.interpolate(stream.uniform(c, 17, 17), size=(h, w), mode="bilinear", align_corners=False)
    return (0.2 + 0.5 * coarse + 0.3 * (fine - 0.5)).clamp(0.02, 1)


def still(boxes, largest=10**6, flip=False, degrees=0.0):
    n = len(boxes)
    return Crop(torch.tensor(boxes), torch.full((n,), flip), torch.full((n,), degrees), largest)


def resized(image, box, side):
    """torchvision's crop and antialiased resize: the crop alone is seen."""
    top, left, h, w = box
    cut = image[None, :, top : top + h, left : left + w]
    return F.interpolate(cut, (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


# ---- one resampling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(0, 0, 48, 48), (3, 7, 40, 30), (20, 1, 11, 29), (47, 47, 1, 1), (5, 0, 2, 48)])
@pytest.mark.parametrize("bound", [48, 10**6], ids=["", "prefilter that has nothing to do"])
def test_a_crop_that_does_not_shrink_is_torchvisions_to_rounding(box, bound):
    image = pictures(1)
    ours = im.crop(image, still([box], min(bound, 200)), 96)[0]
    assert torch.allclose(ours, resized(image[0], box, 96), atol=2e-5)


@pytest.mark.parametrize(
    ("side", "mean", "most"), [(44, 0.002, 0.02), (32, 0.003, 0.04), (16, 0.006, 0.06), (7, 0.012, 0.12)]
)
def test_a_crop_that_shrinks_is_torchvisions_within_a_tolerance_that_grows_with_the_factor(side, mean, most):
    # a smoothed image looked up bilinearly against a triangle cut off at the crop's border: equal spread, another shape
    boxes = [(0, 0, 48, 48), (4, 0, 44, 48), (1, 2, 46, 38)]
    image = pictures(1)
    ours = im.crop(image, still(boxes, 48), side)
    for got, box in zip(ours, boxes, strict=True):
        difference = (got - resized(image[0], box, side)).abs()
        assert difference.mean() < mean
        assert difference.max() < most
        without = F.interpolate(
            image[:, :, box[0] : box[0] + box[2], box[1] : box[1] + box[3]], (side, side), mode="bilinear"
        )[0]
        if side <= 16:
            assert difference.mean() < 0.5 * (without - resized(image[0], box, side)).abs().mean()


def test_a_pattern_finer_than_the_view_vanishes_and_does_not_alias():
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(32, 32)[None, None]
    view = im.crop(board, still([(0, 0, 64, 64)], 64), 24)
    assert (view[:, :, 2:-2, 2:-2] - 0.5).abs().max() < 0.08
    aliased = im.crop(board, still([(0, 0, 64, 64)], 24), 24)  # no prefilter
    assert (aliased - 0.5).abs().max() > 0.2


@pytest.mark.parametrize("variance", [0.0, 0.05, 0.2, 1.0, 4.0])
def test_the_discrete_gaussian_has_its_variance(variance):
    weights = im.discrete_gaussian(torch.tensor([[variance]]), 12)[0, 0].double()
    step = torch.arange(13).double()
    assert (2 * weights.sum() - weights[0]).item() == pytest.approx(1, abs=1e-6)
    assert 2 * (weights * step**2).sum().item() == pytest.approx(variance, abs=2e-4)
    bessel = torch.special.i0e(torch.tensor(variance).double())
    assert weights[0].item() == pytest.approx(bessel.item(), abs=1e-6)


def rotated_by_scipy(view, degrees, flip):
    """The view flipped, then turned counter-clockwise about its centre, bilinear, black outside."""
    view = view.numpy()[:, ::-1] if flip else view.numpy()
    n = len(view)
    angle = math.radians(degrees)
    back = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # rows go down
    centre = np.full(2, (n - 1) / 2)
    turned = ndimage.affine_transform(view, back, centre - back @ centre, order=1, mode="nearest")
    at = np.stack(np.meshgrid(*[np.arange(n)] * 2, indexing="ij"), axis=-1) - centre
    beyond = np.abs(at @ back.T).max(axis=-1) > n / 2
    return np.where(beyond, 0, turned), beyond


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 7.0, -10.0, 45.0])
def test_flip_and_then_rotation_are_scipys(degrees, flip):
    image = pictures(1, 40, 40)
    ours = im.crop(image, still([(0, 0, 40, 40)], 40, flip, degrees), 40)[0, 0].numpy()
    theirs, _ = rotated_by_scipy(image[0, 0], degrees, flip)
    wrong = np.abs(ours - theirs) > 1e-4
    assert wrong.mean() <= 0.002  # within rounding of the border


def test_a_rotation_turns_the_way_pillow_turns():
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 8:14, 26:33] = 1.0
    ours = im.crop(image, still([(0, 0, 41, 41)], 41, False, 20.0), 41)[0, 0]
    theirs = Image.fromarray((image[0, 0].numpy() * 255).astype(np.uint8)).rotate(20, Image.Resampling.BILINEAR)
    assert (ours - torch.from_numpy(np.asarray(theirs) / 255.0)).abs().mean() < 0.002


def test_a_merged_crop_and_rotation_is_the_crop_rotated():
    image, box = pictures(1, 64, 64), (5, 9, 50, 44)
    ours = im.crop(image, still([box], 64, True, 8.0), 64)[0, 0].numpy()
    theirs, beyond = rotated_by_scipy(resized(image[0], box, 64)[0], 8.0, True)
    # one bilinear look-up against two: sharper, elsewhere the same; corners are black, not what lies beside the crop
    assert np.abs(ours - theirs)[~beyond].mean() < 0.003
    assert beyond.sum() > 50
    assert (ours[beyond] == 0).mean() > 0.98
    assert (ours[~beyond] > 0).mean() > 0.99


def test_views_of_one_image_lie_side_by_side_image_major():
    image = pictures(2)
    boxes = [(0, 0, 20, 20), (10, 10, 20, 20), (5, 0, 20, 30)]
    for bound in (20, 48):  # without and with the prefilter's copies
        ours = im.crop(image, still(boxes * 2, bound), 32)
        alone = torch.cat([im.crop(image[i : i + 1], still([box], bound), 32) for i in range(2) for box in boxes])
        assert torch.allclose(ours, alone, atol=1e-6)


def test_channels_are_cropped_alike():
    image = pictures(2, c=3)
    together = im.crop(image, still([(2, 3, 40, 30)] * 2, 48, True, 5.0), 24)
    for i in range(3):
        alone = im.crop(image[:, i : i + 1], still([(2, 3, 40, 30)] * 2, 48, True, 5.0), 24)
        assert torch.allclose(together[:, i : i + 1], alone, atol=1e-6)


# ---- boxes -----------------------------------------------------------------------------------------------------------


def torchvision_params(rng, h, w, area, aspect):
    """RandomResizedCrop.get_params in plain Python."""
    for _ in range(10):
        target = h * w * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        bw, bh = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < bw <= w and 0 < bh <= h:
            return int(rng.integers(h - bh + 1)), int(rng.integers(w - bw + 1)), bh, bw
    return 0, 0, *im.largest((h, w), aspect)


@pytest.mark.parametrize("area", [GLOBAL, LOCAL])
@pytest.mark.parametrize("shape", [(256, 256), (200, 320)])
def test_boxes_are_distributed_as_torchvisions(area, shape):
    ours = im.draw_boxes(streams(f"boxes {area}", 4000), shape, area, ASPECT)[:, 0].numpy()
    rng = np.random.default_rng(0)
    theirs = np.array([torchvision_params(rng, *shape, area, ASPECT) for _ in range(4000)])
    for i in range(4):
        assert stats.ks_2samp(ours[:, i], theirs[:, i]).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]).pvalue > 1e-3


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(2, 300),
    w=st.integers(2, 300),
    low=st.floats(0.01, 0.9),
    more=st.floats(0, 0.5),
    n=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_box_is_a_box_inside_the_image_with_an_area_within_the_bounds(h, w, low, more, n, seed):
    area = (low, min(1.0, low + more))
    boxes = im.draw_boxes(Stream.of("h", seed).each(20), (h, w), area, ASPECT, n)
    assert boxes.shape == (20, n, 4)
    assert (boxes[..., :2] >= 0).all()
    assert (boxes[..., 2:] >= 1).all()
    assert (boxes[..., :2] + boxes[..., 2:] <= torch.tensor([h, w])).all()
    assert boxes[..., 2:].max() <= im.longest((h, w), area, ASPECT)
    fallback = (boxes[..., 2:] == torch.tensor(im.largest((h, w), ASPECT))).all(-1)
    sides = boxes[..., 2:].double()
    assert im.longest((256, 256), LOCAL, ASPECT) == 162  # a fallback to the whole image cannot happen
    rounding = 0.5 * sides.sum(-1) + 0.25  # half a pixel a side
    off = torch.maximum(sides.prod(-1) - area[1] * h * w, area[0] * h * w - sides.prod(-1))
    assert ((off <= rounding + 1) | fallback).all()


def test_where_no_try_fits_the_box_is_the_largest_within_the_aspects_bounds():
    boxes = im.draw_boxes(streams("wide", 50), (40, 400), (0.9, 1.0), ASPECT)[:, 0]
    assert im.largest((40, 400), ASPECT) == (40, 53)
    assert im.largest((400, 40), ASPECT) == (53, 40)
    assert im.largest((256, 256), ASPECT) == (256, 256)
    assert (boxes[:, 2:] == torch.tensor([40, 53])).all()


@settings(max_examples=25, deadline=None)
@given(h=st.integers(24, 200), w=st.integers(24, 200), seed=st.integers(0, 99))
def test_sub_crops_overlap_enough_and_locals_lie_inside_the_hull(h, w, seed):
    pair, inside = im.draw_sub(Stream.of("sub", seed).each(15), (h, w), ImageRanges())
    assert (im.iou(pair[:, 0], pair[:, 1]) >= 0.3).all()
    box = im.hull(pair)
    low, high = inside[..., :2], inside[..., :2] + inside[..., 2:]
    assert (low >= box[:, None, :2]).all()
    assert (high <= box[:, None, :2] + box[:, None, 2:]).all()
    assert (inside[..., 2:] >= 1).all()
    sides = inside[..., 2:].double()
    assert (sides.prod(-1) <= 0.3 * h * w + 0.5 * sides.sum(-1) + 1.25).all()  # capped ones are smaller, none larger


def test_iou_and_hull_are_those_of_painted_pixels():
    boxes = im.draw_boxes(streams("painted", 30), (20, 24), LOCAL, ASPECT, 2)
    for (a, b), overlap, box in zip(
        boxes.tolist(), im.iou(boxes[:, 0], boxes[:, 1]), im.hull(boxes).tolist(), strict=True
    ):
        painted = np.zeros((2, 20, 24), dtype=bool)
        for i, (t, left, h, w) in enumerate((a, b)):
            painted[i, t : t + h, left : left + w] = True
        assert overlap.item() == pytest.approx(painted.all(0).sum() / painted.any(0).sum(), abs=1e-6)
        rows, columns = np.nonzero(painted.any(0))
        assert box == [rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1]


def test_pairs_that_overlap_enough_are_the_multi_crop_pairs_that_do():
    pairs = im.draw_pairs(streams("pairs", 3000), (100, 100), GLOBAL, ASPECT, 0.3)
    free = im.draw_boxes(streams("free", 6000), (100, 100), GLOBAL, ASPECT, 2)
    kept = free[im.iou(free[:, 0], free[:, 1]) >= 0.3]
    assert 2000 < len(kept) < 5900
    for i in range(4):
        assert stats.ks_2samp(pairs[:, 1, i], kept[:, 1, i]).pvalue > 1e-3
    assert stats.ks_2samp(im.iou(pairs[:, 0], pairs[:, 1]), im.iou(kept[:, 0], kept[:, 1])).pvalue > 1e-3


def test_an_overlap_that_no_pair_reaches_gives_the_same_box_twice():
    pair = im.draw_pairs(streams("same", 20), (100, 100), (0.3, 0.4), ASPECT, 0.999)
    assert (im.iou(pair[:, 0], pair[:, 1]) >= 0.999).all()


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_blur_is_scipys_gaussian_and_is_skipped_half_the_time():
    image = pictures(12, 30, 26)
    params = im.draw_blur(streams("blur", 12))
    ours = im.blur(image, params)
    for view, before, sigma in zip(ours, image, params.sigma_pixel.tolist(), strict=True):
        expected = ndimage.gaussian_filter(before[0].double().numpy(), sigma, mode="reflect") if sigma else before[0]
        assert np.abs(view[0].numpy() - np.asarray(expected)).max() < 1e-5
    assert 0 < (params.sigma_pixel == 0).sum() < 12


@pytest.mark.parametrize("shape", [(30, 26), (9, 8), (5, 5)])
def test_both_ways_to_blur_are_one(shape):
    image, params = pictures(8, *shape), im.draw_blur(streams("both ways", 8), 0.7, (0.0, 2.0))
    assert torch.allclose(im.blur(image, params), im._blur_by_matrix(image, params), atol=1e-6)
    none = im.Blur(torch.zeros(8), 8)
    assert torch.equal(im.blur(image, none), image)


def plain_jitter(v, b, c, contrast_first):
    def brightness(v):
        return np.clip(v * b, 0, 1)

    def contrast(v):
        grey = v if len(v) == 1 else np.tensordot(np.array([0.299, 0.587, 0.114]), v, 1)[None]
        return np.clip(c * v + (1 - c) * grey.mean(), 0, 1)

    return brightness(contrast(v)) if contrast_first else contrast(brightness(v))


@pytest.mark.parametrize("c", [1, 3])
def test_jitter_is_the_plain_form_in_either_order(c):
    image = pictures(16, 20, 20, c)
    params = im.draw_jitter(streams("jitter", 16))
    ours = im.jitter(image, params)
    for i in range(16):
        values = [p[i].item() for p in (params.brightness, params.contrast, params.contrast_first)]
        assert np.abs(ours[i].numpy() - plain_jitter(image[i].double().numpy(), *values)).max() < 1e-5
    assert 0 < params.contrast_first.sum() < 16
    quiet = im.Jitter(torch.ones(16), torch.ones(16), params.contrast_first)
    assert torch.allclose(im.jitter(image, quiet), image, atol=1e-6)


def test_grey_is_pillows_luma_where_drawn_and_leaves_grey_images_alone():
    image = pictures(20, 16, 16, 3)
    params = im.draw_grey(streams("grey", 20))
    ours = im.grey(image, params)
    for i in range(20):
        if params[i]:
            pixels = (image[i].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            luma = np.asarray(Image.fromarray(pixels).convert("L")) / 255
            assert np.abs(ours[i].numpy() - luma).max() < 2 / 255
        else:
            assert torch.equal(ours[i], image[i])
    assert 0 < params.sum() < 12
    assert im.grey(image[:, :1], params).data_ptr() == image.data_ptr()


def test_normalisation_is_imagenets_and_one_channel_becomes_three():
    image = pictures(2)
    ours = im.normalise(image)
    for i, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        assert torch.allclose(ours[:, i], (image[:, 0] - mean) / std)
    assert torch.equal(im.normalise(image.expand(-1, 3, -1, -1)), ours)


def test_cutout_fills_the_drawn_squares_with_zeros_and_nothing_else():
    image = pictures(30, 40, 36) + 1
    params = im.draw_cutout(streams("cutout", 30), (40, 36), 3, 10)
    ours = im.cutout(image, params)
    for i in range(30):
        painted = Image.new("1", (36, 40))
        for row, column in params.centre[i].tolist():
            ImageDraw.Draw(painted).rectangle((column - 5, row - 5, column + 4, row + 4), fill=1)
        hole = torch.from_numpy(np.array(painted))
        assert (ours[i, 0][hole] == 0).all()
        assert torch.equal(ours[i, 0][~hole], image[i, 0][~hole])
    assert (params.centre.amin((0, 1)) >= 0).all()
    assert (params.centre.amax((0, 1)) < torch.tensor([40, 36])).all()


def uniform(values, low, high):
    return stats.kstest(values.double().numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_drawn_parameters_have_their_distributions():
    n, box = 4000, torch.tensor([[0, 0, 9, 9]]).expand(4000, 4)
    moved = im.draw_crop(streams("crop", n), box, ImageRanges(), 9)
    assert uniform(moved.rotation_deg, -10, 10)
    assert abs(moved.flip.float().mean() - 0.5) < 0.03
    sigma = im.draw_blur(streams("blur", n)).sigma_pixel
    assert abs((sigma > 0).float().mean() - 0.5) < 0.03
    assert uniform(sigma[sigma > 0], 0.1, 2)
    drawn = im.draw_jitter(streams("jitter", n))
    assert uniform(drawn.brightness, 0.6, 1.4)
    assert uniform(drawn.contrast, 0.6, 1.4)
    assert abs(drawn.contrast_first.float().mean() - 0.5) < 0.03
    assert abs(im.draw_grey(streams("grey", n)).float().mean() - 0.2) < 0.03
    centre = im.draw_cutout(streams("cutout", n), (224, 224)).centre
    assert centre.shape == (n, 3, 2)
    for hole in range(3):
        for axis in range(2):
            counts = torch.bincount(centre[:, hole, axis] // 28, minlength=8)
            assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    sets = [moved.rotation_deg, sigma, drawn.brightness, drawn.contrast, centre[:, 0, 0].float()]
    correlation = np.corrcoef(torch.stack(sets).numpy())
    assert np.abs(correlation - np.eye(5)).max() < 0.06


# ---- the chain -------------------------------------------------------------------------------------------------------

SMALL = ImageRanges(global_side=32, local_side=24, cutout_side=8, jitter=True)


def drawn(b, shape=(48, 48), ranges=SMALL, kind="global", name="chain"):
    stream = streams(name, b)
    pair, locals_ = im.draw_multi(stream, shape, ranges)
    boxes, area = (pair, GLOBAL) if kind == "global" else (locals_, LOCAL)
    largest = im.longest(shape, area, ASPECT)
    return im.draw_views(stream.fork(kind).each(boxes.shape[1]), boxes.flatten(0, 1), ranges, largest, kind)


@pytest.mark.parametrize("kind", ["global", "local"])
@pytest.mark.parametrize("c", [1, 3])
def test_the_chain_is_its_parts_in_order_view_by_view(kind, c):
    image, params = pictures(3, c=c), drawn(3, kind=kind)
    side = SMALL.global_side if kind == "global" else SMALL.local_side
    target, seen = im.image_views(image, params, side, target=True)
    k = len(target) // 3
    for i in range(len(target)):
        one = take(params, slice(i, i + 1))
        x = im.crop(image[i // k : i // k + 1], one.crop, side)
        assert torch.allclose(target[i], im.normalise(x)[0], atol=1e-5)
        x = im.normalise(im.jitter(im.blur(im.grey(x, one.grey), one.blur), one.jitter))
        x = im.cutout(x, one.cutout) if kind == "global" else x
        assert torch.allclose(seen[i], x[0], atol=1e-5)
    assert (params.cutout is None) == (kind == "local")


@pytest.mark.parametrize("kind", ["global", "local"])
def test_a_batch_is_its_images_alone(kind, monkeypatch):
    image = pictures(5)
    whole = im.image_views(image, drawn(5, kind=kind), 32, target=True)
    k = len(whole[0]) // 5
    for block in (1, 2**40):
        monkeypatch.setattr(im, "BLOCK_PIXELS", {"cpu": block})
        other = im.image_views(image, drawn(5, kind=kind), 32, target=True)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(whole, other, strict=True))
    for i in range(5):
        rows = slice(i * k, (i + 1) * k)
        alone = im.image_views(image[i : i + 1], take(drawn(5, kind=kind), rows), 32, target=True)
        assert all(torch.allclose(a[rows], b, rtol=0, atol=1e-5) for a, b in zip(whole, alone, strict=True))


def test_what_a_stream_draws_does_not_depend_on_its_neighbours():
    stream = streams("alone", 6)
    boxes = im.draw_sub(stream, (60, 60), SMALL)
    for i in range(6):
        alone = im.draw_sub(type(stream)(stream.keys[i : i + 1]), (60, 60), SMALL)
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(boxes, alone, strict=True))


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    im.image_views(pictures(2), drawn(2), 32, target=False)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_area": (0.5, 0.3)},
        {"rotation_deg": (5, -5)},
        {"aspect": (0, 1)},
        {"grey_probability": 1.5},
        {"cutout_side": 0},
        {"global_side": 0},
        {"unknown": 1},
    ],
)
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        ImageRanges(**wrong)
