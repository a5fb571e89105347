"""The commands that run a sweep as Jobs on the Hub: one for each part, and those that bring the parts together.

Nothing is started here, and nothing is sent. A part is measured on the disk of its machine and uploaded when it is
done, or a little before its time is over: a folder of results is appended to line by line, which is not what a bucket
that is mounted was made for. The same command again goes on from what was uploaded.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..reporting.text import bytes_text
from .flavors import Flavor
from .footprint import Footprint

IMAGE: Final = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""What `hf jobs uv run` takes: Python, uv, and a compiler for the kernels. torch brings CUDA's libraries with it."""
OLDEST_HF: Final = "1.24"
"""The oldest huggingface_hub whose `hf jobs run` knows all of our words. Older ones take --name for an image."""
SPARE: Final = 600
"""Seconds before the end of a job's time in which results are uploaded."""
_FOLDER, _MODEL, _DATA = "/results", "/model", "/data"
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_REPO: Final = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Part:
    """What one job measures.

    Attributes:
        label: the scheme.
        ability: that its tasks belong to; "" for all.
        tasks: by name.
        need: memory.
        flavor: the machine.
    """

    label: str
    ability: str
    tasks: tuple[str, ...]
    need: Footprint
    flavor: Flavor

    @property
    def name(self) -> str:
        """Of its folder, and of its job."""
        return re.sub(r"[^\w.-]+", "_", self.label) + (f"-{self.ability}" if self.ability else "")


@dataclass(frozen=True)
class Wanted:
    """What all parts have in common.

    Attributes:
        model: a folder, which is sent along, or an id.
        data_dir: a folder with rows, which is sent along.
        options: further words of the command, such as ("--limit", "50").
        repo: the dataset that the parts are uploaded to.
        timeout: of a job, such as "6h".
        install: what pip installs.
    """

    model: str
    data_dir: Path | None
    options: tuple[str, ...]
    repo: str
    timeout: str
    install: str

    def check(self) -> None:
        """Raises ConfigError if a value cannot be."""
        if not _REPO.fullmatch(self.repo):
            raise ConfigError(f"--hub-jobs {self.repo!r}: give the dataset for the results as OWNER/NAME.")
        if seconds(self.timeout) <= 2 * SPARE:
            raise ConfigError(f"--job-timeout {self.timeout}: give more than {2 * SPARE // 60} minutes.")


def seconds(duration: str) -> int:
    """Seconds of "90m", "6h", "1d" or "5400".

    Raises:
        ConfigError: it is no duration.
    """
    found = re.fullmatch(r"(\d+)([smhd]?)", duration)
    if found is None:
        raise ConfigError(f"--job-timeout {duration!r}: write a number with s, m, h or d, such as 6h.")
    return int(found[1]) * _UNITS[found[2] or "s"]


def job_command(part: Part, wanted: Wanted) -> list[str]:
    """The words of `hf jobs run ...` that measure a part and upload it."""
    words = ["hf", "jobs", "run", "--detach", "--name", f"qllm-{part.name}", "--flavor", part.flavor.name]
    words += ["--timeout", wanted.timeout, "--secrets", "HF_TOKEN"]
    if Path(wanted.model).expanduser().is_dir():
        words += ["--volume", f"{Path(wanted.model).expanduser().resolve()}:{_MODEL}"]
    if wanted.data_dir is not None:
        words += ["--volume", f"{wanted.data_dir.expanduser().resolve()}:{_DATA}"]
    return [*words, IMAGE, "bash", "-c", _script(part, wanted)]


def sweep_command(part: Part, wanted: Wanted, out: str) -> list[str]:
    """The words of `qllm-hf sweep ...` for a part alone, as a job runs it."""
    model = _MODEL if Path(wanted.model).expanduser().is_dir() else wanted.model
    words = ["qllm-hf", "sweep", model, "--part", "--schemes", part.label, "--tasks", ",".join(part.tasks)]
    words += [] if wanted.data_dir is None else ["--data-dir", _DATA]
    words += ["--device-map", "auto"] if part.flavor.gpus > 1 else []
    return [*words, *wanted.options, "-o", out]


def _script(part: Part, wanted: Wanted) -> str:
    """What a job does: install, fetch what an earlier try left, measure, upload, and end as the sweep ended."""
    here = f"{_FOLDER}/{part.name}"
    install = shlex.join(["uv", "pip", "install", "--system", "--quiet", wanted.install])
    repo = [wanted.repo, "--repo-type", "dataset"]
    fetch = shlex.join(["hf", "download", *repo, "--include", f"{part.name}/*", "--local-dir", _FOLDER, "--quiet"])
    limit = ["timeout", "--signal", "TERM", str(seconds(wanted.timeout) - SPARE)]
    measure = shlex.join([*limit, *sweep_command(part, wanted, here)])
    upload = shlex.join(["hf", "upload", wanted.repo, here, part.name, "--repo-type", "dataset"])
    return f"{install} && ({fetch} || true) && {{ {measure}; code=$?; {upload} && exit $code; }}"


def page(parts: Sequence[Part], wanted: Wanted, out: Path) -> str:
    """All commands as a script for a shell, each with the memory it was chosen by, and how the parts become one."""
    lines = [
        f"# {len(parts)} jobs. Memory is counted before anything runs: weights + cache + work of a forward"
        + (" + program" if any(not part.flavor.gpus for part in parts) else "")
        + ".",
        f"# hf has to be of huggingface_hub {OLDEST_HF} or newer (hf version).",
        "# HF_TOKEN has to be set here to one that may write: its value goes to the jobs as a secret.",
        shlex.join(["hf", "repos", "create", wanted.repo, "--type", "dataset", "--private", "--exist-ok"]),
        "",
    ]
    for part in parts:
        lines += [f"# {part.name}: {_memory(part)} -> {part.flavor}", shlex.join(job_command(part, wanted)), ""]
    lines += [
        "# when all are done (hf jobs ps)",
        shlex.join(["hf", "download", wanted.repo, "--repo-type", "dataset", "--local-dir", "parts"]),
        f"qllm-hf merge {' '.join(f'parts/{part.name}' for part in parts)} -o {shlex.quote(str(out))}",
    ]
    return "\n".join(lines)


def as_json(parts: Sequence[Part], wanted: Wanted, out: Path) -> Mapping[str, object]:
    """The same for a program."""
    return {
        "jobs": [
            {
                "name": part.name,
                "scheme": part.label,
                "tasks": list(part.tasks),
                "bytes": part.need.on_device if part.flavor.gpus else part.need.total,
                "flavor": part.flavor.name,
                "command": job_command(part, wanted),
            }
            for part in parts
        ],
        "merge": ["qllm-hf", "merge", *(f"parts/{part.name}" for part in parts), "-o", str(out)],
    }


def _memory(part: Part) -> str:
    need = part.need
    sizes = [need.weights, need.cache, need.work, *([] if part.flavor.gpus else [need.process])]
    return f"{' + '.join(map(bytes_text, sizes))} = {bytes_text(sum(sizes))}"
