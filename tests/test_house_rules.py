"""The rules of CONTRIBUTING.md as code: layering, sizes, and that no kernel or op lacks its companions."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import lamina
from lamina.ops.registration import FAKES
from tests.support.backends import ROOT, cpu_kernels

CSRC = ROOT / "csrc"
CPP_SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".inc"}
MAX_LINES = 400
# A file may include its own folder of csrc and those before it; base and layout include each other.
FOLDERS = ("base", "layout", "device", "block", "quant", "kv", "gemm", "ops", "torch")


def may_include(path: str, included: str) -> bool:
    """Both from csrc. An op includes the header of another op, and nothing else of it."""
    folder, other = path.split("/")[0], included.split("/")[0]
    if {folder, other} <= {"base", "layout"}:
        return True
    if folder == other == "ops" and path.split("/")[1] != (op := included.split("/")[1]):
        return included == f"ops/{op}/{op}.h"
    return FOLDERS.index(other) <= FOLDERS.index(folder)


OPS = sorted(path.parent.name for path in CSRC.glob("ops/*/kernels.inc"))
# The Python functions of a folder that has several; the others have one, of the same name.
FUNCTIONS = {
    "rms_norm": ("rms_norm", "rms_norm_int8"),
    "silu_mul": ("silu_mul", "silu_mul_int8"),
    "sample": ("sample_tokens", "verify_draft", "pack_tree_mask"),
    "paged_kv": ("append_paged_kv", "gather_paged_kv", "copy_kv_blocks", "compact_kv"),
    "matmul_sparse24": (
        *("matmul_sparse24", "matmul_sparse24_int8"),
        *("matmul_sparse24_int4", "matmul_sparse24_int4_int8"),
    ),
}
# The names in kernels.inc of a folder that has several; the others have one, that of the folder.
KERNELS = {"matmul_sparse24": FUNCTIONS["matmul_sparse24"]}


def sources(*folders: str, suffixes: set[str] = CPP_SUFFIXES) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes and p.is_file())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def includes(path: Path, quotes: str) -> list[str]:
    return re.findall(rf"^\s*#\s*include\s+{quotes}", path.read_text(), flags=re.MULTILINE)


def code(path: Path) -> str:
    """The text without comments and string literals."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)


Offences = Iterator[str]  # what is wrong with one file


def each(paths: Iterable[Path]) -> Callable[[Callable[[Path], Offences]], Callable[[], None]]:
    """A test that applies a rule to every file and names all that offend."""
    files = list(paths)

    def decorate(rule: Callable[[Path], Offences]) -> Callable[[], None]:
        def test() -> None:
            assert files, "the rule is about no file"
            offences = [f"{name(path)}: {offence}" for path in files for offence in rule(path)]
            assert not offences, "\n".join(offences)

        test.__doc__ = rule.__doc__
        return test

    return decorate


@each(sources("csrc"))
def test_includes_point_one_way(path: Path) -> Offences:
    for included in includes(path, '"([^"]+)"'):
        if not (CSRC / included).is_file():
            yield f'"{included}" is not a path from csrc'
        elif not may_include(str(path.relative_to(CSRC)), included):
            yield f"may not include {included}"


@each(sources("csrc"))
def test_torch_and_python_stay_in_the_binding(path: Path) -> Offences:
    for header in includes(path, "<([^>]+)>"):
        if re.match(r"(torch|ATen|c10|pybind11)/|Python\.h", header) and not path.is_relative_to(
            CSRC / "torch"
        ):
            yield header
        elif re.match("torch/(?!csrc/stable|csrc/inductor|headeronly)", header):
            yield f"{header} is not of the stable ABI"


@each(path for path in sources("csrc") if not path.is_relative_to(CSRC / "device"))
def test_device_code_stays_in_device(path: Path) -> Offences:
    """asm elsewhere is allowed only when empty, a fence for the compiler, and in base/amx.h."""
    yield from re.findall(r"\b(?:threadIdx|blockIdx|__shfl\w*|__syncthreads)\b|<<<", code(path))
    raw = re.sub(r"//[^\n]*", "", path.read_text())
    statements = re.findall(r"\b(?:asm|__asm__)\b\s*(?:volatile)?\s*\(\s*(\"[^\"]*\")", raw)
    if path != CSRC / "base" / "amx.h":
        yield from (statement for statement in statements if statement != '""')


@each(sources("csrc"))
def test_intrinsics_stay_in_the_kernels(path: Path) -> Offences:
    if not re.fullmatch(r"csrc/(ops/\w+/cpu(/\w+)?|base|device)/[^/]+", name(path)):
        yield from (h for h in includes(path, "<([^>]+)>") if re.search(r"intrin|arm_neon|simde|cpuid", h))


ALL_CODE = [
    *sources("csrc", "bench", "tests", "tools", "cmake"),
    *sources("python", "bench", "tests", "tools", suffixes={".py", ".c", ".sh", ".cmake"}),
    ROOT / "setup.py",
    ROOT / "CMakeLists.txt",
    ROOT / "Makefile",
]


@each(ALL_CODE)
def test_files_are_short_and_clean(path: Path) -> Offences:
    text = path.read_text()
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        yield f"{len(lines)} lines, {MAX_LINES} are allowed"
    if text and not text.endswith("\n"):
        yield "the last line has no end"
    for number, line in enumerate(lines, 1):
        if line != line.rstrip() or ("\t" in line and path.name != "Makefile"):
            yield f"line {number} has a tab or ends with a space"
    unfinished = "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX"))
    yield from re.findall(rf"\b(?:{unfinished})\b", text)


@each(path for path in sources("csrc") if path.suffix == ".h")
def test_headers_guard_and_explain_themselves(path: Path) -> Offences:
    if not path.read_text().startswith("//"):
        yield "a header opens with what a reader needs"
    if "#pragma once" not in path.read_text():
        yield "no #pragma once"


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_row_has_its_file(op: str) -> None:
    files = {p.stem for p in (CSRC / "ops" / op / "cpu").rglob("*.cc")}
    for kernels in KERNELS.get(op, (op,)):
        rows = cpu_kernels(kernels)
        assert rows[0] == "generic"
        assert set(rows) <= files
        assert len(rows) == len(set(rows))
    assert {row for kernels in KERNELS.get(op, (op,)) for row in cpu_kernels(kernels)} == files


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_companions(op: str) -> None:
    companions = [
        f"csrc/ops/{op}/{op}.h",
        f"csrc/ops/{op}/run.cc",
        f"csrc/torch/{op}.cc",
        f"python/lamina/ops/{op}.py",
        f"tests/ops/test_{op}.py",
        f"tests/cpp/test_{op}.cc",
        f"bench/ops/{op}.py",
    ]
    assert [path for path in companions if not (ROOT / path).is_file()] == []
    header = (CSRC / "ops" / op / f"{op}.h").read_text()
    reference = re.search(r"Reference:? +(\S+\.py)", header)
    assert reference, "the header names its reference"
    documents = (
        "".join(p.read_text() for p in (ROOT / "docs").glob("*.md")) + (ROOT / "README.md").read_text()
    )
    for function in FUNCTIONS.get(op, (op,)):
        assert f"def {function}(" in (ROOT / reference.group(1)).read_text()
        assert function in documents


def test_every_op_on_tensors_has_a_fake_kernel() -> None:
    bindings = [path.read_text() for path in (CSRC / "torch").glob("*.cc") if path.stem != "dispatch_only"]
    registered = re.findall(r'\bm\.def\(\s*"(\w+)\(Tensor', "".join(bindings))
    assert sorted(registered) == sorted(FAKES)


@each(sources("tests", suffixes={".py"}))
def test_no_test_chooses_backends_by_the_text_of_an_id(path: Path) -> Offences:
    """A text that matches no id would select nothing, unnoticed; tests/support/backends.py selects."""
    yield from re.findall(r"\.id\s*(?:==|!=|in\b|not\b|\.\w+\()|\bin\s+(?:str\()?\w+\.id\b", code(path))


@each(sources("tests", suffixes={".py"}))
def test_no_kernel_runs_while_tests_are_collected(path: Path) -> Offences:
    """One that hangs or loses the CUDA context there takes every test of every process along."""
    yield from re.findall(r"^(?:@|\w+ = ).*\bcuda_problem\(", code(path), flags=re.MULTILINE)


def public_definitions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if "overload" not in map(ast.unparse, node.decorator_list):  # the definition that follows counts
            yield node.name, node


PYTHON = [p for p in sources("python", suffixes={".py"}) if p.name != "__main__.py"]


@each(PYTHON)
def test_public_python_is_documented_and_typed(path: Path) -> Offences:
    if not ast.get_docstring(ast.parse(path.read_text())):
        yield "a module says what it holds"
    for where, node in public_definitions(path):
        if not ast.get_docstring(node):
            yield f"{where} has no docstring"
        if isinstance(node, ast.FunctionDef) and node.returns is None:
            yield f"{where} has no return type"


# Deep to shallow: a module may import its own package and those before it.
PACKAGES = ("_library", "_checks", "_progress", "ops", "kv", "speculate", "devices", "quant", "testing", "nn")
PACKAGES += ("compression", "checkpoint", "parallel", "integrations", "doctor", "cli")
RUNS_TESTS = {f"bench/{file}.py" for file in ("gpu/one_kernel", "gpu/rehearsal", "gpu/target", "vllm_engine")}


@each([p for p in sources("python/lamina", suffixes={".py"}) if p.parent.name != "lamina"])
def test_packages_import_one_way(path: Path) -> Offences:
    own = path.relative_to(ROOT / "python/lamina").parts[0]
    for imported in re.findall(r"^ *from lamina(?:\.| import )(\w+)", path.read_text(), flags=re.MULTILINE):
        if PACKAGES.index(imported) > PACKAGES.index(own):
            yield f"{own} may not import lamina.{imported}"


@each(sources("python", "bench", suffixes={".py"}))
def test_no_code_imports_tests(path: Path) -> Offences:
    """Benchmarks take definitions and bounds from lamina.testing; a few files run the tests' own checks."""
    if name(path) not in RUNS_TESTS:
        yield from re.findall(r"^ *(?:from|import) tests\b.*", path.read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("package", ["checkpoint", "compression", "doctor", "nn", "quant"])
def test_no_module_hides_a_public_name(package: str) -> None:
    """`import lamina.quant.gptq` would replace the function lamina.quant.gptq by a module of that name."""
    public = importlib.import_module(f"lamina.{package}")
    modules = {path.stem for path in Path(str(public.__file__)).parent.iterdir()}
    assert modules & set(public.__all__) == set()


@pytest.mark.parametrize("function", [function for op in OPS for function in FUNCTIONS.get(op, (op,))])
def test_docstrings_follow_the_order_of_the_house(function: str) -> None:
    text = inspect.getdoc(getattr(lamina, function))
    assert text
    places = [text.find(f"\n{heading}") for heading in ("returns", "Error", "Raises", "Devices", "Source")]
    assert -1 not in places
    assert places == sorted(places)


def test_python_never_permutes_a_weight() -> None:
    """Layouts belong to csrc/layout: no transpose or permute in the modules that hold packed weights."""
    for path in sources("python/lamina/ops", suffixes={".py"}):
        if path.name == "dequantize.py":  # transposes scales, and holds no packed weight
            continue
        assert re.findall(r"\.(?:permute|transpose|movedim)\(|\.T\b", code(path).replace("w.T", "")) == [], (
            name(path)
        )


def test_files_of_one_isa_have_only_kernels() -> None:
    """An object file compiled for one ISA may define no weak function: the linker would keep one copy for
    all callers, and that copy may need instructions that the machine lacks. Nor may it define a global
    function, which machines without the ISA would call: it has the records of its kernels, as data."""
    objects = [
        path
        for path in sorted((ROOT / "build").glob("cmake/csrc/CMakeFiles/*/ops/*/cpu/**/*.o"))
        if path.name != "generic.cc.o"
    ]
    if not objects:
        pytest.skip("no build/cmake: the library was not built in this tree")
    for path in objects:
        symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        functions = [line for line in symbols.splitlines() if re.match(r"[0-9a-f]+ [TWui] ", line)]
        assert functions == [], name(path)
