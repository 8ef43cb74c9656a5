"""Bugs to plant in what makes, loads, fuses and judges compressed language models."""

from __future__ import annotations

from tools.mutation.mutant import plant

TRANSFORMERS = "python/lamina/integrations/transformers"
SCHEMES, FUSED = "tests/python/test_compress_schemes.py", "tests/python/test_accelerate.py"
BATCHES = "tests/python/test_continuous_batching.py"
QUANTIZER, GGUF = "tests/python/test_transformers_quantizer.py", "tests/python/test_from_gguf.py"
DEMO, TAKE_OVER = "tests/python/test_demo_llm.py", "tests/python/test_take_over.py"

MUTANTS = (
    *plant(
        "python/lamina/compression/choice.py",
        ("schemes: the last pattern counts", "dict(self.rules)[hits[0]]", "dict(self.rules)[hits[-1]]"),
        (
            "schemes: a catch-all unties",
            "any(name == at for at, _ in self.rules for name in candidate.names)",
            "any(fnmatchcase(name, at) for at, _ in self.rules for name in candidate.names)",
        ),
        ("schemes: dtype of scales dropped", "scale_dtype=scale_dtype,", "scale_dtype=None,"),
        tests=SCHEMES,
    ),
    *plant(
        "python/lamina/compression/ties.py",
        ("head: the config still ties", "part.tie_word_embeddings = False", "pass"),
        ("head: the tie stays declared", 'declared.pop(f"{name}.weight", None)', "pass"),
        tests=SCHEMES,
    ),
    *plant(
        "python/lamina/compression/report.py",
        ("advice: for calibrated weights too", "() if is_calibrated else", "() if False else"),
        ("advice: for models of any size", "weights >= SMALL", "False"),
        tests=SCHEMES,
    ),
    *plant(
        "python/lamina/nn/merged.py",
        (
            "merged: scales along groups",
            '_joined(layers, "weight_scale", 1)',
            '_joined(layers[::-1], "weight_scale", 1)',
        ),
        ("merged: activations differ", 'f"activations = {layer.activations}"', '"activations"'),
        ("merged: an order of features is dropped", "layer.perm is not None", "False"),
        tests=FUSED,
    ),
    *plant(
        f"{TRANSFORMERS}/fused.py",
        (
            "fused: gate and up swapped",
            'merge_rows_of(mlp, "gate_proj", "up_proj")',
            'merge_rows_of(mlp, "up_proj", "gate_proj")',
        ),
        tests=FUSED,
    ),
    *plant(
        f"{TRANSFORMERS}/decoder.py",
        ("fused: norms of heads dropped", "if self.q_norm is not None:", "if False:"),
        ("fused: silu in place of gelu", "if not self.is_silu:", "if False:"),
        ("fused: the softcap dropped", "softcap=self.softcap or 0.0)", "softcap=0.0)"),
        ("fused: attention without the residual", "-1), like.dtype, residual)", "-1), like.dtype, None)"),
        tests=FUSED,
    ),
    *plant(
        f"{TRANSFORMERS}/smoothing.py",
        ("smooth: the bias of the source stays", "source.bias.div_(s)", "pass"),
        ("smooth: the weight of a Gemma gains 1", "full / s - (full - source.weight)", "full / s"),
        ("smooth: any strength is a half", "w.pow(1 - share)", "w.pow(0.5)"),
        ("smooth: something always moves", "moves = [torch.ones_like(x), *moves]", "pass"),
        tests="tests/python/test_smooth.py",
    ),
    *plant(
        f"{TRANSFORMERS}/continuous.py",
        ("batch: the table of the first batch", "if made[0] is lengths:", "if made[0] is not None:"),
        ("batch: windows dropped", "NO_LIMIT if sliding_window is None else", "NO_LIMIT if True else"),
        ("batch: a page early", "torch.arange(most, device", "torch.arange(-1, most - 1, device"),
        tests=BATCHES,
    ),
    *plant(
        f"{TRANSFORMERS}/cache.py",
        (
            "rotary: positions of the first forward",
            "if self._embeddings is not embeddings:",
            "if not self._rotary:",
        ),
        ("rotary: queries are not rotated", "**rotary, q=query)", "**rotary)"),
        tests=FUSED,
    ),
    *plant(
        f"{TRANSFORMERS}/quantizer.py",
        (
            "loading: biases dropped",
            "layer.bias = None if bias is None else bias.detach()",
            "layer.bias = None",
        ),
        ("loading: the prefix stays", "return name.removeprefix(prefix)", "return name"),
        tests=QUANTIZER,
    ),
    *plant(
        f"{TRANSFORMERS}/foreign.py",
        (
            "take_over: options dropped",
            "load_checkpoint(model, self._folder, **options,",
            "load_checkpoint(model, self._folder,",
        ),
        ("give_back: the config stays", "auto.AUTO_QUANTIZATION_CONFIG_MAPPING[method] = config\n", "pass\n"),
        tests=TAKE_OVER,
    ),
    *plant(
        f"{TRANSFORMERS}/gguf.py",
        ("gguf: digits in groups", "individual_digits=True", "individual_digits=False"),
        ("gguf: heads always tied", '"output.weight" not in file.tensors', "True"),
        ("gguf: the frequency of other models", 'field("rope.freq_base", 10000.0)', "10000.0"),
        tests=GGUF,
    ),
    *plant(
        "python/lamina/cli/demo/llm_measure.py",
        ("demo: the likelihood of the same token", "ids[0, 1:])", "ids[0, :-1])"),
        ("demo: divergence the other way", "kl_div(log_p, reference,", "kl_div(reference, log_p,"),
        tests=DEMO,
    ),
    *plant(
        "python/lamina/cli/chat.py",
        ("chat: the cache keeps what has changed", "if held != wanted:", "if False:"),
        ("chat: all tokens anew", "common += 1", "common += 0"),
        tests=DEMO,
    ),
)
