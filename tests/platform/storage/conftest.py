"""Fixtures: a server for a file of tests, and for each test a bucket and an empty cache."""

import pytest
from tests.platform.storage.server import GoogleServer, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.stop()


@pytest.fixture
def s3(server, tmp_path, monkeypatch):
    """URI of an empty bucket; this process may use it, and has an empty cache."""
    server.reset()
    server.make_bucket("bucket")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / "cache"))
    return "s3://bucket"


@pytest.fixture(scope="module")
def google_server(tmp_path_factory):
    server = GoogleServer(tmp_path_factory.mktemp("google") / "log")
    yield server
    server.stop()


@pytest.fixture
def google(google_server, tmp_path, monkeypatch):
    """URIs of places in an empty bucket of Google's, by their paths; and an empty cache."""
    google_server.wipe()
    google_server.make_bucket("bucket")
    monkeypatch.setenv("FARREACH_CACHE", str(tmp_path / "cache"))
    return lambda path: google_server.uri(f"bucket/{path}")
