"""The web page: its files, and a real browser with a recording for a microphone, where there is one."""

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import soundfile
from websockets.sync.client import connect

from speechkit.streaming.engine import Engine
from speechkit.streaming.server.connection import TRANSPORT, Connection
from speechkit.streaming.server.page import FOLDER
from tests.asr.tiny import babble
from tests.server.serving import TOKEN, Running, Talk, eventually, make_engine, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-gpu",
    "--disable-dev-shm-usage", "--disable-breakpad", "--mute-audio", "--remote-debugging-port=0",
    "--window-size=900,700", "--host-resolver-rules=MAP page.test 127.0.0.1",
)  # fmt: skip
SECONDS = 8.0
browsing = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


class Browser:
    """Headless Chromium with one page, told what to do over the DevTools protocol."""

    def __init__(self, profile: Path, *flags: str) -> None:
        command = [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = profile / "DevToolsActivePort"
            assert eventually(lambda: port.exists() and port.read_text().count("\n"), 60)
            listing = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
            assert eventually(lambda: any(page["type"] == "page" for page in httpx.get(listing).json()), 20)
            target = next(page for page in httpx.get(listing).json() if page["type"] == "page")
            self._connect = connect(target["webSocketDebuggerUrl"], max_size=None, compression=None)
            self._socket = self._connect.__enter__()
        except BaseException:
            self._process.kill()
            raise
        self._number = 0
        self.told: list[dict[str, Any]] = []  # events of the browser
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def close(self) -> None:
        """Ends it and all its processes."""
        try:
            self.do("Browser.close")
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._connect.__exit__(None, None, None)

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message: dict[str, Any] = json.loads(self._socket.recv(30))
            if message.get("id") != self._number:
                self.told.append(message)
                continue
            assert "error" not in message, message
            return dict(message["result"])

    def visit(self, url: str) -> None:
        """Opens a page and waits until it is there."""
        self.told.clear()
        self.do("Page.navigate", url=url)
        assert self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, expression: str) -> Any:
        """Its value."""
        found = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 15) -> bool:
        """Whether it becomes true within some seconds."""
        return eventually(lambda: self.js(expression), seconds)

    def text(self, name: str) -> str:
        """What the element of an id shows."""
        return str(self.js(f"document.getElementById('{name}').innerText"))

    def click(self, name: str) -> None:
        """As a mouse does, so that it counts as the user's wish."""
        box = self.js(f"document.getElementById('{name}').getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, **at)

    def type(self, name: str, text: str) -> None:
        """Writes into a field, and leaves it."""
        self.js(f"document.getElementById('{name}').focus()")
        self.do("Input.insertText", text=text)
        self.js("document.activeElement.blur()")

    def frames(self, kind: str) -> list[dict[str, Any]]:
        """Of websockets, in their order: ``Sent`` or ``Received``."""
        self.js("0")  # what was told until now
        wanted = f"Network.webSocketFrame{kind}"
        return [event["params"]["response"] for event in self.told if event["method"] == wanted]

    def heard(self) -> list[dict[str, Any]]:
        """What the server said on websockets."""
        return [json.loads(frame["payloadData"]) for frame in self.frames("Received") if frame["opcode"] == 1]

    def said(self) -> list[dict[str, Any]]:
        """What the page said on them, besides audio."""
        return [json.loads(frame["payloadData"]) for frame in self.frames("Sent") if frame["opcode"] == 1]

    def audio(self) -> bytes:
        """What it sent on them."""
        return b"".join(self.audio_of_connections())

    def audio_of_connections(self) -> list[bytes]:
        """What it sent on each that it sent audio on."""
        found: dict[str, bytes] = {}
        for event in self.told:
            if event["method"] == "Network.webSocketFrameSent" and event["params"]["response"]["opcode"] == 2:
                data = base64.b64decode(event["params"]["response"]["payloadData"])
                found[event["params"]["requestId"]] = found.get(event["params"]["requestId"], b"") + data
        return list(found.values())

    def faults(self) -> list[dict[str, Any]]:
        """Exceptions of scripts, and what the security policy forbade."""
        self.js("0")
        logged = [event for event in self.told if event["method"] == "Log.entryAdded"]
        forbidden = [event for event in logged if event["params"]["entry"]["source"] == "security"]
        return forbidden + [event for event in self.told if event["method"] == "Runtime.exceptionThrown"]


Launch = Callable[..., Browser]
BUFFERED = "Object.defineProperty(WebSocket.prototype, 'bufferedAmount', {get: () => AMOUNT, configurable: true}); 0"
SEGMENT_S = 1.5  # what the tiny model says has no pauses


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts browsers, with a recording for a microphone unless told otherwise."""
    browsers: list[Browser] = []

    def launched(recording: np.ndarray | None = None, consent: str = "--use-fake-ui-for-media-stream") -> Browser:
        flags = [consent]
        if recording is not None:
            file = tmp_path / "microphone.wav"
            soundfile.write(file, recording, 48_000, subtype="PCM_16")
            flags += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={file}%noloop"]
        browsers.append(Browser(tmp_path / f"profile-{len(browsers)}", *flags))
        return browsers[-1]

    yield launched
    for browser in browsers:
        browser.close()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


def speech() -> np.ndarray:
    """(samples,) at 48 kHz, with a pause in it."""
    wave = babble(SECONDS, rate=48_000, seed=5)
    wave[48_000 * 3 : 48_000 * 5] = 0
    return wave


def shown(browser: Browser) -> list[str]:
    """Texts of the finals on the page."""
    return list(browser.js("[...document.querySelectorAll('#finals .segment span')].map((x) => x.textContent)"))


def started(browser: Browser, url: str) -> None:
    """Visits the page and starts it."""
    browser.visit(url)
    browser.click("toggle")
    assert browser.until("document.getElementById('state').textContent === 'Listening'"), browser.text("problem")


def finals(events: list[dict[str, Any]]) -> list[str]:
    """Texts that are not empty."""
    return [event["text"] for event in events if event["type"] == "final" and event["text"]]


# Without a browser.


def test_the_page_and_its_files_are_served(engine: Engine) -> None:
    kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    with serving(engine, tokens=(TOKEN,)) as running:  # there is nothing secret in them
        index = httpx.get(f"{running.http}/")
        named = sorted(set(re.findall(r'(?:src|href)="([^"]*)"', index.text)))
        assert named == ["page/icon.svg", "page/page.css", "page/page.js"]
        others = [f"page/{path.name}" for path in FOLDER.iterdir() if path.name != "index.html"]
        assert set(named) < set(others)
        for path in ("", *others):
            answer = httpx.get(f"{running.http}/{path}")
            assert answer.status_code == 200
            kind, _, charset = answer.headers["content-type"].partition("; ")
            assert kind == kinds[(path or "index.html").rpartition(".")[2]]
            assert charset == ("" if path.endswith(".svg") else "charset=utf-8")
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.headers["x-content-type-options"] == "nosniff"
            policy = answer.headers["content-security-policy"].split("; ")
            assert {"default-src 'self'", "connect-src 'self' ws: wss:", "frame-ancestors 'none'"} < set(policy)
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert httpx.head(f"{running.http}/{path}").status_code == 200
        for path in ("page/", "page/index.html", "page/none.js", "page/..%2fpage.py", "page/%2e%2e/page.py"):
            assert httpx.get(f"{running.http}/{path}").status_code == 404
        with pytest.raises(Exception, match="401"):  # the websocket at the same path is another's
            Talk(f"ws://127.0.0.1:{running.port}/")


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for path in FOLDER.iterdir():
        urls = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text())
        assert [url for url in urls if url != "http://www.w3.org/2000/svg"] == []  # a name, not an address
        assert not re.search(r"@import|\bimport\((?!\.)|from \"(?!\./)|<[^>]* (?:style|on\w+)=", path.read_text())


# With one.


@browsing
def test_what_is_spoken_is_shown(engine: Engine, launch: Launch) -> None:
    with serving(engine, segment_s=SEGMENT_S) as running:
        browser = launch(speech())
        started(browser, running.http)
        assert browser.text("model") == "tiny"
        assert browser.js("[...document.getElementById('latency').options].map((x) => x.value)") == ["0", "80"]
        assert browser.until("!document.getElementById('partial').hidden")
        assert browser.until("document.getElementById('level').getAttribute('aria-valuenow') > 20")
        assert browser.until("document.querySelectorAll('#finals .segment').length > 0")
        assert browser.js("document.getElementById('toggle').innerText") == "Stop"
        browser.js("for (const x of [document.getElementById('latency')]) { x.value = '0'; "
                   "x.dispatchEvent(new Event('change')) }")  # fmt: skip
        browser.type("hotwords", "abc,  bad cab,")
        time.sleep(2)
        browser.click("toggle")
        assert browser.until("document.getElementById('toggle').dataset.state === 'idle'")
        heard, said, sent = browser.heard(), browser.said(), browser.audio()
        rate = browser.js("new AudioContext().sampleRate")
        assert said[0] == {"type": "config", "rate": rate, "encoding": "s16le", "words": False}
        assert said[1] == {"type": "set_latency", "latency_ms": 0}
        assert said[2] == {"type": "hotwords", "phrases": ["abc", "bad cab"]}
        assert said[3] == {"type": "close"}
        assert any(event["type"] == "partial" for event in heard)
        assert heard[-1]["type"] == "done"
        assert heard[-1]["seconds"] == pytest.approx(len(sent) / 2 / rate, abs=0.01)
        assert np.abs(np.frombuffer(sent, "<i2")).max() > 1000
        assert len(shown(browser)) > 0
        assert shown(browser) == finals(heard)
        assert browser.js("document.getElementById('partial').hidden")
        assert browser.text("problem") == ""
        assert running.metric("speechkit_words_total") > 0
        assert running.empty()
        assert browser.faults() == []


@browsing
def test_the_transcript_can_be_kept_and_cleared(engine: Engine, launch: Launch, tmp_path: Path) -> None:
    with serving(engine, segment_s=SEGMENT_S) as running:
        browser = launch(speech())
        browser.do("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        browser.do("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        started(browser, running.http)
        assert browser.until("document.querySelectorAll('#finals .segment').length > 0")
        browser.click("toggle")
        assert browser.until("document.getElementById('toggle').dataset.state === 'idle'")
        text = "\n".join(shown(browser))
        browser.click("copy")
        assert browser.until("document.getElementById('copy').innerText === 'Copied'")
        assert browser.js("navigator.clipboard.readText()") == text
        browser.click("save")
        assert eventually(lambda: list(tmp_path.glob("transcript-*.txt")))
        assert next(tmp_path.glob("transcript-*.txt")).read_text() == text + "\n"
        browser.click("clear")
        assert shown(browser) == []
        browser.click("clear")
        assert "\n".join(shown(browser)) == text
        assert browser.faults() == []


@browsing
def test_a_broken_connection_is_resumed_without_loss(
    engine: Engine, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(engine, segment_s=SEGMENT_S) as running:
        browser = launch(speech())
        started(browser, running.http)
        for left in range(2):
            assert browser.until("document.querySelectorAll('#finals .segment').length > 0")
            with monkeypatch.context() as patch:
                patch.setattr(running.application.hall, "refusal", lambda: ("full", "not now"))
                if left:
                    browser.js("dispatchEvent(new Event('offline'))")
                else:
                    abort(running)
                assert browser.until("document.getElementById('state').textContent.includes('connection broke')")
                time.sleep(1)
            assert browser.until("document.getElementById('state').textContent === 'Listening'")
        time.sleep(0.5)
        browser.click("toggle")
        assert browser.until("document.getElementById('toggle').dataset.state === 'idle'")
        heard, whole = browser.heard(), b""
        connections = [event for event in heard if event["type"] == "ready"]
        assert [event["resumed"] for event in connections] == [False, True, True]
        for ready, sent in zip(connections, browser.audio_of_connections(), strict=True):
            again = whole[ready["received"] :]
            assert sent[: len(again)] == again  # what the server had not received comes once more
            whole = whole[: ready["received"]] + sent
        assert heard[-1]["seconds"] == pytest.approx(len(whole) / 2 / connections[0]["rate"], abs=0.001)
        assert heard[-1]["seconds"] > 4
        told = {event["seq"]: event for event in heard if "seq" in event}
        assert shown(browser) == finals([told[number] for number in sorted(told)])
        assert browser.text("problem") == ""
        assert running.metric("speechkit_streams_resumed_total") == 2
        assert browser.faults() == []


def abort(running: Running) -> None:
    """Cuts the connection of the only stream, without any farewell."""
    (live,) = running.application.hall.lives.values()
    transport = cast(Connection, live.attached).socket.scope["extensions"][TRANSPORT]
    running.server._loop.call_soon_threadsafe(transport.abort)  # type: ignore[union-attr]


@browsing
def test_a_slow_connection_is_told_of_and_loses_nothing(engine: Engine, launch: Launch) -> None:
    with serving(engine, segment_s=SEGMENT_S) as running:
        browser = launch(speech())
        started(browser, running.http)
        browser.js(BUFFERED.replace("AMOUNT", "500000"))
        assert browser.until("document.getElementById('state').textContent.includes('connection is slow')")
        before = len(browser.audio())
        time.sleep(1)
        assert len(browser.audio()) == before  # it waits in the page, which keeps a bound
        browser.js(BUFFERED.replace("AMOUNT", "0"))
        assert browser.until("document.getElementById('state').textContent === 'Listening'")
        browser.click("toggle")
        assert browser.until("document.getElementById('toggle').dataset.state === 'idle'")
        done = browser.heard()[-1]
        assert done["type"] == "done"
        assert done["seconds"] == pytest.approx(len(browser.audio()) / 2 / browser.said()[0]["rate"], abs=0.001)
        assert done["seconds"] > 1
        assert shown(browser) == finals(browser.heard())


@browsing
def test_a_server_that_is_gone_for_too_long(engine: Engine, launch: Launch) -> None:
    with serving(engine, resume_s=0.5) as running:
        browser = launch(speech())
        started(browser, running.http)
        running.application.hall.draining = True  # nobody comes in any more
        abort(running)
        assert browser.until("document.getElementById('problem').textContent.includes('broken for too long')")
        assert browser.until("document.getElementById('toggle').innerText === 'Start'")
        assert browser.faults() == []


@browsing
def test_a_server_that_stops_says_so(engine: Engine, launch: Launch) -> None:
    with serving(engine, segment_s=SEGMENT_S) as running:
        browser = launch(speech())
        started(browser, running.http)
        running.server._loop.call_soon_threadsafe(running.server._drain)  # type: ignore[union-attr]
        assert browser.until("document.getElementById('problem').textContent.includes('about to stop')")
        assert browser.until("document.getElementById('toggle').innerText === 'Start'")


@browsing
def test_a_token_is_asked_for_and_not_kept(engine: Engine, launch: Launch) -> None:
    with serving(engine, tokens=(TOKEN,), segment_s=SEGMENT_S) as running:
        browser = launch(speech())
        browser.visit(running.http)
        assert browser.until("!document.getElementById('entry').hidden")
        assert browser.text("problem") == ""
        for wrong, words in (("not this one", "may have letters"), ("not-this-one", "does not know")):
            browser.js("document.getElementById('token').value = ''")
            browser.type("token", wrong)
            browser.click("toggle")
            assert browser.until(f"document.getElementById('problem').textContent.includes('{words}')")
        browser.js("document.getElementById('token').value = ''; document.getElementById('token').focus()")
        browser.do("Input.insertText", text=TOKEN)
        browser.do("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13)
        assert browser.until("document.querySelectorAll('#finals .segment').length > 0"), browser.text("problem")
        browser.click("toggle")
        assert browser.until("document.getElementById('toggle').dataset.state === 'idle'")
        assert shown(browser) == finals(browser.heard())
        assert browser.text("problem") == ""
        kept = browser.js("[location.href, document.cookie, localStorage.length, sessionStorage.length]")
        assert kept == [f"{running.http}/", "", 0, 0]
        browser.visit(f"{running.http}/?")
        assert browser.js("document.getElementById('token').value") == ""


@browsing
def test_a_server_that_is_full_says_so(engine: Engine, launch: Launch) -> None:
    with serving(engine, streams=1) as running, Talk(running.url) as talk:
        talk.config()
        browser = launch(speech())
        browser.visit(running.http)
        browser.click("toggle")
        assert browser.until("document.getElementById('problem').textContent.includes('full')")
        assert browser.until("document.getElementById('toggle').dataset.state === 'idle'")
        talk.say(type="close")
        talk.rest()
        assert running.empty()
        browser.click("toggle")
        assert browser.until("document.getElementById('state').textContent === 'Listening'")
        assert browser.text("problem") == ""


@browsing
def test_words_that_cannot_be_favoured(engine: Engine, launch: Launch) -> None:
    with serving(engine) as running:
        browser = launch(speech())
        browser.visit(running.http)
        browser.type("hotwords", "xyz")
        browser.click("toggle")
        assert browser.until("document.getElementById('problem').textContent.includes('xyz')")
        browser.js("document.getElementById('hotwords').value = ''")
        browser.click("toggle")
        assert browser.until("document.getElementById('state').textContent === 'Listening'")
        browser.type("hotwords", "xyz")
        assert browser.until("document.getElementById('problem').textContent.includes('xyz')")
        assert browser.text("state") == "Listening"


@browsing
def test_a_microphone_that_cannot_be_had(engine: Engine, launch: Launch) -> None:
    with serving(engine) as running:
        denying = launch(speech(), consent="--use-fake-ui-for-media-stream=deny")
        denying.visit(running.http)
        denying.click("toggle")
        assert denying.until("document.getElementById('problem').textContent.includes('is not allowed')")
        assert denying.js("document.getElementById('toggle').dataset.state") == "idle"
        assert denying.faults() == []
        without = launch()
        without.visit(running.http)
        without.click("toggle")
        assert without.until("document.getElementById('problem').textContent.includes('There is no microphone')")
        without.visit(f"http://page.test:{running.port}/")  # neither https nor this computer
        assert "https" in without.text("problem")
        assert without.js("document.getElementById('toggle').disabled")
        assert running.places == 0
