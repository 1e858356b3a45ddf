"""Is it learning? Rank and spread of the features, and an alarm that three checks on end set off."""

from dataclasses import dataclass, field

from pcrl_cli.core.learner import Watched
from pcrl_cli.pure.spread import effective_rank, feature_std

CHECKS = 3
RANK_SHARE, RANK_FLOOR, STD_SHARE = 0.05, 2.0, 0.1


def thresholds(n: int, c: int, exported: bool = True) -> tuple[float, float]:
    """Below which rank and which std n features of c channels count as collapsed.

    Rank: 5 % of the directions that n centred vectors can fill, min(c, n - 1). For features that are exported, the
    encoder's, it is 2 at least, since features with a smaller effective rank vary along one line; a quarter of the
    directions where they are fewer than 8, since the two views of a sample should agree and then fill only half of
    them. A head's own v_i may vary along one line in a sound run: at the finest scales it does (docs/stability.md).
    Std: 0.1 / sqrt(c), a tenth of what spread-out features have.
    """
    directions = min(c, n - 1)
    floor = min(RANK_FLOOR, directions / 4) if exported else 0.0
    return max(floor, RANK_SHARE * directions), STD_SHARE / c**0.5


def measure(watched: dict[str, Watched]) -> dict[str, float]:
    """Of every named feature: rank/NAME and std/NAME, and the thresholds rank_min/NAME and std_min/NAME.

    std_after/NAME, where a batch norm lies between: an affine one can collapse by itself, its bias outgrowing its
    scale until all v point one way, while what comes in stays as spread out as ever.
    """
    figures: dict[str, float] = {}
    for name, features in watched.items():
        n, c = features.after.shape
        rank_min, std_min = thresholds(n, c, exported=features.after is features.before)
        figures[f"rank/{name}"] = float(effective_rank(features.after))
        figures[f"std/{name}"] = float(feature_std(features.before))
        if features.after is not features.before:
            figures[f"std_after/{name}"] = float(feature_std(features.after))
        figures |= {f"rank_min/{name}": rank_min, f"std_min/{name}": std_min}
    return figures


@dataclass
class CollapseWatch:
    """Counts checks on end in which a named feature looked collapsed."""

    low: dict[str, int] = field(default_factory=dict)

    @property
    def collapsed(self) -> list[str]:
        """The names of the features that have been low `CHECKS` times on end or more."""
        return [name for name, times in self.low.items() if times >= CHECKS]

    def judge(self, figures: dict[str, float]) -> list[str]:
        """Takes what `measure` found; a sentence for every feature that has now been low `CHECKS` times on end."""
        alarms = []
        for name in (key.removeprefix("rank/") for key in figures if key.startswith("rank/")):
            rank, rank_min = figures[f"rank/{name}"], figures[f"rank_min/{name}"]
            stds = [figures[key] for key in (f"std/{name}", f"std_after/{name}") if key in figures]
            std_min = figures[f"std_min/{name}"]
            low = not (rank >= rank_min and all(std >= std_min for std in stds))  # so that NaN is low
            self.low[name] = self.low.get(name, 0) + 1 if low else 0
            if self.low[name] == CHECKS:
                alarms.append(
                    f"the features {name} have collapsed: effective rank {rank:.2f} (alarm under {rank_min:.2f}), "
                    f"std {min(stds):.4f} (alarm under {std_min:.4f})"
                )
        return alarms
