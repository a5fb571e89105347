"""Shared fixtures, and the one place that decides which tests cannot run here, and why."""

import os

# Before any import below: huggingface_hub and transformers read these once, when they are imported.
os.environ["HF_HUB_OFFLINE"] = "0" if os.environ.get("QLLM_TEST_NETWORK") == "1" else "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# The programs that tests start inherit it. With more threads than cores left, theirs spin while waiting for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import importlib.util
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    if importlib.util.find_spec("qllm_hf") is None:
        raise pytest.UsageError("qllm_hf is not installed. Run `make test`, or `pip install -e '.[test]'` first.")
    # A shell lets what it starts in the background ignore Ctrl-C, and tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # uvicorn has logging close all handlers that there are, and absl's closes its stream unless that is stderr. While a
    # command runs in a test stderr is another one, so it would be that of pytest.
    if importlib.util.find_spec("absl") is not None:
        from absl import logging as absl_logging

        absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
    # More threads make the small tensors of tests slower, and results depend on their number.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA device"
    if os.environ["HF_HUB_OFFLINE"] == "1":
        reasons["network"] = "needs the network: set QLLM_TEST_NETWORK=1"
    # so that no worker has half a minute left to do when the others are done
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)
    if os.environ.get("QLLM_TEST_REVERSED") == "1":  # what counts on the tests before it fails
        items.reverse()
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def metrics_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`evaluate` copies metrics to a folder of this module. Python asks the copies of an earlier folder as long as it
    knows them, so those are forgotten, before and after."""
    import evaluate

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "evaluate_modules"]:
            del sys.modules[name]

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_MODULES_CACHE", "HF_METRICS_CACHE"):
            patch.setattr(evaluate.config, name, str(tmp_path_factory.mktemp(name.lower())))
        patch.setattr(sys, "path", [entry for entry in sys.path if not Path(entry, "evaluate_modules").is_dir()])
        forget()
        yield
        forget()


@pytest.fixture(scope="session")
def cannot_run() -> Callable[[str], NoReturn]:
    """Skips on a developer's machine and fails in CI, where a missing file means a broken job."""
    return pytest.fail if os.environ.get("CI") == "true" else pytest.skip


@pytest.fixture(scope="session")
def shared(cannot_run: Callable[[str], NoReturn]) -> Path:
    """The folder with models and benchmark slices, next to the repository."""
    path = REPO.parent / "shared"
    if not path.is_dir():
        cannot_run("needs the folder ../shared with models and data")
    return path


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A trained Llama of 260,032 parameters: 5 layers, 8 heads on 4 kv heads, head dim 8, vocabulary 512."""
    return shared / "models" / "stories260K"


@pytest.fixture(scope="session")
def tinystories_text(shared: Path) -> list[str]:
    """450 stories of the kind the `stories` model was trained on, one string each."""
    return [row["text"] for row in _rows(shared, "tinystories")]


@pytest.fixture(scope="session")
def wikitext_text(shared: Path) -> str:
    """30 articles of the WikiText-2 test set as one string, in document order."""
    return "".join(row["text"] for row in _rows(shared, "wikitext2"))


def _rows(shared: Path, name: str) -> list[dict[str, str]]:
    with (shared / "data" / "basic_nlp" / f"{name}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
