import contextlib
import http.server
import json
import threading
import time

import pytest
import ray

from farreach.cluster import dashboard as module
from farreach.cluster.dashboard import Dashboard, LostError
from farreach.errors import ClusterError


@pytest.fixture
def serve():
    """Starts servers that give one answer to everything; their addresses."""
    servers = []

    def serve(status, text, wait_s=0.0):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                time.sleep(wait_s)
                self.send_response(status)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, "http://127.0.0.1:8265"),
        ("head:8265", "http://head:8265"),
        ("https://ray.example.org/cluster/", "https://ray.example.org/cluster"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_an_address_may_leave_out_what_is_usual(given, meant, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert Dashboard(given).address == meant


def test_the_variable_of_rays_commands_is_the_default(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:1234")
    assert Dashboard().address == "http://head:1234"
    assert Dashboard("http://other:1").address == "http://other:1"


@pytest.mark.parametrize("given", ["ray://head:10001", "http://", "http://head:x"])
def test_another_address_is_explained(given):
    with pytest.raises(ClusterError, match=r"Give http://HOST:8265; where Ray listens itself"):
        Dashboard(given)


def test_the_right_version_passes(serve):
    Dashboard(serve(200, json.dumps({"ray_version": ray.__version__}))).check()


def test_another_version_is_named_with_the_remedy(serve):
    with pytest.raises(ClusterError, match=r"has Ray 2\.9\.1, and this machine has 2\.") as caught:
        Dashboard(serve(200, '{"ray_version": "2.9.1"}')).check()
    assert "`pip install 'ray[default]==2.9.1'` here." in str(caught.value)


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "Unauthorized: Missing", "wants a token, and none was sent. Set RAY_AUTH_MODE=token"),
        (403, "Forbidden: Invalid authentication token\n", "refuses the token that was sent: Forb"),
        (404, "nothing", "is no dashboard of Ray (status 404). Its usual port is 8265."),
        (200, "<html>", "is no dashboard of Ray (no JSON). Its usual port is 8265."),
        (200, "[]", "is no dashboard of Ray (it tells no version)."),
        (500, "Traceback\n  many\nKeyError: 3\n", "failed to answer: KeyError: 3."),
    ],
)
def test_a_refusal_is_one_line(status, text, message, serve):
    with pytest.raises(ClusterError) as caught:
        Dashboard(serve(status, text)).check()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_forgotten_job_is_not_a_lost_cluster(serve):
    with pytest.raises(
        ClusterError, match=r"Job maze-1 does not exist\. A head that was"
    ) as caught:
        Dashboard(serve(404, "Job maze-1 does not exist")).job("maze-1")
    assert not isinstance(caught.value, LostError)


def test_nobody_there_is_said_at_once():
    begin = time.monotonic()
    with pytest.raises(LostError, match=r"no cluster answers at http://127.0.0.1:1: .*refused"):
        Dashboard("127.0.0.1:1").check()
    assert time.monotonic() - begin < 3


def test_whoever_listens_and_says_nothing_is_given_up(serve, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 0.2)
    with pytest.raises(LostError, match="timed out"):
        Dashboard(serve(200, "{}", wait_s=1.0)).check()
