"""The server: transformers' own, which would serve any model to anyone, held to the one that was loaded.

Its handlers, engines and streams stay as they are. What is changed is what it can be asked:

    POST /v1/chat/completions, /v1/completions, /v1/responses    as in transformers, for the one model
    GET  /v1/models                                              the one model, and not what else is on this machine
    POST /load_model                                             says that it is there; nothing can be loaded
    GET  /health
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_serve_available

from ..errors import ConfigError, MissingExtraError
from ..reporting.model import scheme_of
from . import batched
from .ending import ending_server
from .faults import RefusedError, tell_faults
from .fitting import Alike, Fitting, Room, any_way
from .gate import Gate
from .keys import Keys
from .limits import Limits
from .line import Line
from .requests import Allowed

KEPT: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/systemone", "/health"})
NEEDS_TEMPLATE: Final = ("/v1/chat/completions", "/v1/responses")
PAGE_TOKENS: Final = 256
"""Tokens in a page of transformers' paged cache, unless it is told otherwise."""
CPU_CACHE_TOKENS: Final = 16_384
BATCH_TOKENS: Final = 2_048
"""Tokens of one step, prompts and answers together, where the size of the cache is given. transformers would take as
many as fit into memory, and 5.17 then clears a mask of that many times the whole cache before its first answer."""
_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Engine:
    """How requests are worked on.

    Attributes:
        batched: requests are decoded together, over a paged cache in floating point whose values are rounded as the
            scheme says; otherwise one after another, each over a packed cache.
        cache_tokens: the paged cache has room for, of all requests together. None leaves it to transformers, which
            takes most of the memory of an accelerator that is free; on a CPU it means `CPU_CACHE_TOKENS`.
        compiled: decoding steps are compiled, over a static cache.
        seed: for sampling.
    """

    batched: bool = False
    cache_tokens: int | None = None
    compiled: bool = False
    seed: int | None = None

    @property
    def shared_tokens(self) -> int | None:
        """Tokens in the whole pages of the paged cache; None where there is none, or transformers chooses."""
        if not self.batched or (self.cache_tokens is None and torch.accelerator.is_available()):
            return None
        return -(-(self.cache_tokens or CPU_CACHE_TOKENS) // PAGE_TOKENS) * PAGE_TOKENS


def require_serving() -> None:
    """Raises MissingExtraError if what transformers needs to serve is not installed."""
    if not is_serve_available():
        raise MissingExtraError("serving needs fastapi, uvicorn and openai. Run: pip install 'qllm-hf[serve]'")


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound and not yet served, so that a taken port is an error before a model is loaded.

    Raises:
        ConfigError: the address cannot be taken.
    """
    found: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as error:
            bound.close()
            found = error
        else:
            return bound
    raise ConfigError(f"cannot listen at {host}:{port}: {found}. Give another --port, or 0 for any that is free.")


def address_of(bound: socket.socket) -> str:
    """`http://127.0.0.1:8000` of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(
    model: PreTrainedModel,
    tokenizer: Any,
    name: str,
    engine: Engine | None = None,
    limits: Limits | None = None,
    keys: Sequence[str] = (),
) -> Any:
    """A `uvicorn.Server` for one model, not running yet.

    Args:
        name: by which clients ask for the model.
        keys: one of which a client has to give; none, and nobody is asked.

    Raises:
        MissingExtraError: fastapi, uvicorn or openai is not installed.
        ConfigError: a name that clients could not give.
    """
    require_serving()
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a served model. Give letters, digits, '.', '_', '-' and one '/'."
        )
    engine, limits = engine or Engine(), limits or Limits()
    room = Room(_positions(model), engine.shared_tokens, limits.new_tokens)
    serve = _transformers_server(engine)
    _hold_to_one_model(serve, model, tokenizer, name, room)
    config = serve.server.config
    _keep_routes(config.app, name, scheme_of(model), has_template=bool(getattr(tokenizer, "chat_template", None)))
    tell_faults(config.app)
    gate = Gate(config.app, limits, Allowed(room.tokens, max(map(len, tokenizer.get_vocab()), default=None)))
    config.app = Keys(gate, keys) if keys else gate
    return ending_server(config, gate, partial(batched.close, serve._generation_state))


def _positions(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


def _transformers_server(engine: Engine) -> Any:
    from transformers.cli.serve import Serve

    class Unstarted(Serve):
        """With everything built and nothing running, which its options have no word for."""

        def start_server(self) -> None:
            pass

    tokens = engine.shared_tokens
    return Unstarted(
        non_blocking=True,
        continuous_batching=engine.batched,
        compile=engine.compiled,
        cb_num_blocks=None if tokens is None else tokens // PAGE_TOKENS,
        cb_max_batch_tokens=None if tokens is None else min(tokens, BATCH_TOKENS),
        default_seed=engine.seed,
        log_level="error",
    )


def _hold_to_one_model(serve: Any, model: PreTrainedModel, tokenizer: Any, name: str, room: Room) -> None:
    """Put the model where transformers keeps those it loaded, and let it be the only one that can be asked for."""
    from transformers.cli.serving.model_manager import TimedModel
    from transformers.cli.serving.utils import GenerateManager

    class InLine(GenerateManager):
        """Whose line can be left."""

        def __init__(self) -> None:
            self._thread: Any = Line()

    manager, state = serve._model_manager, serve._generation_state
    manager.process_model_name = lambda name: name  # not name@main: clients get back what they asked for
    manager.loaded_models[name] = TimedModel(model, timeout_seconds=-1, processor=tokenizer)
    manager.force_model, manager.model_timeout = name, -1
    state._generate_managers[name] = InLine()
    as_asked = state.get_manager
    fitting: list[Fitting] = []  # around the manager that is in use; an engine that begins anew may be asked anew

    def get_manager(*args: Any, **kwargs: Any) -> Fitting:
        batched.let_go_of_the_dead(state)
        found = as_asked(*args, **kwargs)
        if not fitting or fitting[0].manager is not found:
            fitting[:] = [Fitting(found, room, Alike() if state._continuous_batching else any_way)]
        return fitting[0]

    state.get_manager = get_manager
    state.is_cb_alive = partial(batched.let_go_of_the_dead, state)


def _keep_routes(app: Any, name: str, scheme: str, *, has_template: bool) -> None:
    from fastapi.responses import StreamingResponse

    gone = () if has_template else NEEDS_TEMPLATE
    app.router.routes[:] = [route for route in app.router.routes if route.path in KEPT and route.path not in gone]
    began = int(time.time())

    def refuse_chats() -> None:
        raise RefusedError(400, "the tokenizer of this model has no chat template. Ask /v1/completions.")

    def models() -> dict[str, Any]:
        entry = {"id": name, "object": "model", "created": began, "owned_by": "qllm_hf", "scheme": scheme}
        return {"object": "list", "data": [entry]}

    def load_model(body: dict[str, Any]) -> StreamingResponse:
        # `transformers chat` asks for this first, and reads how far the loading is
        if body.get("model") != name:
            raise RefusedError(400, f"this server has {name!r} and loads no other model.")
        ready = f'data: {{"status": "ready", "model": "{name}", "cached": true}}\n\n'
        return StreamingResponse(iter([ready]), media_type="text/event-stream")

    for path in gone:
        app.add_api_route(path, refuse_chats, methods=["POST"])
    app.add_api_route("/v1/models", models, methods=["GET"])
    app.add_api_route("/load_model", load_model, methods=["POST"], response_model=None)
