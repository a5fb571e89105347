"""A model's sizes under each scheme by arithmetic, so that choices can be tried by the thousand."""

from collections.abc import Iterable
from dataclasses import dataclass

from qllm_hf.advice.candidates import SCHEMES
from qllm_hf.advice.situation import Situation
from qllm_hf.scheme import Scheme

KV_BYTES = 524_288
"""Of a token of LLaMA2-7B in 16 bits."""


@dataclass(frozen=True)
class FakeSizes:
    """Weights of `params_b` billion parameters and a cache, all of them quantized."""

    params_b: float
    scheme: Scheme

    @property
    def weight_bytes(self) -> int:
        return int(self.params_b * 1e9 * self.scheme.w / 8)

    def kv_bytes(self, batch: int, tokens: int) -> int:
        return batch * tokens * KV_BYTES * self.scheme.kv // 16

    def total_bytes(self, batch: int, tokens: int) -> int:
        return self.weight_bytes + self.kv_bytes(batch, tokens)


def fake_costs(situation: Situation, labels: Iterable[str] = SCHEMES) -> dict[str, FakeSizes]:
    """{label: sizes} for a situation."""
    schemes = {label: Scheme.parse(label.partition("+")[0]) for label in labels}
    return {
        label: FakeSizes(situation.params_b, scheme)
        for label, scheme in schemes.items()
        if situation.has_kv or scheme.kv == 16
    }
