"""Is it learning? Two statistics of the features, and an alarm that three checks on end set off."""

from dataclasses import dataclass, field

from pcrl_cli.core.learner import Watched
from pcrl_cli.pure.spread import effective_rank, feature_std

CHECKS = 3
RANK_SHARE, RANK_FLOOR, STD_SHARE = 0.05, 2.0, 0.1


def thresholds(n: int, c: int) -> tuple[float, float]:
    """Below which rank and which std n features of c channels count as collapsed.

    Rank: 5 % of the directions that n centred vectors can fill, min(c, n - 1), but at least 2: features with a
    smaller effective rank vary along one line. Std: 0.1 / sqrt(c), a tenth of what spread-out features have.
    """
    return max(RANK_FLOOR, RANK_SHARE * min(c, n - 1)), STD_SHARE / c**0.5


@dataclass
class CollapseWatch:
    """Counts checks on end in which a named feature looked collapsed."""

    low: dict[str, int] = field(default_factory=dict)

    def check(self, watched: dict[str, Watched]) -> tuple[dict[str, float], list[str]]:
        """The figures to log, and a sentence for every feature that has been low `CHECKS` times on end."""
        figures: dict[str, float] = {}
        alarms = []
        for name, features in watched.items():
            n, c = features.after.shape
            rank, std = float(effective_rank(features.after)), float(feature_std(features.before))
            rank_min, std_min = thresholds(n, c)
            figures |= {
                f"rank/{name}": rank,
                f"std/{name}": std,
                f"rank_min/{name}": rank_min,
                f"std_min/{name}": std_min,
            }
            low = not (rank >= rank_min and std >= std_min)
            self.low[name] = self.low.get(name, 0) + 1 if low else 0
            if self.low[name] == CHECKS:
                alarms.append(
                    f"the features {name} have collapsed: effective rank {rank:.2f} (alarm under {rank_min:.2f}), "
                    f"std {std:.4f} (alarm under {std_min:.4f})"
                )
        return figures, alarms
