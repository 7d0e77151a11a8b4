import hashlib
import os
import time

import pytest

from farreach.data import digests
from farreach.data.digests import digest
from farreach.errors import DataError

LONG_AGO_S = 1_000_000_000


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(bytes(300_000))
    os.utime(file, (LONG_AGO_S, LONG_AGO_S))
    return file


@pytest.mark.parametrize("large", [1, 1 << 30])
def test_a_byte_in_the_middle_makes_another_one(file, tmp_path, monkeypatch, large):
    monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", large)
    assert digest(file) == hashlib.sha256(bytes(300_000)).hexdigest()
    with file.open("r+b") as opened:
        opened.seek(100_001)
        opened.write(b"x")
    for seconds in (time.time(), LONG_AGO_S + 1):
        os.utime(file, (seconds, seconds))
        assert digest(file) == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("large", [1, 1 << 30])
def test_a_file_is_read_once(file, tmp_path, monkeypatch, large):
    """By this process; and a large one by no other one either."""
    monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", large)
    expected = digest(file)

    def refuse(path):
        raise AssertionError(f"{path} is read again")

    with monkeypatch.context() as again:
        again.setattr(digests, "_computed", refuse)
        assert digest(file) == expected
    monkeypatch.setattr(digests, "_known", {})
    if large == 1:
        monkeypatch.setattr(digests, "_computed", refuse)
    assert digest(file) == expected


def test_a_damaged_note_does_not_count(file, tmp_path, monkeypatch):
    monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 1)
    expected = digest(file)
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    note.write_bytes(b"\xff\xfe")
    monkeypatch.setattr(digests, "_known", {})
    assert digest(file) == expected


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read"):
        digest(tmp_path / "nowhere.txt")
