"""One self-contained HTML page: no network, no script, no clock; equal reports give equal bytes.

A `Report` is data; `render` turns it into text and `write_report` puts that on disk in one move. All text is escaped
here, so that callers pass plain strings.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from math import isfinite
from pathlib import Path
from typing import Literal

from pcrl_cli.core.errors import MachineError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Missing:
    """A value that does not exist, and why; printed as a dash with the reason."""

    reason: str


Cell = str | int | float | Missing | None
"""None is a Missing whose reason nobody gave; so is a float that is not finite."""


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values, one a line."""

    values: Mapping[str, Cell]
    digits: int = 4


@dataclass(frozen=True)
class Table:
    """Columns that hold numbers only are aligned to the right.

    highlight: indices of the rows to set off, e.g. the reader's own runs.
    digits: decimals of the floats.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    highlight: Sequence[int] = ()
    digits: int = 3


@dataclass(frozen=True)
class Picture:
    """PNG or SVG bytes; the caption is also what a screen reader says."""

    image: bytes
    caption: str


@dataclass(frozen=True)
class Notes:
    """Remarks (`note`) or things to act on (`warning`). Without items nothing is printed."""

    items: Sequence[str]
    kind: Literal["note", "warning"] = "note"


Block = Paragraph | Facts | Table | Picture | Notes


@dataclass(frozen=True)
class Section:
    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    sections: Sequence[Section]


def write_report(path: Path, report: Report) -> None:
    """Writes the page to `path`, whole or not at all; missing folders are made.

    Raises:
        MachineError: the file cannot be written.
    """
    page = render(report).encode("utf-8")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise MachineError(
            f"The report cannot be written to {path} ({error.strerror}): free some space or name another path."
        ) from error


def render(report: Report) -> str:
    """The page as text."""
    sections = "\n".join(_section(i, s) for i, s in enumerate(report.sections, 1))
    links = "".join(f'<a href="#s{i}">{escape(s.heading)}</a>' for i, s in enumerate(report.sections, 1))
    contents = f"<nav>{links}</nav>\n" if len(report.sections) > 2 else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="pcrl">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(report.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><h1>{escape(report.title)}</h1>\n<p class="subtitle">{escape(report.subtitle)}</p></header>\n'
        f"{contents}{sections}\n</main>\n</body>\n</html>\n"
    )


def _section(number: int, section: Section) -> str:
    blocks = "\n".join(_block(b) for b in section.blocks)
    return f'<section id="s{number}">\n<h2>{escape(section.heading)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Facts(values, digits):
            rows = "".join(f"<dt>{escape(k)}</dt><dd>{_with_reason(v, digits)}</dd>\n" for k, v in values.items())
            return f"<dl>\n{rows}</dl>"
        case Table():
            return _table(block)
        case Picture(image, caption):
            text = escape(caption)
            return f'<figure><img src="{_data_uri(image)}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        case Notes(items, kind):
            lines = "".join(f"<li>{escape(item)}</li>" for item in items)
            return f'<ul class="{kind}">{lines}</ul>' if items else ""


def _table(table: Table) -> str:
    """Reasons of missing cells become numbered notes below the table, each reason once."""
    reasons: dict[str, int] = {}
    numeric = [_is_numeric([row[i] for row in table.rows]) for i in range(len(table.header))]
    align = [' class="number"' if n else "" for n in numeric]
    head = "".join(f'<th scope="col"{a}>{escape(h)}</th>' for h, a in zip(table.header, align, strict=True))
    body = []
    for i, row in enumerate(table.rows):
        cells = "".join(f"<td{a}>{_with_mark(c, table.digits, reasons)}</td>" for c, a in zip(row, align, strict=True))
        body.append(f'<tr class="highlight">{cells}</tr>' if i in table.highlight else f"<tr>{cells}</tr>")
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    rows = "\n".join(body)
    notes = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    below = f'<ol class="reasons">{notes}</ol>' if reasons else ""
    return (
        f'<div class="wide"><table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
        f"{below}"
    )


def format_cell(cell: Cell, digits: int = 3) -> str:
    """A cell as plain text: floats with so many decimals, large integers in groups of three, a dash for none."""
    match cell:
        case str():
            return cell
        case bool():
            return "yes" if cell else "no"
        case int():
            return f"{cell:,}"
        case float() if isfinite(cell):
            small = cell != 0 and abs(cell) < 10.0**-digits
            return f"{cell:.2g}" if small else f"{cell:,.{digits}f}"
        case _:
            return "–"


def _reason(cell: Cell) -> str | None:
    """Why a cell has no value; None for a cell that has one."""
    match cell:
        case None:
            return "not available"
        case Missing(reason):
            return reason
        case float() if not isfinite(cell):
            return "not a finite number"
        case _:
            return None


def _with_reason(cell: Cell, digits: int) -> str:
    reason = _reason(cell)
    text = escape(format_cell(cell, digits))
    return text if reason is None else f'{text} <span class="reason">({escape(reason)})</span>'


def _with_mark(cell: Cell, digits: int, reasons: dict[str, int]) -> str:
    reason = _reason(cell)
    text = escape(format_cell(cell, digits))
    if reason is None:
        return text
    number = reasons.setdefault(reason, len(reasons) + 1)
    return f'<span title="{escape(reason)}">{text}</span><sup>{number}</sup>'


def _is_numeric(column: Sequence[Cell]) -> bool:
    return bool(column) and not any(isinstance(cell, str) for cell in column)


def _data_uri(image: bytes) -> str:
    kind = "image/png" if image.startswith(PNG_SIGNATURE) else "image/svg+xml"
    return f"data:{kind};base64,{base64.b64encode(image).decode('ascii')}"


STYLE = """\
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5a6570; --line: #d5dade; --paper: #ffffff;
  --band: #f2f5f7; --own: #e3f0f8; --warn: #d55e00; --note: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8eb; --soft: #a0abb5; --line: #3a434b; --paper: #15191d;
  --band: #1f252b; --own: #1b3443; --warn: #ff9a52; --note: #6fb8e8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 940px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
p { max-width: 70ch; } .subtitle { color: var(--soft); margin: .3rem 0 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin-top: 1rem; font-size: .92rem; }
nav a { color: var(--note); text-decoration: none; } nav a:hover { text-decoration: underline; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .25rem 1.2rem; margin: .8rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin: .8rem 0 .3rem; }
table { border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { text-align: left; padding: .32rem .9rem .32rem .5rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; background: var(--band); } .number { text-align: right; }
td.number { white-space: nowrap; }
tr.highlight td { background: var(--own); font-weight: 600; }
.reason, .reasons { color: var(--soft); } .reasons { font-size: .85rem; margin: 0 0 1rem; padding-left: 1.4rem; }
figure { margin: 1rem 0 1.6rem; }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 4px; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .4rem; max-width: 80ch; }
ul.note, ul.warning { margin: .8rem 0; padding: .5rem .9rem .5rem 1.9rem; background: var(--band);
  border-left: 4px solid var(--note); }
ul.warning { border-left-color: var(--warn); }
@media (max-width: 560px) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --band: #f4f4f4;
  --own: #e8e8e8; --warn: #d55e00; --note: #0072b2; }
  body { font-size: 10.5pt; } nav { display: none; } main { max-width: none; padding: 0; }
  figure, tr, dl, ul { break-inside: avoid; } h2 { break-after: avoid; } .wide { overflow: visible; } }
"""
