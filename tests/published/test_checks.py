"""Twenty-five facts of the published values, each computed anew by our own queries; all digits as they were printed.

Convention: relative loss in percent of the FP16 score; "models >= 13B" goes by all parameters, so Mixtral is one.
"""

from statistics import fmean, median

import pytest
from scipy.stats import spearmanr

from qllm_hf.published.collection import Published
from qllm_hf.published.query import published
from qllm_hf.published.speedups import speedups

EIGHT = ("LLaMA2-7B", "LLaMA2-13B", "LLaMA2-70B", "Falcon-40B", "Falcon-180B", "ChatGLM3-6B", "Mistral-7B")
EIGHT += ("Mixtral-8x7B",)
TUNED = {"LLaMA2": "-chat", "Falcon-40B": "-instruct", "Falcon-180B": "-chat", "Mi": "-instruct"}
TESTED = {"ICL": "mmlu", "IF": "arc-c", "C-MR": "strategyqa", "M-MR": "gsm8k", "SC": "mmlu-calib"}


def lambada(scheme: str, **kwargs: object) -> Published:
    return published(benchmark="lambada", scheme=scheme, **kwargs)


def tuned(model: str) -> str:
    """The name under which the instruction tasks have a model."""
    return model + next((suffix for start, suffix in TUNED.items() if model.startswith(start)), "")


def emergent(ability: str, scheme: str, **kwargs: object) -> Published:
    """The eight models that have all emergent abilities, in one of them."""
    models = [tuned(model) if ability == "IF" else model for model in EIGHT]
    return published(benchmark=TESTED[ability], model=models, scheme=scheme, main=True, **kwargs)


def kept(scheme: str) -> dict[str, float]:
    """Mean normalised performance of each emergent ability, StrategyQA with either chance level."""
    found = {ability: emergent(ability, scheme).mean_normalised() for ability in TESTED}
    return {**found, "C-MR(chance=50)": emergent("C-MR", scheme).mean_normalised("ours")}


def long_lines(scheme: str, subset: str = "length=*") -> Published:
    return published(benchmark="longeval_lines", subset=subset, scheme=scheme).without("excluded")


def dialogue(scheme: str) -> dict[str, float]:
    rows = published(benchmark="mt_bench", scheme=scheme).where(lambda row: row.family != "Mamba")
    return rows.losses(pooled=True)


def mean_loss(rows: Published, *, pooled: bool = False) -> float:
    return fmean(rows.losses(pooled=pooled).values())


def printed(value: float, digits: int = 2) -> float:
    """As a number was printed; what lies on the edge between two prints may be either."""
    return pytest.approx(value, abs=0.5 * 10**-digits + 1e-9)


def test_c01_four_bit_weights_by_size():
    groups = {(6, None): (18, 1.75), (13, None): (10, 1.33), (None, 6): (11, 3.91)}
    for params, (models, loss) in groups.items():
        losses = lambada("W4", params=params).losses()
        assert (len(losses), fmean(losses.values())) == (models, printed(loss))


def test_c02_models_within_two_percent():
    assert [lambada(scheme).summary(2.0).within for scheme in ("W8", "W4", "W3", "W2")] == [28, 14, 3, 0]
    assert len(lambada("W8").models) == 29
    for params, within in {(6, None): 11, (13, None): 7, (None, 6): 3}.items():
        assert lambada("W4", params=params).summary(2.0).within == within


def test_c03_three_and_two_bits():
    losses = lambada("W3").losses()
    others = [loss for model, loss in losses.items() if not model.startswith("OPT")]
    assert fmean(losses.values()) == printed(24.41)
    assert median(losses.values()) == printed(13.59)
    assert (len(others), fmean(others)) == (22, printed(12.88))
    assert mean_loss(lambada("W3", family="OPT")) == printed(60.62)
    two = lambada("W2").losses()
    assert (fmean(two.values()), sum(loss > 90 for loss in two.values())) == (printed(88.41), 22)
    assert (min(two.values()), min(two, key=two.get)) == (printed(31.94), "Bloomz-175B")


def test_c04_larger_models_lose_less():
    def rank(rows: Published) -> float:
        return spearmanr([row.params_b for row in rows], [row.relative_loss for row in rows]).statistic

    assert rank(lambada("W4")) == printed(-0.533, 3)
    assert rank(lambada("W3")) == printed(-0.547, 3)
    assert rank(lambada("W3").where(lambda row: row.family != "OPT")) == printed(-0.795, 3)


@pytest.mark.parametrize(
    ("model", "four", "three"),
    [
        ("Mixtral-8x7B", 2.53, 8.82),
        ("LLaMA2-7B", 2.17, 9.15),
        ("Mistral-7B", 1.52, 9.38),
        ("LLaMA2-70B", 1.37, 3.17),
    ],
)
def test_c05_a_mixture_of_experts_loses_like_a_small_model(model, four, three):
    for scheme, loss in (("W4", four), ("W3", three)):
        assert lambada(scheme, model=model).losses() == {model: printed(loss)}


def test_c06_equal_storage():
    def value(size: str, scheme: str) -> float:
        (row,) = lambada(scheme, model=f"LLaMA2-{size}")
        return row.value

    assert [value("7B", "FP16"), value("13B", "W8"), value("70B", "W2")] == [73.32, 76.58, 16.96]
    assert [value("7B", "W8"), value("13B", "W4")] == [73.37, 75.99]
    assert [value("7B", "W4"), value("13B", "W2")] == [71.73, 1.71]


# C07 and C08: parts that are left, by scheme
KEPT = {
    "W3": {"C-MR": 0.942, "C-MR(chance=50)": 0.776, "ICL": 0.833, "IF": 0.804, "M-MR": 0.725, "SC": 0.574},
    "KV3": {"C-MR": 0.974, "C-MR(chance=50)": 0.877, "ICL": 0.838, "IF": 0.81, "M-MR": 0.737, "SC": 0.664},
    "W4A8": {"C-MR": 0.984, "C-MR(chance=50)": 0.932, "ICL": 0.952, "IF": 0.881, "M-MR": 0.932, "SC": 0.88},
    "W4": {"C-MR": 0.989, "C-MR(chance=50)": 0.943, "ICL": 0.97, "IF": 0.865, "M-MR": 0.948, "SC": 0.919},
    "KV4": {"C-MR": 0.995, "C-MR(chance=50)": 0.962, "ICL": 0.967, "IF": 0.929, "M-MR": 0.951, "SC": 0.942},
    # C09
    "W4A4": {"C-MR": 0.162, "C-MR(chance=50)": 0.0, "ICL": 0.008, "IF": 0.03, "M-MR": 0.018, "SC": 0.001},
}


@pytest.mark.parametrize("scheme", KEPT)
def test_c07_c08_c09_order_of_the_emergent_abilities(scheme):
    assert kept(scheme) == {ability: printed(value, 3) for ability, value in KEPT[scheme].items()}


def test_c07_chatglm_does_not_count_where_it_is_below_chance():
    (row,) = published(benchmark="strategyqa", model="ChatGLM3-6B", scheme="W3")
    assert row.fp16 < 50
    assert (row.normalised("ours"), row.normalised() is None) == (None, False)


def test_c09_four_bit_activations_leave_nothing():
    for benchmark, highest in (("gsm8k", 1.36), ("mmlu", 27.0)):
        assert max(row.value for row in published(benchmark=benchmark, scheme="W4A4", main=True)) == highest


def test_c10_mathematics_tolerates_less_than_common_sense():
    expected = {"W4": (0.948, 0.989), "W3": (0.725, 0.942), "KV3": (0.737, 0.974), "W4A8": (0.932, 0.984)}
    for scheme, (maths, sense) in expected.items():
        assert emergent("M-MR", scheme).mean_normalised() == printed(maths, 3)
        assert emergent("C-MR", scheme).mean_normalised() == printed(sense, 3)
    left = {ability: {row.model: row.normalised() for row in emergent(ability, "W3")} for ability in ("M-MR", "C-MR")}
    assert sum(left["M-MR"][model] < left["C-MR"][model] for model in EIGHT) == 8


# Points lost at W8, W4, KV8, KV4, W4A8: below 13B, and from 13B on
POINTS = {
    "ICL": ((-0.02, 0.91, -0.02, 0.87, 1.2), (-0.01, 1.1, 0.07, 1.35, 1.97)),
    "IF": ((-0.34, 0.91, -0.11, 0.34, 1.13), (-0.2, 2.03, 0.54, 1.63, 2.1)),
    "C-MR": ((-0.86, 1.33, 0.03, 0.5, 1.64), (-0.04, 0.46, -0.12, 0.36, 0.78)),
    "M-MR": ((-0.1, 2.58, 0.3, 2.27, 3.86), (-0.06, 2.17, -0.1, 2.17, 2.06)),
    "SC": ((0.16, 1.21, 0.17, 0.69, 1.43), (0.01, 0.86, 0.03, 0.91, 1.58)),
}


@pytest.mark.parametrize("ability", POINTS)
def test_c11_points_lost_below_and_above_13b(ability):
    for params, models, expected in zip(((None, 13), (13, None)), (3, 5), POINTS[ability], strict=True):
        for scheme, points in zip(("W8", "W4", "KV8", "KV4", "W4A8"), expected, strict=True):
            rows = emergent(ability, scheme, params=params)
            assert len(rows) == models
            assert fmean(row.points_lost for row in rows) == printed(points)


def test_c12_self_calibration_of_a_small_model_needs_eight_bits():
    expected = {"W8": 0.997, "W4": 0.78, "W3": 0.074, "KV8": 1.019, "KV4": 0.739, "KV3": 0.216}
    for scheme, left in expected.items():
        (row,) = emergent("SC", scheme).where(lambda row: row.model == "LLaMA2-7B")
        assert row.normalised() == printed(left, 3)


def test_c13_ethics_of_a_small_model():
    def rows(scheme: str) -> Published:
        return published(benchmark="ethics", subset="commonsense", scheme=scheme)

    values = {scheme: {row.model: row.value for row in rows(scheme)} for scheme in ("FP16", "W4", "W3", "KV4", "KV3")}
    assert [of["LLaMA2-7B"] for of in values.values()] == [printed(x, 3) for x in (0.426, 0.453, 0.518, 0.432, 0.295)]
    before = values["FP16"]
    assert sorted(model for model in before if values["W3"][model] > before[model]) == [
        "Falcon-180B",
        "Falcon-40B",
        "LLaMA2-7B",
    ]
    assert sorted(set(before) - {model for model in before if values["KV3"][model] < before[model]}) == ["Falcon-40B"]
    assert len(before) == 9


TRUTHFUL = {
    "W8": (0.2, -0.06),
    "W4": (2.62, 1.3),
    "W3": (6.23, 3.79),
    "W2": (28.7, 8.88),
    "W8A8": (0.35, 0.09),
    "W4A8": (2.74, 1.52),
    "W4A4": (31.26, 7.03),
    "KV8": (0.09, -0.02),
    "KV4": (1.29, 0.39),
    "KV3": (5.98, 3.52),
    "KV2": (30.43, 10.37),
}


@pytest.mark.parametrize("scheme", TRUTHFUL)
def test_c14_truthfulness(scheme):
    for metric, loss in zip(("mc1", "mc2"), TRUTHFUL[scheme], strict=True):
        rows = published(benchmark="truthfulqa", metric=metric, scheme=scheme)
        assert (len(rows), mean_loss(rows)) == (8, printed(loss))


ROBUST = {
    "W8": (0.6, -0.95),
    "W4": (3.09, 0.03),
    "W3": (2.45, -1.27),
    "W8A8": (0.32, -2.34),
    "W4A8": (2.22, 0.08),
    "KV8": (0.39, -1.01),
    "KV4": (-0.71, -1.24),
    "KV3": (4.52, 2.94),
}


@pytest.mark.parametrize("scheme", ROBUST)
def test_c15_robustness_without_the_failed_model(scheme):
    for metric, loss in zip(("acc_before", "acc_after"), ROBUST[scheme], strict=True):
        rows = published(benchmark="advglue", metric=metric, scheme=scheme)
        rows = rows.where(lambda row: row.model != "LLaMA2-70B-chat")
        assert (len(rows), mean_loss(rows, pooled=True)) == (48, printed(loss))


def test_c15_the_failed_model():
    for scheme, accuracy in (("FP16", 61.44), ("KV8", 25.36)):
        rows = published(benchmark="advglue", metric="acc_before", scheme=scheme, model="LLaMA2-70B-chat")
        assert fmean(row.value for row in rows) == printed(accuracy)
        assert len(rows.without("excluded")) == (0 if scheme == "KV8" else 6)


# C16 mean loss, C17 models within 2 and 5 %
DIALOGUE = {
    "W8": (-0.13, 8, 11),
    "W4": (1.55, 5, 9),
    "W3": (13.99, 0, 1),
    "W8A8": (1.21, 9, 10),
    "W4A8": (3.75, 4, 7),
    "W4A4": (78.6, 0, 0),
    "KV8": (0.1, 9, 12),
    "KV4": (3.49, 5, 9),
    "KV3": (12.45, 1, 2),
}


@pytest.mark.parametrize("scheme", DIALOGUE)
def test_c16_c17_dialogue(scheme):
    losses = list(dialogue(scheme).values())
    within = [sum(loss <= limit for loss in losses) for limit in (2, 5)]
    assert (len(losses), fmean(losses), *within) == (12, printed(DIALOGUE[scheme][0]), *DIALOGUE[scheme][1:])


LENGTHS = {
    "W8": (-0.03, -0.13, 0.07),
    "W4": (0.11, 2.68, 8.0),
    "W3": (13.45, 19.45, 37.58),
    "W8A8": (-0.63, -1.11, -3.24),
    "W4A8": (0.08, 2.74, 4.45),
    "KV8": (-0.12, 6.09, 17.13),
    "KV4": (3.44, 12.95, 30.09),
    "KV3": (48.86, 68.56, 82.91),
}


@pytest.mark.parametrize("scheme", LENGTHS)
def test_c18_loss_grows_with_length(scheme):
    for length, loss in zip(("4k", "9k", "16k"), LENGTHS[scheme], strict=True):
        rows = long_lines(scheme, f"length={length}")
        assert (len(rows), mean_loss(rows)) == (7, printed(loss))


def test_c19_kv_bits_cost_more_than_weight_bits():
    for kv, w, models in (("KV4", "W4", 7), ("KV4", "W4A8", 7), ("KV3", "W3", 7), ("KV8", "W8", 5)):
        of_kv, of_w = long_lines(kv).losses(), long_lines(w).losses()
        assert sum(of_kv[model] > of_w[model] for model in of_kv) == models


# Relative losses at 16k: W4, W4A8, KV8, KV4
AT_16K = {
    "ChatGLM2-6B": (-0.7, -1.41, -0.23, 3.75),
    "LongChat-13B": (15.32, 13.93, 52.37, 64.35),
    "LongChat-7B": (28.14, 22.61, 53.77, 73.37),
    "Mistral-7B": (2.74, 4.22, 1.48, 4.64),
    "Mixtral-8x7B": (0.4, 0.4, 0.0, 1.8),
    "Vicuna-13B": (16.35, -7.21, 5.29, 25.0),
    "Vicuna-7B": (-6.23, -1.38, 7.27, 37.72),
}


def test_c20_recommended_bits_at_16k():
    for place, scheme in enumerate(("W4", "W4A8", "KV8", "KV4")):
        losses = long_lines(scheme, "length=16k").losses()
        assert losses == {model: printed(expected[place]) for model, expected in AT_16K.items()}


JOINT = {
    "W8KV8": (12.37, 0.91),
    "W4KV8": (13.2, 2.73),
    "W8KV4": (25.63, 12.53),
    "W4KV4": (28.38, 16.7),
    "KV8": (12.43, 1.3),
    "KV4": (25.6, 12.8),
}


@pytest.mark.parametrize("scheme", JOINT)
def test_c21_weights_and_kv_together(scheme):
    models = long_lines("W8KV8").models
    rows = long_lines(scheme).where(lambda row: row.model in models)
    assert (len(models), len(rows)) == (4, 24)
    of_vicuna = rows.where(lambda row: row.family == "Vicuna")
    assert (mean_loss(rows), mean_loss(of_vicuna)) == tuple(map(printed, JOINT[scheme]))


def test_c22_awq_helps_where_something_is_left():
    expected = {"W4": 3.21, "W4-awq": 2.74, "W3": 24.63, "W3-awq": 16.33, "W2": 100.0, "W2-awq": 100.0}
    losses = {scheme: long_lines(scheme).losses() for scheme in expected}
    assert {scheme: fmean(of.values()) for scheme, of in losses.items()} == {
        scheme: printed(loss) for scheme, loss in expected.items()
    }
    plain, by_awq = losses["W3"], losses["W3-awq"]
    assert (len(plain), sum(by_awq[model] < plain[model] for model in plain)) == (7, 6)


LOST = {
    "W8": (9, -0.18),
    "W4": (9, 1.93),
    "W3": (9, 14.4),
    "W8A8": (8, 0.15),
    "W4A8": (8, 1.92),
    "KV8": (9, -0.01),
    "KV4": (9, 2.01),
    "KV3": (9, 19.72),
}


@pytest.mark.parametrize("scheme", LOST)
def test_c23_lost_in_the_middle(scheme):
    rows = published(benchmark="lost_in_the_middle", scheme=scheme)
    assert (len(rows.models), mean_loss(rows, pooled=True)) == (LOST[scheme][0], printed(LOST[scheme][1]))


def lowest(rows: Published, *, points: bool = False, pooled: bool = False) -> str:
    """Going down W, WA and KV as long as the mean loss is at most 2: the last scheme of each, FP16 if there is none."""

    def within(scheme: str) -> bool:
        of = rows.where(lambda row: row.scheme == scheme)
        return (fmean(row.points_lost for row in of) if points else mean_loss(of, pooled=pooled)) <= 2

    found = []
    for ladder in (("W8", "W4", "W3"), ("W8A8", "W4A8"), ("KV8", "KV4", "KV3")):
        last = "FP16" if ladder[0] in rows.schemes else "-"
        for scheme in ladder:
            if scheme not in rows.schemes or not within(scheme):
                break
            last = scheme
        found.append(last)
    return "/".join(found)


# The ability below 13B: relative, points; from 13B on: relative, points
LOWEST = {
    "ICL": ("W4/W8A8/KV4", "W4/W4A8/KV4", "W4/W8A8/KV8", "W4/W4A8/KV4"),
    "IF": ("W8/W8A8/KV4", "W4/W4A8/KV3", "W8/W8A8/KV8", "W8/W8A8/KV4"),
    "C-MR": ("W4/W8A8/KV4", "W4/W4A8/KV4", "W4/W4A8/KV4", "W4/W4A8/KV3"),
    "M-MR": ("W8/FP16/KV8", "W8/W8A8/KV8", "W8/W8A8/KV8", "W8/W8A8/KV8"),
    "SC": ("W4/W8A8/KV4", "W4/W4A8/KV4", "W4/W8A8/KV4", "W4/W4A8/KV4"),
}


@pytest.mark.parametrize("ability", LOWEST)
def test_c24_lowest_bits_within_two_percent_emergent(ability):
    schemes = ["W8", "W4", "W3", "W8A8", "W4A8", "KV8", "KV4", "KV3"]
    found = [
        lowest(emergent(ability, schemes, params=params), points=points)
        for params in ((None, 13), (13, None))
        for points in (False, True)
    ]
    assert found == list(LOWEST[ability])


def test_c24_lowest_bits_within_two_percent():
    lines = published(benchmark="longeval_lines", subset="length=*").without("excluded")
    rows = published(benchmark="mt_bench").where(lambda row: row.family != "Mamba")
    assert lowest(published(benchmark="lambada", params=(6, None))) == "W4/-/-"
    assert lowest(published(benchmark="lambada", params=(None, 6))) == "W8/-/-"
    assert lowest(rows, pooled=True) == "W4/W8A8/KV8"
    assert lowest(published(benchmark="lost_in_the_middle"), pooled=True) == "W4/W4A8/KV8"
    assert lowest(lines) == "W8/W8A8/FP16"
    assert lowest(lines.where(lambda row: row.family != "LongChat")) == "W4/W4A8/KV8"
    assert lowest(published(benchmark="truthfulqa", metric="mc1")) == "W8/W8A8/KV4"


def test_c25_speed_of_four_bit_weights():
    cells = [cell for cell in speedups() if cell.speedup is not None]

    def of(**wanted: object) -> list[float]:
        return [cell.speedup for cell in cells if all(getattr(cell, name) == value for name, value in wanted.items())]

    means = [fmean(of(stage=stage)) for stage in ("prefill", "decode", "end_to_end")]
    assert means == [printed(value, 3) for value in (0.909, 1.88, 1.847)]
    prefill = [cell for cell in cells if cell.stage == "prefill"]
    slower = [cell for cell in prefill if cell.speedup < 1]
    long = [cell for cell in prefill if cell.input_tokens >= 256]
    assert (len(prefill), len(slower), len(long), sum(cell in slower for cell in long)) == (98, 92, 78, 78)
    by_batch = [fmean(of(stage="end_to_end", batch=batch)) for batch in (1, 4, 16)]
    assert by_batch == [printed(value, 3) for value in (2.198, 1.8, 1.498)]
    by_length = [fmean(of(stage="end_to_end", input_tokens=length)) for length in (128, 2048)]
    assert by_length == [printed(value, 3) for value in (1.993, 1.647)]
    end = {(c.framework, c.batch, c.input_tokens, c.params_b): c.speedup for c in cells if c.stage == "end_to_end"}
    pairs = [(value, end[(*key[:3], 7)]) for key, value in end.items() if key[3] == 13]
    assert (len(pairs), sum(large > small for large, small in pairs)) == (48, 48)
