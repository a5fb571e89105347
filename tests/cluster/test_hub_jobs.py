"""Commands for Jobs on the Hub: the real command line of `hf` understands each, and what they run is a part."""

import importlib
import json
import shlex
from pathlib import Path

import huggingface_hub
import pytest
from packaging.version import Version
from typer.main import get_command
from typer.testing import CliRunner

from qllm_hf import __version__
from qllm_hf.cli.main import app
from qllm_hf.cluster.flavors import FLAVORS, choose_flavor
from qllm_hf.cluster.footprint import Footprint
from qllm_hf.cluster.hub_jobs import IMAGE, OLDEST_HF, seconds
from qllm_hf.errors import ConfigError

known_words = pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version(OLDEST_HF), reason=f"hf before {OLDEST_HF} does not know our words"
)
HF = importlib.import_module("huggingface_hub.cli.hf").app
NAMES = ("FP16", "W4", "W3_gptq", "KV4")


def plan(*arguments, code=0):
    words = ["sweep", "reference", "--schemes", "W4,W3+gptq,KV4", "--calibration", "curriculum", "--tasks"]
    words += ["mini_cloze,mini_ethics", "--limit", "20", "--hub-jobs", "me/results", "-o", "sweep out", *arguments]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    return result


def dry_run(capsys, job):
    """{what: value} that `hf jobs run` itself reads from the words and would send; nothing is sent."""
    HF.main([*job[1:3], "--dry-run", *job[3:]], prog_name="hf", standalone_mode=False)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    return {key: value for key, value in lines}


@pytest.fixture(scope="module")
def commands():
    lines = [line for line in plan().stdout.splitlines() if line and not line.startswith("#")]
    return [shlex.split(line) for line in lines]


def test_one_job_for_each_scheme(commands):
    create, *jobs, download, merge = commands
    assert [job[job.index("--name") + 1] for job in jobs] == ["qllm-FP16", "qllm-W4", "qllm-W3_gptq", "qllm-KV4"]
    assert create[:4] == ["hf", "repos", "create", "me/results"] and download[:2] == ["hf", "download"]
    assert merge == [
        "qllm-hf",
        "merge",
        *(f"parts/{name}" for name in ("FP16", "W4", "W3_gptq", "KV4")),
        "-o",
        "sweep out",
    ]


@known_words
def test_hf_understands_each_job(commands, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for job, name in zip(commands[1:-2], NAMES, strict=True):
        said = dry_run(capsys, job)
        assert said.pop("secrets").startswith("HF_TOKEN=") and "hf_secret" not in str(said)
        assert said == {
            "image": IMAGE,
            "command": shlex.join(job[-3:]),
            "flavor": "t4-small",
            "timeout": "6h",
            "labels": f"name=qllm-{name}",
        }


@known_words
def test_a_word_that_hf_does_not_know_would_be_noticed(commands, monkeypatch, capsys):
    """It refuses none: what it does not know becomes a part of the command."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    said = dry_run(capsys, [word.replace("--flavor", "--flavour") for word in commands[1]])
    assert said["image"] != IMAGE and said["flavor"] == "cpu-basic"


@known_words
def test_each_job_measures_its_part_and_brings_it_back(commands):
    """The words inside, one command after the other, are read by the programs that they are for."""
    for job, scheme in zip(commands[1:-2], ("FP16", "W4", "W3+gptq", "KV4"), strict=True):
        assert job[-3:-1] == ["bash", "-c"]
        words = _words(job[-1])
        name = scheme.replace("+", "_")
        install = words[: words.index("&&")]
        assert install == ["uv", "pip", "install", "--system", "--quiet", f"qllm-hf[eval]=={__version__}"]
        sweep = words[words.index("qllm-hf") : words.index(";")]
        assert words[words.index("timeout") : words.index("qllm-hf")] == ["timeout", "--signal", "TERM", "21000"]
        context = _parsed(get_command(app), sweep[1:])
        assert (context["schemes"], context["part"], context["limit"]) == (scheme, True, 20)
        assert context["tasks"] == "mini_cloze,mini_ethics" and str(context["out"]) == f"/results/{name}"
        assert context["calibration"] == "curriculum" and context["hub_jobs"] is None
        fetch = words[words.index("download") : words.index("||")]
        upload = words[words.index("upload") : words.index("exit") - 1]
        assert list(_parsed(HF, fetch)["include"]) == [f"{name}/*"]
        sent = _parsed(HF, upload)
        assert (sent["repo_id"], sent["local_path"], sent["path_in_repo"]) == ("me/results", f"/results/{name}", name)


def _words(script):
    """A script of the shell as words; what stands between commands is a word of its own."""
    lexer = shlex.shlex(script, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def _parsed(program, words):
    """The values that a command line program reads from words, without doing anything."""
    context = program.make_context("program", list(words))
    name, found, rest = program.resolve_command(context, [*context._protected_args, *context.args])
    return found.make_context(name, list(rest), parent=context).params


def test_a_job_for_each_ability():
    said = json.loads(plan("--by-ability", "--json").stdout)
    assert [job["name"] for job in said["jobs"]][:3] == ["FP16-nlp", "FP16-trust", "W4-nlp"]
    assert [job["tasks"] for job in said["jobs"]][:2] == [["mini_cloze"], ["mini_ethics"]]
    assert len(said["jobs"]) == 8 == len(said["merge"]) - 4


def test_folders_are_sent_along(tmp_path, stories):
    (tmp_path / "data").mkdir()
    words = ["sweep", str(stories), "--schemes", "W4", "--tasks", "mini_cloze", "--data-dir", str(tmp_path / "data")]
    words += ["--hub-jobs", "me/results", "--job-flavor", "cpu-basic", "-o", "out", "--json"]
    job = json.loads(CliRunner().invoke(app, words).stdout)["jobs"][0]
    volumes = [job["command"][place + 1] for place, word in enumerate(job["command"]) if word == "--volume"]
    assert volumes == [f"{stories.resolve()}:/model", f"{tmp_path / 'data'}:/data"]
    assert "qllm-hf sweep /model --part" in job["command"][-1] and "--data-dir /data" in job["command"][-1]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--hub-jobs", "results"), 1, "OWNER/NAME"),
        (("--job-timeout", "soon"), 1, "write a number with s, m, h or d"),
        (("--job-timeout", "15m"), 1, "more than 20 minutes"),
        (("--job-flavor", "gpu"), 1, "known are cpu-basic"),
        (("--calibration", __file__), 2, "is a file here, and jobs run elsewhere"),
    ],
)
def test_refusals(arguments, code, said):
    result = plan(*arguments, code=code)
    assert said in result.stderr and result.stdout == ""


def test_the_smallest_machine_that_holds_a_job():
    def need(gigabytes):
        return Footprint(int(gigabytes * 1e9), 0, 0, 10**9)

    assert [choose_flavor(need(size)).name for size in (1, 16, 40, 70, 300)] == [
        *("t4-small", "l4x1", "l40sx1", "a100-large", "l40sx8"),
    ]
    with pytest.raises(ConfigError, match=r"no machine for Jobs holds 2.00 TB; the largest is h200x8 \(1.13 TB on 8"):
        choose_flavor(need(2000))
    with pytest.raises(ConfigError, match=r"--job-flavor t4-small \(16.00 GB\) does not hold 40.00 GB"):
        choose_flavor(need(40), "t4-small")
    assert choose_flavor(need(10), "cpu-basic").gpus == 0


@known_words
def test_every_flavor_is_one_of_the_hub():
    from huggingface_hub import JobHardware

    assert {flavor.name for flavor in FLAVORS} <= {each.value for each in JobHardware}
    sizes = [flavor.memory for flavor in FLAVORS if flavor.gpus]
    assert sizes == sorted(sizes), "the first that fits is the smallest"


@pytest.mark.parametrize(("text", "expected"), [("90m", 5400), ("6h", 21600), ("1d", 86400), ("30", 30), ("5s", 5)])
def test_durations(text, expected):
    assert seconds(text) == expected


def test_what_hf_has_to_be_is_said():
    assert f"huggingface_hub {OLDEST_HF} or newer" in plan().stdout
    page = (Path(__file__).resolve().parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert f"huggingface_hub {OLDEST_HF} or newer" in " ".join(page.split())
