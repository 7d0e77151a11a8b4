"""A real browser without a window, in a process of its own, for tests of pages."""

import contextlib
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("browser_program.py")
MISSING = re.compile(r"ImportError|ModuleNotFoundError|shared object|platform plugin")


class Browser:
    """Has a browser in another process do things; each is a method of its `Browser`."""

    def __init__(self, *arguments):
        program = [sys.executable, str(PROGRAM), *arguments]
        self.process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.answers, self.noise = queue.Queue(), []
        self.threads = [
            threading.Thread(target=self._keep, args=(self.process.stdout, self.answers.put)),
            threading.Thread(target=self._keep, args=(self.process.stderr, self.noise.append)),
        ]
        for thread in self.threads:
            thread.start()

    def _keep(self, stream, put):
        for line in stream:
            put(line)
        put("")

    def answer(self):
        """The next one; raises EOFError with what the process said last if there is none."""
        line = self.answers.get(timeout=90)
        if not line:
            self.threads[1].join(10)
            raise EOFError(" ".join(line.strip() for line in self.noise[-4:]))
        given = json.loads(line)
        assert "failed" not in given, given["failed"]
        return given["done"]

    def __getattr__(self, name):
        def do(*arguments):
            self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
            self.process.stdin.flush()
            return self.answer()

        return do

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for thread in self.threads:
            thread.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def text(self, selector):
        return self.ask(f"document.querySelector({selector!r})?.textContent")

    def texts(self, selector):
        return self.ask(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")

    def note(self):
        return self.text("#note")

    def has(self, text):
        """Wait until the page says something."""
        self.until(f"document.getElementById('note').textContent.includes({json.dumps(text)})")

    def clear(self, field):
        self.ask(f"document.getElementById({field!r}).focus()")
        self.ask(f"document.getElementById({field!r}).select()")
        self.press("Delete")


@contextlib.contextmanager
def started(*arguments):
    """A browser, or a skipped test where Qt or a library of the system that it needs is missing."""
    if importlib.util.find_spec("PySide6") is None:
        pytest.skip("PySide6 is not installed")
    browser = Browser(*arguments)
    try:
        try:
            browser.answer()
        except EOFError as error:
            if MISSING.search(str(error)):
                pytest.skip(f"the browser does not start: {error}")
            raise
        yield browser
    finally:
        browser.close()
