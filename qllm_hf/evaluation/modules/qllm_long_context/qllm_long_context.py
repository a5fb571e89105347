"""The score of ability "long" as a metric of `evaluate`."""

# A module and not the class itself: `evaluate` takes the first metric class that it finds in this namespace.
from qllm_hf.evaluation.modules import metric


class QllmLongContext(metric.AbilityMetric):
    """Whether a model finds what it needs in a long text: LongEval and Lost in the Middle."""

    ability = "long"
