"""A page in a process of its own, as `qllm-hf demo` starts it, that talks to a Hub on this machine; and browsers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_results import add
from publishing.hub_client import environment
from publishing.hub_server import Hub

EVIL = "<img src=x onerror=console.error(1)>"
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
SIZES = {"desktop": (1280, 1000), "phone": (390, 844)}


@dataclass(frozen=True)
class Page:
    """A running page: its address, the process, and what it has written."""

    url: str
    process: subprocess.Popen
    log: Path
    home: Path

    def resident(self) -> int:
        """Bytes of the process in memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def local_hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    """Results with items that got worse, some of them hostile."""
    folder = tmp_path_factory.mktemp("results") / "sweep"
    before, after = [1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]
    for task in ("mini_arithmetic", "mini_cloze", "mini_lines_256"):
        for scheme, values in (("FP16", before), ("W2", after)):
            lines = [{"prompt": f"ask {EVIL} {n}", "prediction": f"{scheme} says {n}"} for n in range(4)]
            add(folder, scheme, task, values, lines)
    return folder


@pytest.fixture(scope="session")
def page(tmp_path_factory, local_hub, sweep):
    pytest.importorskip("gradio")
    home = tmp_path_factory.mktemp("home")
    log = home / "log.txt"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "qllm_hf", "demo", "--port", str(port), "--results", str(sweep), "--memory", "9MB"]
    with log.open("w") as written:
        process = subprocess.Popen(
            command,
            cwd=home,
            stdout=written,
            stderr=subprocess.STDOUT,
            env=environment(local_hub, home, token=local_hub.token("host")),
        )
    try:
        deadline = time.monotonic() + 180
        while "http://" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Page(f"http://127.0.0.1:{port}", process, log, home)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def start_browser():
    """Starts a headless Chromium of one size, light or dark."""
    selenium = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")

    def start(size: str, *, dark: bool):
        width, height = SIZES[size]
        options = selenium.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.add_argument(f"--window-size={width},{height}")
        if size == "phone":
            metrics = {"width": width, "height": height, "pixelRatio": 1.0}
            agent = "Mozilla/5.0 (Linux; Android 14) Chrome/130 Mobile"
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics, "userAgent": agent})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        return driver

    return start
