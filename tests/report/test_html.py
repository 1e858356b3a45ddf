"""The page parses, is one file, escapes what it is given, and is the same for the same report."""

import base64
import re
from html.parser import HTMLParser

import pytest

from pcrl_cli.core.errors import MachineError
from pcrl_cli.report.html import (
    PNG_SIGNATURE,
    Facts,
    Missing,
    Notes,
    Paragraph,
    Picture,
    Report,
    Section,
    Table,
    format_cell,
    render,
    write_report,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text; complains of tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def sample(title="LUNA, 10 % of the labels"):
    table = Table(
        ["method", "AUROC", "n"],
        [["TS", 0.7841, 1200], ["PCRLv2", None, 12], ["ours", Missing("one class only"), 3], ["x", float("nan"), 4]],
        caption="Test part",
        highlight=[2],
    )
    blocks = [
        Paragraph("Some text & more"),
        Facts({"AUROC": 0.91234, "CPM": Missing("candidates of 2 of 9 scans are missing"), "run": "runs/a<b"}),
        table,
        Picture(PNG_SIGNATURE + b"123", 'a "curve"'),
        Picture(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "drawn"),
        Notes(["look <here>"], "warning"),
        Notes([]),
    ]
    return Report(title, "made of nothing", [Section("One", blocks), Section("Two", []), Section("Three", [])])


def test_the_page_parses_and_every_tag_closes_in_order():
    page = Page(render(sample()))
    assert [a["id"] for a in page.named("section")] == ["s1", "s2", "s3"]
    assert [a["href"] for a in page.named("a")] == ["#s1", "#s2", "#s3"]
    assert any(m.get("content", "").startswith("width=device-width") for m in page.named("meta"))


def test_the_page_needs_no_network_and_runs_no_script():
    text = render(sample())
    assert re.search(r"https?:|//[a-z]|@import|url\(", text) is None
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert all(a["src"].startswith("data:image/") for a in page.named("img"))
    assert any("default-src 'none'" in m.get("content", "") for m in page.named("meta"))


@pytest.mark.parametrize("where", ["title", "subtitle", "heading", "text", "name", "cell", "caption", "note", "reason"])
def test_markup_in_any_text_is_escaped(where):
    evil = '<script>alert("1")</script>'
    t = {where: evil}
    blocks = [
        Paragraph(t.get("text", "")),
        Facts({t.get("name", "a"): Missing(t.get("reason", ""))}),
        Table(["h"], [[t.get("cell", "")], [Missing(t.get("reason", ""))]], caption=t.get("caption", "")),
        Picture(PNG_SIGNATURE, t.get("caption", "")),
        Notes([t.get("note", "")]),
    ]
    text = render(Report(t.get("title", ""), t.get("subtitle", ""), [Section(t.get("heading", ""), blocks)]))
    assert "<script" not in text
    assert evil in "".join(Page(text).words)


def test_missing_values_print_as_a_dash_with_the_reason():
    page = Page(render(sample()))
    words = " ".join(" ".join(page.words).split())
    assert "– (candidates of 2 of 9 scans are missing)" in words
    for number, reason in (("1", "not available"), ("2", "one class only"), ("3", "not a finite number")):
        assert f"– {number}" in words
        assert reason in words
    assert "nan" not in words.lower().split()


def test_a_reason_is_listed_once_however_many_cells_lack_it():
    rows = [[Missing("too few"), Missing("too few")], [Missing("other"), Missing("too few")]]
    page = Page(render(Report("t", "s", [Section("x", [Table(["a", "b"], rows)])])))
    assert page.words.count("too few") == 1
    assert [w for w in page.words if w in "12"] == ["1", "1", "2", "1"]


def test_number_columns_are_aligned_and_chosen_rows_set_off():
    page = Page(render(sample()))
    assert [a.get("class") for a in page.named("th")] == [None, "number", "number"]
    assert [a.get("class") for a in page.named("tr")] == [None, None, None, "highlight", None]


def test_pictures_are_inlined_byte_for_byte():
    png, svg = (a["src"] for a in Page(render(sample())).named("img"))
    assert base64.b64decode(png.removeprefix("data:image/png;base64,")) == PNG_SIGNATURE + b"123"
    assert base64.b64decode(svg.removeprefix("data:image/svg+xml;base64,")).startswith(b"<svg")
    assert Page(render(sample())).named("img")[0]["alt"] == 'a "curve"'


def test_numbers_are_printed_as_people_read_them():
    assert format_cell(0.78412) == "0.784"
    assert format_cell(0.78412, 1) == "0.8"
    assert format_cell(1234567) == "1,234,567"
    assert format_cell(1e-5) == "1e-05"
    assert format_cell(0.0) == "0.000"
    assert format_cell(True) == "yes"
    assert format_cell(None) == format_cell(Missing("x")) == format_cell(float("inf")) == "–"


def test_equal_reports_give_equal_files_and_no_leftovers(tmp_path):
    for name in ("a.html", "deep/er/a.html"):
        write_report(tmp_path / name, sample())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "deep/er/a.html").read_bytes()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.html", "a.html"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_report(tmp_path / "r.html", sample("old"))
    before = (tmp_path / "r.html").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MachineError, match=r"r\.html \(No space left on device\)"):
        write_report(tmp_path / "r.html", sample("new"))
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert (tmp_path / "r.html").read_bytes() == before


def test_a_folder_that_is_a_file_is_a_machine_error(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        write_report(tmp_path / "x" / "r.html", sample())
