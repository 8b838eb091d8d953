"""Configuration of Sphinx, which builds the documentation: run `make docs`."""

from __future__ import annotations

import os

import click
from docutils import nodes
from sphinx.util import logging

import rrq_fastwire
import rrq_fastwire.runner
from rrq_fastwire.cli.commands import commands

# This module imports its names only when they are used, but autodoc sees only names that have been
# imported.
for name in rrq_fastwire.runner.__all__:
    vars(rrq_fastwire.runner)[name] = getattr(rrq_fastwire.runner, name)

# The group of commands imports most of them only when they are used, but sphinx_click sees only
# those that have been added to it.
COMMANDS = commands.list_commands(click.Context(commands))
for name in COMMANDS:
    commands.add_command(commands.get_command(click.Context(commands), name))
# The page shows the parser of `ping` instead: its command in the group is only for the help.
del commands.commands["ping"]

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
smartquotes = False  # keeps "--" in the texts of commands
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# Docstrings
default_role = "code"  # text in single backticks is code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_module_names = False
napoleon_google_docstring = True
napoleon_use_ivar = True

# Links. Every link into this package must be valid. Links to other projects are resolved and
# checked only with ONLINE=1, because that needs the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!rrq_fastwire\b).*")]
linkcheck_anchors = False
ONLINE = os.environ.get("ONLINE") == "1"
intersphinx_mapping = {"python": ("https://docs.python.org/3", None)} if ONLINE else {}


def readable_signature(app, what, name, obj, options, signature, annotation):
    """Write the default `<factory>`, which dataclasses show for `default_factory=dict`, as `{}`."""
    return signature and signature.replace("<factory>", "{}"), annotation


def check_commands(app, env):
    """Warn if a command has no section in the reference. A warning makes the build fail."""
    page = "reference/command-line"
    found = env.get_doctree(page).findall(nodes.section)
    sections = {name for section in found for name in section["names"]}
    for name in COMMANDS:
        if f"rrq-fastwire {name}" not in sections:
            logging.getLogger(__name__).warning("no section: rrq-fastwire %s", name, location=page)


def setup(app):
    app.connect("env-check-consistency", check_commands)
    app.connect("autodoc-process-signature", readable_signature)
