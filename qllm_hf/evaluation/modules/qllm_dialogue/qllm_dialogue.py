"""The score of ability "dialogue" as a metric of `evaluate`."""

# A module and not the class itself: `evaluate` takes the first metric class that it finds in this namespace.
from qllm_hf.evaluation.modules import metric


class QllmDialogue(metric.AbilityMetric):
    """How well a model answers in two turns of a dialogue, as a judge rates it: MT-Bench."""

    ability = "dialogue"
