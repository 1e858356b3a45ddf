"""`pcrl prep` and `pcrl inspect` on radiographs: words, counts by image, exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pcrl_cli.cli.app import app
from pcrl_cli.phantoms import radiograph
from pcrl_cli.readers.image_io import write_png


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    workspace = tmp_path_factory.mktemp("films")
    radiograph.make(workspace / "data/nih", 6)
    return workspace


@pytest.fixture
def pcrl(films, tmp_path):
    """Runs `pcrl prep` or `inspect` in the workspace of the films; caches go to the test's own folder."""

    def run(*arguments: str | Path):
        words = [str(a) for a in arguments]
        if words[0] == "prep" and "--out" not in words:
            words += ["--out", str(tmp_path / "cache")]
        result = CliRunner().invoke(app, words, env={"COLUMNS": "100", "PCRL_WORKSPACE": str(films)})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def count(films: Path) -> int:
    return len(list((films / "data/nih/images").iterdir()))


def test_prep_nih_counts_images_and_inspect_tells_what_is_there(pcrl, films, tmp_path):
    done = pcrl("prep", "nih", "--size", "32", "--jobs", "1", "--json")
    said = json.loads(done.stdout)
    assert (done.exit_code, said["unit"], said["made"], said["bad"]) == (0, "images", count(films), 0)
    assert said["totals"]["images"]["kept"] == count(films)
    facts = json.loads(pcrl("inspect", tmp_path / "cache", "--json").stdout)["facts"]
    assert (facts["dim"], facts["size"], facts["data set"]) == (2, 32, "nih")
    again = pcrl("prep", "nih", "--size", "32", "--jobs", "1")
    assert f"0 made, {count(films)} there already, 0 left out" in again.stdout
    assert again.stdout.strip().endswith("cache")


def test_prep_can_be_limited_and_planned(pcrl, films, tmp_path):
    plan = json.loads(pcrl("prep", "nih", "--dry-run", "--json").stdout)
    assert plan["figures"]["images"] == count(films)
    assert json.loads(pcrl("prep", "nih", "--size", "16", "--limit", "3", "--jobs", "1", "--json").stdout)["made"] == 3


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["nih", "--uncertain", "maybe"], 2, "--uncertain"),
        (["chexpert", "--view", "above"], 2, "--view"),
        (["nih", "--aspect", "crop"], 2, "--aspect"),
        (["nih", "--size", "4"], 2, "--size"),
        (["nih", "--view", "frontal"], 3, "--view is not for the reader nih"),
        (["nih", "--pairs", "3"], 3, "unknown setting pairs"),
        (["nih", "--labels", "l.csv"], 3, "--labels is not for the reader nih"),
        (["nih", "--official-split"], 4, "train_val_list.txt is not there"),
        (["chexpert"], 4, "put CheXpert"),
    ],
)
def test_wrong_words_have_their_exit_codes(pcrl, words, code, what):
    done = pcrl("prep", *words)
    assert done.exit_code == code, done.stderr
    assert what in " ".join(done.stderr.split())
    assert not done.stdout


def test_a_folder_with_labels_works_as_typed_and_bad_images_are_exit_4(pcrl, tmp_path):
    films = [radiograph.patient(1, i)[0].pixels for i in range(4)]
    (tmp_path / "own").mkdir()
    for name, film in zip("abcd", films, strict=True):
        write_png(film, tmp_path / f"own/{name}.png")
    (tmp_path / "own/d.png").write_bytes(b"torn")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,patient,label\na.png,A,wet\nb.png,B,dry\nc.png,C,dry\nd.png,D,wet\n", encoding="utf-8")
    words = ["prep", "folder", "--data", tmp_path / "own", "--labels", labels, "--size", "16", "--jobs", "1"]
    done = pcrl(*words)
    assert done.exit_code == 4
    assert "1 of 4 images could not be used" in done.stderr
    assert pcrl(*words, "--max-bad", "0.25").exit_code == 0
    row = json.loads((tmp_path / "cache/bad_cases.jsonl").read_text("utf-8"))
    assert (row["case"], row["patient"]) == ("d.png", "D")
    (tmp_path / "own/scan.nii").write_bytes(b"")
    mixed = pcrl("prep", "folder", "--data", tmp_path / "own")
    assert (mixed.exit_code, "pictures" in mixed.stderr, "volumes" in mixed.stderr) == (4, True, True)
