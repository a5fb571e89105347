"""The score of ability "emergent" as a metric of `evaluate`."""

# A module and not the class itself: `evaluate` takes the first metric class that it finds in this namespace.
from qllm_hf.evaluation.modules import metric


class QllmEmergent(metric.AbilityMetric):
    """What larger models add: to learn in context, reason in steps, follow instructions, and know what they know."""

    ability = "emergent"
