"""What the compiler makes of the kernels, for GPUs that are not here: no spills, tensor cores, few instructions.

Compiled in processes of their own, since this one has Triton's interpreter.
"""

import csv
import json
import os
import re
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path

import pytest

import qllm_hf  # noqa: F401  (in a source tree it knows where the kernels are)

pytest.importorskip("triton", reason="needs Triton")

import qllm_kernels
from qllm_kernels.gpu import gate, gate_run, sass
from qllm_kernels.gpu.compiled import Compiled
from qllm_kernels.gpu.excess import Excess
from qllm_kernels.gpu.gate import TARGETS, Gate, faults, gates

HERE = Path(__file__).parent
SOURCES = Path(qllm_kernels.__file__).parents[1]
COMMITTED = HERE.parents[2] / "benchmarks" / "results" / "gpu_gate.csv"


def compiled(*arguments, **settings):
    """What a Python process prints that compiles kernels."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCES), *sys.path]), **settings}
    if "TRITON_INTERPRET" not in settings:
        environment.pop("TRITON_INTERPRET", None)
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=1800)


def run_gates(*arguments):
    """The command, and what it says about each kernel."""
    done = compiled("-m", "qllm_kernels.gpu.gate", "--json", *arguments)
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def committed():
    """Lines of the table that is in the repository."""
    with COMMITTED.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def wrong():
    """Faults of kernels that are made wrong."""
    done = compiled(str(HERE / "compiled_wrong.py"))
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# One kernel of each function, of all widths that decide something, and on other targets what is most different there.
QUICK = {
    "cuda:90": (
        "W2 bf16 1 tokens", "W4 bf16 16 tokens", "W8 fp16 128 tokens", "3 weights W4 bf16 1 tokens",
        "experts W4 bf16 8 tokens", "decode W3 g128 of 4096", "W3A8 g128, a token", "W8A8 g-1 symmetric, many tokens",
        "tokens A8", "append KV4 g64 fp16", "KV8 g128", "KV2 g32", "stretches of 128 numbers",
    ),
    "cuda:80": ("W4 bf16 1 tokens", "KV4 g64"),
}  # fmt: skip


def wanted(chosen=gates, targets=TARGETS):
    """Targets and names of gates, in their order."""
    return [(target, each.name) for target in targets for each in chosen() if each.compiles_for(target)]


def check_run(expected, *arguments):
    """The command compiles what is expected, finds no fault, and counts what the committed table says."""
    done, rows = run_gates(*arguments)
    assert {f"{row['target']} {row['gate']}": row["faults"] for row in rows if row["faults"]} == {}
    assert not done.returncode, done.stderr
    assert [(row["target"], row["gate"]) for row in rows] == expected
    known = {(row["target"], row["gate"]): row for row in committed() if row["triton"] == metadata.version("triton")}
    for row in rows:
        line = known.get((row["target"], row["gate"]))
        if line is not None and line["per_element"]:
            assert f"{row['per_element']:.2f}" == line["per_element"], f"write the table again: {row['gate']}"


counted_alike = pytest.mark.skipif(
    not metadata.version("triton").startswith("3.6."), reason="another compiler makes other numbers of instructions"
)


@counted_alike
@pytest.mark.slow
@pytest.mark.parametrize("target", QUICK)
def test_some_kernels_are_as_their_gates_want_them(target, tmp_path):
    """The table that is written says the same, and so do several processes."""
    pattern = f"^({'|'.join(map(re.escape, QUICK[target]))})$"
    expected = wanted(lambda: gates(pattern), [target])
    assert len(expected) == len(QUICK[target])
    path, workers = tmp_path / "table.csv", "2" if target == "cuda:80" else "1"
    check_run(expected, "--targets", target, "--kernels", pattern, "--csv", str(path), "--workers", workers)
    with path.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["target"], line["gate"]) for line in lines] == expected
    assert {line["triton"] for line in lines} == {metadata.version("triton")}
    for line in lines:
        few = not line["budget"] or float(line["per_element"]) <= float(line["budget"])
        assert (line["within"] == "yes") == (few and line["spills"] == "0")
        assert line["within"] == "yes" or line["remark"].startswith("known: ")
        assert int(line["widest_load"]) >= 16 and int(line["registers"])


@counted_alike
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("QLLM_TEST_GATES") != "all", reason="minutes; runs with QLLM_TEST_GATES=all")
def test_all_kernels_are_as_their_gates_want_them():
    check_run(wanted(), "--workers", str(os.cpu_count()))


def test_committed_table_has_every_gate_once():
    assert [(row["target"], row["gate"]) for row in committed()] == wanted()
    named = {each.name: each for each in gates()}
    for row in committed():
        budget = named[row["gate"]].budget_on(row["target"])
        assert row["budget"] == ("" if budget is None else str(budget)), row["gate"]


def test_other_targets_take_what_they_can():
    """Kernels without assembly compile for AMD. With assembly, or for what is no target, it says so and goes on."""
    done, rows = run_gates("--targets", "hip:gfx942,cuda:abc", "--kernels", "^append KV4 g64 fp16$|^W4 bf16 1 tokens$")
    found = {(row["target"], row["gate"]): row for row in rows}
    assert found["hip:gfx942", "append KV4 g64 fp16"]["faults"] == []
    assert found["hip:gfx942", "append KV4 g64 fp16"]["instructions"] > 100
    (fault,) = found["hip:gfx942", "W4 bf16 1 tokens"]["faults"]
    assert fault == "does not compile: RuntimeError: it has assembly for NVIDIA"
    for name in ("append KV4 g64 fp16", "W4 bf16 1 tokens"):
        (fault,) = found["cuda:abc", name]["faults"]
        assert fault.startswith("does not compile: ")
        assert f"cuda:abc {name}: {fault}" in done.stderr
    assert done.returncode == 1


def test_every_file_has_gates_with_budgets():
    found = gates()
    assert len(found) == len({each.name for each in found})
    for kind in ("W4", "W3", "W2", "KV8", "KV4", "KV3", "KV2"):
        assert any(kind in each.name and each.budget is not None for each in found), kind


def test_good_kernel_has_no_faults(wrong):
    assert wrong["good"] == []


def test_instructions_for_each_code_are_too_many(wrong):
    (fault,) = wrong["naive"]
    assert "instructions per element, allowed are 3.90" in fault


def test_spilled_registers_are_found(wrong):
    assert any("spilled" in fault for fault in wrong["spilled"])


def test_narrow_loads_are_found(wrong):
    assert wrong["narrow"] == ["no load of 128 bits"]


def test_missing_tensor_cores_are_found(wrong):
    assert wrong["no tensor cores"] == ["no HGMMA"]


def test_budget_without_a_loop_is_a_fault(wrong):
    assert wrong["no loop"] == ["no loop to count instructions in: give `small`"]


def test_interpreter_is_refused():
    done = compiled("-m", "qllm_kernels.gpu.gate", TRITON_INTERPRET="1")
    assert done.returncode == 1
    assert "TRITON_INTERPRET" in done.stderr


# What is judged


GATE = Gate("W2 of a test", None, {}, {}, budget={"cuda:90": 2.0}, expects="HGMMA")


def counted(target="cuda:90", per_element=1.5, spills=0, expected=1):
    return Compiled(GATE.name, target, 100, 50, per_element, spills, 64, 0, "HGMMA", expected, 128)


@pytest.mark.parametrize(
    ("found", "known", "fault"),
    [
        (counted(), None, None),
        (counted(per_element=2.5), None, "2.50 instructions per element, allowed are 2.00"),
        (counted("cuda:80", per_element=2.5), None, None),  # no budget there
        (counted(spills=3), None, "3 accesses to spilled registers"),
        (counted(expected=0), None, "no HGMMA"),
        (counted("cuda:80", expected=0), None, "no HMMA"),
        (counted(per_element=2.5), Excess("why", 2.5), None),
        (counted(per_element=2.6), Excess("why", 2.5), "2.60 instructions per element, allowed are 2.00"),
        (counted(spills=3), Excess("why", spills=3), None),
        (counted(spills=4), Excess("why", spills=3), "4 accesses to spilled registers"),
        (
            counted(per_element=2.1, spills=3),
            Excess("why", spills=3),
            "2.10 instructions per element, allowed are 2.00",
        ),
        (counted(per_element=2.5, expected=0), Excess("why", 2.5), "no HGMMA"),
        (counted(), Excess("why", 2.5), "takes no more than it should: EXCESS is out of date"),
    ],
)
def test_what_is_known_is_no_fault_up_to_there(monkeypatch, found, known, fault):
    monkeypatch.setattr(gate, "EXCESS", {} if known is None else {(GATE.name, found.target): known})
    assert fault in faults(GATE, found) if fault else faults(GATE, found) == []


def test_compiler_that_ends_its_process_is_a_fault():
    future = Future()
    future.set_exception(BrokenProcessPool("a process ended"))
    assert gate_run._result(future) == (None, ["does not compile: BrokenProcessPool: a process ended"])


def test_excesses_are_of_gates():
    names = {each.name for each in gates()}
    assert {name for name, _ in gate.EXCESS} <= names
    assert {target for _, target in gate.EXCESS} <= set(TARGETS)
    assert gates("^W8 fp16 128 tokens$")[0].compiles_for(
        "cuda:80"
    )  # to see what is known, though it is none of its own


LISTING = """
        Function : kernel
        /*0000*/                   LDC R1, c[0x0][0x28] ;                      /* 0x00000a00ff017b82 */
                                                                               /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;            /* 0x0000000402047981 */
        /*0020*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R7], desc[UR4][R2.64] ;   /* 0x0000 */
        /*0030*/                   LDG.E.LTC128B.U16 R6, desc[UR4][R2.64+0x2] ;   /* 0x0000 */
        /*0040*/                   HMMA.16816.F32 R8, R4, R6, R8 ;             /* 0x0000 */
        /*0050*/               @P1 BRA 0x20 ;                                  /* 0x0000 */
        /*0060*/                   STL.64 [R1], R8 ;                           /* 0x0000 */
        /*0070*/                   NOP;                                        /* 0x0000 */
        /*0080*/              @!UP2 UIADD3 UR4, UR4, 0x1, URZ ;               /* 0x0000 */
        /*0090*/                   EXIT ;                                      /* 0x0000 */
.L_x_0:
        /*00a0*/                   BRA 0xa0;                                   /* 0x0000 */
"""


def test_listing_is_read():
    code = sass.parse(LISTING)
    assert [each.opcode.partition(".")[0] for each in code] == [
        "LDC", "LDG", "LDGSTS", "LDG", "HMMA", "BRA", "STL", "UIADD3", "EXIT", "BRA",
    ]  # fmt: skip
    assert [each.address for each in sass.hot_loop(code)] == [0x20, 0x30, 0x40, 0x50]
    assert sass.widest_load(code) == 128
    assert sass.widest_load(code[3:]) == 16  # LTC128B says how much the cache fetches, not how much is loaded
    assert sass.widest_load(code[4:]) == 0
    assert sass.tensor_core(code) == ["HMMA"]
    assert sass.spills(code) == 1
    assert sass.matching(code, "HMMA") == 1
    assert sass.matching(code, "MMA") == 0


def test_loop_around_a_loop_is_not_counted():
    body = ["LDG.E.128 R4, [R2]", "FADD R1, R1, R4", "BRA 0x10", "FADD R2, R2, R1", "LDG.E R5, [R3]", "BRA 0x0"]
    lines = ["MOV R1, R2", *body, "EXIT"]
    code = sass.parse("\n".join(f" /*{16 * place:04x}*/ {line} ;" for place, line in enumerate(lines)))
    assert [each.opcode for each in sass.hot_loop(code)] == ["LDG.E.128", "FADD", "BRA"]


def test_code_without_a_loop_has_none():
    assert sass.hot_loop(sass.parse(" /*0000*/ LDG.E R5, [R3] ;\n /*0010*/ EXIT ;\n /*0020*/ BRA 0x20 ;")) is None
