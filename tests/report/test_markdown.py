"""A report as Markdown."""

from pcrl_cli.report.html import Facts, Missing, Notes, Paragraph, Picture, Report, Section, Table
from pcrl_cli.report.markdown import markdown

TABLE = Table(["a", "b"], [["x|y", 0.12345], ["z", Missing("why")]], "caption", highlight=[0], digits=2)


def test_words_and_tables_are_there_and_pictures_are_not():
    blocks = [Paragraph("said"), TABLE, Facts({"cells": 3}), Notes(["noted"]), Picture(b"", "seen")]
    text = markdown(Report("Title", "under it", [Section("One", blocks), Section("Two", [Picture(b"", "seen")])]))
    assert text.splitlines() == [
        "# Title", "", "under it", "",
        "## One", "", "said", "",
        "caption", "", "| a | b |", "| --- | --- |", "| **x\\|y** | 0.12 |", "| z | – |", "",
        "- cells: 3", "", "- noted",
    ]  # fmt: skip
