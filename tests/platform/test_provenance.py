import subprocess
from datetime import datetime, timezone

import pytest

from farreach import provenance


def test_the_git_state_is_that_of_the_source_tree(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance.git_state(tmp_path) is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert provenance.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new").write_text("x")
    assert provenance.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    (tmp_path / "site-packages").mkdir()
    assert provenance.git_state(tmp_path / "site-packages") is None


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ('{"commit": "abc", "dirty": false}', {"commit": "abc", "dirty": False}),
        ("", None),
        ("abc", None),
        ('"abc"', None),
    ],
)
def test_code_that_was_sent_without_its_repository_is_told_its_commit(monkeypatch, told, expected):
    monkeypatch.setattr(provenance, "git_state", lambda source: None)
    monkeypatch.setenv("FARREACH_GIT", told)
    start = datetime.now(timezone.utc)
    assert provenance.manifest(["farreach"], 0, start, None)["git"] == expected
