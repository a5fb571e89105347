"""What surrounds the C++ kernels: what they refuse, who takes plain torch instead, compiled graphs, and shortcuts."""

import copy
import io
import pickle

import pytest
import torch
from linear_reference import exact
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from qllm_hf.errors import ConfigError
from qllm_hf.nn import PackedLinear
from qllm_hf.ops import LINEAR, Request, Shortcut, cpu, graph, linear, linear_many, prefer, reference, resolve
from qllm_hf.packed import PackedTensor
from qllm_hf.scheme import PER_ROW, Spec
from qllm_kernels import cpu as kernels

IN, OUT = 96, 24
SPEC = Spec(4, 32)


@pytest.fixture
def available(cannot_run):
    status = kernels.status()
    if status.reason:
        cannot_run(f"CPU kernels: {status.reason}. Run: python kernels/build.py")


@pytest.fixture
def calls(available, monkeypatch) -> list[bytes]:
    """Each call of the library's function, from now on."""
    made: list[bytes] = []
    call = cpu._LINEAR_CALL
    monkeypatch.setattr(cpu, "_LINEAR_CALL", lambda data: made.append(data) or call(data))
    return made


def packed(spec: Spec = SPEC, dtype: torch.dtype = torch.float32) -> PackedTensor:
    return PackedTensor.encode(torch.randn(OUT, IN).to(dtype), spec)


def layer(spec: Spec = SPEC, bias: bool = True, activation: Spec | None = None, dtype=torch.float32) -> PackedLinear:
    made = PackedLinear(IN, OUT, bias=bias, spec=spec, activation=activation, dtype=dtype)
    made.assign_packed("weight", packed(spec, dtype))
    if bias:
        made.bias.data = torch.randn(OUT).to(dtype)
    return made


# What is refused


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"device": "cuda"}, "is for tensors on the CPU"),
        ({"dtype": torch.float64}, "activations in float64: takes float32, bfloat16, float16"),
        ({"scale_dtype": torch.float64}, "scales in float64: takes float32, bfloat16, float16"),
        ({"weight": Spec(4, 128, paper_exact=True)}, "paper_exact asks for the published arithmetic, which torch has"),
        ({"activation": Spec(8, PER_ROW, paper_exact=True)}, "paper_exact asks for the published arithmetic"),
        ({"weight": Spec(4, 48)}, "groups of 48: takes multiples of 32, a row, or a matrix"),
        ({"activation": Spec(8, 128)}, "activations in groups: takes one group per token"),
    ],
)
def test_refusals(available, changed, reason):
    request = {"device": "cpu", "dtype": torch.float32, "weight": Spec(4), "activation": None}
    assert cpu.refuses(Request(**request)) is None
    assert cpu.refuses(Request(**{**request, **changed})).startswith(reason)


@pytest.mark.parametrize("group_size", [32, 96, 128, 4096, PER_ROW, 0])
def test_takes_every_width_and_usual_groups(available, group_size):
    for bits in range(2, 9):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for activation in (None, Spec(8, PER_ROW), Spec(3, PER_ROW, symmetric=True)):
                request = Request("cpu", dtype, Spec(bits, group_size), activation)
                assert resolve(request).chosen.name == "cpu"


def test_without_a_library_the_reason_is_given_and_torch_runs(monkeypatch):
    monkeypatch.setattr(cpu, "_MISSING", "not built: no C++ compiler")
    resolution = resolve(Request("cpu", torch.float32, Spec(4), None))
    assert resolution.chosen.name == "dequantize"
    assert dict(resolution.refused)["cpu"] == "not built: no C++ compiler"


def test_wrong_level_is_an_error(monkeypatch):
    monkeypatch.setattr(cpu, "_MISUSED", "QLLM_HF_CPU='avx1024' is no level")
    with pytest.raises(ConfigError, match="QLLM_HF_CPU='avx1024' is no level"):
        resolve(Request("cpu", torch.float32, Spec(4), None))


def test_a_library_that_is_not_there_cannot_be_called():
    with pytest.raises(kernels.KernelError, match="there is no library of CPU kernels"):
        cpu._no_library(b"")


# Who takes torch instead


def test_result_that_carries_a_gradient(calls):
    weight, x = packed(), torch.randn(3, IN, requires_grad=True)
    y = linear(x, weight, None, None)
    assert not calls
    y.sum().backward()
    torch.testing.assert_close(x.grad, weight.decode().sum(0).expand(3, IN))
    with torch.no_grad():
        linear(x, weight, None, None)
    linear(x.detach(), weight, None, None)
    assert len(calls) == 2


class Marked(torch.Tensor):
    """A subclass that other code may rely on."""


def test_subclasses_keep_their_class(calls):
    x = torch.randn(3, IN)
    assert type(linear(x.as_subclass(Marked), packed(), None, None)) is Marked
    assert not calls
    linear(nn.Parameter(x, requires_grad=False), packed(), None, None)
    assert len(calls) == 1


def test_modes_transforms_and_traces_see_every_operation(calls):
    weight, x = packed(), torch.randn(3, IN)

    def product(x: torch.Tensor) -> torch.Tensor:
        return linear(x, weight, None, None)

    wanted = product(x)
    assert len(calls) == 1
    with FlopCounterMode(display=False) as counter:
        product(x)
    assert counter.get_total_flops() == 2 * 3 * IN * OUT
    torch.testing.assert_close(torch.vmap(product)(x), wanted, rtol=1e-4, atol=1e-4)
    jacobian = torch.func.jacrev(product)(x[0])
    torch.testing.assert_close(jacobian, weight.decode())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(product(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    torch.testing.assert_close(tangent, weight.decode().sum(-1).expand(3, OUT))
    graph = make_fx(product)(x)
    assert len(calls) == 1, "the kernels, called directly, would have been seen by none of them"
    torch.testing.assert_close(graph(x + 1), product(x + 1), rtol=1e-4, atol=1e-4)


def test_weights_that_are_no_plain_tensors(calls):
    weight, x = packed(), torch.randn(3, IN)
    linear(x, weight._replace(words=weight.words.as_subclass(Marked)), None, None)
    linear(x, weight._replace(scale=weight.scale.t().contiguous().t()), None, None)
    assert not calls


def test_rows_of_another_length_get_the_message_of_torch(available):
    for x in (torch.randn(3, IN + 32), torch.randn(3, IN - 1), torch.randn(())):
        with pytest.raises((RuntimeError, IndexError)):
            linear(x, packed(), None, None)
        with pytest.raises((RuntimeError, IndexError)):
            layer()(x)


def test_several_weights_run_one_by_one_where_the_kernels_refuse_one(calls):
    pairs = [(packed(), None), (packed(Spec(4, 48)), torch.randn(OUT))]
    x = torch.randn(3, IN)
    first, second = linear_many(x, pairs, None)
    torch.testing.assert_close(first, reference.linear(x, *pairs[0], None), rtol=1e-5, atol=1e-5)
    assert second.equal(reference.linear(x, *pairs[1], None))
    assert len(calls) == 1
    linear_many(x, pairs[:1] * 3, None)
    assert len(calls) == 2, "three weights in one call"
    assert linear_many(x, [], None) == []


# In compiled graphs


@pytest.mark.parametrize("a", [None, 8])
@pytest.mark.parametrize("with_bias", [False, True])
def test_compiled_and_exported_graphs_hold_one_operator(calls, a, with_bias):
    module = layer(bias=with_bias, activation=None if a is None else Spec(a, PER_ROW)).requires_grad_(False)
    x = torch.randn(2, 3, IN)
    wanted = module(x)
    calls.clear()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert compiled(x).equal(wanted)
    assert compiled(torch.cat([x, x], 1)).equal(module(torch.cat([x, x], 1)))
    with torch.no_grad():
        exported = torch.export.export(module, (x,))
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert names.count("qllm_hf.linear.default") == 1
    assert not any("unpack" in name or "matmul" in name for name in names)
    assert exported.module()(x).equal(wanted)
    assert calls


def test_compiled_graph_with_a_gradient(calls):
    module = layer()
    x = torch.randn(3, IN, requires_grad=True)
    torch.compile(module, fullgraph=True, backend="aot_eager")(x).sum().backward()
    torch.testing.assert_close(x.grad, module.packed("weight").decode().sum(0).expand(3, IN))
    assert not calls


@pytest.mark.parametrize("symmetric", [False, True])
def test_operator_obeys_the_rules(available, symmetric):
    pairs = [(packed(Spec(3, 32, symmetric)), torch.randn(OUT)), (packed(Spec(8, PER_ROW, symmetric)), None)]
    arguments = (
        torch.randn(2, 3, IN),
        *([getattr(weight, part) for weight, _ in pairs] for part in ("words", "scale", "zero_point")),
        [bias for _, bias in pairs],
        [weight.length for weight, _ in pairs],
        [weight.spec.bits for weight, _ in pairs],
        [weight.spec.group_size for weight, _ in pairs],
        8,
        True,
        cpu.NAME,
    )
    torch.library.opcheck(graph._opaque, arguments, test_utils=("test_schema", "test_faketensor"))
    results = graph._opaque(*arguments)
    for y, wanted in zip(results, cpu.linear_many(arguments[0], pairs, Spec(8, PER_ROW, True)), strict=True):
        assert y.equal(wanted)


def test_operator_without_a_library(monkeypatch):
    """A graph may have been compiled elsewhere."""
    monkeypatch.setattr(cpu, "prepare", lambda *_: None)
    weight, x = packed(), torch.randn(2, IN)
    (y,) = graph.products(cpu.NAME, x, [(weight, None)], None)
    assert y.equal(reference.linear(x, weight, None, None))


# Shortcuts


def ran_short(module: nn.Module, x: torch.Tensor, monkeypatch) -> bool:
    """Whether a layer used its shortcut; its result is checked."""
    went_long = []
    product = PackedLinear._product
    with monkeypatch.context() as patch:
        patch.setattr(PackedLinear, "_product", lambda self, x: went_long.append(1) or product(self, x))
        y = module(x)
    wanted = exact(x.reshape(-1, IN), module.packed("weight"), module.bias, module.activation_spec)
    apart = (y.double().reshape(-1, OUT) - wanted.y).abs()
    tolerance = wanted.tolerance("cpu") + wanted.tolerance("dequantize")
    assert (apart <= tolerance).all()
    return not went_long


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spec", [SPEC, Spec(3, PER_ROW, symmetric=True), Spec(8, 0)], ids=str)
@pytest.mark.parametrize("activation", [None, Spec(8, PER_ROW)], ids=str)
def test_layer_takes_the_shortcut_from_the_second_call_on(available, monkeypatch, bias, spec, activation):
    module = layer(spec, bias, activation)
    x = torch.randn(2, 3, IN)
    assert [ran_short(module, x, monkeypatch) for _ in range(3)] == [False, True, True]
    assert ran_short(module, torch.randn(1, IN), monkeypatch)
    assert ran_short(module, torch.randn(5, 2 * IN)[:, ::2], monkeypatch)
    assert ran_short(module, torch.randn(0, IN), monkeypatch)


def double_scales(module: PackedLinear) -> None:
    module.weight_scale.data = module.weight_scale.data * 2


def load_again(module: PackedLinear) -> None:
    module.assign_packed("weight", packed())


def other_words(module: PackedLinear) -> None:
    module.weight_packed.data = module.weight_packed.data.flip(0)


def other_zero_points(module: PackedLinear) -> None:
    module.weight_zero_point = nn.Parameter(module.weight_zero_point.data + 1, requires_grad=False)


def other_bias(module: PackedLinear) -> None:
    module.bias = nn.Parameter(torch.randn(OUT))


def no_bias(module: PackedLinear) -> None:
    module.bias = None


@pytest.mark.parametrize(
    "change", [double_scales, load_again, other_words, other_zero_points, other_bias, no_bias], ids=lambda f: f.__name__
)
def test_shortcut_ends_when_a_tensor_changes(available, monkeypatch, change):
    module, x = layer(), torch.randn(2, 3, IN)
    module(x)
    change(module)
    assert [ran_short(module, x, monkeypatch) for _ in range(2)] == [False, True]


def test_change_in_place_needs_no_new_shortcut(available, monkeypatch):
    module, x = layer(), torch.randn(2, IN)
    before = module(x)
    module.weight_scale.data.mul_(2)
    assert ran_short(module, x, monkeypatch)
    assert not module(x).allclose(before)


def test_shortcut_is_for_one_dtype(available, monkeypatch):
    module, x = layer(), torch.randn(2, IN)
    module(x)
    module.bfloat16()
    assert [ran_short(module, x.bfloat16(), monkeypatch) for _ in range(2)] == [False, True]
    module.float()
    assert [ran_short(module, x, monkeypatch) for _ in range(2)] == [False, True]


def test_preference_ends_a_shortcut(available, monkeypatch):
    module, x = layer(), torch.randn(2, IN)
    module(x)
    with prefer("dequantize"):
        assert [ran_short(module, x, monkeypatch) for _ in range(2)] == [False, False]
        assert module(x).equal(reference.linear(x, module.packed("weight"), module.bias, None))
    assert [ran_short(module, x, monkeypatch) for _ in range(2)] == [False, True]


def test_gradient_does_not_take_the_shortcut(available, monkeypatch):
    module, x = layer(activation=Spec(8, PER_ROW)), torch.randn(2, IN)
    module(x)
    tracked = x.clone().requires_grad_()
    module(tracked).sum().backward()
    torch.testing.assert_close(tracked.grad, module.packed("weight").decode().sum(0).expand(2, IN))
    assert ran_short(module, x, monkeypatch), "and leaves it as it was"


def test_scale_of_the_input_is_applied_before(available):
    module = PackedLinear(IN, OUT, bias=False, spec=SPEC, input_scale=True)
    module.assign_packed("weight", packed())
    module.assign_input_scale(torch.rand(IN) + 0.5)
    x = torch.randn(3, IN)
    wanted = reference.linear(x * module.input_scale, module.packed("weight"), None, None)
    for _ in range(2):
        torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-5)


def test_copies_and_pickles_have_no_shortcut(available, monkeypatch):
    module, x = layer(), torch.randn(2, IN)
    y = module(x)
    assert isinstance(module._shortcut, Shortcut)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ):
        assert twin._shortcut is None
        assert twin(x).equal(y)
    assert ran_short(module, x, monkeypatch)


def test_shortcut_keeps_no_weight_alive(available):
    """Offloading replaces parameters, and the memory of the old ones has to go."""
    import weakref

    module = layer()
    module(torch.randn(1, IN))
    words = weakref.ref(module._parameters["weight_packed"])
    module._parameters["weight_packed"] = nn.Parameter(torch.empty(0, dtype=torch.int16), requires_grad=False)
    assert words() is None


def test_first_row_of_the_table_is_the_kernels():
    assert LINEAR[0].name == "cpu"
    assert LINEAR[0].automatic
