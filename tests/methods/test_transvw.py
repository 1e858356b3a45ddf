"""TransVW: restoring as Models Genesis does, and telling words."""

import math

import pytest
import torch
from small import NOW, learner, smooth, total, views

from pcrl_cli.core.errors import ConfigError

WORDS = tuple(f"word {i}" for i in range(44))


both = pytest.mark.parametrize("dim", [2, 3])


def batch(dim=3, n=8, words=44):
    word = smooth(n, 1, 16, 16, 8)
    if dim == 2:
        word = ((smooth(n, 1, 40, 40, 4)[..., 0].float() + 1000) / 2000 * 255).to(torch.uint8)
    return {"word": word, "label": torch.arange(n).remainder(words).to(torch.int16)}


@both
def test_an_untrained_head_tells_no_word(dim):
    transvw = learner("transvw", dim, classes=WORDS, word_weight=1.0)
    assert float(transvw(views(transvw, batch(dim)), NOW)["word"].detach()) == pytest.approx(math.log(44), abs=0.3)


@both
def test_without_words_and_with_the_same_views_the_loss_is_that_of_models_genesis(dim):
    transvw, genesis = learner("transvw", dim, classes=WORDS, word_weight=0.0), learner("genesis", dim)
    genesis.restorer.load_state_dict(transvw.restorer.state_dict())
    seen = views(transvw, batch(dim))
    ours, theirs = total(transvw(seen, NOW)), total(genesis({"x": seen["x"], "g": seen["g"]}, NOW))
    assert torch.equal(ours, theirs)


@both
def test_the_target_is_the_cube_before_it_was_bent(dim):
    transvw = learner("transvw", dim, classes=WORDS)
    seen = views(transvw, batch(dim))
    scale, offset = transvw.stored.to_unit
    assert torch.equal(seen["x"], batch(dim)["word"].float() * scale + offset)
    assert len(seen["g"][0]) == (3 if dim == 2 else 1)
    assert not torch.equal(seen["x"], seen["g"][:, :1])
    assert torch.equal(seen["word"], batch(dim)["label"].long())


def test_the_head_has_the_released_number_of_parameters():
    with torch.device("meta"):
        transvw = learner("transvw", width=32, classes=WORDS)
    heads = [*transvw.tell.parameters(), *transvw.words.parameters()]
    assert sum(p.numel() for p in heads) == 14_203_948


def test_words_that_differ_in_where_they_are_bright_are_learnt():
    transvw = learner("transvw", width=4, classes=("a", "b"), word_weight=1.0, restore_weight=0.0, elastic_alpha=100.0)
    cubes = torch.full((8, 1, 16, 16, 8), -900, dtype=torch.int16)
    for i in range(8):
        cubes[i, 0, 2:14, 2:14, 2:6] = 200 if i % 2 else -400
    given = {"word": cubes, "label": torch.arange(8).remainder(2).to(torch.int16)}
    optimiser = torch.optim.Adam(transvw.parameters(), lr=3e-3)
    for step in range(40):
        optimiser.zero_grad()
        total(transvw(views(transvw, given, step), NOW)).backward()
        optimiser.step()
    assert float(transvw.figures(views(transvw, given, 99))["words_told"]) > 0.8


def test_a_cache_without_words_is_refused():
    with pytest.raises(ConfigError, match="pcrl discover"):
        learner("transvw")
