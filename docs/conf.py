"""The docs site: `make docs` builds it from this folder with Sphinx, MyST and the furo theme."""

import re

from pygments.lexers.special import TextLexer

import trl_knapsack


project = "trl_knapsack"
author = "The trl_knapsack authors"
copyright = "The trl_knapsack authors"
version = release = trl_knapsack.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"trl_knapsack {release}"
pygments_style = "default"
pygments_dark_style = "github-dark"
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 4  # the anchors that GitHub gives headings, so that links work there and here

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types are in the docstrings, with shapes
autodoc_mock_imports = ["pymoo"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False
default_role = "literal"


def adapt_links(app, docname: str, source: list[str]) -> None:
    """Pages link as GitHub reads them; here a link named after a page shows its title, and a page outside is a file."""
    source[0] = re.sub(r"\[[\w/]+\.md\]\((\w+\.md(?:#[\w-]+)?)\)", r"[](\1)", source[0])
    source[0] = re.sub(r"\]\((\.\./[^)#\s]+\.md)(#[^)\s]*)?\)", r"](path:\1)", source[0])


def docstring_to_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are Markdown, as in TRL and transformers; autodoc reads reStructuredText."""
    text = "\n".join(lines)
    text = re.sub(r"^( *)```(\w+)\n(.*?)^\1```$", _code_block, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\[`(~?)([\w.]+)`\]\([^)]*\)", _reference, text)
    text = re.sub(r"\[`(~?)([\w.]+)`\]", _reference, text)
    text = re.sub(r"\[([^\]`\n]+)\]\((http[^)\s]+)\)", r"`\1 <\2>`__", text)
    lines[:] = text.split("\n")


def _reference(match: re.Match) -> str:
    short, name = match.groups()
    return f":py:obj:`{short}{name if '.' in name else '.' + name}`"  # a leading dot finds the name in any module


def _code_block(match: re.Match) -> str:
    indent, language, code = match.groups()
    language = "pycon" if code.lstrip().startswith(">>>") else language
    block = "\n".join(f"    {line}".rstrip() for line in code.split("\n"))
    return f"{indent}.. code-block:: {language}\n\n{block}"


def setup(app) -> None:
    app.add_lexer("txt", TextLexer)
    app.connect("source-read", adapt_links)
    app.connect("autodoc-process-docstring", docstring_to_rst, priority=400)  # before napoleon
