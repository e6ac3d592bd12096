"""Starts the real program for the tests in Python."""

import os
import pathlib
import signal
import subprocess

import pytest


class Server:
    """A running nodestats."""

    def __init__(self, arguments):
        binary = os.environ["NODESTATS_BINARY"]
        self.process = subprocess.Popen(
            [binary, *arguments], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        line = self.process.stdout.readline()
        assert line.startswith("listening on http://"), line
        self.url = line.split()[-1]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0


@pytest.fixture
def api(tmp_path):
    """An API on an empty database that keeps a hundred years."""
    server = Server(
        ["api", "--listen", "127.0.0.1:0", "--database", f"surrealkv://{tmp_path}/data", "--retention", "36500d"]
    )
    yield server.url
    server.stop()


@pytest.fixture
def asking(tmp_path: pathlib.Path):
    """The whole thing on this host, which asks everybody for a token, and a token that reads it all."""
    data = str(tmp_path / "data")
    server = Server(
        ["standalone", "--listen", "127.0.0.1:0", "--data-dir", data, "--interval", "1s", "--require-tokens"]
    )
    issue = ["token", "issue", "--data-dir", data, "--role", "process-viewer"]
    token = subprocess.run([os.environ["NODESTATS_BINARY"], *issue], capture_output=True, text=True, check=True)
    yield server.url, token.stdout.strip()
    server.stop()


@pytest.fixture
def standalone(tmp_path: pathlib.Path):
    """The whole thing on this host."""
    server = Server(
        ["standalone", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"), "--interval", "1s"]
    )
    yield server.url
    server.stop()
