"""The cost of each CUDA kernel, and whether it keeps the budget in its header: make kernel-report.

Nothing is compiled: cuobjdump reads the objects of csrc/ops/*/cuda/*.cu in build/cmake. A cubin says
registers, stack and static shared memory of each kernel (with 1024 bytes that sm_90 reserves); the
disassembly shows which instructions the kernel is made of. Fails on a stack frame, a local load or store (so
on every spill), wgmmas that ptxas serialized, a source that took more than 60 s, or than 15 s for each of
its kernels and archs, a kernel without a budget, and a kernel that is not within it.

A budget stands in the comment that opens the .cu, or a .cuh that the .cu itself includes, and holds for
every kernel of that .cu. The lines of the comment are read as one text, in which count:

    regs <= 128                            registers of a thread; `<= 128 regs` says the same
    requires SASS: IMMA, LDGSTS, LDSM      opcodes that each kernel contains; IMMA is IMMA.16832.S8.S8 too
    regs <= 168 on 90a                     for sm_90a instead of what the comment says of all archs
    requires SASS on 90a: IGMMA, UTMALDG

Seconds are wall time, from ninja's log of the newest compilation of a source, all archs together: next to
nothing where ccache had the object. A source should need no more than 30 s; the limit allows for a busy
machine.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
BUILD = "build/cmake"
SOURCES = "csrc/ops/*/cuda/*.cu"
WRITTEN = "build/cmake/csrc/kernels/*.cu"  # by CMake, from the rows of kernels.inc
MAX_SECONDS, MAX_SECONDS_OF_KERNEL = 240, 60  # a slow machine needs four times as long as a fast one
FAMILIES = ("IMMA", "HMMA", "IGMMA", "HGMMA", "LDGSTS", "UTMALDG", "UTMASTG", "LDSM", "BAR", "LDL", "STL")
TOOLS = ("cuobjdump", "nvdisasm")  # the first runs the second
NO_OBJECTS = "build/cmake has no object of a CUDA kernel: no nvcc was found when it was built"
NO_TOOLS = (
    "no cuobjdump and nvdisasm: pip install -c constraints.txt nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
)


@dataclass(frozen=True)
class Usage:
    """The facts in the cubin about one kernel, with the device functions that it calls."""

    registers: int
    stack_bytes: int
    smem_bytes: int


@dataclass(frozen=True)
class Budget:
    """The limits and demands of one opening comment, by arch; "" stands for an arch without its own line."""

    file: str
    registers: dict[str, int]
    opcodes: dict[str, list[str]]

    def max_registers(self, arch: str) -> int | None:
        return self.registers.get(arch, self.registers.get(""))

    def required(self, arch: str) -> list[str]:
        return self.opcodes.get(arch, self.opcodes.get("", []))


@dataclass(frozen=True)
class Kernel:
    """One kernel in one cubin."""

    symbol: str
    arch: str
    usage: Usage
    opcodes: Counter[str]
    is_serialized: bool = False

    @property
    def name(self) -> str:
        return short_name(demangle(self.symbol))

    def count(self, opcode: str) -> int:
        """Instructions `opcode`, with whatever modifiers."""
        return sum(n for full, n in self.opcodes.items() if f"{full}.".startswith(f"{opcode}."))


@dataclass
class Source:
    """One .cu file of the build."""

    file: str
    budgets: list[Budget] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    seconds: float = 0
    failures: list[str] = field(default_factory=list)

    def max_registers(self, arch: str) -> int | None:
        allowed = [budget.max_registers(arch) for budget in self.budgets]
        return min((registers for registers in allowed if registers is not None), default=None)


INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", flags=re.MULTILINE)


def parse_dump(text: str) -> list[Kernel]:
    """The kernels in what cuobjdump -res-usage -sass prints of one object, in its order."""
    kernels = []
    for cubin in re.split(r"^Fatbin elf code:$", text, flags=re.MULTILINE)[1:]:
        arch = re.search(r"^arch = sm_(\w+)$", cubin, flags=re.MULTILINE)
        usages = re.findall(r" Function (\S+):\n +REG:(\d+) STACK:(\d+) SHARED:(\d+) ", cubin)
        parts = re.split(r"^\s+Function : (\S+)$", cubin, flags=re.MULTILINE)
        code = dict(zip(parts[1::2], parts[2::2], strict=True))
        if not arch or {symbol for symbol, *_ in usages} != set(code):
            raise ValueError(f"not the output of cuobjdump that this script knows:\n{cubin[:1000]}")
        for symbol, *numbers in usages:
            opcodes = Counter(INSTRUCTION.findall(code[symbol]))
            usage = Usage(*map(int, numbers))
            kernels.append(Kernel(symbol, arch[1], usage, opcodes, are_wgmmas_serialized(code[symbol])))
    return kernels


def are_wgmmas_serialized(code: str) -> bool:
    """Whether each of several is waited for before the next: ptxas gave up on running them asynchronously."""
    steps = re.findall(r"\b([HIQ]GMMA)\.|\bWARPGROUP\.DEPBAR\.LE gsb0, (0x0) ", code)
    waited = sum(bool(wgmma and wait) for (wgmma, _), (_, wait) in itertools.pairwise(steps))
    return 1 < sum(bool(wgmma) for wgmma, _ in steps) == waited


def opening_comment(text: str) -> list[str]:
    """The // lines that a file starts with, without the slashes."""
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("//")), len(lines))
    return [line.removeprefix("//").strip() for line in lines[:end]]


def parse_budget(file: str, text: str) -> Budget | None:
    """None where there is none; ValueError where it cannot be read."""
    lines = opening_comment(text)
    comment = " ".join(lines)
    registers: dict[str, int] = {}
    for match in re.finditer(r"(?:\bregs <= (\d+)|<= (\d+) regs)\b(?: on (\d+[af]?)\b)?", comment):
        arch = match[3] or ""
        if arch in registers:
            raise ValueError(f"{file}: a second `regs <= N` {f'on {arch}' if arch else 'for all archs'}")
        registers[arch] = int(match[1] or match[2])
    opcode = r"[A-Z][A-Z0-9]*(?:\.[A-Z0-9]+)*"
    opcodes: dict[str, list[str]] = {}
    for match in re.finditer(rf"\brequires SASS(?: on (\d+[af]?))?: ({opcode}(?:, {opcode})*)", comment):
        opcodes[match[1] or ""] = match[2].split(", ")
    if comment.count("requires SASS") != len(opcodes):
        raise ValueError(f"{file}: not `requires SASS: A, B` or `requires SASS on ARCH: A, B`, once an arch")
    if not registers and (opcodes or any(re.match(r"Budget\b", line) for line in lines)):
        raise ValueError(f"{file}: a budget without `regs <= N`")
    return Budget(file, registers, opcodes) if registers else None


def demangle(symbol: str) -> str:
    function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    function.argtypes, function.restype = [ctypes.c_char_p, *[ctypes.c_void_p] * 3], ctypes.c_char_p
    name: bytes | None = function(symbol.encode(), None, None, None)
    return name.decode() if name else symbol


def short_name(demangled: str) -> str:
    """gemm_int8::Sm80<Config{16, 64}> of `void lamina::dev::...<...Sm80<...> >(...::Args)`: a kernel is a
    type, and its __global__ function the instance, for that type, of a template in lamina::dev."""
    name = demangled.replace("(anonymous namespace)::", "").replace("> >", ">>").replace("> >", ">>")
    name = re.sub(r"^void ", "", name)
    if template := re.match(r"lamina::dev::[\w:]+<", name):
        depth, end = 1, template.end()
        while depth:
            depth += {"<": 1, ">": -1}.get(name[end], 0)
            end += 1
        name = name[template.end() : end - 1]
    else:
        name = re.sub(r"\([^()]*\)$", "", name)
    name = re.sub(r"\blamina::", "", name)
    space = re.match(r"(?:\w+::)+", name)
    return space[0] + name[space.end() :].replace(space[0], "") if space else name


def find_tools() -> str | None:
    """A PATH with both tools, those of the registry's packages before the machine's own; None without one."""
    homes = [sysconfig.get_path("purelib") + "/nvidia/cu13", os.environ.get("CUDA_HOME", "/usr/local/cuda")]
    path = os.pathsep.join([*(f"{home}/bin" for home in homes), os.environ.get("PATH", "")])
    return path if all(shutil.which(tool, path=path) for tool in TOOLS) else None


def read_budgets(root: Path, source: Path) -> list[Budget]:
    """That of the source, and those of the .cuh files that it includes, by their paths from csrc."""
    text = source.read_text()
    included = re.findall(r'^\s*#\s*include\s+"([^"]+\.cuh)"', text, flags=re.MULTILINE)
    paths = [source, *(path for name in included if (path := root / "csrc" / name).is_file())]
    budgets = [parse_budget(str(path.relative_to(root)), path.read_text()) for path in paths]
    return [budget for budget in budgets if budget]


def built_objects(root: Path) -> dict[Path, tuple[Path, float]]:
    """The object of every CUDA source in the build, and the seconds of its compilation on its own core."""
    build, cores = root / BUILD, len(os.sched_getaffinity(0))
    share = cores / (cores + 2)  # ninja runs so many compilers at once
    commands, log = build / "compile_commands.json", build / ".ninja_log"
    lines = [line.split("\t") for line in log.read_text().splitlines()[1:]] if log.exists() else []
    seconds = {output: share * (int(end) - int(begin)) / 1000 for begin, end, _, output, _ in lines}
    return {
        Path(entry["file"]): (build / entry["output"], seconds.get(entry["output"], 0.0))
        for entry in (json.loads(commands.read_text()) if commands.exists() else [])
        if Path(entry["file"]).match(SOURCES) or Path(entry["file"]).match(WRITTEN)
    }


def examine(root: Path, path: Path, object_: Path, seconds: float, tools: str) -> Source:
    """Reads the budgets of one source and what its object holds."""
    source = Source(str(path.relative_to(root)), seconds=seconds)
    try:
        source.budgets = read_budgets(root, path)
    except ValueError as error:
        source.failures.append(str(error))
    command, environment = ["cuobjdump", "-res-usage", "-sass", str(object_)], {**os.environ, "PATH": tools}
    dump = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if dump.returncode:
        source.failures.append(f"{source.file}: {dump.stderr.strip()}")
    source.kernels = sorted(
        parse_dump(dump.stdout), key=lambda kernel: (kernel.name, int(kernel.arch.rstrip("af")))
    )
    source.failures += check(source)
    return source


def check(source: Source) -> list[str]:
    """The failures of the kernels of a source: kernel, arch, value."""
    failures = []
    for kernel in source.kernels:
        where, arch = f"{kernel.name} on sm_{kernel.arch} ({source.file})", kernel.arch
        local, stack = kernel.count("LDL") + kernel.count("STL"), kernel.usage.stack_bytes
        if local or stack:
            values = f"{stack} bytes of stack, {local} local loads and stores"
            failures.append(f"{where}: {values}, 0 of each are allowed")
        if kernel.is_serialized:
            failures.append(f"{where}: each wgmma is waited for before the next, ptxas serialized them")
        if source.max_registers(arch) is None and not source.failures:
            failures.append(f"{where}: no opening comment says `regs <= N`")
        for budget in source.budgets:
            used, allowed = kernel.usage.registers, budget.max_registers(arch)
            if allowed is not None and used > allowed:
                failures.append(f"{where}: {used} registers, {budget.file} allows {allowed}")
            missing = [opcode for opcode in budget.required(arch) if not kernel.count(opcode)]
            if missing:
                failures.append(f"{where}: has no {', '.join(missing)}, which {budget.file} requires")
    limit = max(MAX_SECONDS, MAX_SECONDS_OF_KERNEL * len(source.kernels))
    if source.seconds > limit:
        failures.append(f"{source.file}: {source.seconds:.1f} s to compile, {limit} s are allowed")
    return failures


def draw(sources: list[Source]) -> Table:
    """One row per kernel and arch, below its source; a family of instructions that nothing uses has no
    column."""
    kernels = [kernel for source in sources for kernel in source.kernels]
    families = [family for family in FAMILIES if any(kernel.count(family) for kernel in kernels)]
    table = Table(title="kernels: registers / budget, bytes, seconds to compile, instructions")
    table.add_column("kernel", overflow="fold")
    for name in ("arch", "regs", "stack", "smem", "s", *families):
        table.add_column(name, justify="right", no_wrap=True)
    for source in sources:
        table.add_section()
        table.add_row(f"[bold]{escape(source.file)}", *[""] * 4, f"{source.seconds:.1f}")
        for kernel in source.kernels:
            u = kernel.usage
            registers = f"{u.registers} / {source.max_registers(kernel.arch) or '-'}"
            values = [u.stack_bytes, u.smem_bytes, "", *map(kernel.count, families)]
            table.add_row(escape(f"  {kernel.name}"), kernel.arch, registers, *map(str, values))
    return table


def as_json(sources: list[Source]) -> str:
    rows = [
        {
            "file": source.file,
            "kernel": kernel.name,
            "symbol": kernel.symbol,
            "arch": kernel.arch,
            **asdict(kernel.usage),
            "max_registers": source.max_registers(kernel.arch),
            "instructions": {family: kernel.count(family) for family in FAMILIES},
        }
        for source in sources
        for kernel in source.kernels
    ]
    seconds = {source.file: round(source.seconds, 2) for source in sources}
    failures = [failure for source in sources for failure in source.failures]
    return json.dumps({"rows": rows, "seconds": seconds, "failures": failures}, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The table, then what failed; 1 if anything did."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tools.kernel_report", description=__doc__, formatter_class=raw
    )
    parser.add_argument("--json", type=Path, help="also write the rows and failures to this file")
    parser.add_argument("--require", action="store_true", help="fail where there is nothing to report")
    parser.add_argument("--root", type=Path, default=ROOT, help="tree to look in for csrc and build")
    options = parser.parse_args(arguments)
    console, root = Console(), options.root.resolve()
    objects, tools = built_objects(root), find_tools()
    if not objects or tools is None:
        reason = NO_OBJECTS if not objects else NO_TOOLS
        console.print(f"kernel-report: skipped: {reason}", soft_wrap=True)
        return int(options.require)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = list(pool.map(lambda path: examine(root, path, *objects[path], tools), sorted(objects)))
    if options.json:
        options.json.write_text(as_json(sources))
    console.print(draw(sources))
    failures = [failure for source in sources for failure in source.failures]
    for failure in failures:
        console.print(f"[red]FAILED[/red] {escape(failure)}", soft_wrap=True)
    kernels = [kernel for source in sources for kernel in source.kernels]
    archs = ", ".join(dict.fromkeys(kernel.arch for kernel in kernels))
    count = len({kernel.symbol for kernel in kernels})
    console.print(f"{count} kernels in {len(sources)} sources for {archs}, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
