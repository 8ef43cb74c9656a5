"""Counts what a warp issues in one turn of the main loop of a CUDA kernel.

The loop is the innermost one with most matrix products. The shortest way through it counts that goes through
every product, every asynchronous copy of 16 bytes, every pair of addresses stored to shared memory and every
block of four or more powers of 2 that are packed in pairs: the way without masks, biases, new maxima, errors
and unaligned copies. The instructions of a loop inside are counted once. docs/performance.md has the counts
of attention.

    python -m tools.loop_slots build/cmake/.../paged_attention_sm80_r16_d128.cu.o BF16 --arch 90

For warps without products, --loop says whose loop it is: the opcodes of which it has most. --through says
which opcodes the way must go through; SHF.R.U64 is the end of a division by the page. --least finds a loop
inside another that has more of these opcodes, before and after it.

    python -m tools.loop_slots .../paged_attention_sm90a_0.cu.o BF16 --arch 90a \\
        --loop UTMALDG --through "UTMALDG|SHF.R.U64"
    python -m tools.loop_slots .../paged_attention_sm90a_1.cu.o BF16 --arch 90a \\
        --loop LDGSTS.E.BYPASS --through "PRMT|F2FP|SHF.R.U64|LDGSTS.E.BYPASS.128|STS.128"
    python -m tools.loop_slots .../paged_attention_sm90a_1.cu.o BF16 --arch 90a --loop HGMMA --least 12
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from tools.kernel_report import NO_TOOLS, find_tools

PRODUCT = re.compile(r"[HIQ]G?MMA")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?) *;", flags=re.MULTILINE)
BRANCH = re.compile(r"\bBRA(?:\.\w+)*\s.*?0x([0-9a-f]+)")
Way = tuple[int, int, Counter[str]]  # the work done, instructions, and how many of each opcode


def opcode(text: str) -> str:
    return re.sub(r"^@!?\w+ +", "", text).split()[0]


def target(text: str) -> int | None:
    found = BRANCH.search(text)
    return int(found[1], 16) if found else None


def count_of(codes: Counter[str], wanted: re.Pattern[str]) -> int:
    return sum(number for code, number in codes.items() if wanted.match(code))


def usual_work(codes: Counter[str]) -> int:
    """How much of what the way must do a run of instructions does."""
    copies = count_of(codes, re.compile(r"LDGSTS\.E\.BYPASS\.128"))
    addresses = count_of(codes, re.compile(r"STS\.64"))
    # Powers that are not packed in pairs are the factors of a new maximum, which is rare.
    is_softmax = codes["MUFU.EX2"] >= 4 and count_of(codes, re.compile("F2FP")) and not codes["MUFU.RCP"]
    powers = codes["MUFU.EX2"] if is_softmax else 0
    return count_of(codes, PRODUCT) + copies + 4 * addresses + powers


@dataclass
class Function:
    """The instructions of a kernel, by address."""

    instructions: dict[int, str]
    main: re.Pattern[str] = PRODUCT
    work_of: Callable[[Counter[str]], int] = usual_work
    least: int | None = None  # of `main` in the loop; None: most

    @cached_property
    def loop(self) -> tuple[int, int]:
        """The first and the last address of the main loop."""
        ends = [(to, at) for at, text in self.instructions.items() if (to := target(text)) is not None]
        loops = [(first, last) for first, last in ends if first <= last and self.is_loop(first, last)]

        def found(loop: tuple[int, int]) -> int:
            inside = (text for at, text in self.instructions.items() if loop[0] <= at <= loop[1])
            return count_of(Counter(map(opcode, inside)), self.main)

        least = max(map(found, loops)) if self.least is None else self.least
        return min((loop for loop in loops if found(loop) >= least), key=lambda loop: loop[1] - loop[0])

    def is_loop(self, first: int, last: int) -> bool:
        """Whether all ways to the branch at `last` go through `first`. Rare code behind branches back too."""
        seen, new = {first}, [next(iter(self.blocks))]
        while new:
            head = new.pop()
            if head in seen:
                continue
            seen.add(head)
            new += self.after[head]
        return max(head for head in self.blocks if head <= last) not in seen - {first}

    @cached_property
    def blocks(self) -> dict[int, list[str]]:
        """The runs of instructions between branches and their targets, in order."""
        heads = {to for text in self.instructions.values() if (to := target(text)) is not None}
        found: dict[int, list[str]] = {}
        begins, head = True, 0
        for at, text in self.instructions.items():
            if begins or at in heads:
                head = at
                found[head] = []
            found[head].append(text)
            begins = target(text) is not None or bool(re.search(r"\b(EXIT|RET)\b", text))
        return found

    @cached_property
    def after(self) -> dict[int, list[int]]:
        """The blocks that may follow each block."""
        following = dict(zip(self.blocks, list(self.blocks)[1:], strict=False))
        found: dict[int, list[int]] = {}
        for head, texts in self.blocks.items():
            to, last = target(texts[-1]), texts[-1]
            found[head] = [to] if to in self.blocks else []
            goes_on = not re.match(r"EXIT|RET", last) if to is None else re.match(r"@|BRA\.DIV", last)
            if goes_on and head in following:
                found[head].append(following[head])
        return found

    def way(self) -> Way:
        """The shortest turn of the loop that does all of its work."""
        first, last = self.loop
        best: dict[int, Way] = {}
        turn: Way = (0, 0, Counter())
        # Only ways forward, so what comes later is known.
        for head in reversed([head for head in self.blocks if first <= head <= last]):
            ways = [turn if at == first else best[at] for at in self.after[head] if at == first or at in best]
            if not ways:
                continue
            done, length, codes = max(ways, key=lambda way: (way[0], -way[1]))
            own = Counter(map(opcode, self.blocks[head]))
            best[head] = (done + self.work_of(own), length + len(self.blocks[head]), codes + own)
        return best[first]


def functions(dump: str, name: str, *choices: Any) -> dict[str, Function]:
    """The kernels in the output of cuobjdump -sass whose symbols have `name` in them."""
    parts = re.split(r"^\s+Function : (\S+)$", dump, flags=re.MULTILINE)
    return {
        symbol: Function({int(at, 16): text for at, text in INSTRUCTION.findall(body)}, *choices)
        for symbol, body in zip(parts[1::2], parts[2::2], strict=True)
        if name in symbol
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("object")
    parser.add_argument("kernel", help="a part of the symbol")
    parser.add_argument("--arch", default="90")
    parser.add_argument("--loop", type=re.compile, default=PRODUCT, help="opcodes, a regular expression")
    parser.add_argument("--least", type=int, help="how many of these opcodes the loop has at least")
    parser.add_argument("--through", type=re.compile, help="opcodes")
    wanted = parser.parse_args(arguments)
    if (path := find_tools()) is None:
        parser.error(NO_TOOLS)
    command = ["cuobjdump", "-sass", "-arch", f"sm_{wanted.arch}", wanted.object]
    environment = {**os.environ, "PATH": path}
    dump = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    work_of = partial(count_of, wanted=wanted.through) if wanted.through else usual_work
    for symbol, function in functions(dump, wanted.kernel, wanted.loop, work_of, wanted.least).items():
        _, length, codes = function.way()
        families = Counter[str]()
        for code, count in codes.items():
            families[code.split(".")[0]] += count
        most = (f"{n} {code}" for code, n in families.most_common(12))
        print(f"{symbol}: {length} instructions", *most, sep="  ")


if __name__ == "__main__":
    main()
