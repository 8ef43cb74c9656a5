"""The benchmark of paged_attention: options, requests, the exact result, counts, a tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

import lamina
from bench import run
from bench.attention import peers
from bench.attention.cases import AttentionCase, Request, binary_tree
from bench.attention.exact import make_exact
from bench.attention.floor import KERNELS, count, kernel_of, least_bytes, pairs_of, work_of
from bench.attention.inputs import make_inputs, paged, tree_words
from bench.cases import Context, Rotation
from bench.roofline import Ceilings, Work
from bench.timing import Protocol

pytestmark = pytest.mark.usefixtures("short_runs")
SMALL = [
    "--batch",
    "3",
    "--context",
    "40",
    "--heads",
    "4/2",
    "--head-dim",
    "16",
    "--tokens",
    "5",
    "--page",
    "7",
]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(run.main, ["paged_attention", *arguments])


def make_case(scenario: str = "decode", **changes: Any) -> AttentionCase:
    shape: dict[str, Any] = {
        "dtype": "f32", "kv_dtype": "f32", "page": 7, "batch": 3, "context": 40, "heads": 4, "kv_heads": 2,
        "head_dim": 16, "tokens": 5, "layout": "hnd",
    }  # fmt: skip
    return AttentionCase("paged_attention", "cpu", scenario, **{**shape, **changes})


@pytest.mark.parametrize(
    ("case", "requests"),
    [
        (make_case("decode"), [Request(1, 40)] * 3),
        (make_case("verify", tree=True), [Request(5, 40)] * 3),
        (make_case("prefill"), [Request(40, 40)] * 3),
        (make_case("skewed"), [Request(1, 320), Request(1, 2), Request(1, 2)]),
        (make_case("mixed"), [Request(1, 40), Request(40, 40), Request(5, 40)]),
        (
            make_case("mixed", batch=8, context=4096),
            [*[Request(1, 4096)] * 4, Request(512, 4096), *[Request(5, 4096)] * 3],
        ),
    ],
    ids=lambda x: x.scenario if isinstance(x, AttentionCase) else "",
)
def test_requests_of_a_scenario(case: AttentionCase, requests: list[Request]) -> None:
    assert case.requests() == requests


def test_a_binary_tree_sees_ancestors_and_itself() -> None:
    tree = binary_tree(6)
    assert [row.nonzero().flatten().tolist() for row in tree] == [
        [0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 4], [0, 2, 5],
    ]  # fmt: skip
    words = tree_words(binary_tree(40))
    assert words.shape == (40, 2) and words.dtype == torch.int32
    for node, row in enumerate(binary_tree(40)):
        bits = [int(words[node, other // 32]) >> other % 32 & 1 for other in range(40)]
        assert bits == row.int().tolist()


@pytest.mark.parametrize("layout", ["hnd", "nhd"])
@pytest.mark.parametrize("kv_dtype", ["f32", "int8", "fp8"])
def test_pages_hold_the_rows(kv_dtype: str, layout: str) -> None:
    inputs = make_inputs(make_case("skewed", kv_dtype=kv_dtype, layout=layout))
    held = paged(inputs)
    (k,), (v,) = held.cache.k, held.cache.v
    k_scale, v_scale = (each and each[0] for each in (held.cache.k_scale, held.cache.v_scale))
    table = held.batch.block_table
    assert k.shape == (-(-320 // 7) + 2, 7, 2, 16)
    assert k.is_contiguous() == (layout == "nhd")
    assert sorted(table[table >= 0].tolist()) == list(range(len(k)))
    assert table[0].tolist() != sorted(table[0].tolist()), "pages are in random order"
    for b, (keys, values) in enumerate(zip(inputs.keys, inputs.values, strict=True)):
        for rows, pages, scales in ((keys, k, k_scale), (values, v, v_scale)):
            for slot in (0, len(rows.data) - 1):
                at = int(table[b, slot // 7]), slot % 7
                assert torch.equal(pages[at].float(), rows.data[slot].float())
                if rows.scale is not None:
                    assert scales is not None and torch.equal(scales[at], rows.scale[slot])


def reference(inputs: Any) -> Tensor:
    """The results of all tokens, pair by pair from the definitions."""
    case, out = inputs.case, []
    for b, request in enumerate(inputs.requests):
        mask = inputs.mask(request)
        k, v = (each[b].to(torch.float64) for each in (inputs.keys, inputs.values))
        for t in range(request.q_len):
            seen = mask[t].nonzero().flatten()
            assert len(seen) > 0
            for h in range(case.heads):
                q = inputs.q[inputs.starts()[b] + t, h].double()
                scores = [float(q @ k[h // case.group, j]) / case.head_dim**0.5 for j in seen]
                weight = torch.tensor(scores, dtype=torch.float64).softmax(0)
                out.append(sum(w * v[h // case.group, j] for w, j in zip(weight, seen, strict=True)))
    return torch.stack(out).view(-1, case.heads, case.head_dim)


@pytest.mark.parametrize("case", [make_case("mixed"), make_case("verify", tree=True, kv_dtype="int8")])
def test_exact_is_the_definition(case: AttentionCase) -> None:
    inputs = make_inputs(case)
    exact = make_exact(inputs)
    wanted = reference(inputs)
    torch.testing.assert_close(exact.out, wanted[exact.tokens], rtol=0, atol=1e-6)
    assert exact.accuracy(wanted.float(), "f32", torch.float32).over_bound <= 1
    wrong = wanted.clone()
    wrong[exact.tokens[-1], 3, 5] *= 1 + 2**-10
    assert exact.accuracy(wrong, "f32", torch.float32).over_bound > 1
    assert exact.accuracy(wrong * float("nan"), "f32", torch.float32).over_bound != 1


def test_only_pairs_that_are_seen_count() -> None:
    for case in (
        make_case("mixed"),
        make_case("verify", tree=True),
        make_case("verify"),
        make_case("prefill"),
    ):
        inputs = make_inputs(case)
        for request in case.requests():
            assert pairs_of(request, case) == int(inputs.mask(request).sum())


def test_kernel_of_an_isa() -> None:
    available = ["generic", "avx2", "avx512_vnni", "avx512_bf16", "amx_int8"]
    assert kernel_of("avx2", available) is KERNELS["avx2"]
    assert kernel_of("amx_int8", available) is KERNELS["amx_int8"]
    assert kernel_of("avx512_vnni", ["generic", "avx2", "avx512_vnni"]) is KERNELS["avx512_vnni"]
    assert kernel_of("future", [*available, "future"]) is KERNELS["amx_int8"]


def test_kernels_are_those_of_the_library() -> None:
    rows = Path(run.__file__).parents[1] / "csrc/ops/paged_attention/kernels.inc"
    lines = [line for line in rows.read_text().splitlines() if line.startswith("LAMINA_CPU_KERNEL(")]
    built = [line.split(",")[1].strip() for line in lines]
    assert built == list(KERNELS)


@pytest.mark.parametrize(
    ("isa", "dtype", "kv_dtype", "dot"),
    [
        ("avx2", "bf16", "bf16", "f32"),
        ("avx2", "f32", "int8", "f32"),
        ("avx512_vnni", "f32", "int8", "int8"),
        ("avx512_vnni", "bf16", "bf16", "f32"),
        ("avx512_bf16", "bf16", "bf16", "bf16"),
        ("avx512_bf16", "f32", "bf16", "f32"),
        ("amx_int8", "bf16", "bf16", "bf16"),
        ("amx_int8", "f16", "fp8", "f32"),
    ],
)
def test_arithmetic_of_a_kernel(isa: str, dtype: str, kv_dtype: str, dot: str) -> None:
    assert KERNELS[isa].dot(make_case(dtype=dtype, kv_dtype=kv_dtype)) == dot


# One request, one KV head, group 4, 32 keys, head_dim 128: counted by hand from the formulas of floor.py.
HAND = {
    # products 4 rows * 32 keys * 256 / 8; 32 * 128 / 64 blocks * 24; softmax 14 * 128 / 8, 8 multiply
    ("avx2", "f32", "f32"): (4096, 1536, 224, 128),
    # bf16: half the blocks; a shift for each element of keys and values; values widen
    ("avx2", "f32", "bf16"): (4096, 768 + 512, 224 + 1024, 128),
    ("avx512_vnni", "f32", "f32"): (2048, 768, 112, 64),
    # dot products: 2 planes of quads; 4 blocks * 48, unpacks for 2 pieces, 2 narrow; flips, 16 + 8
    ("avx512_vnni", "f32", "int8"): (1024, 192 + 2 * 128 + 16, 64 + 24 * 8, 88),
    ("avx512_bf16", "bf16", "bf16"): (1024, 384 + 128, 14.5 * 8, 64),
    ("amx_int8", "bf16", "bf16"): (0, 384 + 128, 14.5 * 8, 64),
}


@pytest.mark.parametrize(("isa", "dtype", "kv_dtype"), HAND)
def test_instructions_are_counted(isa: str, dtype: str, kv_dtype: str) -> None:
    case = make_case(dtype=dtype, kv_dtype=kv_dtype, batch=1, context=32, heads=4, kv_heads=1, head_dim=128)
    found = count(case, KERNELS[isa])
    products, shuffles, others, multiplies = HAND[isa, dtype, kv_dtype]
    assert (found.products, found.shuffles, found.others) == (products, shuffles, others)
    work = work_of(case, KERNELS[isa])
    issue = {"vector": products + shuffles + others, "shuffle": shuffles, "multiply": products + multiplies}
    if isa == "amx_int8":
        del issue["multiply"]
    assert work.issue == issue
    useful = 2 * 4 * 32 * 256
    if isa == "amx_int8":
        assert work.ops == 4 * useful, "16 rows where 4 are used"
    elif kv_dtype == "int8":
        assert work.ops == 2 * useful
    else:
        assert work.ops == useful


def test_more_tokens_of_a_tile_share_its_panels() -> None:
    few, many = (count(make_case("verify", tokens=tokens, context=512), KERNELS["avx2"]) for tokens in (1, 8))
    assert many.shuffles == few.shuffles
    assert 7 * few.products < many.products < 8 * few.products


def test_bytes_are_keys_values_scales_queries_and_results() -> None:
    case = make_case(kv_dtype="int8", dtype="bf16")
    rows = 3 * 40 * 2
    assert least_bytes(case, 1, 2, 4) == 2 * rows * (16 + 4) + 2 * 3 * 4 * 16 * 2
    assert work_of(case, KERNELS["avx2"]).bytes == least_bytes(case, 1, 2, 4)
    assert work_of(make_case(kv_dtype="fp8"), KERNELS["avx2"]).bytes == least_bytes(case, 1, 4)


def test_the_slowest_kind_of_instruction_is_the_floor() -> None:
    ceilings = Ceilings(1, ops_per_s={"vector": {"avx2": 100.0}, "shuffle": {"avx2": 10.0, "avx512": 20.0}})
    work = Work(0, 0, "f32", {"vector": 300, "shuffle": 40})
    assert work.issue_seconds(ceilings, "avx2") == 4.0
    assert work.issue_seconds(ceilings, "avx512_bf16") == 2.0, "no rate of all instructions was measured"
    assert Work(0, 0, "f32").issue_seconds(ceilings, "avx2") == 0.0
    ceilings.ops_per_s["f32"] = {"avx2": 160.0, "avx512": 320.0}
    work = Work(0, 0, "int8", {"multiply": 40})
    assert work.issue_seconds(ceilings, "avx2") == work.issue_seconds(ceilings, "avx512_vnni") == 4.0


def test_long_calls_have_fewer_samples() -> None:
    protocol = Protocol()
    assert protocol.rounds(0.1) == protocol.samples == 30
    assert protocol.rounds(1.0) == 7


@pytest.fixture(scope="module")
def rows(short_runs: None, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = tmp_path_factory.mktemp("bench") / "result.json"
    done = invoke(
        *SMALL, "--scenario", "verify", "--kv-dtype", "int8", "--layout", "nhd",
        "--rotate-mib", "1", "--peers", "torch_f32,onnxruntime,vllm_f32", "--json", str(path),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    if "vllm_f32" not in {row["impl"] for row in found}:
        assert "no row for vllm_f32: " in done.output
    return found


def test_a_run_times_and_checks_all(rows: list[dict[str, Any]]) -> None:
    shapes = {(row["case"]["scenario"], row["case"].get("tree"), row["case"]["kv_dtype"]) for row in rows}
    assert shapes == {("verify", False, "int8"), ("verify", True, "int8")}
    assert {row["impl"] for row in rows} >= {"lamina", "torch_f32"}
    for row in rows:
        assert row["median_us"] > 0 and row["roofline_fraction"] > 0
        assert row["error_over_bound"] <= 1, row
        assert row["case"]["heads"] == "4/2" and "m" not in row["case"]
        if row["impl"] == "lamina" and row["case"]["isa"] != "generic":
            assert row["case"]["issue"]["vector"] > row["case"]["issue"]["shuffle"] > 0


def test_onnxruntime_has_no_trees(rows: list[dict[str, Any]]) -> None:
    pytest.importorskip("onnxruntime")
    cases = [row["case"] for row in rows if row["impl"] == "onnxruntime"]
    found = {(case["scenario"], case.get("tree")) for case in cases}
    assert found == {("verify", False)}


@pytest.mark.parametrize("scenario", ["decode", "prefill", "skewed", "mixed"])
def test_every_peer_computes_every_scenario(scenario: str) -> None:
    inputs = make_inputs(make_case(scenario))
    exact = make_exact(inputs)
    threads = torch.get_num_threads()  # onnxruntime keeps the number of its first session
    context = Context(Rotation(hot=False, target_bytes=1), threads, ["generic"], [*peers.PEERS])
    for impl, build in peers.PEERS.items():
        try:
            candidate = build(inputs, exact, context)
        except peers.PeerUnavailable as reason:
            assert str(reason)
            continue
        assert candidate.ring is not None and len(candidate.ring.copies) == 2
        for _ in candidate.ring.copies:
            assert candidate.check().over_bound <= 1, impl


def test_a_wrong_result_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = lamina.ops.paged_attention

    def wrong(*args: Any, **options: Any) -> Tensor:
        out = right(*args, **options)
        assert isinstance(out, Tensor)
        out[0, 0, 0] += 0.01
        return out

    monkeypatch.setattr(lamina.ops, "paged_attention", wrong)
    done = invoke(*SMALL, "--rotate-mib", "1")
    assert done.exit_code != 0
    assert "outside its error bound" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--m", "4"], "--m: of products; not an option of paged_attention"),
        (["--group", "32"], "--group: of products"),
        (["--scenario", "train"], "--scenario: got 'train'; allowed: decode, verify"),
        (["--kv-dtype", "int4"], "--kv-dtype: got 'int4'; allowed: f32, bf16"),
        (["--layout", "dnh"], "--layout: got 'dnh'; allowed: hnd, nhd"),
        (["--heads", "32"], "--heads: got '32'; allowed: heads/kv_heads"),
        (["--heads", "9/2"], "must be a multiple of kv_heads"),
        (["--page", "0"], "--page: got 0"),
        (["--tokens", "9", "--context", "8"], "--tokens: got 9; a context has 8"),
        (["--batch", "2", "--scenario", "mixed"], "--batch: got 2; mixed needs at least 3"),
        (["--dtype", "int8"], "--dtype: got 'int8'"),
        (["--device", "cuda", "--dtype", "f32"], "paged_attention on cuda allows bf16, f16"),
        (["--peers", "llama"], "--peers: got 'llama'"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code != 0
    assert message in done.output


def test_products_refuse_options_of_attention() -> None:
    done = CliRunner().invoke(run.main, ["gemm_int8", "--page", "16"])
    assert done.exit_code != 0
    assert "--page: of paged_attention; not an option of gemm_int8" in done.output
