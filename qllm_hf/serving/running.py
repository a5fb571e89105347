"""A server from a model's name, run in the foreground or beside something else."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import QllmConfig
from ..errors import ConfigError
from ..loading import load_model, load_tokenizer, local_folder
from .limits import Limits
from .server import Engine, make_server

STARTING = 30.0
"""Seconds within which a server whose model is loaded has to answer."""


def name_of(name_or_path: str) -> str:
    """By which clients ask for a model: its id on the Hub, or the name of its folder without where it lies."""
    folder = Path(name_or_path).expanduser()
    return folder.resolve().name if folder.is_dir() else name_or_path


def load_server(
    name_or_path: str,
    config: QllmConfig | None = None,
    *,
    name: str | None = None,
    engine: Engine | None = None,
    limits: Limits | None = None,
    keys: Sequence[str] = (),
    trust_remote_code: bool = False,
    **loading: Any,
) -> tuple[Any, str]:
    """A `uvicorn.Server` with the model loaded, not running yet, and the model's name there.

    Args:
        loading: dtype, and where weights go, as options of `load_model`.

    Raises:
        CheckpointError, ModelError, ConfigError: as `load_model`.
        MissingExtraError: as `make_server`.
    """
    local_folder(name_or_path)  # what is no model at all is said first
    tokenizer = load_tokenizer(name_or_path, trust_remote_code=trust_remote_code)
    model = load_model(name_or_path, config, trust_remote_code=trust_remote_code, **loading).eval()
    served = name or name_of(name_or_path)
    return make_server(model, tokenizer, served, engine, limits, keys), served


def hush(server: Any) -> None:
    """Let a server that was not started say only what goes wrong."""
    server.config.log_level, server.config.access_log = "error", False
    server.config.configure_logging()


@contextlib.contextmanager
def serving(server: Any, bound: socket.socket) -> Iterator[None]:
    """The server answers within this block of code, from a thread of its own.

    Raises:
        ConfigError: it does not start.
    """
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="qllm-hf serve", daemon=True)
    thread.start()
    waiting = threading.Event()
    for _ in range(int(STARTING * 20)):
        if server.started or not thread.is_alive():
            break
        waiting.wait(0.05)
    try:
        if not server.started:
            raise ConfigError("the server did not start. QLLM_DEBUG=1 shows what it says.")
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=STARTING)
        bound.close()
