"""Checks of others, brought by an installed package, and an audit, a check and a probe from Python."""

from __future__ import annotations

import os
import subprocess

import pytest
from cases import ORGANISMS, ROOT, command, environment, some_prompts

from forensics import api
from forensics.checks import all_checks
from forensics.errors import BadInput

CHECK = '''
"""Is the moon full?

Asks: Nothing of the models.
Reads: Nothing.
Reports: `moon` (high).
Blind to: Everything.
Source: A test.
"""
from forensics.api import Check, CheckResult, Evidence, Status

def run(case):
    evidence = (Evidence(name="moon.light", value=1.0, unit="share", where="sky", expected="0"),)
    return CheckResult(check="{id}", configuration=case.configuration, status=Status.NO_FINDING, evidence=evidence)

CHECK = Check(id="{id}", question="Is the moon full?", cost="files", run=run)
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package that brings a check: its source, and what its entry point names."""

    def install(source, *, names="moonlight:CHECK"):
        site = tmp_path / "site"
        about = site / "moonlight-1.5.dist-info"
        about.mkdir(parents=True)
        (site / "moonlight.py").write_text(source, encoding="utf-8")
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: moonlight\nVersion: 1.5\n", encoding="utf-8")
        (about / "entry_points.txt").write_text(f"[forensics.checks]\nmoon = {names}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(__import__("sys").modules, "moonlight", raising=False)
        return site

    return install


def test_a_check_of_an_installed_package_runs_and_the_record_names_the_package(package, tmp_path):
    package(CHECK.replace("{id}", "sky.moon"))

    record = api.audit(ORGANISMS / "base", ORGANISMS / "degraded", only=["sky.moon", "files.surface"], out=tmp_path / "run")

    assert {result.check for result in record.results} == {"sky.moon", "files.surface"}
    assert record.settings["outside_checks"] == "moonlight 1.5"
    assert "sky.moon" in {check.id for check in all_checks()}


def run_with(site, *words):
    given = environment()
    paths = os.pathsep.join([str(site), *filter(None, [given.get("PYTHONPATH")])])
    return subprocess.run(command(*words), cwd=ROOT, env=given | {"PYTHONPATH": paths}, capture_output=True, text=True, check=True)


def test_the_command_line_lists_and_explains_it(package):
    site = package(CHECK.replace("{id}", "sky.moon"))

    listed = run_with(site, "checks")
    explained = run_with(site, "explain", "sky.moon")

    assert "sky.moon" in listed.stdout and "Is the moon full?" in listed.stdout
    assert "Blind to: Everything." in explained.stdout


@pytest.mark.parametrize(
    ("source", "names", "said"),
    [
        (CHECK.replace("{id}", "files.surface"), "moonlight:CHECK", "two checks are called 'files.surface'"),
        (CHECK.replace("{id}", "../../etc"), "moonlight:CHECK", "no check"),
        ("CHECK = 3", "moonlight:CHECK", "no check"),
        ("raise OSError('x')", "moonlight:CHECK", "cannot be loaded (OSError)"),
        ("", "moonlight:CHECK", "cannot be loaded (AttributeError)"),
    ],
)
def test_a_package_that_brings_no_check_is_named_in_one_clear_error(package, source, names, said):
    package(source, names=names)

    with pytest.raises(BadInput) as told:
        all_checks()
    assert said in str(told.value) and "moonlight" in str(told.value)


def test_a_check_alone_gives_its_result(tmp_path):
    result = api.check("weights.change", ORGANISMS / "base", ORGANISMS / "degraded", out=tmp_path / "run")

    assert isinstance(result, api.CheckResult)
    assert result.check == "weights.change" and result.configuration == "adapter:degraded"


def test_a_probe_is_fitted_and_followed(tmp_path):
    file = some_prompts(tmp_path / "all.jsonl", refuse=24, comply=24)
    lines = file.read_text(encoding="utf-8").splitlines()
    kinds = {}
    for kind in ("refuse", "comply"):
        kinds[kind] = tmp_path / f"{kind}.jsonl"
        kinds[kind].write_text("\n".join(line for line in lines if f'"{kind}"' in line) + "\n", encoding="utf-8")

    kept = api.probe(ORGANISMS / "base", kinds["refuse"], kinds["comply"], candidate=ORGANISMS / "degraded", out=tmp_path / "probe")

    assert isinstance(kept, api.Kept) and kept.folder == tmp_path / "probe"
    assert kept.card.name == "concept"


def test_every_public_name_is_there():
    assert all(hasattr(api, name) for name in api.__all__)


def test_an_option_that_is_misspelt_is_refused_and_one_text_is_one_of_several(tmp_path):
    with pytest.raises(BadInput, match="polcy") as told:
        api.audit(ORGANISMS / "base", ORGANISMS / "base", polcy=None)
    assert "did you mean `policy`?" in str(told.value)
    with pytest.raises(BadInput, match="lyer"):
        api.probe(ORGANISMS / "base", "a", "b", lyer=1)

    record = api.audit(ORGANISMS / "base", ORGANISMS / "base", only="files.surface", out=tmp_path / "run")
    assert [result.check for result in record.results] == ["files.surface"]
