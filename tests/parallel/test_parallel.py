"""One model cut over processes gives what one process gives, from float and from packed checkpoints.

All cases of this file run in one program (`parallel_ranks.py`), which forks the processes; tests look at what it found.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import parallel_ranks
import pytest
import torch
from checkpoints import give_input_order
from flips import same, same_but_for_a_code
from safetensors.torch import load_file
from tiny_models import MODELS, float_model, on_one_thread, prompt, tiny_config
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from typer.testing import CliRunner

from qllm_hf import QllmConfig, parallel
from qllm_hf.builtin import BUILTIN, REFERENCE
from qllm_hf.cli.main import app
from qllm_hf.errors import ModelError
from qllm_hf.plan import make_plan

_one_thread = pytest.fixture(autouse=True, scope="module")(on_one_thread)

# 192 / 2 = 96 = 3 groups of 32, inside a block of 128; 64 / 2 = 32 is one group
WIDER = {"intermediate_size": 192, "moe_intermediate_size": 64}
FAMILIES = {
    name: {key: value for key, value in WIDER.items() if key in MODELS[name].options}
    for name in ("llama", "qwen2", "qwen3_moe", "mixtral", "phi3", "gemma2")
}
FAMILIES["qwen3_moe"]["intermediate_size"] = 192
# four heads of keys, a bias on what is cut along its columns, rows of 192 that are cut in the middle of a block
FAMILIES["biased"] = {**WIDER, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}
G32 = {"w_group_size": 32}
AWQ = {"method": "awq", "calibration": "curriculum"}
SCHEMES = {
    "w4": {"w": 4, **G32},
    "w4a8": {"w": 4, "a": 8, **G32},
    "w4kv8": {"w": 4, "kv": 8, **G32},
    "w4kv4": {"w": 4, "kv": 4, **G32},
    "turned": {"w": 4, "kv": 4, "kv_rotate_keys": True, **G32},
    "w3": {"w": 3, **G32},
    "row": {"w": 4, "w_group_size": -1},
    "matrix": {"w": 8, "w_group_size": 0},
    "symmetric": {"w": 4, "w_symmetric": True, **G32},
    "head": {"w": 4, "quantize_head": True, **G32},
    "g16": {"w": 4, "a": 8, "kv": 4, "w_group_size": 16},
}
SCHEMES["blocks"] = {"w": 4, "a": 8, "kv": 4, "w_group_size": 64}
SCHEMES["scaled"] = SCHEMES["ordered"] = SCHEMES["w4a8"]


class Case(NamedTuple):
    family: str
    scheme: str
    source: str  # "float": quantized while it is loaded; "packed": from a checkpoint that one process saved
    size: int = 2
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def name(self):
        return "-".join([self.family, self.scheme, self.source, *self.options])

    @property
    def subject(self):
        return f"{self.family}-{self.scheme}"


CASES = [
    *(
        Case("llama", scheme, "packed")
        for scheme in ("w4", "w4a8", "w4kv8", "turned", "w3", "row", "symmetric", "head")
    ),
    *(Case("llama", scheme, "float") for scheme in ("w4a8", "row", "matrix", "head")),
    *(Case(family, "w4kv4", "packed") for family in FAMILIES if family != "biased"),
    *(Case(family, "w4a8", "float") for family in FAMILIES if family != "llama"),
    Case("mixtral", "row", "float"),
    Case("mixtral", "matrix", "packed"),
    Case("biased", "scaled", "packed"),
    Case("biased", "ordered", "packed"),
    Case("biased", "g16", "float", 4),
    Case("biased", "g16", "packed", 4),
    Case("llama", "w4kv8", "packed", 2, {"generate": {"cache_implementation": "static"}}),
    Case("qwen2", "w4a8", "packed", 2, {"prefer": "dequantize"}),
    # in float32 a sum in another order may round an activation the other way, which other layers make much of
    Case(REFERENCE, "blocks", "packed", 2, {"load": {"dtype": "float64"}}),
]
# Weights that hold gate and up, from a checkpoint: refused where torch loses what transformers needs to cut them.
FUSED = [case for case in CASES if case.family in ("mixtral", "qwen3_moe") and case.source == "packed"]
UNCUT = FUSED if parallel.loses_strides() else []
REPORTED = [case for case in CASES if case.subject in ("llama-w4a8", "mixtral-w4kv4")]
EXPERTS, EXPERTS_REFUSED = (
    ({"ep_size": 2}, "ep_size=2")
    if "ep_size" in DistributedConfig.__dataclass_fields__  # from transformers 5.19 on
    else ({"enable_expert_parallel": True}, "enable_expert_parallel=True")
)
# what cannot be: (case, what the error says)
REFUSED = {
    "groups": ({"size": 2, "path": "llama", "config": {"w": 4}}, "w_group_size=32 would fit"),
    "heads": ({"size": 4, "path": "llama", "config": {"w": 4, "w_group_size": 16}}, "2 heads"),
    "stored": ({"size": 4, "path": "biased-w4a8"}, "Sizes that work: 1, 2."),
    "fsdp": (
        {"size": 2, "path": "llama", "config": {"w": 4}, "distributed": {"tp_size": 1, "fsdp_size": 2}},
        "fsdp_size=2",
    ),
    "experts": ({"size": 2, "path": "mixtral", "config": SCHEMES["w4"], "distributed": EXPERTS}, EXPERTS_REFUSED),
    "no plan": ({"size": 2, "path": "opt", "config": SCHEMES["w4"]}, "no plan to cut opt"),
    "method": (
        {"size": 2, "path": "llama", "config": {"w": 4, "method": "awq", "calibration": "curriculum", **G32}},
        "one process",
    ),
    "tied": ({"size": 2, "path": "gemma2", "config": SCHEMES["head"]}, "tied to the embedding"),
}


COMMAND = (REFERENCE, "Once", "--scheme", "W4g64KV8", "--max-new-tokens", "4", "--json", "--quiet")

QUESTIONS = (REFERENCE, "--scheme", "W4g64", "--tasks", "mini_cloze,mini_arithmetic", "--limit", "4", "--json", "-q")


def float_path(folder, family):
    return BUILTIN[family] if family == REFERENCE else folder / family


def save_packed(path, scheme, folder):
    """A packed checkpoint, made by one process."""
    config = QllmConfig(**SCHEMES[scheme])
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=config, dtype=torch.float32)
    if scheme == "scaled":  # as a method leaves it: one of these layers is cut along its rows, the other along columns
        model.config.quantization_config.input_scales = ["*.up_proj", "*.down_proj"]
        for layer in model.model.layers:
            for module in (layer.mlp.up_proj, layer.mlp.down_proj):
                module.assign_input_scale(torch.linspace(0.5, 2, module.in_features))
    if scheme == "ordered":  # as import leaves it
        names = [name for name, _ in model.named_modules() if name.endswith(("up_proj", "q_proj"))]
        give_input_order(model, *names)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints, and the answers of one process and of several to all cases."""
    root = tmp_path_factory.mktemp("parallel")
    with pytest.MonkeyPatch.context() as patch:
        for family in [*FAMILIES, "opt"]:
            base = MODELS["llama" if family == "biased" else family]
            patch.setitem(MODELS, "wide", replace(base, options={**base.options, **FAMILIES.get(family, {})}))
            float_model("wide").save_pretrained(root / family)
    cases = []
    for case in CASES:
        path, packed = float_path(root, case.family), root / case.subject
        asked = {"path": str(packed), "ids": prompt("llama").tolist(), "report": case in REPORTED, **case.options}
        if case.family == "gemma2":
            asked["load"] = {"attn_implementation": "eager"}
        if not packed.exists():
            save_packed(path, case.scheme, packed)
            cases.append({"name": case.subject, "size": 1, **asked})
        if case.source == "float":
            asked |= {"path": str(path), "config": SCHEMES[case.scheme]}
        cases.append({"name": case.name, "size": case.size, "save": f"{case.name}-saved", **asked})
    for name, (asked, _) in REFUSED.items():
        cases.append({"name": name, "ids": [[5, 6]], **asked, "path": str(root / asked["path"])})
    cases.append({"name": "evaluate-alone", "size": 1, "command": ["evaluate", *QUESTIONS, "-o", str(root / "alone")]})
    cases.append({"name": "evaluate", "size": 2, "command": ["evaluate", *QUESTIONS, "-o", str(root / "two"), "--tp"]})
    cases.append({"name": "generate", "size": 2, "command": ["generate", *COMMAND, "--tensor-parallel"]})
    (root / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, parallel_ranks.__file__, str(root)]  # it limits its own time, and says where it was
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    return root


def found(folder, name, rank=0):
    numbers = json.loads((folder / f"{name}-{rank}.json").read_text())
    assert "error" not in numbers, numbers["trace"]
    return load_file(folder / f"{name}-{rank}.safetensors"), numbers


def by_name(cases):
    because = pytest.mark.skip(reason="fused weights are refused with this torch")
    parameters = [pytest.param(case, marks=because if case in UNCUT else (), id=case.name) for case in cases]
    return pytest.mark.parametrize("case", parameters)


@by_name(CASES)
def test_all_processes_together_give_what_one_gives(folder, case):
    expected, _ = found(folder, case.subject)
    rounds = {"a", "kv"} & SCHEMES[case.scheme].keys() and case.options.get("load") is None
    for rank in range(case.size):
        got, _ = found(folder, case.name, rank)
        for key in ("logits", "again", "steps"):
            close = same_but_for_a_code if rounds else same
            assert close(got[key], expected[key]), (key, rank)
        assert torch.equal(got["sequences"], expected["sequences"])


@by_name(CASES)
def test_each_process_holds_its_part(folder, case):
    _, alone = found(folder, case.subject)
    parts = [found(folder, case.name, rank)[1] for rank in range(case.size)]
    if "generate" not in case.options:  # the static cache has room for other tokens
        # phi3's plan gathers fused queries, keys and values again: each process has all heads
        share = 1 if case.family == "phi3" else case.size
        assert {part["cache_bytes"] for part in parts} == {alone["cache_bytes"] // share}
    packed = sum(part["packed_bytes"] for part in parts)
    assert alone["packed_bytes"] <= packed < 1.05 * alone["packed_bytes"]  # one scale for a row is in each of them
    if case.scheme not in ("row", "matrix", "scaled", "ordered"):
        assert {part["packed_bytes"] for part in parts} == {alone["packed_bytes"] // case.size}
    assert all(part["weight_bytes"] < alone["weight_bytes"] for part in parts)


@by_name(REPORTED)
def test_a_report_is_of_the_whole_model(folder, case):
    _, alone = found(folder, case.subject)
    _, here = found(folder, case.name)
    assert here["report"].startswith(alone["report"].split("Linear layers run on")[0])
    assert "cut over 2 processes, of which this one holds" in here["report"]


@by_name([case for case in CASES if not case.options])
def test_what_they_save_is_what_one_process_saves(folder, case):
    expected, got = (load_file(folder / place / "model.safetensors") for place in (case.subject, f"{case.name}-saved"))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in got)
    theirs, ours = (json.loads((folder / n / "config.json").read_text()) for n in (case.subject, f"{case.name}-saved"))
    assert ours["quantization_config"] == theirs["quantization_config"]


@pytest.mark.skipif(not UNCUT, reason="this torch cuts fused weights")
@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)
def test_fused_weights_are_refused_by_all_processes(folder, case):
    for rank in range(case.size):
        numbers = json.loads((folder / f"{case.name}-{rank}.json").read_text())
        assert numbers["error"].startswith("ModelError") and "gate and up" in numbers["error"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_before_loading(folder, name):
    asked, message = REFUSED[name]
    for rank in range(asked["size"]):
        numbers = json.loads((folder / f"{name}-{rank}.json").read_text())
        assert numbers["error"].startswith("ModelError"), numbers
        assert message in numbers["error"]
        assert "_process_model_before_weight_loading" in numbers["trace"], "weights were read first"


def test_fused_weights_are_refused_where_torch_would_cut_them_wrongly(monkeypatch):
    """torch 2.8 calls some rows of gate and of up one piece, and transformers believes it: other numbers, silently."""
    for family, fused in (("mixtral", True), ("llama", False)):
        config = tiny_config(family)
        config.intermediate_size = 192
        model = AutoModelForCausalLM.from_config(config)
        model.config.distributed_config = DistributedConfig(tp_size=2)
        plan = make_plan(model, QllmConfig(w=4, w_group_size=-1))
        for lost in (False, True):
            monkeypatch.setattr(parallel, "loses_strides", lambda lost=lost: lost)
            with pytest.raises(ModelError, match="gate and up") if fused and lost else contextlib.nullcontext():
                parallel.check_parallel(model, plan, pre_quantized=True, packs_after_loading=False)


def said(folder, name):
    first, *others = (json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-[0-9].json")))
    assert first["code"] == 0, first["err"]
    assert all((other["code"], other["out"], other["err"]) == (0, "", "") for other in others), "they all speak"
    return json.loads(first["out"])


def test_generate_on_the_command_line(folder):
    found = said(folder, "generate")
    assert found["processes"] == 2
    assert found["weight_bytes"] / 2 < found["weight_bytes_here"] < found["weight_bytes"]


def test_evaluate_on_the_command_line(folder):
    """All processes answer all questions, the first one writes."""
    pytest.importorskip("lm_eval")
    together, alone = (
        {record["task"]: (record["value"], record["items"]) for record in said(folder, name)["records"]}
        for name in ("evaluate", "evaluate-alone")
    )
    assert together == alone
    assert len(together) == 2
    lines = [(folder / name / "records.jsonl").read_text().splitlines() for name in ("alone", "two")]
    assert len(lines[0]) == len(lines[1])


def test_one_process_is_too_few():
    done = CliRunner().invoke(app, ["generate", *COMMAND, "--tensor-parallel"])
    assert done.exit_code == 2
    assert "torchrun --nproc-per-node 2" in done.output
