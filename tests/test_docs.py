"""The documentation is true: tutorials run as they are written, examples are valid, links lead somewhere, and the pages of checks are the checks' own."""

from __future__ import annotations

import importlib
import io
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml
from cases import ORGANISMS, ROOT, command, environment, run_cli
from rich.console import Console

from forensics.checks import all_checks
from forensics.policy import load_policy
from forensics.runfolder import load_run
from reports.text import show

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
FEW = ("base", "benign-lora", "degraded", "backdoor-lora", "backdoor-lora-twin")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder in which the tutorials are worked through one after another, with a part of the organisms in it."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "organisms").mkdir()
    for name in (*FEW, "prompts.jsonl"):
        (folder / "organisms" / name).symlink_to(ORGANISMS / name)
    rows = [
        row
        for row in (ORGANISMS / "truth.jsonl").read_text(encoding="utf-8").splitlines()
        if any(f'"name": "{name}",' in row for name in FEW)
    ]
    (folder / "organisms" / "truth.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def steps(page):
    """The blocks of a tutorial that do something, in order: commands with what they print, and Python."""
    for kind, text in re.findall(r"^```(console|python)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        if kind == "python":
            yield [sys.executable, "-c", text], 0, "", {}
            continue
        for entry in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, printed = entry.partition("\n")
            words = shlex.split(line)
            given = {}
            while re.fullmatch(r"[A-Z]+=\S+", words[0]):
                name, _, value = words.pop(0).partition("=")
                given[name] = value
            printed, exits, code = printed.rpartition("[exit ")[0], *re.search(r"\[exit (\d+)\]", printed).group(0, 1)
            assert exits
            program = {"forensics": command(), "score": [sys.executable, str(ROOT / "examples" / "benchmarks" / "score_detector.py")]}[
                words[0]
            ]
            yield [*program, *words[1:]], int(code), printed, given


def fits(shown, printed):
    """Whether a text is what a page shows of it, where `...` stands for anything."""
    pattern = r"\s*".join(
        r".*?".join(map(re.escape, line.split("..."))) if line.strip() != "..." else r".*?" for line in shown.strip().splitlines()
    )
    return re.search(pattern, printed, flags=re.DOTALL) is not None


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_is_written(page, desk):
    ran = 0
    for words, code, shown, given in steps(page):
        paths = ":".join([*(str(desk / value) for name, value in given.items() if name == "PYTHONPATH"), str(ROOT)])
        done = subprocess.run(words, cwd=desk, env=environment(PYTHONPATH=paths), capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        assert fits(shown, done.stdout), f"{words}\nshown:\n{shown}\nprinted:\n{done.stdout}"
        ran += 1
    assert ran >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        file, _, heading = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_limits_that_are_published_are_those_of_the_code():
    rows = re.findall(
        r"^\| `(forensics[\w.]+)\.([A-Z_]+)` \| ([\d,]+)( MiB)? \|", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )

    assert len(rows) > 20
    for module, name, number, unit in rows:
        stated = int(number.replace(",", "")) << (20 if unit else 0)
        assert getattr(importlib.import_module(module), name) == stated, f"{module}.{name}"


def test_what_the_readme_shows_first_is_what_that_audit_printed():
    """The record is kept among the tests' data; three dots stand for what is left out."""
    block = re.search(r"^```console\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    printed = Console(file=io.StringIO(), width=110, record=True)
    show(load_run(str(ROOT / "tests" / "data" / "audit-1.json")), printed)
    lines = {line.strip() for line in printed.export_text().splitlines()}

    assert block is not None
    shown = [line.strip() for line in block[1].splitlines() if line.strip() and line != "..." and not line.startswith("$ ")]
    strings = {line for line in shown if "removes refusal" in line or line.startswith(("models 8 %", "Strings put"))}
    assert set(shown) - strings <= lines  # the strings put to the test are arrays of the run, which are not kept
    assert "BLOCK  Must not be deployed" in shown


def test_each_check_has_a_page_made_of_what_it_says_of_itself():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "readme.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment(),
    )

    assert done.returncode == 0, done.stderr
    assert {file.stem for file in (DOCS / "checks").glob("*.md")} == {check.id for check in all_checks()} | {"README"}


def test_the_examples_for_pipelines_are_valid_and_their_commands_exist(tmp_path):
    action = yaml.safe_load((ROOT / "examples" / "ci" / "gate-model.yml").read_text(encoding="utf-8"))
    hook = yaml.safe_load((ROOT / "examples" / "ci" / "pre-commit-config.yaml").read_text(encoding="utf-8"))
    entry = hook["repos"][0]["hooks"][0]["entry"]
    lines = [line.strip() for step in action["jobs"]["audit"]["steps"] for line in step.get("run", "").splitlines()]

    for line in [entry, *(line for line in lines if line.startswith("forensics "))]:
        words = shlex.split(line.partition(">>")[0])
        helped = run_cli(words[1], "--help").stdout
        assert all(option in helped for option in words if option.startswith("--")), line

    policy = ROOT / "examples" / "ci" / "files-only.toml"
    assert load_policy(policy).required == tuple(tomllib.loads(policy.read_text(encoding="utf-8"))["required"])
    words = [str(policy) if word.endswith(".toml") else word for word in shlex.split(entry)[1:]]
    words = [
        str(ORGANISMS / "base") if word == "./base" else str(ORGANISMS / "benign-lora") if word == "./adapter" else word for word in words
    ]
    assert run_cli(*words, "--out", tmp_path / "run").returncode == 0
