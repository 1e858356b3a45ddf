"""From a cache of crop pairs to visual words, and TransVW trained on them."""

import shutil

import numpy as np
import pytest
from chain import contents, settings

from pcrl_cli.core.errors import ConfigError, NumericalError
from pcrl_cli.data.cache import open_cache
from pcrl_cli.engine import lock
from pcrl_cli.stages.discover import DiscoverResult, discover_words
from pcrl_cli.stages.pretrain import pretrain
from pcrl_cli.stages.replay import replay
from pcrl_cli.stages.results import Plan
from pcrl_cli.stages.workspace import Workspace

LAYERS = settings(
    width=2,
    thumbnails={"shape": [16, 16, 8]},
    words={"classes": 5, "neighbours": 3, "border": [4, 4, 2]},
    cubes={"cube": [32, 32, 16], "sides": [24, 40], "shift": 4},
    train={"steps": 3, "batch": 2},
)


@pytest.fixture(scope="module")
def words(chain, tmp_path_factory) -> DiscoverResult:
    out = tmp_path_factory.mktemp("words") / "luna-words"
    return discover_words(chain.cache, out=out, workspace=chain.workspace, layers=LAYERS, jobs=1)


def test_every_word_has_equally_many_cubes_and_exact_ones_at_one_corner(words):
    cache = open_cache(words.cache)
    items = cache.read("words", ("word", "label", "corner"), cache.cases("train"))
    assert np.bincount(items.arrays["label"]).tolist() == [3 * words.instances] * 5
    assert items.arrays["word"].shape[1:] == (1, 32, 32, 16)
    for label in range(5):
        assert len(np.unique(items.arrays["corner"][items.arrays["label"] == label], axis=0)) == 1
    assert "data:image/png" in words.report.read_text("utf-8")
    assert words.cubes == len(items.arrays["label"])


def test_words_keep_the_split_and_leave_validation_and_test_patients_alone(words, chain):
    cache, source = open_cache(words.cache), open_cache(chain.cache)
    assert cache.split == source.split
    assert set(cache.cases("all")) <= set(source.cases("train"))
    assert {r["patient"] for r in cache.manifest["cases"]} <= set(source.split.train)


def test_scans_that_are_set_aside_are_neither_described_nor_cut(chain, tmp_path):
    source, workspace = open_cache(chain.cache), Workspace(tmp_path)
    layers = [*LAYERS, *settings(set_aside=0.4, words={"neighbours": 2})]
    found = discover_words(chain.cache, workspace=workspace, layers=layers, jobs=1)
    assert found.cache == tmp_path / "cache" / "luna-words-aside-0.4"
    (thumbnails,) = (tmp_path / "runs").glob("discover-*/scans")
    left = set(source.patients("train")) - set(source.split.first(0.4))
    assert 0 < len(left) < len(source.patients("train"))
    assert set(open_cache(thumbnails).patients()) == left
    assert set(open_cache(found.cache).patients()) <= left


def test_again_changes_nothing_and_from_nothing_gives_the_same_bytes(words, chain, tmp_path):
    before = contents(words.cache / "shards")
    discover_words(chain.cache, out=words.cache, workspace=chain.workspace, layers=LAYERS, jobs=1)
    assert contents(words.cache / "shards") == before
    other = discover_words(chain.cache, out=tmp_path / "w", workspace=Workspace(tmp_path), layers=LAYERS, jobs=1)
    again = {name: data for name, data in contents(other.cache / "shards").items() if name.endswith(".h5")}
    assert again == {name: data for name, data in before.items() if name.endswith(".h5")}


def test_transvw_trains_on_the_words(words, chain, tmp_path):
    layers = settings(learner={"width": 2, "poolings": 2}, train={"steps": 2, "batch": 4})
    result = pretrain(words.cache, method="transvw", workspace=chain.workspace, out=tmp_path / "run", layers=layers)
    assert result.outcome["steps"] == 2
    assert result.samples == words.cubes
    with pytest.raises(ConfigError, match="holds no words"):
        pretrain(chain.cache, method="transvw", workspace=chain.workspace, layers=layers)


def test_a_plan_says_that_words_of_half_the_patients_are_hardly_words(chain):
    plan = discover_words(chain.cache, workspace=chain.workspace, layers=LAYERS, dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.figures["words"] == 5
    assert "mostly the same ones" in plan.figures["notes"][0]


def test_what_others_made_is_not_overwritten(chain, words, tmp_path):
    foreign = tmp_path / "thesis"
    (foreign / "shards").mkdir(parents=True)
    (foreign / "notes.txt").write_text("years of work", "utf-8")
    unsealed = tmp_path / "unsealed"
    (unsealed / "shards").mkdir(parents=True)
    others = {chain.cache: "not of visual words", foreign: "notes.txt", unsealed: "something else than visual words"}
    for out, why in others.items():
        before = contents(out)
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match=why):
                discover_words(chain.cache, out=out, workspace=chain.workspace, layers=LAYERS, overwrite=overwrite)
        assert contents(out) == before
    with pytest.raises(ConfigError, match="other words"):
        discover_words(chain.cache, out=words.cache, workspace=chain.workspace, layers=[*LAYERS, *settings(seed=1)])
    plan = discover_words(
        chain.cache, out=words.cache, layers=LAYERS, workspace=chain.workspace, overwrite=True, dry_run=True
    )
    assert isinstance(plan, Plan)


def test_words_whose_manifest_is_torn_are_overwritten_and_nothing_beside(words, chain, tmp_path):
    out = tmp_path / "words"
    shutil.copytree(words.cache, out)
    (out / "manifest.json").write_text("{", "utf-8")
    (out / "shards" / "old.h5").touch()
    discover_words(chain.cache, out=out, workspace=Workspace(tmp_path), layers=LAYERS, jobs=1, overwrite=True)
    assert not (out / "shards" / "old.h5").exists()
    assert len(open_cache(out).cases("all")) == len(open_cache(words.cache).cases("all"))


def test_a_describer_that_breaks_down_is_shown_again_and_leaves_its_folder_free(chain, tmp_path, monkeypatch):
    monkeypatch.setattr("pcrl_cli.engine.schedule.factor", lambda *a: 1.0)
    layers = [*LAYERS, *settings(train={"lr": 1e30})]
    with pytest.raises(NumericalError):
        discover_words(chain.cache, workspace=Workspace(tmp_path), layers=layers, jobs=1)
    assert not lock._held
    (capture,) = (tmp_path / "runs").glob("*/describer/captures/*")
    done = replay(capture)
    assert done.shown
    assert set(done.terms) == {"restore"}
