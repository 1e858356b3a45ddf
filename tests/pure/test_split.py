import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.pure.split import PARTS, split

NAMES = st.sets(st.text("abcdefgh0123", min_size=1, max_size=6), max_size=60)


def names(n, prefix="p"):
    return [f"{prefix}{i}" for i in range(n)]


def test_the_parts_are_70_10_20():
    made = split(names(888), 0)
    assert (len(made.train), len(made.val), len(made.test)) == (621, 89, 178)


@given(NAMES, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_patient_is_in_exactly_one_part_and_none_is_empty_from_three_on(patients, seed):
    made = split(patients, seed)
    assert sorted(patients) == list(made.part("all")) == sorted(sum((made.part(p) for p in PARTS), ()))
    assert sorted(made.order) == list(made.train)
    if len(patients) >= 3:
        assert all(made.part(part) for part in PARTS)


def test_three_patients_give_one_each():
    assert [len(split(names(3), 5).part(part)) for part in PARTS] == [1, 1, 1]


def test_the_order_of_listing_does_not_matter_and_the_seed_does():
    shuffled = names(50)
    random.Random(0).shuffle(shuffled)
    assert split(shuffled + shuffled, 1) == split(names(50), 1)
    assert split(names(50), 1).test != split(names(50), 2).test


@given(NAMES, NAMES, NAMES)
@settings(max_examples=60, deadline=None)
def test_none_ever_moves_and_the_order_only_grows(first, second, third):
    before = split(first, 0)
    for later in (second, third):
        after = split(later, 0, before)
        assert all(set(before.part(part)) <= set(after.part(part)) for part in PARTS)
        assert after.order[: len(before.order)] == before.order
        assert set(after.part("all")) == set(before.part("all")) | later
        before = after


def test_patients_found_later_keep_the_shares():
    grown = split(names(10), 0)
    for n in range(11, 201, 10):
        grown = split(names(n), 0, grown)
    assert (len(grown.train), len(grown.val), len(grown.test)) == pytest.approx((134, 19, 38), abs=1)


def test_a_larger_ratio_contains_the_smaller_ones():
    made = split(names(43), 0)  # 30 in training
    assert [len(made.first(r)) for r in (0.01, 0.1, 0.5, 1.0)] == [1, 3, 15, 30]
    assert set(made.first(0.1)) < set(made.first(0.5)) < set(made.first(1.0)) == set(made.train)


def test_a_ratio_is_rounded_up_without_binary_dust():
    made = split(names(143), 0)
    assert len(made.train) == 100
    assert len(made.first(0.07)) == 7


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1])
def test_an_impossible_ratio_is_a_configuration_error(ratio):
    with pytest.raises(ConfigError, match="over 0 and at most 1"):
        split(names(9), 0).first(ratio)


def test_another_seed_over_an_existing_split_is_refused():
    with pytest.raises(ConfigError, match="seed 0 already"):
        split(names(4), 1, split(names(3), 0))


def test_the_data_sets_own_lists_decide_and_a_tenth_of_the_training_list_validates():
    names = [f"p{i:02d}" for i in range(40)]
    given = {name: "test" if i % 4 == 0 else "train" for i, name in enumerate(names)}
    found = split(names, 0, given=given)
    assert set(found.test) == {name for name, part in given.items() if part == "test"}
    assert len(found.val) == 3
    assert {given[name] for name in found.val} == {"train"}
    assert split([*names, "new"], 0, found, given).val[:3] == found.val[:3]


def test_a_patient_that_sits_elsewhere_than_the_lists_say_is_refused():
    made = split(["a", "b", "c", "d"], 0)
    other = "test" if "a" in made.train else "train"
    if "a" in made.val:
        other = "test"
    with pytest.raises(ConfigError, match=r"1 patients \(the first: a\) are in another part"):
        split(["a"], 0, made, {"a": other})
