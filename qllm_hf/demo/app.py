"""The page as `gradio.Blocks`, and the server that carries it. Nothing is sent anywhere that a visitor did not name."""

from __future__ import annotations

import importlib.util
import os
import secrets
from functools import partial
from importlib.resources import files
from typing import Any, Final

from .. import __version__
from ..errors import ConfigError, MissingExtraError
from .bodies import MOST_BYTES, Bodies
from .endpoints import HEAVY, endpoints
from .host import Host

TITLE: Final = "What bits cost"
WELCOME: Final = (
    "# What bits cost\n\nA language model with fewer bits for its weights, activations and KV cache takes less memory. "
    "Try what it still says, see what it can still do, and find out how few bits are enough."
)
MOST_SESSIONS: Final = 256
"""Conversations that gradio keeps, each with its own state of the page: by itself it would keep 10,000."""
MCP_MISSING: Final = "No MCP server: it needs the package mcp. Run: pip install 'gradio[mcp]'"
MCP_THERE: Final = "MCP server at {url}gradio_api/mcp/"


def require_gradio() -> None:
    """Raises MissingExtraError if gradio is not installed."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read once, when gradio is imported
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise MissingExtraError("the page needs gradio. Run: pip install 'qllm-hf[demo]'") from None


def has_mcp() -> bool:
    """Whether the package is installed that gradio's MCP server needs; without it, gradio goes on without a word."""
    return importlib.util.find_spec("mcp") is not None


def build(host: Host) -> Any:
    """The page as `gradio.Blocks`.

    Raises:
        MissingExtraError: gradio or matplotlib is not installed.
    """
    require_gradio()
    import gradio
    from gradio.events import api

    from .tabs import abilities, choose, compare, inside, publish

    with gradio.Blocks(title=TITLE, analytics_enabled=False, elem_classes="qllm-page") as page:
        gradio.Markdown(WELCOME)
        with gradio.Tabs():
            for name, tab in (
                ("Compare", compare),
                ("Choose", choose),
                ("Abilities", abilities),
                ("Inside", inside),
                ("Publish", publish),
            ):
                with gradio.Tab(name, id=name.lower()):
                    tab.build(host)
        page.unload(compare.leaving(host))
        said = partial(gradio.Error, print_exception=False, duration=None)
        for name, function in endpoints(host, said, _visitor).items():
            queue = {"concurrency_id": "model", "concurrency_limit": 1} if name in HEAVY else {}
            api(function, api_name=name, **queue)
    page.queue(max_size=host.limits.waiting, default_concurrency_limit=2)
    return page


def launch(host: Host, *, wait: bool = True, quiet: bool = False, **options: Any) -> tuple[Any, str]:
    """Serve the page; the running `gradio.Blocks` and its address.

    Args:
        wait: until the server is stopped.
        options: of gradio's launch, such as server_name and server_port.

    Raises:
        MissingExtraError: gradio is not installed.
        ConfigError: the port is taken.
    """
    page = build(host)
    import gradio
    from fastapi.middleware import Middleware
    from huggingface_hub import constants
    from transformers.utils import logging

    # what visitors name is fetched as a stranger would: the host's own token would open the host's private models
    constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True
    logging.disable_progress_bar()
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    try:
        _, url, _ = page.launch(
            prevent_thread_lock=True,
            quiet=True,
            mcp_server=has_mcp(),
            theme=_theme(gradio),
            css=style,
            footer_links=["api", "settings"],
            ssr_mode=False,
            enable_monitoring=False,
            max_file_size=MOST_BYTES,  # anyone could fill the disk: gradio takes files where no part of a page does
            state_session_capacity=MOST_SESSIONS,
            app_kwargs={"middleware": [Middleware(Bodies)]},
            **options,
        )
    except OSError as error:
        raise ConfigError(f"the page cannot be served there: {error} Give another port, or none.") from error
    if not quiet:
        print(announcement(url), flush=True)
    if wait:
        page.block_thread()
    return page, url


def announcement(url: str) -> str:
    """What is said when the page is there: its address, and whether programs find an MCP server."""
    return f"qllm-hf {__version__}: {url}\n{MCP_THERE.format(url=url) if has_mcp() else MCP_MISSING}"


def _visitor() -> str:
    """A name for whoever the running function answers, which `leaving` stops when their connection ends."""
    from gradio.context import LocalContext

    return str(getattr(LocalContext.request.get(None), "session_hash", None) or secrets.token_hex(8))


def _theme(gradio: Any) -> Any:
    """gradio's own with pale texts dark enough to be read (WCAG AA), and fonts that no other server is asked for."""
    soft, soft_dark = "*neutral_600", "*neutral_300"
    theme = gradio.themes.Default(
        primary_hue="blue",
        neutral_hue="zinc",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_text_color_subdued=soft,
        body_text_color_subdued_dark=soft_dark,
        block_info_text_color=soft,
        block_info_text_color_dark=soft_dark,
        input_placeholder_color=soft,
        input_placeholder_color_dark=soft_dark,
        block_label_text_color=soft,
        block_label_text_color_dark=soft_dark,
    )
