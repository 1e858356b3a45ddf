"""The benchmarks that train on a cache run, on a few phantoms, and say what they should."""

from statistics import mean

import pytest
import torch
from torch.nn import functional as F

from benchmarks.precision import cosines, rounding, trainings
from benchmarks.stability import Arm, run_arm, summary
from pcrl_cli.data.cache import open_cache

ARM = Arm("toy", 3, width=2, batch=4, warmup=0)


def test_an_arm_of_the_stability_table_is_trained(chain, tmp_path):
    rows = run_arm(ARM, open_cache(chain.cache), tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert summary(ARM, rows)["steps"] == 3


def test_bfloat16_of_both_kinds_turns_a_gradient_less_than_another_batch_does(chain):
    rows = list(cosines(ARM, open_cache(chain.cache), [0]))
    assert [row["scale"] for row in rows] == ["F1", "F2", "F3", "F4", "F5"]
    other, bf16, rounded = (mean(float(row[how]) for row in rows) for how in ("other", "bf16", "rounded"))
    assert other < min(bf16, rounded)
    for row in rows:
        assert len({row["loss"], row["loss, bf16"], row["loss, rounded"]}) > 1


def test_rounding_rounds_values_and_gradients_and_ends():
    x, w = torch.randn(2, 3).requires_grad_(), torch.randn(4, 3)
    with rounding():
        y = F.linear(x, w)
        (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, F.linear(x.bfloat16().float(), w.bfloat16().float()).bfloat16().float())
    assert torch.equal(g, g.bfloat16().float())
    assert torch.equal(F.linear(x, w), x @ w.T)


def test_trainings_of_two_precisions_and_seeds_are_told_apart(chain):
    rows = list(trainings(ARM, open_cache(chain.cache)))
    assert [(row["precision"], row["seed"], row["steps"]) for row in rows] == [
        ("fp32", 0, 3), ("bf16", 0, 3), ("fp32", 1, 3), ("bf16", 1, 3)
    ]  # fmt: skip
    assert float(rows[0]["restore"]) == pytest.approx(float(rows[1]["restore"]), rel=0.1)
