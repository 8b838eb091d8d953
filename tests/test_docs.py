"""The commands, options, names and links in the pages of the documentation exist."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
PUBLIC = ["", ".streams", ".client", ".runner", ".testing", ".compat"]

pytestmark = pytest.mark.skipif(len(PAGES) == 1, reason="needs docs/, which is only in a checkout")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page, to type or to write into rrq.toml, each as a list of words."""
    found = []
    for block in blocks(page, "console"):
        for line in re.findall(r"^\$ (.*)$", block.replace("\\\n", " "), re.MULTILINE):
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in lexer:
                if set(word) <= set("|&;<>()"):
                    found.append(words)
                    words = []
                else:
                    words.append(word)
            found.append(words)
    for block in blocks(page, "toml"):
        for runner in tomllib.loads(block).get("rrq", {}).get("runners", {}).values():
            found.append(runner.get("cmd", []))
    return [words for words in found if words]


def check_runner(words: list[str]) -> None:
    """Checks the options of `rrq-fastwire-runner`."""
    from rrq_fastwire.runner.options import option_parser

    known = option_parser()._option_string_actions
    for word in words:
        assert not word.startswith("--") or word.partition("=")[0] in known, word


def check_tool(words: list[str]) -> None:
    """Checks the subcommand and the options of `rrq-fastwire`."""
    import click

    from rrq_fastwire.cli.commands import commands as group

    if words[0].startswith("-"):
        assert words[0] in ("--version", "--help")
        return
    if words[0] == "runner":
        check_runner(words[1:])
        return
    command = group.get_command(click.Context(group), words[0])
    assert command is not None, words[0]
    known = {option for each in command.params for option in each.opts} | {"--help"}
    for word in words[1:]:
        if word == "--":
            break
        assert not word.startswith("--") or word.partition("=")[0] in known, word


@each_page
def test_the_commands_and_options_on_a_page_exist(page):
    pytest.importorskip("click", reason="the commands need the extra `cli`")
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(page):
        match words:
            case ["rrq-fastwire", *rest]:
                check_tool(rest)
            case ["rrq-fastwire-runner", *rest]:
                check_runner(rest)
            case ["python", "-m", "rrq_fastwire", *rest]:
                check_tool(rest)
            case ["make", target, *_]:
                assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target


@pytest.mark.parametrize("name", PUBLIC, ids=lambda name: name or "rrq_fastwire")
def test_every_public_name_is_in_the_reference(name):
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").rglob("*.md"))
    module = importlib.import_module(f"rrq_fastwire{name}")
    if f"automodule:: {module.__name__}\n" in pages:
        return
    for each in set(module.__all__) - {"__version__"}:
        assert re.search(rf"^\.\. (auto)?\w+:: (\S+\.)?{each}$", pages, re.MULTILINE), each


@each_page
def test_links_of_a_page_lead_to_files(page):
    text = re.sub(r"```\w+\n.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in link or (page.parent / link).exists(), link


# The runners of how-to/write-a-runner.md: the number of the code block, and code that starts the runner.
RUNNERS = {
    "asyncio": (0, "asyncio.run(serve_asyncio(port))"),
    "threads": (2, "serve_threads(socket.create_server(('127.0.0.1', port)))"),
    "trio": (4, "trio.run(lambda: trio.serve_tcp(serve_trio, port, host='127.0.0.1'))"),
}


@pytest.mark.parametrize("name", RUNNERS)
def test_a_runner_of_how_to_write_a_runner_passes_check(name, tmp_path):
    for module in ("click", "rich", "trio"):
        pytest.importorskip(module, reason="is in the extra `dev`")
    number, serve = RUNNERS[name]
    parts = blocks(ROOT / "docs" / "how-to" / "write-a-runner.md", "python")
    # The first block has functions that all runners use. docs/conftest.py runs the asserts.
    parts = [re.sub("^assert .*", "", part, flags=re.M) for part in (parts[0], parts[number])]
    port = "import socket, sys\nport = int(sys.argv[-1].rpartition(':')[2])\n"
    runner = tmp_path / "runner.py"
    runner.write_text("\n".join([*parts, port, serve]))
    command = [sys.executable, "-m", "rrq_fastwire", "check"]
    done = subprocess.run(
        [*command, "--runner", shlex.join([sys.executable, str(runner)])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
