"""What a machine lacks is said before an audit runs into it; and commands complete themselves in a shell."""

from __future__ import annotations

import io
import subprocess
from importlib.metadata import PackageNotFoundError

import pytest
from cases import command, environment, run_cli
from rich.console import Console

from forensics import equipment
from reports.doctor import show_equipment


def shown(found):
    console = Console(file=io.StringIO(), width=200, record=True)
    show_equipment(found, console)
    return console.export_text()


def test_a_whole_installation_is_said_to_be_whole():
    done = run_cli("doctor")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything that an audit needs is there." in done.stdout
    assert "torch" in done.stdout and "GiB free" in done.stdout and "HF_HUB_OFFLINE" in done.stdout


@pytest.mark.parametrize(("package", "state"), [("scipy", "missing"), ("river", "optional")])
def test_what_is_not_installed_is_named_with_what_follows(package, state, monkeypatch, tmp_path):
    real = equipment.version

    def version(name):
        if name == package:
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(equipment, "version", version)

    found = equipment.equipment(tmp_path / "runs")

    (one,) = [row for row in found if row.name == package]
    assert (one.state, one.found) == (state, "not installed") and one.follows
    assert (found[0] is one) is (state == "missing")  # what is missing comes first
    assert ("An audit cannot run: scipy." in shown(found)) is (state == "missing")


def test_a_package_that_cannot_be_imported_is_missing(monkeypatch, tmp_path):
    real = equipment.importlib.import_module

    def broken(name):
        if name == "sklearn":
            raise OSError("a library is gone")
        return real(name)

    monkeypatch.setattr(equipment.importlib, "import_module", broken)

    (one,) = [row for row in equipment.equipment(tmp_path) if row.name == "scikit-learn"]
    assert one.state == "missing" and "OSError" in one.found


def test_a_folder_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(equipment.os, "access", lambda path, mode: False)

    (one,) = [row for row in equipment.equipment(tmp_path / "runs") if row.name == "disk"]
    assert one.state == "missing" and str(tmp_path) in one.found


def test_commands_complete_themselves():
    asked = environment(_FORENSICS_COMPLETE="complete_bash", COMP_WORDS="forensics mon", COMP_CWORD="1")
    done = subprocess.run(command(), env=asked, capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["monitor"]
