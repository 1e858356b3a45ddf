"""The promises of docs/reliability.md under fire; `make soak` does it at full length and writes the page's table."""

import os

import pytest

from benchmarks.reliability.__main__ import BEGIN, END, table, write
from benchmarks.reliability.promises import PROMISES, by_tests, counted
from benchmarks.reliability.workshop import Promise, Workshop

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="trials are forked")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop.open(tmp_path_factory.mktemp("soak"))


@pytest.mark.soak
@pytest.mark.timeout(14400)
@pytest.mark.parametrize("name", PROMISES)
def test_every_promise_is_kept_in_every_trial(shop, name):
    promise = PROMISES[name](shop)
    assert promise.failures == []


def test_the_table_goes_between_the_marks_and_nothing_else_changes(tmp_path):
    page = tmp_path / "p.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    facts = {"date": "2026-01-02", "minutes": 1.0, "machine": "a toaster"}
    promise = Promise("exact resume", "0 differing bytes", 3, ["trial 1: differs"], "a note")
    write(page, {"exact_resume": vars(promise) | facts})
    text = page.read_text("utf-8")
    assert text.startswith(f"before\n{BEGIN}\n| promise |")
    assert "| exact resume | 0 differing bytes | 3 | 1 | 2026-01-02 | 1.0 | a note |" in text
    assert "Machine: a toaster." in text
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert table({}).startswith("| promise | target |")


def test_lines_of_what_was_not_tried_stay(tmp_path):
    page = tmp_path / "p.md"
    page.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    facts = {
        "target": "t",
        "trials": 3,
        "failures": [],
        "date": "2026-01-02",
        "minutes": 1.0,
        "note": "n",
        "machine": "m",
    }
    write(page, {"a": facts | {"name": "first"}, "b": facts | {"name": "second"}})
    write(page, {"b": facts | {"name": "second", "trials": 9, "machine": "another"}})
    text = page.read_text("utf-8")
    assert text.count("| promise |") == 1
    assert "| first | t | 3 |" in text
    assert "| second | t | 9 |" in text
    assert "Machine: another; m." in text


def test_tests_count_as_trials_and_their_failures_are_named(shop):
    assert counted("..F\n3 failed, 41 passed, 2 skipped, 1 error in 3.0s") == {
        "passed": 41, "failed": 3, "skipped": 2, "errors": 1,
    }  # fmt: skip
    good = by_tests("g", "t", "what", "readers/test_headers.py")(shop)
    assert good.trials > 40
    assert good.failures == []
    none = by_tests("n", "t", "what", "readers/no_such_file.py")(shop)
    assert none.trials == 0
    assert none.failures != []
