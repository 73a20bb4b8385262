"""A real headless Chromium, driven over its DevTools protocol: loads a page, tells what it said, asked for and shows.

Needs the program and aiohttp (Faust's), no driver. One browser at a time; every visit has a tab of its own.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
START_S_MAX = 60
ANSWER_S_MAX = 60


def find_chromium() -> str | None:
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass(slots=True)
class Visit:
    """`complaints`: errors and warnings of the console, exceptions, and what the security policy blocked."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    found: Any = None
    picture: bytes = b""


@contextmanager
def browser(program: str) -> Iterator[str]:
    """Yields the address of the DevTools endpoint."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # no-sandbox: a container's root may not use namespaces, and the only page is ours.
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio"]
        process = subprocess.Popen(
            [program, *options, *quiet, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield _endpoint(Path(folder) / "DevToolsActivePort", process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def visit(
    endpoint: str,
    url: str,
    *,
    width: int,
    height: int = 900,
    scheme: str = "light",
    script: str = "null",
    keys: str = "",
) -> Visit:
    """Load `url` in a window of that width, press `keys` on the first chart, evaluate `script`, take a picture."""
    return asyncio.run(_visit(endpoint, url, width, height, scheme, script, keys))


async def _visit(endpoint: str, url: str, width: int, height: int, scheme: str, script: str, keys: str) -> Visit:
    result = Visit()
    async with aiohttp.ClientSession() as session:
        async with session.put(f"{endpoint}/json/new?about:blank") as answer:
            tab = await answer.json()
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            numbers = itertools.count(1)
            loaded = False

            def note(message: dict[str, Any]) -> None:
                nonlocal loaded
                event = message.get("params", {})
                match message.get("method"):
                    case "Page.loadEventFired":
                        loaded = True
                    case "Network.requestWillBeSent":
                        result.requests.append(event["request"]["url"])
                    case "Runtime.exceptionThrown":
                        result.complaints.append(json.dumps(event["exceptionDetails"]))
                    case "Runtime.consoleAPICalled":
                        result.complaints.append(json.dumps(event["args"]))
                    case "Log.entryAdded":
                        result.complaints.append(event["entry"]["text"])

            async def call(method: str, **parameters: object) -> dict[str, Any]:
                number = next(numbers)
                await socket.send_json({"id": number, "method": method, "params": parameters})
                while True:
                    message = await socket.receive_json(timeout=ANSWER_S_MAX)
                    if message.get("id") == number:
                        assert "error" not in message, f"{method}: {message['error']}"
                        return dict(message["result"])
                    note(message)

            for domain in ("Page", "Network", "Runtime", "Log"):
                await call(f"{domain}.enable")
            await call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            await call("Emulation.setEmulatedMedia", features=features)
            await call("Page.navigate", url=url)
            while not loaded:
                note(await socket.receive_json(timeout=ANSWER_S_MAX))
            for key in filter(None, keys.split()):
                await call("Runtime.evaluate", expression="document.querySelector('[data-tips]').focus()")
                for kind in ("rawKeyDown", "keyUp"):
                    await call("Input.dispatchKeyEvent", type=kind, key=key)
            answer = await call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
            assert "exceptionDetails" not in answer, answer["exceptionDetails"]
            result.found = answer["result"].get("value")
            picture = await call("Page.captureScreenshot")
            result.picture = base64.b64decode(picture["data"])
        async with session.get(f"{endpoint}/json/close/{tab['id']}"):
            pass
    return result


def _endpoint(port_file: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"chromium ended with {process.returncode} before it listened")
        if port_file.exists() and (lines := port_file.read_text().split()):
            return f"http://127.0.0.1:{lines[0]}"
        time.sleep(0.05)
    raise TimeoutError(f"chromium did not listen within {START_S_MAX} s")
