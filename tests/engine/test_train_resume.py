import os
import signal
import time

import numpy as np
import pytest
import torch
from cached import small_cache
from toys import Game, Noise, Source, Toy, digests, everything, losses, rows, same, stop_at, trainer

from pcrl_cli.core.errors import Preempted
from pcrl_cli.data.loader import Loader


def run_in_parts(folder, stops, **options):
    """Trains with a break before each of these steps, every part with a new learner, as a new process would."""
    learner = options.pop("learner", Toy)
    for step in stops:
        with pytest.raises(Noise):
            trainer(folder, learner(), Source(hook=stop_at(step)), **options).fit()
    return trainer(folder, learner(), Source(), **options)


def signal_in_parts(folder, steps, **options):
    """Trains with a SIGTERM while the batch of each of these steps is made."""
    learner = options.pop("learner", Toy)
    for at in steps:
        source = Source(hook=lambda step, at=at: os.kill(os.getpid(), signal.SIGTERM) if step == at else None)
        with pytest.raises(Preempted):
            trainer(folder, learner(), source, **options).fit()
    return trainer(folder, learner(), Source(), **options)


# Steps are 0..19, epochs are 5 steps; a signal while step s is made leaves a checkpoint of s + 1 steps.
CASES = {
    "anywhere": (7,),
    "twice in one epoch": (6, 8),
    "exactly at an epoch's end": (9,),
    "in the first step": (0,),
    "every step": tuple(range(19)),
    "the last step": (19,),
}


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("stops", CASES.values(), ids=CASES.keys())
def test_a_run_stopped_by_signals_equals_an_uninterrupted_one(tmp_path, optimiser, stops):
    options = {"optimiser": optimiser, "check_every": 3, "clip_norm": 1.0}
    whole = trainer(tmp_path / "whole", **options)
    whole.fit()
    parts = signal_in_parts(tmp_path / "parts", stops, **options)
    parts.fit()
    assert same(everything(parts), everything(whole))
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.parametrize("stops", [(7,), (6, 8), (10,), (3,), (13, 16)])
def test_a_killed_run_goes_on_from_its_last_checkpoint_and_ends_the_same(tmp_path, stops):
    trainer(tmp_path / "whole").fit()
    run_in_parts(tmp_path / "parts", stops).fit()
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "parts")] == list(range(20))


@pytest.mark.parametrize("schedule", ["cosine", "cosine_epoch", "halving", "constant"])
def test_the_learning_rate_goes_on_where_it_was(tmp_path, schedule):
    options = {"schedule": schedule, "warmup_steps": 2, "halve_every_epochs": 1}
    trainer(tmp_path / "whole", **options).fit()
    signal_in_parts(tmp_path / "parts", (0, 6, 12), **options).fit()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_both_players_of_a_game_resume_exactly(tmp_path):
    trainer(tmp_path / "whole", Game()).fit()
    signal_in_parts(tmp_path / "parts", (3, 11), learner=Game).fit()
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


class FromCache(Toy):
    def views(self, batch, rng):
        return super().views({"x": batch["a"].flatten(1)[:, :6].float() / 1000}, rng)


@pytest.mark.parametrize("stops", [(1, 2), (4,), (7,)])
def test_resume_is_exact_with_a_real_cache_in_ram_and_on_disk(tmp_path, stops):
    cache = small_cache(tmp_path / "cache")

    def loader(where):
        return Loader(cache, "g", ("a",), cache.cases(), 4, 0, torch.device("cpu"), where)

    assert loader("ram").steps_per_epoch == 4
    trainer(tmp_path / "whole", FromCache(), loader("ram")).fit()
    for step, where in zip(stops, ("disk", "ram"), strict=False):  # the place of the cache may change between the parts
        source = loader(where)
        inner = source.batches

        def batches(first, inner=inner, at=step):
            for positions, batch in inner(first):
                if int(positions[0]) // 4 == at:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield positions, batch

        source.batches = batches
        with pytest.raises(Preempted):
            trainer(tmp_path / "parts", FromCache(), source).fit()
    trainer(tmp_path / "parts", FromCache(), loader("disk")).fit()
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_another_seed_trains_otherwise(tmp_path):  # so that the equalities above can fail
    trainer(tmp_path / "a").fit()
    trainer(tmp_path / "b", seed=1).fit()
    assert digests(tmp_path / "a") != digests(tmp_path / "b")


def test_a_finished_run_trains_no_further_step(tmp_path):
    trainer(tmp_path).fit()
    before = digests(tmp_path), losses(tmp_path)
    outcome = trainer(tmp_path).fit()
    assert outcome.steps == 20
    assert (digests(tmp_path), losses(tmp_path)) == before


def test_restored_optimiser_tensors_have_the_parameters_memory_layout(tmp_path):
    class Convolution(Toy):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv3d(2, 3, 3)

    for _ in range(2):
        t = trainer(tmp_path, Convolution(), epochs=1)
        t.fit()
    momentum = t.optimisers["main"].state[t.learner.conv.weight]["momentum_buffer"]
    assert t.learner.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert momentum.stride() == t.learner.conv.weight.stride()


def test_rows_that_no_checkpoint_knows_and_a_torn_line_are_forgotten(tmp_path):
    with pytest.raises(Noise):
        trainer(tmp_path, source=Source(hook=stop_at(8))).fit()
    assert [row["step"] for row in rows(tmp_path)] == list(range(8))  # the checkpoint is of step 5
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss/cop')
    trainer(tmp_path).fit()
    assert [row["step"] for row in rows(tmp_path)] == list(range(20))


def test_figures_are_numbers_of_the_steps_not_of_the_clock(tmp_path):
    trainer(tmp_path).fit()
    row = rows(tmp_path)[3]
    assert row["epoch"] == 0
    assert 0 <= row["data_wait"] <= 1
    assert np.isfinite([row["samples_per_second"], row["gradient_norm"], row["loss/agree"], row["loss/copy"]]).all()


def test_the_outcome_counts_every_leg(tmp_path):
    nap = 0.01

    def source(at=None):
        def hook(step):
            time.sleep(nap)
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)

        return Source(hook=hook)

    for at in (8, 16):
        with pytest.raises(Preempted):
            trainer(tmp_path, source=source(at)).fit()
    outcome = trainer(tmp_path, source=source()).fit()
    assert outcome.seconds >= 20 * nap
    assert outcome.samples_per_second * outcome.seconds == pytest.approx(20 * 8)
    assert 20 * nap <= outcome.data_wait * outcome.seconds <= outcome.seconds
    again = trainer(tmp_path, source=source()).fit()  # killed after its last checkpoint: nothing is left to train
    assert again.samples_per_second * again.seconds == pytest.approx(20 * 8)
