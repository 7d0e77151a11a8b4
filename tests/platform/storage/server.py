"""Real storage servers, as processes of their own: moto's S3, and one of Google's protocol."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`environment` is what a process needs to use it."""

    def __init__(self, log):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        script = Path(sys.executable).with_name("moto_server")
        self._log = open(log, "wb")  # noqa: SIM115 (closed by stop)
        self._begun = 0  # line of the log at which this test began
        self._process = subprocess.Popen(
            [sys.executable, str(script), "-H", "127.0.0.1", "-p", str(port)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "inf"},
        )
        end = time.monotonic() + 120
        while True:
            try:
                self.reset()
                break
            except OSError:
                assert self._process.poll() is None, Path(log).read_text()
                assert time.monotonic() < end
                time.sleep(0.2)

    def reset(self):
        """Forget all buckets, and what was asked before."""
        self.tell("reset")
        self._begun = len(Path(self._log.name).read_text().splitlines())

    def tell(self, order, body=b""):
        """An order to the server itself: `reset`, or `reset-auth` with how many need no rights."""
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(
            f"{self.url}/moto-api/{order}", data=body, method="POST", headers=headers
        )
        urllib.request.urlopen(request, timeout=30).close()

    def make_bucket(self, name):
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()

    def sleep(self):
        self._process.send_signal(signal.SIGSTOP)

    def wake(self):
        self._process.send_signal(signal.SIGCONT)

    def lines(self):
        """Of its log, one for each answer."""
        return Path(self._log.name).read_text().splitlines()[self._begun :]

    def requests(self, method, name):
        """How many it has answered for an object whose name ends so."""
        return sum(f"{method} " in line and f"{name} HTTP" in line for line in self.lines())

    def stop(self):
        self._process.kill()
        self._process.wait()
        self._log.close()


class GoogleServer:
    """Speaks the protocol of Google Cloud Storage, and asks nobody for rights."""

    def __init__(self, log):
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._query = urllib.parse.urlencode(
            {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http"}
        )
        script = Path(sys.executable).with_name("gcp-storage-emulator")
        self._log = open(log, "wb")  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            [sys.executable, str(script), "start", f"--port={port}", "--in-memory"],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self._url}/", timeout=30).close()
                break
            except OSError:
                assert self._process.poll() is None, Path(log).read_text()
                assert time.monotonic() < end
                time.sleep(0.2)

    def uri(self, place):
        """Of a place such as `bucket/runs`."""
        return f"gs://anonymous@{place}?{self._query}"

    def make_bucket(self, name):
        request = urllib.request.Request(
            f"{self._url}/storage/v1/b",
            data=f'{{"name": "{name}"}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=30).close()

    def wipe(self):
        """Forget all buckets."""
        urllib.request.urlopen(f"{self._url}/wipe", timeout=30).close()

    def stop(self):
        self._process.kill()
        self._process.wait()
        self._log.close()
