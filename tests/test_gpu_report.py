"""`benchmarks.gpu` runs once, unattended, on a machine that is paid for: no section may lose what the others found."""

import time

import pytest
import torch

from benchmarks import gpu


@pytest.fixture
def bench(monkeypatch):
    """As on a GPU, without one."""
    for name, value in (("reset_peak_memory_stats", None), ("max_memory_allocated", 10**9), ("empty_cache", None)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    return gpu.Bench()


def good(bench):
    yield "what was found", "a number"


def bad(bench):
    yield "found before it failed", "another number"
    raise RuntimeError("out of memory\nand so on")


def slow(bench):
    yield "found before its time was over", "a third"
    time.sleep(30)


def test_a_section_that_fails_or_takes_too_long_loses_nothing(bench, monkeypatch):
    monkeypatch.setattr(gpu, "SECTIONS", {bad: 10, slow: 0.2, good: 10, gpu.targets: 10})
    pages = []
    page = gpu.report(bench, write=pages.append)
    for said in (
        "| found before it failed | another number |",
        "| bad | failed: RuntimeError: out of memory |",
        "| found before its time was over | a third |",
        "| slow | failed: Late: cut off after 0 s |",
        "| what was found | a number |",
        "| G9 end to end, bf16, five scales (300 pairs/s, aim 450) | not known: rate was not measured |",
    ):
        assert said in page
    assert len(pages) == 4
    assert "| found before it failed | another number |" in pages[0]
    assert all(text in page for text in ("Some GPU", torch.__version__, "peak memory of good | 1.0 GB"))


def test_what_no_longer_fits_into_the_minutes_is_said_and_the_targets_are_not_left_out(bench, monkeypatch):
    monkeypatch.setattr(gpu, "SECTIONS", {good: 10, gpu.targets: 10})
    bench.found.update({"rate": 320.0, "released": 150.0, "torchio 16": 200.0, "torchio 4": 50.0})
    page = gpu.report(bench, minutes=0)
    assert "| good | left out: 0 minutes were over |" in page
    assert "aim 2.5x) | 2.13x |" in page
    assert "aim 8x) | 6.40x |" in page


def test_all_sections_together_end_within_ten_minutes():
    """No section begins after nine minutes, none outlives them, and the last needs no GPU."""
    assert list(gpu.SECTIONS)[-1] is gpu.targets
    assert all(0 < limit <= 300 for limit in gpu.SECTIONS.values())
