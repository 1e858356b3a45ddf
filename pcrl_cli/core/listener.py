"""How long work tells what it is doing. The command line draws it; the Python API is silent by default."""


class Listener:
    """Does nothing; subclasses draw bars or print lines."""

    def begin(self, what: str, total: int, unit: str, done: int = 0) -> None:
        """A countable piece of work starts: `total` units, of which `done` are done already."""

    def advance(self, done: int, **figures: float | str) -> None:
        """`done` units in all are done; figures are shown beside the bar."""

    def end(self) -> None:
        """The piece of work is over, one way or another."""

    def say(self, text: str) -> None:
        """One line worth knowing."""

    def detail(self, text: str) -> None:
        """One line for who wants to know everything."""

    def warn(self, text: str) -> None:
        """One line that the user should act on or know of."""
