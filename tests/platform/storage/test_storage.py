"""Objects at a URI: real servers of S3 and of Google's protocol, and a folder in their place."""

import os
import threading
import time

import pytest
from tests.platform.storage.server import free_port

from farreach.errors import StorageError
from farreach.storage import filesystems
from farreach.storage import remote as storage
from farreach.storage.remote import Remote, copy_of, is_remote, joined, last_name


@pytest.fixture(params=["s3", "gs", "file"])
def uri(request, s3, google, tmp_path):
    return {
        "s3": f"{s3}/some/where",
        "gs": google("some/where"),
        "file": f"file://{tmp_path}/some/where",
    }[request.param]


def test_what_is_pushed_is_listed_and_pulled_again(uri, tmp_path):
    contents = {"a.txt": b"one", "deep/er/b.bin": os.urandom(12 << 20), "empty": b""}
    for name, content in contents.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(content)
    remote = Remote(uri)
    remote.check()
    assert remote.list() == {}
    size = sum(len(content) for content in contents.values())
    assert remote.push({name: tmp_path / "from" / name for name in contents}) == size
    assert {name: entry.size for name, entry in remote.list().items()} == {
        name: len(content) for name, content in contents.items()
    }
    assert list(remote.list("deep")) == ["deep/er/b.bin"]
    assert list(remote.below("deep").list()) == ["er/b.bin"]
    told = []
    assert remote.pull(contents, tmp_path / "to", told.append) == size == sum(told)
    for name, content in contents.items():
        assert (tmp_path / "to" / name).read_bytes() == content
    assert not list((tmp_path / "to").rglob(".*"))


def test_single_objects_are_written_read_and_removed(uri):
    remote = Remote(uri)
    assert remote.read("x/note") is None
    remote.write("x/note", b"first")
    remote.write("x/note", b"second")
    remote.write("x/other", b"")
    assert (remote.read("x/note"), remote.read("x/other")) == (b"second", b"")
    assert remote.below("x/note").entry().size == 6
    assert remote.below("x").entry() is None
    remote.copy({"x/note": "y/note"})
    remote.delete(["x/note", "x/note", "never/there"])
    assert sorted(remote.list()) == ["x/other", "y/note"]
    remote.delete_folder("x")
    remote.delete_folder("x")
    assert list(remote.list()) == ["y/note"]
    with pytest.raises(FileNotFoundError):
        remote.pull(["x/note"], storage.cache())


def test_uris_are_told_from_paths():
    assert [is_remote(one) for one in ("s3://b/x", "gs://b", "abfss://c@a/x", "file:///x")] == (
        [True] * 4
    )
    assert not any(is_remote(one) for one in ("runs/x", "/runs", "s3:/b/x", "latest", "c:/runs"))
    assert joined("s3://b/runs/", "x") == "s3://b/runs/x"
    assert joined("s3://b/runs?region=eu", "x") == "s3://b/runs/x?region=eu"
    assert last_name("s3://b/runs/first/?region=eu") == "first"
    assert copy_of("s3://b/x", "runs") != copy_of("s3://c/x", "runs")


def refused(work, limit_s=20):
    begun = time.monotonic()
    with pytest.raises(StorageError) as caught:
        work()
    assert time.monotonic() - begun < limit_s
    return str(caught.value)


def test_a_bucket_that_is_not_there_is_named(s3):
    for work in (
        lambda: Remote("s3://other/x").check(),
        lambda: Remote("s3://other/x").write("y", b""),
    ):
        assert "s3://other/x: there is no bucket 'other'" in refused(work)


def test_a_bucket_of_googles_that_is_not_there_is_named(google, google_server):
    uri = google_server.uri("other/x")
    for work in (lambda: Remote(uri).check(), lambda: Remote(uri).write("y", b"")):
        assert f"{uri}: there is no bucket 'other'" in refused(work)


def test_a_server_of_googles_that_is_not_there_is_told_in_seconds(google):
    place = f"gs://anonymous@bucket/x?endpoint_override=127.0.0.1:{free_port()}&scheme=http"
    assert "cannot be reached" in refused(Remote(place).check)


def test_wrong_credentials_are_told_with_the_variables_to_set(s3, server):
    remote = Remote(f"{s3}/x")
    server.tell("reset-auth", b"0")
    try:
        for work in (
            remote.check,
            remote.list,
            lambda: remote.read("y"),
            lambda: remote.write("y", b""),
        ):
            message = refused(work)
            assert "access is denied at http://127.0.0.1" in message
            assert "AWS_ACCESS_KEY_ID" in message
    finally:
        server.tell("reset-auth", b"inf")


def test_a_server_that_is_not_there_is_told_in_seconds(s3, monkeypatch):
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    message = refused(Remote(f"{s3}/x").check)
    assert f"cannot be reached at {url}" in message
    assert "AWS_ENDPOINT_URL" in message


def test_a_uri_of_no_known_kind_is_refused(s3):
    assert "Give a URI such as s3://bucket/folder" in refused(lambda: Remote("gopher://hole/x"))


def test_what_fails_for_a_while_is_tried_again(s3, server, monkeypatch):
    monkeypatch.setattr(filesystems, "REQUEST_TIMEOUT_S", 1.0)
    remote = Remote(f"{s3}/x?patient=not")
    server.sleep()
    waking = threading.Timer(2.5, server.wake)
    waking.start()
    try:
        remote.write("y", b"late")
    finally:
        waking.cancel()
        server.wake()
    assert remote.read("y") == b"late"


def test_a_file_that_goes_away_is_not_the_storages_fault(uri, tmp_path):
    with pytest.raises(FileNotFoundError):
        Remote(uri).push({"x": tmp_path / "gone"})
