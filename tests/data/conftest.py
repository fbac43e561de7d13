"""The two places that files come from, and the server."""

import http.server
import threading

import pytest
from data_files import Mirror

from fflearn.data import fetch


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """FFLEARN_DATA, empty."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.setenv("FFLEARN_DATA", str(folder))
    monkeypatch.setenv("FFLEARN_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """FFLEARN_CACHE, with no FFLEARN_DATA."""
    monkeypatch.delenv("FFLEARN_DATA", raising=False)
    monkeypatch.setenv("FFLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Short, for the tests run into it six times; long enough for a busy machine on loopback.
    monkeypatch.setattr(fetch, "TIMEOUT", (5.0, 0.5))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.asked, server.closing = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()
