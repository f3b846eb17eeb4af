"""A real browser: what a person sees of a page, once its scripts have run."""

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str:
    """Installed from Debian where it is missing and that may be done. In CI a test that could not run fails."""
    if _installed() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            command = ["apt-get", *words, "--quiet", "-o", "DPkg::Lock::Timeout=120"]
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    chromium = _installed()
    if chromium is None:
        tell = pytest.fail if "CI" in os.environ else pytest.skip
        tell("needs a browser: install chromium")
    return chromium


def _installed() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page(HTMLParser):
    """A page of TensorBoard's Time Series: its runs, its groups of tags, and the titles of the cards that are open."""

    def __init__(self, address: str, profile: Path):
        super().__init__()
        self.runs: list[str] = []
        self.groups: list[str] = []
        self.cards: list[str] = []
        self.into: list[str] | None = None  # where the next text goes
        self.in_run_column = False
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
        command = [find_chromium(), *options, "--window-size=1400,2000", "--virtual-time-budget=30000", "--dump-dom"]
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=180, check=True)
        self.feed(done.stdout)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        classes = (values.get("class") or "").split()
        if tag == "tb-data-table-content-cell":
            self.in_run_column = "table-column-run" in classes
        if tag == "tb-truncated-path":
            self.cards.append(str(values["title"]))
        elif "group-title" in classes:
            self.into = self.groups
        elif "cell" in classes and self.in_run_column:
            self.into, self.in_run_column = self.runs, False

    def handle_data(self, text: str) -> None:
        if self.into is not None and text.strip():
            self.into.append(text.strip())
            self.into = None
