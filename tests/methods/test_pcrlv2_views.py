"""What PCRLv2 makes of a batch of stored crops."""

import pytest
import torch

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.core.learner import Progress
from pcrl_cli.methods.pcrlv2 import Config


def flat(t):
    return t.flatten(0, 1).flatten(1)


def test_targets_lie_in_the_unit_range_and_inputs_are_z_normalised(make, batch, rng):
    views = make().views(batch, rng())
    assert views["x"].shape == views["g"].shape == batch["globals"].shape
    assert views["l"].shape == batch["locals_sub"].shape
    assert views["x"].min() >= 0
    assert views["x"].max() <= 1
    for inputs in (flat(views["g"]), flat(views["l"])):
        assert inputs.mean(1).abs().max() < 1e-4
        assert (inputs.std(1) - 1).abs().max() < 1e-4


def test_targets_are_the_crops_moved_and_the_inputs_are_corrupted_targets(make, batch, rng):
    still = {"flip_probability": 0.0, "scale": (1.0, 1.0), "rotation_deg": (0.0, 0.0)}
    views = make(augment=still).views(batch, rng())
    unit = batch["globals"].float() / 2000 + 0.5
    assert torch.allclose(views["x"], unit, atol=1e-6)
    moved = make().views(batch, rng())
    assert (moved["x"] - unit).abs().mean() > 0.01
    x, g = flat(moved["x"]), flat(moved["g"])
    like = torch.nn.functional.cosine_similarity(x - x.mean(1, keepdim=True), g)
    assert like.min() > 0.1
    assert like.max() < 0.999


def test_every_view_of_a_sample_is_augmented_by_itself(make, batch, rng):
    same = {name: array[:1, :1].expand(3, array.shape[1], *array.shape[2:]) for name, array in batch.items()}
    views = make().views(same, rng())
    for name in ("x", "g", "l"):
        rows = flat(views[name])
        distance = torch.cdist(rows, rows) + torch.eye(len(rows)) * 1e6
        assert distance.min() > 1e-3, name


def test_the_crop_option_chooses_the_cached_locals(make, batch, rng):
    assert torch.equal(make(crop="sub").views(batch, rng())["g"], make(crop="multi").views(batch, rng())["g"])
    assert not torch.equal(make(crop="sub").views(batch, rng())["l"], make(crop="multi").views(batch, rng())["l"])
    none = make(crop="none").views({"globals": batch["globals"]}, rng())
    assert "l" not in none
    assert none["scales"].local == ()
    arrays = [Config(crop=c).arrays(3) for c in ("sub", "multi", "none")]
    assert arrays == [("globals", "locals_sub"), ("globals", "locals_multi"), ("globals",)]


def test_the_same_randomness_gives_the_same_views_also_from_the_same_object(make, batch, rng):
    learner, same = make(local_scales="fresh"), rng(2)
    one, again, fresh = learner.views(batch, same), learner.views(batch, same), learner.views(batch, rng(2))
    for other in (again, fresh):
        assert one["scales"] == other["scales"]
        assert all(torch.equal(one[name], other[name]) for name in ("x", "g", "l"))


def test_several_channels_are_restored_together(make, batch, rng):
    two = {name: torch.cat([array, array // 2], dim=2) for name, array in batch.items()}
    learner = make(channels=2)
    views = learner.views(two, rng())
    assert views["x"].shape[2] == 2
    assert learner.restore["1"](learner.net(views["g"][:, 0])[1], (24, 16, 16)).shape == (3, 2, 24, 16, 16)
    assert all(torch.isfinite(t) for t in learner.losses(views, Progress(0, 1)).values())


def test_views_too_small_for_the_swap_are_a_configuration_error(make, batch, rng):
    with pytest.raises(ConfigError, match="swap_patch"):
        make(augment={"swap_patch": (64, 4, 4)}).views(batch, rng())


def test_the_torchio_variant_gives_views_of_the_same_kind(make, batch, rng):
    pytest.importorskip("torchio")
    before = torch.get_rng_state()
    small = {name: array[:, :2] for name, array in batch.items()}
    learner = make(augmentation="torchio")
    views = learner.views(small, rng())
    ours = make().views(small, rng())
    assert torch.equal(torch.get_rng_state(), before)
    assert {k: v.shape for k, v in views.items() if k != "scales"} == {k: ours[k].shape for k in ("x", "g", "l")}
    assert views["scales"] == ours["scales"]
    assert 0 <= views["x"].min() <= views["x"].max() <= 1 + 1e-6
    assert (flat(views["g"]).std(1) - 1).abs().max() < 1e-4
    assert torch.equal(views["g"], learner.views(small, rng())["g"])
    assert all(torch.isfinite(t) for t in learner.losses(views, Progress(0, 1)).values())


def test_what_is_watched_is_pooled_before_the_norm_and_normed_after(make, batch, rng):
    learner = make()
    watched = learner.diagnostics(learner.views(batch, rng()))
    assert watched.keys() == {"encoder", "v1", "v2", "v3", "v4"}
    for name, w in watched.items():
        assert w.before.shape == w.after.shape
        assert len(w.before) == 6
        if name != "encoder":
            assert (w.before >= 0).all()  # after a ReLU
            for half in (w.after[:3], w.after[3:]):
                assert half.mean(0).abs().max() < 1e-4
    assert torch.equal(watched["encoder"].before, watched["encoder"].after)


@pytest.mark.parametrize("options", [{}, {"crop": "none"}, {"restore_scales": ()}])
def test_pictures_are_rows_of_mid_slices(make, batch, rng, options):
    learner = make(**options).eval()
    with torch.no_grad():
        shown = learner.pictures(learner.views(batch, rng()))
    assert {"x1", "x1'", "x2", "x2'"} <= shown.keys()
    assert ("local views" in shown) == (options.get("crop") != "none")
    assert all(image.dim() == 4 and len(image) == 3 for image in shown.values())
    restored = [name for name in shown if name.startswith("restored")]
    assert len(restored) == len(learner.restore)


def test_the_architecture_rebuilds_the_encoder(make):
    from pcrl_cli.networks.encoders import build_encoder

    learner = make()
    build_encoder(learner.architecture, 1).load_state_dict(learner.encoder.state_dict())
