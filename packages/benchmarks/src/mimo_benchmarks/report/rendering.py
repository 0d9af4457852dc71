"""Render a report as Markdown and as one HTML file that loads nothing; all text is escaped."""

import html
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from vsa_core.hub.markdown import markdown_table

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 72rem; margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h1, h2 { line-height: 1.2 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #8886; text-align: right; vertical-align: top }
thead th { vertical-align: bottom }
td { white-space: nowrap }
th.name, td.name { text-align: left }
tr > [colspan] { padding-top: 1rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
figure { margin: 1rem 0 }
img { width: 100%; background: white }
figcaption, dt { font-size: .9rem; opacity: .8 }
dd { margin: 0 0 .5rem; font-size: .9rem }
ul { padding-left: 1.2rem }
details details { margin: .5rem 0 .5rem 1rem }
@media (prefers-color-scheme: dark) { img { filter: invert(.93) hue-rotate(180deg) } }
@media (max-width: 45rem) {
  table, tbody, tr, th { display: block }
  thead, td:empty { display: none }
  tr { padding: .4rem 0; border-bottom: 1px solid #8886 }
  th { border: 0 }
  td, th.name { padding: 0 }
  td { display: flex; justify-content: space-between; gap: 1rem; border: 0; white-space: normal }
  td::before { content: attr(data-label); opacity: .8; flex: none }
  td:first-child { font-weight: bold }
  td:first-child::before { content: none }
}
"""
TEXT_COLUMNS = {"preset", "model", "control", "device"}
"""Columns that hold words and are aligned left; the others hold numbers."""
TEXT_CLASS = ' class="name"'


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of the report, as PNG."""

    file: str
    """File name, in the folder of report.md."""
    caption: str
    content: bytes
    """The PNG file."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One task of the report: its table, the notes below it, and its figures."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    pictures: Sequence[Picture]


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it unchanged; underscores within a word need no escape."""
    return re.sub(r"([\\`*\[\]<>|&#$~])|(?<!\w)_|_(?!\w)", lambda found: "\\" + found[0], text)


def markdown_body(head: Sequence[str], sections: Sequence[Section], *, pictures: bool) -> str:
    """Render the report below its title in Markdown: with pictures for report.md, without for the terminal."""
    parts = ["\n".join(f"{escape_markdown(line)}\n" for line in head)]
    for section in sections:
        parts += [
            f"## {escape_markdown(section.heading)}\n",
            markdown_table(
                list(map(escape_markdown, section.columns)),
                [list(map(escape_markdown, row)) for row in section.rows],
                left=TEXT_COLUMNS,
            ),
            "\n".join(f"- {escape_markdown(note)}" for note in section.notes) + "\n",
        ]
        parts += [f"![{escape_markdown(picture.caption)}]({picture.file})\n" for picture in section.pictures if pictures]
    return "\n".join(parts)


def html_page(title: str, head: Sequence[str], sections: Sequence[Section], facts: Mapping[str, Mapping[str, str]]) -> str:
    """Render the HTML file; the facts of each run (settings, cost, versions) are folded away at its end."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
{"".join(f"<p>{html.escape(line)}</p>" for line in head)}
{"".join(map(html_section, sections))}
<details><summary>Settings of each run</summary>
{"".join(html_facts(run, found) for run, found in facts.items())}
</details>
</html>
"""


def html_section(section: Section) -> str:
    """Render one task in HTML: heading, table with a heading row for each preset, notes and pictures."""

    def cell(name: str, value: str) -> str:
        return f'<td data-label="{html.escape(name)}"{TEXT_CLASS * (name in TEXT_COLUMNS)}>{html.escape(value)}</td>'

    def pictured(picture: Picture) -> str:
        caption, data = html.escape(picture.caption), b64encode(picture.content).decode()
        return f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'

    grouped = section.columns[0] == "preset"
    columns = section.columns[grouped:]
    rows = []
    for preset, members in groupby(section.rows, key=lambda row: row[0] if grouped else ""):
        heading = f'<tr><th class="name" colspan="{len(columns)}">{html.escape(preset)}</th></tr>\n'
        rows += [heading] * grouped + ["<tr>" + "".join(map(cell, columns, row[grouped:])) + "</tr>\n" for row in members]
    names = [f"<th{TEXT_CLASS * (name in TEXT_COLUMNS)}>{html.escape(name)}</th>" for name in columns]
    return f"""<h2>{html.escape(section.heading)}</h2>
<div class="scroll"><table><thead><tr>{"".join(names)}</tr></thead><tbody>
{"".join(rows)}</tbody></table></div>
<ul>{"".join(f"<li>{html.escape(note)}</li>" for note in section.notes)}</ul>
<div class="pictures">{"".join(map(pictured, section.pictures))}</div>
"""


def html_facts(run: str, facts: Mapping[str, str]) -> str:
    """Render the facts of one run in HTML, folded away under its name."""
    told = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    return f"<details><summary>{html.escape(run)}</summary><dl>{told}</dl></details>\n"
