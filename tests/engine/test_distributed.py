"""Two gloo processes next to one. Both worlds are started once; each does several trainings."""

import json
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import multiprocessing
from toys import CPU, Game, Source, Toy, config, digests, losses, new_run, rows

from pcrl_cli.core.errors import ConfigError, MachineError, NumericalError, PcrlError, Preempted
from pcrl_cli.core.listener import Listener
from pcrl_cli.engine.distributed import World
from pcrl_cli.engine.run import Run, unseal
from pcrl_cli.engine.trainer import Trainer

RANKS = 2


class Hearing(Listener):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)

    warn = say


def make(folder: Path, world: World, learner=None, hook=None, listener=None, **changes) -> Trainer:
    """Rank 0 opens the folder and the others read what it made, as `pcrl pretrain` does."""
    source = Source(hook=hook, rank=world.rank, ranks=world.size)
    learner = learner or Toy(norm=False)
    return Trainer(
        learner,
        source,
        config(**changes),
        world.first(partial(new_run, folder), partial(Run.load, folder)),
        device=CPU,
        metadata=lambda step: {},
        world=world,
        listener=listener,
    )


def ended(t: Trainer) -> str:
    try:
        t.fit()
    except PcrlError as error:
        return type(error).__name__
    return "finished"


def at(step, number, rank, world):
    return lambda now: os.kill(os.getpid(), number) if now == step and world.rank == rank else None


def trainings(folder: Path, world: World) -> dict[str, str]:
    """What both worlds do; every outcome is compared by the tests below."""
    out = {"plain": ended(make(folder / "plain", world))}
    out["clipped"] = ended(make(folder / "clipped", world, clip_norm=0.1, optimiser="adam"))
    out["game"] = ended(make(folder / "game", world, NormlessGame()))
    out["blind game"] = ended(make(folder / "blind game", world, NormlessGame(), log_every=4))
    out["stopped"] = ended(make(folder / "stopped", world, hook=at(6, signal.SIGTERM, world.size - 1, world)))
    ear = Hearing()
    out["resumed"] = ended(make(folder / "stopped", world, listener=ear))
    out["heard"] = " ".join(ear.heard)
    t = make(folder / "poisoned", world, Poisoned(rank=world.size - 1 if world.rank == world.size - 1 else None))
    out["poisoned"] = ended(t)
    out["kept"] = json.dumps([float(p.detach().double().sum()) for p in t.learner.parameters()])
    t = make(folder / "timed", world, checkpoint_minutes=1.0, epochs=1, keep=9)
    if world.rank == 0:  # only one rank's clock says that a checkpoint is due
        t._due = lambda: t.step == 2
    out["timed"] = ended(t)
    t = make(folder / "collapsed", world, check_every=1, stop_on_collapse=True)
    if world.rank == 0:  # only one rank's features are at a point
        t.learner.linear[2].register_forward_hook(lambda m, i, o: o if torch.is_grad_enabled() else o * 0)
    out["collapsed"] = ended(t)
    return out


class NormlessGame(Game):
    def __init__(self) -> None:
        super().__init__()
        self.linear[1] = torch.nn.Identity()


class Poisoned(Toy):
    """One rank's loss is not a number at step 7."""

    def __init__(self, rank: int | None) -> None:
        super().__init__(norm=False)
        self.poison = lambda step, t: {
            k: v * (torch.nan if step == 7 and rank is not None else 1) for k, v in t.items()
        }


def work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.fsync = lambda handle: None
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    world = World.join(CPU)
    out = trainings(folder, world)
    # a disk of its own for every node: one rank finds a checkpoint and the other does not
    lonely = folder / f"lonely{rank}"
    t = make(lonely, World(), epochs=1)
    if rank == 0:
        t.fit()
    out["lonely"] = ended(make(lonely, world))
    order = folder / "first"
    out["first"] = world.first(lambda: str(order.mkdir()), lambda: str(order.is_dir()))
    try:
        world.first(refuse, lambda: "never")
    except PcrlError as error:
        out["refused"] = type(error).__name__
    World(world.rank, world.size).leave()  # one that did not begin the group leaves it alone
    out["still there"] = str(torch.distributed.is_initialized())
    world.leave()
    out["left"] = str(not torch.distributed.is_initialized())
    (folder / f"rank{rank}.json").write_text(json.dumps(out))
    os._exit(0)  # the interpreter's own teardown meets gloo's threads and aborts now and then (docs/LOG.md)


def refuse() -> str:
    raise ConfigError("no")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    """The folder and what each of two ranks said."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(work, (free_port(), folder), nprocs=RANKS)
    return folder, [json.loads((folder / f"rank{r}.json").read_text("utf-8")) for r in range(RANKS)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("one")
    return folder, trainings(folder, World())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Run.load(folder).newest(pytest.fail).model


@pytest.mark.parametrize("name", ["plain", "clipped", "game", "blind game", "resumed"])
def test_two_ranks_train_what_one_does_with_the_same_global_batch(both, alone, name):
    assert [said[name] for said in both[1]] == ["finished"] * 2
    folder = {"resumed": "stopped"}.get(name, name)
    mine, theirs = weights(alone[0] / folder), weights(both[0] / folder)
    assert any((mine[k] - v).abs().max() > 1e-3 for k, v in Toy().state_dict().items() if k in mine)
    for key, value in mine.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-5, atol=1e-5)


def test_logged_terms_are_of_the_whole_batch(both, alone):
    for one, two in zip(rows(alone[0] / "plain"), rows(both[0] / "plain"), strict=True):
        for key in ("step", "loss/agree", "loss/copy", "gradient_norm", "lr"):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6)


def test_only_one_rank_writes_and_talks(both):
    assert [row["step"] for row in rows(both[0] / "plain")] == list(range(20))
    assert not list(both[0].rglob("*.tmp"))
    assert both[1][0]["heard"] == "continuing at step 7 of 20"
    assert both[1][1]["heard"] == ""


def test_a_signal_to_one_rank_stops_both_after_the_same_step_and_saves_once(both):
    assert [said["stopped"] for said in both[1]] == ["Preempted"] * 2
    assert digests(both[0] / "stopped") == digests(both[0] / "plain")
    assert losses(both[0] / "stopped") == losses(both[0] / "plain")


def test_one_ranks_nan_stops_both_with_nothing_changed_and_both_batches_kept(both):
    assert [said["poisoned"] for said in both[1]] == ["NumericalError"] * 2
    assert both[1][0]["kept"] == both[1][1]["kept"]
    captures = both[0] / "poisoned/captures"
    assert sorted(p.name for p in captures.iterdir()) == ["step_000007", "step_000007_rank1"]
    assert unseal(both[0] / "poisoned/checkpoints/step_000007").state["step"] == 7
    assert [row["step"] for row in rows(both[0] / "poisoned")] == list(range(7))


def test_one_ranks_clock_decides_when_to_save(both):
    assert [said["timed"] for said in both[1]] == ["finished"] * 2
    assert [p.name for p in sorted((both[0] / "timed/checkpoints").iterdir())] == ["step_000003", "step_000005"]


def test_the_ranks_judge_a_collapse_together(both):
    assert len({said["collapsed"] for said in both[1]}) == 1


def test_ranks_that_do_not_see_the_same_checkpoints_are_told(both):
    assert [said["lonely"] for said in both[1]] == [MachineError.__name__] * 2


def test_the_other_ranks_begin_when_rank_0_is_done(both):
    assert [said["first"] for said in both[1]] == ["None", "True"]


def test_when_rank_0_refuses_the_others_end_too(both):
    assert [said["refused"] for said in both[1]] == ["ConfigError", "MachineError"]


def test_a_process_group_is_left_by_who_began_it(both):
    assert [(said["still there"], said["left"]) for said in both[1]] == [("True", "True")] * 2


def test_alone_the_first_is_the_only_one():
    assert World().first(lambda: 1, lambda: 2) == 1
    with pytest.raises(ConfigError):
        World().first(refuse, lambda: "never")


def test_a_world_of_one_joins_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert World.join(CPU) == World(0, 1)
    monkeypatch.delenv("WORLD_SIZE")
    assert World.join(CPU).talks


def test_the_errors_above_are_the_documented_ones():
    assert (Preempted.exit_code, NumericalError.exit_code, MachineError.exit_code) == (75, 5, 6)
