"""The score of ability "nlp" as a metric of `evaluate`."""

# A module and not the class itself: `evaluate` takes the first metric class that it finds in this namespace.
from qllm_hf.evaluation.modules import metric


class QllmBasicNlp(metric.AbilityMetric):
    """How well a model understands and continues text: LAMBADA, CHID, WinoGrande, RACE, PIQA and Social IQa."""

    ability = "nlp"
