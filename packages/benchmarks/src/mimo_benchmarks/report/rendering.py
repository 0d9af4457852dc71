"""Render a report as Markdown and as one HTML file that loads nothing; all text is escaped."""

import html
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
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
thead th { vertical-align: bottom; text-wrap: balance }
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
.picture > summary { list-style: none; cursor: zoom-in }
.picture[open] > summary { cursor: zoom-out }
.picture span { font-size: .9rem; text-decoration: underline }
figure:has([open]) { grid-column: 1 / -1 }
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


TERMS = {
    "n": "how many inputs share a pass; for a MIMOFormer, the side of the grid of sequences that do.",
    "equal cost": "the plain network, one input per pass, whose multiply-adds per input come closest to those of the superposed "
    "network at the n that is named.",
    "thin": "the plain network as wide as one slot of the superposed network would be by itself.",
    "batch statistics": "BatchNorm normalises by the test batch at hand, as the paper evaluates, rather than by averages from "
    "training.",
    "speed-up": "inputs per second over those of the superposed network at its smallest n, measured side by side in one run.",
    "quartiles": "the range that the middle half of the timing rounds lies in.",
    "multiply-adds": "products of the convolutions and matrix products, per input; half of what is often called FLOPs.",
    "regrouping": "letting inputs share their passes with other inputs; in superposition some answers change.",
    "crosstalk": "what unbinding leaves of the other inputs of a pass: the share of the variance of one input's features they "
    "cause.",
}
"""Explanations of words; a page has those of the words that it uses."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of the report, as PNG."""

    file: str
    """File name, in the folder of report.md."""
    caption: str
    alt: str
    """What the figure shows, for those who do not see it."""
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

    def texts(self) -> list[str]:
        """Return all that the section says."""
        cells = [cell for row in self.rows for cell in row]
        return [*self.columns, *cells, *self.notes, *(picture.caption for picture in self.pictures)]


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it unchanged; underscores within a word need no escape."""
    return re.sub(r"([\\`*\[\]<>|&#$~])|(?<!\w)_|_(?!\w)", lambda found: "\\" + found[0], text)


def markdown_body(head: Sequence[str], sections: Sequence[Section], *, pictures: bool) -> str:
    """Render the report below its title: in Markdown with pictures, or for a terminal without pictures and escapes."""
    escape: Callable[[str], str] = escape_markdown if pictures else str
    parts = ["\n".join(f"{escape(line)}\n" for line in head)]
    for section in sections:
        parts += [
            f"## {escape(section.heading)}\n",
            markdown_table(
                list(map(escape, section.columns)),
                [list(map(escape, row)) for row in section.rows],
                left=TEXT_COLUMNS,
            ),
            "\n".join(f"- {escape(note)}" for note in section.notes) + "\n",
        ]
        parts += [f"![{escape(picture.caption)}]({picture.file})\n" for picture in section.pictures if pictures]
    return "\n".join(parts)


def html_page(title: str, head: Sequence[str], sections: Sequence[Section], facts: Mapping[str, Mapping[str, str]]) -> str:
    """Render the HTML file: sections, the terms that they use, and the facts of each run (settings, versions) folded away."""
    said = " ".join(text for each in sections for text in each.texts())
    terms = {word: meaning for word, meaning in TERMS.items() if word in said}
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
{"".join(f"<p>{html.escape(line)}</p>" for line in head)}
{"".join(map(html_section, sections))}
<h2>Terms</h2>
{html_definitions(terms)}
<details><summary>Settings of each run</summary>
{"".join(html_facts(run, found) for run, found in facts.items())}
</details>
</html>
"""


def html_section(section: Section) -> str:
    """Render one task in HTML: heading, table with a heading row for each preset, notes and pictures."""

    def cell(name: str, value: str) -> str:
        text = html.escape(value) if name in TEXT_COLUMNS - {"device"} else html.escape(value).replace(" / ", " /<br>")
        return f'<td data-label="{html.escape(name)}"{TEXT_CLASS * (name in TEXT_COLUMNS)}>{text}</td>'

    def pictured(picture: Picture) -> str:
        caption, data = html.escape(picture.caption), b64encode(picture.content).decode()
        image = f'<img alt="{html.escape(picture.alt)}" src="data:image/png;base64,{data}">'
        enlarged = f'<details class="picture"><summary>{image}<span>enlarge or shrink</span></summary></details>'
        return f"<figure>{enlarged}<figcaption>{caption}</figcaption></figure>"

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
    return f"<details><summary>{html.escape(run)}</summary>{html_definitions(facts)}</details>\n"


def html_definitions(found: Mapping[str, str]) -> str:
    """Render words and what they mean in HTML."""
    return f"<dl>{''.join(f'<dt>{html.escape(word)}</dt><dd>{html.escape(text)}</dd>' for word, text in found.items())}</dl>"
