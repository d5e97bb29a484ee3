"""
A browser without a window, driven by chromedriver's own protocol, so that no library is needed:
Debian's packages `chromium` and `chromium-driver`. What is done to a page is what a reader would
do: press, type, look.
"""

import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest

DRIVER, CHROMIUM = (
    shutil.which("chromedriver"),
    shutil.which("chromium") or shutil.which("google-chrome"),
)
needed = pytest.mark.skipif(
    not (DRIVER and CHROMIUM), reason="no browser: apt-get install chromium chromium-driver"
)
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1280,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name for an element
KEYS = {
    "left": "\ue012",
    "right": "\ue014",
    "up": "\ue013",
    "down": "\ue015",
    "home": "\ue011",
    "end": "\ue010",
    "space": " ",
    "escape": "\ue00c",
    "tab": "\ue004",
    "delete": "\ue017",
}


class Browser:
    def __init__(self):
        self.driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        ready = (re.search(r"successfully on port (\d+)", line) for line in self.driver.stdout)
        port = next(filter(None, ready))[1]
        self.base = f"http://127.0.0.1:{port}/session"
        options = {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": CHROMIUM, "args": ARGUMENTS},
        }
        self.base += "/" + self("POST", "", {"capabilities": {"alwaysMatch": options}})["sessionId"]

    def __call__(self, verb, path, body=None):
        body = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, body, {"Content-Type": "application/json"}, method=verb
        )
        try:
            return json.load(urllib.request.urlopen(request, timeout=60))["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, path):
        self.complaints()  # of an earlier page
        self("POST", "/url", {"url": path.as_uri()})

    def run(self, code, *arguments):
        """What a piece of JavaScript returns."""
        return self("POST", "/execute/sync", {"script": code, "args": list(arguments)})

    def find(self, selector):
        return self("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector):
        self("POST", f"/element/{self.find(selector)}/click", {})

    def press(self, *keys):
        """Keys, one after the other, on whatever has the focus."""
        actions = [
            {"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")
        ]
        self(
            "POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        )

    def hover(self, selector):
        move = {
            "type": "pointerMove",
            "duration": 0,
            "origin": {ELEMENT: self.find(selector)},
            "x": 0,
            "y": 0,
        }
        self(
            "POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]}
        )

    def complaints(self):
        return [entry["message"] for entry in self("POST", "/se/log", {"type": "browser"})]

    def emulate(self, width=1280, height=1000, **features):
        """A screen of that size; features as in color_scheme="dark", and media="print"."""
        media = features.pop("media", "")
        names = [
            {"name": "prefers-" + name.replace("_", "-"), "value": value}
            for name, value in features.items()
        ]
        for command, params in [
            (
                "Emulation.setDeviceMetricsOverride",
                dict(width=width, height=height, mobile=False, deviceScaleFactor=1),
            ),
            ("Emulation.setEmulatedMedia", dict(media=media, features=names)),
        ]:
            self("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def picture(self, path):
        path.write_bytes(base64.b64decode(self("GET", "/screenshot")))

    def close(self):
        try:
            self("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()
            self.driver.stdout.close()
