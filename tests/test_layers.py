"""The architecture as a table: a module imports only what lies below it, and stays small."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "qllm_hf"
# The installed files, found without importing them.
ROOT = Path(importlib.util.find_spec(PACKAGE).origin).parent

# A unit is a module of the package or one of its subpackages.
LAYERS = {
    "errors": 0,
    "layout": 0,
    "shown": 0,
    "rotation": 1,
    "trials": 1,
    "scheme": 1,
    "families": 1,
    "strict_json": 1,
    "typed": 1,
    "files": 1,
    "builtin": 1,
    "patterns": 1,
    "choices": 1,
    "ordinary": 1,
    "method": 1,
    "curriculum": 1,
    "_autoload": 1,
    "lock": 1,
    "steady": 1,
    "processes": 1,
    "whole": 2,
    "scratch": 2,
    "budget": 2,
    "sensitivity_table": 2,
    "published": 2,
    "header": 2,
    "formats": 2,
    "input_order": 4,
    "uniform": 2,
    "packing": 2,
    "native": 2,
    "pages": 2,
    "on_gpu": 2,
    "__init__": 2,
    "checkpoint": 3,
    "drawing": 3,
    "packed": 3,
    "compat": 3,
    "revision": 4,
    "checksums": 4,
    "kv_rows": 4,
    "row_buffer": 4,
    "ops": 4,
    "nn": 5,
    "safetensors_stream": 5,
    "attention": 5,
    "config": 5,
    "cache_layers": 6,
    "sound": 6,
    "finite": 6,
    "plan": 6,
    "cache": 7,
    "preflight": 7,
    "surgery": 7,
    "parallel": 8,
    "generation": 8,
    "hooks": 8,
    "methods": 9,
    "quantizer": 10,
    "inplace": 11,
    "loading": 11,
    "streamed": 12,
    "export": 12,
    "vllm_plugin": 12,
    "importing": 12,
    "evaluation": 12,
    "analysis": 12,
    "reporting": 13,
    "cost": 14,
    "efficiency": 14,
    "results": 14,
    "sweep": 15,
    "advice": 15,
    "cluster": 16,
    "figures": 16,
    "page": 17,
    "publishing": 17,
    "demo": 18,
    "serving": 18,
    "cli": 19,
    "__main__": 20,
}
# These two hand out the rest of the package on demand. What they import late, or for the type checker only,
# is not checked; what they import at once is, and __init__'s low number keeps `import qllm_hf` cheap.
DOORS = {"__init__", "_autoload"}
# All that a module may take from the package itself; anything else it imports from where it is defined.
FROM_DOOR = {"__version__"}

WITHOUT_TRANSFORMERS = {
    "files",
    "shown",
    "strict_json",
    "typed",
    "drawing",
    "formats",
    "safetensors_stream",
    "input_order",
    "builtin",
    "errors",
    "layout",
    "scheme",
    "families",
    "patterns",
    "method",
    "budget",
    "sensitivity_table",
    "curriculum",
    "published",
    "uniform",
    "packing",
    "native",
    "packed",
    "kv_rows",
    "ops",
    "nn",
}
WITHOUT_TORCH = {
    "files",
    "shown",
    "strict_json",
    "typed",
    "drawing",
    "errors",
    "builtin",
    "layout",
    "scheme",
    "families",
    "patterns",
    "method",
    "budget",
    "sensitivity_table",
    "curriculum",
    "published",
}
MAX_LINES = 500


class Import(NamedTuple):
    target: str  # dotted, absolute: "qllm_hf.ops.table.resolve" for `from .table import resolve`
    line: int
    is_late: bool  # inside a function, or seen by the type checker only


def imports(path: Path, root: Path) -> Iterator[Import]:
    """Every import in one file, relative ones made absolute, and import_module("...") with them."""
    package = (root.name, *path.relative_to(root).parent.parts)

    def walk(node: ast.AST, is_late: bool) -> Iterator[Import]:
        is_late = is_late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        match node:
            case ast.Import(names=names):
                yield from (Import(name.name, node.lineno, is_late) for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = [*package[: len(package) - level + 1]] if level else []
                base += [module] if module else []
                yield from (Import(".".join([*base, name.name]), node.lineno, is_late) for name in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(target)), *_],
            ):
                relative = target.startswith(".")
                yield Import(".".join(package) + target if relative else target, node.lineno, is_late)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for child in node.body:
                    yield from walk(child, True)
                for child in node.orelse:
                    yield from walk(child, is_late)
                return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, is_late)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


def unit_of(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").parts[0]


def violations(root: Path) -> list[str]:
    """One sentence for each import that points sideways or up, and for each unit without a layer."""
    files = {path: unit_of(path, root) for path in sorted(root.rglob("*.py"))}
    unknown = set(files.values()) - LAYERS.keys()
    found = [f"{unit!r} has no layer. Give it one in {Path(__file__).name}." for unit in sorted(unknown)]
    for path, unit in files.items():
        if unit in unknown:
            continue
        for target, line, is_late in imports(path, root):
            package, _, rest = target.partition(".")
            other = rest.partition(".")[0]
            if package != root.name or (is_late and unit in DOORS) or other in {unit, *unknown, *FROM_DOOR}:
                continue
            where = f"{path.relative_to(root)}:{line}"
            if other not in LAYERS:
                found.append(f"{where} imports {target}. Import what it needs from the module that defines it.")
            elif LAYERS[other] >= LAYERS[unit]:
                found.append(f"{where} {unit} ({LAYERS[unit]}) imports {other} ({LAYERS[other]}), not a lower layer.")
    # One line of code that imports several names is one violation.
    return list(dict.fromkeys(found))


def long_files(root: Path) -> list[str]:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(root.rglob("*.py"))}
    return [f"{path.relative_to(root)}: {n} lines" for path, n in lengths.items() if n > MAX_LINES]


def users_of(library: str, units: set[str], root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line}"
        for path in sorted(root.rglob("*.py"))
        if unit_of(path, root) in units
        for target, line, _ in imports(path, root)
        if target.partition(".")[0] == library
    ]


def test_modules_import_only_lower_layers():
    assert violations(ROOT) == []


def test_files_are_short():
    assert long_files(ROOT) == []


def test_the_core_does_not_know_transformers():
    assert users_of("transformers", WITHOUT_TRANSFORMERS, ROOT) == []


def test_names_and_tables_do_not_know_torch():
    assert users_of("torch", WITHOUT_TORCH, ROOT) == []


HELP = "sys.argv = ['qllm-hf', '--help']\ntry: main()\nexcept SystemExit as stop: assert not stop.code, stop.code"


@pytest.mark.parametrize("act", ["", HELP], ids=["import", "help"])
def test_command_line_starts_without_torch(act, tmp_path):
    check = "heavy = {'torch', 'transformers', 'gradio'} & set(sys.modules)\nassert not heavy, heavy"
    code = f"import sys\nfrom {PACKAGE}.cli.main import main\n{act}\n{check}"
    # Elsewhere than in the repository, whose package folder would come before the installed one.
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The rest breaks the rules on purpose: a check that cannot fail checks nothing.


@pytest.fixture
def tree(tmp_path):
    """Writes {file: source} as a package and returns its root."""

    def write(files: dict[str, str]) -> Path:
        root = tmp_path / PACKAGE
        for name, source in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        return root

    return write


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("scheme.py", "import qllm_hf.cli.main"),
        ("scheme.py", "from qllm_hf import plan"),
        ("scheme.py", "from . import plan"),
        ("scheme.py", "from .families import KEEP"),
        ("scheme.py", "def parse():\n    from qllm_hf.quantizer import QllmHfQuantizer"),
        ("scheme.py", "import importlib\nimportlib.import_module('qllm_hf.cache')"),
        ("scheme.py", "from importlib import import_module\nimport_module('.cache', 'qllm_hf')"),
        ("scheme.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from qllm_hf.cache import QllmCache"),
        ("ops/table.py", "from ..nn.linear import PackedLinear"),
        ("ops/__init__.py", "from ..config import QllmConfig"),
        ("cli/main.py", "from qllm_hf import QllmConfig"),
        ("cli/main.py", "import qllm_hf"),
        ("__init__.py", "from qllm_hf.quantizer import QllmHfQuantizer"),
        ("_autoload.py", "from qllm_hf.quantizer import QllmHfQuantizer"),
    ],
)
def test_forbidden_import_is_found(tree, file, source):
    assert len(violations(tree({file: source}))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/table.py", "from .reference import matmul\nfrom ..uniform import quantize\nfrom qllm_hf.ops import x"),
        ("cli/main.py", "import torch, transformers\nfrom qllm_hf import __version__"),
        ("__init__.py", "def __getattr__(name):\n    from qllm_hf.config import QllmConfig"),
        ("__init__.py", "import typing\nif typing.TYPE_CHECKING:\n    from qllm_hf.config import QllmConfig"),
        ("_autoload.py", "def autoload():\n    import qllm_hf.quantizer"),
    ],
)
def test_allowed_import_is_not_reported(tree, file, source):
    assert violations(tree({file: source})) == []


def test_module_without_a_layer_is_found(tree):
    (message,) = violations(tree({"helpers.py": "", "cli/main.py": "from ..helpers import a, b"}))
    assert message == "'helpers' has no layer. Give it one in test_layers.py."


def test_long_file_is_found(tree):
    root = tree({"errors.py": "#\n" * MAX_LINES, "ops/table.py": "#\n" * (MAX_LINES + 1)})
    assert long_files(root) == [f"ops/table.py: {MAX_LINES + 1} lines"]


def test_library_user_is_found(tree):
    root = tree({"scheme.py": "def f():\n    import torch.nn", "packed.py": "import torch"})
    assert users_of("torch", {"scheme"}, root) == ["scheme.py:2"]
