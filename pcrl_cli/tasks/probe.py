"""How good are frozen features? k nearest neighbours and a linear probe."""

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from pcrl_cli.core.config import Settings
from pcrl_cli.core.errors import DataError
from pcrl_cli.pure.metrics import auroc


class Config(Settings):
    k: int = Field(20, ge=1, description="neighbours, by cosine similarity")
    c: float = Field(1.0, gt=0, description="inverse strength of the linear probe's L2 penalty")


def probe(
    train: Float[np.ndarray, "n c"],
    train_label: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m c"],
    test_label: Int[np.ndarray, " m"],
    config: Config,
) -> dict[str, float | None]:
    """AUROC on the test features by k-NN (cosine, distance-weighted) and by logistic regression on standardised features.

    Raises:
        DataError: the training features have one class only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler, normalize

    if len(np.unique(train_label)) < 2:
        raise DataError("the training part has labels of one class only, so nothing can be probed; prepare more scans")
    if len(test_label) == 0:
        return {"knn_auroc": None, "linear_auroc": None}
    knn = KNeighborsClassifier(min(config.k, len(train_label)), weights=_similarity)
    knn.fit(normalize(train), train_label)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=config.c, max_iter=2000))
    linear.fit(train, train_label)
    return {
        "knn_auroc": auroc(test_label, knn.predict_proba(normalize(test))[:, 1]),
        "linear_auroc": auroc(test_label, linear.decision_function(test)),
    }


def probe_findings(
    train: Float[np.ndarray, "n c"],
    train_label: Int[np.ndarray, "n k"],
    test: Float[np.ndarray, "m c"],
    test_label: Int[np.ndarray, "m k"],
    config: Config,
) -> dict[str, float | None]:
    """The same for several findings at once: the mean over those that have both classes in both parts.

    Labels of -1 are not known and left out of their finding.
    """
    found: dict[str, list[float]] = {"knn_auroc": [], "linear_auroc": []}
    for k in range(train_label.shape[1]):
        y, z = train_label[:, k], test_label[:, k]
        if all((a == b).any() for a in (y, z) for b in (0, 1)):
            one = probe(train[y >= 0], y[y >= 0], test[z >= 0], z[z >= 0], config)
            for name, values in found.items():
                value = one[name]
                if value is not None:
                    values.append(value)
    return {name: float(np.mean(values)) if values else None for name, values in found.items()}


def _similarity(distance: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "m k"]:
    """exp(cos / 0.07) of unit vectors at a Euclidean distance (Wu et al. 2018's weights)."""
    return np.exp((1 - distance**2 / 2) / 0.07)
