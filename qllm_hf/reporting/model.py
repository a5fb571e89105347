"""report(model): what quantization did to a model, measured from its tensors; plan_report: what it would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from transformers import PreTrainedModel

from ..config import QllmConfig
from ..errors import ModelError
from ..families import family
from ..method import RTN
from ..parallel import tensor_parallel_size
from ..plan import Plan, make_plan
from ..quantizer import QllmHfQuantizer
from ..scheme import FLOAT_BITS, Scheme
from ..surgery import replace_modules_
from .backends import model_backends
from .kv import kv_report, twin_on_meta
from .tensors import dtype_name, kept_groups, kept_linear_bytes, packed_weights, parameter_bytes, quantized_groups
from .text import bytes_text
from .values import Origin, Report


def report(model: PreTrainedModel) -> Report:
    """What quantization did to a loaded model: bytes before and after, bits per weight, coverage, KV cache, backends.

    A float model gives a report too, which says that nothing is quantized. Bytes are those of the model's own
    tensors; "before" is what the same weights take in their float dtype. Print it, or take `to_dict()`.

    Raises:
        ModelError: the model is quantized by another library.
    """
    quantizer = _quantizer(model)
    if quantizer is None:
        config = QllmConfig()
        return _report(model, config, make_plan(model, config), "measured")
    return _report(model, quantizer.quantization_config, quantizer.plan, "measured")


def plan_report(model: PreTrainedModel, config: QllmConfig, origin: Origin = "planned") -> Report:
    """What `config` would do to a float model; on the meta device, no weights are needed. The model stays as it is.

    Raises:
        ModelError: the model cannot be quantized as asked.
    """
    twin = twin_on_meta(model)
    plan = make_plan(twin, config, check_patterns=origin == "planned")
    replace_modules_(twin, plan, placeholders=False)
    return _report(twin, config, plan, origin)


def scheme_of(model: PreTrainedModel) -> str:
    """The scheme a model runs with: "FP16" for a float model.

    Raises:
        ModelError: the model is quantized by another library.
    """
    quantizer = _quantizer(model)
    return str(Scheme() if quantizer is None else quantizer.quantization_config.scheme)


def _quantizer(model: PreTrainedModel) -> QllmHfQuantizer | None:
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or isinstance(quantizer, QllmHfQuantizer):
        return quantizer
    method = cast(QllmHfQuantizer, quantizer).quantization_config.quant_method
    raise ModelError(f"this model is quantized by {method!r}; only models of qllm_hf and float models can be reported.")


def _report(model: PreTrainedModel, config: QllmConfig, plan: Plan, origin: Origin) -> Report:
    scheme = config.scheme
    packed, kept = packed_weights(model, plan), kept_groups(model, plan)
    packed_elements = sum(weight.elements for weight in packed)
    replaced_elements = sum(weight.elements for weight in packed if not weight.beside)
    elements = replaced_elements + sum(group.elements for group in kept)
    bytes_before, bytes_after = sum(w.bytes_before for w in packed), sum(w.bytes_after for w in packed)
    linear = [weight for weight in packed if not weight.is_head]
    kept_bytes, kept_linear = sum(group.bytes for group in kept), kept_linear_bytes(model, plan)
    is_quantized = bool(packed) or scheme.kv < FLOAT_BITS
    return Report(
        origin=origin,
        architecture=type(model).__name__,
        model_type=model.config.model_type,
        scheme=str(scheme),
        dtype=dtype_name(model.dtype),
        elements=elements,
        parameter_bytes_before=bytes_before + kept_bytes,
        parameter_bytes_after=bytes_after + kept_bytes,
        linear_bytes_before=sum(w.bytes_before for w in linear) + kept_linear,
        linear_bytes_after=sum(w.bytes_after for w in linear) + kept_linear,
        bits_per_weight=8 * bytes_after / packed_elements if packed else None,
        bits_per_weight_expected=sum(w.expected_bits for w in packed) / packed_elements if packed else None,
        linear_coverage=plan.coverage(),
        parameter_coverage=replaced_elements / elements if elements else 0.0,
        quantized=quantized_groups(packed),
        kept=kept,
        kv=kv_report(model, scheme),
        backends=model_backends(model),
        notes=(*_method_notes(config), *_head_notes(plan), *_parallel_notes(model), *_family_notes(model))
        if is_quantized
        else (),
    )


def _family_notes(model: PreTrainedModel) -> tuple[str, ...]:
    return family(model.config.get_text_config(decoder=True).model_type).notes


def _head_notes(plan: Plan) -> tuple[str, ...]:
    """What was done with the output head, if it is quantized."""
    return tuple(
        f"{entry.module}: the output head is rounded to nearest, and its input stays in floating point"
        + ("; the embedding that it was tied to stays as well, and the packed head is stored beside it" * entry.tied)
        for entry in plan.quantized()
        if entry.is_head
    )


def _parallel_notes(model: PreTrainedModel) -> tuple[str, ...]:
    """Over how many processes the model is cut, if it is: sizes are those of the whole model."""
    size, here = tensor_parallel_size(model), parameter_bytes(model, here=True)
    if size == 1 or here == parameter_bytes(model):
        return ()
    return (
        f"cut over {size} processes, of which this one holds {bytes_text(here)}; sizes here are of the whole model",
    )


def _method_notes(config: QllmConfig) -> tuple[str, ...]:
    """How the codes were chosen, where that is more than rounding to nearest."""
    seen = config.calibration if isinstance(config.calibration, Mapping) else None
    text = f", calibrated on {seen.get('source')} ({seen.get('samples')} x {seen.get('seqlen')} tokens)" if seen else ""
    notes = [f"method {config.method}{text}"] if config.method != RTN or seen else []
    if config.imported:
        notes = ["codes chosen by {made_by}, imported from {quant_method}".format_map(config.imported)]
    if config.input_scales:
        notes.append(f"{', '.join(config.input_scales)}: the input is multiplied by a stored vector first")
    if config.input_orders:
        notes.append(f"{', '.join(config.input_orders)}: the input is read in a stored order (act order)")
    return tuple(notes)
