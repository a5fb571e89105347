"""What is odd about some published values, as a table, so that each value knows.

Nothing is corrected in silence: values stand as published but for the two that are `edited`. Whoever takes means leaves
out what is `excluded`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["excluded", "imputed", "suspicious", "edited", "inferred", "noted", "absent"]

KINDS: Final[Mapping[Kind, str]] = {
    "excluded": "a failed run, or no fair baseline: left out of means",
    "imputed": "a placeholder rather than a measurement, or so it seems",
    "suspicious": "a value that contradicts another one",
    "edited": "the one place where the value here is not, or not everywhere, the published one",
    "inferred": "what the value is was concluded, not read",
    "noted": "as published, and surprising",
    "absent": "not there at all",
}


@dataclass(frozen=True)
class Anomaly:
    """One oddity, and the rows it concerns: those that match all of the fields that are not empty.

    Attributes:
        id: "A06"; "A10a" to "A10d" are parts of one remark.
        kind: one of `KINDS`.
        what: a sentence or two.
        benchmarks, models, schemes, metrics, subsets: names, in the spelling of the data. A subset that ends in "*"
            stands for all that begin like it.
        families: of models.
        value: only rows of exactly this value.
    """

    id: str
    kind: Kind
    what: str
    benchmarks: Collection[str] = ()
    models: Collection[str] = ()
    schemes: Collection[str] = ()
    metrics: Collection[str] = ()
    subsets: Collection[str] = ()
    families: Collection[str] = ()
    value: float | None = None

    def concerns(
        self, *, benchmark: str, model: str, family: str, scheme: str, metric: str, subset: str, value: float
    ) -> bool:
        """Whether a row is one of those."""
        if self.kind == "absent" or self.value not in (None, value):
            return False
        pairs = (
            (self.benchmarks, benchmark),
            (self.models, model),
            (self.families, family),
            (self.schemes, scheme),
            (self.metrics, metric),
        )
        if any(allowed and value not in allowed for allowed, value in pairs):
            return False
        return not self.subsets or any(
            subset == name or (name.endswith("*") and subset.startswith(name[:-1])) for name in self.subsets
        )


_BEYOND_6K: Final = ("length=9k", "length=11k", "length=13k", "length=16k", "position=*")
_JOINT: Final = ("W8KV8", "W4KV8", "W8KV4", "W4KV4")

_ALL: Final = (
    Anomaly(
        "A01",
        "inferred",
        "The source has two numbers, a/b: a is taken as the plain mean over subjects, b as the one weighted by items.",
        benchmarks=("mmlu", "mmlu-calib"),
    ),
    Anomaly(
        "A02",
        "edited",
        'The source reads "4967/49.83"; stored as 49.67.',
        benchmarks=("mmlu-calib",),
        models=("LLaMA2-7B",),
        schemes=("W4A4",),
        metrics=("accuracy_naive_avg",),
    ),
    Anomaly(
        "A03",
        "edited",
        "Two source files say 3.62 and the one of the KV cache says 3.61; 3.62 is kept.",
        benchmarks=("mt_bench",),
        models=("Gemma-7B-it",),
        schemes=("FP16",),
        subsets=("round2",),
    ),
    Anomaly(
        "A04a",
        "imputed",
        "1.00 for all but two models in the first round: the study's script fills in 1 where a score is missing.",
        benchmarks=("mt_bench",),
        schemes=("W4A4",),
        value=1.0,
    ),
    Anomaly(
        "A04b",
        "imputed",
        "0 for every model at every length, so perhaps filled in.",
        benchmarks=("longeval_lines",),
        schemes=("W2", "W4A4", "KV2"),
    ),
    Anomaly(
        "A05",
        "suspicious",
        "Mistral-7B-instruct and Mixtral-8x7B-instruct have the same two scores: one is probably a copy.",
        benchmarks=("mt_bench",),
        models=("Mistral-7B-instruct", "Mixtral-8x7B-instruct"),
        schemes=("KV3",),
    ),
    Anomaly(
        "A06",
        "excluded",
        "Mean accuracy on the originals falls from 61 to 25 at KV8, which costs this model nothing anywhere else: "
        "a failed run.",
        benchmarks=("advglue",),
        models=("LLaMA2-70B-chat",),
        schemes=("KV8", "KV4", "KV3"),
    ),
    Anomaly(
        "A07",
        "suspicious",
        "The ten positions average to 0.904, the length says 0.934: one of the two is wrong.",
        benchmarks=("longeval_lines",),
        models=("Mistral-7B",),
        schemes=("KV8",),
        subsets=("length=16k", "position=*"),
    ),
    Anomaly(
        "A08",
        "excluded",
        "FP16 is far below W4 and W4A8 (0.476 and 0.894 at 4k), and the source comments out the lengths of W: no "
        "baseline to compare with.",
        benchmarks=("longeval_lines",),
        models=("ChatGLM3-6B",),
    ),
    Anomaly(
        "A09",
        "noted",
        "LongChat loses much at 8-bit KV already beyond 6k tokens.",
        benchmarks=("longeval_lines",),
        models=("LongChat-7B", "LongChat-13B"),
        schemes=("KV8", "W8KV8", "W4KV8"),
        subsets=_BEYOND_6K,
    ),
    Anomaly(
        "A10a",
        "suspicious",
        "No whole number of right answers gives this accuracy (it is off by up to 0.02 points).",
        benchmarks=("lambada",),
        models=("LLaMA2-7B",),
        schemes=("W3",),
    ),
    Anomaly(
        "A10b",
        "suspicious",
        "No whole number of right answers gives this accuracy (it is off by up to 0.02 points).",
        benchmarks=("strategyqa",),
        models=("Falcon-180B",),
        schemes=("W4A4",),
    ),
    Anomaly(
        "A10c",
        "suspicious",
        "No whole number of right answers gives this accuracy (it is off by up to 0.02 points).",
        benchmarks=("strategyqa",),
        models=("Falcon-40B",),
        schemes=("KV2",),
    ),
    Anomaly(
        "A10d",
        "noted",
        "8 bits score below 4 and 3 bits.",
        benchmarks=("lambada",),
        models=("ChatGLM3-6B-32k",),
        schemes=("W8",),
    ),
    Anomaly(
        "A10e",
        "inferred",
        "Five positions where others have seven: presumably the set of 20 documents.",
        benchmarks=("lost_in_the_middle",),
        models=("LLaMA2-70B",),
    ),
    Anomaly(
        "A11",
        "absent",
        "Blank in the source: GSM8K of Falcon-7B and ChatGLM3-6B-32k at KV2, MMLU of Falcon-7B with W and A or KV, "
        "self-calibration of Falcon-7B at W3.",
    ),
    Anomaly(
        "A12",
        "inferred",
        "The file names a base model although its prompts use a chat template: which variant ran is not said.",
        benchmarks=("ethics", "truthfulqa", "lost_in_the_middle", "longeval_lines"),
        families=("LLaMA2", "Falcon", "Mistral", "Mixtral"),
    ),
    Anomaly(
        "A13",
        "noted",
        "Bloom is none of the eleven families of the study (Bloomz is).",
        families=("Bloom",),
    ),
    Anomaly(
        "A14",
        "absent",
        "Not published as numbers: CHID, WinoGrande, RACE, PIQA, SIQA, LAMBADA with quantized A or KV, SmoothQuant, "
        "sweeps over shots, statistics of tensors.",
    ),
    Anomaly(
        "A15",
        "inferred",
        "No script says the order of these rows; W8KV8 and W8KV4 agree with KV8 and KV4, and the others follow.",
        benchmarks=("longeval_lines",),
        schemes=_JOINT,
    ),
)
ANOMALIES: Final = {anomaly.id: anomaly for anomaly in _ALL}
