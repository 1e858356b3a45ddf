import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from pcrl_cli.data.volume import Intensity, index_to_world, prepare, world_to_index
from pcrl_cli.phantoms import chest
from pcrl_cli.readers import luna

PATIENTS = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("luna")
    chest.make(folder, PATIENTS)
    return folder


@pytest.fixture(scope="module")
def cases(root):
    return luna.cases(root)


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def test_another_process_writes_the_same_bytes_and_fewer_patients_are_the_first_ones(root, tmp_path):
    code = "import sys; from pathlib import Path; from pcrl_cli.phantoms.chest import make; make(Path(sys.argv[1]), 2)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    few, all_ = digest(tmp_path), digest(root)
    scans = {name for name in few if name.startswith("subset0/")}
    assert len(scans) == 4
    assert all(few[name] == all_[name] for name in scans)
    for table in ("annotations.csv", "candidates_V2.csv"):
        assert (root / table).read_text("utf-8").startswith((tmp_path / table).read_text("utf-8"))


def test_another_seed_makes_other_patients():
    assert chest.series_uid(0, 0) != chest.series_uid(1, 0)
    assert not np.array_equal(chest.chest(0, 0).lesions, chest.chest(1, 0).lesions)


def test_progress_is_told_after_every_patient(tmp_path):
    told = []
    chest.make(tmp_path, 2, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]


def test_the_layout_is_lunas(root, cases):
    assert len(cases) == PATIENTS
    assert sorted(path.name for path in root.iterdir()) == ["annotations.csv", "candidates_V2.csv", "subset0"]
    assert luna.absent_rows(root, cases) == {"candidates_V2.csv": 0, "annotations.csv": 0}
    assert (root / "annotations.csv").read_text("utf-8").splitlines()[0] == "seriesuid,coordX,coordY,coordZ,diameter_mm"
    assert (root / "candidates_V2.csv").read_text("utf-8").splitlines()[0] == "seriesuid,coordX,coordY,coordZ,class"
    assert all(len(case.id) <= 64 for case in cases)


def test_scans_are_large_enough_and_vary(cases):
    volumes = [luna.read(case) for case in cases]
    for volume in volumes:
        assert volume.array.dtype == np.int16
        assert (np.array(volume.array.shape) * volume.spacing >= [128, 128, 112]).all()
        assert volume.array.min() >= -1024
    assert len({tuple(volume.spacing) for volume in volumes}) == PATIENTS
    assert len({volume.array.shape for volume in volumes}) > PATIENTS // 2
    assert {float(volume.direction[0, 0]) for volume in volumes} == {1.0, -1.0}  # some lie the other way round


def test_nodules_are_few_of_stated_size_and_each_is_a_candidate(cases):
    for case in cases:
        assert 2 <= len(case.lesions) <= 6
        assert ((case.lesions[:, 3] >= 4) & (case.lesions[:, 3] <= 20)).all()
        positives = case.points.world[case.points.label == 1]
        np.testing.assert_array_equal(np.unique(positives, axis=0), np.unique(case.lesions[:, :3], axis=0))
        assert (case.points.label == 0).sum() >= len(case.lesions)


def test_no_negative_lies_in_a_nodule(cases):
    for case in cases:
        negatives = case.points.world[case.points.label == 0]
        for lesion in case.lesions:
            assert np.linalg.norm(negatives - lesion[:3], axis=1).min() > lesion[3] / 2 + 5


def test_solid_nodules_are_where_the_table_says(cases):
    """Over many large nodules: denser at the stated centre than just outside the stated diameter."""
    contrast = []
    for case in cases:
        volume = luna.read(case)
        for lesion in case.lesions[case.lesions[:, 3] > 8]:
            reach = lesion[3] / volume.spacing
            centre = world_to_index(volume, lesion[:3])
            index = np.floor(centre - reach).astype(int) + np.argwhere(np.ones(np.ceil(2 * reach).astype(int), bool))
            index = np.clip(index, 0, np.array(volume.array.shape) - 1)
            away = np.linalg.norm(index_to_world(volume, index) - lesion[:3], axis=1) / lesion[3]
            hu = volume.array[tuple(index.T)]
            contrast.append(hu[away < 0.35].mean() - np.median(hu[(away > 0.6) & (away < 0.8)]))
    assert len(contrast) >= 10
    assert min(contrast) > 250


def test_every_candidate_lies_in_the_body_and_pairs_can_be_cut(cases):
    for case in cases:
        ready = prepare(luna.read(case), Intensity())
        index = world_to_index(ready, case.points.world)
        assert ((index > 8) & (index < np.array(ready.values.shape) - 9)).all()
        assert 0.3 < (ready.values > ready.background).mean() < 0.9


def test_density_alone_does_not_tell_nodules_from_forks(cases):
    density, label = [], []
    ball = np.argwhere(np.ones((11, 11, 11), bool)) - 5
    ball = ball[(ball**2).sum(1) <= 25]
    for case in cases:
        ready = prepare(luna.read(case), Intensity())
        for place in np.rint(world_to_index(ready, case.points.world)).astype(int):
            density.append(ready.values[tuple((place + ball).T)].mean())
        label.extend(case.points.label)
    density, label = np.array(density), np.array(label)
    auroc = (density[label == 1][:, None] > density[label == 0]).mean()
    assert 0.55 < auroc < 0.8
