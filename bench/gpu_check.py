"""Everything there is to know of lamina on this machine's GPU, in one command and a few minutes.

    python bench/gpu_check.py --out DIR [--only gemm_int8] [--prebuilt FOLDER] [--minutes 8] [--dry-run]

Stages: a build or a prebuilt library, the tests marked `gpu`, the device vectors, compute-sanitizer, and the
benchmarks beside torch. Each has its share of the time and a log in DIR/logs; a failure does not stop the
rest. A second run repeats only what did not pass. Results: DIR/<op>.json and DIR/summary.json; a table last.
Needs torch, pytest and numpy; rich is used where it is installed. Exit status 0: nothing failed.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make `bench` importable, from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench.cases import op_names
from bench.gpu.stages import FAILED, PARTIAL, TIMED_OUT, Outcome, Stage, limits, load_outcomes, run_stages
from bench.results_file import Row, load, save
from bench.table import Table, comparison_tables, make_printer, not_timed_lines

ROOT = Path(__file__).resolve().parent.parent
MAIN = "tests/cpp/main.cc"
# By nvcc's name of the GPU that they need; "" is any.
VECTORS = {
    "": ("tests/cpp/device/vectors.cc",),
    "sm_90a": ("tests/cpp/device/vectors_sm90a.cc", "tests/cpp/device/vectors_wgmma.cc"),
}
# Llama-3-8B: qkv, o (4096x4096), gate and up, down. Then with scales along k.
GEMM_SHAPES = "8192x8192,4096x4096,6144x4096,28672x4096,4096x14336,8192x8192g128"
INT4_SHAPES = "8192x8192g128,8192x8192,4096x4096g128,28672x4096g128,4096x14336g128,8192x8192g32"
SUITES = {
    "gemm_int4": ("1,16,32,64,128,256,512,1024,4096", INT4_SHAPES, 150.0),
    "gemm_int4_int8": ("1,16,64,256,1024,4096", INT4_SHAPES, 150.0),
    "gemm_int8": ("1,16,64,256,1024,4096", GEMM_SHAPES, 150.0),
    "quantize_int8": ("1,16,64,256,1024,4096", "4096x4096,8192x8192,14336x14336", 40.0),
}
# Exit codes: of pytest, and of bench/gpu/suite.py.
NO_TESTS, CONTEXT_LOST, OUT_OF_TIME = 5, 3, 4
# Small problems that take every kernel: under racecheck a launch takes a hundred times as long.
SANITIZER_TESTS = "smallest or ragged"
PROBE = """
import json
try:
    import torch
except ImportError as error:
    print(json.dumps({"error": f"{error}"})); raise SystemExit
found = {"torch": torch.__version__, "cuda": torch.version.cuda}
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found.update(name=p.name, compute_capability=[p.major, p.minor])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Gpu:
    name: str
    arch: str  # nvcc's: sm_80


NO_GPU = Gpu("none", "sm_XX")


def find_gpu(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> Gpu | str:
    """This machine's GPU, or why torch has none. In a process of its own: this one needs no torch."""
    try:
        done = run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=300)
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return f"torch could not be asked: {error}"
    if "error" in found:
        return f"torch is not installed: {found['error']}"
    if "name" not in found:
        built = f"built for CUDA {found['cuda']}" if found["cuda"] else "built without CUDA"
        return f"torch {found['torch']} ({built}) sees no CUDA device"
    major, minor = found["compute_capability"]
    # From Hopper on, arch-specific code has instructions that the plain target lacks; it runs on this chip.
    return Gpu(found["name"], f"sm_{major}{minor}{'a' if major >= 9 else ''}")


def cuda_tool(name: str) -> str | None:
    """On the PATH, or where the toolkit is."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = (shutil.which(name, path=str(Path(home) / "bin")) for home in homes if home)
    return shutil.which(name) or next((path for path in found if path), None)


def python_folder(prebuilt: Path | None) -> Path:
    """The folder that holds the package `lamina`."""
    return (ROOT if prebuilt is None else prebuilt.resolve()) / "python"


def has_library(prebuilt: Path | None) -> bool:
    return (python_folder(prebuilt) / "lamina" / "_C.abi3.so").is_file()


def fingerprint(prebuilt: Path | None, gpu: Gpu) -> str:
    """Results of another library or GPU are not continued. A library still to be built: of the GPU alone."""
    library = python_folder(prebuilt) / "lamina" / "_C.abi3.so"
    content = library.read_bytes() if library.is_file() else b""
    return hashlib.sha256(content + gpu.name.encode()).hexdigest()


def make_stages(wanted: argparse.Namespace, gpu: Gpu) -> list[Stage]:
    python = sys.executable
    path = [str(python_folder(wanted.prebuilt)), os.environ.get("PYTHONPATH", "")]
    env = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}
    ops = [wanted.only] if wanted.only else [op for op in SUITES if op in op_names()]
    suffix = f"_{wanted.only}" if wanted.only else ""
    stages = []
    if wanted.build or (wanted.prebuilt is None and not has_library(None)):
        build = (python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", ".")
        stages.append(Stage("build", (build,), 200, env))
    needs = "build" if stages else ""
    check = (python, "bench/gpu/library.py")
    stages.append(Stage("library", (check,), 30, env, needs=needs))
    tests = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    codes = {NO_TESTS: "no tests"}
    by_op = ("-k", wanted.only) if wanted.only else ()
    marked = ("-m", "gpu and not slow", "tests")
    gpu_tests = (*tests, *marked, *by_op)
    stages.append(Stage(f"gpu_tests{suffix}", (gpu_tests,), 100, env, codes, needs="library"))
    stages.append(_vectors(gpu, wanted.out))
    for tool in ("memcheck", "racecheck"):
        stages.append(_sanitizer(tool, suffix, (*tests, "-x", *marked), wanted, env))
    for op in ops:
        ms, shapes, share = SUITES[op]
        result = str(wanted.out / f"{op}.json")
        suite = (python, "bench/gpu/suite.py", op, "--m", ms, "--shapes", shapes, "--json", result)
        stages.append(
            Stage(
                f"bench_{op}",
                ((*suite, "--seconds", "{seconds}"),),
                share,
                env,
                {OUT_OF_TIME: PARTIAL},
                CONTEXT_LOST,
                needs="library",
            )
        )
    return stages


def _vectors(gpu: Gpu, out: Path) -> Stage:
    """tests/cpp/device as a program for this GPU."""
    nvcc = cuda_tool("nvcc")
    sources = [MAIN, *VECTORS[""], *VECTORS.get(gpu.arch, ())]
    missing = [source for source in sources if not (ROOT / source).is_file()]
    skip = f"{missing[0]} is not there" if missing else "" if nvcc else "nvcc not found"
    program, number = str(out / "build" / "vectors"), gpu.arch.removeprefix("sm_")
    flags = (
        *("-x", "cu", "-std=c++20", "--expt-relaxed-constexpr", "-fmad=false", "-Icsrc", "-Itests/cpp"),
        # Not -arch, which adds PTX of the plain compute capability: it has no wgmma.
        *("-gencode", f"arch=compute_{number},code=sm_{number}"),
    )
    build = (nvcc or "nvcc", *flags, *sources, "-o", program)
    return Stage("device_vectors", (build, (program,)), 60, skip=skip)


def _sanitizer(
    tool: str, suffix: str, tests: tuple[str, ...], wanted: argparse.Namespace, env: dict[str, str]
) -> Stage:
    found = cuda_tool("compute-sanitizer")
    chosen = f"({wanted.sanitizer_tests}) and {wanted.only}" if wanted.only else wanted.sanitizer_tests
    options = ("--tool", tool, "--error-exitcode", "99", "--target-processes", "application-only")
    only_ours = ("--kernel-name", "kns=lamina")  # kernels whose mangled name has it
    command = (found or "compute-sanitizer", *options, *only_ours, *tests, "-k", chosen)
    # Without torch's cache every tensor is an allocation of its own, so that memcheck sees its end.
    env = {**env, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    skip = "" if found else "compute-sanitizer not found"
    codes = {NO_TESTS: "no tests"}
    return Stage(f"{tool}{suffix}", (command,), 45, env, codes, skip=skip, needs="library")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench/gpu_check.py"
    )
    made.add_argument("--out", type=Path, required=True, help="folder of results and logs; continued")
    made.add_argument("--only", choices=sorted(SUITES), help="one op")
    made.add_argument(
        "--prebuilt", type=Path, help="folder with python/lamina, compiled; default: this checkout"
    )
    made.add_argument("--build", action="store_true", help="build this checkout though it has a library")
    made.add_argument("--minutes", type=float, default=8.0, help="for all stages (default: 8)")
    made.add_argument("--sanitizer-tests", default=SANITIZER_TESTS, help="pytest -k under compute-sanitizer")
    made.add_argument("--fresh", action="store_true", help="forget what an earlier run left in DIR")
    made.add_argument("--dry-run", action="store_true", help="print the stages and their commands")
    return made


def check_request(wanted: argparse.Namespace) -> str | None:
    if wanted.minutes <= 0:
        return f"--minutes: got {wanted.minutes:g}; must be above 0"
    if wanted.prebuilt is not None and wanted.build:
        return "--build: not allowed with --prebuilt"
    if wanted.prebuilt is not None and not has_library(wanted.prebuilt):
        return f"--prebuilt: {wanted.prebuilt} has no python/lamina/_C.abi3.so"
    return None


def describe(stages: Sequence[Stage], seconds: float) -> list[str]:
    """The stages as a dry run prints them."""
    runnable = [stage for stage in stages if not stage.skip]
    seconds_of = dict(zip((stage.name for stage in runnable), limits(runnable, seconds), strict=True))
    lines = []
    for stage in stages:
        limit = f"skipped: {stage.skip}" if stage.skip else f"at most {seconds_of[stage.name]:.0f} s"
        lines.append(f"{stage.name}  ({limit})")
        lines.extend(f"    {shlex.join(command)}" for command in stage.commands)
    return lines


def result_rows(out: Path) -> list[Row]:
    rows: list[Row] = []
    for op in SUITES:
        path = out / f"{op}.json"
        if path.is_file():
            rows.extend(load(path).rows)
    return rows


def stage_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("stages", ("stage", "status", "detail", "seconds"), left=3)
    for outcome in outcomes:
        status = outcome.status + (" (earlier run)" if outcome.resumed else "")
        table.add([outcome.name, status, outcome.detail[:90], f"{outcome.seconds:.0f}"])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    wanted = parser().parse_args(arguments)
    if problem := check_request(wanted):
        print(problem, file=sys.stderr)
        return 2
    wanted.out = wanted.out.resolve()
    gpu = find_gpu()
    if wanted.dry_run:
        print(f"GPU: {gpu}" if isinstance(gpu, str) else f"GPU: {gpu.name}, {gpu.arch}")
        stages = make_stages(wanted, NO_GPU if isinstance(gpu, str) else gpu)
        print("\n".join(describe(stages, wanted.minutes * 60)))
        return 0
    if isinstance(gpu, str):
        print(f"no GPU: {gpu}", file=sys.stderr)
        return 1
    return check(wanted, gpu)


def check(wanted: argparse.Namespace, gpu: Gpu) -> int:
    """Runs the stages, writes summary.json after each and prints the tables."""
    out: Path = wanted.out
    (out / "build").mkdir(parents=True, exist_ok=True)
    if wanted.fresh or wanted.build:
        for path in (out / "summary.json", *(out / f"{op}.json" for op in SUITES)):
            path.unlink(missing_ok=True)
    show = make_printer()
    earlier = load_outcomes(out / "summary.json", fingerprint(wanted.prebuilt, gpu))
    ended = dict(earlier)

    def write() -> None:
        results = [f"{op}.json" for op in SUITES if (out / f"{op}.json").is_file()]
        content = {
            "fingerprint": fingerprint(wanted.prebuilt, gpu),
            "gpu": {"name": gpu.name, "arch": gpu.arch},
            "stages": [outcome.to_json() for outcome in ended.values()],
            "results": results,
        }
        save(out / "summary.json", content)

    def report(event: Outcome | Stage, limit_s: float) -> None:
        if isinstance(event, Stage):
            show(f"{event.name}: at most {limit_s:.0f} s")
            return
        ended[event.name] = event
        show(f"{event.name}: {event.status} after {event.seconds:.0f} s  {event.detail}")
        write()

    show(f"GPU: {gpu.name}, {gpu.arch}; results in {out}")
    outcomes = run_stages(make_stages(wanted, gpu), out, ROOT, wanted.minutes * 60, earlier, report)
    rows = result_rows(out)
    for line in not_timed_lines([row for row in rows if row["impl"] == "lamina"]):
        show(line)
    for table in [stage_table(outcomes), *comparison_tables(rows)]:
        show(table)
    return 1 if any(outcome.status in (FAILED, TIMED_OUT) for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
