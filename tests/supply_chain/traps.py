"""Model folders that run code wherever somebody lets them: each piece of it leaves a file behind."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

CODE = """
import pathlib
pathlib.Path({spot!r}, {name!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


class TrapConfig(LlamaConfig):
    model_type = "trap"


class TrapForCausalLM(LlamaForCausalLM):
    config_class = TrapConfig


class TrapTokenizer(PreTrainedTokenizerFast):
    pass


def generate(model, *arguments, **options):
    return model._sample(*arguments, **options)
"""
MODULES = ("trap_model", "trap_tokenizer", "custom_generate/generate", "sitecustomize", "conftest", "setup")
PICKLES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "scales.pkl")
# What gets out of a template that nobody holds back.
TEMPLATE = (
    "{{% for name in ''.__class__.__mro__[1].__subclasses__() %}}"
    "{{{{ cycler.__init__.__globals__.os.mkdir({spot!r}) }}}}"
    "{{% endfor %}}"
)


class _Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return Path.touch, (self.path,)


def set_traps(folder: Path, spot: Path) -> None:
    """Put code, pickles and a template of the worst kind into a model folder. What runs leaves its name in `spot`."""
    for module in MODULES:
        path = folder / f"{module}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(CODE.format(spot=str(spot), name=path.stem))
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps({"state_dict": _Touch(spot / name)}, protocol=2))
    (folder / "chat_template.jinja").write_text(TEMPLATE.format(spot=str(spot / "template")))
    change(
        folder / "config.json",
        auto_map={"AutoConfig": "trap_model.TrapConfig", "AutoModelForCausalLM": "trap_model.TrapForCausalLM"},
    )
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "trap_tokenizer.TrapTokenizer"]})


def make_traps(model: Path, folder: Path, spot: Path, *, needs_code: bool) -> Path:
    """A copy of a model with traps in it.

    Args:
        needs_code: nothing but the code in the folder can load it. Otherwise transformers knows the model, and the
            code wants to be used in its place.
    """
    shutil.copytree(model, folder)
    set_traps(folder, spot)
    if needs_code:
        change(folder / "config.json", model_type="trap", architectures=["TrapForCausalLM"])
        change(folder / "tokenizer_config.json", tokenizer_class="TrapTokenizer")
    return folder


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
