"""What a command prints: the result on stdout, all else on stderr; and how errors become exit codes."""

import functools
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from pcrl_cli.core.errors import MachineError, PcrlError, Preempted, UsageError
from pcrl_cli.core.listener import Listener

P = ParamSpec("P")
LINE_SECONDS = 30.0
INTERRUPTED = 130


class Stdout(Console):
    """Leaves a closed pipe to `errors`, where rich would end the program with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def stderr() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


class Bars(Listener):
    """Bars with the time left on a terminal; elsewhere one line every 30 seconds; verbose: a line at every advance."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.console, self.quiet, self.verbose = stderr(), quiet and not verbose, verbose
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.what, self.total, self.unit, self.printed = "", 0, "", 0.0

    def begin(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit, self.printed = what, total, unit, time.monotonic()
        if self.quiet or self.verbose or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self.progress = Progress(*columns, console=self.console, expand=True)
        self.task = self.progress.add_task(what, total=total, completed=done, figures="")
        self.progress.start()

    def advance(self, done: int, **figures: float | str) -> None:
        text = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in figures.items())
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=done, figures=text.replace("samples per second", "samples/s"))
        elif self.verbose or (not self.quiet and time.monotonic() - self.printed > LINE_SECONDS):
            self.printed = time.monotonic()
            self._print(f"{self.what}: {done} of {self.total} {self.unit}" + (f", {text}" if text else ""))

    def end(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def say(self, text: str) -> None:
        if not self.quiet:
            self._print(text)

    def detail(self, text: str) -> None:
        if self.verbose:
            self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}")

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False)


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def show(result: Any, *, as_json: bool, quiet: bool, rows: Mapping[str, Any], path: Path | None = None) -> None:
    """The result on stdout: one JSON object, or names and values with the path last; with -q the path alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0":
        return  # under torchrun one rank talks
    if as_json:
        print(json.dumps(result.to_json(), ensure_ascii=False))
        return
    if not quiet:
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, _text(value))
        Stdout(highlight=False).print(table)
    if path is not None:
        print(path)


def show_plan(plan: Any, as_json: bool, quiet: bool = False) -> None:
    """What `--dry-run` prints; with -q where the result would be."""
    rows = {"would": f"{plan.verb} into {plan.out}", "state": plan.state, **plan.figures}
    show(plan, as_json=as_json, quiet=quiet, rows=rows, path=plan.out if quiet else None)


def _text(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        pairs = (f"{str(k).replace('_', ' ')} {_short(v) if isinstance(v, float) else v}" for k, v in value.items())
        return escape(", ".join(pairs))
    if isinstance(value, list | tuple):
        return escape(", ".join(map(str, value))) or "-"
    return escape(str(value))


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors end in one sentence on stderr and the documented exit code.

    With -v it also says on what it runs and, when it is over, how long it took.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        with errors(bool(kwargs.get("debug"))), _told(bool(kwargs.get("verbose")), bool(kwargs.get("quiet"))):
            function(*args, **kwargs)

    return guarded


@contextmanager
def _told(verbose: bool, quiet: bool) -> Iterator[None]:
    """What -v says of any command, on stderr.

    Raises:
        UsageError: -q too.
    """
    if not verbose:
        yield
        return
    if quiet:
        raise UsageError("-q asks for less and -v for more; give one of them")
    began = time.monotonic()
    stderr().print(_environment(), markup=False)
    try:
        yield
    finally:
        stderr().print(f"took {time.monotonic() - began:.1f} s", markup=False)


def _environment() -> str:
    """Versions and cores, without importing what the command may not need."""
    from importlib.metadata import PackageNotFoundError, version

    from pcrl_cli import __version__

    found = [f"pcrl {__version__}", f"Python {platform.python_version()}"]
    for name in ("torch", "numpy", "simpleitk"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return f"{', '.join(found)}, {platform.system()}, {os.cpu_count()} cores"


@contextmanager
def errors(debug: bool) -> Iterator[None]:
    old = _listen_to_sigterm()
    try:
        yield
        sys.stdout.flush()
    except typer.Exit:
        raise
    except PcrlError as error:
        _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is kept, run the same command again to go on", INTERRUPTED, debug)
    except BrokenPipeError:
        _silence_stdout()
        raise typer.Exit(0) from None
    except MemoryError:
        _fail("not enough memory; use a smaller --batch, --width or --jobs", MachineError.exit_code, debug)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            _fail("not enough GPU memory; use a smaller --batch or --width", MachineError.exit_code, debug)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            _fail(f"cannot use {error.filename}: {error.strerror.lower()}", MachineError.exit_code, debug)
        text = f"{type(error).__name__}: {str(error)[:200]}"
        _fail(f"this is a bug in pcrl, sorry: {text}; run again with --debug and report what it prints", 1, debug)
    finally:
        if old is not None:
            signal.signal(signal.SIGTERM, old)


def _listen_to_sigterm() -> Any:
    """SIGTERM, which schedulers send, ends a command as Ctrl-C does, with 75; training has its own, gentler way."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted("stopped by a signal; what was finished is kept, run the same command again to go on")

    try:
        return signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: signals are somebody else's
        return None


def _fail(text: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    stderr().print(f"pcrl: {text}", markup=False)
    raise typer.Exit(code) from None


def _silence_stdout() -> None:
    """The reader of the pipe has gone; Python's last flush must not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def choice(name: str, value: str, known: tuple[str, ...]) -> Any:
    """A word out of a few.

    Raises:
        UsageError: another word.
    """
    if value not in known:
        raise UsageError(f"{name} is one of {', '.join(known)}, not {value!r}")
    return value


def given(**values: Any) -> dict[str, Any]:
    """The flags that were typed."""
    return {name: value for name, value in values.items() if value is not None}


def layers(config: Path | None, sets: list[str] | None, flags: dict[str, Any]) -> list[Any]:
    """--config, environment, --set and flags, in the order in which they override each other."""
    from pcrl_cli.core.config import environment_layer, file_layer, set_layer

    return [*([file_layer(config)] if config else []), environment_layer(), set_layer(sets or []), ("flags", flags)]


def training(
    epochs: int | None, steps: int | None, batch: int | None, precision: str | None, seed: int | None, keep: int | None
) -> dict[str, Any]:
    """The training options that were typed, as settings.

    Raises:
        UsageError: --epochs and --steps together.
    """
    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps are two ways to say one thing; give one of them")
    values = given(epochs=epochs, steps=steps, batch=batch, precision=precision, seed=seed, keep=keep)
    return values | ({"steps": None} if epochs is not None else {})  # a recipe's or a file's steps give way


def outcome(values: dict[str, Any]) -> dict[str, Any]:
    """How a training ended, as rows."""
    rows = {
        "steps": values["steps"],
        "minutes": values["seconds"] / 60,
        "samples a second": values["samples_per_second"],
        "waiting for data": f"{100 * values['data_wait']:.1f} % of the time",
        "last losses": values["last"],
    }
    return rows | ({"alarms": "; ".join(values["alarms"])} if values["alarms"] else {})


def estimate(e: Any) -> str:
    """A value with its interval, or a dash and the reason."""
    if e.value is None:
        return f"- ({e.reason})"
    if e.low is None:
        return f"{e.value:.4f}" + (f" (no interval: {e.reason})" if e.reason else "")
    return f"{e.value:.4f} (95 %: {e.low:.4f} to {e.high:.4f}, {e.interval})"
