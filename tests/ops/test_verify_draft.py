"""verify_draft against its documented steps; without drafts' probabilities it is sample_tokens in a loop."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

import lamina
from tests.reference import sample as reference
from tests.reference.sample import Settings
from tests.support.backends import Backend, EmulatedKernel, backends, cpu_backends, emulator_parameters
from tests.support.cases import FLOAT_DTYPES, dtype_name, generator
from tests.support.compare import assert_equal
from tests.support.sample_cases import INT32, Draft, parameters, random_draft, random_settings, verified

BACKENDS = pytest.mark.parametrize("backend", backends("sample"))
CPU = pytest.mark.parametrize("backend", cpu_backends("sample"))
DTYPES = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=dtype_name)
KINDS = pytest.mark.parametrize(("tree", "q"), [(False, False), (False, True), (True, False), (True, True)])
FIELDS = lamina.VerifiedDraft._fields


def check(backend: Backend, draft: Draft, label: object = "") -> tuple[torch.Tensor, ...]:
    got = draft.run(backend)
    shape = (len(draft.cu_seqlens_q) - 1, draft.max_seqlen_q)
    for name, tensor, want in zip(FIELDS, got, verified(draft), strict=True):
        expected = torch.tensor(want, dtype=INT32)
        is_path = name in ("tokens", "accepted")
        assert_equal(tensor, expected.reshape(shape) if is_path else expected, f"{name} {label}")
    return got


@BACKENDS
@KINDS
def test_matches_the_steps(tree: bool, q: bool, backend: Backend) -> None:
    accepted = 0
    for vocab in (2, 7, 257, 600):
        lengths = (1, 4, 9, 2, 0, 17)
        for s in (Settings(), Settings(0.0), Settings(0.5, 3), Settings(1.0, 0, 0.9, 0.01)):
            draft = random_draft(f"{s}", lengths, vocab, [s] * 6, tree=tree, q=q)
            accepted += int(check(backend, draft, (vocab, s))[1].sum())
    assert accepted > 20, "the drafts show nothing if hardly one is accepted"


@BACKENDS
@DTYPES
def test_requests_of_different_settings(dtype: torch.dtype, backend: Backend) -> None:
    settings = random_settings("verify", 12)
    for tree in (False, True):
        lengths = [random.Random(5).randrange(1, 9) for _ in settings]
        check(backend, random_draft("mixed", lengths, 300, settings, tree=tree, q=True, dtype=dtype), tree)


def draft_of(
    logits: torch.Tensor, drafts: list[int], parents: list[int] | None = None, **options: Any
) -> Draft:
    """One request."""
    rows = len(drafts)
    values: dict[str, Any] = {"draft_probs": None, "s": Settings(0.0), "max": rows} | options
    tree = None if parents is None else torch.tensor(parents, dtype=INT32)
    return Draft(
        logits, torch.tensor(drafts), torch.tensor([0, rows], dtype=INT32), values["max"], tree,
        values["draft_probs"], parameters([values["s"]]), torch.tensor([3]), torch.tensor([8]),
    )  # fmt: skip


def one_hot(tokens: list[int], vocab: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), vocab).float()


@BACKENDS
def test_greedy_chain_and_tree_by_hand(backend: Backend) -> None:
    logits = one_hot([4, 7, 2, 9, 1], 10)
    got = draft_of(logits, [0, 4, 7, 5, 9], max=6).run(backend)
    assert [t.tolist() for t in got] == [[[4, 7, 2, -1, -1, -1]], [2], [2], [[0, 1, 2, -1, -1, -1]], [0]]
    # The root has children 1 (5) and 2 (4); node 2 has 3 (2) and 4 (2), of which the first is taken.
    got = draft_of(logits, [0, 5, 4, 2, 2], [-1, 0, 0, 2, 2]).run(backend)
    assert [t.tolist() for t in got] == [[[4, 2, 9, -1, -1]], [2], [9], [[0, 2, 3, -1, -1]], [0]]
    got = draft_of(logits[:1], [3]).run(backend)
    assert [t.tolist() for t in got] == [[[4]], [0], [4], [[0]], [0]]


@BACKENDS
@pytest.mark.parametrize("tree", [False, True])
def test_drafts_without_probabilities_change_no_token(tree: bool, backend: Backend) -> None:
    """The tokens are those that sample_tokens draws at the rows of the path with the next offsets."""
    settings = [Settings(), Settings(0.6), Settings(0.0), Settings(1.2, 5), Settings(1.0, 0, 0.9, 0.02)] * 12
    draft = random_draft("same tokens", [1 + i % 8 for i in range(60)], 90, settings, tree=tree, q=False)
    tokens, count, bonus, accepted, flags = draft.run(backend)
    assert not flags.any() and count.sum() > 10
    for r in range(60):
        rows = accepted[r, : count[r] + 1].long() + draft.cu_seqlens_q[r]
        given = {name: value[r : r + 1] for name, value in draft.given.items()}
        want = backend.run(
            "sample_tokens", draft.logits[rows], **given, seed=draft.seed[r : r + 1],
            offset=draft.offset[r] + torch.arange(len(rows)),
        )  # fmt: skip
        assert_equal(tokens[r, : count[r] + 1], want[0])
        assert bonus[r] == want[0][-1]
        assert (tokens[r, count[r] + 1 :] == -1).all() and (accepted[r, count[r] + 1 :] == -1).all()


@BACKENDS
def test_rows_of_zeros_are_drafts_without_probabilities(backend: Backend) -> None:
    """They are accepted with probability p, and a rejected token cannot come back."""
    logits = torch.tensor([[1.0, 0.0, 0.5]]).log().expand(4, 3)
    for seed in range(40):
        for drafts in ([0, 2, 0, 2], [0, 1, 1, 1]):
            draft = draft_of(
                logits, drafts, [-1, 0, 0, 0], draft_probs=torch.zeros(4, 3), s=Settings()
            )._replace(seed=torch.tensor([seed]))
            count = check(backend, draft, seed)[1]
            assert int(count[0]) == (drafts[1] == 2)  # 2 or, if it is rejected, 0 is certain


@BACKENDS
def test_certain_drafts(backend: Backend) -> None:
    """q = p accepts everything; where q and p do not overlap, nothing."""
    logits = torch.tensor([[0.25, 0.75, 0.0, 0.0]]).log().expand(5, 4)
    p, apart = logits.softmax(1), torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(5, 4)
    for seed in range(30):
        for q, drafts, accepted in ((p, [0, 1, 0, 0, 1], 4), (apart, [0, 2, 3, 2, 3], 0)):
            draft = draft_of(logits, drafts, draft_probs=q, s=Settings())._replace(seed=torch.tensor([seed]))
            assert int(check(backend, draft, seed)[1][0]) == accepted


@BACKENDS
@KINDS
def test_ids_and_parents_of_any_value(tree: bool, q: bool, backend: Backend) -> None:
    """A draft outside the vocabulary, or without a parent before it, is never accepted."""
    vocab, ids = 50, (-1, 50, 51, 2**31 - 1, -(2**31), 2**40, -(2**63))
    for s in (Settings(), Settings(0.0)):
        draft = random_draft(f"ids {s}", [8] * 4, vocab, [s] * 4, tree=tree, q=q)
        tokens = draft.draft_tokens.long()
        for i, x in enumerate(ids):
            tokens[8 * (i % 4) + 1 + i] = x
        check(backend, draft._replace(draft_tokens=tokens), s)
    if tree:
        r = random.Random(1)
        draft = random_draft("parents", [8] * 4, vocab, [Settings()] * 4, tree=True, q=q)
        for _ in range(10):
            parents = torch.tensor(
                [r.choice((-1, 0, 1, 3, 7, 8, -2, 2**31 - 1)) for _ in range(32)], dtype=INT32
            )
            check(backend, draft._replace(parents=parents), parents.tolist())


@BACKENDS
def test_offsets_of_any_value(backend: Backend) -> None:
    """A request with bad offsets is flagged; those with good offsets are as alone."""
    draft = random_draft("offsets", [3, 3, 3, 3], 40, [Settings()] * 4, tree=False, q=True)
    for offsets in (
        [0, 3, 3, 3, 12], [-1, 3, 6, 9, 12], [0, 13, 6, 9, 12], [2**31 - 1, -(2**31), 6, 9, 12],
        [12, 9, 6, 3, 0], [0, 3, 6, 9, 2**31 - 1], [0, 4, 6, 9, 12],
    ):  # fmt: skip
        bad = draft._replace(cu_seqlens_q=torch.tensor(offsets, dtype=INT32))
        flags = check(backend, bad, offsets)[4].tolist()
        assert any(flags) and set(flags) <= {0, lamina.SampleFlag.OFFSETS, lamina.SampleFlag.NO_ROW}


@BACKENDS
@DTYPES
def test_a_request_that_cannot_be_verified_harms_no_other(dtype: torch.dtype, backend: Backend) -> None:
    """NaN, Inf and rows without a token, in logits and in draft_probs; then rubbish everywhere."""
    r, lengths = random.Random(2), [4, 1, 4, 3, 4]
    for tree in (False, True):
        good = random_draft("good", lengths, 33, [Settings()] * 5, tree=tree, q=True, dtype=dtype)
        want = good.run(backend)
        for row, value in ((5, torch.nan), (6, torch.inf), (7, -torch.inf), (8, torch.nan)):
            logits, probs = good.logits.clone(), good.draft_probs.clone()  # type: ignore[union-attr]
            logits[row] = value
            one = check(backend, good._replace(logits=logits), (row, value))
            probs[row, 3] = value
            two = check(backend, good._replace(draft_probs=probs), (row, value))
            for got in (one, two):
                for tensor, right in zip(got, want, strict=True):
                    others = torch.tensor([0, 1, 3, 4])
                    assert_equal(tensor[others], right[others])
        for _ in range(20):
            logits, probs = good.logits.clone(), good.draft_probs.clone()  # type: ignore[union-attr]
            for t in (logits, probs):
                for _ in range(12):
                    place = r.randrange(16), r.randrange(33)
                    t[place] = r.choice((torch.nan, torch.inf, -torch.inf, 0.0, -0.5, 1.004, 1.5, 1e30))
            check(backend, good._replace(logits=logits, draft_probs=probs), "rubbish")


@BACKENDS
def test_rows_that_are_not_needed_are_not_read(backend: Backend) -> None:
    """Logits of drafts that are rejected, and draft_probs of leaves and of greedy requests."""
    logits = one_hot([4, 7, 2], 10)
    logits[1:] = torch.nan
    got = draft_of(logits, [0, 5, 7]).run(backend)
    assert got[0].tolist() == [[4, -1, -1]] and got[4].tolist() == [0]
    for s, probs in (
        (Settings(0.0), torch.full((1, 10), torch.nan)),
        (Settings(), torch.full((1, 10), -1.0)),
    ):
        one = draft_of(logits[:1], [5], draft_probs=probs, s=s)
        assert one.run(backend)[4].tolist() == [0]


@BACKENDS
def test_a_request_is_the_same_in_every_batch(backend: Backend) -> None:
    settings = random_settings("batch", 9)
    draft = random_draft("batch", [1 + i % 6 for i in range(9)], 65, settings, tree=True, q=True)
    whole = draft.run(backend)
    for r in (0, 4, 8):
        rows = slice(int(draft.cu_seqlens_q[r]), int(draft.cu_seqlens_q[r + 1]))
        assert draft.parents is not None and draft.draft_probs is not None
        alone = Draft(
            draft.logits[rows], draft.draft_tokens[rows],
            torch.tensor([0, rows.stop - rows.start], dtype=INT32), draft.max_seqlen_q,
            draft.parents[rows], draft.draft_probs[rows],
            {name: value[r : r + 1] for name, value in draft.given.items()},
            draft.seed[r : r + 1], draft.offset[r : r + 1],
        )  # fmt: skip
        for got, want in zip(alone.run(backend), whole, strict=True):
            assert_equal(got, want[r : r + 1])


@CPU
@pytest.mark.usefixtures("restore_threads")
def test_independent_of_the_thread_count(backend: Backend) -> None:
    draft = random_draft("threads", [5] * 30, 3000, random_settings("threads", 30), tree=True, q=True)
    want = draft.run(backend)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for got, right in zip(draft.run(backend), want, strict=True):
            assert_equal(got, right, threads)


@BACKENDS
def test_offsets_of_random_numbers_wrap_around(backend: Backend) -> None:
    draft = random_draft("wrap", [4] * 6, 5, [Settings(3.0)] * 6, tree=False, q=True)
    check(backend, draft._replace(offset=torch.tensor([2**63 - 1, 2**63 - 2, -1, -2, 2**32 - 1, 0])))


@pytest.mark.parametrize("emulated", emulator_parameters("sample"))
def test_every_schedule_gives_the_same(emulated: EmulatedKernel) -> None:
    draft = random_draft("schedules", [5, 1, 7], 150, random_settings("schedules", 3), tree=True, q=True)
    for seed in range(4):
        check(dataclasses.replace(emulated, seed=seed), draft, seed)


@pytest.mark.parametrize("emulated", emulator_parameters("sample"))
def test_more_levels_than_shared_memory_holds(emulated: EmulatedKernel) -> None:
    draft = random_draft("levels", [2], 5, [Settings()], tree=False, q=True)
    with pytest.raises(ValueError, match="max_seqlen_q = 2001; at most 2000 with draft_probs on CUDA"):
        draft._replace(max_seqlen_q=2001).run(emulated)


def test_nothing_to_verify() -> None:
    one, none = torch.ones(1, dtype=torch.int64), torch.zeros(0, dtype=INT32)
    got = lamina.verify_draft(torch.zeros(0, 5), none, torch.zeros(1, dtype=INT32), 3, seed=one, offset=one)
    assert [tuple(t.shape) for t in got] == [(0, 3), (0,), (0,), (0, 3), (0,)]
    got = lamina.verify_draft(
        torch.zeros(2, 0),
        torch.zeros(2, dtype=INT32),
        torch.tensor([0, 2, 2], dtype=INT32),
        2,
        seed=one,
        offset=one,
    )
    assert got.flags.tolist() == [lamina.SampleFlag.NO_TOKEN, lamina.SampleFlag.NO_ROW]
    assert got.tokens.tolist() == [[0, -1], [-1, -1]] and got.bonus.tolist() == [0, 0]


def test_accepted_nodes_are_what_compact_kv_takes() -> None:
    """A tree through pack_tree_mask, attention, verify_draft and compact_kv; a plain request has its bits."""
    g, heads, dim = generator("compact"), 2, 16
    parents = torch.tensor([-1, 0, 0, 1, 2, 2], dtype=INT32)
    cu, lens = torch.tensor([0, 6], dtype=INT32), torch.tensor([9], dtype=INT32)
    k, v = torch.randn(2, 8, heads, dim, generator=g), torch.randn(2, 8, heads, dim, generator=g)
    q = torch.randn(6, heads, dim, generator=g)
    table = torch.tensor([[1, 0]], dtype=INT32)
    mask = lamina.pack_tree_mask(parents, cu, 6)
    out = lamina.paged_attention(q, k, v, table, lens, cu, max_seqlen_q=6, **mask._asdict())
    logits = one_hot([3, 1, 5, 1, 1, 1], 8)
    found = lamina.verify_draft(
        logits, torch.tensor([0, 2, 3, 5, 4, 5]), cu, 6, parents=parents, temperature=torch.zeros(1),
        seed=torch.zeros(1, dtype=torch.int64), offset=torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    assert found.accepted.tolist() == [[0, 2, 5, -1, -1, -1]] and found.tokens.tolist() == [
        [3, 5, 1, -1, -1, -1]
    ]
    lamina.compact_kv(k, v, table, lens, mask.tree_len, found.accepted)
    kept = lens - mask.tree_len + found.num_accepted + 1
    plain = lamina.paged_attention(
        q[[0, 2, 5]], k, v, table, kept, torch.tensor([0, 3], dtype=INT32), max_seqlen_q=3
    )
    assert_equal(plain, out[[0, 2, 5]])


def test_python_function_calls_the_op() -> None:
    draft = random_draft("python", [3, 5], 20, [Settings(0.7, 9, 0.8, 0.1)] * 2, tree=True, q=True)
    got = lamina.verify_draft(
        draft.logits, draft.draft_tokens, draft.cu_seqlens_q, draft.max_seqlen_q, parents=draft.parents,
        draft_probs=draft.draft_probs, **draft.given, seed=draft.seed, offset=draft.offset,
    )  # fmt: skip
    assert [t.tolist() for t in got] == verified(draft)
    assert reference.AGAINST_DRAFT == 2**32 - 1
