"""One HTML file with its pictures inside: it can be mailed, and asks nothing of the network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from ..shards.files import write_atomic

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #d8dee4;
         overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; } td.best { font-weight: 700; }
td:not(:first-child), td small { white-space: nowrap; }
th.words, td.words { white-space: normal; text-align: left; }
small, .note { color: #57606a; }
.hint { display: none; color: #57606a; font-size: .9rem; }
img { display: block; max-width: 100%; height: auto; }
/* A figure's text is then as large as the page's. */
img.figure { width: calc(var(--inches) * 7rem); object-fit: contain; object-position: left; }
img.pixels { image-rendering: pixelated; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1rem; }
dt { color: #57606a; } dd { margin: 0; }
@media screen and (max-width: 40rem) {
  body { margin: 1rem auto; }
  th, td { padding: .35rem .5rem; font-size: .9rem; }
  /* A wide one would have words too small to read on a phone: it scrolls by itself. */
  img.figure { max-width: none; width: max(100%, calc(var(--inches) * 4.5rem)); }
  .hint { display: block; }
  td:not(:first-child) { white-space: normal; }
  td small { display: block; }
  dl { display: block; } dd { margin-bottom: .5rem; }
}
@media print {
  body { margin: 0; max-width: none; font-size: 10pt; }
  .scroll { overflow: visible; } th, td { padding: .2rem .4rem; }
  td small { display: block; }
  img.figure { width: calc(var(--inches) * 1in); max-height: 22cm; }
  img.pixels { max-height: 10.5cm; } /* two fit a page */
  h2 { break-after: avoid; } img, tr { break-inside: avoid; }
}
"""


_LONG = 30  # characters; a column with a cell of more is words, which may break
_HINT = '<p class="hint">What is wider than the screen scrolls sideways.</p>'


def write_page(path: Path, title: str, lead: str, parts: Iterable[str]) -> None:
    """Write the file: a title, a sentence under it, and parts that are HTML already."""
    text = "\n".join(parts)
    write_atomic(
        path,
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
            f"<h1>{escape(title)}</h1><p>{escape(lead)}</p>{_HINT}\n{text}\n</body></html>\n"
        ).encode(),
    )


def heading(text: str) -> str:
    """Return a section's heading."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """Return a paragraph in a quieter colour."""
    return f'<p class="note">{escape(text)}</p>'


def bullets(lines: Iterable[str]) -> str:
    """Return a list of lines of plain text."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def facts(values: Mapping[str, str]) -> str:
    """Return names and what they stand for, one under the other."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values.items())
    return f"<dl>{''.join(rows)}</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that scrolls by itself where it is too wide.

    A cell is plain text; what follows a "±" is set small, and a cell that ends with "*" is bold.
    A column with a long cell is one of words.
    """
    lines = [list(row) for row in rows]
    words = [any(len(cell) > _LONG for cell in column) for column in zip(*lines, strict=True)]
    words = words or [False] * len(head)
    kinds = (' class="words"' if is_words else "" for is_words in words)
    top = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, line, words))}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _cell(text: str, words: bool) -> str:
    best = text.endswith("*")
    value, plus, spread = escape(text.removesuffix("*")).partition("±")
    inner = f"{value}<small>±{spread}</small>" if plus else value
    kind = "best" if best else "words" if words else ""
    return f'<td class="{kind}">{inner}</td>' if kind else f"<td>{inner}</td>"


def picture(drawn: Figure | bytes, text: str, keep: Path, name: str) -> str:
    """Return a picture, its PNG embedded, and keep it as a file of the folder `keep` too.

    drawn: a figure, kept as NAME.png and NAME.svg; or a PNG, kept as it is and shown with hard
    pixels. text: what it shows, for those who cannot see it.
    """
    keep.mkdir(parents=True, exist_ok=True)
    if isinstance(drawn, bytes):
        png, kind, size = drawn, "pixels", ""
    else:
        png, kind = _render(drawn, "png"), "figure"
        size = f' style="--inches: {drawn.get_figwidth():g}"'
        write_atomic(keep / f"{name}.svg", _render(drawn, "svg"))
    write_atomic(keep / f"{name}.png", png)
    data = base64.b64encode(png).decode()
    image = f'<img class="{kind}"{size} alt="{escape(text)}" src="data:image/png;base64,{data}">'
    return f'<div class="scroll">{image}</div>'


def _render(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    # Without a date the same numbers give the same file.
    figure.savefig(buffer, format=kind, dpi=144, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
