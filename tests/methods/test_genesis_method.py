"""Models Genesis: what is restored from what."""

import pytest
import torch
from small import NOW, batch, learner, smooth, total, views

from pcrl_cli.augment.intensity import z_normalise
from pcrl_cli.networks.restorer import Restorer, backbone

NOTHING = {"flip": 0, "shuffle": 0, "curve": 0, "paint": 0}


@pytest.mark.parametrize("dim", [2, 3])
def test_without_corruption_the_input_is_the_target_bitwise(dim):
    genesis = learner("genesis", dim, rates=NOTHING, network_input="unit")
    seen = views(genesis, batch(dim))
    assert torch.equal(seen["g"], seen["x"] if dim == 3 else seen["x"].expand(-1, 3, -1, -1))
    if dim == 3:
        stored = batch()["globals"].float() * (1 / 2000) + 0.5
        assert all(any(torch.equal(x, crop) for crop in pair) for x, pair in zip(seen["x"], stored, strict=True))


def test_flips_turn_input_and_target_together():
    genesis = learner("genesis", rates=NOTHING | {"flip": 1.0})
    seen = views(genesis, batch())
    assert torch.allclose(seen["g"], z_normalise(seen["x"]))
    still = views(learner("genesis", rates=NOTHING), batch())
    assert not torch.equal(seen["x"], still["x"])
    assert torch.equal(seen["x"].flatten(1).sort(dim=1).values, still["x"].flatten(1).sort(dim=1).values)


def test_every_voxel_counts_and_not_only_the_corrupted_ones():
    genesis = learner("genesis")
    seen = views(genesis, batch())
    restored = genesis.restorer(seen["g"])
    assert torch.equal(genesis(seen, NOW)["restore"], (restored - seen["x"]).square().mean())
    assert ((restored > 0) & (restored < 1)).all()


@pytest.mark.parametrize(("skip", "parameters"), [(True, 19_073_665), (False, 16_751_233)])
def test_the_network_is_the_released_one(skip, parameters):
    with torch.device("meta"):
        net = Restorer(backbone(3, 1, 32, 3), 1, skip, "deconv", bias=True)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_skips_let_the_decoder_copy_what_it_sees():
    losses = {}
    for skip in (True, False):
        genesis = learner(
            "genesis",
            width=4,
            decoder_skip=skip,
            network_input="unit",
            rates=NOTHING | {"paint": 1, "inside": 1, "boxes": 1},
        )
        optimiser = torch.optim.SGD(genesis.parameters(), lr=0.5, momentum=0.9)
        for step in range(40):
            optimiser.zero_grad()
            loss = total(genesis(views(genesis, {"globals": smooth(4, 1, 1, 16, 16, 8, seed=step)}, step), NOW))
            loss.backward()
            optimiser.step()
        losses[skip] = float(loss.detach())
    assert losses[True] < losses[False] / 5
