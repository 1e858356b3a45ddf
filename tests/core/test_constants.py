import pytest
import torch

from pcrl_cli.core.constants import constant

CPU = torch.device("cpu")


@pytest.mark.parametrize("values", [(1, 1), (True, True), (1.0, 1.0), ((1, 2), (3, 4)), 3, True, 1, 1.0])
def test_a_constant_is_what_torch_tensor_makes_whichever_equal_numbers_came_before(values):
    made, expected = constant(values, CPU), torch.tensor(values)
    assert torch.equal(made, expected)
    assert made.dtype == expected.dtype


def test_a_constant_is_made_once_a_device_and_type():
    assert constant((1, 2), CPU) is constant((1, 2), CPU)
    assert constant((1, 2), torch.device("meta")).device.type == "meta"
    assert constant((1, 2), CPU, torch.float64).dtype == torch.float64
