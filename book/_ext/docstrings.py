"""A Sphinx extension that reads Google-style sections (Args, Raises …) of functions and classes.

``sphinx.ext.napoleon`` would do, but it takes the docstring of an attribute for "type: description"
wherever there is a colon, and attributes here are described in plain sentences.
"""

from __future__ import annotations

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring


def read_sections(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, obj, options).lines()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", read_sections)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
