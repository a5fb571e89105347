"""What is killed: commands that write something, each with what is there before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from qllm_hf import loading
from qllm_hf.cli.main import app
from qllm_hf.export.run import export_checkpoint

TASKS = "mini_cloze,mini_arithmetic"
TEXT = "Once upon a time there was a small town. Anna went to the market and bought two apples. " * 40
Kind = Literal["model", "file", "results", "files"]


class Job(NamedTuple):
    """A command: its words, with {base} for the inputs and {out} for what it makes.

    Attributes:
        kind: of what comes of it. Of "files" each is whole for itself.
        before: what is at {out} before: a folder of the inputs.
        atomic: whether {out} has to be as before, or as after, at every moment.
        again: words that the same command needs once {out} is there.
        scores: whether it needs what `make_scores` makes.
    """

    words: tuple[str, ...]
    kind: Kind = "model"
    before: str = ""
    atomic: bool = True
    again: tuple[str, ...] = ("--overwrite",)
    scores: bool = False

    @property
    def is_function(self) -> bool:
        """Whether it is no command, but `save_pretrained` itself."""
        return not self.words


JOBS: dict[str, Job] = {
    "quantize": Job(("quantize", "{base}/float", "--scheme", "W4KV8", "--max-shard-size", "400KB", "-o", "{out}")),
    "replace": Job(
        ("quantize", "{base}/float", "--scheme", "W4KV8", "--max-shard-size", "400KB", "-o", "{out}", "--overwrite"),
        before="other",
        again=(),
    ),
    "calibrate": Job(
        (
            *("quantize", "{base}/float", "--scheme", "W4", "--method", "awq", "--calibration", "{base}/text.txt"),
            *("--samples", "2", "--seqlen", "16", "-o", "{out}"),
        )
    ),
    "save": Job((), before="other", atomic=False, again=()),
    "export": Job(("export", "{base}/packed", "-o", "{out}", "--max-shard-size", "400KB")),
    "import": Job(("import", "{base}/peer", "-o", "{out}", "--max-shard-size", "400KB")),
    "gguf": Job(
        ("export", "{base}/half", "--format", "gguf", "-o", "{out}.gguf"), kind="file", again=("--overwrite",)
    ),
    "evaluate": Job(
        ("evaluate", "{base}/float", "--scheme", "W4", "--tasks", TASKS, "--limit", "6", "--batch-size", "2",
         "-o", "{out}"),
        kind="results",
        again=(),
    ),
    "sweep": Job(
        ("sweep", "{base}/float", "--schemes", "W4,KV4", "--tasks", "mini_cloze", "--limit", "4", "-o", "{out}"),
        kind="results",
        again=(),
    ),
    "merge": Job(("merge", "{base}/FP16", "{base}/W4g32KV8", "-o", "{out}"), kind="files", again=(), scores=True),
    "report": Job(("report", "{out}"), kind="files", before="old-report", again=(), scores=True),
    "card": Job(
        ("card", "{out}", "--results", "{base}/merged", "--license", "mit"),
        kind="files",
        before="packed",
        again=(),
        scores=True,
    ),
    "stats": Job(
        ("stats", "{base}/float", "--calibration", "{base}/text.txt", "--samples", "2", "--seqlen", "16", "--plots",
         "-o", "{out}"),
        kind="files",
        again=(),
    ),
}  # fmt: skip


def make_base(base: Path) -> None:
    """The inputs of all jobs: two small models that differ in nothing but their weights, in float, packed, and one of
    them as another library writes it."""
    tokenizer = loading.load_tokenizer("reference")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **sizes, num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=512, pad_token_id=0
    )
    base.mkdir()
    (base / "text.txt").write_text(TEXT, encoding="utf-8")
    for seed, name in enumerate(("float", "other-float")):
        torch.manual_seed(seed)
        loading.save_model(LlamaForCausalLM(config), tokenizer, base / name, max_shard_size="400KB")
    for name, packed_name, dtype in (
        ("float", "packed", "auto"),
        ("other-float", "other", "auto"),
        ("float", "half", "float16"),
    ):
        # by the command itself: what it imports on the way is then there for all processes that are forked
        words = ["quantize", base / name, "--scheme", "W4KV8", "--w-group-size", "32", "--max-shard-size", "100KB"]
        _run(*words, "--dtype", dtype, "-o", base / packed_name)
    export_checkpoint(str(base / "packed"), base / "peer")


def make_scores(base: Path) -> None:
    """Scores of two schemes, each in a folder and both together; and those with an older report."""
    for scheme in ("FP16", "W4g32KV8"):
        words = ["--schemes", scheme, "--tasks", "mini_cloze", "--limit", 4]
        _run("sweep", base / "float", *words, "--part", "-o", base / scheme)
    _run("merge", base / "FP16", base / "W4g32KV8", "-o", base / "merged")
    shutil.copytree(base / "merged", base / "old-report")
    (base / "old-report" / "report.html").write_text("<p>an older one</p>\n", encoding="utf-8")


def _run(*words: object) -> None:
    done = CliRunner().invoke(app, [*map(str, words), "--quiet"])
    assert done.exit_code == 0, done.output


def import_all() -> None:
    """Import what the jobs need: their processes are forked from this one, and need not do so again."""
    import lm_eval.evaluator  # noqa: F401
    import matplotlib.figure  # noqa: F401

    import qllm_hf.evaluation.lm
    import qllm_hf.export.gguf
    import qllm_hf.page.write
    import qllm_hf.streamed
    import qllm_hf.sweep.run  # noqa: F401


def prepare(job: Job, base: Path, place: Path) -> None:
    """A new folder in which {out} is as before."""
    (place / "tmp").mkdir(parents=True)
    if job.before:
        shutil.copytree(base / job.before, place / "out")


def act(job: Job, base: Path, place: Path, more: tuple[str, ...] = ()) -> Callable[[], None]:
    """What a process does."""
    if job.is_function:
        model = AutoModelForCausalLM.from_pretrained(base / "packed")
        return lambda: model.save_pretrained(place / "out", max_shard_size="100KB")
    words = [word.format(base=base, out=place / "out") for word in job.words]
    return lambda: app([*words, *more, "--quiet"])
