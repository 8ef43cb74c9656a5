"""Counts what a warp issues in one turn of the main loop of a CUDA kernel.

The loop is the innermost one with most matrix products. The shortest way through it counts that goes through
every product, every asynchronous copy of 16 bytes, every pair of addresses stored to shared memory and every
block of four or more powers of 2: the way without masks, biases, errors and unaligned copies. The
instructions of a loop inside are counted once. docs/performance.md has the counts of attention.

    python -m tools.loop_slots build/cmake/.../paged_attention_sm80_r16_d128.cu.o BF16 --arch 90
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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


def work_of(codes: Counter[str]) -> int:
    """How much of what the way must do a run of instructions does."""
    names = Counter[str]()
    for code, count in codes.items():
        names[code.split(".")[0]] += count
    copies = sum(count for code, count in codes.items() if code.startswith("LDGSTS.E.BYPASS.128"))
    addresses = sum(count for code, count in codes.items() if code.startswith("STS.64"))
    powers = codes["MUFU.EX2"] if codes["MUFU.EX2"] >= 4 and not codes["MUFU.RCP"] else 0
    return sum(n for name, n in names.items() if PRODUCT.fullmatch(name)) + copies + 4 * addresses + powers


@dataclass
class Function:
    """The instructions of a kernel, by address."""

    instructions: dict[int, str]

    @cached_property
    def loop(self) -> tuple[int, int]:
        """The first and the last address of the main loop."""
        ends = [(to, at) for at, text in self.instructions.items() if (to := target(text)) is not None]
        loops = [(first, last) for first, last in ends if first <= last]

        def products(loop: tuple[int, int]) -> int:
            inside = (text for at, text in self.instructions.items() if loop[0] <= at <= loop[1])
            return sum(bool(PRODUCT.match(opcode(text))) for text in inside)

        most = max(map(products, loops))
        return min((loop for loop in loops if products(loop) == most), key=lambda loop: loop[1] - loop[0])

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

    def way(self) -> Way:
        """The shortest turn of the loop that does all of its work."""
        first, last = self.loop
        heads = [head for head in self.blocks if first <= head <= last]
        following = dict(zip(self.blocks, list(self.blocks)[1:], strict=False))
        best: dict[int, Way] = {}
        for head in reversed(heads):  # only ways forward, so what comes later is known
            texts = self.blocks[head]
            to, ends = target(texts[-1]), bool(re.match(r"EXIT|RET", texts[-1]))
            after = [to] if to is not None else []
            if not ends and (to is None or texts[-1].startswith("@")) and head in following:
                after.append(following[head])
            turn: Way = (0, 0, Counter())
            ways = [turn if at == first else best[at] for at in after if at == first or at in best]
            if not ways:
                continue
            done, length, codes = max(ways, key=lambda way: (way[0], -way[1]))
            own = Counter(map(opcode, texts))
            best[head] = (done + work_of(own), length + len(texts), codes + own)
        return best[first]


def functions(dump: str, name: str) -> dict[str, Function]:
    """The kernels in the output of cuobjdump -sass whose symbols have `name` in them."""
    parts = re.split(r"^\s+Function : (\S+)$", dump, flags=re.MULTILINE)
    return {
        symbol: Function({int(at, 16): text for at, text in INSTRUCTION.findall(body)})
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
    wanted = parser.parse_args(arguments)
    if (path := find_tools()) is None:
        parser.error(NO_TOOLS)
    command = ["cuobjdump", "-sass", "-arch", f"sm_{wanted.arch}", wanted.object]
    environment = {**os.environ, "PATH": path}
    dump = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    for symbol, function in functions(dump, wanted.kernel).items():
        _, length, codes = function.way()
        families = Counter[str]()
        for code, count in codes.items():
            families[code.split(".")[0]] += count
        most = (f"{n} {code}" for code, n in families.most_common(12))
        print(f"{symbol}: {length} instructions", *most, sep="  ")


if __name__ == "__main__":
    main()
