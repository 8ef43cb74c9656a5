"""The documents say what the code does: formulas, diagrams, examples and links are evaluated."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import lamina
from bench import figures
from tests.support.backends import NO_PROBE, probe
from tools import ops_page

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench/README.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
]
SHAPES = {
    "smallest": (1, 1),
    "one tile": (16, 64),
    "ragged": (40, 200),
    "one past a tile": (17, 65),
    "wide": (3, 500),
}


def read(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(name: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", read(name), flags=re.MULTILINE | re.DOTALL)
    return [text for kind, text in fenced if kind == language]


@pytest.fixture(scope="module")
def formulas() -> tuple[str, ...]:
    """The element and its offset in int8_tile, the half byte in both int4 layouts, a group of sparse24, the
    places in sparse24_rows."""
    found = tuple(block.strip() for block in blocks("docs/layouts.md", "python"))
    assert len(found) == 6
    return found


def weight(n: int, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n * 1000 + k)
    return torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)


@pytest.mark.parametrize(("n", "k"), SHAPES.values(), ids=SHAPES)
def test_int8_tile_formula_is_what_pack_int8_does(formulas: tuple[str, ...], n: int, k: int) -> None:
    w = weight(n, k)
    packed, sums = torch.ops.lamina.pack_int8(w)
    data = torch.zeros(math.ceil(n / 16), math.ceil(k / 64), 16, 16, 4, dtype=torch.int8)
    element = compile(formulas[0], "docs/layouts.md", "exec")
    for row in range(n):
        for column in range(k):
            exec(element, {"data": data, "w": w, "n": row, "k": column})
    assert packed.is_contiguous()
    assert torch.equal(packed, data)
    assert torch.equal(sums, w.sum(1, dtype=torch.int32))


def test_int8_tile_offset_is_the_place_of_the_element(formulas: tuple[str, ...]) -> None:
    n, k = SHAPES["ragged"]
    w = weight(n, k)
    flat = torch.ops.lamina.pack_int8(w)[0].flatten()
    offsets = set()
    for row in range(n):
        for column in range(k):
            scope = {"n": row, "k": column, "tiles_k": math.ceil(k / 64)}
            exec(formulas[1], scope)
            assert flat[scope["offset"]] == w[row, column]
            offsets.add(scope["offset"])
    assert len(offsets) == n * k


@pytest.mark.parametrize(("layout", "number"), [("int4_tile", 2), ("int4_rows", 3)])
def test_int4_formula_is_what_pack_int4_does(formulas: tuple[str, ...], layout: str, number: int) -> None:
    q = (weight(40, 150) % 16).to(torch.uint8)
    data = torch.zeros(3, 3, 2 * 512, dtype=torch.uint8)
    for n in range(40):
        for k in range(150):
            scope = {"n": n, "k": k}
            exec(formulas[number], scope)
            data[n // 16, k // 64, scope["half"]] = q[n, k]
    packed = data[..., ::2] + 16 * data[..., 1::2]
    assert torch.equal(torch.ops.lamina.pack_int4(q, layout), packed)


def test_sparse24_formula_and_codes_are_what_compress_sparse24_does(formulas: tuple[str, ...]) -> None:
    rows = re.findall(r"^\| (kept|code) \|(.*)\|$", read("docs/layouts.md"), flags=re.MULTILINE)
    (_, kept), (_, codes) = rows
    pairs = [tuple(map(int, pair.split())) for pair in kept.split("|")]
    w, values = torch.zeros(3, 24, dtype=torch.int8), torch.zeros(3, 12, dtype=torch.int8)
    metadata = torch.zeros(3, 3, dtype=torch.uint8)
    for n, (i0, i1), g in ((n, pair, g) for n in range(3) for g, pair in enumerate(pairs)):
        w[n, 4 * g + i0], w[n, 4 * g + i1] = 10 * n + g + 1, -10 * n - g - 1
        scope = {"w": w, "values": values, "metadata": metadata, "n": n, "g": g, "i0": i0, "i1": i1}
        exec(formulas[4], scope)
        assert scope["code"] == int(codes.split("|")[g], 16)
    got = torch.ops.lamina.compress_sparse24(w)
    assert torch.equal(got[0], values)
    assert torch.equal(got[1], metadata)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bfloat16, torch.float32], ids=str)
def test_sparse24_rows_places_are_those_of_the_packed_weight(
    formulas: tuple[str, ...], dtype: torch.dtype
) -> None:
    n, k, bits = 18, 72, 4 if dtype == torch.uint8 else 8 * dtype.itemsize
    places = compile(formulas[5], "docs/layouts.md", "exec")
    kept = torch.rand(n, k // 4, 4, generator=torch.Generator().manual_seed(1)).argsort(-1) < 2
    w = (torch.arange(1, n * k + 1).view(n, k) % 15 + 1).to(dtype)
    values, metadata = torch.ops.lamina.compress_sparse24(w, kept.view(n, k))
    data, _ = torch.ops.lamina.pack_sparse24(values, metadata, k, "sparse24_rows")
    for row, g, e in itertools.product(range(n), range(k // 4), range(2)):
        scope: dict[str, int] = {"n": row, "g": g, "e": e, "bits": bits}
        exec(places, {}, scope)
        tile = data[row // 16, g // 16]
        code = int(metadata[row, g // 2]) >> 4 * (g % 2) & 15
        assert int(tile[scope["index_byte"]]) >> scope["index_shift"] & 3 == code >> 2 * e & 3
        at, value = scope["value_byte"], values[row, 2 * g + e]
        if bits == 4:
            assert int(tile[at]) >> scope["value_shift"] & 15 == int(value)
        else:
            assert torch.equal(tile[at : at + bits // 8].clone().view(dtype)[0], value)


def test_int8_tile_diagram_shows_the_tile() -> None:
    """Weights that name their own position: n in one packing, k in another."""
    by_n = torch.ops.lamina.pack_int8(
        torch.arange(16, dtype=torch.int8)[:, None].expand(16, 64).contiguous()
    )[0].flatten()
    by_k = torch.ops.lamina.pack_int8(torch.arange(64, dtype=torch.int8).expand(16, 64))[0].flatten()
    (diagram,) = (block for block in blocks("docs/layouts.md", "") if block.startswith("byte"))
    header, *rows = diagram.splitlines()
    columns = [int(byte) for byte in header.split()[1:]]
    assert len(rows) >= 4
    for line in rows:
        row = int(line.split()[1])
        cells = [tuple(map(int, cell)) for cell in re.findall(r"w\[ *(\d+)\]\[ *(\d+)\.\. *(\d+)\]", line)]
        assert len(cells) == len(columns)
        for byte, (n, first, last) in zip(columns, cells, strict=True):
            group = slice(row * 64 + byte, row * 64 + byte + 4)
            assert by_n[group].tolist() == [n] * 4
            assert by_k[group].tolist() == list(range(first, last + 1))


def test_int8_tile_examples() -> None:
    text = read("docs/layouts.md")
    extents = re.search(r"weight of `n = (\d+)`, `k = (\d+)`, so (\d+) x (\d+) tiles, (\d+) bytes", text)
    assert extents is not None
    n, k, tiles_n, tiles_k, total = map(int, extents.groups())
    examples = re.findall(r"^\| w\[(\d+), (\d+)\] \| (\[.*?\]) \| (\d+) \|", text, flags=re.MULTILINE)
    assert len(examples) >= 5
    for row, column, index, byte in examples:
        w = torch.zeros(n, k, dtype=torch.int8)
        w[int(row), int(column)] = 1
        data = torch.ops.lamina.pack_int8(w)[0]
        assert data.shape[:2] == (tiles_n, tiles_k)
        assert data.numel() == total
        assert str(data.nonzero().squeeze().tolist()) == index
        assert data.flatten().nonzero().item() == int(byte)


# The blocks of layouts.md are formulas.
PAGES = [name for name in DOCUMENTS if name != "docs/layouts.md"]
EXAMPLES = [(name, text) for name in PAGES for text in blocks(name, "python")]


@pytest.mark.parametrize(("name", "text"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_examples_run(name: str, text: str) -> None:
    exec(compile(text, name, "exec"), {"__name__": "example"})


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_paths_exist(name: str) -> None:
    text = read(name)
    missing = []
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if "://" not in target:
            path = (ROOT / name).parent / target if target else ROOT / name
            known = path.exists() and (not anchor or anchor in anchors(path.read_text()))
            missing += [] if known else [f"{target}#{anchor}"]
    paths = re.findall(r"`((?:csrc|docs|tests|tools|bench|python|cmake)/[\w/.]+)`", text)
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_reference_is_current() -> None:
    assert read("docs/ops.md") == ops_page.page(), "run `make docs`"


INTERNAL = {"require_finite"}  # shared by modules, of no use to others


@pytest.mark.parametrize("module", [lamina, lamina.ops, lamina.nn, lamina.quant], ids=lambda m: m.__name__)
def test_reference_has_every_public_name(module: ModuleType) -> None:
    listed = {name.rpartition(".")[2] for names in ops_page.SECTIONS.values() for name in names}
    public = {name for name in module.__all__ if callable(getattr(module, name))}
    assert public - listed <= INTERNAL


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_are_drawn_from_the_committed_results(name: str) -> None:
    drawn = read(f"docs/figures/{name}.svg")
    assert figures.FIGURES[name].fingerprint() in drawn, "a source has changed: run `make docs`"
    assert len(drawn) < 200_000
    assert any(f"figures/{name}.svg)" in read(document) for document in DOCUMENTS)


def test_readme_links_every_op() -> None:
    ops = [name for name in lamina.ops.__all__ if not isinstance(getattr(lamina.ops, name), type)]
    text = read("README.md")
    assert [name for name in ops if f"](docs/ops.md#lamina{name})" not in text] == []


def test_the_largest_size_on_cuda_is_stated() -> None:
    if probe() is None:
        pytest.skip(NO_PROBE)
    h200 = probe().cuda.Device(90, 132)
    with pytest.raises(ValueError, match="each may be at most") as refused:
        probe().cuda.check("gemm_int8", probe().Problem(2**62, 1, 1), h200)
    largest = int(re.findall(r"\d+$", str(refused.value))[0])
    assert f"`m`, `n` and `k` are each at most\n  2^31 - {2**31 - largest}." in read("README.md")
    assert f"m and n of at most 2^31 - {2**31 - largest}." in str(lamina.gemm_int8.__doc__)


def test_readme_compares_the_schemes_as_the_results_do() -> None:
    lines = {line.split(" | ")[0]: line for line in read("README.md").splitlines() if line.startswith("| ")}
    result = json.loads(read("bench/results/epyc-zen5-2core/demo.json"))
    for row in result["rows"]:
        scheme, is_calibrated = row["scheme"].removesuffix("_gptq"), row["scheme"].endswith("_gptq")
        label = scheme if scheme == "torch f32" else f"`{scheme}`" + ", calibrated" * is_calibrated
        size, cosine = row["linear_bytes"] / 1e6, min(row["cosines"])
        assert f"| {size:.1f} MB | {cosine:.4f} |" in lines[f"| {label}"]
        assert row["paraphrases_found"] == len(row["cosines"])
    files = figures.LINES["Xeon, AMX"]

    def ratios(op: str, peer: str) -> str:
        return ", ".join(f"{ratio:.2f}" for ratio in figures.speedups(files[op], op, peer).values())

    for scheme, op in (("w8a8", "gemm_int8"), ("w4a8", "gemm_int4_int8"), ("w4a16", "gemm_int4")):
        assert lines[f"| `{scheme}`"].endswith(f"| {ratios(op, figures.PANELS[op][1])} |")
        assert f"](bench/results/{files[op]})" in read("README.md")
    assert f"is {ratios('gemm_int8', 'torch_bf16')} times as fast" in read("README.md")


@pytest.mark.parametrize(
    ("page", "machine"), [("README.md", "epyc-zen4-2core"), ("docs/performance.md", "epyc-zen3-2core")]
)
def test_tables_show_the_language_model_as_measured(page: str, machine: str) -> None:
    lines = [line for line in read(page).splitlines() if line.startswith("| ")]
    for row in json.loads(read(f"bench/results/{machine}/demo_llm.json"))["rows"]:
        cells = f"| {row['model_bytes'] / 1e6:.0f} | {row['prefill']:.0f} | {row['decode']:.1f} |"
        if row["perplexity"] is not None:
            cells += f" {row['perplexity']:.2f} | {row['agreement'] * 100:.1f} % |"
        assert any(cells in line for line in lines), row["scheme"]


def test_the_table_of_vllm_engines_is_as_measured() -> None:
    page = read("docs/integrations.md")
    for row in json.loads(read("bench/results/epyc-zen4-2core/vllm.json"))["rows"]:
        prefill, one, eight = (row[f"{key}_tokens_per_s"] for key in ("prefill", "decode_1", "decode_8"))
        assert f"| {row['engine']} | {prefill:,.0f} | {one:.1f} | {eight:.0f} |" in page


def test_the_worked_example_of_distillation_is_as_measured() -> None:
    page = read("docs/sparse24.md")
    found = json.loads(read("bench/results/epyc-zen4-2core/prune_and_distill.json"))
    for row in found["rows"]:
        cells = [f"{row[key]:.4f}" for key in ("cosine_mean", "cosine_min")]
        cells += [f"{row[key]:.0f}/32" for key in ("nearest_kept", "pairs_found")]
        cells += [f"{row['prose_cosine_mean']:.4f}"]
        assert f"| {row['model']} | {' | '.join(cells)} |" in page
    assert f"{found['steps']} batches of 16 sentences" in page
    assert f"Distillation recovers {found['recovered'] * 100:.0f} % of the cosine that pruning lost" in page
    assert f"{found['recovered_of_prose'] * 100:.0f} % of that lost for the prose" in page
    assert found["recovered"] >= 0.5


def quotable(file: Path) -> set[str]:
    """The numbers of a result file as tables quote them."""
    texts = set()
    for row in json.loads(file.read_text())["rows"]:
        if median := row.get("median_us"):
            texts |= {f"{median:,.0f}", f"{median:,.0f} ± {row['iqr_us'] / 2:,.0f}"}
        else:
            texts |= {f"{value:.4f}" for value in row.values() if isinstance(value, float)}
    return texts


@pytest.mark.parametrize("name", ["docs/performance.md", "docs/quantization.md"])
def test_tables_below_a_result_file_quote_it(name: str) -> None:
    """Each table that follows a paragraph with links to result files has their numbers."""
    quoted, files = 0, list[str]()
    for block in read(name).split("\n\n"):
        if not block.startswith("|"):
            files = re.findall(r"\]\(\.\./(bench/results/\S+\.json)\)", block)
        elif files:
            known = set().union(*(quotable(ROOT / file) for file in files))
            cells = [cell.strip() for line in block.splitlines()[2:] for cell in line.split("|")]
            numbers = [cell for cell in cells if re.fullmatch(r"[\d,.]+( ± [\d,.]+)?", cell)]
            assert [number for number in numbers if number not in known] == [], files
            quoted += len(numbers)
    assert quoted >= 60
