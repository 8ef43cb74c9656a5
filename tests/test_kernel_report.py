"""The report on CUDA kernels: samples of what the tools print, budgets, and small kernels compiled here."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tools import kernel_report
from tools.kernel_report import Budget, Kernel, Source, Usage

# nvcc 13.0 -cubin -arch=sm_80 -Xptxas -v; `helper` is a function that `plain` calls.
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5crowdPKfPfi' for 'sm_80'
ptxas info    : Function properties for _Z5crowdPKfPfi
    272 bytes stack frame, 492 bytes spill stores, 488 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 272 bytes cumulative stack size, 372 bytes cmem[0]
ptxas info    : Compile time = 17.602 ms
ptxas info    : Compiling entry function '_Z5tiledPKiPi' for 'sm_80'
ptxas info    : Function properties for _Z5tiledPKiPi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 1 barriers, 1024 bytes smem, 368 bytes cmem[0]
ptxas info    : Compile time = 1.134 ms
ptxas info    : Compiling entry function '_Z5plainPi' for 'sm_80'
ptxas info    : Function properties for _Z5plainPi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 0 barriers, 128 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 2.115 ms
ptxas info    : Function properties for _Z6helperPii
    128 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
"""
# nvdisasm -c, two kernels, most lines left out. `helper` lies in the section of `plain`.
SASS = """\
\t.target\tsm_90a
//--------------------- .text._Z5tiledPKiPi       --------------------------
\t.section\t.text._Z5tiledPKiPi,"ax",@progbits
\t.align\t128
        .type           _Z5tiledPKiPi,@function
_Z5tiledPKiPi:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*00e0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00f0*/              @!P0 LDGSTS.E.BYPASS.128 [R5], [R2.64] ;
        /*0150*/                   IMMA.16832.S8.S8 R8, R8.ROW, R12.COL, RZ ;
        /*0160*/                   HFMA2.MMA R4, -RZ, RZ, 0, 0 ;
        /*0170*/             @!UP0 UTMALDG.2D [UR8], [UR4] ;
.L_x_5:
        /*01b0*/                   BRA `(.L_x_5);
//--------------------- .text._Z5plainPi          --------------------------
\t.section\t.text._Z5plainPi,"ax",@progbits
_Z5plainPi:
        /*0000*/               @P1 BRA `(.L_x_2) ;
        .type           $_Z5plainPi$_Z6helperPii,@function
$_Z5plainPi$_Z6helperPii:
        /*0470*/                   STL.128 [R1], R4 ;
        /*0640*/                   LDL R0, [R8] ;
"""
KERNEL = """\
#include "ops/tiny/cuda/tiny.cuh"
namespace lamina {
namespace dev::detail {
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) entry(const int* x, int* y, int n) {
  Kernel::run(x, y, n);
}
}  // namespace dev::detail
namespace tiny {
void launch() { dev::detail::entry<Tiny<Config{64, Mode::kTwo}>><<<1, 32>>>(nullptr, nullptr, 1); }
}  // namespace tiny
}  // namespace lamina
"""
HEADER = """\
// tiny:   y[i] = x[i ^ 1]
//
// Budget     %s
#pragma once
// Not the opening comment: regs <= 1
namespace lamina::tiny {
enum class Mode { kOne, kTwo };
struct Config {
  int n;
  Mode mode;
};
namespace {
template <Config kConfig>
struct Tiny {
  static constexpr int kThreads = 1024;
  __device__ static void run(const int* x, int* y, int n) {%s}
};
}  // namespace
}  // namespace lamina::tiny
"""
SHARES = """
    __shared__ int tile[kThreads];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x ^ 1] + kConfig.n;
"""
# 128 live values, where 1024 threads leave 64 registers to each.
SPILLS = """
    int sum[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) sum[i] = x[128 * threadIdx.x + i];
    for (int j = 0; j < n; ++j)
#pragma unroll
      for (int i = 0; i < 128; ++i) sum[i] = sum[i] * sum[(i + 1) % 128] + x[j];
#pragma unroll
    for (int i = 0; i < 128; ++i) y[1024 * i + threadIdx.x] = sum[i];
"""
NAME = "tiny::Tiny<Config{64, (Mode)1}>"

needs_compiler = pytest.mark.skipif(
    not (kernel_report.find_tool("nvcc") and kernel_report.find_tool("nvdisasm")),
    reason="nvcc or nvdisasm is not installed",
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository; the report is as wide as it needs."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    (tmp_path / "csrc/ops/tiny/cuda").mkdir(parents=True)
    return tmp_path


def write(tree: Path, budget: str, body: str) -> None:
    folder = tree / "csrc/ops/tiny/cuda"
    (folder / "tiny.cu").write_text(KERNEL)
    (folder / "tiny.cuh").write_text(HEADER % (budget, body))


def test_ptxas() -> None:
    assert kernel_report.parse_ptxas(PTXAS) == {
        "_Z5crowdPKfPfi": Usage(registers=32, stack_bytes=272, spill_bytes=980, smem_bytes=0),
        "_Z5tiledPKiPi": Usage(registers=16, stack_bytes=0, spill_bytes=0, smem_bytes=1024),
        "_Z5plainPi": Usage(registers=31, stack_bytes=128, spill_bytes=12, smem_bytes=0),
    }
    assert kernel_report.parse_ptxas("ptxas info    : 0 bytes gmem\n") == {}


def test_ptxas_of_another_form_is_an_error() -> None:
    with pytest.raises(ValueError, match="not the output of ptxas -v"):
        kernel_report.parse_ptxas(PTXAS.replace("Used 32 registers", "32 registers"))


def test_sass() -> None:
    opcodes = kernel_report.parse_sass(SASS)
    assert list(opcodes) == ["_Z5tiledPKiPi", "_Z5plainPi"]
    usage = Usage(1, 0, 0, 0)
    tiled, plain = (Kernel(symbol, "90a", usage, counts) for symbol, counts in opcodes.items())
    found = {family: tiled.count(family) for family in kernel_report.FAMILIES if tiled.count(family)}
    assert found == {"IMMA": 1, "LDGSTS": 1, "UTMALDG": 1, "BAR": 1}
    assert tiled.opcodes.total() == 7
    assert tiled.count("IMMA.16832") == 1
    assert tiled.count("IMMA.168") == tiled.count("HMMA") == tiled.count("MMA") == 0
    assert plain.opcodes == {"BRA": 1, "STL.128": 1, "LDL": 1}


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("_Z5plainPi", "plain"),
        ("_ZN6lamina4tiny5plainEPi", "tiny::plain"),
        ("unmangled", "unmangled"),
        (
            "_ZN6lamina3dev6detail5entryINS_9gemm_int839_GLOBAL__N__7d8cd681_7_tiny_cu_8e4b65765SpillEEEvNT_4ArgsE",
            "gemm_int8::Spill",
        ),
        (
            "_ZN6lamina3dev6detail5entryINS_9gemm_int839_GLOBAL__N__7d8cd681_7_tiny_cu_8e4b65764Sm80IXtl"
            "NS3_6ConfigELi256ELi64ELb1ELNS_5CacheE1EEEEEEEvNT_4ArgsE",
            "gemm_int8::Sm80<Config{256, 64, true, (Cache)1}>",
        ),
    ],
)
def test_names(symbol: str, name: str) -> None:
    assert kernel_report.short_name(kernel_report.demangle(symbol)) == name


@pytest.mark.parametrize(
    ("comment", "registers", "opcodes"),
    [
        ("// Budget     tile 64x128: <= 128 regs, 0 spills", {"": 128}, {}),
        (
            "// Budget  regs <= 96; requires SASS: IMMA, LDGSTS, LDSM; else",
            {"": 96},
            {"": "IMMA LDGSTS LDSM"},
        ),
        ("// Budget  regs <= 96 on each SM, requires SASS: IMMA.SP.", {"": 96}, {"": "IMMA.SP"}),
        (
            "// regs <= 128, <= 168 regs on 90a; requires SASS: IMMA, requires SASS on 90a:\n// IGMMA, HGMMA",
            {"": 128, "90a": 168},
            {"": "IMMA", "90a": "IGMMA HGMMA"},
        ),
    ],
)
def test_budget(comment: str, registers: dict[str, int], opcodes: dict[str, str]) -> None:
    budget = kernel_report.parse_budget("x.cuh", f"{comment}\n#pragma once\n// regs <= 7\n")
    assert budget == Budget("x.cuh", registers, {arch: names.split() for arch, names in opcodes.items()})
    assert budget.max_registers("80") == registers[""]
    assert budget.max_registers("90a") == registers.get("90a", registers[""])
    assert budget.required("90a") == opcodes.get("90a", opcodes.get("", "")).split()


@pytest.mark.parametrize("text", ["", "#pragma once\n// regs <= 9\n", "// Data path  smem -> regs -> mma\n"])
def test_no_budget(text: str) -> None:
    assert kernel_report.parse_budget("x.cuh", text) is None


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ("// Budget     128 registers, 0 spills", "without `regs <= N`"),
        ("// requires SASS: IMMA", "without `regs <= N`"),
        ("// regs <= 128; <= 96 regs", "second `regs <= N` for all archs"),
        ("// regs <= 128 on 80; regs <= 96 on 80", "second `regs <= N` on 80"),
        ("// regs <= 128; requires SASS IMMA", "not `requires SASS: A, B`"),
        ("// regs <= 128; requires SASS: imma", "not `requires SASS: A, B`"),
        ("// regs <= 128; requires SASS: IMMA; requires SASS: BAR", "once an arch"),
    ],
)
def test_budget_that_cannot_be_read(comment: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^x.cuh: .*{message}"):
        kernel_report.parse_budget("x.cuh", comment)


def test_every_cuda_source_of_the_library_has_a_budget() -> None:
    for path in kernel_report.ROOT.glob(kernel_report.SOURCES):
        assert kernel_report.read_budgets(kernel_report.ROOT, path), path.name


def test_archs() -> None:
    assert kernel_report.arch_list("") == ["80", "90a"]
    assert (
        kernel_report.arch_list("8.0;9.0a;9.0a+PTX") == kernel_report.arch_list("8.0 9.0a") == ["80", "90a"]
    )
    assert kernel_report.arch_list("8.6+PTX 12.0") == ["86", "120"]


def test_archs_of_a_source() -> None:
    assert kernel_report.archs_of(Path("cuda/sm80_m16.cu"), ["80", "90a"]) == ["80", "90a"]
    assert kernel_report.archs_of(Path("cuda/sm90a_m16.cu"), ["80", "90a"]) == ["90a"]
    assert kernel_report.archs_of(Path("cuda/sm90a_m16.cu"), ["80"]) == []


def test_flags_are_those_of_the_build(tree: Path) -> None:
    source = tree / "csrc/ops/tiny/cuda/tiny.cu"
    assert kernel_report.build_flags(tree, source) == kernel_report.DEFAULT_FLAGS
    command = (
        "/opt/cuda/bin/nvcc -forward-unknown-to-host-compiler -I/work/csrc -O3 -DX='\"a b\"' -std=c++20"
        ' "--generate-code=arch=compute_80,code=[sm_80]" -gencode arch=compute_90a,code=sm_90a -arch=sm_80'
        f" -Xcompiler=-fPIC -MD -MT a.o -MF a.d -x cu -c {source} -o a.o"
    )
    (tree / "build/cmake").mkdir(parents=True)
    entries = [{"file": "other.cu", "command": "nvcc -O0"}, {"file": str(source), "command": command}]
    (tree / kernel_report.COMPILE_COMMANDS).write_text(json.dumps(entries))
    assert kernel_report.build_flags(tree, source) == [
        "-forward-unknown-to-host-compiler",
        "-I/work/csrc",
        "-O3",
        '-DX="a b"',
        "-std=c++20",
        "-Xcompiler=-fPIC",
        "-x",
        "cu",
    ]


GOOD = Usage(registers=96, stack_bytes=0, spill_bytes=0, smem_bytes=4096)
NO_LOCAL = "0 bytes of stack, 0 of spills, 0 local"


@pytest.mark.parametrize(
    ("usage", "opcodes", "seconds", "message"),
    [
        (GOOD, {"IMMA.16832.S8.S8": 8, "LDSM.16.M88.4": 2}, 30.0, None),
        (Usage(97, 0, 0, 0), {"IMMA": 1, "LDSM": 1}, 1.0, "97 registers, x.cuh allows 96"),
        (Usage(9, 8, 0, 0), {"IMMA": 1, "LDSM": 1}, 1.0, NO_LOCAL.replace("0 bytes", "8 bytes")),
        (Usage(9, 0, 4, 0), {"IMMA": 1, "LDSM": 1}, 1.0, NO_LOCAL.replace("0 of", "4 of")),
        (GOOD, {"IMMA": 1, "LDSM": 1, "LDL.64": 2}, 1.0, NO_LOCAL.replace("0 local", "2 local")),
        (GOOD, {"IMMA": 1, "LDSM": 1, "STL": 1}, 1.0, NO_LOCAL.replace("0 local", "1 local")),
        (GOOD, {"IMMAX": 1, "LDSM": 1}, 1.0, "has no IMMA, which x.cuh requires"),
        (GOOD, {}, 1.0, "has no IMMA, LDSM, which x.cuh requires"),
        (GOOD, {"IMMA": 1, "LDSM": 1}, 30.1, "x.cu: 30.1 s to compile, 30 s are allowed"),
    ],
)
def test_check(usage: Usage, opcodes: dict[str, int], seconds: float, message: str | None) -> None:
    loose, tight = Budget("y.cuh", {"": 255}, {}), Budget("x.cuh", {"": 96}, {"": ["IMMA", "LDSM"]})
    kernel = Kernel("_Z5plainPi", "80", usage, Counter(opcodes))
    failures = kernel_report.check(Source("x.cu", [loose, tight], [kernel], seconds))
    assert len(failures) == (message is not None)
    if message:
        assert message in failures[0]
        assert message.startswith("x.cu") or failures[0].startswith("plain on sm_80 (x.cu): ")


def test_a_kernel_needs_a_budget_for_its_arch() -> None:
    kernels = [Kernel("_Z5plainPi", arch, GOOD, Counter()) for arch in ("80", "90a")]
    source = Source("x.cu", [Budget("x.cuh", {"90a": 96}, {})], kernels)
    assert kernel_report.check(source) == ["plain on sm_80 (x.cu): no opening comment says `regs <= N`"]


@needs_compiler
def test_report(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tree, "<= 32 regs; requires SASS: BAR, LDS", SHARES)
    code = kernel_report.main(["--root", str(tree), "--require", "--json", str(tree / "report.json")])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert NAME in shown
    assert "1 kernels in 1 sources for 80, 90a, 0 failures" in shown
    report = json.loads((tree / "report.json").read_text())
    assert [(row["kernel"], row["arch"]) for row in report["rows"]] == [(NAME, "80"), (NAME, "90a")]
    for row in report["rows"]:
        assert 0 < row["registers"] <= row["max_registers"] == 32
        assert row["smem_bytes"] == 4096
        assert row["stack_bytes"] == row["spill_bytes"] == row["instructions"]["STL"] == 0
        assert row["instructions"]["BAR"] == 1
    assert report["seconds"]["csrc/ops/tiny/cuda/tiny.cu"] > 0
    assert report["failures"] == []


@needs_compiler
@pytest.mark.parametrize(
    ("budget", "body", "message"),
    [
        ("regs <= 255", SPILLS, "bytes of stack,"),
        ("regs <= 4", SHARES, "registers, csrc/ops/tiny/cuda/tiny.cuh allows 4"),
        ("<= 32 regs; requires SASS: LDS, IMMA", SHARES, "has no IMMA, which csrc/ops/tiny/cuda/tiny.cuh"),
        ("32 registers", SHARES, "csrc/ops/tiny/cuda/tiny.cuh: a budget without `regs <= N`"),
        ("<= 32 regs", "undefined();", 'error: identifier "undefined" is undefined'),
    ],
    ids=["spills", "registers", "instructions", "no budget", "no kernel"],
)
def test_report_fails(
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    budget: str,
    body: str,
    message: str,
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    write(tree, budget, body)
    code = kernel_report.main(["--root", str(tree), "--json", str(tree / "report.json")])
    shown = capsys.readouterr().out
    (failure,) = json.loads((tree / "report.json").read_text())["failures"]
    assert code == 1
    assert message in failure
    assert f"FAILED {failure}".split("\n")[0] in shown
    assert "for 80, 1 failures" in shown
    if body is SPILLS:
        assert failure.startswith(f"{NAME} on sm_80 (csrc/ops/tiny/cuda/tiny.cu): ")
        assert " 0 of spills" not in failure
        assert " 0 local" not in failure


def test_no_kernels(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernel_report.main(["--root", str(tree), "--require"]) == 0
    assert capsys.readouterr().out == "kernel-report: no csrc/ops/*/cuda/*.cu\n"


@pytest.mark.parametrize("missing", ["nvcc", "nvdisasm"])
def test_a_missing_tool_is_a_visible_skip(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    write(tree, "<= 32 regs", SHARES)
    monkeypatch.setattr(kernel_report, "find_tool", lambda name: None if name == missing else name)
    assert kernel_report.main(["--root", str(tree)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"kernel-report: skipped: no {missing} found; ")
    assert "pip install" in shown
    assert kernel_report.main(["--root", str(tree), "--require"]) == 1
