"""How Sphinx makes the site of these pages: ``sphinx-build -W docs site``, with the extra ``docs``."""

import re
from typing import Any

import ckpt_schema

project = "ckpt_schema"
release = ckpt_schema.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"ckpt_schema {release}"
html_static_path = ["site"]
html_css_files = ["site.css"]

# The tutorial is a notebook, and runs anew for each site: what it shows is what this code printed.
nb_execution_mode = "force"
nb_execution_raise_on_error = True  # what fails there fails the build
nb_execution_timeout = 300  # seconds for a cell, of which none takes ten
nb_execution_show_tb = True

# Links go to headings of other pages as they do where the pages are read unbuilt.
myst_heading_anchors = 3

# What stands between single backticks in a docstring is code, as in Markdown.
default_role = "code"

# A parameter a line, where a signature is longer; and unions by the name that they have in the code.
maximum_signature_line_length = 88
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Rule": "Rule", "Tree": "Tree"}
python_use_unqualified_type_names = True


def named(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, signature: str, returns: str
) -> tuple[str | None, str | None]:
    """A signature with the bare name of an alias, inside of other types too."""
    return tuple(
        text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)
        for text in (signature, returns)
    )


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", named)
