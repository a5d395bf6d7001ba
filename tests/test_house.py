"""The house as CONTRIBUTING.md describes it: floors, sizes, what is imported when, and what the README states."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import COMMAND, ROOT, command, environment, found, record, result, saved_run
from house import EMPTY_PACKAGES, MAY_IMPORT, PLACES, SEEN_BY_REPORTS

from forensics.checks import all_checks, docstring
from forensics.record import Status
from reports.words import EXIT_WORDS

HEAVY = ("torch", "transformers", "sklearn", "scipy", "matplotlib", "numpy")
MODELS = ("torch", "transformers", "peft")
README = ROOT / "README.md"
MODULE_LINES, FUNCTION_LINES = 350, 60


def shipped() -> list[Path]:
    return [
        ROOT / "cli.py",
        ROOT / "cli_options.py",
        ROOT / "cli_gate.py",
        ROOT / "cli_canary.py",
        ROOT / "cli_cost.py",
        ROOT / "cli_people.py",
        ROOT / "cli_report.py",
        ROOT / "cli_monitor.py",
        ROOT / "cli_walk.py",
        ROOT / "cli_watch.py",
        ROOT / "cli_serve.py",
        ROOT / "cli_sweep.py",
        *(path for room in ("forensics", "probes", "reports") for path in sorted((ROOT / room).rglob("*.py"))),
    ]


def module_name(path: Path) -> str:
    """Dotted name of a file, packages by their folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in shipped()}


def imported(path: Path, *, only_at_import: bool = False) -> Iterator[str]:
    """Every module that a file names in an import, wherever it stands; or only those that run when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _running(tree) if only_at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module or ""


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _running(child)


def place(module: str) -> tuple[int, int]:
    """Floor and position of a module of forensics/, given without that prefix."""
    return PLACES["checks" if module.startswith("checks.") else module]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way_between_rooms(name):
    room = name.partition(".")[0]

    rooms = {target.partition(".")[0] for target in imported(MODULES[name])} & MAY_IMPORT.keys()

    assert rooms <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("reports")])
def test_pages_are_made_from_saved_records_only(name):
    ours = {target for target in imported(MODULES[name]) if target.startswith("forensics")}

    assert ours <= SEEN_BY_REPORTS


@pytest.mark.parametrize("name", sorted(SEEN_BY_REPORTS))
def test_what_pages_import_brings_no_model_library(name):
    brought = {target.partition(".")[0] for target in imported(MODULES[name], only_at_import=True)}

    assert not brought & {*MODELS, "tokenizers", "safetensors", "huggingface_hub"}


def test_every_module_of_the_examination_has_a_floor():
    inside = {name.partition(".")[2] for name in MODULES if name.partition(".")[0] == "forensics"} - EMPTY_PACKAGES
    placed = {name for name in inside if name in PLACES or name.startswith("checks.")}

    assert inside == placed, "give the new module a floor in FLOORS (and in the house)"
    assert PLACES.keys() <= inside, "FLOORS names a module that is gone"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("forensics.")])
def test_imports_go_down_or_left_within_the_examination(name):
    inside = name.removeprefix("forensics.")
    targets = {target.partition(".")[2] for target in imported(MODULES[name]) if target.partition(".")[0] == "forensics"}
    targets -= EMPTY_PACKAGES
    if inside in EMPTY_PACKAGES:
        assert not targets
        return

    wrong = {target for target in targets if place(target) >= place(inside)}

    assert not wrong


def test_the_import_laws_can_be_broken(tmp_path):
    """The reader of imports sees those inside functions, those for types, and modules named through their package."""
    file = tmp_path / "law.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import scipy.stats\n"
        "def work():\n    import torch\n    from forensics import audit\n"
    )

    assert set(imported(file)) == {"typing", "scipy.stats", "torch", "forensics.audit"}
    assert set(imported(file, only_at_import=True)) == {"typing"}


def run_and_list(code: str, forbidden: tuple[str, ...], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `code`, then exit 0 after naming on stderr which `forbidden` modules it had imported."""
    script = (
        f"import sys\nstatus = None\ntry:\n    exec({code!r}, {{'__name__': 'x'}})\nexcept SystemExit as left:\n    status = left.code\n"
        f"sys.stderr.write(f'status {{status or 0}} loaded ' + ' '.join(n for n in {forbidden!r} if n in sys.modules) + '\\n')"
    )
    return subprocess.run([sys.executable, "-c", script], cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def as_typed(*words: object) -> str:
    return f"import sys; sys.argv = ['forensics', *{[str(word) for word in words]!r}]; {COMMAND}"


@pytest.mark.parametrize("words", [("--help",), ("audit", "--help"), ("--version",)])
def test_help_is_shown_without_loading_anything_heavy(words, tmp_path):
    done = run_and_list(as_typed(*words), HEAVY, tmp_path)

    assert done.stderr == "status 0 loaded \n"
    assert "forensics" in done.stdout


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house") / "run"
    losses = found("behaviour.refusal", "refusal-drop", claim="refusal fell")
    saved_run(folder, record([result("behaviour.refusal", Status.FLAGGED, findings=(losses,))]), changes={"layers.0.weight": 0.1})
    return folder


def test_pages_are_rendered_without_torch_or_models(run_folder):
    rooms = "import " + ", ".join(name for name in MODULES if name.startswith("reports."))

    done = run_and_list(f"{rooms}\n{as_typed('report', run_folder)}", MODELS, run_folder.parent)

    assert done.stderr == "status 0 loaded \n"
    assert "refusal fell" in done.stdout


def test_reading_the_list_of_modules_would_notice_torch(tmp_path):
    assert "loaded torch" in run_and_list("import torch", MODELS, tmp_path).stderr


def readme_block(name: str) -> list[str]:
    """Lines of the README between the markers of `name`, without fences and trailing spaces."""
    match = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert match, f"README.md has no block {name}"
    return [line.rstrip() for line in match[1].split("\n") if not line.startswith("```")]


def test_the_readme_lists_the_modules_that_exist_and_no_other():
    listed = [line.split()[0].rstrip("/") for line in readme_block("tree") if line.strip()]
    modules = {str(path.relative_to(ROOT)) for path in shipped() if path.name != "__init__.py"}

    assert len(listed) == len(set(listed))
    assert [path for path in listed if not (ROOT / path).exists()] == []
    assert sorted(modules - set(listed)) == []


def test_the_readme_shows_the_help_as_it_is(tmp_path):
    done = subprocess.run(command("audit", "--help"), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)

    real = [line.rstrip() for line in done.stdout.split("\n")]
    assert "\n".join(readme_block("help")).strip("\n") == "\n".join(real).strip("\n")


def test_the_readme_names_every_exit_code_in_our_words():
    rows = [re.match(r"\|\s*`?(\d+)`?\s*\|(.*)", line) for line in readme_block("exit-codes")]
    stated = {int(row[1]): row[2] for row in rows if row}

    assert list(stated) == [0, 1, 2, 3, 10, 20] == list(EXIT_WORDS)
    assert [code for code, words in EXIT_WORDS.items() if words not in stated[code]] == []


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.id)
def test_a_check_says_what_it_asks_reads_reports_cannot_see_and_stands_on(check):
    text = docstring(check)

    headings = re.findall(r"^(Asks|Reads|Reports|Blind to|Source): \S", text, flags=re.MULTILINE)
    assert headings == ["Asks", "Reads", "Reports", "Blind to", "Source"]


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that carry code: no blank ones, comments or docstrings."""
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in layout
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):  # strings that stand alone, which are docstrings
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


def function_lines(source: str) -> dict[str, int]:
    """How many lines of code each function of a file has."""
    lines = code_lines(source)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1))) for node in functions}


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_keep_a_size_that_can_be_read(name):
    source = MODULES[name].read_text(encoding="utf-8")

    assert {function: lines for function, lines in function_lines(source).items() if lines > FUNCTION_LINES} == {}
    assert len(code_lines(source)) <= MODULE_LINES


def test_counting_lines_leaves_out_what_is_not_code():
    source = '"""Doc\nof two lines."""\n\n# a comment\nx = [\n    1,\n]\n\n\ndef f():\n    """Doc."""\n\n    return x\n'

    assert (len(code_lines(source)), function_lines(source)) == (5, {"f": 2})


@pytest.mark.slow
def test_the_wheel_works_without_torch_and_without_us(run_folder, tmp_path):
    wheel = built(tmp_path / "wheel")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "cli.py",
        "cli_options.py",
        "cli_gate.py",
        "cli_canary.py",
        "cli_cost.py",
        "cli_people.py",
        "cli_report.py",
        "cli_monitor.py",
        "cli_walk.py",
        "cli_watch.py",
        "cli_serve.py",
        "cli_sweep.py",
        "forensics/policies/default.toml",
        "forensics/suites/defection.toml",
        "forensics/judges/wildguard.toml",
        "forensics/judges/LICENCES.txt",
        "forensics/suites/opinions.toml",
        "forensics/suites/capability.toml",
        "reports/templates/report.html.jinja",
        "reports/templates/page.css",
        "reports/templates/live.html.jinja",
        "reports/templates/live.css",
        "reports/templates/live.js",
    } <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "examples/"))]

    venv.create(tmp_path / "venv", with_pip=True)
    home = tmp_path / "venv" / "bin"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    light = ["typer", "rich", "pydantic", "numpy", "jinja2", "matplotlib"]
    for what in (["--no-deps", str(wheel)], light):
        words = [home / "pip", "install", "--quiet", "--disable-pip-version-check", *what]
        subprocess.run(words, check=True, env=bare, cwd=tmp_path, capture_output=True)

    said = {}
    for words in (["--help"], ["policy"], ["report", str(run_folder)]):
        done = subprocess.run([home / "forensics", *words], env=bare, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said[words[0]] = done.stdout
    assert "audit" in said["--help"]
    assert said["policy"] == (ROOT / "forensics" / "policies" / "default.toml").read_text(encoding="utf-8")
    assert "refusal fell" in said["report"]


def built(folder: Path) -> Path:
    """The wheel, with the build backend at hand where there is one."""
    try:
        import hatchling  # noqa: F401 - only whether it is there decides how the wheel is built

        here = ["--no-build-isolation"]
    except ImportError:
        here = []
    words = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        *here,
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(words, check=True, capture_output=True)
    return next(folder.glob("*.whl"))
