"""The audit of dependencies: what is found fails unless it is accepted with a reason, and what cannot be asked is said and fails nothing."""

from __future__ import annotations

import json
import runpy
import socket
import subprocess
from types import SimpleNamespace

import pytest
from cases import ROOT

AUDIT = runpy.run_path(str(ROOT / "examples" / "dependencies.py"))
FOUND = {"name": "jinja2", "version": "3.1.0", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": ["3.1.6"]}]}
FINE = {"name": "numpy", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "of-a-mirror", "skip_reason": "Dependency not found on PyPI"}


def test_a_vulnerability_fails_unless_it_is_accepted_with_a_reason(capsys):
    assert AUDIT["told"]([FINE, FOUND], {}) == 1
    assert "jinja2 3.1.0: PYSEC-1, mended in 3.1.6" in capsys.readouterr().out
    assert AUDIT["told"]([FINE, FOUND], {"CVE-2": "no template of a stranger runs in our process"}) == 0
    assert "accepted: no template of a stranger" in capsys.readouterr().out


def test_what_was_not_looked_up_is_counted_and_what_is_accepted_in_vain_is_told(capsys):
    assert AUDIT["told"]([FINE, UNKNOWN], {"CVE-9": "gone"}) == 0
    said = capsys.readouterr().out
    assert "1 audited" in said
    assert "not audited: 1 (of-a-mirror)" in said
    assert "accepts CVE-9, which no installed package has any more" in said


def test_where_no_package_is_known_nothing_was_audited(capsys):
    assert AUDIT["told"]([UNKNOWN], {}) == 0
    assert "NOT audited" in capsys.readouterr().out


@pytest.mark.parametrize("trouble", ["no network", "slow", "no answer"])
def test_where_nothing_can_be_asked_that_is_said_and_fails_nothing(trouble, monkeypatch, capsys):
    def run(*_: object, timeout: float, **__: object) -> object:
        if trouble == "slow":
            raise subprocess.TimeoutExpired("pip_audit", timeout)
        return SimpleNamespace(stdout="", stderr="ServiceError: the connection broke")

    main = AUDIT["main"]
    monkeypatch.setitem(main.__globals__, "reached", lambda _: trouble != "no network")
    monkeypatch.setattr(subprocess, "run", run)
    assert main() == 0
    assert "NOT audited" in capsys.readouterr().out


def test_an_address_where_nobody_answers_is_not_reached():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert AUDIT["reached"](f"http://127.0.0.1:{free.getsockname()[1]}/") is False


def test_what_pip_audit_finds_is_read_from_its_own_format(monkeypatch):
    monkeypatch.setitem(AUDIT["main"].__globals__, "reached", lambda _: True)
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=json.dumps({"dependencies": [FINE, FOUND], "fixes": []}), stderr="")
    )
    assert AUDIT["main"]() == 1
