"""Where each quantized layer of the files belongs in the model: one weight each, or one expert of many in a stack.

transformers keeps the experts of a layer in one 3-D weight, and other libraries store each on its own. The table by
which transformers itself merges float experts while it loads them (`conversion_mapping`) says which rows go where.
Integers and scales are merged by the same table, as long as it only stacks and concatenates rows: a row keeps its
groups then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..errors import CheckpointError

# What merging may do to rows: stack experts, then concatenate what gate and up projections give along the rows; or
# concatenate the rows of single layers.
ROW_MERGES = (
    (("MergeModulelist", 0),),
    (("MergeModulelist", 0), ("Concatenate", 1)),
    (("Concatenate", 0),),
)


@dataclass(frozen=True)
class Target:
    """A weight of the model and the layers in the files that its rows come from.

    Attributes:
        weight: full name of the parameter, such as `model.layers.0.mlp.experts.gate_up_proj`.
        columns: names of layers: the outer lists are concatenated along rows, each inner list is a stack of experts.
        is_stack: the weight is [E, O, I].
    """

    weight: str
    columns: tuple[tuple[str, ...], ...]
    is_stack: bool

    @property
    def members(self) -> tuple[str, ...]:
        """All layers of the files that belong to the weight."""
        return tuple(name for column in self.columns for name in column)


class Names:
    """How the names in a checkpoint's files become those of a model, as transformers does it."""

    def __init__(self, model: PreTrainedModel) -> None:
        mapping = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._prefix = model.base_model_prefix

    def of(self, stored: str, known: Mapping[str, object]) -> tuple[str, str | None]:
        """The model's name of a stored tensor, and the pattern by which it is merged with others, or None.

        Args:
            known: names of the model's parameters.
        """
        name, pattern = rename_source_key(stored, self._renamings, self._converters, self._prefix, dict(known))
        if name not in known and stored in known:
            return stored, None
        return name, pattern

    def targets(self, layers: Iterable[str], known: Mapping[str, object]) -> list[Target]:
        """The model's weights that the quantized layers of the files are, in the order of their names.

        Raises:
            CheckpointError: a layer is no weight of the model, or would be merged in another way than by rows.
        """
        single: list[Target] = []
        merged: dict[str, dict[str, list[str]]] = {}
        for layer in sorted(layers, key=_natural):
            weight, pattern = self.of(layer + ".weight", known)
            if weight not in known:
                raise CheckpointError(
                    f"{layer} is quantized in the files, and the model has no {weight}. Were they written for another "
                    "version of its architecture?"
                )
            if pattern is None:
                single.append(Target(weight, ((layer,),), is_stack=False))
            else:
                merged.setdefault(weight, {}).setdefault(pattern, []).append(layer)
        return single + [self._merge(weight, parts) for weight, parts in merged.items()]

    def _merge(self, weight: str, parts: Mapping[str, list[str]]) -> Target:
        converter = next(c for c in self._converters if set(parts) <= set(c.source_patterns))
        steps = tuple((type(step).__name__, getattr(step, "dim", None)) for step in converter.operations)
        if steps not in ROW_MERGES:
            raise CheckpointError(
                f"{weight} is made of {', '.join(parts)} by {', '.join(name for name, _ in steps)}, and only merging "
                "by rows keeps integers and their groups as they are. Quantize the float model."
            )
        missing = [pattern for pattern in converter.source_patterns if pattern not in parts]
        columns = tuple(tuple(parts[pattern]) for pattern in converter.source_patterns if pattern in parts)
        if missing or len({len(column) for column in columns}) != 1:
            counts = ", ".join(f"{len(parts.get(pattern, ()))} of {pattern}" for pattern in converter.source_patterns)
            raise CheckpointError(f"{weight} needs all of its parts quantized alike, and the files hold {counts}.")
        return Target(weight, columns, is_stack=steps[0][0] == "MergeModulelist")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Numbers between dots as numbers: expert 10 comes after expert 9."""
    return [(0, int(part), "") if re.fullmatch(r"\d+", part) else (1, 0, part) for part in name.split(".")]
