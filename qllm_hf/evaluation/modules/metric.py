"""What the five metrics have in common; a folder adds the ability and a description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import datasets
import evaluate

from ..scoring.abilities import score_ability

CITATION: Final = """\
@inproceedings{li2024evaluating,
    title = {Evaluating Quantized Large Language Models},
    author = {Li, Shiyao and Ning, Xuefei and Wang, Luning and Liu, Tengxuan and Shi, Xiangsheng and Yan, Shengen and
              Dai, Guohao and Yang, Huazhong and Wang, Yu},
    booktitle = {International Conference on Machine Learning},
    year = {2024},
    url = {https://arxiv.org/abs/2402.18158}
}
"""

INPUTS: Final = """
    predictions (list of str): what the model answered. For rule "choice" the number of the likeliest text, counted
        from 0; for "rated" the judge's answer; for tasks that lm_eval scores the item's mark, such as "0.37".
    references (list of dict): {"task": id of the task, "answers": right ones, "group": part of the benchmark, or ""}.
        Items of other abilities are passed over.
    baseline_predictions (list of str, optional): another run's answers to the same items, in the same order.

Returns:
    the ability's score, 0 for guessing and 1 for perfect, and the scores of its tasks, each with a standard error;
    with a baseline also the part that is left (recovery) and the difference (change).
"""


class AbilityMetric(evaluate.Metric):  # type: ignore[misc]
    """The score of one ability. The docstring of a subclass is what `evaluate` shows as its description."""

    ability: ClassVar[str]

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": text,
                    "references": {"task": text, "answers": datasets.Sequence(text), "group": text},
                }
            ),
            reference_urls=["https://arxiv.org/abs/2402.18158"],
            license="Apache-2.0",
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[dict[str, Any]],
        baseline_predictions: Sequence[str] | None = None,
    ) -> dict[str, float]:
        return score_ability(self.ability, predictions, references, baseline_predictions)
