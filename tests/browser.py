"""A headless Chromium, driven over its DevTools protocol."""

import asyncio
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from waiting import TIMEOUT_S, until

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
"""Path of the browser; "" where there is none."""


class Tab:
    """One open page.

    Attributes:
        problems: Uncaught errors, and what was logged as an error or a warning.
        requests: URLs that the page requested.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Take an open connection to the page's target."""
        self._loop, self._socket, self._numbers = loop, socket, itertools.count(1)
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), TIMEOUT_S))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, content: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(content["exceptionDetails"])[:500])
        elif event == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.problems.append(content["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning"):
            self.problems.append(str(content["args"]))

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript in the page, await a promise, and return its value as JSON."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def resize(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Give the window this size and theme, and wait until the page has taken note."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 300)))")

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of this size, and wait until its script says that it is ready."""
        self.resize(width, height, dark)
        self.call("Page.navigate", url=path.resolve().as_uri())
        until(lambda: self.run("document.documentElement?.dataset.ready") == "true")

    def press(self, key: str, code: int) -> None:
        """Press a key, e.g. ("Tab", 9)."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


@contextmanager
def opened_tab() -> Iterator[Tab]:
    """Start a browser with one empty page, and end it with the block."""
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
        # Nothing of the browser's own goes out: tests see only what the page asks for.
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        command = [CHROMIUM, *options, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        browser = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            port = _port(Path(profile) / "DevToolsActivePort", browser)
            session = loop.run_until_complete(_session())
            try:
                yield Tab(loop, loop.run_until_complete(_connect(session, port)))
            finally:
                loop.run_until_complete(session.close())
        finally:
            browser.terminate()
            browser.wait()
            loop.close()


def _port(file: Path, browser: subprocess.Popen[bytes]) -> int:
    until(lambda: file.exists() and file.read_text().strip(), lambda: browser.poll() is None)
    return int(file.read_text().splitlines()[0])


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _connect(session: aiohttp.ClientSession, port: int) -> aiohttp.ClientWebSocketResponse:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
        pages = [target for target in await response.json() if target["type"] == "page"]
    return await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
