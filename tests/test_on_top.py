"""What other libraries put on top of a packed model: adapters, compilation."""

import adapters
import pytest
import torch
from flips import same, same_but_for_a_code
from tiny_models import float_model, on_one_thread, prompt
from transformers import StaticCache

from qllm_hf import ModelError, quantize_
from qllm_hf.attention.graph import IS_TRACEABLE
from qllm_hf.cache import describe_cache
from qllm_hf.nn import PackedLinear

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)


# Where graphs decode, they sum in another order than the kernels do.
as_eager = same if IS_TRACEABLE else same_but_for_a_code


def quantized(name, scheme="W4A8KV4"):
    return quantize_(float_model(name), scheme, w_group_size=32)


# --- adapters


@pytest.fixture
def lora():
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


@torch.no_grad()
def logits(model, name):
    return model(input_ids=prompt(name), use_cache=False).logits


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_adapters_train_and_can_be_saved(name, lora, tmp_path):
    import peft

    ids = prompt(name)
    model = peft.get_peft_model(quantized(name), lora)
    assert isinstance(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer, PackedLinear)
    before = logits(quantized(name), name)
    assert (logits(model, name) - before).abs().max() < 1e-5, "an adapter starts as 0"
    packed = {key: value.clone() for key, value in model.state_dict().items() if "lora" not in key}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1, losses
    assert all(torch.equal(model.state_dict()[key], value) for key, value in packed.items())
    trained = logits(model.eval(), name)
    assert (trained - before).abs().max() > 0.1

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(quantized(name), tmp_path).eval()
    assert torch.equal(logits(again, name), trained)
    result = again.generate(input_ids=ids, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    assert describe_cache(result.past_key_values) == {"packed": 2, "simulated": 0, "float": 0}


def test_merging_an_adapter_raises_instead_of_losing_it(lora):
    """peft adds the adapter to `layer.weight`, which is a dequantized copy here."""
    import peft

    model = peft.get_peft_model(quantized("llama"), lora).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    before = logits(model, "llama")
    with pytest.raises(ModelError, match="dequantize"):
        model.merge_and_unload()
    with pytest.raises(ModelError, match="dequantize"):
        model.merge_adapter()
    assert torch.equal(logits(model, "llama"), before), "the refused merge left something behind"


def test_an_adapter_can_be_merged_after_dequantizing(lora):
    import peft

    model = peft.get_peft_model(quantized("llama", "W4").dequantize(), lora).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    before = logits(model, "llama")
    assert (logits(model.merge_and_unload(), "llama") - before).abs().max() < 1e-4


def test_preparation_for_training_leaves_codes_alone(lora):
    peft = pytest.importorskip("peft")
    model = peft.prepare_model_for_kbit_training(quantized("llama"))
    model.add_adapter(lora)
    model.train()
    ids = prompt("llama")
    model(input_ids=ids, labels=ids).loss.backward()
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight_packed.dtype == torch.int16
    assert layer.lora_B["default"].weight.grad.abs().max() > 0


@pytest.mark.parametrize(("scheme", "checkpointing"), [("W4", False), ("W4A8KV4", False), ("W4A8KV4", True)])
def test_adapters_learn_real_text_on_a_trained_model(scheme, checkpointing, stories, shared):
    """Stories in capital letters, through every linear layer; what was packed keeps its hash."""
    pytest.importorskip("peft")
    data = adapters.batches(str(stories), shared / "data" / "basic_nlp" / "tinystories.jsonl")
    found = adapters.train(str(stories), scheme, data[:12, :4, :64], checkpointing=checkpointing)
    assert found["loss_last"] < found["loss_first"] - 1
    assert found["base_unchanged"]
    assert found["reloaded_max_logit_difference"] == 0


def test_gradients_pass_through_rounded_activations_keys_and_values(stories, lora):
    """Rounding is flat almost everywhere: without the straight-through estimator adapters would learn nothing."""
    import peft

    def gradient(scheme):
        torch.manual_seed(0)
        model = peft.get_peft_model(adapters.load(str(stories), scheme), lora).train()
        ids = torch.arange(3, 35)[None]
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found = {name: p.grad.flatten() for name, p in model.named_parameters() if "lora_B" in name}
        assert all(grad.abs().max() > 0 for grad in found.values())
        return torch.cat(list(found.values()))

    exact = gradient("W4")
    for scheme in ("W4A8", "W4KV4", "W4A8KV4"):
        assert torch.cosine_similarity(gradient(scheme), exact, 0) > 0.95, scheme


def test_preparation_for_training_keeps_the_numbers(stories):
    """peft turns scales into float32 with everything else: the same numbers, in more bytes."""
    peft = pytest.importorskip("peft")
    model = adapters.load(str(stories), "W4").to(torch.bfloat16)
    before = {name: m.float_matrix() for name, m in model.named_modules() if isinstance(m, PackedLinear)}
    peft.prepare_model_for_kbit_training(model)
    after = {name: m.float_matrix() for name, m in model.named_modules() if isinstance(m, PackedLinear)}
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert all(torch.equal(after[name].to(torch.bfloat16), tensor) for name, tensor in before.items())


# --- compilation


def decode(model, step, tokens=5):
    """Logits of some greedy steps from a static cache, each through `step`."""
    cache, found = StaticCache(config=model.config, max_cache_len=40), []
    with torch.no_grad():
        logits = model(prompt("llama"), past_key_values=cache).logits[:, -1:]
        for _ in range(tokens):
            logits = step(logits.argmax(-1), past_key_values=cache).logits
            found.append(logits)
    return torch.cat(found, 1)


@pytest.mark.slow
@pytest.mark.oldest
@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral"])
def test_compiled_decoding(name):
    """One graph without breaks, compiled once (twice where a window fills up), the same logits."""
    from torch._dynamo.testing import CompileCounterWithBackend

    model = quantized(name, "W4KV4")
    expected = decode(model, model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    got = decode(model, torch.compile(model, fullgraph=True, backend=counter))
    assert (got - expected).abs().max() < 1e-5
    assert 1 <= counter.frame_count <= (2 if name == "gemma2" else 1)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_scoring():
    """Without a cache, where keys and values pass through the ephemeral one."""
    model, ids = quantized("llama"), prompt("llama")
    expected = model(ids, use_cache=False).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert as_eager(compiled(ids, use_cache=False).logits, expected)


def test_no_other_numbers_are_taken_for_those():
    numbers = torch.randn(2, 6, 32)
    one_code = numbers.clone()
    one_code[1, 3:] += 1e-3
    assert same_but_for_a_code(one_code, numbers)
    for other in (numbers + 1e-3, numbers.flip(-1), numbers.roll(1, 1), torch.cat([numbers[:1], numbers[1:].flip(-1)])):
        assert not same_but_for_a_code(other, numbers)
    assert not same_but_for_a_code(torch.full_like(numbers, float("nan")), numbers)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_adapters(lora):
    import peft

    model, ids = peft.get_peft_model(quantized("llama"), lora).eval(), prompt("llama")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.05)
    expected = model(input_ids=ids, use_cache=False).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert as_eager(compiled(input_ids=ids, use_cache=False).logits, expected)
