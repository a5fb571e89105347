"""Models from a folder or the Hub, and back to a folder: what the command line does around `from_pretrained`.

Everything that can be wrong with files is looked for before anything is loaded, and a folder appears under its
name only when all of it was written.
"""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from . import whole
from .builtin import BUILTIN, REFERENCE, builtin_like
from .checkpoint import PACKED, Checkpoint, check_kinds, read_checkpoint, read_config, settle_header, some
from .checksums import verify as verify_checkpoint
from .config import QUANT_METHOD, QllmConfig
from .errors import CheckpointError, ConfigError, ModelError, QllmError, SchemeError, did_you_mean
from .families import REPLACED_REMOTE_CODE
from .packed import packed_shapes
from .plan import Plan, make_plan
from .preflight import TRUST, check_config, check_room, check_side_files, check_unexpected, refusing
from .revision import at_one_commit, note_commit_
from .shown import short
from .steady import unchanged

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HOW = (
    f"A model is given as a folder that holds config.json (./my-model), as an id on the Hub (owner/name), or as "
    f"{REFERENCE!r}."
)


def local_folder(name_or_path: str) -> Path | None:
    """The folder that is meant, here or of a model in this package, or None if it can only be an id on the Hub.

    A folder here comes first, as in transformers.

    Raises:
        CheckpointError: it is none of these, or the name of a built-in model with a slip of the pen: that is not
            looked up on the Hub.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path and path.is_dir():
        return path
    if name_or_path and path.exists():
        raise CheckpointError(f"{name_or_path!r} is a file. Give the folder that holds config.json.")
    if name_or_path in BUILTIN:
        return BUILTIN[name_or_path]
    if near := builtin_like(name_or_path):
        raise CheckpointError(
            f"there is no model {name_or_path!r}. Did you mean {near!r}, which comes with qllm_hf? {_HOW}"
        )
    if not _HUB_ID.fullmatch(name_or_path) or name_or_path.startswith("."):
        raise CheckpointError(f"there is no folder {name_or_path!r}, and it cannot be an id on the Hub. {_HOW}")
    return None


def config_dict(name_or_path: str, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """config.json of a folder or of a model on the Hub, after it was found to be one that can be loaded.

    Raises:
        CheckpointError: it cannot be found, or needs code of its own.
        ModelError: it is no causal language model.
    """
    folder = local_folder(name_or_path)
    if folder is not None:
        config = read_config(folder)
    else:
        with _hub_errors(name_or_path):
            config, _ = PreTrainedConfig.get_config_dict(name_or_path)
    model_type = str(config.get("model_type"))
    if model_type in REPLACED_REMOTE_CODE:
        raise CheckpointError(REPLACED_REMOTE_CODE[model_type])
    if trust_remote_code and "auto_map" in config:
        return config
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise CheckpointError(f"{name_or_path!r} (model_type {model_type!r}) runs code of its own. {TRUST}")
        hint = did_you_mean(model_type, CONFIG_MAPPING.keys())
        raise ModelError(
            f"{name_or_path!r}: model_type {short(model_type)} is unknown to this version of transformers.{hint}"
        )
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{name_or_path!r}: model_type {model_type!r} is no causal language model: "
            "AutoModelForCausalLM cannot load it."
        )
    return config


def stored_config(name_or_path: str, *, trust_remote_code: bool = False) -> QllmConfig | None:
    """How the weights of a checkpoint are stored: None means float.

    Raises:
        ModelError: they are quantized by another library; or as `config_dict`.
        CheckpointError: they have a newer format; or as `config_dict`.
        ConfigError, SchemeError: config.json says what cannot be.
    """
    config = config_dict(name_or_path, trust_remote_code=trust_remote_code)
    try:
        return _quantization_of(config)
    except (ConfigError, ModelError, SchemeError) as error:
        raise type(error)(f"config.json of {name_or_path!r}: {error}") from None


def _quantization_of(config: dict[str, Any]) -> QllmConfig | None:
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    if not isinstance(quantization, dict):
        raise CheckpointError("quantization_config in config.json is no object. Is the file damaged?")
    if quantization.get("quant_method") != QUANT_METHOD:
        raise ModelError(
            f"it says that these weights are already quantized, by {quantization.get('quant_method')!r}. "
            "Give the float model they came from."
        )
    with refusing("quantization_config in config.json cannot be read"):
        stored: QllmConfig = QllmConfig.from_dict(quantization)
    return stored


def check_float(name_or_path: str, *, trust_remote_code: bool = False) -> None:
    """Raises ModelError if a model is quantized already; otherwise as `config_dict`."""
    stored = stored_config(name_or_path, trust_remote_code=trust_remote_code)
    if stored is not None:
        raise ModelError(
            f"{name_or_path!r} is quantized already ({stored.scheme}). Give the float model it was made from."
        )


def model_on_meta(name_or_path: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> PreTrainedModel:
    """The float model with all its shapes and no weights: nothing but config.json is read.

    For a packed checkpoint too, this is the model it was made from. A few small tensors that some models keep in
    float32 while they are loaded have the model's dtype here.

    Raises:
        CheckpointError, ModelError: as `config_dict`.
    """
    config_dict(name_or_path, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
    what = f"config.json of {name_or_path!r} describes no model that transformers can make"
    with _hub_errors(name_or_path), refusing(what):
        pinned = at_one_commit(_where(name_or_path))
        config = AutoConfig.from_pretrained(_where(name_or_path), trust_remote_code=trust_remote_code, **pinned)
        note_commit_(config, options=pinned)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **options)
    shapes: PreTrainedModel = model.eval()
    return shapes


def check_stored(model: PreTrainedModel, config: QllmConfig, checkpoint: Checkpoint) -> Plan:
    """The plan of a float `model`, after the files were found to hold all packed weights that `config` describes.

    Numbers are compared and not names, since some architectures store their tensors under other names.

    Raises:
        CheckpointError: they hold others.
    """
    expected = {}
    plan = make_plan(model, config, check_patterns=False)
    for entry in plan.quantized():
        assert entry.weight is not None
        shape, dtype = packed_shapes(entry.shape, entry.weight, torch.float16)["words"]
        expected[entry.name + PACKED] = math.prod(shape) * dtype.itemsize
    stored = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items() if name.endswith(PACKED)}
    if len(stored) == len(expected) and sum(stored.values()) == sum(expected.values()):
        return plan
    lost = sorted(expected.keys() - stored.keys())
    raise CheckpointError(
        f"{str(checkpoint.folder)!r}: config.json describes {len(expected)} packed weights of "
        f"{sum(expected.values())} bytes, the files hold {len(stored)} of {sum(stored.values())} bytes"
        + (f"; not found: {some(lost)}" if lost else "")
        + ". Copy the folder again, or quantize the float model again."
    )


def load_model(
    name_or_path: str,
    config: QllmConfig | None = None,
    *,
    dtype: str = "auto",
    device_map: str | None = None,
    max_memory: Mapping[int | str, int] | None = None,
    offload_folder: Path | None = None,
    tensor_parallel: int = 1,
    trust_remote_code: bool = False,
    verify: bool = False,
) -> PreTrainedModel:
    """The model with its weights, quantized while they stream in if there is a config.

    Args:
        max_memory: bytes that weights may take on each device, {0: .., "cpu": ..}, for device maps such as "auto".
        offload_folder: where weights go for which no device has room.
        tensor_parallel: number of processes that hold a part of the model each; all of them have to call this.
        verify: read all weights first, and compare them with the checksums that were saved with them.

    Raises:
        CheckpointError: files are missing or damaged (`qllm_hf.checkpoint`), or hold no tensor for some weight; with
            `verify`, a tensor has changed, or there are no checksums.
        ModelError: the model cannot be loaded or quantized as asked.
        ConfigError: a packed checkpoint was asked for other weights than it holds.
    """
    stored_config(name_or_path, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {} if config is None else {"quantization_config": config}
    if tensor_parallel > 1:
        if device_map is not None:
            raise ModelError("a model is cut over processes or spread over devices (device_map), not both.")
        options["distributed_config"] = DistributedConfig(tp_size=tensor_parallel)
    placing = {"device_map": device_map, "max_memory": max_memory, "offload_folder": offload_folder}
    options |= {name: value for name, value in placing.items() if value is not None}
    with warnings.catch_warnings():
        # said for each packed checkpoint that is given a config; the quantizer checks what may change
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        try:
            return load_whole(name_or_path, verify=verify, dtype=dtype, trust_remote_code=trust_remote_code, **options)
        except ValueError as error:
            if offload_folder is not None or "offload_folder" not in str(error):
                raise
            raise ModelError(
                "not all weights fit into the memory of the devices. Give a folder for the rest, --offload-folder DIR "
                "(in Python: offload_folder=DIR), or more --max-memory."
            ) from error


def load_whole(name_or_path: str, *, verify: bool = False, **options: Any) -> PreTrainedModel:
    """`from_pretrained` with checks before and after: no file is damaged, and no weight is left to chance.

    Args:
        verify: as `load_model`.
        options: of `from_pretrained`.

    Raises:
        CheckpointError: files are missing or damaged (`qllm_hf.checkpoint`), or hold no tensor for some weight.
    """
    folder = local_folder(name_or_path)
    if folder is not None:
        check_folder(folder, verify=verify, trust_remote_code=options.get("trust_remote_code", False))
    elif verify:
        raise CheckpointError(f"{name_or_path!r} is no folder. Download it first: hf download {name_or_path}.")
    # with an option that places weights, an error may be about that
    placed = folder is None or options.keys() & {"device_map", "max_memory", "offload_folder", "distributed_config"}
    what = f"{name_or_path!r} cannot be loaded: config.json and the files do not fit together"
    steady = contextlib.nullcontext() if folder is None else unchanged(folder)
    with steady, _hub_errors(name_or_path), contextlib.nullcontext() if placed else refusing(what):
        pinned = at_one_commit(_where(name_or_path))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            _where(name_or_path), use_safetensors=True, output_loading_info=True, **pinned, **options
        )
    model: PreTrainedModel = loaded[0]
    note_commit_(model.config, options=pinned)
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name_or_path!r} holds no tensor for {some(missing)}: they would be random numbers. "
            "Is this the checkpoint of another model, or of a model without its output head?"
        )
    check_unexpected(_where(name_or_path), loaded[1]["unexpected_keys"])
    return model


def check_folder(folder: Path, *, verify: bool = False, trust_remote_code: bool = False) -> None:
    """Raises CheckpointError if the files of a folder are damaged, or are not those of the model in its config.json."""
    checkpoint = read_checkpoint(folder)
    check_config(checkpoint, trust_remote_code=trust_remote_code)
    check_side_files(folder)
    if verify:
        verify_checkpoint(checkpoint)
    shapes = model_on_meta(str(folder), trust_remote_code=trust_remote_code)
    stored = stored_config(str(folder), trust_remote_code=trust_remote_code)
    packed = [] if stored is None else check_stored(shapes, stored, checkpoint).quantized()
    check_room(shapes, checkpoint, sum(entry.elements for entry in packed))


def load_tokenizer(name_or_path: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer that belongs to a model.

    Raises:
        CheckpointError: there is none, or it cannot be read; or no such model at all.
        ModelError: a model on the Hub is no causal language model.
    """
    folder = local_folder(name_or_path)
    if folder is not None:
        check_kinds(folder)
    else:  # transformers asks for the tokenizer of a model that is not there again and again, and then speaks of that
        config_dict(name_or_path, trust_remote_code=trust_remote_code)
    where = str(folder or name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
        if not isinstance(tokenizer.model_max_length, int | float):
            raise ValueError(f"model_max_length={short(tokenizer.model_max_length)} in tokenizer_config.json.")
        return tokenizer
    except (QllmError, ImportError):
        raise
    except Exception as error:  # files that are not there, or hold anything at all: tokenizers raises plain Exceptions
        first = _first_sentence(error)
        if "contains custom code" in first and not trust_remote_code:
            raise CheckpointError(f"the tokenizer of {name_or_path!r} runs code of its own. {TRUST}") from None
        raise CheckpointError(f"{name_or_path!r} has no tokenizer that can be read: {first}") from error


def check_output(out_dir: Path, *, overwrite: bool = False) -> None:
    """Raises CheckpointError if a model cannot be saved there: to be asked before hours of work, not after."""
    if out_dir.exists() and not out_dir.is_dir():
        raise CheckpointError(f"{str(out_dir)!r} is a file. Give a folder to save in.")
    if out_dir.is_dir() and any(out_dir.iterdir()):
        if not overwrite:
            raise CheckpointError(f"{str(out_dir)!r} is not empty. Give another folder, or --overwrite to replace it.")
        if not (out_dir / "config.json").is_file():
            raise CheckpointError(
                f"{str(out_dir)!r} holds files but no config.json, so it is no model folder, and is not replaced. "
                "Give another folder."
            )


def save_model(
    model: PreTrainedModel,
    tokenizer: Any | None,
    out_dir: Path,
    *,
    overwrite: bool = False,
    max_shard_size: str | None = None,
    others: Mapping[str, bytes] | None = None,
) -> Path:
    """The folder `out_dir`, with model, generation config and tokenizer: all of them, or no folder at all.

    Written to a folder beside it, checked, and renamed. A folder that is replaced (`overwrite`) stays until then.
    `others` are further files, {name: content}.

    Raises:
        CheckpointError: `out_dir` is not empty (or, with `overwrite`, no model folder), or the disk lost something.
    """
    with whole_folder(out_dir, overwrite=overwrite) as partial:
        options: dict[str, Any] = {"max_shard_size": max_shard_size} if max_shard_size else {}
        model.save_pretrained(partial, **options)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for name, content in (others or {}).items():
            (partial / name).write_bytes(content)
    return out_dir.expanduser().absolute()


@contextlib.contextmanager
def whole_folder(out_dir: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to write a model to, which becomes `out_dir` at the end: all of it, or no folder at all.

    Before it is renamed its safetensors files are checked and settled. What is replaced stays until then.

    Raises:
        CheckpointError: as `save_model`.
        BusyError: another process writes a model there.
    """
    out_dir = out_dir.expanduser()
    with whole.whole_folder(out_dir, lambda: check_output(out_dir, overwrite=overwrite), _settle) as partial:
        yield partial


def _settle(folder: Path) -> None:
    usual = (folder / "config.json").stat().st_mode
    for file in read_checkpoint(folder).files:
        file.chmod(usual)  # safetensors leaves its files readable by their owner only
        settle_header(file)


def _where(name_or_path: str) -> str:
    return str(local_folder(name_or_path) or name_or_path)


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turns transformers' report of missing files, several lines long, into one sentence."""
    try:
        yield
    except OSError as error:
        if local_folder(name) is not None:
            raise CheckpointError(f"{name!r} cannot be read: {_first_sentence(error)}") from error
        raise CheckpointError(
            f"{name!r} is no folder here, and the Hub did not give it: {_first_sentence(error)} Check the spelling; "
            "private models need `hf auth login`; offline (HF_HUB_OFFLINE=1) only downloaded models can be read."
        ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
