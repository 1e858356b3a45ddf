"""The words and tables of a report as Markdown, for notes and pull requests; pictures stay in the page."""

from collections.abc import Iterator, Sequence

from pcrl_cli.report.html import Block, Facts, Notes, Paragraph, Picture, Report, Table, format_cell


def markdown(report: Report) -> str:
    """A heading a section, pipes for tables; a row that is set off is bold."""
    lines = [f"# {report.title}", "", report.subtitle, ""]
    for section in report.sections:
        blocks = [line for block in section.blocks for line in _block(block)]
        lines += [f"## {section.heading}", "", *blocks] if blocks else []
    return "\n".join(lines)


def _block(block: Block) -> Iterator[str]:
    match block:
        case Paragraph(text):
            yield from (text, "")
        case Facts(values, digits):
            yield from (*(f"- {name}: {format_cell(value, digits)}" for name, value in values.items()), "")
        case Table():
            yield from _table(block)
        case Notes(items, _):
            yield from (*(f"- {item}" for item in items), *([""] if items else []))
        case Picture():
            return


def _table(table: Table) -> Iterator[str]:
    yield from ([table.caption, ""] if table.caption else [])
    yield _row(table.header)
    yield _row(["---"] * len(table.header))
    for i, row in enumerate(table.rows):
        cells = [_escaped(format_cell(cell, table.digits)) for cell in row]
        yield _row([f"**{cells[0]}**", *cells[1:]] if i in table.highlight else cells)  # bold numbers are the best ones
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
