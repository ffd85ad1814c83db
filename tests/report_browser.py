"""A real browser for the tests of the pages, driven over its debugging pipe."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DOMAINS = ("Page", "Runtime", "Log", "Network", "Accessibility")
READY = (
    "document.readyState === 'complete' && "
    "(document.documentElement.dataset.charts === 'drawn' || !document.querySelector('[data-figure]'))"
)

FOCUS = """(() => {
  const e = document.activeElement, box = e.getBoundingClientRect(), style = getComputedStyle(e);
  const all = Array.from(document.querySelectorAll("*"));
  return {
    place: all.indexOf(e), tag: e.tagName, wide: box.width, high: box.height, outline: style.outlineStyle,
    name: (e.getAttribute("aria-label") || e.textContent || e.closest("label")?.textContent || "").trim(),
  };
})()"""
# Every piece of text with too little contrast to the colours behind it, as WCAG 2 counts it (4.5, or 3 for large text).
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = {};
  const rgba = (color) => known[color] ??= (() => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  })();
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = (c) => {
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = c.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    if (!Array.from(e.childNodes).some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    if (!e.checkVisibility() || e.closest("script, style, .hidden, .skip, [disabled]")) continue;
    const style = getComputedStyle(e), behind = ground(e);
    const ink = over(rgba(e instanceof SVGElement ? style.fill : style.color), behind);
    const [a, b] = [light(ink), light(behind)].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) {
      bad.push(`${ratio.toFixed(2)} ${e.tagName}.${e.getAttribute("class")}: ${e.textContent.slice(0, 40)}`);
    }
  }
  return bad;
})()"""


def installed() -> str | None:
    """The browser, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. `events` holds everything that the browser reported, `trouble()` what of it is a fault."""

    def __init__(self, folder: Path) -> None:
        commands, answers = os.pipe(), os.pipe()

        def hand_over() -> None:  # the browser reads file descriptor 3 and writes 4
            os.dup2(commands[0], 13)
            os.dup2(answers[1], 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        self.process = subprocess.Popen(
            [str(installed()), *flags], preexec_fn=hand_over, close_fds=False, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands[0])
        os.close(answers[1])
        self._to, self._from = commands[1], answers[0]
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in DOMAINS:
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _read(self, timeout: float = 60) -> dict[str, Any]:
        until = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            got = os.read(self._from, 1 << 20) if ready else b""
            assert got, "the browser does not answer"
            self._buffer += got
        answer, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(answer)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]["exception"].get("description")
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 15) -> None:
        """Until an expression is true."""
        until = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < until, f"never came true: {expression}"
            time.sleep(0.05)

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page, and wait until its charts are drawn."""
        self.events.clear()
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        self("Emulation.setEmulatedMedia", features=[scheme, calm])
        self("Page.navigate", url=path.absolute().as_uri())
        self.wait(f"location.href === {json.dumps(path.absolute().as_uri())} && {READY}")

    def trouble(self) -> list[str]:
        """Errors on the console, exceptions, dialogs, and requests for anything but the page itself."""
        found = []
        for event in self.events:
            method, about = event["method"], event.get("params", {})
            if method in ("Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
                found.append(f"{method}: {json.dumps(about)[:400]}")
            elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(f"console: {json.dumps(about['args'])[:400]}")
            elif method == "Network.requestWillBeSent" and about.get("type") != "Document":
                found.append(f"request: {about['request']['url'][:200]}")
        return found

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key once."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self("Input.dispatchKeyEvent", type="keyUp", **about)

    def pointer(self, x: float, y: float, *, click: bool = False) -> None:
        """Move the pointer to a place of the window, and perhaps click there."""
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self("Page.printToPDF", printBackground=True)["data"])

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        self.process.terminate()
        self.process.wait(10)
        os.close(self._to)
        os.close(self._from)
