"""What the compiler makes of the kernels, for GPUs that are not here: no spills, tensor cores, few instructions.

Compiled in processes of their own, since this one has Triton's interpreter.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qllm_hf  # noqa: F401  (in a source tree it knows where the kernels are)

pytest.importorskip("triton", reason="needs Triton")

import qllm_kernels
from qllm_kernels.gpu import sass
from qllm_kernels.gpu.gate import gates

HERE = Path(__file__).parent
SOURCES = Path(qllm_kernels.__file__).parents[1]


def compiled(*arguments, **settings):
    """What a Python process prints that compiles kernels."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCES), *sys.path]), **settings}
    if "TRITON_INTERPRET" not in settings:
        environment.pop("TRITON_INTERPRET", None)
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=600)


def gate(targets, kernels):
    """The command, for the targets and for kernels whose name the regular expression finds."""
    return compiled("-m", "qllm_kernels.gpu.gate", "--json", "--targets", targets, "--kernels", kernels)


def rows_of(done):
    """What it says about each kernel."""
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def wrong():
    """Faults of kernels that are made wrong."""
    done = compiled(str(HERE / "compiled_wrong.py"))
    assert not done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# One target in full, in two parts that can run side by side, and on others what most depends on the target.
SMALL = "^(decode|encode|append|tokens) "


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "kernels"),
    [("cuda:90", SMALL), ("cuda:90", f"(?!{SMALL})^"), ("cuda:80,cuda:89", "^W4 bf16|^KV4 g64$|^W4A8 g128")],
    ids=["encoding", "products", "others"],
)
def test_every_kernel_is_as_its_gate_wants_it(targets, kernels):
    done = gate(targets, kernels)
    rows = rows_of(done)
    assert rows, done.stderr
    assert {f"{row['target']} {row['gate']}": row["faults"] for row in rows if row["faults"]} == {}
    assert not done.returncode, done.stderr
    wanted = [each.name for target in targets.split(",") for each in gates(kernels) if target in each.targets]
    assert [row["gate"] for row in rows] == wanted


def test_kernels_without_assembly_compile_for_amd_too():
    done = compiled(
        "-m", "qllm_kernels.gpu.gate", "--json", "--targets", "hip:gfx942", "--kernels", "^append KV4 g64 fp16$"
    )
    (row,) = map(json.loads, done.stdout.splitlines())
    assert (row["gate"], row["faults"]) == ("append KV4 g64 fp16", [])
    assert row["instructions"] > 100


def test_what_does_not_compile_is_a_fault():
    done = compiled(
        "-m", "qllm_kernels.gpu.gate", "--json", "--targets", "cuda:abc", "--kernels", "^append KV4 g64 fp16$"
    )
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["faults"][0].startswith("does not compile: ")
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
    assert sass.wide_loads(code) == 2  # LTC128B says how much the cache fetches, not how much is loaded
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
