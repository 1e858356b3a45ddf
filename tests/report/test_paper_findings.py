"""The paper's numbers of single findings agree with the means that it prints, and stand beside a user's."""

import numpy as np
import pytest

from pcrl_cli.core.findings import NIH
from pcrl_cli.pure.findings import per_finding
from pcrl_cli.report.html import Missing
from pcrl_cli.report.paper_findings import PRINTED, findings_table
from pcrl_cli.report.paper_numbers import TABLES


@pytest.mark.parametrize("number", PRINTED)
def test_the_means_of_the_findings_are_the_printed_means(number):
    table = TABLES[number]
    assert {r for r, _ in PRINTED[number]} == set(table.ratios)
    for (ratio, method), values in PRINTED[number].items():
        assert len(values) == 14
        assert np.mean(values) == pytest.approx(table.values[method][table.ratios.index(ratio)], abs=0.11)


def scored(names):
    rng = np.random.default_rng(0)
    labels = (rng.random((60, len(names))) < 0.4).astype(np.int8)
    labels[:, -1] = 0
    return per_finding(labels, labels + rng.normal(size=labels.shape), names)


def test_rows_are_in_the_papers_order_with_its_columns_at_the_nearest_ratio():
    table = findings_table(scored([*NIH[::-1]]), 0.12)
    assert [row[0] for row in table.rows] == list(NIH)
    assert list(table.header[6:]) == [
        "TS, Table 4, 10 %", "PCRLv2, Table 4, 10 %", "TS, Table 6, 10 %", "IN, Table 6, 10 %", "PCRLv2, Table 6, 10 %",
    ]  # fmt: skip
    assert table.rows[13][6:] == [72.5, 82.4, 61.1, 65.9, 69.7]
    assert isinstance(table.rows[0][1], Missing)  # Atelectasis came last: no positive
    assert 50 < table.rows[1][1] < 100
    assert "12 %" in table.caption


def test_other_findings_stand_alone_in_their_own_order():
    table = findings_table(scored(["Fracture", "Edema"]), 1.0)
    assert [row[0] for row in table.rows] == ["Fracture", "Edema"]
    assert len(table.header) == 6
    assert "paper" not in table.caption
