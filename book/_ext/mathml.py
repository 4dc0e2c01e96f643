"""A Sphinx extension that turns the book's mathematics into MathML while it is built.

Browsers draw MathML by themselves, so the pages need neither a script nor a network. A command that
the converter does not know is a warning, which the build's ``-W`` makes an error.
"""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def to_mathml(latex: str, node: nodes.Element, display: str) -> str:
    """Convert LaTeX to one ``<math>`` element; ``display`` is ``"inline"`` or ``"block"``."""
    # The converter knows ``split``, which is the same thing within an equation.
    latex = re.sub(r"(\\(?:begin|end)\{)aligned\}", r"\1split}", latex)
    mathml = convert(latex, display=display)
    # A bar would stretch to the tallest thing beside it, its partner with an index would not.
    mathml = re.sub(r"<mo>(&#x02016;|&#x0007C;|\|)</mo>", r'<mo stretchy="false">\1</mo>', mathml)
    unknown = re.findall(r">(\\[A-Za-z]+|&)<", mathml)
    if "bold-italic" in mathml:  # which browsers no longer read
        unknown.append(r"\boldsymbol (write \mathbf)")
    if unknown:
        logger.warning("mathematics: no MathML for %s", ", ".join(unknown), location=node)
    return mathml


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate"))
    self.body.append(to_mathml(node.astext(), node, "inline") + "</span>")
    raise nodes.SkipNode


def visit_displaymath(self: HTML5Translator, node: nodes.math_block) -> None:
    latex = node.astext().strip()
    if r"\\" in latex and r"\begin{" not in latex:
        latex = r"\begin{split}" + latex + r"\end{split}"
    # Sphinx numbers the equation; an unstarred environment would number its rows a second time.
    latex = re.sub(r"(\\(?:begin|end)\{(?:align|gather))\}", r"\1*}", latex)
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    self.body.append(to_mathml(latex, node, "block"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(visit_math, None),
        block_renderers=(visit_displaymath, None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
