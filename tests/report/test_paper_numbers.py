"""The printed numbers, spot by spot against the paper, and how they stand beside a user's own."""

import pytest

from pcrl_cli.core.errors import ConfigError
from pcrl_cli.report.html import Missing, Report, Section, Table, render
from pcrl_cli.report.paper_numbers import TABLES, TASKS, beside


def test_every_row_has_a_value_for_every_ratio():
    for number, table in TABLES.items():
        assert table.number == number
        assert list(table.ratios) == sorted(set(table.ratios))
        assert next(iter(table.values)) == "TS"
        assert list(table.values)[-1] == "PCRLv2"
        assert all(len(row) == len(table.ratios) for row in table.values.values())
    assert sorted(n for numbers in TASKS.values() for n in numbers) == sorted(TABLES)


def test_pcrlv2_leads_every_column_and_more_labels_help_it():
    for table in TABLES.values():
        assert all(max(column) == column[-1] for column in zip(*table.values.values(), strict=True))
        assert list(table.values["PCRLv2"]) == sorted(table.values["PCRLv2"])


PRINTED = [
    (5, "TS", 0.1, 78.4),
    (5, "PCRLv2", 0.4, 93.1),
    (7, "MG", 0.3, 79.6),
    (7, "TS", 0.4, 77.1),
    (8, "PCRLv1", 1.0, 93.7),
    (8, "PCRLv2", 0.2, 86.5),
    (4, "SimSiam", 0.2, 76.5),
    (6, "IN", 0.5, 79.5),
]


@pytest.mark.parametrize(("number", "method", "ratio", "value"), PRINTED)
def test_values_are_as_printed(number, method, ratio, value):
    table = TABLES[number]
    assert table.values[method][table.ratios.index(ratio)] == value


def test_brats_means_agree_with_the_classes_printed_beside_them():
    classes = {"PCRLv2": (77.7, 74.3, 67.2), "Cube++": (74.5, 70.6, 61.9), "TS": (71.2, 66.7, 62.1)}
    for method, values in classes.items():
        assert TABLES[7].values[method][0] == pytest.approx(sum(values) / 3, abs=0.14)


def test_own_numbers_stand_below_the_papers_times_hundred():
    header, rows, note, own = beside("luna", 0.1, {"pre-trained": 0.8123, "scratch": None})
    assert header == ["method", "source", "labels", "AUROC x 100"]
    assert rows[0] == ["TS", "paper, Table 5", "10 %", 78.4]
    assert [rows[i][0] for i in own] == ["pre-trained", "scratch"]
    assert rows[own[0]] == ["pre-trained", "this run", "10 %", pytest.approx(81.23)]
    assert isinstance(rows[own[1]][-1], Missing)
    assert "differ from the paper's" in note
    assert "nearest" not in note


@pytest.mark.parametrize(("ratio", "printed"), [(0.02, "10 %"), (0.24, "20 %"), (0.26, "30 %"), (1.0, "40 %")])
def test_the_nearest_printed_ratio_is_taken_and_said(ratio, printed):
    shown = beside("luna", ratio, {"a": 0.5})
    assert shown.rows[0][2] == printed
    assert f"the nearest printed ratio is {printed}" in shown.note


def test_chest_has_two_tables_and_unknown_ones_are_refused():
    assert "Table 4" in beside("chest", 0.1, {}).rows[0][1]
    assert beside("chest", 1.0, {}, table=6).rows[-1][-1] == 84.0
    with pytest.raises(ConfigError, match="choose from 4 and 6"):
        beside("chest", 0.1, {}, table=5)
    with pytest.raises(ConfigError, match="brats, chest, lits, luna"):
        beside("heart", 0.1, {})


def test_it_goes_into_a_report_as_it_is():
    header, rows, note, own = beside("lits", 0.1, {"ours": 0.7})
    text = render(Report("t", "s", [Section("x", [Table(header, rows, note, own, digits=1)])]))
    assert '<tr class="highlight"><td>ours</td><td>this run</td><td>10 %</td><td class="number">70.0</td>' in text
