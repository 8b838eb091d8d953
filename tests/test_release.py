"""`.ci/release.py`, which decides whether a tag can be released, and the links on PyPI's page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

if not (ROOT / ".ci" / "release.py").exists():
    pytest.skip("needs the checkout, which is not beside these tests", allow_module_level=True)

SECTION = "## [1.2.3] - 2026-11-24\n\n### Fixed\n\n- A thing.\n"
URLS = '[project.urls]\nSource = "https://example.com/project"\n'


@pytest.mark.parametrize(
    ("tag", "changes", "refused"),
    [
        ("v1.2.3", SECTION, None),
        ("v1.2.3", f"## [Unreleased]\n\n{SECTION}\n## [1.2.2] - 2026-01-01\n\n- More.\n", None),
        (
            "v1.2.4",
            SECTION,
            "the tag is v1.2.4, and the version in rrq_fastwire/__init__.py is 1.2.3",
        ),
        ("1.2.3", SECTION, "the tag is 1.2.3"),
        ("v1.2.3", "## [Unreleased]\n\n- A thing.\n", "CHANGELOG.md has no section"),
        ("v1.2.3", "## [1.2.3]\n\n- A thing.\n", "CHANGELOG.md has no section"),
        ("v1.2.3", "## [1.2.3] - 2026-11-24\n\n## [1.2.2] - 2026-01-01\n\n- More.\n", "no section"),
        ("v1.2.3", SECTION.replace("1.2.3", "1x2x3"), "no section"),
        ("v1.2.3", "## [1.2.3] - 2026-11-24\n\n### Fixed\n\n## [1.2.2]\n\n- More.\n", "no section"),
        ("v1.2.3", "## [1.2.3] - 2026-11-24\n\n[1.2.3]: https://example.com\n", "no section"),
    ],
)
def test_a_tag_is_released_only_if_version_and_changelog_agree(tmp_path, tag, changes, refused):
    assert_verdict(tmp_path, tag, refused, changes=changes)


def test_a_project_without_a_source_url_is_not_released(tmp_path):
    assert_verdict(tmp_path, "v1.2.3", "add [project.urls] with Source", urls="")


def test_links_on_pypi_begin_with_the_source_url(tmp_path):
    pytest.importorskip("Cython", reason="setup.py needs it")
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\nname = "a"\nversion = "1"\ndynamic = ["readme"]\n{URLS}'
    )
    (tmp_path / "README.md").write_text(
        "![p](pictures/p.svg) [a](docs/a.md#part) [b](#here) [c](https://example.com/c)"
    )
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--long-description"],
        cwd=tmp_path,
        env={**os.environ, "RRQ_FASTWIRE_PURE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    page = "https://example.com/project"
    assert done.stdout.strip() == (
        f"![p]({page}/raw/main/pictures/p.svg) [a]({page}/blob/main/docs/a.md#part) [b](#here)"
        " [c](https://example.com/c)"
    )


def assert_verdict(tmp_path, tag, refused, *, changes=SECTION, urls=URLS):
    for folder in (".ci", "rrq_fastwire"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / ".ci" / "release.py", tmp_path / ".ci")
    (tmp_path / "rrq_fastwire" / "__init__.py").write_text('x = 1\n__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(changes)
    (tmp_path / "pyproject.toml").write_text(f"[project]\n{urls}")
    done = subprocess.run(
        [sys.executable, tmp_path / ".ci" / "release.py", tag],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if refused is None else 1)
    assert (refused or f"{tag} can be released") in done.stdout + done.stderr


@pytest.mark.parametrize("workflow", ["analysis", "wheels"])
def test_a_change_of_compiled_source_starts_the_workflow(workflow):
    sources = re.findall(r'"(rrq_fastwire/\S+\.pyx?)"', (ROOT / "setup.py").read_text())
    assert len(sources) == 3
    text = (ROOT / ".github" / "workflows" / f"{workflow}.yml").read_text()
    patterns = re.findall(r"^      - (\S+)$", text.partition("permissions:")[0], re.MULTILINE)
    missed = [
        source for source in sources if not any(fnmatch(source, pattern) for pattern in patterns)
    ]
    assert missed == []


def test_every_build_requirement_is_pinned_by_hash():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pinned = re.findall(
        r"^(\S+)==\S+ \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+",
        (ROOT / "build-requirements.txt").read_text(),
        re.MULTILINE,
    )
    assert {re.match(r"[\w-]+", each)[0] for each in wanted} <= set(pinned)
