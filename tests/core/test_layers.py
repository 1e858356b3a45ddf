"""Settings: who overrides whom, and what a wrong key or value is told."""

import pytest
import yaml
from pydantic import Field

from pcrl_cli.core.config import (
    PRESETS,
    RECIPES,
    Settings,
    all_keys,
    build,
    dump_yaml,
    environment_layer,
    file_layer,
    leaves,
    merge,
    preset,
    recipe,
    set_layer,
)
from pcrl_cli.core.errors import ConfigError, UsageError
from pcrl_cli.core.names import find
from pcrl_cli.methods import METHODS
from pcrl_cli.stages.finetune import finetune_settings
from pcrl_cli.stages.kinds import KINDS
from pcrl_cli.stages.prep import prep_settings
from pcrl_cli.stages.pretrain import pretrain_settings

VERBS = {
    "prep": lambda recipe_, layers=(): prep_settings("luna", recipe_, layers),
    "pretrain": lambda recipe_, layers=(): pretrain_settings(None, recipe_, None, layers),
    "finetune": lambda recipe_, layers=(): finetune_settings("luna", recipe_, layers),
    "finetune lits": lambda recipe_, layers=(): finetune_settings("lits", recipe_, layers),
    "finetune brats": lambda recipe_, layers=(): finetune_settings("brats", recipe_, layers),
    "finetune segment": lambda recipe_, layers=(): finetune_settings("segment", recipe_, layers),
}


class Train(Settings):
    lr: float = Field(0.01, gt=0)
    batch: int = 32
    schedule: str = "cosine"


class Toy(Settings):
    train: Train = Train()
    widths: tuple[int, ...] | None = None
    on: bool = False


def test_every_layer_overrides_the_ones_before_it_and_is_named_as_the_origin(tmp_path):
    file = tmp_path / "c.yaml"
    names = ("a", "b", "c", "d", "e", "f")

    class Six(Settings):
        a: int = 0
        b: int = 0
        c: int = 0
        d: int = 0
        e: int = 0
        f: int = 0

    def up_to(first, value):
        return dict.fromkeys(names[first:], value)

    file.write_text(yaml.safe_dump(up_to(2, 2)))
    layers = [
        ("recipe paper", up_to(1, 1)),
        file_layer(file),
        environment_layer({f"PCRL_{n.upper()}": "3" for n in names[3:]}),
        set_layer([f"{n}=4" for n in names[4:]]),
        ("flags", up_to(5, 5)),
    ]
    built, origin = build(Six, layers)
    assert built.model_dump() == dict(zip(names, range(6), strict=True))
    assert origin == {"b": "recipe paper", "c": str(file), "d": "environment", "e": "--set", "f": "flags"}


def test_layers_are_joined_leaf_by_leaf():
    values, _ = merge([("1", {"train": {"lr": 1.0, "batch": 2}}), ("2", {"train": {"lr": 3.0}}), ("3", {"train": {}})])
    assert values == {"train": {"lr": 3.0, "batch": 2}}


@pytest.mark.parametrize(
    ("pair", "key", "value"),
    [
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("train.lr=5", "train.lr", 5),
        ("on=true", "on", True),
        ("widths=[4, 8]", "widths", [4, 8]),
        ("widths=null", "widths", None),
        ("train.schedule=a=b", "train.schedule", "a=b"),
        ("train.schedule=", "train.schedule", ""),
    ],
)
def test_set_values_are_read_as_yaml_and_as_numbers(pair, key, value):
    assert dict(leaves(set_layer([pair])[1])) == {key: value}


@pytest.mark.parametrize("pair", ["train.lr", "=3", "", "train.lr=[1", "on=: :", "on=2024-13-45"])
def test_a_malformed_set_is_a_usage_error(pair):
    with pytest.raises(UsageError, match="--set") as caught:
        set_layer([pair])
    assert caught.value.exit_code == 2


def test_a_malformed_variable_names_itself():
    with pytest.raises(ConfigError, match="PCRL_TRAIN__LR"):
        environment_layer({"PCRL_TRAIN__LR": "[1"})


def test_a_variable_sets_a_nested_key_and_others_are_not_looked_at():
    name, values = environment_layer(
        {"PCRL_TRAIN__LR": "1e-3", "PCRL_WORKSPACE": "/w", "PCRL_DATA": "/d", "HOME": "/h"}
    )
    assert (name, values) == ("environment", {"train": {"lr": 1e-3}})


def test_a_variable_of_another_verb_is_passed_over_and_a_misspelt_one_is_not():
    assert build(Toy, [environment_layer({"PCRL_PAIRS__PAIRS": "4", "PCRL_TRAIN__LR": "2"})])[0].train.lr == 2
    with pytest.raises(ConfigError, match=r"trian\.lr \(from environment\); did you mean train\.lr"):
        build(Toy, [environment_layer({"PCRL_TRIAN__LR": "2"})])


def test_another_verbs_key_is_an_error_anywhere_but_in_the_environment():
    with pytest.raises(ConfigError, match="unknown setting ratio"):
        build(Toy, [set_layer(["ratio=0.5"])])


@pytest.mark.parametrize(
    ("key", "near"),
    [("train.rl", "train.lr"), ("lr", "train.lr"), ("width", "widths"), ("train.batchh", "train.batch")],
)
def test_an_unknown_key_is_told_the_nearest_known_one_and_where_it_came_from(key, near):
    with pytest.raises(ConfigError, match=rf"unknown setting {key} \(from --set\); did you mean {near}\?"):
        build(Toy, [set_layer([f"{key}=1"])])


def test_an_unknown_key_far_from_all_lists_them():
    with pytest.raises(ConfigError, match="known keys are train, widths, on"):
        build(Toy, [set_layer(["qqqqqqqq=1"])])


@pytest.mark.parametrize(
    ("pair", "what"),
    [("train.lr=-1", "greater than 0"), ("train.lr=fast", "valid number"), ("train.batch=2.5", "valid integer")],
)
def test_a_value_that_does_not_fit_is_named_with_its_source(pair, what):
    with pytest.raises(ConfigError, match=rf"^train\.\w+ \(from --set\): .*{what}.*, not") as caught:
        build(Toy, [set_layer([pair])])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pairs", [["train=3"], ["train=3", "train.lr=1"]])
def test_a_value_in_the_place_of_a_group_is_a_configuration_error(pairs):
    with pytest.raises(ConfigError, match="train"):
        build(Toy, [set_layer(pairs)])


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2", "just text", "a: 2024-13-45", "1: 2", "a: &a {b: *a}"])
def test_a_config_file_that_holds_no_settings_is_refused_in_one_sentence(tmp_path, content):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"c\.yaml") as caught:
        file_layer(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="does not exist"):
        file_layer(tmp_path / "other.yaml")


def test_an_empty_config_file_changes_nothing(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("")
    assert build(Toy, [file_layer(file)]) == (Toy(), {})


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("verb", VERBS)
def test_both_recipes_are_valid_and_every_key_of_theirs_arrives(verb, name):
    settings, origin = VERBS[verb](name)
    paths = {"prep": ("prep", "crops"), "pretrain": ("pretrain", "pcrlv2", "3d"), "finetune": ("finetune", "luna")}
    values = recipe(name, *paths.get(verb, verb.split()))
    assert values, "the recipe says nothing about this verb"
    dumped = dict(leaves(settings.model_dump()))
    for key, value in leaves(values):
        arrived = dumped[key]
        assert (list(arrived) if isinstance(arrived, tuple) else arrived) == value
        assert origin[key] == f"recipe {name}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_nothing_that_no_verb_reads(name):
    tree = recipe(name)
    assert tree.keys() == {"prep", "pretrain", "finetune"}
    assert tree["prep"].keys() <= KINDS.keys()
    assert tree["pretrain"].keys() == {"pcrlv2"}
    assert tree["pretrain"]["pcrlv2"].keys() == {"2d", "3d"}
    assert tree["finetune"].keys() == {"luna", "lits", "brats", "chest", "classify", "segment"}


def presets():
    """(preset, method, dimension) of all that every compared method is defined for."""
    for method in METHODS:
        for dim in find("method", method, METHODS).GROUPS if method != "pcrlv2" else ():
            yield from ((name, method, f"{dim}d") for name in PRESETS)


@pytest.mark.parametrize(("name", "method", "dim"), list(presets()))
def test_every_preset_is_valid_and_every_key_of_its_arrives(name, method, dim):
    settings, origin = pretrain_settings(method, "paper", dim, preset=name)
    values = preset(name, method, dim)
    assert values.keys() == {"learner", "train"}
    dumped = dict(leaves(settings.model_dump()))
    for key, value in leaves(values):
        arrived = dumped[key]
        assert (list(arrived) if isinstance(arrived, tuple) else arrived) == value
        assert origin[key] == f"preset {name}"
    assert settings.preset == name


def test_the_presets_hold_nothing_that_no_method_reads_and_pcrlv2_has_its_recipes():
    known = {(method, dim) for _, method, dim in presets()}
    assert {(m, d) for name in PRESETS for m, dims in preset(name).items() for d in dims} == known
    assert pretrain_settings("pcrlv2", "paper", "3d", preset="native")[0].preset is None
    with pytest.raises(ConfigError, match="matched, native"):
        pretrain_settings("genesis", preset="nativ")


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match="paper, released"):
        recipe("papper")


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("verb", VERBS)
def test_the_settings_that_a_run_writes_read_back_to_the_same_settings(verb, name, tmp_path):
    layers = {"prep": [set_layer(["pairs.pairs=3"])]}.get(verb, [set_layer(["train.lr=1e-7", "train.clip_norm=1"])])
    settings, _ = VERBS[verb](name, layers)
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(settings))
    assert VERBS[verb](None if verb != "prep" else name, [file_layer(file)])[0] == settings


def test_a_flag_overrides_a_variable_that_overrides_a_recipe_in_the_real_settings():
    layers = [
        environment_layer({"PCRL_TRAIN__LR": "0.5", "PCRL_TRAIN__BATCH": "7"}),
        ("flags", {"train": {"batch": 9}}),
    ]
    settings, origin = pretrain_settings(None, "paper", None, layers)
    assert (settings.train.lr, settings.train.batch, settings.train.epochs) == (0.5, 9, 240)
    sources = [origin[key] for key in ("train.lr", "train.batch", "train.epochs")]
    assert sources == ["environment", "flags", "recipe paper"]


def test_settings_are_frozen_and_every_key_of_theirs_is_listed():
    assert all_keys(Toy) == ["train.lr", "train.batch", "train.schedule", "widths", "on"]
    with pytest.raises(ValueError, match="frozen"):
        Toy().on = True
