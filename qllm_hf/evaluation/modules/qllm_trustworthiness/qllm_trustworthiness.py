"""The score of ability "trust" as a metric of `evaluate`."""

# A module and not the class itself: `evaluate` takes the first metric class that it finds in this namespace.
from qllm_hf.evaluation.modules import metric


class QllmTrustworthiness(metric.AbilityMetric):
    """Whether a model judges well, withstands attacks and tells the truth: ETHICS, AdvGLUE and TruthfulQA."""

    ability = "trust"
