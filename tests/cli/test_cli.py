"""The commands do what they say, say what they did, and fail with one sentence."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import qllm_hf
from qllm_hf.cli.main import COMMANDS, app
from qllm_hf.cli.output import answering
from qllm_hf.errors import QllmWarning, SchemeError
from qllm_hf.ops import cpu
from qllm_kernels import cpu as kernels

VERBS = tuple(command.__name__ for command in COMMANDS)
PROMPT = "Once upon a time"


def run(*arguments: object, code: int = 0, **environment: str):
    """The result of one command, in this process; its exit code is checked."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    assert result.exit_code == code, result.output
    return result


def run_json(*arguments: object) -> dict:
    return json.loads(run(*arguments, "--json", "--quiet").stdout)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def packed(stories, tmp_path_factory) -> tuple[Path, dict]:
    """A folder that the command has written, and the JSON it has printed."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    return folder, run_json("quantize", stories, "--scheme", "W4KV4", "-o", folder)


def test_quantize_says_what_it_saved(packed):
    folder, said = packed
    assert said["output"] == str(folder)
    assert said["file_bytes"] == (folder / "model.safetensors").stat().st_size
    assert 0 < said["file_bytes"] - said["parameter_bytes_after"] < 20_000, "more than the header"
    assert (said["scheme"], said["linear_coverage"]) == ("W4KV4", 1.0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert qllm_hf.report(model).to_dict().items() <= said.items()
    assert AutoTokenizer.from_pretrained(folder)(PROMPT).input_ids


def test_options_of_quantize_arrive(stories):
    config = "--scheme W3KV4 --w-group-size 32 --kv-group-size 4 --w-symmetric --a-symmetric --kv-symmetric"
    others = "--quantize-routers --keep *.q_proj --keep layers.4 --override *.down_proj=W8 --override *.up_proj=W4"
    said = run_json("quantize", stories, *config.split(), *others.split(), "--dtype", "bfloat16", "--dry-run")
    assert said["scheme"] == "W3g32KV4g4"
    assert said["dtype"] == "bfloat16"
    assert {(group["bits"], group["group_size"], group["symmetric"]) for group in said["quantized"]} == {
        (3, 32, True),
        (8, 32, True),
        (4, 32, True),
    }
    assert sum(kept["tensors"] for kept in said["kept"] if kept["reason"].startswith("kept by mod")) == 5 + 6
    # 8 codes of 4 bits are 2 words, two groups have a bfloat16 scale each and no zero point
    assert said["kv_bytes_per_token"] == 5 * 4 * 2 * (2 + 2) * 2


def test_paper_exact_refuses_what_the_paper_could_not(stories):
    message = run("quantize", stories, "-s", "W4", "--paper-exact", "--dry-run", code=1).stderr
    assert "group_size=128 does not divide 64 elements" in message
    run("quantize", stories, "-s", "W4", "--paper-exact", "--w-group-size", "4", "--dry-run")


def test_dry_run_writes_nothing_and_reads_no_weights(stories, tmp_path, packed):
    shutil.copy(stories / "config.json", tmp_path)
    before = tree(tmp_path)
    said = run_json("quantize", tmp_path, "--scheme", "W4KV4", "-o", tmp_path / "out", "--dry-run")
    assert tree(tmp_path) == before
    assert said["origin"] == "planned"
    same = said.keys() - {"origin"}
    assert {key: said[key] for key in same} == {key: packed[1][key] for key in same}, "the plan is what happens"


def test_output_is_refused_or_replaced(stories, tmp_path):
    folder = shutil.copytree(stories, tmp_path / "model")
    before = tree(tmp_path)
    out = tmp_path / "out"
    run("quantize", folder, "-s", "W8", "-o", out)
    assert "is not empty" in run("quantize", folder, "-s", "W4", "-o", out, code=1).stderr
    assert run_json("info", out)["scheme"] == "W8"
    run("quantize", folder, "-s", "W4", "-o", out, "--overwrite", "--max-shard-size", "100KB")
    assert (run_json("info", out)["scheme"], run_json("info", out)["files"] > 1) == ("W4", True)
    message = run("quantize", folder, "-s", "W4", "-o", folder, "--overwrite", code=1).stderr
    assert "replaced by its own quantized form" in message
    shutil.rmtree(out)
    assert tree(tmp_path) == before


def test_a_model_without_tokenizer_is_saved_with_a_remark(stories, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(stories / name, source)
    assert "no tokenizer is saved" in run("quantize", source, "-s", "W4", "-o", tmp_path / "out").stderr
    assert "no tokenizer" in run("generate", tmp_path / "out", PROMPT, code=1).stderr


def test_generate_writes_what_the_model_writes(packed):
    folder, said = packed
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(inputs.input_ids, max_new_tokens=12, do_sample=False)[0]
    result = run("generate", folder, PROMPT, "--max-new-tokens", 12, "--quiet")
    assert result.stdout == tokenizer.decode(tokens, skip_special_tokens=True) + "\n"
    data = run_json("generate", folder, PROMPT, "--max-new-tokens", 12)
    assert data["text"] == tokenizer.decode(tokens[inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert (data["scheme"], data["new_tokens"]) == ("W4KV4", 12)
    assert data["weight_bytes"] == said["parameter_bytes_after"]
    assert data["cache_bytes"] == data["cache_tokens"] * said["kv_bytes_per_token"]
    assert data["tokens_per_second"] == pytest.approx(12 / data["seconds"], rel=0.01)


def test_generate_quantizes_while_loading(stories):
    float_run = run_json("generate", stories, PROMPT, "--max-new-tokens", 4)
    run_4 = run_json("generate", stories, PROMPT, "--max-new-tokens", 4, "--scheme", "W8KV8")
    assert (float_run["scheme"], run_4["scheme"]) == ("FP16", "W8KV8")
    assert run_4["weight_bytes"] < float_run["weight_bytes"]
    assert run_4["cache_bytes"] < float_run["cache_bytes"]
    remark = run("generate", stories, PROMPT, "--max-new-tokens", 4).stderr
    assert re.search(
        r"FP16: 4 tokens in .* s \(.* tokens/s\), weights 1\.04 MB, KV cache 10\.24 kB for 8 tokens", remark
    )


def test_generate_changes_what_is_not_stored(packed):
    assert run_json("generate", packed[0], PROMPT, "--max-new-tokens", 2, "-s", "W4KV8")["scheme"] == "W4KV8"
    message = run("generate", packed[0], PROMPT, "-s", "W3", code=1).stderr
    assert "holds packed weights with w=4" in message


def test_sampling_is_reproducible(stories):
    def text(*options: object) -> str:
        return run_json("generate", stories, PROMPT, "--max-new-tokens", 12, *options)["text"]

    first = text("--temperature", 1.5, "--seed", 1)
    assert first == text("--temperature", 1.5, "--seed", 1)
    assert first != text("--temperature", 1.5, "--seed", 2)
    assert first != text()


def test_chat_uses_the_template(stories, tmp_path):
    message = run("generate", stories, "Hello", "--chat", code=1).stderr
    assert "no chat template" in message
    folder = shutil.copytree(stories, tmp_path / "model", copy_function=shutil.copyfile)
    (folder / "chat_template.jinja").write_text("{{ bos_token + 'Tom said: ' + messages[0]['content'] + ' And then' }}")
    plain = run_json("generate", stories, "Tom said: Hello And then", "--max-new-tokens", 8)
    assert run_json("generate", folder, "Hello", "--chat", "--max-new-tokens", 8)["text"] == plain["text"]


def test_info_of_a_packed_model_is_what_quantize_measured(packed):
    said = run_json("info", packed[0])
    assert (said["origin"], said["files"]) == ("stored", 1)
    same = (said.keys() & packed[1].keys()) - {"origin"}
    assert {key: said[key] for key in same} == {key: packed[1][key] for key in same}
    assert "complete" in run("info", packed[0]).stdout


def test_info_refuses_a_damaged_folder(packed, tmp_path):
    folder = shutil.copytree(packed[0], tmp_path / "copy")
    run("info", folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "cut short" in run("info", folder, code=1).stderr


def test_info_of_a_float_model(stories):
    said = run_json("info", stories)
    assert (said["scheme"], said["parameter_bytes_after"]) == ("FP16", 260_032 * 4)
    assert said["file_bytes"] == (stories / "model.safetensors").stat().st_size
    assert run_json("info", stories, "--scheme", "W4")["origin"] == "planned"


def test_env_explains_each_choice():
    said = json.loads(run("env", "--json").stdout)
    assert torch.__version__.startswith(said["packages"]["torch"]), "with or without what it was built for: +cpu"
    assert said["autoload"] is False
    assert {row["scheme"] for row in said["linear"]} == {"W4", "W8", "W4A8", "W8A8"}
    for row in said["linear"]:
        assert list(row["implementations"].values()).count("runs") == 1
    text = run("env").stdout
    assert "torch" in text
    assert "CPU kernels" in text


def test_env_says_which_kernels_run(monkeypatch):
    status = kernels.Status(
        None, Path("lib.so"), ("fast", "portable"), "fast", "those of torch (libgomp.so)",
        {"compiler": "c++ 12", "left_out": {"faster": "error: unknown flag"}},
    )  # fmt: skip
    monkeypatch.setattr(kernels, "status", lambda: status)
    said = json.loads(run("env", "--json").stdout)["cpu_kernels"]
    assert (said["available"], said["level"], said["compiler"]) == (True, "fast", "c++ 12")
    text = run("env").stdout
    for line in (
        "lib.so",
        "level fast (QLLM_HF_CPU chooses another: portable)",
        "built by c++ 12",
        "without level faster: error: unknown flag",
        "threads: those of torch (libgomp.so)",
    ):
        assert f"  {line}\n" in text


@pytest.mark.parametrize(
    ("reason", "is_build"),
    [("not built: no C++ compiler", True), ("turned off by QLLM_HF_CPU=off", False)],
)
def test_env_says_why_no_kernels_run_and_what_to_do(monkeypatch, reason, is_build):
    monkeypatch.setattr(kernels, "status", lambda: kernels.Status(reason, Path("lib.so")))
    monkeypatch.setattr(cpu, "_MISSING", reason)
    said = json.loads(run("env", "--json").stdout)
    assert (said["cpu_kernels"]["available"], said["cpu_kernels"]["reason"]) == (False, reason)
    (row,) = (row for row in said["linear"] if (row["dtype"], row["scheme"]) == ("float32", "W4"))
    assert row["implementations"]["cpu"] == reason
    assert row["implementations"]["dequantize"] == "runs"
    text = run("env").stdout
    assert f"CPU kernels\n  {reason}\n  torch runs instead and dequantizes each weight for each call" in text
    assert ("with a C++17 compiler, `pip install" in text) == is_build


def test_env_shows_settings(monkeypatch):
    monkeypatch.setenv("QLLM_HF_LINEAR", "integer")
    monkeypatch.setenv("QLLM_HF_AUTOLOAD", "1")
    said = json.loads(run("env", "--json").stdout)
    assert (said["autoload"], said["settings"]["QLLM_HF_LINEAR"]) == (True, "integer")
    (row,) = (row for row in said["linear"] if (row["dtype"], row["scheme"]) == ("float32", "W4A8"))
    assert row["implementations"]["integer"] == "runs"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("quantize MODEL -s W9 --dry-run", "error: scheme 'W9': w=9: allowed are"),
        ("quantize MODEL -s FP16 --dry-run", "error: scheme 'FP16' quantizes nothing"),
        ("quantize MODEL -s W4 --keep nose --dry-run", "error: modules_to_not_convert: 'nose' means no linear layer"),
        ("quantize PACKED -s W4 --dry-run", "is quantized already (W4KV4)"),
        ("quantize ./no-such-folder -s W4 --dry-run", "error: there is no folder './no-such-folder'"),
        ("quantize CHATGLM -s W4 --dry-run", "error: ChatGLM checkpoints carry their own code"),
        ("info PACKED -s W4", "is quantized already (W4KV4): leave out --scheme"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, message, stories, packed, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "chatglm", "auto_map": {}}')
    places = {"MODEL": stories, "PACKED": packed[0], "CHATGLM": tmp_path}
    words = [places.get(word, word) for word in arguments.split()]
    result = run(*words, code=1)
    assert message in result.stderr
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    error = json.loads(run(*words, "--json", code=1).stderr)["error"]
    assert message.removeprefix("error: ") in error["message"]
    assert issubclass(getattr(qllm_hf, error["type"]), qllm_hf.QllmError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("quantize MODEL -s W4", "say where to save: -o DIR"),
        ("quantize MODEL -o out", "say how: --scheme"),
        ("quantize MODEL -s W4 --dry-run --override nose", "write PATTERN=SCHEME"),
        ("generate MODEL hello --keep *.q_proj", "Give --scheme as well"),
        ("generate MODEL hello --max-new-tokens 0", "--max-new-tokens"),
        ("quantize", "MODEL"),
        ("quantise MODEL", "No such command"),
    ],
)
def test_command_lines_that_make_no_sense(arguments, message, stories):
    assert message in run(*(str(stories) if word == "MODEL" else word for word in arguments.split()), code=2).stderr


def test_debug_shows_everything(stories, monkeypatch):
    words = ("quantize", stories, "-s", "W9", "--dry-run")
    assert "Traceback" not in run(*words, code=1).output
    assert isinstance(run(*words, "--debug", code=1).exception, SchemeError)
    assert isinstance(run(*words, code=1, QLLM_DEBUG="1").exception, SchemeError)


def test_errors_of_others_are_named(capsys):
    with pytest.raises(SystemExit) as stop, answering():
        raise RuntimeError("first line\nsecond line")
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: RuntimeError: first line (--debug shows where this comes from)\n"


def test_our_warnings_are_one_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        with answering():
            warnings.warn("KV4 has no effect", QllmWarning, stacklevel=1)
        assert warnings.showwarning is shown, "and only while a command runs"
    assert capsys.readouterr().err == "warning: KV4 has no effect\n"


@pytest.mark.parametrize("verb", VERBS)
def test_each_help_has_an_example(verb):
    assert f"  qllm-hf {verb}" in run(verb, "--help").stdout


def test_help_of_every_command_needs_no_torch(tmp_path):
    code = f"""
import sys
from qllm_hf.cli.main import COMMANDS, app
for verb in {VERBS}:
    try: app([verb, "--help"])
    except SystemExit as stop: assert not stop.code
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_as_a_program(stories, tmp_path):
    """stdout holds the JSON alone: progress bars and remarks are elsewhere."""
    code = "from qllm_hf.cli.main import main; main()"
    command = [sys.executable, "-c", code, "quantize", stories, "--scheme", "W4KV8", "-o", "out", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scheme"] == "W4KV8"
    assert "Loading weights" in done.stderr


@pytest.mark.parametrize("rank", ["0", None])
def test_what_libraries_print_past_python_is_no_part_of_an_answer(rank):
    """Gloo tells of its connections on stdout. In one process nothing is moved."""
    program = (
        "import os, sys\n"
        "from qllm_hf.cli.output import answer, answering\n"
        "with answering():\n"
        "    os.write(1, b'[Gloo] connected\\n')\n"
        "    print('as text comes')\n"
        "    answer({'answer': 42}, '', as_json=True)\n"
        "os.write(1, b'after\\n')\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | ({"RANK": rank} if rank else {})
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    remark = "[Gloo] connected\n"
    assert remark in (done.stderr if rank else done.stdout)
    assert done.stdout.replace(remark, "") == 'as text comes\n{\n  "answer": 42\n}\nafter\n'
