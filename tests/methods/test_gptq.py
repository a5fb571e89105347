"""GPTQ against algorithm 1 of the paper, written out in float64, and against what theory says of each step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qllm_hf.errors import CalibrationError
from qllm_hf.method import GptqOptions
from qllm_hf.methods import gptq as module
from qllm_hf.methods.gptq import Gptq, gptq_codes, refine, toward_float
from qllm_hf.methods.moments import Moments
from qllm_hf.methods.objective import quadratic
from qllm_hf.methods.rounding import encode
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import Spec
from qllm_hf.uniform import affine_params, group

KINDS = ("random", "correlated", "dead", "outlier", "twins", "few", "dead and few")
kinds = st.sampled_from(KINDS)
seeds = st.integers(0, 10**6)


def tokens(kind: str, columns: int, seed: int = 0) -> Tensor:
    """Inputs [T, I] of a kind that makes second moments easy or hard."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3 if "few" in kind else 3 * columns + 8, columns, generator=generator)
    if kind == "correlated":
        x = x @ torch.randn(columns, columns, generator=generator) + 0.5
    if "dead" in kind:
        x[:, ::3] = 0
    if kind == "outlier":
        x[:, columns // 2] *= 1000
    if kind == "twins":
        x[:, columns // 2 :] = x[:, : columns - columns // 2]
    return x


def weights(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed + 1))


def grid(matrix: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each element [O, I]."""
    rows, columns = matrix.shape
    size = {-1: columns, 0: columns}.get(spec.group_size, spec.group_size)
    return tuple(
        part.squeeze(-1).expand(rows, -1).repeat_interleave(size, -1)[:, :columns].to(matrix)
        for part in affine_params(group(matrix, spec), spec)
    )


def nearest(matrix: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    return (torch.round(matrix / scale) + zero).clamp(0, top)


def damped(second: Tensor, damping: float = 0.01) -> Tensor:
    """The matrix that the paper inverts; a channel that was never seen has a moment of its own."""
    mean = second.diagonal().mean()
    own = torch.where(second.diagonal() == 0, mean, 0.0)
    return second + torch.diag(own + damping * mean)


def written_out(matrix: Tensor, inverse: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """One column at a time; the inverse of what is left is updated by hand (equations 2 and 3 of the paper)."""
    left, inverse, codes = matrix.clone(), inverse.clone(), torch.zeros_like(matrix)
    for at in range(matrix.shape[1]):
        codes[:, at] = nearest(left[:, at], scale[:, at], zero[:, at], top)
        lost = left[:, at] - (codes[:, at] - zero[:, at]) * scale[:, at]
        left[:, at:] -= torch.outer(lost / inverse[at, at], inverse[at, at:])
        inverse = inverse - torch.outer(inverse[:, at], inverse[at]) / inverse[at, at]
    return codes


def upper_factor(inverse: Tensor) -> Tensor:
    return torch.linalg.cholesky(inverse, upper=True)


def loss(codes: Tensor, matrix: Tensor, scale: Tensor, zero: Tensor, second: Tensor) -> float:
    return quadratic((matrix - (codes - zero) * scale).double(), second.double())


@settings(max_examples=60, deadline=None)
@given(kind=kinds, seed=seeds, columns=st.integers(2, 40), bits=st.integers(2, 8), block=st.integers(1, 50),
       symmetric=st.booleans(), group_size=st.sampled_from([-1, 0, 8, 13]))  # fmt: skip
def test_blocks_of_columns_give_the_codes_of_the_written_out_algorithm(
    kind, seed, columns, bits, block, symmetric, group_size
):
    spec = Spec(bits, group_size, symmetric)
    x, matrix = tokens(kind, columns, seed).double(), weights(5, columns, seed).double()
    inverse = torch.linalg.inv(damped(x.t() @ x))
    scale, zero = grid(matrix, spec)
    expected = written_out(matrix, inverse, scale, zero, 2**bits - 1)
    codes = gptq_codes(matrix, upper_factor(inverse), scale, zero, 2**bits - 1, block)
    assert torch.equal(codes, expected)


def test_another_order_of_columns_or_another_damping_would_be_noticed():
    x, matrix = tokens("correlated", 24).double(), weights(5, 24).double()
    scale, zero = grid(matrix, Spec(3, -1))
    second = x.t() @ x
    expected = written_out(matrix, torch.linalg.inv(damped(second)), scale, zero, 7)
    for other in (damped(second, 0.1), damped(second).diagonal().diag()):
        codes = gptq_codes(matrix, upper_factor(torch.linalg.inv(other)), scale, zero, 7, 8)
        assert not torch.equal(codes, expected)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [40, 100])
def test_the_solver_is_the_algorithm_in_float32(kind, act_order, columns):
    """A tie that falls the other way changes what follows: so nearly all codes are compared, and the loss."""
    spec = Spec(3, 32)
    x, matrix = tokens(kind, columns), weights(16, columns)
    second = x.t() @ x
    scale, zero = grid(matrix, spec)
    order = torch.arange(columns)
    if act_order:
        order = torch.argsort(second.diagonal(), descending=True, stable=True)
    inverse = torch.linalg.inv(damped(second.double())[order][:, order])
    ordered = (part.double()[:, order] for part in (matrix, scale, zero))
    expected = torch.empty_like(matrix, dtype=torch.float64)
    expected[:, order] = written_out(next(ordered), inverse, *ordered, 7)
    options = GptqOptions(act_order=act_order, block_size=16, refine=False)
    codes = Gptq(second, options).codes(matrix, scale, zero, spec)
    assert (codes == expected).double().mean() > 0.97
    ours, theirs = (loss(part, matrix, scale, zero, damped(second)) for part in (codes, expected))
    assert ours == pytest.approx(theirs, rel=0.05)


def test_act_order_rounds_the_loudest_channel_first():
    x, matrix = tokens("outlier", 40), weights(8, 40)
    scale, zero = grid(matrix, Spec(3, 8))
    codes = [Gptq(x.t() @ x, GptqOptions(act_order=order, refine=False)).codes(matrix, scale, zero, Spec(3, 8))
             for order in (True, False)]  # fmt: skip
    first = nearest(matrix[:, 20], scale[:, 20], zero[:, 20], 7)
    assert torch.equal(codes[0][:, 20], first)
    assert not torch.equal(codes[1], codes[0])


@pytest.mark.parametrize("kind", ["random", "correlated", "outlier", "few"])
@pytest.mark.parametrize("refined", [False, True])
def test_the_size_of_blocks_does_not_matter(kind, refined):
    x, matrix = tokens(kind, 50), weights(16, 50)
    scale, zero = grid(matrix, Spec(3, 32))
    results = [
        Gptq(x.t() @ x, GptqOptions(block_size=size, refine=refined)).codes(matrix, scale, zero, Spec(3, 32))
        for size in (1, 7, 50, 128)
    ]
    losses = [loss(codes, matrix, scale, zero, damped(x.t() @ x)) for codes in results]
    assert losses == pytest.approx([losses[0]] * 4, rel=0.02)
    assert all((codes == results[0]).float().mean() > 0.99 for codes in results)


def test_gptq_costs_less_than_rounding_to_nearest():
    better, never_worse, ratios = 0, 0, []
    for seed in range(30):
        for kind in ("random", "correlated", "twins", "outlier"):
            x, matrix, spec = tokens(kind, 32, seed), weights(16, 32, seed), Spec(3, 16)
            scale, zero = grid(matrix, spec)
            second = x.t() @ x
            plain = loss(nearest(matrix, scale, zero, 7), matrix, scale, zero, damped(second))
            rough, fine = (
                loss(Gptq(second, GptqOptions(refine=refined)).codes(matrix, scale, zero, spec), matrix, scale, zero,
                     damped(second))
                for refined in (False, True)
            )  # fmt: skip
            better += rough <= plain
            never_worse += fine <= rough * (1 + 1e-5)
            assert fine <= plain
            ratios.append(rough / plain)
    assert better >= 0.95 * 120
    assert never_worse == 120
    assert sum(ratios) / 120 < 0.75


@settings(max_examples=60, deadline=None)
@given(kind=kinds, seed=seeds, columns=st.integers(1, 40), bits=st.integers(2, 8), block=st.integers(1, 50),
       symmetric=st.booleans(), damping=st.sampled_from([0.0, 0.01, 1.0]))  # fmt: skip
def test_one_more_look_never_costs_anything(kind, seed, columns, bits, block, symmetric, damping):
    spec = Spec(bits, 8, symmetric)
    x, matrix = tokens(kind, columns, seed).double(), weights(6, columns, seed).double()
    second, (scale, zero) = x.t() @ x, grid(matrix, spec)
    extra = max(damping, 1e-6) * (second.diagonal().mean() or 1.0)
    objective = second + extra * torch.eye(columns, dtype=torch.float64)
    for codes in (nearest(matrix, scale, zero, 2**bits - 1), torch.zeros_like(matrix)):
        before = codes.clone()
        after = refine(codes, matrix, second, scale, zero, 2**bits - 1, block, damping)
        for row in range(6):
            at = slice(row, row + 1)
            old, new = (loss(part[at], matrix[at], scale[at], zero[at], objective) for part in (codes, after))
            assert new <= old * (1 + 1e-9) + 1e-12
        assert torch.equal(codes, before)
        assert 0 <= after.min() <= after.max() < 2**bits


def test_one_more_look_is_a_descent_along_each_column_in_turn():
    """Written out: for each column, all codes are tried."""
    x, matrix, columns = tokens("correlated", 12).double(), weights(4, 12).double(), 12
    second, (scale, zero) = x.t() @ x, grid(matrix, Spec(3, -1))
    objective = second + 0.01 * second.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    start = nearest(matrix, scale, zero, 7)
    expected = start.clone()
    for row in range(4):
        for column in range(columns):
            at = slice(row, row + 1)
            costs = []
            for code in range(8):
                expected[row, column] = code
                costs.append(loss(expected[at], matrix[at], scale[at], zero[at], objective))
            expected[row, column] = min(range(8), key=costs.__getitem__)
    assert torch.equal(refine(start, matrix, second, scale, zero, 7, 5, 0.01), expected)
    assert not torch.equal(expected, start)


# Correction toward the float model


def test_without_drift_nothing_is_corrected():
    x, matrix = tokens("correlated", 20), weights(6, 20)
    assert torch.equal(toward_float(matrix, x.t() @ x, torch.zeros(20, 20), 1.0), matrix)
    assert torch.equal(toward_float(matrix, x.t() @ x, torch.randn(20, 20), 0.0), matrix)


def drifted() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a layer reads, what it reads in the float model, its weights, and sum (y - x) x^T."""
    x = tokens("random", 20).double()
    y = x + 0.3 * torch.randn(*x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return x, y, weights(6, 20).double(), (y - x).t() @ x


def test_all_of_the_correction_is_the_regression(monkeypatch):
    monkeypatch.setattr(module, "_REGRESSION_DAMPING", 0.0)
    x, y, matrix, drift = drifted()
    expected = torch.linalg.lstsq(x, y @ matrix.t()).solution.t()
    assert torch.allclose(toward_float(matrix, x.t() @ x, drift, 1.0), expected, atol=1e-10)
    half = toward_float(matrix, x.t() @ x, drift, 0.5)
    assert torch.allclose(half, (matrix + expected) / 2, atol=1e-10)
    assert not torch.allclose(matrix, expected, atol=1e-2)


def test_the_damped_correction_brings_outputs_closer_to_the_float_model():
    x, y, matrix, drift = drifted()
    wanted = y @ matrix.t()
    errors = [float((x @ toward_float(matrix, x.t() @ x, drift, strength).t() - wanted).square().sum())
              for strength in (0.0, 0.5, 1.0)]  # fmt: skip
    assert errors[0] > errors[1] > errors[2]
    wrong_sign = toward_float(matrix, x.t() @ x, -drift, 0.5)
    assert float((x @ wrong_sign.t() - wanted).square().sum()) > errors[0]


def test_rows_are_corrected_piece_by_piece_alike(monkeypatch):
    x, _, matrix, drift = drifted()
    whole = toward_float(matrix, x.t() @ x, drift, 0.5)
    monkeypatch.setattr(module, "PIECE", 4)
    assert torch.allclose(toward_float(matrix, x.t() @ x, drift, 0.5), whole, atol=1e-12)


def test_moments_that_cannot_be_inverted_leave_the_matrix_alone():
    matrix = weights(3, 4)
    assert torch.equal(toward_float(matrix, -torch.eye(4), torch.ones(4, 4), 1.0), matrix)


# Packed results


def moments_of(x: Tensor, y: Tensor | None = None) -> Moments:
    moments = Moments.empty(x.shape[1], "cpu")
    moments.add(x, y=y)
    return moments


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [32, 24, -1, 0], ids=["groups", "short group", "row", "tensor"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_codes_mean_what_was_chosen(bits, group_size, symmetric, dtype):
    spec, matrix = Spec(bits, group_size, symmetric), weights(12, 64)
    plain = PackedTensor.encode(matrix, spec, dtype)
    for kind, clip in (("correlated", None), ("correlated", GptqOptions()), ("dead and few", None)):
        x = tokens(kind, 64)
        packed = encode(matrix, moments_of(x), spec, dtype, gptq=GptqOptions(), clip=clip)
        assert [part.shape for part in packed[:2]] == [part.shape for part in plain[:2]]
        assert packed.scale.dtype == dtype
        assert (packed.zero_point is None) == symmetric
        codes = packed.codes()
        assert int(codes.max()) < 2**bits
        zeros = torch.full_like(packed.scale, 2 ** (bits - 1)) if symmetric else packed.zero_point
        size = group_size if group_size > 0 else 64
        scale, zero = (
            part.float().expand(12, -1).repeat_interleave(size, -1)[:, :64] for part in (packed.scale, zeros)
        )
        decoded = packed.decode(torch.float32)
        assert torch.equal(decoded, (codes - zero) * scale)
        objective = damped(x.t() @ x)
        assert quadratic(decoded - matrix, objective) < quadratic(plain.decode(torch.float32) - matrix, objective)


def test_rows_are_rounded_piece_by_piece_alike(monkeypatch):
    from qllm_hf.methods import rounding

    matrix, moments = weights(12, 40), moments_of(tokens("random", 40))
    whole = encode(matrix, moments, Spec(3, 16), torch.float32, gptq=GptqOptions())
    monkeypatch.setattr(rounding, "PIECE", 5)
    pieces = encode(matrix, moments, Spec(3, 16), torch.float32, gptq=GptqOptions())
    assert torch.equal(whole.words, pieces.words)
    assert torch.equal(whole.scale, pieces.scale)


@pytest.mark.parametrize("moments", [None, Moments.empty(40, "cpu")])
def test_a_layer_that_read_nothing_is_rounded_to_nearest(moments):
    matrix, spec = weights(12, 40), Spec(3, 16)
    packed = encode(matrix, moments, spec, torch.float32, gptq=GptqOptions(), clip=GptqOptions())
    assert torch.equal(packed.words, PackedTensor.encode(matrix, spec).words)


def test_a_dead_input_leaves_its_weights_to_be_rounded_to_nearest():
    x, matrix, spec = tokens("dead", 30), weights(8, 30), Spec(4, -1)
    packed = encode(matrix, moments_of(x), spec, torch.float32, gptq=GptqOptions())
    plain = PackedTensor.encode(matrix, spec)
    assert torch.equal(packed.codes()[:, ::3], plain.codes()[:, ::3])
    assert not torch.equal(packed.codes(), plain.codes())


def test_inputs_of_zeros_alone_do_no_harm():
    matrix, spec = weights(8, 30), Spec(4, -1)
    packed = encode(matrix, moments_of(torch.zeros(9, 30)), spec, torch.float32, gptq=GptqOptions(), clip=GptqOptions())
    assert torch.isfinite(packed.decode()).all()
    assert (packed.decode() - matrix).abs().max() < matrix.abs().max()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_are_refused(value):
    second = torch.eye(4)
    second[1, 1] = value
    with pytest.raises(CalibrationError, match="not finite"):
        Gptq(second, GptqOptions())


def test_moments_that_stay_singular_are_refused():
    with pytest.raises(CalibrationError, match="cannot be inverted"):
        Gptq(torch.tensor([[1.0, 1e9], [1e9, 1.0]]), GptqOptions())
