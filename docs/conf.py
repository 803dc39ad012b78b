"""Sphinx's settings: `make docs` builds the site into build/docs."""

import importlib.metadata
import re

project = "jax_nano"
author = "the authors of jax_nano"
copyright = "the authors of jax_nano"  # noqa: A001  Sphinx's name
release = importlib.metadata.version("jax-nano")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "code"  # `x` in a docstring is code
nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]  # types of JAX and of other rooms, which have no page here

autodoc_typehints = "none"  # signatures have them
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"  # as JAX's own documentation has it
html_title = "jax_nano"
html_static_path = ["static"]
html_css_files = ["narrow.css"]
html_theme_options = {
    "navbar_persistent": [],  # the side bar has the search
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_show_sourcelink = False
html_copy_source = False


def setup(app):
    """Docstrings are plain text: bars and asterisks in them are those of formulas."""
    app.connect("autodoc-process-docstring", escape_formulas, priority=400)  # before napoleon reads sections


def escape_formulas(*event):
    """Escapes what reStructuredText would take for substitutions and emphasis, outside of code."""
    lines = event[-1]
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"[|*]|\b_\b|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "`".join(parts)
