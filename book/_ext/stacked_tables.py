"""On a phone each row of a table of class ``stack`` becomes a card; so cells name their columns.

The name stands in each cell but the first of its row, in a span that the style sheet shows on
narrow screens only.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def name_columns(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for table in doctree.findall(nodes.table):
        head = next(table.findall(nodes.thead), None)
        if head is None or "stack" not in table["classes"]:
            continue
        names = [entry.astext() for entry in head.findall(nodes.entry)]
        for row in next(table.findall(nodes.tbody)).findall(nodes.row):
            for name, cell in list(zip(names, row.children, strict=True))[1:]:
                if isinstance(text := next(iter(cell.children), None), nodes.paragraph):
                    text.insert(0, nodes.inline("", f"{name}: ", classes=["column-name"]))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", name_columns)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
