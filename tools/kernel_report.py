"""What each CUDA kernel costs, and whether it keeps the budget in its header: make kernel-report.

Every csrc/ops/*/cuda/*.cu is compiled to one cubin per arch, an sm90a*.cu for sm_90a alone, with the
flags of build/cmake where it is there. ptxas says registers, stack, spills and static shared memory; the
disassembly says which instructions the kernel is made of. Fails on a stack frame, a spill, a local load
or store, wgmmas that ptxas serializes, a source of more than 30 s, a kernel without a budget, and a kernel
that is not within it.

A budget stands in the comment that opens the .cu, or a .cuh that the .cu itself includes, and holds for
every kernel of that .cu. The lines of the comment are read as one text, in which count:

    regs <= 128                            registers of a thread; `<= 128 regs` says the same
    requires SASS: IMMA, LDGSTS, LDSM      opcodes that each kernel contains; IMMA is IMMA.16832.S8.S8 too
    regs <= 168 on 90a                     for sm_90a instead of what the comment says of all archs
    requires SASS on 90a: IGMMA, UTMALDG

Seconds are CPU seconds of nvcc, all archs of a source together: the build compiles them in one call, and
a busy machine does not change them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "csrc/ops/*/cuda/*.cu"
COMPILE_COMMANDS = "build/cmake/compile_commands.json"
DEFAULT_FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-fmad=false", "-Icsrc"]
DEFAULT_ARCHS = ["80", "90a"]
MAX_SECONDS = 30
FAMILIES = ("IMMA", "HMMA", "IGMMA", "HGMMA", "LDGSTS", "UTMALDG", "UTMASTG", "LDSM", "BAR", "LDL", "STL")
HOW_TO_GET = {
    "nvcc": "install CUDA 13.0 and set CUDA_HOME or CUDACXX, or: pip install nvidia-cuda-nvcc==13.0.88"
    " nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85",
    "nvdisasm": "pip install -c constraints.txt nvidia-cuda-nvdisasm",
}


@dataclass(frozen=True)
class Usage:
    """What ptxas -v says of one kernel, with the device functions that it calls."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    smem_bytes: int


@dataclass(frozen=True)
class Budget:
    """What one opening comment allows and asks for, by arch; "" is every arch without a line of its own."""

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

    @property
    def name(self) -> str:
        return short_name(demangle(self.symbol))

    def count(self, opcode: str) -> int:
        """Instructions `opcode`, with whatever modifiers."""
        return sum(n for full, n in self.opcodes.items() if f"{full}.".startswith(f"{opcode}."))


@dataclass
class Source:
    """One .cu file, compiled for every arch."""

    file: str
    budgets: list[Budget] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    seconds: float = 0
    warnings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def max_registers(self, arch: str) -> int | None:
        allowed = [budget.max_registers(arch) for budget in self.budgets]
        return min((registers for registers in allowed if registers is not None), default=None)


def parse_ptxas(text: str) -> dict[str, Usage]:
    """By symbol. Device functions that were not inlined follow the kernel that calls them."""
    usages = {}
    for part in re.split(r"Compiling entry function (?=')", text)[1:]:
        symbol, registers = re.match(r"'(\S+)'", part), re.search(r"Used (\d+) registers", part)
        if not symbol or not registers:
            raise ValueError(f"not the output of ptxas -v that this script knows:\n{part}")
        stacks = re.findall(r"(\d+) bytes (?:stack frame|cumulative stack size)", part)
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", part)
        smem = re.search(r"(\d+) bytes smem", part)
        usages[symbol[1]] = Usage(
            registers=int(registers[1]),
            stack_bytes=max(map(int, stacks)),
            spill_bytes=sum(map(int, spills)),
            smem_bytes=int(smem[1]) if smem else 0,
        )
    return usages


def parse_sass(text: str) -> dict[str, Counter[str]]:
    """Opcodes with their modifiers, by symbol, from nvdisasm -c."""
    instruction = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", flags=re.MULTILINE)
    parts = re.split(r"^\s*\.section\s+\.text\.([^\s,]+)", text, flags=re.MULTILINE)
    return {
        symbol: Counter(instruction.findall(code))
        for symbol, code in zip(parts[1::2], parts[2::2], strict=True)
    }


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


def arch_list(torch_cuda_arch_list: str) -> list[str]:
    """80 and 90a of "8.0;9.0a+PTX", as in cmake/cuda.cmake; the default where it is empty."""
    names = torch_cuda_arch_list.replace(";", " ").split()
    return list(dict.fromkeys(re.sub(r"[.]|\+PTX", "", name) for name in names)) or DEFAULT_ARCHS


def archs_of(source: Path, archs: list[str]) -> list[str]:
    """As csrc/CMakeLists.txt: wgmma and TMA are of 9.0 alone."""
    return [arch for arch in archs if arch == "90a" or not source.name.startswith("sm90a")]


def compile_flags(command: str, source: str) -> list[str]:
    """What a compile command says beyond which file becomes which, for which arch."""
    flags, words = [], iter(shlex.split(command)[1:])
    for word in words:
        if word in ("-o", "-MF", "-MT", "-gencode", "-arch"):
            next(words)
        elif word not in ("-c", "-MD", source) and not re.match("-?-(gencode|generate-code|arch)=", word):
            flags.append(word)
    return flags


def build_flags(root: Path, source: Path) -> list[str]:
    commands = root / COMPILE_COMMANDS
    for entry in json.loads(commands.read_text()) if commands.exists() else []:
        if Path(entry["file"]) == source:
            return compile_flags(entry["command"], entry["file"])
    return DEFAULT_FLAGS


def find_tool(name: str) -> str | None:
    """Where cmake/cuda.cmake looks for nvcc."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    homes.append(str(Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13"))
    folders = [f"{home}/bin" for home in homes if home] + [os.environ.get("PATH", "")]
    wanted = os.environ.get("CUDACXX", name) if name == "nvcc" else name
    return shutil.which(wanted, path=os.pathsep.join(folders))


def run_timed(command: Sequence[str], folder: Path) -> tuple[int, str, float]:
    """Exit status, what it printed, and the CPU seconds of the command and its children."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        return process.returncode, output.read(), used.ru_utime + used.ru_stime


def read_budgets(root: Path, source: Path) -> list[Budget]:
    """That of the source, and those of the .cuh files that it includes, by their paths from csrc."""
    text = source.read_text()
    included = re.findall(r'^\s*#\s*include\s+"([^"]+\.cuh)"', text, flags=re.MULTILINE)
    paths = [source, *(path for name in included if (path := root / "csrc" / name).is_file())]
    budgets = [parse_budget(str(path.relative_to(root)), path.read_text()) for path in paths]
    return [budget for budget in budgets if budget]


def examine(root: Path, path: Path, archs: list[str], nvcc: str, nvdisasm: str) -> Source:
    """Compiles and disassembles one source."""
    source = Source(str(path.relative_to(root)))
    try:
        source.budgets = read_budgets(root, path)
    except ValueError as error:
        source.failures.append(str(error))
    with tempfile.TemporaryDirectory(prefix="lamina_kernels_") as folder:
        for arch in archs_of(path, archs):
            cubin = Path(folder) / f"sm_{arch}.cubin"
            resources = ["-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", "-o", str(cubin)]
            status, said, seconds = run_timed([nvcc, *build_flags(root, path), *resources, str(path)], root)
            source.seconds += seconds
            if status:
                source.failures.append(f"{source.file} on sm_{arch}: compile error\n{said[-4000:].strip()}")
                continue
            # A code in parentheses is advice of ptxas.
            advice = re.findall(r"^.*(?:warning|\(C\d+\)).*$", said, flags=re.MULTILINE)
            serialized = [line for line in advice if "wgmma" in line and "serialized" in line]
            source.warnings += [line for line in advice if line not in serialized]
            source.failures += [f"{source.file} on sm_{arch}: {line}" for line in serialized]
            command = [nvdisasm, "-c", str(cubin)]
            sass = parse_sass(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            usages = parse_ptxas(said).items()
            source.kernels += [Kernel(symbol, arch, usage, sass[symbol]) for symbol, usage in usages]
    source.kernels.sort(key=lambda kernel: (kernel.name, archs.index(kernel.arch)))
    source.failures += check(source)
    return source


def check(source: Source) -> list[str]:
    """What is wrong with the kernels of a source: kernel, arch, value."""
    failures = []
    for kernel in source.kernels:
        where, arch = f"{kernel.name} on sm_{kernel.arch} ({source.file})", kernel.arch
        stack, spills = kernel.usage.stack_bytes, kernel.usage.spill_bytes
        if (local := kernel.count("LDL") + kernel.count("STL")) or stack or spills:
            values = f"{stack} bytes of stack, {spills} of spills, {local} local loads and stores"
            failures.append(f"{where}: {values}, 0 of each are allowed")
        if source.max_registers(arch) is None and not source.failures:
            failures.append(f"{where}: no opening comment says `regs <= N`")
        for budget in source.budgets:
            used, allowed = kernel.usage.registers, budget.max_registers(arch)
            if allowed is not None and used > allowed:
                failures.append(f"{where}: {used} registers, {budget.file} allows {allowed}")
            missing = [opcode for opcode in budget.required(arch) if not kernel.count(opcode)]
            if missing:
                failures.append(f"{where}: has no {', '.join(missing)}, which {budget.file} requires")
    if source.seconds > MAX_SECONDS:
        failures.append(f"{source.file}: {source.seconds:.1f} s to compile, {MAX_SECONDS} s are allowed")
    return failures


def draw(sources: list[Source]) -> Table:
    """One row per kernel and arch, below its source; a family of instructions that nothing uses has no
    column."""
    kernels = [kernel for source in sources for kernel in source.kernels]
    families = [family for family in FAMILIES if any(kernel.count(family) for kernel in kernels)]
    table = Table(title="kernels: registers / budget, bytes, CPU seconds to compile, instructions")
    table.add_column("kernel", overflow="fold")
    for name in ("arch", "regs", "stack", "spill", "smem", "s", *families):
        table.add_column(name, justify="right", no_wrap=True)
    for source in sources:
        table.add_section()
        table.add_row(f"[bold]{escape(source.file)}", *[""] * 5, f"{source.seconds:.1f}")
        for kernel in source.kernels:
            u = kernel.usage
            registers = f"{u.registers} / {source.max_registers(kernel.arch) or '-'}"
            values = [u.stack_bytes, u.spill_bytes, u.smem_bytes, "", *map(kernel.count, families)]
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
    parser.add_argument("--require", action="store_true", help="fail where nvcc or nvdisasm is missing")
    parser.add_argument("--root", type=Path, default=ROOT, help="tree to look in for csrc and build")
    options = parser.parse_args(arguments)
    console, root = Console(), options.root.resolve()
    archs = arch_list(os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    paths = sorted(root.glob(SOURCES))
    nvcc, nvdisasm = find_tool("nvcc"), find_tool("nvdisasm")
    if paths and not (nvcc and nvdisasm):
        name = "nvdisasm" if nvcc else "nvcc"
        console.print(f"kernel-report: skipped: no {name} found; {HOW_TO_GET[name]}", soft_wrap=True)
        return int(options.require)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = list(pool.map(lambda path: examine(root, path, archs, str(nvcc), str(nvdisasm)), paths))
    if options.json:
        options.json.write_text(as_json(sources))
    if not sources:
        console.print(f"kernel-report: no {SOURCES}")
        return 0
    console.print(draw(sources))
    for line in sorted({warning for source in sources for warning in source.warnings}):
        console.print(escape(line), soft_wrap=True)
    failures = [failure for source in sources for failure in source.failures]
    for failure in failures:
        console.print(f"[red]FAILED[/red] {escape(failure)}", soft_wrap=True)
    count = sum(len({kernel.symbol for kernel in source.kernels}) for source in sources)
    console.print(
        f"{count} kernels in {len(sources)} sources for {', '.join(archs)}, {len(failures)} failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
