"""The stages of gpu_check.py, most valuable first, and the share of the time that each may take."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

from bench.gpu import prepare
from bench.gpu.find import PRETENDED, REHEARSAL, TARGET_VARIABLE, Gpu, cuda_tool
from bench.gpu.stages import SECONDS, Stage

ROOT = Path(__file__).resolve().parents[2]
STALL_S = 40.0  # a benchmark that prints nothing for so long has hung
SAMPLES = "50"
LIBRARY_SHARE = 120.0  # a minute, nearly all left over: without it nothing runs, and a disk may be slow


@dataclass(frozen=True)
class Suite:
    """The cases of one op. The shapes `first` of all ops are measured before the shapes `more` of any op.

    Without `ms`, `first` and `more` are --cases of suite.py.
    """

    ms: str
    first: str
    more: str
    share: float
    weight_dtypes: str = ""

    def arguments(self, kind: str) -> tuple[str, ...]:
        shapes: str = getattr(self, kind)
        weights = ("--weight-dtypes", self.weight_dtypes) if self.weight_dtypes else ()
        return ("--m", self.ms, "--shapes", shapes, *weights) if self.ms else ("--cases", shapes)


def _attention(*cases: str) -> str:
    return "; ".join(f"scenario={case}" for case in cases)


# Llama-3-8B: qkv, o (4096x4096), gate and up, down; 8 KV heads and 32 heads of 128.
SUITES = {
    "gemm_int4": Suite(
        "1,16,32,64,128,256,512,1024,4096",
        "8192x8192g128",
        "8192x8192,4096x4096g128,28672x4096g128,4096x14336g128,8192x8192g32",
        50,
    ),
    "gemm_int8": Suite(
        "1,16,64,256,1024,4096",
        "8192x8192",
        "4096x4096,6144x4096,28672x4096,4096x14336,8192x8192g128",
        45,
    ),
    "gemm_int4_int8": Suite(
        "1,16,64,256,1024,4096",
        "8192x8192g128",
        "8192x8192,4096x4096g128,28672x4096g128,4096x14336g128,8192x8192g32",
        45,
    ),
    "matmul_sparse24": Suite(
        "1,16,64,256,1024", "8192x8192", "4096x4096,28672x4096", 60, "int4,bf16,int8,int4_int8"
    ),
    "quantize_int8": Suite("1,16,64,256,1024,4096", "8192x8192", "4096x4096,14336x14336", 20),
    # Rows of the hidden size and of the intermediate size. k is not used.
    "rms_norm_int8": Suite("1,16,256,4096", "4096x1", "8192x1", 5),
    "silu_mul_int8": Suite("1,16,256,4096", "14336x1", "28672x1", 5),
    "rms_norm": Suite("1,16,256,4096", "4096x1", "8192x1", 5),
    "silu_mul": Suite("1,16,256,4096", "14336x1", "28672x1", 5),
    # 32/8 heads of 128. A skewed batch of 32 has one request of 128K keys and 31 of 1K.
    "paged_attention": Suite(
        "",
        _attention(
            "decode batch=32 kv_dtype=bf16,int8,fp8",
            "decode batch=1",
            "verify batch=32 tokens=8",
            "prefill context=16384",
            "skewed batch=32 context=16384",
        ),
        _attention(
            "decode batch=32 page=1",
            "decode batch=32 page=128",
            "decode batch=8 context=32768",
            "verify batch=32 tokens=16 kv_dtype=bf16,int8,fp8",
            "verify batch=1 tokens=8 context=32768",
            "prefill context=4096",
            "mixed batch=32",
            "decode batch=32 kv_dtype=int8 page=128",
        ),
        70,
    ),
    # Heads x head_dim: KV heads that are stored, and query heads whose parts are merged.
    "paged_kv": Suite("1,32,256,4096", "8x128", "1x256", 10),
    # Rows of 128K logits; k is top_k, or no limit.
    "sample": Suite("1,64,384", "128256x50", "128256x128256", 10),
    "merge_attention_states": Suite("1,32,256,4096", "32x128", "32x64", 10),
}
TINY = Suite("3", "48x80", "40x96", 10)  # of a rehearsal
SMALL = "batch=3 context=40 heads=4/2 head_dim=16 tokens=5 page=7"
TINY_ATTENTION = Suite("", _attention(f"decode {SMALL}"), _attention(f"verify {SMALL}"), 10)


def python_folder(prebuilt: Path | None) -> Path:
    """The folder that holds the package `lamina`."""
    return (ROOT if prebuilt is None else prebuilt.resolve()) / "python"


def library_file(prebuilt: Path | None) -> Path:
    return python_folder(prebuilt) / "lamina" / "_C.abi3.so"


def make_stages(wanted: Namespace, gpu: Gpu, work: Path) -> list[Stage]:
    """The stages of this run, which write results and logs to `work`."""
    path = [str(python_folder(wanted.prebuilt)), os.environ.get("PYTHONPATH", "")]
    env = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}
    if wanted.dry_run:
        env |= {TARGET_VARIABLE: os.environ.get(TARGET_VARIABLE, REHEARSAL), "OMP_NUM_THREADS": "1"}
    suffix = f"_{wanted.only}" if wanted.only else ""
    only = ("--only", wanted.only) if wanted.only else ()
    smoke = ("--smoke", str(work / "smoke.json"))

    def program(name: str, *arguments: str) -> tuple[tuple[str, ...], ...]:
        return ((sys.executable, f"bench/gpu/{name}.py", *arguments, "--seconds", SECONDS),)

    def kernels(name: str, share: float, *arguments: str, skip: str, advises: bool = False) -> Stage:
        files = ("--json", str(work / f"{name}.json"), "--logs", str(work / "logs" / name))
        commands = program("kernels", *files, *only, *arguments)
        return Stage(f"{name}{suffix}", commands, share, env, skip=skip, needs="library", advises=advises)

    def sanitizer(tool: str, share: float, *, advises: bool) -> Stage:
        found = cuda_tool("compute-sanitizer")
        skip = _lacks(gpu, "numpy", "pytest") or ("" if found else "compute-sanitizer not found")
        options = (*smoke, "--tool", tool, "--sanitizer", str(found))
        return kernels(tool, share, *options, skip=skip, advises=advises)

    def benchmarks(kind: str, prefix: str, factor: float) -> list[Stage]:
        made = []
        for op, suite in SUITES.items():
            if wanted.only in (None, op):
                if wanted.dry_run:
                    tiny = TINY if suite.ms else TINY_ATTENTION
                    suite = replace(tiny, weight_dtypes=suite.weight_dtypes)
                cases = (*suite.arguments(kind), "--samples", SAMPLES)
                commands = program("suite", op, *cases, *smoke, "--json", str(work / f"{op}.json"))
                lacks = _lacks(gpu, "numpy")
                made.append(
                    Stage(
                        f"{prefix}_{op}",
                        commands,
                        suite.share * factor,
                        env,
                        STALL_S,
                        skip=lacks,
                        needs="library",
                    )
                )
        return made

    tests = program("run_tests", "--log", str(work / "tests.jsonl"), *only, *smoke)
    build = [Stage("build", (prepare.BUILD,), 200, env)] if _must_build(wanted) else []
    check = Stage(
        "library",
        ((sys.executable, "bench/gpu/library.py"),),
        LIBRARY_SHARE,
        env,
        needs="build" if build else "",
    )
    return [
        *build,
        check,
        kernels("smoke", 90, skip=_lacks(gpu, "numpy", "pytest")),
        Stage(
            f"gpu_tests{suffix}",
            tests,
            180,
            env,
            skip=_lacks(gpu, "numpy", "pytest", "hypothesis"),
            needs="library",
        ),
        _vectors(wanted.prebuilt, gpu, work),
        sanitizer("memcheck", 80, advises=False),
        *benchmarks("first", "bench", 1),
        _host_time(wanted.prebuilt, gpu, work, env),
        sanitizer("racecheck", 40, advises=True),
        *benchmarks("more", "more", 0.8),
    ]


def _host_time(prebuilt: Path | None, gpu: Gpu, work: Path, env: dict[str, str]) -> Stage:
    device = "emulator" if gpu == PRETENDED else "cuda"
    command = (
        *(sys.executable, "bench/host_time.py"),
        *("--device", device, "--json", str(work / "host_time.json")),
    )
    emulated = library_file(prebuilt).with_name("_emu.abi3.so")
    missing = f"no {emulated.name} beside the library: it has the op that does nothing"
    skip = "" if emulated.is_file() else missing
    return Stage("host_time", (command,), 15, env, skip=skip, needs="library")


def _must_build(wanted: Namespace) -> bool:
    is_there = wanted.prebuilt is not None or wanted.dry_run or library_file(None).is_file()
    return bool(wanted.build) or not is_there


def _lacks(gpu: Gpu, *packages: str) -> str:
    missing = [name for name in packages if name in gpu.missing]
    return f"{' and '.join(missing)} not installed" if missing else ""


def _vectors(prebuilt: Path | None, gpu: Gpu, work: Path) -> Stage:
    """The stage of tests/cpp/device: runs the prepared program, or builds one here."""
    ready = prepare.vectors_program(prebuilt.resolve(), gpu.arch) if prebuilt else None
    if ready and ready.is_file():
        with contextlib.suppress(OSError):
            ready.chmod(0o755)  # copying to this machine may have dropped the mode
        return Stage("device_vectors", ((str(ready),),), 20)
    if gpu == PRETENDED:
        return Stage("device_vectors", (), 20, skip="a rehearsal has no GPU to run the vectors")
    nvcc = cuda_tool("nvcc")
    skip = "" if nvcc else f"no {ready.name} in --prebuilt and no nvcc" if ready else "nvcc not found"
    program = work / "vectors"
    return Stage(
        "device_vectors",
        (prepare.vectors_command(gpu.arch, program, nvcc or "nvcc"), (str(program),)),
        60,
        skip=skip,
    )
