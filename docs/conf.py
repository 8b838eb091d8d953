"""How Sphinx builds the documentation. `make docs` runs it."""

from __future__ import annotations

import os

import rrq_fastwire
import rrq_fastwire.runner

# Names that the module imports when they are used: autodoc lists those that are there.
for name in rrq_fastwire.runner.__all__:
    vars(rrq_fastwire.runner)[name] = getattr(rrq_fastwire.runner, name)

project = "rrq-fastwire"
author = "The rrq-fastwire authors"
copyright = author
version = release = rrq_fastwire.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinxarg.ext",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["examples"]

# Pages
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
html_theme = "furo"
html_title = "rrq-fastwire"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
smartquotes = False  # "--" in the texts of commands stays as it is
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# Docstrings: what stands in backticks is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_module_names = False
napoleon_google_docstring = True
napoleon_use_ivar = True

# Links. Those into this package have to lead somewhere; those to other projects need the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!rrq_fastwire\b).*")]
linkcheck_anchors = False
ONLINE = os.environ.get("ONLINE") == "1"
intersphinx_mapping = {"python": ("https://docs.python.org/3", None)} if ONLINE else {}


def readable_signature(app, what, name, obj, options, signature, annotation):
    """Writes what dataclasses show for `default_factory=dict` as Python."""
    return signature and signature.replace("<factory>", "{}"), annotation


def setup(app):
    app.connect("autodoc-process-signature", readable_signature)
