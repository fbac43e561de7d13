"""An empty folder to work in, and the command line as a function."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from core_runs import RULE, Said, blobs

from fflearn import cli


@pytest.fixture
def unsynced(monkeypatch):
    """No waiting for the disk: nobody pulls the plug here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def here(tmp_path, monkeypatch, unsynced):
    """An empty folder to work in, with blobs.csv (72 train, 18 test) and my_rule.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FFLEARN_DATA", raising=False)
    x, y = blobs()
    rows = [",".join([*(f"{v:.6f}" for v in row), "abc"[k]]) for row, k in zip(x, y, strict=True)]
    Path("blobs.csv").write_text("\n".join(["p,q,r,s,label", *rows, ""]))
    Path("my_rule.py").write_text(RULE)
    return tmp_path


@pytest.fixture
def say(capsys):
    """Run the command line in this process."""

    def run(*words: object) -> Said:
        capsys.readouterr()
        code = cli.main([str(w) for w in words])
        return Said(code, *capsys.readouterr())

    return run
