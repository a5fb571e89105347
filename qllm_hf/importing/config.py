"""The QllmConfig of an imported checkpoint: bits and groups of each layer, what stays, and where codes came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedModel

from ..config import QllmConfig
from ..errors import CheckpointError
from ..method import AWQ, GPTQ, RTN
from ..plan import Entry, Plan, make_plan, patterns_of
from ..scheme import Spec
from .peers import Inputs, Peer

Activations = Literal["same", "ours", "float"]
ACTIVATIONS = ("same", "ours", "float")
# Programs whose codes were chosen by the method that the layout is named after.
_METHODS = {("gptq", "gptqmodel"): GPTQ, ("gptq", "AutoGPTQ"): GPTQ, ("gptq", "optimum"): GPTQ, ("awq", "AutoAWQ"): AWQ,
            ("awq", "gptqmodel"): AWQ}  # fmt: skip


def every_weight(model: PreTrainedModel) -> Plan:
    """The plan of a float model in which everything is quantized that can be, output head and routers too."""
    return make_plan(model, QllmConfig(w=4, quantize_head=True, quantize_routers=True), check_patterns=False)


def result_config(
    model: PreTrainedModel,
    peer: Peer,
    specs: Mapping[str, Spec],
    inputs: Mapping[str, Inputs | None],
    symmetric: bool,
    ordered: Collection[str],
) -> QllmConfig:
    """The config under which exactly these weights are packed, in this way.

    Args:
        specs: full name of a weight of the model -> bits and group size.
        inputs: the same -> how its input is quantized from now on, or None.
        symmetric: no zero points are stored.
        ordered: full names of weights whose columns are stored in another order.

    Raises:
        CheckpointError: the files hold a quantized layer that has to stay in floating point here, or a layer is
            quantized and the rest of its module is not.
    """
    every = every_weight(model)
    entries = {entry.name: entry for entry in every.entries}
    schemes = {name: _scheme_text(spec, inputs[name]) for name, spec in specs.items()}
    common = _most_common(schemes, entries)
    base = next(name for name, scheme in schemes.items() if scheme == common)
    others: dict[str, set[str]] = {}
    for name, scheme in schemes.items():
        if scheme != common:
            others.setdefault(scheme, set()).add(entries[name].module)
    kept = {entry.module for entry in every.quantized() if entry.name not in specs and not entry.is_head}
    overrides = {
        pattern: scheme for scheme, modules in sorted(others.items()) for pattern in patterns_of(modules, every)
    }
    some = next((found for found in inputs.values() if found is not None), None)
    config = QllmConfig.from_scheme(
        common,
        w_group_size=specs[base].group_size,
        w_symmetric=symmetric,
        a_symmetric=some is not None and some.symmetric,
        overrides=overrides or None,
        modules_to_not_convert=patterns_of(kept, every) or None,
        quantize_head=any(entries[name].is_head for name in specs),
        quantize_routers=any(_is_router(model, entries[name]) for name in specs),
        method=_METHODS.get((peer.method, peer.made_by.split(" ")[0]), RTN),
        calibration=origin(peer),
        input_orders=patterns_of({entries[name].module for name in ordered}, every),
    )
    planned = {entry.name: entry.weight for entry in make_plan(model, config, check_patterns=False).quantized()}
    _check_same(planned, specs, entries)
    return config


def origin(peer: Peer) -> dict[str, Any]:
    """What a config says of codes that were not chosen here, where it else says what text they were calibrated on."""
    return {
        "source": f"imported from {peer.method} ({peer.made_by})",
        "samples": 0,
        "seqlen": 0,
        "imported": {"quant_method": peer.method, "made_by": peer.made_by},
    }


def quantized_inputs(peer: Peer, layers: Sequence[str], activations: Activations) -> Inputs | None:
    """How the input of these layers, which share it, is quantized from now on.

    Args:
        activations: "same": only if the numbers are the same; "ours": by our own quantizer of that many bits;
            "float": not at all.

    Raises:
        CheckpointError: "same", and this library computes other numbers.
    """
    layer = layers[0]
    found = {peer.inputs(name) for name in layers}
    if activations == "float" or found == {None}:
        return None
    (inputs,) = found if len(found) == 1 else (None,)
    if inputs is None or not inputs.is_integer or not 2 <= inputs.bits <= 8:
        raise CheckpointError(f"{layer}: its input is quantized as {found}, which cannot be done here. {_CHOICE}")
    if activations == "same" and (inputs.symmetric or not inputs.per_token):
        theirs, ours = (2**inputs.bits - 1) / 2, 2 ** (inputs.bits - 1) - 1
        why = (
            f"a symmetric scale is max|x| / {theirs} there and max|x| / {ours} here"
            if inputs.per_token
            else "its scale was fixed beforehand or is for the whole tensor, and here each token has its own"
        )
        raise CheckpointError(f"{layer}: its input is quantized to {inputs.bits} bits, and {why}. {_CHOICE}")
    return inputs


_CHOICE = (
    "The weights can be imported exactly all the same: choose activations='float' (--activations float) to leave "
    "inputs in floating point, or 'ours' to quantize them per token by our own formula."
)


def _scheme_text(spec: Spec, inputs: Inputs | None) -> str:
    return f"W{spec.bits}g{spec.group_size}" + (f"A{inputs.bits}" if inputs is not None else "")


def _most_common(schemes: Mapping[str, str], entries: Mapping[str, Entry]) -> str:
    """The scheme of most weights by elements, the output head aside."""
    counts: Counter[str] = Counter()
    for name, scheme in schemes.items():
        counts[scheme] += 0 if entries[name].is_head else entries[name].elements
    return max(counts, key=lambda scheme: counts[scheme])


def _is_router(model: PreTrainedModel, entry: Entry) -> bool:
    without = make_plan(model, QllmConfig(w=4, quantize_head=True), check_patterns=False)
    return any(other.name == entry.name and other.weight is None for other in without.entries)


def _check_same(planned: Mapping[str, Spec | None], specs: Mapping[str, Spec], entries: Mapping[str, Entry]) -> None:
    for name in specs.keys() - planned.keys():
        reason = entries[name].reason or "another layer of its module does"
        raise CheckpointError(f"{name} is quantized in the files, and stays in floating point here: {reason}.")
    for name, spec in planned.items():
        wanted = specs.get(name)
        if wanted is None or spec is None or (spec.bits, spec.group_size) != (wanted.bits, wanted.group_size):
            raise CheckpointError(f"{name} is {wanted} in the files, and a config for its module would make it {spec}.")
