"""Compiles the CPU kernels of `kernels/cpu` into one shared library; needs a C++17 compiler and nothing else.

    python kernels/build.py                         next to the Python files of qllm_kernels, for a source tree
    python kernels/build.py --output DIR            anywhere
    python kernels/build.py --sanitize address      with checks; --levels portable avx2: only some instruction sets

`pip install` calls `build_for_install`. The library has no Python and no torch in it. It holds the same kernels once
for each level of instruction set, and chooses when it is loaded. Beside it stands build.json: what was built, how, and
what was left out and why; where nothing could be built, only that.

QLLM_HF_BUILD_KERNELS=0 builds nothing. QLLM_HF_BUILD_KERNELS=require makes anything that is left out an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent / "cpu"
PACKAGE = Path(__file__).resolve().parent / "torch-ext" / "qllm_kernels"
LIBRARY, RECORD = "libqllm_cpu.so", "build.json"
SETTING = "QLLM_HF_BUILD_KERNELS"
COMPILERS = ("c++", "g++", "clang++")
# -ffp-contract=off: a product and a sum are fused only where the code says so, the same on every level.
COMMON = (
    "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-math-errno", "-ffp-contract=off",
    "-w",
)  # fmt: skip
# Each is used where the compiler takes it: so that a library of C++ that is newer than the user's does no harm.
LINK = ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL", "-Wl,-s")
SECONDS = 900  # for one run of the compiler


@dataclass(frozen=True)
class Level:
    """An instruction set: its name, the processors (as compilers call them) that have it, and the flags for it."""

    name: str
    processors: tuple[str, ...]
    flags: tuple[str, ...] = ()
    source: str = "level.cpp"


AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
X86 = ("x86_64", "amd64")
LEVELS = (
    Level("amx", X86, (*AVX512, "-mamx-tile", "-mamx-int8"), "amx.cpp"),  # its tiles; the rest is avx512_vnni
    Level("avx512_vnni", X86, AVX512),
    Level("avx2_vnni", X86, (*AVX2, "-mavxvnni")),
    Level("avx2", X86, AVX2),
    Level("portable", ()),  # any processor
)


class BuildError(Exception):
    """No library, and why."""


@dataclass
class Built:
    """What came out, as build.json says it.

    Attributes:
        levels: names of the levels in the library.
        left_out: level -> why it is not in it.
        tried: compiler -> why it could not be used.
        reason: why there is no library, or None.
    """

    compiler: str = ""
    command: list[str] = field(default_factory=list)
    processor: str = ""
    flags: list[str] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    tried: dict[str, str] = field(default_factory=dict)
    sources: str = ""
    reason: str | None = None


def build_for_install(output: Path, objects: Path | None = None, environment: Mapping[str, str] = os.environ) -> Built:
    """Build into `output` for `pip install`, which goes on without a library unless QLLM_HF_BUILD_KERNELS=require.

    Raises:
        BuildError: QLLM_HF_BUILD_KERNELS=require, and there is no library or it lacks a level.
    """
    setting = environment.get(SETTING, "1")
    if setting not in ("0", "1", "require"):
        raise BuildError(f"{SETTING}={setting!r}: give 0 (do not build), 1 (build if possible) or require.")
    if setting == "0":
        built = Built(reason=f"{SETTING}=0 when it was installed")
        _publish(output, built, None)
        return built
    built = build(output, objects=objects, environment=environment)
    if setting == "require" and (built.reason or built.left_out):
        raise BuildError(built.reason or "".join(f"\n{name}: {why}" for name, why in built.left_out.items()))
    return built


def build(
    output: Path,
    *,
    levels: Sequence[str] | None = None,
    sanitize: str = "",
    objects: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Built:
    """Compile the named levels (default: all that suit) and put library and record into `output`.

    What is compiled is kept in the folder `objects`, if given, and taken from there next time if nothing changed.
    Nothing is written there before the whole library is finished; one from before is replaced, or removed where this
    build fails.
    """
    built = Built(sources=fingerprint())
    with tempfile.TemporaryDirectory(prefix="qllm-kernels-") as folder:
        library: Path | None = None
        try:
            library = _build(Path(folder), built, levels, sanitize, objects, environment)
        except (BuildError, OSError) as error:
            built.reason = str(error)
        _publish(output, built, library)
    return built


def fingerprint(sources: Path = SOURCES) -> str:
    """A digest of all sources: whether a library was made from those at hand."""
    digest = hashlib.sha256()
    for path in sorted((*sources.glob("*.h"), *sources.glob("*.cpp"))):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _build(
    work: Path,
    built: Built,
    levels: Sequence[str] | None,
    sanitize: str,
    objects: Path | None,
    environment: Mapping[str, str],
) -> Path:
    if sys.platform == "win32" or sys.maxsize < 2**32:
        raise BuildError("the kernels need a 64-bit Linux or macOS")
    for command in _commands(environment):
        name = shlex.join(command)
        try:
            return _compile_all(command, work, built, levels, sanitize, objects, environment)
        except (BuildError, OSError) as error:
            built.tried[name] = str(error)
            built.left_out.clear()
    if not built.tried:
        raise BuildError("no C++ compiler: looked for $CXX, " + ", ".join(COMPILERS))
    raise BuildError("; ".join(f"{name}: {why}" for name, why in built.tried.items()))


def _commands(environment: Mapping[str, str]) -> Iterator[list[str]]:
    """Compilers to try, each as the words of a command. One file under several names is tried once."""
    seen = set()
    path = environment.get("PATH", os.defpath)
    for words in (shlex.split(environment.get("CXX", "")), *([name] for name in COMPILERS)):
        found = shutil.which(words[0], path=path) if words else None
        if words and found is None and words[0] not in COMPILERS:
            found = words[0]  # so that its absence is reported
        if found and Path(found).resolve() not in seen:
            seen.add(Path(found).resolve())
            yield [found, *words[1:]]


def _compile_all(
    command: list[str],
    work: Path,
    built: Built,
    names: Sequence[str] | None,
    sanitize: str,
    kept: Path | None,
    environment: Mapping[str, str],
) -> Path:
    def run(*arguments: str) -> str:
        return _run([*command, *arguments], work, environment)

    processor = run("-dumpmachine").strip()
    suiting = [level for level in LEVELS if not level.processors or processor.split("-")[0].lower() in level.processors]
    if names is not None:
        unknown = set(names) - {level.name for level in suiting}
        if unknown:
            allowed = ", ".join(level.name for level in suiting)
            raise BuildError(f"no level {', '.join(sorted(unknown))} for {processor}: allowed are {allowed}")
        suiting = [level for level in suiting if level.name in {*names, "portable"}]
    flags = [*shlex.split(environment.get("CXXFLAGS", "")), *COMMON]
    if sanitize:
        # -O0: of the optimised kernels, one source file with all checks takes more than a quarter of an hour
        flags += [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O0"]
    link_flags = _accepted(run, work, flags, () if sanitize else LINK)

    version = run("--version").strip()

    def compiled(level: Level) -> str:
        macros = (f"-DQLLM_LEVEL_{level.name.upper()}", f"-DQLLM_NAMESPACE=qllm_{level.name}")
        arguments = (*flags, *level.flags, *macros, f'-DQLLM_LEVEL_NAME="{level.name}"')
        digest = hashlib.sha256("\0".join((built.sources, version, processor, *arguments)).encode()).hexdigest()
        target = f"{level.name}-{digest[:16]}.o"
        if kept is not None and (kept / target).exists():
            return str(kept / target)
        run(*arguments, "-c", str(SOURCES / level.source), "-o", target)
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
            _replace(kept / target, (work / target).read_bytes())
        return target

    objects = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        futures = {level.name: pool.submit(compiled, level) for level in suiting}
        for name, future in futures.items():
            try:
                objects.append(future.result())
            except BuildError as error:
                built.left_out[name] = str(error)
    if "portable" in built.left_out:
        raise BuildError(built.left_out["portable"])
    built.levels = [level.name for level in suiting if level.name not in built.left_out]
    present = [f"-DQLLM_WITH_{name.upper()}" for name in built.levels]
    run(*flags, *present, "-c", str(SOURCES / "dispatch.cpp"), "-o", "dispatch.o")
    linker = [*link_flags, *shlex.split(environment.get("LDFLAGS", ""))]
    run(*flags, "-shared", "dispatch.o", *objects, *linker, "-o", LIBRARY)
    built.compiler = version.splitlines()[0] if version else command[0]
    built.command, built.processor, built.flags = command, processor, flags + linker
    return work / LIBRARY


def _accepted(run: Callable[..., str], work: Path, flags: list[str], candidates: Sequence[str]) -> list[str]:
    """Those of the link flags that work. Also shows that the compiler can make a shared library at all."""
    (work / "probe.cpp").write_text('static_assert(__cplusplus > 201402L, "");\nextern "C" int probe() { return 0; }\n')
    probe = (*flags, "-shared", "probe.cpp", "-o", "probe.so")
    run(*probe)
    accepted = []
    for flag in candidates:
        try:
            run(*probe, flag)
        except BuildError:
            continue
        accepted.append(flag)
    return accepted


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """What a command prints.

    Raises:
        BuildError: it failed; the message is its first line that speaks of an error.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, env={**environment, "LC_ALL": "C"}, capture_output=True, text=True, timeout=SECONDS
        )
    except OSError as error:
        raise BuildError(f"cannot be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"did not finish within {SECONDS} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "no message")
        raise BuildError(f"{said} (exit status {done.returncode})")
    return done.stdout


def _publish(output: Path, built: Built, library: Path | None) -> None:
    """Put library and record into `output`: each appears whole or not at all, and the record tells of this library."""
    output.mkdir(parents=True, exist_ok=True)
    (output / LIBRARY).unlink(missing_ok=True)  # a running program keeps the one it has loaded
    record: dict[str, Any] = {"built": library is not None}
    record |= {name: value for name, value in vars(built).items() if value}
    _replace(output / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    if library is not None:
        _replace(output / LIBRARY, library.read_bytes())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 if a library was built."""
    parser = argparse.ArgumentParser(description="Compile the CPU kernels of qllm_hf.")
    parser.add_argument("--output", type=Path, default=PACKAGE, help="folder for library and record")
    parser.add_argument("--levels", nargs="+", help="only these and portable: " + ", ".join(x.name for x in LEVELS))
    parser.add_argument("--objects", type=Path, help="folder to keep compiled levels in, for the next time")
    parser.add_argument("--sanitize", default="", help="for -fsanitize=, such as address,undefined")
    given = parser.parse_args(arguments)
    built = build(
        given.output.resolve(),
        levels=given.levels,
        sanitize=given.sanitize,
        objects=given.objects and given.objects.resolve(),
    )
    if built.reason:
        print(f"not built: {built.reason}", file=sys.stderr)
        return 1
    print(f"{given.output / LIBRARY}: {', '.join(built.levels)} ({built.compiler})")
    for name, why in built.left_out.items():
        print(f"without {name}: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
