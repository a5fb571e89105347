"""Building the library: with the compilers that may be found, with those that break, and with none.

The compilers here are scripts that write what they were asked for without compiling anything, so the tests are fast;
that real ones succeed is what all other tests of the kernels show.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

COMPILER = """#!{python} -SE
import sys, pathlib
arguments = sys.argv[1:]
text = " ".join(arguments)
with open({log!r}, "a") as log:
    log.write(text + "\\n")
if arguments == ["-dumpmachine"]:
    print({processor!r})
elif arguments == ["--version"]:
    print("fake compiler 1.0")
else:
    output = pathlib.Path(arguments[arguments.index("-o") + 1])
    if {fails_on!r} and {fails_on!r} in text:
        output.write_text("half of what sho")
        sys.stderr.write("some note\\nlevel.cpp:1: error: out of ideas\\n")
        sys.exit(1)
    output.write_text("made by a fake compiler: " + text)
"""


@pytest.fixture
def compiler(tmp_path):
    """Writes a fake compiler: (folder to put on PATH, file that logs each run)."""

    def write(name: str = "c++", fails_on: str = "", processor: str = "x86_64-linux-gnu") -> tuple[Path, Path]:
        folder, log = tmp_path / "bin", tmp_path / f"{name}.log"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(COMPILER.format(python=sys.executable, log=str(log), fails_on=fails_on, processor=processor))
        path.chmod(0o755)
        return folder, log

    return write


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record(folder: Path) -> dict:
    return json.loads((folder / "build.json").read_text())


def test_all_levels(builder, compiler, tmp_path):
    folder, _ = compiler()
    built = builder.build(tmp_path / "out", environment={"PATH": str(folder)})
    assert built.levels == ["amx", "avx512_vnni", "avx2_vnni", "avx2", "portable"]
    assert files(tmp_path / "out") == ["build.json", "libqllm_cpu.so"]
    said = record(tmp_path / "out")
    assert (said["built"], said["compiler"]) == (True, "fake compiler 1.0")
    assert said["levels"] == built.levels
    assert said["sources"] == builder.fingerprint()
    linked = (tmp_path / "out" / "libqllm_cpu.so").read_text()
    assert all(f"{level}-" in linked for level in built.levels)
    assert {"-static-libstdc++", "-static-libgcc"} <= set(linked.split())


def test_only_the_portable_level_elsewhere(builder, compiler, tmp_path):
    folder, log = compiler(processor="aarch64-linux-gnu")
    assert builder.build(tmp_path / "out", environment={"PATH": str(folder)}).levels == ["portable"]
    assert "-mavx" not in log.read_text()


def test_level_that_the_compiler_does_not_know(builder, compiler, tmp_path):
    folder, log = compiler(fails_on="-mavxvnni")
    built = builder.build(tmp_path / "out", environment={"PATH": str(folder)})
    assert built.levels == ["amx", "avx512_vnni", "avx2", "portable"]
    assert record(tmp_path / "out")["left_out"] == {"avx2_vnni": "level.cpp:1: error: out of ideas (exit status 1)"}
    dispatch = next(line for line in log.read_text().splitlines() if "dispatch.cpp" in line)
    assert "-DQLLM_WITH_AVX2 " in dispatch
    assert "AVX2_VNNI" not in dispatch


def test_compiler_without_tile_registers(builder, compiler, tmp_path):
    """They are a file of their own, so that all vectors of the processor stay."""
    folder, log = compiler(fails_on="-mamx-tile")
    built = builder.build(tmp_path / "out", environment={"PATH": str(folder)})
    assert built.levels == ["avx512_vnni", "avx2_vnni", "avx2", "portable"]
    (dispatch,) = [line for line in log.read_text().splitlines() if "dispatch.cpp" in line]
    assert "QLLM_WITH_AMX" not in dispatch


def test_link_flag_that_is_not_taken_is_left_out(builder, compiler, tmp_path):
    folder, _ = compiler(fails_on="-static-libstdc++")
    assert builder.build(tmp_path / "out", environment={"PATH": str(folder)}).reason is None
    linked = (tmp_path / "out" / "libqllm_cpu.so").read_text()
    assert "-static-libstdc++" not in linked
    assert "-static-libgcc" in linked


@pytest.mark.parametrize("fails_on", ["-DQLLM_LEVEL_PORTABLE", "dispatch.cpp", "dispatch.o", "probe.cpp"])
def test_compiler_that_breaks_half_way(builder, compiler, tmp_path, fails_on):
    """No half library stays, and not the one from before either, which would be of other sources."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "libqllm_cpu.so").write_text("from before")
    folder, _ = compiler(fails_on=fails_on)
    built = builder.build_for_install(out, environment={"PATH": str(folder)})
    assert built.reason == f"{folder / 'c++'}: level.cpp:1: error: out of ideas (exit status 1)"
    assert files(out) == ["build.json"]
    assert record(out)["reason"] == built.reason
    assert record(out)["built"] is False


def test_next_compiler_is_tried(builder, compiler, tmp_path):
    folder, _ = compiler("broken", fails_on="dispatch.cpp")
    compiler("g++")
    environment = {"PATH": str(folder), "CXX": "broken --with=flag"}
    built = builder.build(tmp_path / "out", environment=environment)
    assert built.command == [str(folder / "g++")]
    assert list(built.tried) == [f"{folder / 'broken'} --with=flag"]
    assert built.left_out == {}


def test_flags_of_the_environment_are_used(builder, compiler, tmp_path):
    folder, log = compiler()
    environment = {"PATH": str(folder), "CXXFLAGS": "-DMINE '-DSPACE=a b'", "LDFLAGS": "-Wl,-mine"}
    builder.build(tmp_path / "out", environment=environment)
    lines = log.read_text().splitlines()
    assert all("-DMINE -DSPACE=a b" in line for line in lines if "level.cpp" in line)
    assert "-Wl,-mine" in (tmp_path / "out" / "libqllm_cpu.so").read_text()


def test_no_compiler(builder, tmp_path):
    (tmp_path / "empty").mkdir()
    environment = {"PATH": str(tmp_path / "empty")}
    built = builder.build_for_install(tmp_path / "out", environment=environment)
    assert built.reason == "no C++ compiler: looked for $CXX, c++, g++, clang++"
    assert files(tmp_path / "out") == ["build.json"]
    environment["CXX"] = "/nowhere/c++"
    built = builder.build(tmp_path / "out", environment=environment)
    assert built.reason == "/nowhere/c++: cannot be run: No such file or directory"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"no C\+\+ compiler"),
        ({"QLLM_HF_BUILD_KERNELS": "yes"}, "QLLM_HF_BUILD_KERNELS='yes': give 0 .*, 1 .* or require"),
    ],
)
def test_required_build_that_fails_is_an_error(builder, tmp_path, environment, message):
    settings = {"PATH": str(tmp_path), "QLLM_HF_BUILD_KERNELS": "require", **environment}
    with pytest.raises(builder.BuildError, match=message):
        builder.build_for_install(tmp_path / "out", environment=settings)


def test_required_build_needs_every_level(builder, compiler, tmp_path):
    folder, _ = compiler(fails_on="-mavxvnni")
    settings = {"PATH": str(folder), "QLLM_HF_BUILD_KERNELS": "require"}
    with pytest.raises(builder.BuildError, match=r"avx2_vnni: level\.cpp:1: error: out of ideas"):
        builder.build_for_install(tmp_path / "out", environment=settings)


def test_build_can_be_turned_off(builder, compiler, tmp_path):
    folder, log = compiler()
    settings = {"PATH": str(folder), "QLLM_HF_BUILD_KERNELS": "0"}
    built = builder.build_for_install(tmp_path / "out", environment=settings)
    assert built.reason == "QLLM_HF_BUILD_KERNELS=0 when it was installed"
    assert files(tmp_path / "out") == ["build.json"]
    assert not log.exists()


def test_unknown_level(builder, compiler, tmp_path):
    folder, _ = compiler()
    built = builder.build(tmp_path / "out", levels=["avx1024"], environment={"PATH": str(folder)})
    assert (
        "no level avx1024 for x86_64-linux-gnu: allowed are amx, avx512_vnni, avx2_vnni, avx2, portable" in built.reason
    )


def test_levels_are_compiled_once(builder, compiler, tmp_path):
    """The next build takes what is there, unless flags or sources changed."""
    folder, log = compiler()

    def compiled(**environment: str) -> int:
        log.unlink(missing_ok=True)
        settings = {"PATH": str(folder), **environment}
        assert not builder.build(tmp_path / "out", objects=tmp_path / "objects", environment=settings).reason
        return log.read_text().count("level.cpp")

    assert [compiled(), compiled(), compiled(CXXFLAGS="-DOTHER")] == [4, 0, 4]


def test_command_line(builder, compiler, tmp_path, monkeypatch, capsys):
    folder, _ = compiler()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    assert builder.main(["--output", str(tmp_path / "out"), "--levels", "avx2"]) == 0
    assert "libqllm_cpu.so: avx2, portable (fake compiler 1.0)" in capsys.readouterr().out
    (folder / "c++").unlink()
    assert builder.main(["--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "not built: no C++ compiler: looked for $CXX, c++, g++, clang++\n"


# As pip calls it

REPO = Path(__file__).resolve().parents[2]
BUILD_WHEEL = "import sys\nfrom setuptools import build_meta\nprint(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory, cannot_run) -> Path:
    """What a wheel is made from, as links, so that a build leaves nothing behind in the repository."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        cannot_run("needs setuptools 77: pip install 'setuptools>=77.0.3'")
    tree = tmp_path_factory.mktemp("tree")
    for name in (
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
        "MANIFEST.in",
        "qllm_hf",
        "qllm_hf_autoload.py",
        "kernels",
    ):
        (tree / name).symlink_to(REPO / name)
    return tree


@pytest.mark.slow
@pytest.mark.parametrize(
    ("works", "setting", "tag"),
    [
        (True, "1", "py3-none-linux_"),
        (False, "1", "py3-none-any"),
        (True, "0", "py3-none-any"),
        (False, "require", None),
    ],
)
def test_wheel(source_tree, compiler, tmp_path, works, setting, tag):
    """With the library it is for one platform, without for all; nothing of the library stays in a wheel without."""
    folder, _ = compiler(fails_on="" if works else "dispatch.cpp")
    out = tmp_path / "wheels"
    environment = {**os.environ, "PATH": str(folder), "QLLM_HF_BUILD_KERNELS": setting}
    environment.pop("CXX", None)
    done = subprocess.run(
        [sys.executable, "-c", BUILD_WHEEL, str(out)], cwd=source_tree, env=environment, capture_output=True, text=True
    )
    if tag is None:
        assert done.returncode != 0
        assert "BuildError" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    assert wheel.name.startswith("qllm_hf-")
    assert tag in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("qllm_kernels/")]
        pure = b"Root-Is-Purelib: true" in archive.read(next(n for n in archive.namelist() if n.endswith("WHEEL")))
        said = json.loads(archive.read("qllm_kernels/build.json"))
    built = tag != "py3-none-any"
    assert ("qllm_kernels/libqllm_cpu.so" in names) == built == said["built"] != pure
    assert "qllm_kernels/cpu.py" in names
