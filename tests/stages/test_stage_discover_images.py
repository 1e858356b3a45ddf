"""From a cache of radiographs to visual words, and TransVW trained on them."""

import json

import numpy as np
import pytest
import yaml
from chain import Heard, contents, settings

from pcrl_cli.core.errors import ConfigError, NumericalError
from pcrl_cli.data.cache import open_cache
from pcrl_cli.phantoms import radiograph
from pcrl_cli.stages.discover import DiscoverResult, discover_settings, discover_words
from pcrl_cli.stages.finetune import finetune
from pcrl_cli.stages.inspect import inspect
from pcrl_cli.stages.prep import prep
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.replay import replay
from pcrl_cli.stages.table import table
from pcrl_cli.stages.workspace import Workspace

SIDE, PATIENTS = 40, 24
LAYERS = settings(width=4, words={"classes": 6, "neighbours": 5}, train={"steps": 3, "batch": 8})
LEARNER = {"width": 4}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A workspace with a cache of several shards: every patient of the phantoms has up to four films."""
    workspace = Workspace(tmp_path_factory.mktemp("films"))
    radiograph.make(workspace.data("nih"), PATIENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pcrl_cli.readers.shards.SMALLEST", 16)
        prep("nih", workspace=workspace, layers=settings(size=SIDE), jobs=1)
    return workspace


@pytest.fixture(scope="module")
def words(films) -> DiscoverResult:
    return discover_words(dim="2d", workspace=films, layers=LAYERS, jobs=1)


@pytest.fixture(scope="module")
def without(films, words) -> DiscoverResult:
    """Words that were found without the first two fifths of the training patients."""
    return discover_words(dim="2d", workspace=films, layers=[*LAYERS, *settings(set_aside=0.4)], jobs=1)


def test_every_word_has_equally_many_squares_one_patient_each_and_exact_ones_at_one_corner(words, films):
    cache = open_cache(words.cache)
    assert words.cache == films.cache("nih-words")
    items = cache.read("words", ("word", "label", "corner"), cache.cases("train")).arrays
    owners = np.array(cache.owners("words", "label", cache.cases("train")))
    assert words.instances == 5
    assert words.cubes == len(items["label"]) == 6 * 5 * 3
    assert np.bincount(items["label"]).tolist() == [3 * 5] * 6
    assert items["word"].shape[1:] == (1, SIDE, SIDE)
    assert items["word"].dtype == np.uint8
    for label in range(6):
        assert len(np.unique(items["corner"][items["label"] == label], axis=0)) == 1
        assert len(set(owners[items["label"] == label])) == 5
    assert "data:image/png" in words.report.read_text("utf-8")


def test_the_source_has_several_shards_and_every_square_is_of_the_film_that_its_record_names(words, films):
    source, cache = open_cache(films.cache("nih")), open_cache(words.cache)
    assert len(source.records) > 2
    assert len(cache.records) > 1
    place = discover_settings(source, LAYERS)[0].cubes.cube
    for case, record in cache.records.items():
        items, films_of = cache.read("words", ("word", "corner"), [case]).arrays, source.records[case]["items"]
        stored = source.read("images", ("image",), [case]).arrays["image"]
        for i in range(0, len(items["word"]), 3):
            at = films_of["id"].index(record["items"]["id"][i])
            assert films_of["patient"][at] == record["items"]["patient"][i]
            assert films_of["scan_id"][at] == record["items"]["scan_id"][i]
            x, y = items["corner"][i]
            exact = stored[at, 0, x : x + place[0], y : y + place[1]]
            assert abs(float(items["word"][i].mean()) - float(exact.mean())) < 3


def test_words_keep_the_split_and_leave_validation_and_test_patients_alone(words, films):
    cache, source = open_cache(words.cache), open_cache(films.cache("nih"))
    assert cache.split == source.split
    assert set(cache.patients("all")) <= set(source.split.train)
    assert cache.manifest["totals"]["patients"] == len(cache.patients("train"))


def test_patients_who_are_set_aside_belong_to_no_word_and_pretraining_says_where_they_do(
    words, without, films, tmp_path
):
    source = open_cache(films.cache("nih"))
    aside = set(source.split.first(0.4))
    assert aside & set(open_cache(words.cache).patients())
    assert without.cache == films.cache("nih-words-aside-0.4")
    assert without.patients == len(source.patients("train")) - len(aside)
    assert not aside & set(open_cache(without.cache).patients())
    layers = settings(learner=LEARNER, train={"steps": 1, "batch": 8}, set_aside=0.4)
    for cache, told in ((words.cache, True), (without.cache, False)):
        heard = Heard()
        pre = pretrain(
            cache, dim="2d", method="transvw", workspace=films, out=tmp_path / cache.name, layers=layers, listener=heard
        )
        assert any("pcrl discover --set-aside 0.4" in line for line in heard.warnings) == told
        assert pre.patients == len(set(open_cache(cache).patients()) - aside)


def test_again_changes_nothing_and_elsewhere_with_more_workers_gives_the_same_bytes(words, films, tmp_path):
    before = contents(words.cache)
    assert discover_words(dim="2d", workspace=films, layers=LAYERS, jobs=1).cache == words.cache
    assert contents(words.cache) == before
    other = discover_words(films.cache("nih"), out=tmp_path / "w", workspace=Workspace(tmp_path), layers=LAYERS, jobs=2)
    again = {name: data for name, data in contents(other.cache / "shards").items() if name.endswith(".h5")}
    assert again == {name: data for name, data in contents(words.cache / "shards").items() if name.endswith(".h5")}


def test_transvw_trains_on_the_words_and_its_encoder_is_fine_tuned(words, films, tmp_path):
    layers = settings(learner=LEARNER, train={"steps": 2, "batch": 8})
    heard = Heard()
    pre = pretrain(
        words.cache, dim="2d", method="transvw", workspace=films, out=tmp_path / "pre", layers=layers, listener=heard
    )
    assert pre.samples == words.cubes
    assert pre.voxels == 8 * 3 * SIDE * SIDE
    assert not heard.warnings
    fine = settings(learner={"side": 32, "resize": 36}, train={"steps": 2, "batch": 8})
    tuned = finetune(task="chest", workspace=films, weights=pre.run, out=tmp_path / "fine", layers=fine)
    assert tuned.transfer["share"] == 1.0
    assert tuned.overlap["val"] == tuned.overlap["test"] == 0
    with pytest.raises(ConfigError, match="holds no words"):
        pretrain(films.cache("nih"), dim="2d", method="transvw", workspace=films, layers=layers)


def test_a_tables_row_pretrains_on_the_words_of_its_own_share(without, films, tmp_path):
    spec = {
        "name": "films", "task": "chest", "cache": str(films.cache("nih")), "set_aside": "ratio", "ratios": [0.4, 0.5],
        "methods": {"TS": {"finetune": {"width": 4}}, "TransVW": {"method": "transvw", "cache": "nih-words-aside-{aside}"}},
        "seeds": [0], "focus": "TransVW", "bootstrap": 200,
        "pretrain": {"learner": LEARNER, "train": {"steps": 2, "batch": 8}},
        "finetune": {"learner": {"side": 32, "resize": 36}, "train": {"steps": 2, "batch": 4}},
    }  # fmt: skip
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec), "utf-8")
    found = table(tmp_path / "spec.yaml", out=tmp_path / "out", workspace=films)
    run = json.loads((tmp_path / "out" / "pretrain" / "TransVW-aside-0.4-seed-0" / "run.json").read_text("utf-8"))
    assert run["cache"] == str(without.cache.resolve())
    assert found.done == 3
    assert set(found.failed) == {"TransVW-aside-0.5-seed-0"}  # nobody made its words
    assert "nih-words-aside-0.5 is no cache" in found.failed["TransVW-aside-0.5-seed-0"]


def test_what_they_are_is_seen_by_looking(words):
    facts = inspect(words.cache).facts
    assert facts["size"] == SIDE
    assert facts["shards"] == f"{len(open_cache(words.cache).records)} with 90 squares of {len(names_in(words))} images"


def names_in(words):
    return {name for record in open_cache(words.cache).records.values() for name in record["items"]["id"]}


def test_words_of_words_or_of_another_kind_or_dimension_are_refused(words, films, chain):
    with pytest.raises(ConfigError, match="words are found in a cache of crop pairs or of images"):
        discover_words(words.cache, workspace=films, layers=LAYERS)
    with pytest.raises(ConfigError, match="2D cache, but --dim 3d"):
        discover_words(films.cache("nih"), dim="3d", workspace=films, layers=LAYERS)
    with pytest.raises(ConfigError, match="there is no 3D cache with pairs"):
        discover_words(workspace=films, layers=LAYERS)
    with pytest.raises(ConfigError, match="must have as many axes"):
        discover_settings(open_cache(films.cache("nih")), settings(cubes={"cube": [8, 8, 8]}))
    flat = settings(cubes={"cube": [8, 8], "resized": None}, thumbnails={"shape": [16, 16]}, words={"border": [1, 1]})
    with pytest.raises(ConfigError, match=r"3D cache, and cubes\.cube is"):
        discover_settings(open_cache(chain.cache), flat)


def test_defaults_are_shares_of_the_image(films):
    found = discover_settings(open_cache(films.cache("nih")))[0]
    assert found.cubes.cube == (11, 11)
    assert found.cubes.stored == found.thumbnails.shape == (SIDE, SIDE)
    assert found.words.border == (5, 5)
    assert json.loads(found.model_dump_json())["width"] == 64


def test_a_describer_that_breaks_down_is_shown_again(films, tmp_path, monkeypatch):
    monkeypatch.setattr("pcrl_cli.engine.schedule.factor", lambda *a: 1.0)
    layers = [*LAYERS, *settings(train={"lr": 1e30}, seed=3)]
    with pytest.raises(NumericalError):
        discover_words(films.cache("nih"), workspace=Workspace(tmp_path), layers=layers, jobs=1)
    (capture,) = (tmp_path / "runs").glob("*/describer/captures/*")
    assert replay(capture).shown
