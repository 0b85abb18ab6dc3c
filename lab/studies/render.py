"""A report as Markdown and as one HTML page that needs no other file and no network."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Report, Section
    from .tables import Table

STYLE = """
body { font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #222; background: #fff; max-width: 62rem;
       margin: 2.5rem auto 4rem; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; }
p { max-width: 46rem; margin: .6rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th { text-align: left; vertical-align: bottom; font-weight: 600; line-height: 1.3; border-bottom: 2px solid #555; }
th, td { padding: .4rem .8rem; }
th:first-child, td:first-child { padding-left: 0; }
td { border-bottom: 1px solid #e2e2e2; vertical-align: top; }
table.numbers th:not(:first-child), table.numbers td:not(:first-child) { text-align: right; }
table.numbers td { white-space: nowrap; }
table.numbers th:nth-child(2) { min-width: 4.6rem; }
.note { font-size: .86rem; color: #555; }
figure { margin: 1rem 0; }
figure svg { max-width: 100%; height: auto; }
pre { background: #f5f5f3; padding: .8rem 1rem; overflow-x: auto; font-size: .86rem; }
"""


def to_html(report: Report) -> str:
    """One page, plots and style inside."""
    title = html.escape(report.title)
    body = "\n".join(_html_section(section) for section in report.sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html_section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.heading)}</h2>"]
    parts += [f"<p>{_text(text)}</p>" for text in section.paragraphs]
    parts += [f"<figure>{svg}</figure>" for svg in section.figures.values()]
    if section.code:
        parts.append(f"<pre><code>{html.escape(section.code)}</code></pre>")
    parts += [_html_table(table) for table in section.tables]
    parts += [f'<p class="note">{_text(text)}</p>' for text in section.notes]
    return "\n".join(parts)


def _text(text: str) -> str:
    """Words between backticks are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    kind = ' class="numbers"' if table.numbers else ""
    return f'<div class="scroll"><table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def to_markdown(report: Report) -> str:
    """The same in Markdown; plots are files beside it."""
    parts = [f"# {report.title}"]
    for section in report.sections:
        parts += [f"## {section.heading}", *section.paragraphs]
        parts += [f"![{section.heading}]({name})" for name in section.figures]
        if section.code:
            parts.append(f"```\n{section.code}\n```")
        parts += [_markdown_table(table) for table in section.tables]
        parts += [f"*{text}*" for text in section.notes]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rule = "---:" if table.numbers else "---"
    rows = [table.header, ("---", *[rule] * (len(table.header) - 1)), *table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
