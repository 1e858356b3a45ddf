"""What every Learner promises, asked of each of them by name: a new one need only appear in its dictionary."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pcrl_cli.core.config import PRESETS, RECIPES, preset, recipe
from pcrl_cli.core.contract import Architecture
from pcrl_cli.core.learner import Progress, Stored, Task
from pcrl_cli.core.names import find
from pcrl_cli.core.rng import Rng
from pcrl_cli.methods import METHODS
from pcrl_cli.networks.encoders import build_encoder
from pcrl_cli.tasks import TASKS

TO_UNIT = (1 / 2000, 0.5)
NOW = Progress(3, 10)
POSITIONS = torch.tensor([4, 0, 9, 2**33])
VARIANTS = {
    "cpc3d-dot": {"scores": "dot", "overlap": True},
    "pcrlv1-as-released": {"targets": "as_released", "decoder_skip": False},
    "rubik-alone": {"adversary": "none", "decoder_skip": True},
}
"""Options beside a method's presets that make other code run."""


def method_cases():
    """(kind, name, variant, dimension): PCRLv2 by its recipes, the others by their presets, and VARIANTS."""
    for name in sorted(METHODS):
        for dim in sorted(find("method", name, METHODS).GROUPS):
            variants = RECIPES if name == "pcrlv2" else (*PRESETS, *(v for v in VARIANTS if v.startswith(f"{name}-")))
            yield from (("method", name, variant, f"{dim}d") for variant in variants)


def options_of(name, variant, dim):
    if name == "pcrlv2":
        return recipe(variant, "pretrain", name, dim)["learner"]
    return preset(variant, name, dim)["learner"] if variant in PRESETS else VARIANTS[variant]


METHOD_CASES = list(method_cases())
DIMS = {name: find("task", name, TASKS).DIM for name in sorted(TASKS)}
TASK_CASES = [("task", name, None, f"{n}d") for name, dim in DIMS.items() for n in ([dim] if dim else [2, 3])]
CASES = METHOD_CASES + TASK_CASES
REGIONS = {"a": (1, 2), "b": (2,), "c": (3,)}
STORED = {
    "2d": Stored(2, 1, (1 / 255, 0.0), ("a", "b", "c"), REGIONS),
    "3d": Stored(3, 1, TO_UNIT, ("one", "two", "three"), REGIONS),
    "brats": Stored(3, 4, TO_UNIT),
}
"""What the cache holds, by dimension or by task."""
ENCODERS = {
    "2d": Architecture(dim=2, encoder="resnet18", width=4, poolings=5),
    "3d": Architecture(dim=3, encoder="unet3d", width=2, poolings=3),
}
SMALL = {
    "luna": {"side": 16},
    "chest": {"side": 32, "resize": 40},
    "classify-2d": {"side": 32, "resize": 40},
    "2d": {"width": 4, "images": {"global_side": 40, "local_side": 32, "cutout_side": 6}},
    "c2l": {"queue": 24, "features": 8},
    "cpc3d": {"codes": 12, "context": 8},
    "genesis": {"rates": {"windows": 40}},
    "pcrlv1": {"queue": 24, "features": 8, "windows": 40},
    "simsiam": {"outputs": 16, "bottleneck": 8},
    "transvw": {"elastic_alpha": 200.0},
}
"""Settings of small learners, by task, method and dimension."""
CHOSEN = {"rubik": {"x"}, "pcrlv1": {"y"}, "transvw": {"x"}}
"""Views that are stored crops, or one of two: another step may give the same."""
UNUSED = {("pcrlv2", "released"): {("x", 1)}}
"""(view, index) that a recipe leaves out on purpose: the released code restores the first view only."""

every = pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(filter(None, c[1:])))


def stored_of(case):
    return STORED.get(case[1], STORED[case[3]])


def build(case, seed=0):
    """A small learner with weights from a seed."""
    kind, name, variant, dim = case
    torch.manual_seed(seed)
    if kind == "task":
        module = find("task", name, TASKS)
        encoder = build_encoder(ENCODERS[dim], stored_of(case).channels)
        return module.TASK(encoder, module.Config(**SMALL.get(name, SMALL.get(f"{name}-{dim}", {}))), stored_of(case))
    module = find("method", name, METHODS)
    options = options_of(name, variant, dim)
    of_dim = {key: value for key, value in SMALL.get(dim, {}).items() if key in module.Config.model_fields}
    small = {"width": 2} | of_dim | SMALL.get(name, {})
    nested = {key: options.get(key, {}) | value for key, value in small.items() if isinstance(value, dict)}
    return module.LEARNER(module.Config(**options | small | nested), STORED[dim])


def group(case):
    if case[0] == "task":
        return find("task", case[1], TASKS).GROUP
    return find("method", case[1], METHODS).GROUPS[int(case[3][0])]


def crops(*shape):
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(int(np.prod(shape[:-3])), 1, *(s // 4 for s in shape[-3:]), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=shape[-3:], mode="trilinear", align_corners=False)
    return (2600 * fine.reshape(shape) - 1300).clamp(-1000, 1000).to(torch.int16)


def batch_of(case):
    """Four stored samples of the group that the learner reads, smaller than real ones."""
    if group(case) == "candidates":
        return {"blocks": crops(4, 1, 24, 24, 24), "label": torch.tensor([0, 1, 1, 0], dtype=torch.uint8)}
    if group(case) == "words":
        word = crops(4, 1, 24, 16, 16) if case[3] == "3d" else films()
        return {"word": word, "label": torch.tensor([0, 1, 1, 0], dtype=torch.int16)}
    if group(case) == "images":
        label = torch.tensor([[0, 1, -1], [1, 0, 0], [0, 0, 1], [-1, 1, 1]]).to(torch.int8)
        return {"image": crops(4, 1, 24, 20, 28) if case[3] == "3d" else films(), "label": label}
    if group(case) == "volumes":
        image = crops(4, stored_of(case).channels, 16, 24, 12)
        mask = labels_of(image)
        if case[3] == "2d":  # pictures are volumes of one slice
            image, mask = crops(4, 1, 64, 48, 8)[..., 3:4], labels_of(crops(4, 1, 64, 48, 8)[..., 3:4])
            image = ((image.int() + 1000) // 8).to(torch.int16)
        return {"image": image, "mask": mask}
    locals_ = crops(4, 6, 1, 8, 8, 8)
    return {"globals": crops(4, 2, 1, 24, 16, 16), "locals_sub": locals_, "locals_multi": locals_.flip(1)}


def films():
    return ((crops(4, 1, 8, 64, 64)[:, :, 3].int() + 1000) / 8).to(torch.uint8)


def labels_of(image):
    """Labels that the image shows: 0 .. 4 by its brightness, and padding in a corner."""
    mask = torch.bucketize(image[:, 0].float(), torch.tensor([-200.0, 0.0, 200.0, 400.0])).to(torch.uint8)
    mask[:, :2, :3] = 255
    return mask


def views_at(learner, batch, step=0, positions=POSITIONS, seed=0):
    with torch.no_grad():
        return learner.views(batch, Rng.at(seed, step, positions))


def tensors(views):
    return {name: value for name, value in views.items() if isinstance(value, Tensor)}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(v, other[k]) if isinstance(v, Tensor) else v == other[k] for k, v in one.items())


def settle(learner, batch, steps=8):
    """Running statistics of batch norms as training leaves them, then eval mode, where samples do not mix."""
    learner.train()
    for module in learner.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # plain averages: the initial 0 and 1 leave no trace
    with torch.no_grad():
        for step in range(steps):
            learner(views_at(learner, batch, step), NOW)
    return learner.eval()


def parameters(player):
    """Of a player that gives parameters or optimiser groups."""
    for p in player:
        yield from p["params"] if isinstance(p, dict) else (p,)


def every_players(learner, views):
    """The terms of all players, by player and name."""
    found = {player: learner.losses(views, NOW, player) for player in learner.players()}
    return {f"{player}/{name}": term for player, terms in found.items() for name, term in terms.items()}


def total(terms):
    return torch.stack(list(terms.values())).sum()


@every
def test_two_steps_move_every_convolution_of_the_encoder(case):
    learner, batch = build(case), batch_of(case)
    before = {k: p.detach().clone() for k, p in learner.encoder.named_parameters()}
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.01)
    for step in range(2):
        optimiser.zero_grad()
        total(learner(views_at(learner, batch, step), NOW)).backward()
        optimiser.step()
    still = [k for k, p in learner.encoder.named_parameters() if p.dim() > 1 and torch.equal(before[k], p)]
    assert not still
    assert all(torch.isfinite(p).all() for p in learner.parameters())


@every
def test_terms_are_named_finite_scalars_with_gradients(case):
    learner, batch = build(case), batch_of(case)
    for player in learner.players():
        terms = learner.losses(views_at(learner, batch), NOW, player)
        assert terms
        assert all(name.isidentifier() for name in terms)
        assert all(t.dim() == 0 and torch.isfinite(t) and t.requires_grad for t in terms.values())


@every
def test_the_terms_do_not_change_their_names_from_step_to_step(case):
    learner, batch = build(case), batch_of(case)
    names = [list(learner(views_at(learner, batch, step), Progress(step, 6))) for step in range(6)]
    assert all(n == names[0] for n in names)


@every
def test_views_are_a_function_of_the_batch_and_the_randomness_alone(case):
    learner, batch = build(case), batch_of(case)
    one = views_at(learner, batch)
    torch.manual_seed(77)
    np.random.seed(77)  # noqa: NPY002
    random.seed(77)
    other = build(case, seed=1).eval()
    assert same(one, views_at(learner, batch))
    assert same(one, views_at(other, batch)), "views depend on the weights or the mode"
    rng = Rng.at(0, 0, POSITIONS)
    with torch.no_grad():
        assert same(learner.views(batch, rng), learner.views(batch, rng)), "views use up what they are given"


@every
def test_another_step_or_seed_gives_other_views_of_every_sample(case):
    learner, batch = build(case), batch_of(case)
    tries = 20 if group(case) == "volumes" else 1  # a crop, drawn by its reader, is mirrored in one of 8 ways only
    one = tensors(views_at(learner, batch))
    for key in ("step", "seed"):
        others = [tensors(views_at(learner, batch, **{key: n + 1})) for n in range(tries)]
        for name, value in one.items():
            if value.is_floating_point() and name not in CHOSEN.get(case[1], set()):
                for i, sample in enumerate(value):
                    assert any(not torch.equal(sample, other[name][i]) for other in others), name


@every
def test_views_and_losses_leave_global_generators_and_the_batch_alone(case):
    learner, batch = build(case), batch_of(case)
    kept = {k: v.clone() for k, v in batch.items()}
    torch.manual_seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    views = views_at(learner, batch)
    before = {k: v.clone() for k, v in tensors(views).items()}
    learner(views, NOW)
    learner.diagnostics(views)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    # Python's `random` is not looked at: beartype, which checks shapes here, draws from it
    assert same(kept, batch)
    assert same(before, tensors(views))


@every
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_batch_split_over_ranks_gives_the_same_views(case, ranks):
    learner, batch = build(case), batch_of(case)
    whole = views_at(learner, batch, 5)
    for rank in range(ranks):
        rows = torch.arange(rank, 4, ranks)
        part = views_at(learner, {k: v[rows] for k, v in batch.items()}, 5, POSITIONS[rows])
        for name, value in whole.items():
            if isinstance(value, Tensor):
                assert torch.allclose(value[rows].float(), part[name].float(), atol=1e-6), name
            else:
                assert value == part[name], name


@every
def test_players_share_no_parameter_and_leave_none_out(case):
    learner = build(case)
    players = [[id(p) for p in parameters(player)] for player in learner.players().values()]
    together = [i for ids in players for i in ids]
    assert len(together) == len(set(together))
    assert set(together) == {id(p) for p in learner.parameters() if p.requires_grad}


@every
def test_losses_are_deterministic(case):
    learner, batch = build(case), batch_of(case)
    views = views_at(learner, batch)
    one, again = every_players(learner, views), every_players(learner, views)
    assert all(torch.equal(one[name], again[name]) for name in one)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # what torch says when oneDNN's flags are set
@every
def test_bfloat16_autocast_gives_finite_float32_terms_and_finite_gradients(case):
    learner, batch = build(case), batch_of(case)
    views = views_at(learner, batch)
    with torch.autocast("cpu", torch.bfloat16):
        terms = every_players(learner, views)
    assert all(t.dtype == torch.float32 and torch.isfinite(t) for t in terms.values())
    total(terms).backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters() if p.grad is not None)


@every
def test_every_convolution_is_one_that_is_right_in_bfloat16_on_a_cpu(case):
    """Of torch's own, oneDNN leaves a part of the gradient unwritten where maps are small; see `networks.blocks`."""
    assert not [name for name, part in build(case).named_modules() if type(part) in (nn.Conv2d, nn.Conv3d)]


def places(case, name, value):
    """(sample, view) of a tensor with several views a sample, else (sample,)."""
    several = value.dim() == 3 + int(case[3][0]) or name == "a"
    return [(s, v) if several else (s,) for s in range(len(value)) for v in (range(value.shape[1]) if several else [0])]


def otherwise(value):
    """Another value of its kind: an image mirrored and far brighter, a label or a number of [0, 1] reflected."""
    if not value.is_floating_point() or value.dim() < 3:
        return 1 - value
    return 20 * value.flip(-2) + 0.5


@every
def test_every_sample_of_every_view_changes_some_loss(case):
    batch = batch_of(case)
    learner = settle(build(case), batch)  # in eval mode a sample cannot be felt through batch statistics alone
    views = views_at(learner, batch, 2)
    unused = UNUSED.get(case[1:3], set())
    with torch.no_grad():
        reference = every_players(learner, views)
        for name, value in tensors(views).items():
            for place in places(case, name, value):
                changed = value.clone()
                changed[place] = otherwise(value[place])
                terms = every_players(learner, views | {name: changed})
                moved = any(not torch.equal(terms[t], reference[t]) for t in terms)
                assert moved == ((name, place[-1]) not in unused), (name, place)


@every
def test_everything_that_a_resume_needs_is_in_the_state(case):
    batch = batch_of(case)
    one = build(case)
    optimiser = torch.optim.SGD(one.parameters(), lr=0.01)
    total(one(views_at(one, batch, 0), NOW)).backward()
    optimiser.step()
    one.after_step(NOW)
    other = build(case, seed=9)
    other.load_state_dict(one.state_dict())
    for learner in (one.train(), other.train()):
        learner.zero_grad()
        total(learner(views_at(learner, batch, 1), NOW)).backward()
    assert same(one.state_dict(), other.state_dict())
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name


@every
def test_what_is_watched_has_finite_rows_before_and_after(case):
    learner, batch = build(case), batch_of(case)
    watched = learner.diagnostics(views_at(learner, batch))
    assert case[0] == "task" or "encoder" in watched
    for name, w in watched.items():
        assert w.before.dim() == w.after.dim() == 2, name
        assert torch.isfinite(w.before).all(), name
        assert torch.isfinite(w.after).all(), name


@every
def test_pictures_are_rows_and_columns_of_slices(case):
    learner, batch = build(case), batch_of(case)
    learner.eval()
    with torch.no_grad():
        shown = learner.pictures(views_at(learner, batch))
    assert shown
    assert all(image.dim() == 4 and len(image) == 4 and torch.isfinite(image).all() for image in shown.values())


@pytest.mark.parametrize("case", TASK_CASES, ids=lambda c: "-".join(filter(None, c[1:])))
def test_predictions_are_probabilities_of_each_sample_by_itself(case):
    batch = batch_of(case)
    task = settle(build(case), batch)
    assert isinstance(task, Task)
    one = task.predict(batch)
    assert torch.equal(one, task.predict(batch))
    assert one.shape[0] == 4
    assert not one.requires_grad
    assert ((one > 0) & (one < 1)).all()
    alone = torch.cat([task.predict({k: v[i : i + 1] for k, v in batch.items()}) for i in range(4)])
    assert torch.allclose(one, alone, atol=1e-5)
    assert len(one.flatten(1).unique(dim=0)) == 4


@pytest.mark.parametrize("case", METHOD_CASES, ids=lambda c: "-".join(c[1:]))
def test_a_methods_module_says_what_it_wants_cached_and_what_its_encoder_is(case):
    module = find("method", case[1], METHODS)
    learner = build(case)
    assert {dim: plan().group for dim, plan in module.CROP_PLANS.items()}.items() <= module.GROUPS.items()
    dim = int(case[3][0])
    assert set(learner.config.arrays(dim)) <= batch_of(case).keys()
    assert learner.architecture.dim == dim
    build_encoder(learner.architecture, 1).load_state_dict(learner.encoder.state_dict())


@pytest.mark.parametrize("case", TASK_CASES, ids=lambda c: "-".join(filter(None, c[1:])))
def test_a_tasks_module_says_what_it_wants_cached_and_how_it_is_scored(case):
    module = find("task", case[1], TASKS)
    assert not hasattr(module, "CROP_PLAN") or module.CROP_PLAN().group == module.GROUP
    assert set(module.ARRAYS) == batch_of(case).keys()
    assert module.METRIC
