"""Where a NaN comes from: the first module that makes one is named, and nothing else is touched."""

import pytest
import torch
from tiny_models import chat_tokenizer, float_model, prompt
from transformers import LogitsProcessorList
from typer.testing import CliRunner

from qllm_hf import check_finite, quantize_
from qllm_hf.cli.main import app
from qllm_hf.errors import ModelError
from qllm_hf.finite import FiniteLogits, not_finite
from qllm_hf.loading import save_model

NAN, INF = float("nan"), float("inf")
IDS = torch.tensor([[5, 9, 7], [6, 8, 4]])


def packed(name="llama", scheme="W4KV4", dtype=torch.float32):
    return quantize_(float_model(name).to(dtype), scheme, w_group_size=32)


def write(model, **options):
    return model.generate(IDS, max_new_tokens=3, do_sample=False, **options)


def spoil(parameter, value, *place):
    with torch.no_grad():
        parameter[place] = value


def after(module, value):
    """Puts a value into what a module gives, as something in its arithmetic would."""

    def change(module, inputs, output):
        return output.index_fill(-1, torch.tensor([3]), value)

    module.register_forward_hook(change)


CASES = {
    "embedding": (
        lambda m: spoil(m.get_input_embeddings().weight, NAN, 9, 3),
        ("model.embed_tokens.weight: 1 of 16384 numbers are NaN, the first at [9, 3]", "checkpoint"),
    ),
    "norm": (lambda m: spoil(m.model.norm.weight, INF, 2), ("model.norm.weight: 1 of 64 numbers are infinite",)),
    "scale": (
        lambda m: spoil(m.model.layers[1].mlp.up_proj.weight_scale, NAN, 2, 0),
        ("model.layers.1.mlp.up_proj.weight_scale", "[2, 0]"),
    ),
    "activation": (
        lambda m: after(m.model.layers[1].mlp.act_fn, INF),
        ("output of model.layers.1.mlp.act_fn (SiLUActivation)", "the first at [0, 0, 3]", "Its input is finite"),
    ),
    "packed layer": (
        lambda m: after(m.model.layers[0].self_attn.k_proj, NAN),
        ("output of model.layers.0.self_attn.k_proj (PackedLinear)", "are NaN"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_place_is_named(case):
    model = packed()
    change, phrases = CASES[case]
    change(model)
    with pytest.raises(ModelError) as caught, check_finite(model):
        write(model)
    assert not [phrase for phrase in phrases if phrase not in str(caught.value)], str(caught.value)


def test_what_comes_about_between_modules_is_placed_before_the_next():
    """Attention has no module of its own: its result is the input of the output projection."""
    model = packed()

    def large(module, inputs, output):
        return output * 1e30

    for name in ("q_proj", "k_proj"):
        getattr(model.model.layers[1].self_attn, name).register_forward_hook(large)
    with check_finite(model), pytest.raises(ModelError, match=r"input of model\.layers\.1\.self_attn\.o_proj.*between"):
        write(model)


def test_float16_that_is_too_small():
    model = packed(scheme="W8A8", dtype=torch.float16)
    model.model.layers[1].post_attention_layernorm.weight.data.fill_(6e4)
    with check_finite(model), pytest.raises(ModelError, match=r"post_attention_layernorm .*infinite.*magnitudes up to"):
        write(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma2", "bloom"])
def test_a_sound_model_is_left_alone(name):
    model = packed(name)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    wanted = write(model)
    with check_finite(model):
        assert write(model).equal(wanted)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_hooks_are_gone_after_an_error_too():
    model = packed()
    spoil(model.model.norm.weight, NAN, 0)
    with pytest.raises(ModelError), check_finite(model):
        pass
    assert model(IDS).logits.isnan().all()


def test_tensors_that_are_looked_at():
    assert not_finite(torch.tensor([1, 2])) is None
    assert not_finite(torch.zeros(0)) is None
    assert not_finite(torch.tensor([[1.0, INF], [NAN, -INF]])) == (
        "1 of 4 numbers are NaN and 2 of 4 numbers are infinite, the first at [0, 1]"
    )


def test_no_token_is_chosen_of_nan():
    model = packed()
    spoil(model.get_input_embeddings().weight, NAN, 9, 3)
    assert write(model).shape == (2, 6), "transformers takes token 0 and says nothing"
    processors = LogitsProcessorList([FiniteLogits()])
    with pytest.raises(ModelError, match=r"logits of token 3 are NaN \(sequences \[0\]\).*--check-finite"):
        write(model, logits_processor=processors)
    model = packed()
    forbidden = {"suppress_tokens": [3, 4]}  # -inf is no fault
    assert write(model, logits_processor=processors, **forbidden).equal(write(model, **forbidden))


def test_the_command_line_says_so(tmp_path):
    model = packed()
    folder = save_model(model, chat_tokenizer(), tmp_path / "sound")
    run = ["generate", str(folder), "abc", "--max-new-tokens", "2", "--json"]
    texts = [CliRunner().invoke(app, [*run, *more]) for more in ([], ["--check-finite"])]
    assert [done.exit_code for done in texts] == [0, 0]
    spoil(model.model.layers[1].input_layernorm.weight, NAN, 5)
    folder = save_model(model, chat_tokenizer(), tmp_path / "broken")
    run[1] = str(folder)
    for more, phrase in (([], "logits of token 3 are NaN"), (["--check-finite"], "layers.1.input_layernorm.weight")):
        done = CliRunner().invoke(app, [*run, *more])
        assert done.exit_code == 1
        assert phrase in " ".join(done.output.split())


def test_prompts_are_checked_in_each_row():
    """A NaN in one sequence is not in another."""
    model = packed()
    ids = prompt("llama")
    hidden = model.get_input_embeddings()(ids).detach()
    hidden[1, 2, 7] = NAN
    with check_finite(model), pytest.raises(ModelError, match=r"the first at \[1, 2,"):
        model(inputs_embeds=hidden)
