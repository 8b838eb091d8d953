"""Whether a tag can be released.

It names the version, CHANGELOG.md says what is in it, and the links of README.md work on PyPI.
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
    check_links()
    print(f"{tag} can be released")


def check_links():
    """The README is PyPI's page, too, where only absolute links lead somewhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("Source")
    if address is None:
        sys.exit(
            "pyproject.toml does not say where the project lives: add [project.urls] with"
            ' Source = "https://..."'
        )
    links = re.findall(r"\]\(([^)#][^)]*)\)", (ROOT / "README.md").read_text())
    relative = [link for link in links if not link.startswith(("https://", "mailto:"))]
    if relative:
        sys.exit(
            f"README.md has links that do not work on PyPI: {', '.join(relative)};"
            f" begin them with {address}"
        )


if __name__ == "__main__":
    main()
