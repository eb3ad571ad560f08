"""The frame of every HTML report: one file with its style and pictures inside."""

import base64
from collections.abc import Sequence
from html import escape

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .6rem 0 } td, th { padding: .2rem .9rem .2rem 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.ok { color: #176b2c } .bad { color: #a4161a } .verdict { font-weight: 600 }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem }
figure { margin: 0; border: 1px solid #ddd; border-radius: 4px; padding: .5rem }
figure img { height: 7rem; margin-right: .3rem } figcaption { font-size: .8rem; overflow-wrap: anywhere }
img.plot { max-width: 100% }
"""


def html_page(title: str, body: str) -> str:
    """Compose a page.

    The title is plain text, the body HTML.
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], classes: Sequence[str] = ()) -> str:
    """An HTML table of plain values; numbers are aligned to the right.

    `classes` has the CSS class of each row, such as `bad`.
    """
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    lines = [
        f'<tr class="{kind}">{"".join(map(_cell, row))}</tr>'
        for row, kind in zip(rows, classes or [""] * len(rows), strict=True)
    ]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _cell(value: object) -> str:
    number = ' class="n"' if isinstance(value, int | float) else ""
    return f"<td{number}>{escape(str(value))}</td>"


def image_url(content: bytes, kind: str) -> str:
    """A data URL for `<img src>`.

    The kind is png or jpeg.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
