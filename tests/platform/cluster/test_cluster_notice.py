import json
import threading
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from farreach.cli import main as cli
from farreach.cluster import notice
from farreach.errors import ClusterError


@contextmanager
def metadata(answers):
    """The address of a service that tells a machine about itself.

    Args:
        answers: (method, path) → (the header that must be there, its value, status, body).
    """

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            header, value, status, body = answers[self.command, self.path]
            if self.headers.get(header) != value:
                status, body = 401, ""
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = answer  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def in_seconds(seconds, form):
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).strftime(form)


def of_aws(status, body=""):
    return {
        ("PUT", "/latest/api/token"): (
            "X-aws-ec2-metadata-token-ttl-seconds", "60", 200, "key",
        ),
        ("GET", "/latest/meta-data/spot/instance-action"): (
            "X-aws-ec2-metadata-token", "key", status, body,
        ),
    }  # fmt: skip


def of_gcp(body):
    path = "/computeMetadata/v1/instance/preempted"
    return {("GET", path): ("Metadata-Flavor", "Google", 200, body)}


def of_azure(*events):
    path = "/metadata/scheduledevents?api-version=2020-07-01"
    name = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
    return {
        ("GET", path): ("Metadata", "true", 200, json.dumps({"Events": events})),
        ("GET", name): ("Metadata", "true", 200, "rollouts_7\n"),
    }


NOTHING = {
    "aws": of_aws(404),
    "gcp": of_gcp("FALSE"),
    "azure": of_azure({"EventType": "Reboot", "NotBefore": ""}),
}


@pytest.mark.parametrize("cloud", NOTHING)
def test_a_machine_that_may_stay_has_no_notice(cloud):
    with metadata(NOTHING[cloud]) as address:
        assert notice.notice_s(cloud, address) is None


def test_aws_says_when():
    action = {"action": "terminate", "time": in_seconds(100, "%Y-%m-%dT%H:%M:%SZ")}
    with metadata(of_aws(200, json.dumps(action))) as address:
        assert 90 < notice.notice_s("aws", address) <= 100


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_a_proxy_is_not_asked_about_this_machine(monkeypatch, name):
    for other in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with metadata(of_gcp("TRUE")) as address:
        assert notice.notice_s("gcp", address) == 30


def test_google_gives_half_a_minute():
    with metadata(of_gcp("TRUE\n")) as address:
        assert notice.notice_s("gcp", address) == 30


def test_azure_says_when():
    when = in_seconds(25, "%a, %d %b %Y %H:%M:%S GMT")
    with metadata(of_azure({"EventType": "Preempt", "NotBefore": when})) as address:
        assert 15 < notice.notice_s("azure", address) <= 25


def test_azure_gives_half_a_minute_where_it_says_no_time():
    with metadata(of_azure({"EventType": "Preempt", "NotBefore": ""})) as address:
        assert notice.notice_s("azure", address) == 30


def preempted(*names):
    return {"EventType": "Preempt", "ResourceType": "VirtualMachine", "Resources": names}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([preempted("rollouts_8")], None),  # of the same scale set, whose events all hear of
        ([preempted("rollouts_70", "rollouts_8")], None),
        ([preempted("rollouts_8", "ROLLOUTS_7")], 30),
        ([preempted("rollouts_8"), preempted("rollouts_7")], 30),
        ([preempted()], 30),  # of nobody in particular
    ],
)
def test_azures_notice_for_another_machine_is_none_for_this_one(events, expected):
    with metadata(of_azure(*events)) as address:
        assert notice.notice_s("azure", address) == expected


def test_a_time_that_has_passed_leaves_no_seconds():
    action = {"action": "stop", "time": "2020-01-01T00:00:00Z"}
    with metadata(of_aws(200, json.dumps(action))) as address:
        assert notice.notice_s("aws", address) == 0


def test_the_notice_is_passed_on_once_when_it_comes():
    answers = of_gcp("FALSE")
    left = []
    with metadata(answers) as address:
        threading.Timer(0.2, answers.update, [of_gcp("TRUE")]).start()
        assert notice.wait("gcp", left.append, address, poll_s=0.02) == 30
    assert left == [30]


def test_a_service_that_fails_for_a_while_is_asked_again():
    answers = of_gcp("FALSE")
    seen = []

    class Moody(dict):
        def __getitem__(self, key):
            seen.append(key)
            return (answers | (of_gcp("TRUE") if len(seen) > 40 else {}))[key][:2] + (
                (500, "") if 1 < len(seen) < 40 else (200, "TRUE" if len(seen) > 40 else "FALSE")
            )

    with metadata(Moody()) as address:
        assert notice.wait("gcp", lambda _: None, address, poll_s=0.001) == 30
    assert len(seen) > 40


def test_a_machine_of_no_cloud_is_told_so(monkeypatch):
    with pytest.raises(ClusterError, match="does not answer as on a machine of aws"):
        notice.wait("aws", lambda _: None, "http://127.0.0.1:9", poll_s=0.001)


def test_the_command_tells_ray(monkeypatch, capsys):
    told = []
    monkeypatch.setattr(notice, "drain_this_node", told.append)
    monkeypatch.setattr(notice, "wait", lambda cloud, leave: leave(30.0))
    assert cli.main(["cluster", "notice", "gcp"]) == 0
    assert told == [30.0]
    assert "taken away in 30 s" in capsys.readouterr().err
