"""Check that a tag can be released.

The tag must name the version, CHANGELOG.md must say what is in that version, and pyproject.toml
must have the project's address.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: make release-check TAG=v1.2.3")
    tag = sys.argv[1]
    source = (ROOT / "rrq_fastwire" / "__init__.py").read_text()
    version = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)[1]
    if tag != f"v{version}":
        sys.exit(f"the tag is {tag}, and the version in rrq_fastwire/__init__.py is {version}")
    changes = (ROOT / "CHANGELOG.md").read_text()
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$"
    section = re.search(rf"{heading}(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL)
    if not section or not re.search(r"^- ", section[1], re.MULTILINE):
        sys.exit(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD' with a line '- ...'")
    check_address()
    print(f"{tag} can be released")


def check_address():
    """Exit if pyproject.toml lacks the project's address.

    PyPI shows the README as the project's page. setup.py needs the address for the README's links.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if "Source" not in project.get("urls", {}):
        sys.exit(
            "pyproject.toml does not say where the project lives: add [project.urls] with"
            ' Source = "https://..."'
        )


if __name__ == "__main__":
    main()
