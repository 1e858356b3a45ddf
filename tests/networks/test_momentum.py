"""Momentum copies and the queue of keys."""

import pytest
import torch
from torch import nn

from pcrl_cli.augment.mix import order
from pcrl_cli.networks.momentum import Queue, follow, in_groups, momentum_copy, trainable


def test_first_in_first_out_and_the_end_is_followed_by_the_beginning():
    queue = Queue(10, 1)
    for i in range(4):
        queue.push(torch.full((4, 1), float(i)))
    assert queue.keys.flatten().tolist() == [2, 2, 3, 3, 3, 3, 1, 1, 2, 2]
    assert int(queue.pointer) == 6


def test_more_keys_than_places_leave_the_last_ones():
    queue = Queue(3, 1)
    queue.push(torch.arange(5.0)[:, None])
    assert sorted(queue.keys.flatten().tolist()) == [2, 3, 4]


def test_a_queue_begins_with_unit_vectors_needs_no_gradient_and_is_in_the_state():
    queue = Queue(64, 8)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(64))
    queue.push(torch.rand(5, 8, requires_grad=True))
    assert not queue.keys.requires_grad
    assert set(queue.state_dict()) == {"keys", "pointer"}
    other = Queue(64, 8)
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.push(torch.ones(3, 8))
    assert torch.equal(queue.keys, other.keys)
    assert int(other.pointer) == 8


def test_a_teacher_moves_towards_its_student_by_the_momentum():
    student = nn.Linear(2, 2)
    teacher = momentum_copy(student)
    with torch.no_grad():
        for p in student.parameters():
            p += 1.0
    before = teacher.weight.clone()
    for _ in range(10):
        follow(teacher, student, 0.999)
    assert torch.allclose(teacher.weight - before, torch.full((2, 2), 1 - 0.999**10), atol=1e-6)
    assert pytest.approx(0.009955, abs=1e-6) == (1 - 0.999**10)


def test_no_optimiser_gets_a_teachers_parameter():
    both = nn.ModuleDict({"student": nn.Linear(2, 2)})
    both["teacher"] = momentum_copy(both["student"])
    assert {id(p) for p in trainable(both)} == {id(p) for p in both["student"].parameters()}


def test_a_teachers_own_statistics_do_not_follow():
    student = nn.BatchNorm1d(3)
    teacher = momentum_copy(student)
    student(torch.rand(8, 3) + 5)
    follow(teacher, student)
    assert torch.equal(teacher.running_mean, torch.zeros(3))


def test_groups_of_a_shuffled_batch_come_back_in_order_with_statistics_of_their_own():
    x, shuffled = torch.rand(8, 3), order(7, 8)
    assert torch.equal(in_groups(lambda part: part, x, shuffled, 3), x)
    norm = nn.BatchNorm1d(3, affine=False)
    out = in_groups(norm, x, shuffled, 2)
    for group in shuffled.tensor_split(2):
        assert torch.allclose(out[group].mean(dim=0), torch.zeros(3), atol=1e-5)
    assert not torch.allclose(out, norm(x), atol=1e-3)


def test_several_maps_come_back_in_order_as_one_does():
    x, shuffled = torch.rand(8, 3), order(7, 8)
    fine, coarse = in_groups(lambda part: [part, part[:, :1]], x, shuffled, 3)
    assert torch.equal(fine, x)
    assert torch.equal(coarse, x[:, :1])


def test_a_batch_too_small_for_groups_passes_whole():
    seen = []
    in_groups(lambda part: seen.append(len(part)) or part, torch.rand(3, 2), order(0, 3), 4)
    assert seen == [3]
