"""A browser without a window that does what the lines of its standard input say.

Each line is a JSON list: what to do, and with what. Each is answered by a line of JSON: `done` with
a value, or `failed` with a reason. The first line of the output says which browser it is. With the
argument `dark` it prefers dark colours.
"""

import json
import os
import sys
import time

os.environ["QT_QPA_PLATFORM"] = "offscreen"
# Chromium's own sandbox needs rights that containers seldom give, and none of root's.
os.environ["QTWEBENGINE_DISABLE_SANDBOX"] = "1"
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = (
    "--disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    f"--no-proxy-server --blink-settings=preferredColorScheme={0 if 'dark' in sys.argv else 1}"
)

from PySide6.QtCore import QEventLoop, QPoint, Qt, QTimer, QUrl
from PySide6.QtTest import QTest
from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile, qWebEngineChromiumVersion
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

PATIENCE = 30


class Page(QWebEnginePage):
    """Keeps what is written to the console, where Chromium tells of all it refuses to do."""

    def __init__(self, profile, parent):
        super().__init__(profile, parent)
        self.messages = []

    def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802
        self.messages.append(message)


class Browser:
    def __init__(self):
        self.view = QWebEngineView()
        self.page = Page(QWebEngineProfile(self.view), self.view)  # keeps nothing on disk
        self.view.setPage(self.page)
        self.size(1400, 900)
        self.view.show()

    def open(self, url):
        """Go to an address and wait until it is seen; says whether it could be loaded."""
        is_there = self._awaited(
            lambda then: self.page.loadFinished.connect(
                then, Qt.ConnectionType.SingleShotConnection
            ),
            lambda: self.view.load(QUrl(url)),
        )
        if is_there:  # Chromium drops the keys that are pressed before a page is first painted
            self.until("performance.getEntriesByName('first-contentful-paint').length")
        return is_there

    def ask(self, script):
        """The value of a script, which JSON takes."""
        text = self._awaited(
            lambda then: self.page.runJavaScript(f"JSON.stringify(({script}) ?? null)", then)
        )
        if not text:
            raise RuntimeError(f"{script}: failed: {self.page.messages}")
        return json.loads(text)

    def until(self, script):
        """Wait until the value of a script is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.ask(script):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{script}: not within {PATIENCE} s: {self.page.messages}")
            self._wait(20)

    def type(self, text):
        """Press the keys of a text, and wait until the field that has the focus holds it."""
        QTest.keyClicks(self.view.focusProxy(), text)
        self.until(f"document.activeElement.value?.endsWith({json.dumps(text)})")

    def press(self, key, modifier="NoModifier"):
        """Press a key that Qt names, such as Return."""
        QTest.keyClick(
            self.view.focusProxy(),
            getattr(Qt.Key, f"Key_{key}"),
            getattr(Qt.KeyboardModifier, modifier),
        )

    def point(self, x, y):
        """Move the mouse to a place of the page."""
        QTest.mouseMove(self.view.focusProxy(), QPoint(int(x), int(y)))

    def size(self, width, height):
        """Make the window so wide and high, in pixels."""
        self.view.resize(width, height)

    def picture(self, path):
        """Write what the window shows into a file."""
        self._wait(200)
        return self.view.grab().save(path)

    def messages(self, is_done=False):
        """What the console says; `is_done` has it forgotten."""
        found = self.page.messages
        if is_done:
            self.page.messages = []
        return found

    def _awaited(self, connect, begin=lambda: None):
        loop, values = QEventLoop(), []

        def then(value):
            values.append(value)
            loop.quit()

        QTimer.singleShot(PATIENCE * 1000, loop, loop.quit)
        connect(then)
        begin()
        if not values:
            loop.exec()
        if not values:
            raise TimeoutError(f"no answer within {PATIENCE} s")
        return values[0]

    def _wait(self, milliseconds):
        loop = QEventLoop()
        QTimer.singleShot(milliseconds, loop.quit)
        loop.exec()


def answer(value):
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main():
    application = QApplication(sys.argv[:1])
    browser = Browser()
    application.setApplicationName("browser")
    browser.open("data:text/html,<p>ready")
    answer({"done": f"Chromium {qWebEngineChromiumVersion()}"})
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer({"done": getattr(browser, name)(*arguments)})
        except (RuntimeError, TimeoutError) as error:
            answer({"failed": str(error)})
    os._exit(0)  # Chromium's own tidying at exit is slow and sometimes fails


main()
