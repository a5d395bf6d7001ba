"""A PostgreSQL server of Debian's programs, of its own for each module of tests, where they are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa


class Server:
    """A server that may be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            owner = pwd.getpwnam("nobody")
            for above in (folder, *folder.parents[:3]):  # one more where several workers share the tests
                above.chmod(above.stat().st_mode | 0o011)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            user = {"user": owner.pw_uid, "group": owner.pw_gid}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **user}
        subprocess.run(["initdb", "-D", folder / "data", "-U", "watch", "--auth=trust", "-E", "UTF8"], **self._quiet)
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://watch@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        subprocess.run(
            ["pg_ctl", "-D", self.folder / "data", "-o", options, "-l", self.folder / "log", "-w", "-t", "300", "start"], **self._quiet
        )

    def stop(self) -> None:
        subprocess.run(["pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop"], **self._quiet)


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A server in a folder; the test is skipped where PostgreSQL is not installed."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("PostgreSQL is not installed")  # a server of Debian's, no package of Python's: `.ci/run` installs it
    pytest.importorskip("psycopg")
    running = Server(folder)
    try:
        yield running
    finally:
        running.stop()


def emptied(url: str) -> str:
    """The URL, with nothing left in its database."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()
    return url
