"""The promises of docs/reliability.md under fire; `make soak` does it at full length and writes the page's table."""

import os

import pytest

from benchmarks.reliability.__main__ import BEGIN, END, table, write
from benchmarks.reliability.promises import PROMISES
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
