"""Plants bugs in the kernels one at a time and counts those that the tests catch: make mutants.

Each mutant is a textual patch. It is applied to a copy of the tree, the one library is rebuilt (a copy and a
build folder for every job), and the op tests run until the first failure. A bug that changes no test's
outcome is a hole in the tests; a patch that no longer applies is an error. The copies compile with the flags
of make build: with ccache they find its objects, and a mutant that is tried again finds its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tools.mutation import MUTANTS
from tools.mutation.mutant import Mutant

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("CMakeLists.txt", "cmake", "csrc", "pyproject.toml", "python", "tests")
TESTS = (
    "tests/ops/test_pack_int8.py",
    "tests/ops/test_quantize_int8.py",
    "tests/ops/test_gemm_int8.py",
    "tests/ops/test_gemm_int8_exact.py",
    "tests/ops/test_gemm_int8_epilogue.py",
    "-k",
    "not emulator",
)
# Where code of CUDA kernels changed.
EMULATOR_TESTS = (
    "tests/ops/test_quantize_int8.py",
    "tests/ops/test_gemm_int8.py",
    "tests/ops/test_gemm_int8_epilogue.py",
    "tests/ops/test_emulator.py",
    "-k",
    "emulator",
)
BIN = Path(sys.executable).parent
TEST_SECONDS = 600
OTHERS = 10


@dataclass(frozen=True)
class Outcome:
    """The outcome of one mutant. A hang or a crash of the tests counts as caught."""

    caught: bool
    by: str


class Workshop:
    """A copy of the tree with a build of its own."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.build = tree / "build" / "cmake"
        self.tree.mkdir(parents=True)
        skip = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, self.tree / name, ignore=skip)
            else:
                shutil.copy2(source, self.tree / name)
        # ccache finds objects by the paths of their headers from the root of the tree, also of torch's.
        self.prefix = self._inside(Path(sys.prefix))
        if self.prefix != Path(sys.prefix):
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            self.prefix.symlink_to(sys.prefix)
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.tree / "python"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _inside(self, path: Path) -> Path:
        """The path in this tree of what is at `path` in ROOT; `path` if it is elsewhere."""
        return self.tree / path.relative_to(ROOT) if path.is_relative_to(ROOT) else path

    def run(self, *command: object, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.tree,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def configure(self) -> str:
        torch = importlib.util.find_spec("torch")
        assert torch is not None and torch.origin is not None
        result = self.run(
            "cmake", "-S", self.tree, "-B", self.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={self.prefix / 'bin' / 'python'}",
            f"-DTORCH_ROOT={self._inside(Path(torch.origin).parent)}",
            f"-DLAMINA_OUTPUT={self.tree / 'python' / 'lamina'}", "-DLAMINA_CUDA=OFF",
        )  # fmt: skip
        return "" if result.returncode == 0 else result.stdout

    def compile(self) -> str:
        """Empty if it compiles, else what the compiler said."""
        result = self.run("cmake", "--build", self.build)
        return "" if result.returncode == 0 else result.stdout

    def test(self, tests: tuple[str, ...], *more: str) -> Outcome:
        """Runs the tests to the first failure; more options of pytest."""
        options = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", *more]
        options.append("--hypothesis-profile=mutants")
        try:
            result = self.run(sys.executable, "-m", "pytest", *options, *tests, timeout=TEST_SECONDS)
        except subprocess.TimeoutExpired:
            return Outcome(True, "a hang")
        if result.returncode < 0:
            stack = re.search(r'/(test_\w+\.py)", line \d+ in (test_\w+)', result.stdout)
            place = f" in {'::'.join(stack.groups())}" if stack else ""
            return Outcome(True, f"a crash, signal {-result.returncode}{place}")
        failed = re.search(
            r"^(?:FAILED|ERROR) (?:[^ :]*/)?(.+?)(?: - .*)?$", result.stdout, flags=re.MULTILINE
        )
        if result.returncode > 1 and not failed:
            raise SystemExit(f"mutants: pytest could not run\n{result.stdout}")
        return Outcome(result.returncode != 0, failed.group(1) if failed else "no test")

    def try_mutant(self, mutant: Mutant) -> Outcome:
        """Patches, rebuilds, tests, and restores."""
        path = self.tree / mutant.file
        original = path.read_text()
        path.write_text(mutant.apply(original))
        try:
            errors = self.compile()
            if "static assertion failed" in errors:
                return Outcome(True, "a static_assert")
            if errors:
                raise SystemExit(f"mutants: {mutant.name} does not compile\n{errors[-4000:]}")
            return self.test(selection(mutant))
        finally:
            path.write_text(original)


def selection(mutant: Mutant) -> tuple[str, ...]:
    """The arguments of pytest that choose the tests which must catch a mutant."""
    runs_on_gpu = {"cuda", "block"} & {*Path(mutant.file).parts}
    return mutant.tests or (EMULATOR_TESTS if runs_on_gpu else TESTS)


def git(*arguments: str) -> str:
    """The output of git; empty if git fails."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def changed_files() -> set[str]:
    """The files that differ from the upstream; in a clone without new commits, those of the last commit."""
    for base in (git("merge-base", "HEAD", "@{upstream}"), "HEAD~1"):
        if base and (changed := git("diff", "--name-only", base)):
            return set(changed.splitlines())
    return set()


def choose(mutants: Sequence[Mutant], changed: set[str], seed: str) -> list[Mutant]:
    """Those of the changed files and OTHERS more; the seed decides which and in what order."""
    shuffled = random.Random(seed).sample(mutants, len(mutants))
    others = [mutant for mutant in shuffled if mutant.file not in changed]
    return [mutant for mutant in shuffled if mutant.file in changed] + others[:OTHERS]


def open_workshops(folder: Path, count: int, has_passed: bool) -> SimpleQueue[Workshop]:
    """So many, built; their unchanged tree passes, or has."""
    shops = [Workshop(folder / str(number)) for number in range(count)]
    for shop in shops:  # the first uses every core, the next ones find its objects in ccache
        if errors := shop.configure() or shop.compile():
            raise SystemExit(f"mutants: the unchanged tree does not build\n{errors[-4000:]}")
    for tests in () if has_passed else (TESTS, EMULATOR_TESTS):
        if (clean := shops[0].test(tests, "-n", str(count), "--dist", "worksteal")).caught:
            raise SystemExit(f"mutants: the unchanged tree already fails: {clean.by}")
    free: SimpleQueue[Workshop] = SimpleQueue()
    for shop in shops:
        free.put(shop)
    return free


def main(arguments: Sequence[str] | None = None) -> int:
    """One line a mutant, `caught N of N` last; 1 if one survives."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="part of the name of the mutants to try")
    parser.add_argument(
        "--changed",
        action="store_true",
        help=f"those of changed files and {OTHERS} more",
    )
    parser.add_argument("--minutes", type=float, help="begin no mutant so long after the builds")
    parser.add_argument("--json", type=Path, help="also write the outcomes to this file")
    parser.add_argument("--passed", action="store_true", help="the unchanged tree has just passed its tests")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="mutants at once")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    if options.changed:
        chosen = choose(chosen, changed_files(), git("rev-parse", "HEAD"))
    if not chosen:
        raise SystemExit("mutants: caught 0 of 0")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lamina_mutants_") as folder:
        shops = open_workshops(Path(folder), options.jobs, options.passed)
        built = time.monotonic()
        print(f"unchanged tree is built and passes, {built - start:.0f} s", flush=True)

        def attempt(mutant: Mutant) -> Outcome | None:
            begin = time.monotonic()
            if options.minutes is not None and begin - built > 60 * options.minutes:
                return None
            shop = shops.get()
            try:
                outcome = shop.try_mutant(mutant)
            finally:
                shops.put(shop)
            verdict = "caught  " if outcome.caught else "SURVIVED"
            print(f"{verdict} {mutant.name:<46} {time.monotonic() - begin:3.0f} s  {outcome.by}", flush=True)
            return outcome

        with ThreadPoolExecutor(options.jobs) as pool:
            tried = [pool.submit(attempt, mutant) for mutant in chosen]
            try:
                results = [future.result() for future in tried]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    outcomes = {m.name: outcome for m, outcome in zip(chosen, results, strict=True) if outcome}
    if options.json:
        options.json.write_text(json.dumps({name: vars(o) for name, o in outcomes.items()}, indent=1) + "\n")
    caught = sum(outcome.caught for outcome in outcomes.values())
    left = len(chosen) - len(outcomes)
    print(f"caught {caught} of {len(outcomes)}{f', {left} not tried' if left else ''}")
    return 0 if caught == len(outcomes) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
