"""The report on CUDA kernels: samples of what the tools print, budgets, and small kernels compiled here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tools import kernel_report
from tools.kernel_report import Budget, Kernel, Source, Usage

# cuobjdump -res-usage -sass of an object that nvcc 13.0 made; most lines are left out.
DUMP = """

Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z5plainPi:
  REG:31 STACK:128 SHARED:0 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z5tiledPKiPi:
  REG:16 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:368 TEXTURE:0 SURFACE:0 SAMPLER:0

\tcode for sm_80
\t.target\tsm_80

\t\tFunction : _Z5tiledPKiPi
\t.headerflags\t@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                    /* 0x00000a00ff017b82 */
                                                                             /* 0x000fe20000000800 */
        /*00e0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;             /* 0x0000000000007b1d */
        /*00f0*/              @!P0 LDGSTS.E.BYPASS.128 [R5], [R2.64] ;       /* 0x0000000002058fae */
        /*0150*/                   IMMA.16832.S8.S8 R8, R8.ROW, R12.COL, RZ ; /* 0x0000000c08087237 */
        /*0160*/                   HFMA2.MMA R4, -RZ, RZ, 0, 0 ;             /* 0x00000000ff047435 */
        /*0170*/             @!UP0 UTMALDG.2D [UR8], [UR4] ;                 /* 0x00000008040075b4 */
        /*01b0*/                   BRA 0x1b0;                                /* 0xfffffff000007947 */
\t\t..........


\t\tFunction : _Z5plainPi
\t.headerflags\t@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/               @P1 BRA 0x470 ;                               /* 0x0000000000007918 */
        /*0470*/                   STL.128 [R1], R4 ;                        /* 0x0000000401007387 */
        /*0640*/                   LDL R0, [R8] ;                            /* 0x0000000008007983 */

Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z5plainPi:
  REG:32 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:632 TEXTURE:0 SURFACE:0 SAMPLER:0

\tcode for sm_90a
\t\tFunction : _Z5plainPi
        /*0000*/                   EXIT ;                                    /* 0x000000000000794d */

Fatbin ptx code:
================
arch = sm_90
"""
ARRIVE = "        /*01a0*/                   WARPGROUP.ARRIVE ;  /* 0x0 */\n"
WGMMA = "        /*01c0*/                   HGMMA.64x8x16.F32 R24, gdesc[UR16], R24, gsb0 ;  /* 0x0 */\n"
WAIT = "        /*01e0*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;  /* 0x0 */\n"
WAIT_FOR_OLDER = WAIT.replace("0x0 ;", "0x1 ;")
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
OBJECT = "tiny.cu.o"
FOLDER = "csrc/ops/tiny/cuda"
GOOD = Usage(registers=96, stack_bytes=0, smem_bytes=4096)
NO_LOCAL = "0 bytes of stack, 0 local"


NVCC = shutil.which(
    os.environ.get("CUDACXX", "nvcc"), path=f"{os.environ['PATH']}{os.pathsep}/usr/local/cuda/bin"
)
needs_compiler = pytest.mark.skipif(
    not (NVCC and kernel_report.find_tools()), reason="nvcc, cuobjdump or nvdisasm is not installed"
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository; the report is as wide as it needs."""
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / FOLDER).mkdir(parents=True)
    return tmp_path


def write(tree: Path, budget: str, body: str, archs: tuple[str, ...] = ("80", "90a")) -> None:
    """The source, and the build of it that CMake and ninja would have left."""
    source, build = tree / FOLDER / "tiny.cu", tree / kernel_report.BUILD
    source.write_text(KERNEL)
    source.with_suffix(".cuh").write_text(HEADER % (budget, body))
    build.mkdir(parents=True)
    for_archs = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    command = [
        str(NVCC),
        "-std=c++20",
        "-Icsrc",
        *for_archs,
        "-c",
        str(source),
        "-o",
        str(build / OBJECT),
    ]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    entry = {"directory": str(build), "file": str(source), "output": OBJECT}
    other = {"directory": str(build), "file": str(tree / "csrc/device/info.cu"), "output": "info.cu.o"}
    (build / "compile_commands.json").write_text(json.dumps([other, entry]))
    log = "# ninja log v7\n10\t900\t5\ttiny.cu.o\tabc\n1000\t3500\t6\ttiny.cu.o\tdef\n"
    (build / ".ninja_log").write_text(log)


def test_dump() -> None:
    kernels = kernel_report.parse_dump(DUMP)
    assert [(kernel.name, kernel.arch, kernel.usage) for kernel in kernels] == [
        ("plain", "80", Usage(registers=31, stack_bytes=128, smem_bytes=0)),
        ("tiled", "80", Usage(registers=16, stack_bytes=0, smem_bytes=1024)),
        ("plain", "90a", Usage(registers=32, stack_bytes=0, smem_bytes=1024)),
    ]
    plain, tiled, other = kernels
    found = {family: tiled.count(family) for family in kernel_report.FAMILIES if tiled.count(family)}
    assert found == {"IMMA": 1, "LDGSTS": 1, "UTMALDG": 1, "BAR": 1}
    assert tiled.opcodes.total() == 7
    assert tiled.count("IMMA.16832") == 1
    assert tiled.count("IMMA.168") == tiled.count("HMMA") == tiled.count("MMA") == 0
    assert plain.opcodes == {"BRA": 1, "STL.128": 1, "LDL": 1}
    assert other.opcodes == {"EXIT": 1}
    assert kernel_report.parse_dump("\nmember a.cc.o\n") == []


@pytest.mark.parametrize("old", ["REG:31", "Function : _Z5plainPi", "arch = sm_80"])
def test_a_dump_of_another_form_is_an_error(old: str) -> None:
    with pytest.raises(ValueError, match="not the output of cuobjdump"):
        kernel_report.parse_dump(DUMP.replace(old, "something else"))


@pytest.mark.parametrize(
    ("code", "is_serialized"),
    [
        ("", False),
        (ARRIVE + WGMMA + WAIT, False),  # one has none to wait for
        (2 * (ARRIVE + WGMMA + WAIT), True),
        (ARRIVE + 2 * WGMMA + WAIT, False),
        (2 * (ARRIVE + WGMMA + WAIT_FOR_OLDER) + WAIT, False),
        (ARRIVE + WGMMA + WAIT + 2 * (ARRIVE + WGMMA + WAIT_FOR_OLDER) + WAIT, False),
    ],
)
def test_wgmmas_that_ptxas_serialized(code: str, is_serialized: bool) -> None:
    assert kernel_report.are_wgmmas_serialized(code) == is_serialized
    kernel = Kernel("_Z5plainPi", "90a", GOOD, Counter(), is_serialized)
    failures = kernel_report.check(Source("x.cu", [Budget("x.cuh", {"": 96}, {})], [kernel]))
    assert [failure.partition("): ")[2] for failure in failures] == [
        "each wgmma is waited for before the next, ptxas serialized them"
    ] * is_serialized


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


@pytest.mark.parametrize(
    ("usage", "opcodes", "seconds", "message"),
    [
        (GOOD, {"IMMA.16832.S8.S8": 8, "LDSM.16.M88.4": 2}, 60.0, None),
        (Usage(97, 0, 0), {"IMMA": 1, "LDSM": 1}, 1.0, "97 registers, x.cuh allows 96"),
        (Usage(9, 8, 0), {"IMMA": 1, "LDSM": 1}, 1.0, NO_LOCAL.replace("0 bytes", "8 bytes")),
        (GOOD, {"IMMA": 1, "LDSM": 1, "LDL.64": 2}, 1.0, NO_LOCAL.replace("0 local", "2 local")),
        (GOOD, {"IMMA": 1, "LDSM": 1, "STL": 1}, 1.0, NO_LOCAL.replace("0 local", "1 local")),
        (GOOD, {"IMMAX": 1, "LDSM": 1}, 1.0, "has no IMMA, which x.cuh requires"),
        (GOOD, {}, 1.0, "has no IMMA, LDSM, which x.cuh requires"),
        (GOOD, {"IMMA": 1, "LDSM": 1}, 240.1, "x.cu: 240.1 s to compile, 240 s are allowed"),
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
    for row, reserved in zip(report["rows"], (0, 1024), strict=True):
        assert 0 < row["registers"] <= row["max_registers"] == 32
        assert row["smem_bytes"] == 4096 + reserved
        assert row["stack_bytes"] == row["instructions"]["STL"] == 0
        assert row["instructions"]["BAR"] == 1
    cores = len(os.sched_getaffinity(0))
    assert report["seconds"] == {f"{FOLDER}/tiny.cu": round(2.5 * cores / (cores + 2), 2)}
    assert report["failures"] == []


@needs_compiler
@pytest.mark.parametrize(
    ("budget", "body", "message"),
    [
        ("regs <= 255", SPILLS, "bytes of stack,"),
        ("regs <= 4", SHARES, f"registers, {FOLDER}/tiny.cuh allows 4"),
        ("<= 32 regs; requires SASS: LDS, IMMA", SHARES, f"has no IMMA, which {FOLDER}/tiny.cuh"),
        ("32 registers", SHARES, f"{FOLDER}/tiny.cuh: a budget without `regs <= N`"),
    ],
    ids=["spills", "registers", "instructions", "no budget"],
)
def test_report_fails(
    tree: Path, capsys: pytest.CaptureFixture[str], budget: str, body: str, message: str
) -> None:
    write(tree, budget, body, archs=("80",))
    code = kernel_report.main(["--root", str(tree), "--json", str(tree / "report.json")])
    shown = capsys.readouterr().out
    (failure,) = json.loads((tree / "report.json").read_text())["failures"]
    assert code == 1
    assert message in failure
    assert f"FAILED {failure}" in shown
    assert "for 80, 1 failures" in shown
    if body is SPILLS:
        assert failure.startswith(f"{NAME} on sm_80 ({FOLDER}/tiny.cu): ")
        assert " 0 local" not in failure


@needs_compiler
def test_an_object_that_is_gone_is_a_failure(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tree, "<= 32 regs", SHARES, archs=("80",))
    (tree / kernel_report.BUILD / OBJECT).unlink()
    assert kernel_report.main(["--root", str(tree)]) == 1
    assert f"FAILED {FOLDER}/tiny.cu: cuobjdump" in capsys.readouterr().out


def test_no_kernels(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kernel_report.main(["--root", str(tree)]) == 0
    assert capsys.readouterr().out.startswith("kernel-report: skipped: build/cmake has no object")
    assert kernel_report.main(["--root", str(tree), "--require"]) == 1


def test_missing_tools_are_a_visible_skip(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel_report, "built_objects", lambda root: {root / "x.cu": (root / "x.cu.o", 1.0)})
    monkeypatch.setattr(kernel_report, "find_tools", lambda: None)
    assert kernel_report.main(["--root", str(tree)]) == 0
    assert capsys.readouterr().out.startswith(
        "kernel-report: skipped: no cuobjdump and nvdisasm: pip install"
    )
    assert kernel_report.main(["--root", str(tree), "--require"]) == 1
