"""recommend(): from a model, or a size, to advice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedModel

from ..cost.devices import Device, find_device
from ..cost.model import ModelCost
from ..cost.typical import typical_model
from ..errors import CheckpointError, ConfigError, ModelError
from ..families import family as architecture
from ..loading import check_float, local_folder, model_on_meta
from ..published.names import family_name, study_model
from ..published.read import models
from ..results import Results, read_results
from .advice import Advice, advise
from .candidates import costs_of, labels_for
from .quantities import parse_memory, parse_percent, parse_tokens
from .situation import TOLERANCE, Situation

FAMILIES: Final = {
    "opt": "OPT",
    "falcon": "Falcon",
    "bloom": "Bloomz",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "chatglm": "ChatGLM",
    "stablelm": "StableLM",
    "gemma": "Gemma",
    "mamba": "Mamba",
}
"""{model_type: the study's family}. "llama" is three of its families, so only a model's name, or `family`, tells."""
OVERHEAD: Final = (
    "Bytes are weights and cache; what a forward needs on top (activations, the framework) is not counted."
)


def recommend(
    model: str | PreTrainedModel | None = None,
    *,
    params: float | None = None,
    moe: bool = False,
    family: str | None = None,
    abilities: str | Iterable[str] = "all",
    context: int | str = 2048,
    batch: int = 1,
    memory: int | str | None = None,
    device: str | Device | None = None,
    measured: str | Path | None = None,
    tolerance: float | str = TOLERANCE,
    trust_remote_code: bool = False,
) -> Advice:
    """Which scheme to use, why, what it costs, and what would change it.

    Args:
        model: a folder, an id on the Hub, "reference", or a float model in memory: then shapes are exact. No weights
            are read.
        params: billions of parameters, in place of a model; shapes are then those of a study model of that size.
        moe: with `params`, whether it is a mixture of experts.
        family: the study's name of the family, where the model's own name does not tell.
        abilities: some of nlp, emergent, trust, dialogue, long; of emergent icl, if, mr, sc; or all.
        context: tokens of a sequence, prompt and answer; "16k" is 16,384.
        batch: sequences at once.
        memory: bytes, or "24GB", "24GiB"; without it that of the device, or no limit.
        device: for times, by name.
        measured: a folder of results of this model, whose scores go before published ones.
        tolerance: percent of loss that is acceptable.

    Raises:
        ConfigError: a value that cannot be, or neither or both of `model` and `params`.
        CheckpointError: no results in the folder, or results of another model.
        ModelError: the model is quantized already, or its cache is of a kind that is not known.
    """
    if (model is None) == (params is None):
        raise ConfigError(
            "give a model, or a number of parameters (params, in billions)" + (", not both." if model else ".")
        )
    if moe and model is not None:
        raise ConfigError("moe goes with params: a model says itself whether it is a mixture of experts.")
    if measured is not None and model is None:
        raise ConfigError("results are of one model: name it, in place of its number of parameters.")
    found_device = find_device(device) if isinstance(device, str) else device
    words = abilities.split(",") if isinstance(abilities, str) else list(abilities)
    given: dict[str, Any] = {
        "abilities": tuple(word for word in words if str(word).strip()),
        "context": parse_tokens(context),
        "batch": batch,
        "memory_bytes": None if memory is None else parse_memory(memory),
        "device": found_device,
        "tolerance": parse_percent(tolerance),
        "family": "" if family is None else family_name(family),
    }
    if given["memory_bytes"] is None and found_device is not None:
        given["memory_bytes"] = found_device.memory_bytes
    Situation(params_b=params or 1.0, **given)  # what cannot be is said before any work
    notes = [OVERHEAD]
    if model is None:
        assert params is not None
        typical = typical_model(params, moe)
        shapes, name = typical.model, ""
        notes.insert(0, typical.sentence)
    else:
        shapes, name = _shapes(model, trust_remote_code)
        given["family"] = given["family"] or family_of(name, shapes)
        notes += _limits(shapes, given["context"])
    results = None if measured is None else _results(measured, name, shapes)
    if results is not None and results.is_partial:
        notes.append("Some measured scores are of the first items only.")
    has_kv = _has_kv(shapes)
    situation = Situation(params_b=params or _params(shapes), moe=moe, model=name, has_kv=has_kv, **given)
    costs = costs_of(shapes, labels_for(situation, results))
    if model is not None and _is_moe(costs["FP16"]):
        situation = Situation(params_b=situation.params_b, moe=True, model=name, has_kv=has_kv, **given)
    if found_device is not None:
        notes.append(f"Times are bounds from the peak rates of {found_device.name} ({found_device.source}).")
    return advise(situation, costs, results, tuple(notes))


def family_of(name: str, model: PreTrainedModel) -> str:
    """The study's family of a model: by its name if the study has it, else by its architecture; "" if neither tells."""
    known = study_model(name)
    if known is not None:
        return models()[known].family
    return FAMILIES.get(model.config.get_text_config(decoder=True).model_type, "")


def _shapes(model: str | PreTrainedModel, trust_remote_code: bool) -> tuple[PreTrainedModel, str]:
    if isinstance(model, PreTrainedModel):
        if getattr(model.config, "quantization_config", None) is not None:
            raise ModelError("the model is quantized already. Give the float model it was made from.")
        return model, model.name_or_path or type(model).__name__
    check_float(model, trust_remote_code=trust_remote_code)
    return model_on_meta(model, trust_remote_code=trust_remote_code), model


def _params(model: PreTrainedModel) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e9


def _has_kv(model: PreTrainedModel) -> bool:
    return architecture(model.config.get_text_config(decoder=True).model_type).kv != "none"


def _is_moe(cost: ModelCost) -> bool:
    return cost.work.experts > 0


def _limits(model: PreTrainedModel, context: int) -> list[str]:
    """A remark if the context is longer than what the model was made for."""
    longest = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if isinstance(longest, int) and longest < context:
        return [f"The model was made for at most {longest:,} tokens; {context:,} are asked for."]
    return []


def _results(folder: str | Path, name: str, model: PreTrainedModel) -> Results:
    """The results in a folder, if they are of this model."""
    results = read_results(folder)
    same_place = _place(results.model) == _place(name)
    elements = {size.elements for size in results.sizes.values()}
    count = sum(parameter.numel() for parameter in model.parameters())
    if not same_place or (elements and elements != {count}):
        sizes = f" with {next(iter(elements)):,} parameters" if elements else ""
        raise CheckpointError(
            f"the results in {str(folder)!r} are of {results.model!r}{sizes}, not of {name!r} with {count:,}. Measured "
            "losses count for the model they were measured on only. Measure this one: "
            f"qllm-hf sweep {name} -o DIR"
        )
    return results


def _place(name: str) -> str:
    """A model's folder as an absolute path, or its id."""
    folder = local_folder(name) if name else None
    return str(folder.resolve()) if folder is not None else name
