"""Headless Chromium, driven by the DevTools protocol over a pipe; nothing but Python is needed."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

# What the browser would otherwise look for on the network has no place in a test.
FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-pipe", "--hide-scrollbars", "--force-device-scale-factor=1"),
)
NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
PATIENCE: Final = 60.0  # seconds, for an answer and for a page


def chromium() -> str | None:
    """Where a Chromium is, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One browser with one tab. What went wrong in the page is kept in `events`."""

    def __init__(self, path: str, width: int, height: int) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = [*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={self._profile.name}"]
        # Chromium reads commands from descriptor 3 and answers on 4.
        start = f'exec 3<&{commands} 4>&{answers}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", start, "-", path, *flags, "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._left, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        found = self.send("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in found if target["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=tab, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(width, height)

    def close(self) -> None:
        try:
            self._session = ""
            self.send("Browser.close")
        finally:
            self._process.wait(PATIENCE)
            os.close(self._write)
            os.close(self._read)
            self._profile.cleanup()

    # --- the protocol

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers. Raises RuntimeError when it refuses."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") != self._number:
                self.events.append(answer)
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            result: dict[str, Any] = answer["result"]
            return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            if not select.select([self._read], [], [], PATIENCE)[0]:
                raise TimeoutError("the browser does not answer")
            read = os.read(self._read, 1 << 20)
            if not read:
                raise RuntimeError("the browser has ended")
            self._left += read
        message, _, self._left = self._left.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    # --- a page

    def open(self, path: Path, part: str = "overview") -> int:
        """Open a report at one of its parts; milliseconds until it can be used."""
        self.events.clear()
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=f"{path.as_uri()}#{part}")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            ready = self.run("document.documentElement?.dataset.ready ?? ''")
            if ready:
                self.settle()
                return int(ready)
            time.sleep(0.01)
        raise TimeoutError(f"the page is never ready: {self.complaints()}")

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are awaited. Raises RuntimeError."""
        done = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in done:
            raise RuntimeError(json.dumps(done["exceptionDetails"])[:2000])
        return done["result"].get("value")

    def settle(self, seconds: float = 0.35) -> None:
        """Wait until what was asked for is drawn: typing is looked at after a pause, and moves take
        some frames."""
        time.sleep(seconds)
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def hover(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle(0.05)

    def press(self, key: str, *, shift: bool = False) -> None:
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        given = {"key": key, "modifiers": 8 if shift else 0, **text}
        codes = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40}
        if key in codes:
            given["windowsVirtualKeyCode"] = codes[key]
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, **given)
        self.settle()

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)
        self.settle()

    def picture(self) -> bytes:
        """The page as a PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    # --- what went wrong, and what was asked for

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions that nobody caught, dialogs."""
        return [text for event in self.events for text in _complaint(event)]

    def requests(self) -> list[str]:
        """The addresses that the page asked for."""
        sent = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]


def _complaint(event: dict[str, Any]) -> list[str]:
    given = event.get("params", {})
    match event["method"]:
        case "Runtime.exceptionThrown":
            thrown = given["exceptionDetails"]
            return [thrown.get("exception", {}).get("description") or thrown["text"]]
        case "Runtime.consoleAPICalled" if given["type"] in ("error", "warning", "assert"):
            return [json.dumps(given["args"])]
        case "Log.entryAdded" if given["entry"]["level"] in ("error", "warning"):
            return [given["entry"]["text"]]
        case "Page.javascriptDialogOpening":
            return [f"dialog: {given['message']}"]
    return []
