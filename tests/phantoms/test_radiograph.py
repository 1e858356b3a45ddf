import csv
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.phantoms import radiograph
from pcrl_cli.readers import nih
from pcrl_cli.readers.image_io import read_image

PATIENTS = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nih")
    radiograph.make(folder, PATIENTS)
    return folder


@pytest.fixture(scope="module")
def many() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, 256, 256) and findings (n, 14)."""
    pictures = [picture for index in range(130) for picture in radiograph.patient(0, index)]
    label = [[name in picture.findings for name in nih.CLASSES] for picture in pictures]
    return np.stack([picture.pixels for picture in pictures]), np.array(label)


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    return float((score[label][:, None] > score[~label]).mean())


def test_another_process_writes_the_same_bytes_and_fewer_patients_are_the_first_ones(root, tmp_path):
    code = "import sys; from pathlib import Path; from pcrl_cli.phantoms.radiograph import make; make(Path(sys.argv[1]), 3)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    few, all_ = digest(tmp_path), digest(root)
    images = {name for name in few if name.startswith("images/")}
    assert len(images) >= 3
    assert all(few[name] == all_[name] for name in images)
    for table in (radiograph.LAST, "BBox_List_2017.csv"):
        assert (root / table).read_text("utf-8").startswith((tmp_path / table).read_text("utf-8"))


def test_progress_is_told_after_every_patient(tmp_path):
    told = []
    radiograph.make(tmp_path, 2, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]


def test_the_layout_is_nihs(root):
    cases = nih.cases(root)
    refs = [ref for case in cases for ref in case.images]
    assert {ref.patient for ref in refs} == {str(i + 1) for i in range(PATIENTS)}
    assert PATIENTS < len(refs) <= PATIENTS * radiograph.MOST_IMAGES
    assert nih.absent_rows(root, cases) == {"Data_Entry_2017.csv": 0}
    assert not [said for said in nih.remarks(root, cases) if "no image has" not in said]
    drawn = [picture for index in range(PATIENTS) for picture in radiograph.patient(0, index)]
    for ref, picture in zip(refs, drawn, strict=True):
        assert {name for name, value in zip(nih.CLASSES, ref.label, strict=True) if value} == set(picture.findings)
        np.testing.assert_array_equal(read_image(ref.path, radiograph.SIDE).pixels, picture.pixels)


def test_boxes_lie_in_the_frame_and_belong_to_findings(root):
    with (root / "BBox_List_2017.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head[:2] == ["Image Index", "Finding Label"]
    assert len(rows) >= 5
    called = {theirs: ours for ours, theirs in radiograph.BOXED.items()}
    findings = {ref.id: ref.label for case in nih.cases(root) for ref in case.images}
    for image, name, *numbers in rows:
        assert findings[image][nih.CLASSES.index(called[name])] == 1
        x, y, width, height = (float(number) for number in numbers[:4])
        assert min(x, y) >= 0
        assert min(width, height) > 20
        assert max(x + width, y + height) <= radiograph.BOX_SIDE


def test_a_box_surrounds_its_sign():
    """What a nodule adds, seen against the same picture without it, lies inside its box."""
    body = radiograph._Body.draw(np.random.default_rng(0))
    shown = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        u, v, place = radiograph._frame(rng)
        canvas = radiograph._anatomy(rng, body, u, v, 1.0, 0.0)
        before = canvas.density.copy()
        x, y, width, height = np.array(radiograph._box(radiograph._nodule(canvas, rng, 1.0), place)) / 4
        rows, columns = np.nonzero(np.abs(canvas.density - before) > 0.02)
        shown += len(rows) > 0
        for found, low, size in ((rows, y, height), (columns, x, width)):
            assert not len(found) or (low - 2 <= found.min() and found.max() <= low + size + 2)
    assert shown >= 10


def test_every_finding_is_drawn_and_changes_the_picture():
    body = radiograph._Body.draw(np.random.default_rng(0))
    healthy = radiograph._radiograph(np.random.default_rng(5), body, ()).pixels.astype(int)
    for name in nih.CLASSES:
        picture = radiograph._radiograph(np.random.default_rng(5), body, (name,))
        assert picture.findings == (name,)
        assert np.abs(picture.pixels - healthy).max() > 40, name
        assert set(picture.boxes) <= {name}


def test_every_finding_occurs_and_many_pictures_have_none(many):
    _, label = many
    assert (label.sum(0) >= 5).all()
    assert 0.2 < (~label.any(1)).mean() < 0.5


def test_brightness_and_contrast_alone_tell_nothing(many):
    pixels, label = many
    n = label.sum(0)
    error = np.sqrt((n + len(label) - n + 1) / (12 * n * (len(label) - n)))  # of an AUROC without information
    for cue in (pixels.mean((1, 2)), pixels.std((1, 2))):
        found = np.array([auroc(cue, label[:, k]) for k in range(len(nih.CLASSES))])
        assert (np.abs(found - 0.5) < 3.5 * error).all()
        assert abs(found.mean() - 0.5) < 0.06


def test_the_signs_can_be_learnt(many):
    """Ridge regression on the local contrast of a 32 x 32 grid, on other patients' pictures."""
    pixels, label = many
    blocks = pixels.reshape(len(pixels), 32, 8, 32, 8).astype(np.float64).std((2, 4)).reshape(len(pixels), -1)
    cut = int(0.7 * len(blocks))
    x = (blocks - blocks[:cut].mean(0)) / (blocks[:cut].std(0) + 1e-3)
    y = label[:cut] - label[:cut].mean(0)
    weights = np.linalg.solve(x[:cut] @ x[:cut].T + 300 * np.eye(cut), y)
    score = x[cut:] @ (x[:cut].T @ weights)
    known = [k for k in range(len(nih.CLASSES)) if 0 < label[cut:, k].sum() < len(label) - cut]
    assert np.mean([auroc(score[:, k], label[cut:, k]) for k in known]) > 0.72
