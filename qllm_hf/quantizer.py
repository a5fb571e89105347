"""QllmHfQuantizer: how transformers reaches this package while it loads and saves models.

The only module that registers with transformers. The order of calls, and what each release of
transformers expects of them, is in the docstring of each method.
"""

from __future__ import annotations

import functools
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, PrefixChange
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils import logging

from . import compat
from .checkpoint import FORMAT_KEY, ORDER, check_one_save, read_header
from .checksums import as_metadata
from .config import FORMAT, QUANT_METHOD, QllmConfig
from .errors import CheckpointError, ModelError, QllmWarning
from .families import REPLACED_REMOTE_CODE, family
from .generation import attach_static_cache, detach_static_cache
from .hooks import attach_kv, detach_kv
from .input_order import check_order, check_stored_orders
from .method import RTN
from .methods.apply import pack_by_method_
from .nn import PackedLinear, PackedModule
from .nn.parameters import SUFFIXES, local
from .packed import packed_nbytes
from .parallel import (
    check_parallel,
    check_whole,
    finish_cuts_,
    mark_cuts_,
    pack_shard,
    tied_copies,
    whole_parameters,
    whole_words,
)
from .patterns import numberless
from .plan import Entry, Plan, make_plan, shared_weights
from .revision import note_commit_
from .safetensors_stream import state_checksums
from .scheme import FLOAT_BITS
from .sound import check_values
from .surgery import checked, pack_modules_, replace_modules_, unpack_modules_

LOWEST_COVERAGE = 0.9


class QuantizeWeight(ConversionOps):
    """Turns one float tensor of a checkpoint into packed parameters, as soon as it is read.

    What is wrong with weights that no integer can stand for is put into `faults`: transformers would replace an
    exception raised here by a general one.
    """

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults

    def convert(  # type: ignore[override]
        self,
        input_dict: dict[str, Any],
        model: PreTrainedModel | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """{name of the float weight: tensor} -> {names of its packed parameters: tensors}; the placeholder goes."""
        out: dict[str, Tensor] = {}
        for key, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            module, name = get_module_from_name(model, key)
            packed = pack_shard(module, name, tensor)
            if packed is None:
                packed = module.pack(tensor) if isinstance(module, PackedLinear) else module.pack(name, tensor)
            try:
                checked(packed, tensor, key)
            except ModelError as error:
                self.faults.append(str(error))
            module._parameters.pop(name, None)
            if missing_keys is not None:
                missing_keys.discard(key)
            for part, suffix in SUFFIXES.items():
                if getattr(packed, part) is not None:
                    out[key + suffix] = getattr(packed, part)
        return out


class QllmHfQuantizer(HfQuantizer):
    """Quantizes a model while its shards stream in, or loads one that was saved packed."""

    requires_calibration = False
    quantization_config: QllmConfig
    plan: Plan

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """First call: refuse what cannot work, before anything is read."""
        compat.check_transformers()
        self.quantization_config.check_requested()
        if not self.pre_quantized:
            self.quantization_config.check_ready()

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """The model is on the meta device: exchange its modules by plan."""
        config = self.quantization_config
        self.faults: list[str] = []
        if model.config.model_type in REPLACED_REMOTE_CODE:
            raise CheckpointError(REPLACED_REMOTE_CODE[model.config.model_type])
        self.plan = make_plan(model, config, check_patterns=not self.pre_quantized)
        if self.pre_quantized:
            files = [file for file in kwargs.get("checkpoint_files") or () if str(file).endswith(".safetensors")]
            if files:
                check_one_save({path: read_header(path)[1] for path in map(Path, files)})
                check_stored_orders(files, sum(entry.input_order for entry in self.plan.quantized()))
        note_commit_(model.config, files=kwargs.get("checkpoint_files") or ())
        if not self.pre_quantized:
            warn_of_low_coverage(self.plan, config)
        self.cuts = check_parallel(
            model, self.plan, pre_quantized=self.pre_quantized, packs_after_loading=self._packs_after_loading()
        )
        if self._packs_after_loading():
            return  # the method has to see the float model
        # a tied head has no tensor of its own, and often no place in the files: it waits for the embedding
        now = self.plan.entries if self.pre_quantized else tuple(e for e in self.plan.entries if not e.tied)
        replace_modules_(model, Plan(now), placeholders=not self.pre_quantized)
        mark_cuts_(model, self.cuts)
        if self.pre_quantized and self.plan.quantized():
            ignored = set(model._keys_to_ignore_on_load_unexpected or ())
            model._keys_to_ignore_on_load_unexpected = {*ignored, re.escape(guard_name(self.plan))}
        if not compat.PARALLEL_PLAN_IS_UPDATED_FOR_US:
            for parallel_plan in (model._tp_plan, model._ep_plan):
                if parallel_plan:
                    self.update_parallel_plan(model, parallel_plan)

    def _packs_after_loading(self) -> bool:
        config = self.quantization_config
        return not self.pre_quantized and (config.method != RTN or config.needs_calibration)

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether a parameter is a float placeholder that awaits its packed form."""
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, PackedModule) and name in module.weight_specs and name in module._parameters

    def get_quantize_ops(self) -> QuantizeWeight:
        """What is done with each tensor that needs quantization."""
        return QuantizeWeight(self.faults)

    def param_element_size(self, model: PreTrainedModel, param_name: str, param: Tensor) -> float:
        """Bytes per element that a parameter will take, for device maps: a placeholder counts as what replaces it.

        `model` may be a part of the model: transformers asks again for the buffers of each module.
        """
        module, name = get_module_from_name(model, param_name)
        if isinstance(module, PackedModule):
            if name in module.weight_specs and name in module._parameters:
                return sum(part.nbytes for part in module.declared(name)) / param.numel()
            waiting = (weight for weight in module.weight_specs if weight in module._parameters)
            if any(name == weight + suffix for weight in waiting for suffix in SUFFIXES.values()):
                return 0.0  # counted with the placeholder
        beside = 0.0 if self.pre_quantized else self._bytes_beside(model, param_name, param)
        return param.element_size() + beside / param.numel()

    def _bytes_beside(self, model: PreTrainedModel, param_name: str, param: Tensor) -> int:
        """Bytes of the packed head that a float embedding will have beside it; 0 for other parameters."""
        ties: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
        for entry in self.plan.quantized():
            if entry.tied and entry.weight is not None and ties.get(entry.name) == param_name:
                return packed_nbytes(entry.shape, entry.weight, param.dtype)
        return 0

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: PreTrainedModel | None = None
    ) -> list[Any]:
        """The model's own conversions (merging experts) run first, unchanged. Called without `model` before 5.21."""
        return list(weight_conversions)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        """Everything is loaded, or else nothing is: then what acts at run time is set up."""
        for wrong in getattr(self, "faults", ()):
            raise ModelError(wrong)
        if self._packs_after_loading() and not any(isinstance(module, PackedModule) for module in model.modules()):
            self.plan = pack_by_method_(model, self.quantization_config, progress=logging.is_progress_bar_enabled())
        if not self.pre_quantized:
            self.plan = pack_tied_heads_(model, self.plan)
            if not any(entry.tied for entry in self.plan.quantized()):
                say_untied_(model)  # the files held two weights although the config says that they are one
        check_complete(model)
        if self.pre_quantized:
            check_values(model)
        check_orders(model)
        # fused experts are saved packed, as they are: splitting them again would need their float form
        conversions = getattr(model, "_weight_conversions", None)
        if conversions is None:  # a model that was not loaded: as transformers itself does when it saves one
            found = get_model_conversion_mapping(model, add_legacy=False)
            conversions = [conversion for conversion in found if not isinstance(conversion, PrefixChange)]
        model.__dict__["_weight_conversions"] = [c for c in conversions if not _merges_experts(c)]
        finish_model_(model, self.quantization_config)
        if any(entry.is_head for entry in self.plan.quantized()):
            model.__dict__[RESIZE] = functools.partial(resize_unless_packed, model)
        return model

    def update_parallel_plan(self, model: PreTrainedModel, plan: dict[str, str]) -> None:
        """Tensor parallelism: packed parameters are sharded as the weights they stand for."""
        names = {numberless(name) for name, _ in model.named_parameters()}
        for key, style in list(plan.items()):
            plan.update({key + s: style for s in SUFFIXES.values() if key + s in names and key + s not in plan})
        if plan is model._tp_plan:
            plan.update(whole_parameters(model, self.cuts, pre_quantized=self.pre_quantized))

    def update_tp_plan(self, config: Any) -> Any:
        """Called before 5.21, when there is no model yet: nothing to do."""
        return config

    def update_ep_plan(self, config: Any) -> Any:
        """Called before 5.21, when there is no model yet: nothing to do."""
        return config

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What is saved: the state dict, a guard, and format and checksums in the header of each file.

        The guard is a tensor that has the name of a float weight and an impossible shape. Code that does not know
        this format would otherwise skip the packed tensors and go on with random weights; now it stops.
        """
        state = dict(model.state_dict())
        state |= whole_words(model)
        for name in tied_copies(model):
            del state[name]
        guard = guard_name_of(model)
        if guard is not None:
            state[guard] = torch.zeros(1, dtype=torch.uint8)
        ties: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
        stored = {name: tensor for name, tensor in state.items() if name not in ties}
        return state, {FORMAT_KEY: str(FORMAT), **as_metadata(state_checksums(stored))}

    def is_serializable(self) -> bool:
        """Packed models can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained on top of packed weights."""
        return True

    @property
    def is_compileable(self) -> bool:
        """`generate` may compile the decode step."""
        return True

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | str | None = None) -> PreTrainedModel:
        """Back to ordinary modules and an unquantized KV cache."""
        check_whole(model, "dequantizing", "Load it in one process, and dequantize it there.")
        # `save_pretrained` leaves the name of the dtype in the config of the model in memory
        unpack_modules_(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        model.__dict__.pop("_weight_conversions", None)  # experts are stored as in float checkpoints again
        model.__dict__.pop(RESIZE, None)
        if any(entry.tied for entry in self.plan.quantized()):
            say_untied_(model)
        detach_kv(model)
        detach_static_cache(model)
        return model


def finish_model_(model: PreTrainedModel, config: QllmConfig) -> None:
    """What a model with packed weights needs to run: its KV hooks, its config, the ranges of sharded rows."""
    for key, value in family(model.config.model_type).config_updates.items():
        setattr(model.config, key, value)
    finish_cuts_(model)
    attach_kv(model, config.scheme)
    attach_static_cache(model, config.scheme)


def pack_tied_heads_(model: PreTrainedModel, plan: Plan) -> Plan:
    """Pack the heads that were tied while the model was loaded, in place. Returns the plan, in which none is called
    tied that was not: files may hold another head than the embedding although config.json says that they are one.

    Raises:
        ModelError: the weight is not as a whole in memory.
    """
    heads = [entry for entry in plan.quantized() if entry.tied]
    waiting = [entry for entry in heads if not isinstance(model.get_submodule(entry.module), PackedModule)]
    if not waiting:
        return plan
    tied = shared_weights(model)
    for entry in waiting:
        weight = model.get_parameter(entry.name)
        if weight.is_meta or hasattr(weight, "placements"):
            raise ModelError(
                f"{entry.module} is tied to the embedding, which is on disk or cut for tensor parallelism while it is "
                "to be quantized. Quantize with both in memory, save, and load what was saved like this."
            )
    hooks = {entry.module: getattr(model.get_submodule(entry.module), "_hf_hook", None) for entry in waiting}
    pack_modules_(model, Plan(tuple(waiting)))
    for name, hook in hooks.items():
        if hook is not None:  # it moves inputs to the device of the head
            add_hook_to_module(model.get_submodule(name), hook)

    def as_found(entry: Entry) -> Entry:
        return replace(entry, tied=entry.name in tied) if entry in waiting else entry

    return Plan(tuple(as_found(entry) for entry in plan.entries))


def say_untied_(model: PreTrainedModel) -> None:
    """Let the config say that a packed head and the embedding are two weights, where nothing else is tied.

    Not in an encoder-decoder: some scale their hidden states by what this value is.
    """
    for module in model.modules():
        if not isinstance(module, PreTrainedModel) or getattr(module.config, "is_encoder_decoder", False):
            continue
        if module.__dict__.get("_tied_weights_keys") == {}:
            del module.__dict__["_tied_weights_keys"]
            module.config.tie_word_embeddings = False


RESIZE = "resize_token_embeddings"


def resize_unless_packed(
    model: PreTrainedModel,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    mean_resizing: bool = True,
) -> nn.Module:
    """The embedding as it is, which is what a model with a packed head answers when asked for as many tokens as it has.

    Raises:
        ModelError: it is asked for another number. Nothing has changed then, where transformers would stop half way.
    """
    embedding: Any = model.get_input_embeddings()
    current = int(embedding.weight.shape[0])
    wanted = current if new_num_tokens is None else new_num_tokens
    if pad_to_multiple_of:
        wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
    if wanted != current:
        raise ModelError(
            f"the output head is packed for {current} tokens and cannot be resized to {wanted}. Resize the float model "
            "and quantize it then, or leave the head in floating point (quantize_head=False)."
        )
    found: nn.Module = embedding
    return found


def check_complete(model: nn.Module) -> None:
    """Raises CheckpointError if a packed parameter was not in the checkpoint.

    transformers fills what is missing with new values and a warning; for packed weights that is noise. It marks
    what it loaded, and leaves what it offloaded to disk on the meta device.
    """
    missing = [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, PackedModule)
        for parameter in module.packed_names()
        if not getattr(module._parameters[parameter], "_is_hf_initialized", False)
        and not module._parameters[parameter].is_meta  # type: ignore[union-attr]
    ]
    if missing:
        raise CheckpointError(
            f"{len(missing)} packed tensors are not in the checkpoint, {missing[0]} among them. It is incomplete, or "
            "was written for another model: copy it again, or quantize the float model again."
        )


def check_orders(model: nn.Module) -> None:
    """Raises CheckpointError if an order of inputs in memory is none: a state dict comes without files to look at."""
    for name, module in model.named_modules():
        order: Tensor | None = local(module.input_order) if isinstance(module, PackedLinear) else None
        if order is not None and not order.is_meta:
            check_order(order, name + ORDER)


def warn_of_low_coverage(plan: Plan, config: QllmConfig) -> None:
    """Warns if less than 90 % of the linear weights are quantized, and names those that are not."""
    if config.w == FLOAT_BITS or plan.coverage() >= LOWEST_COVERAGE:
        return
    kept: dict[str, int] = {}
    for entry in plan.kept():
        if not entry.is_head:
            pattern = numberless(entry.module)
            kept[f"{pattern} ({entry.reason})"] = kept.get(f"{pattern} ({entry.reason})", 0) + entry.elements
    largest = sorted(kept, key=kept.__getitem__, reverse=True)[:5]
    warnings.warn(
        f"only {plan.coverage():.1%} of the linear weights are quantized. In floating point: {'; '.join(largest)}.",
        QllmWarning,
        stacklevel=2,
    )


def guard_name(plan: Plan) -> str:
    """The name of the guard tensor: that of the first quantized float weight."""
    return plan.quantized()[0].name


def guard_name_of(model: nn.Module) -> str | None:
    """The same from a model whose weights are packed already; None if only its KV cache is quantized."""
    for name, module in model.named_modules():
        if isinstance(module, PackedModule):
            return f"{name}.{next(iter(module.weight_specs))}"
    return None


def _merges_experts(conversion: Any) -> bool:
    targets = getattr(conversion, "_original_target_patterns", None) or ()
    endings = ("experts.gate_up_proj", "experts.up_proj", "experts.down_proj")
    return hasattr(conversion, "operations") and any(str(target).endswith(endings) for target in targets)


def register() -> None:
    """Make transformers know quant_method "qllm". Safe to call again."""
    if not dict.__contains__(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, QUANT_METHOD):
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = QllmConfig
    if not dict.__contains__(auto.AUTO_QUANTIZER_MAPPING, QUANT_METHOD):
        auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = QllmHfQuantizer
    loading_types: Any = auto.LOADING_ATTRIBUTES_CONFIG_TYPES
    if QllmConfig not in loading_types:
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*loading_types, QllmConfig)


register()
