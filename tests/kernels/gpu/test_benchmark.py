"""benchmarks/gpu.py verifies what it times: in the interpreter every kind of case runs, and a wrong result is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qllm_hf  # noqa: F401  (in a source tree it knows where the kernels are)

pytest.importorskip("triton", reason="needs Triton")

import gpu
import gpu_cases
import gpu_peers

from qllm_kernels.gpu import attention, encode, integers, weights

ONE_OF_EACH = "linear 64x256 3 W3|integers 32x256 3 W4|attention .* KV3|append"


def rows(capsys, only=ONE_OF_EACH):
    """Exit status and printed lines."""
    status = gpu.main(["--interpret", "--no-peers", "--only", only])
    return status, capsys.readouterr().out.splitlines()


def test_one_case_of_each_kind_is_verified(capsys):
    status, lines = rows(capsys)
    assert status == 0, lines
    assert lines[-1].startswith("10 rows, 0 of ours")
    assert sum("verified, not timed" in line for line in lines) == 10
    assert not [line for line in lines if " us " in line]  # no times where nothing was timed


OFF = 1.01  # what a wrong kernel is off by: more than bfloat16 rounds


@pytest.mark.parametrize(
    ("module", "name", "only"),
    [
        (weights, "linear", "linear 64x256 3 W3"),
        (integers, "multiply", "integers 32x256 3 W4"),
        (attention, "attend", "attention .* KV3"),
    ],
)
def test_wrong_product_is_found(monkeypatch, capsys, module, name, only):
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **options: right(*args, **options) * OFF)
    status, lines = rows(capsys, only)
    assert status == 1
    assert any("wrong: error" in line for line in lines)


@pytest.mark.parametrize("name", ["encode", "encode_rows_into", "append"])
def test_one_wrong_bit_is_found(monkeypatch, capsys, name):
    right = getattr(encode, name)

    def wrong(*args, **options):
        made = right(*args, **options)
        if name == "encode":
            made[0][0, 0] ^= 1
        elif name == "encode_rows_into":
            args[1][0, 0, 0, 0] ^= 1
        else:
            args[2][0, 0, 100, 0] ^= 1
        return made

    monkeypatch.setattr(encode, name, wrong)
    only = {"encode": "linear 64x256 3 W3", "encode_rows_into": "attention .* KV3", "append": "append"}[name]
    status, lines = rows(capsys, only)
    assert status == 1
    assert any("differ from those that torch makes" in line for line in lines)


def test_write_beside_the_new_tokens_is_found(monkeypatch, capsys):
    right = encode.append

    def wrong(*args, **options):
        right(*args, **options)
        args[3][0, 0, 0, 0] = 1

    monkeypatch.setattr(encode, "append", wrong)
    status, lines = rows(capsys, "append")
    assert status == 1
    assert any("more was written" in line for line in lines)


def test_kernel_that_cannot_run_is_a_row_that_says_so(monkeypatch, capsys):
    def broken(*args, **options):
        raise RuntimeError("out of something")

    monkeypatch.setattr(weights, "linear", broken)
    status, lines = rows(capsys, "linear 64x256 3 W3")
    assert status == 1
    assert any("RuntimeError: out of something" in line for line in lines)


def test_peers_are_rows_that_say_what_is_missing():
    case = next(case for case in gpu_cases.tiny_cases() if case.form == "W4 g128")
    found = list(gpu.rows_of(case, torch.device("cpu"), peers=True))
    remarks = {row["method"]: row["remark"] for row in found}
    assert remarks["_weight_int4pack_mm"] == "refuses: the layout is that of a GPU"
    assert remarks["bf16 in torch"] == "verified, not timed"
    assert not [row for row in found if row["us"] != "" or row["ratio"] != ""]


def test_every_case_has_a_name_of_its_own_and_goals_for_methods_that_it_has():
    for cases in (list(gpu_cases.all_cases()), list(gpu_cases.quick_cases()), list(gpu_cases.tiny_cases())):
        names = [(case.operation, case.shape, case.size, case.form) for case in cases]
        assert len(set(names)) == len(names)
        for case in cases:
            assert set(case.goal) <= {"fused", "decoded first", "product", "all"}
            assert list(gpu_peers.peers_of(case)) or case.operation == "append" or "A8" in case.form


def test_results_are_written_whole(tmp_path):
    row = dict.fromkeys(gpu.COLUMNS, "") | {"operation": "linear", "us": 1.5}
    about = dict.fromkeys(gpu.MACHINE, "x")
    gpu.write(tmp_path, [row], about)
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == [row]
    header, line = (tmp_path / "gpu.csv").read_text().splitlines()
    assert header.split(",") == [*gpu.COLUMNS, *gpu.MACHINE]
    assert line.startswith("linear,")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.csv", "gpu.json"]


def test_missed_goals_are_named():
    row = dict.fromkeys(gpu.COLUMNS, "") | {"operation": "linear", "shape": "2x2", "size": 1, "method": "fused"}
    assert list(gpu.missed([row | {"goal": 3.0, "ratio": 2.9}])) == ["missed: linear 2x2 1  fused: 2.9 of 3.0"]
    assert list(gpu.missed([row | {"goal": 3.0, "ratio": 3.0}, row | {"goal": 3.0}, row])) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    script = Path(gpu.__file__)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("nothing to measure: ")
