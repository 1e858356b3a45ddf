"""A table of methods as curves, LaTeX and CSV."""

import pytest

from pcrl_cli.report.comparison import Entry, as_csv, efficiency_curves, latex, percent

DONE = Entry(0.766, 0.004, 0.75, 0.78, (0.762, 0.77), 2)
ONE = Entry(0.7, None, None, None, (0.7,), 2)
NONE = Entry(None, None, None, None, (), 2)
FAILED = Entry(None, None, None, None, (), 2, failed="not finite")
ENTRIES = {"TS": {0.1: ONE, 0.2: NONE}, "A_&b": {0.1: DONE, 0.2: FAILED}}


@pytest.mark.parametrize(("entry", "text"), [(DONE, "76.6 ± 0.4"), (ONE, "70.0 (1/2)"), (NONE, "–"), (FAILED, "fail")])
def test_a_cell_says_what_it_holds(entry, text):
    assert entry.text() == text


def test_latex_sets_off_the_best_of_a_column_and_escapes_names():
    text = latex(ENTRIES, [0.1, 0.2], "50 % of it", {"TS": {0.1: 78.4}})
    assert "\\textbf{76.6 $\\pm$ 0.4}" in text
    assert "TS & 70.0 (1/2) & --" in text
    assert "A\\_\\&b" in text
    assert "50 \\% of it" in text
    assert "printed & \\textcolor{gray}{78.4} & " in text
    assert text.count("\\textbf") == 1


def test_an_entry_of_some_of_the_seeds_is_not_the_best():
    lucky = Entry(0.9, None, None, None, (0.9,), 2)
    text = latex({"lucky": {0.1: lucky}, "whole": {0.1: DONE}}, [0.1], "", {})
    assert "lucky & 90.0 (1/2)" in text
    assert "\\textbf{76.6" in text


def test_csv_has_a_row_a_method_and_ratio_with_every_seed():
    rows = as_csv(ENTRIES).decode().splitlines()
    assert rows[0].startswith("method,ratio,mean,sd,low,high,seeds,asked for,failed,values")
    assert rows[3] == "A_&b,0.1,0.766,0.004,0.75,0.78,2,2,,0.762 0.77"
    assert rows[4] == "A_&b,0.2,,,,,0,2,not finite,"


def test_curves_are_drawn_also_where_little_is_done():
    for entries in (ENTRIES, {}, {"TS": {0.1: NONE}}):
        assert efficiency_curves(entries, "AUROC", {"TS": {0.1: 78.4}}).startswith(b"\x89PNG")
    assert efficiency_curves(ENTRIES, "AUROC", {}) == efficiency_curves(ENTRIES, "AUROC", {})


def test_shares_are_percents():
    assert [percent(r) for r in (0.05, 0.1, 1.0)] == ["5 %", "10 %", "100 %"]
