"""Real scans: LUNA16's layout end to end, geometry against masks and against an independent resampling, own folders."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage.transform import resize

from pcrl_cli.data.cache import Cache, open_cache
from pcrl_cli.engine.run import read_metrics
from pcrl_cli.networks.transfer import read_weights
from pcrl_cli.pure.crops import Box, hull, inside, iou
from pcrl_cli.readers import luna
from pcrl_cli.stages.evaluate import evaluate
from pcrl_cli.stages.export import export
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.prep import PrepResult, prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.workspace import Workspace

pytestmark = pytest.mark.real

PAIRS, SEED = 3, 2  # this seed's training part is the scan with three of the four nodules
ROUNDING = 0.5  # HU: the cache holds whole numbers
FLOAT = 0.01  # HU: two implementations of float32 interpolation over a range of 2000


@dataclass(frozen=True)
class Prepared:
    result: PrepResult
    cache: Cache
    raw: Path
    workspace: Workspace


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory) -> Prepared:
    """`pcrl prep luna` on the three scans."""
    workspace, raw = Workspace(tmp_path_factory.mktemp("real")), real_data / "LUNA16"
    layers = [("test", {"pairs": {"pairs": PAIRS}, "seed": SEED})]
    result = prep("luna", data=raw, workspace=workspace, layers=layers, jobs=1)
    return Prepared(result, open_cache(result.cache), raw, workspace)


@pytest.fixture(scope="module")
def boxes(real) -> list[tuple[str, int, np.ndarray]]:
    """(case, pair, its boxes) of every cached pair."""
    found = []
    for case in real.cache.cases():
        rows = real.cache.read("pairs", ("boxes",), [case]).arrays["boxes"]
        found += [(case, i, row) for i, row in enumerate(rows)]
    return found


def box(row: np.ndarray) -> Box:
    x, y, z, a, b, c = (int(n) for n in row)
    return Box((x, y, z), (a, b, c))


def at_1_mm(image: sitk.Image, interpolator: int) -> sitk.Image:
    """ITK's own resampling: the first voxel's centre stays, the size is round(n * spacing), the edge is held."""
    size = [max(1, round(n * s)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    resampler = sitk.ResampleImageFilter()
    resampler.SetOutputSpacing((1.0, 1.0, 1.0))
    resampler.SetSize(size)
    resampler.SetOutputOrigin(image.GetOrigin())
    resampler.SetOutputDirection(image.GetDirection())
    resampler.SetInterpolator(interpolator)
    resampler.UseNearestNeighborExtrapolatorOn()
    return resampler.Execute(image)


def scan_path(real: Prepared, case: str) -> Path:
    return next((real.raw / "subset0").glob(f"{case}.mhd"))


# ------------------------------------------------------------------------------------------------- the whole chain


def test_three_scans_go_from_raw_to_exported_weights(real):
    small = [("test", {"learner": {"width": 4}, "train": {"steps": 2, "batch": 2}})]
    pre = pretrain(workspace=real.workspace, dim="3d", layers=small)
    assert all(np.isfinite(row["loss/restore"]) for row in read_metrics(pre.run / "metrics.jsonl"))
    tune = [("test", {"train": {"steps": 2, "batch": 2}, "ratio": 1.0})]
    tuned = finetune(task="luna", workspace=real.workspace, weights=pre.run, layers=tune)
    assert tuned.overlap == {"labelled": 1, "val": 0, "test": 0}
    scored = evaluate(tuned.run, split="all", workspace=real.workspace)
    assert scored.counts["nodules among them"] == 4
    assert scored.counts["annotated nodules"] == 4
    assert scored.metrics["auroc"].value is not None
    assert scored.report.stat().st_size > 10_000
    unseen = evaluate(tuned.run, workspace=real.workspace)  # no nodule in the scan of the test part
    assert (unseen.metrics["auroc"].value, unseen.counts["nodules among them"]) == (None, 0)
    assert "class" in (unseen.metrics["auroc"].reason or "")
    out = export(pre.run, real.workspace.root / "encoder.safetensors")
    assert read_weights(out.file).contract.patients == read_weights(pre.weights).contract.patients


def test_everything_usable_is_cached_and_absent_rows_are_counted(real):
    assert (real.result.made, real.result.bad) == (3, 0)
    assert real.result.patients == {"train": 1, "val": 1, "test": 1}
    assert real.result.totals["candidates"]["cached_1"] == 4
    assert real.result.totals["pairs"]["kept"] == 3 * PAIRS
    assert real.result.absent_rows == 1186 - 4  # of the official annotations


# -------------------------------------------------------------------------------------------------------- geometry


def test_nodules_lie_in_the_middle_of_their_blocks(real):
    """By the four readers' masks, resampled to the block's own grid: the middle voxel is nodule, or 2 voxels off it."""
    checked = 0
    for case in luna.cases(real.raw):
        image = sitk.ReadImage(str(scan_path(real, case.id)))
        mask = sitk.ReadImage(str(real.raw / f"nodule_masks/{case.id}.nii.gz"))
        assert mask.GetSize() == image.GetSize()
        items = real.cache.read("candidates", ("blocks", "world", "label"), [case.id]).arrays
        for world in items["world"][items["label"] == 1]:
            block = _on_block_grid(mask, world)
            middle = block[30:35, 30:35, 30:35]
            assert middle.any(), f"no voxel of the mask within 2 mm of the nodule at {world} in {case.id}"
            centre = np.argwhere(_component_at_the_middle(block)).mean(0)
            assert np.abs(centre - 32).max() <= 2.0, (case.id, world, centre)
            checked += 1
    assert checked == 4


def _on_block_grid(image: sitk.Image, world: np.ndarray) -> np.ndarray:
    """64^3 voxels of 1 mm with the point in voxel 32, axes LPS."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetOutputSpacing((1.0, 1.0, 1.0))
    resampler.SetSize((64, 64, 64))
    resampler.SetOutputOrigin([float(w) - 32.0 for w in world])
    resampler.SetInterpolator(sitk.sitkNearestNeighbor)
    return sitk.GetArrayFromImage(resampler.Execute(image)).T > 0


def _component_at_the_middle(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import label

    parts, _ = label(mask)
    near = parts[30:35, 30:35, 30:35]
    return parts == np.bincount(near[near > 0]).argmax()


def test_blocks_show_the_nodule_itself(real):
    """A cached block equals ITK's interpolation of the raw scan, but for the half voxel to which its place is rounded."""
    for case in luna.cases(real.raw):
        image = at_1_mm(sitk.ReadImage(str(scan_path(real, case.id)), sitk.sitkFloat32), sitk.sitkLinear)
        grid = np.clip(sitk.GetArrayFromImage(image).T, -1000, 1000)
        items = real.cache.read("candidates", ("blocks", "world"), [case.id]).arrays
        for block, world in list(zip(items["blocks"], items["world"], strict=True))[:8]:
            at = np.rint(image.TransformPhysicalPointToContinuousIndex(world.tolist())).astype(int)
            low, high = np.maximum(at - 32, 0), np.minimum(at + 32, grid.shape)
            part = tuple(slice(a, b) for a, b in zip(low - at + 32, high - at + 32, strict=True))
            whole = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            assert np.abs(block[0][part] - grid[whole]).max() <= ROUNDING + FLOAT
            outside = np.ones((64, 64, 64), bool)
            outside[part] = False
            assert (block[0][outside] == -1000).all()


def test_every_pair_overlaps_and_every_sub_crop_lies_in_its_hull(boxes):
    assert len(boxes) == 3 * PAIRS
    for case, pair, row in boxes:
        first, second = box(row[0]), box(row[1])
        assert iou(first, second) >= 0.3, (case, pair)
        assert all(inside(box(local), hull(first, second)) for local in row[2:8]), (case, pair)


def test_cached_globals_equal_an_independent_resampling(real, boxes):
    """Raw scan -> ITK at 1 mm -> clip -> crop -> scikit-image's anti-aliased resize, against the cache."""
    worst = 0.0
    for case in real.cache.cases():
        image = at_1_mm(sitk.ReadImage(str(scan_path(real, case)), sitk.sitkFloat32), sitk.sitkLinear)
        grid = np.clip(sitk.GetArrayFromImage(image).T.astype(np.float64), -1000, 1000)
        cached = real.cache.read("pairs", ("globals",), [case]).arrays["globals"]
        for pair, row in ((pair, row) for name, pair, row in boxes if name == case):
            for k in (0, 1):
                crop = grid[box(row[k]).slices]
                want = resize(crop, (64, 64, 32), order=1, anti_aliasing=True, preserve_range=True)
                worst = max(worst, float(np.abs(cached[pair, k, 0] - want).max()))
    assert worst <= ROUNDING + FLOAT


# ------------------------------------------------------------------------------------------------- one's own scans


def _links(folder: Path, files: list[Path]) -> Path:
    """A folder with some of the real files, without copying them."""
    folder.mkdir()
    for file in files:
        (folder / file.name).symlink_to(file.resolve())
    return folder


def test_ct_scans_of_a_plain_folder_are_prepared(real_data, tmp_path):
    done = prep(
        "folder", data=real_data / "CT", out=tmp_path / "c", jobs=1,
        layers=[("test", {"pairs": {"pairs": 1}})],
    )  # fmt: skip
    assert done.made + done.bad == 5
    assert done.made >= 3
    assert all("too small" in reason or "no acceptable crops" in reason for reason in done.bad_cases.values())
    stored = (
        open_cache(tmp_path / "c").read("pairs", ("globals",), open_cache(tmp_path / "c").cases()).arrays["globals"]
    )
    assert -1000 <= stored.min() < stored.max() <= 1000


def test_a_brats_flair_is_prepared_as_mr_and_its_mask_is_passed_over(real_data, tmp_path):
    patient = next(iter(sorted((real_data / "BraTS/HGG").iterdir())))
    raw = _links(tmp_path / "raw", [p for p in sorted(patient.iterdir()) if "flair" in p.name or "seg" in p.name])
    mr = [("test", {"pairs": {"pairs": 2}, "intensity": {"modality": "mr"}})]
    done = prep("folder", data=raw, out=tmp_path / "c", jobs=1, layers=mr)
    cache = open_cache(tmp_path / "c")
    assert (done.made, done.bad) == (1, 0)
    assert "1 files are named like masks" in done.notes[0]
    stored = cache.read("pairs", ("globals",), cache.cases()).arrays["globals"]
    assert 0 <= stored.min() < stored.max() <= 30000
    assert stored.std() > 1000
