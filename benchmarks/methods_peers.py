"""Our methods against those of other libraries: the same model, calibration tokens, bits and group size.

    OMP_NUM_THREADS=1 python benchmarks/methods_peers.py MODELS DATA [--libraries qllm_hf,hqq] [--again]

MODELS is a folder with stories260K, DATA one with calibration/tinystories_calib.jsonl and basic_nlp/tinystories.jsonl
(one {"text": ...} per line). Every library that can be imported here is measured; rows of results/methods_peers.csv
that are there already are kept, so that libraries which cannot be installed together can be measured one after the
other. --again measures what can be imported here anew.

Weights alone, asymmetric, with the output head and the embeddings in float, and each library's own defaults beyond
that. What is scored is the model in float32 with the weights that its codes mean, so no kernel has a part in it. On
the same windows of held-out text:

- the mean loss, in nats per token, and its difference to the float model's;
- the mean divergence of its next-token distribution from the float model's (KL, in nats per token), which sees what a
  method changes even where the change happens to help.

Both with standard errors over windows; that of a difference is the one of the paired difference. Of the reference
model's text, the loss of the answers alone counts: the words of its prompts are drawn at random, and the model, which
learned one in ten of them, is so sure of itself there that any noise in its weights makes that loss smaller.

stories260K has layers of 64 and 172 inputs, which not every library can cut into groups: what it says is in the column
`remark`. "stories260K padded" is the same function with 20 zero neurons more in each MLP, which all of them can cut.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it does not start with the one that it takes for two cores

import torch
import torch.nn.functional as F
from machine import RESULTS, with_machine, write_rows
from stories import texts
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import qllm_hf
from qllm_hf.curriculum.dialogue import END
from qllm_hf.curriculum.tasks import TASKS, held_out_items
from qllm_hf.methods.calibration import read_calibration, token_blocks

NAME = "methods_peers"
KEY = ("model", "scheme", "group_size", "library", "method")
NOT_HERE = "cannot be imported"
LENGTH = 512  # tokens of a block of calibration text, and of a window of test text
BATCH = 8
INNER = 192  # neurons of the padded model's MLPs: the next multiple of 64
SCORES = ("loss", "difference", "stderr", "kl", "kl_stderr")
ITERATIONS = 200  # AutoRound's default


@dataclass(frozen=True)
class Model:
    """A float model with its texts.

    Attributes:
        folder: of its checkpoint.
        calibration, test: int64 [N, T].
        counted: bool [N, T - 1], the tokens after the first of each window whose loss counts.
        expected: log-probabilities of the float model [N, T - 1, V].
    """

    name: str
    folder: Path
    groups: tuple[int, ...]
    calibration: Tensor
    test: Tensor
    counted: Tensor
    expected: Tensor


@dataclass(frozen=True)
class Job:
    """What a library is asked to do."""

    folder: Path
    bits: int
    group_size: int
    calibration: Tensor

    def float_model(self) -> Any:
        return load(self.folder)


@dataclass(frozen=True)
class Peer:
    """A method of a library.

    Attributes:
        module: what is imported.
        package: what is installed.
        run: the quantized model, to be scored in float32.
        settings: what is not a default of the library.
    """

    library: str
    method: str
    module: str
    package: str
    run: Callable[[Job], Any]
    settings: str = ""


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The layers to quantize: all but the output head."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield name, module


# The libraries


def run_ours(job: Job, method: str) -> Any:
    options: dict[str, Any] = {} if method == "rtn" else {"method": method, "calibration": job.calibration}
    return qllm_hf.quantize_(job.float_model(), f"W{job.bits}", w_group_size=job.group_size, **options)


@torch.no_grad()
def run_hqq(job: Job) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig, Quantizer

    model = job.float_model()
    options = BaseQuantizeConfig(nbits=job.bits, group_size=job.group_size, axis=1)["weight_quant_params"]
    for _, layer in linear_layers(model):
        codes, meta = Quantizer.quantize(layer.weight, device="cpu", compute_dtype=torch.float32, **options)
        layer.weight.copy_(Quantizer.dequantize(codes, meta))
    return model


@torch.no_grad()
def run_quanto(job: Job) -> Any:
    from optimum.quanto import MaxOptimizer, qtypes, quantize_weight

    if f"qint{job.bits}" not in qtypes:
        raise ValueError(f"there is no qint{job.bits} among its types")
    model, qtype = job.float_model(), qtypes[f"qint{job.bits}"]
    for _, layer in linear_layers(model):
        scale, shift = MaxOptimizer()(layer.weight, qtype, 0, job.group_size)
        quantized = quantize_weight(layer.weight, qtype, 0, scale, shift, job.group_size, optimized=False)
        layer.weight.copy_(quantized.dequantize())
    return model


def run_gptqmodel(job: Job, method: str) -> Any:
    from gptqmodel import BACKEND, AWQConfig, GPTQConfig, GPTQModel

    kind, backend = {"gptq": (GPTQConfig, BACKEND.GPTQ_TORCH), "awq": (AWQConfig, BACKEND.AWQ_TORCH)}[method]
    check_gptqmodel(job, method)
    config = kind(bits=job.bits, group_size=job.group_size, sym=False, device="cpu", offload_to_disk=False)
    # its layers for AWQ take no float32
    model = GPTQModel.load(str(job.folder), config, dtype=torch.float16 if method == "awq" else torch.float32)
    model.quantize([{"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]} for ids in job.calibration])
    with tempfile.TemporaryDirectory() as out:
        # in memory, asymmetric layers compute with zero points that are off by one; saved and loaded, they are right
        model.save(out)
        packed = GPTQModel.load(out, device="cpu", dtype=torch.float16, backend=backend).model
    return meant_by(packed, job.float_model())


def check_gptqmodel(job: Job, method: str) -> None:
    """Raises what it would raise in a thread, where an error ends the whole process."""
    for _, layer in linear_layers(job.float_model()):
        if method == "awq" and layer.in_features % job.group_size:
            raise ValueError(f"Expected in_features ({layer.in_features}) to be divisible by group_size")
        if method == "awq" and layer.out_features % 64:
            raise ValueError(f"its search for ranges wants out_features ({layer.out_features}) divisible by 64")
        if job.bits == 3 and layer.out_features % 32:
            raise ValueError(f"it packs 3 bits only if out_features ({layer.out_features}) is divisible by 32")


@torch.no_grad()
def meant_by(packed: Any, model: Any) -> Any:
    """The float model with the weights that packed layers of float16 compute with."""
    for name, layer in linear_layers(model):
        identity = torch.eye(layer.in_features, dtype=torch.float16)
        layer.weight.copy_(packed.get_submodule(name)(identity).T)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # AWQ moves scales into them
            parameter.copy_(packed.get_parameter(name))
    return model


def run_llm_compressor(job: Job, method: str) -> Any:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    weights = {"num_bits": job.bits, "type": "int", "symmetric": False, "strategy": "group"}
    group = {"targets": ["Linear"], "weights": {**weights, "group_size": job.group_size}}
    rounding = GPTQModifier if "gptq" in method else QuantizationModifier
    # it pins the memory of its samples, which needs an accelerator and changes no number
    IntermediatesCache.pin_memory = lambda *_: None
    recipe = [rounding(ignore=["lm_head"], config_groups={"weights": group})]
    if "awq" in method:
        recipe.insert(0, AWQModifier())
    model, ids = job.float_model(), job.calibration
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=ids.shape[1], num_calibration_samples=len(ids))
    return model  # its layers round their weights in every forward


def run_auto_round(job: Job, iterations: int) -> Any:
    from auto_round import AutoRound

    floats, ids = job.float_model(), job.calibration
    model, _ = AutoRound(
        job.float_model(),
        tokenizer=AutoTokenizer.from_pretrained(job.folder),
        bits=job.bits,
        group_size=job.group_size,
        sym=False,
        iters=iterations,
        dataset=list(ids.split(1)),
        nsamples=len(ids),
        seqlen=ids.shape[1],
        amp=False,  # float32 throughout
        device_map="cpu",
        low_cpu_mem_usage=False,
    ).quantize()
    before = dict(linear_layers(floats))
    kept = {name.rpartition(".")[2] for name, layer in linear_layers(model) if layer.weight.equal(before[name].weight)}
    if kept:
        raise ValueError(f"leaves {', '.join(sorted(kept))} in float, whose shapes 32 does not divide")
    return model


def peers() -> list[Peer]:
    """All of them, ours first."""
    ours = [
        Peer("qllm_hf", method, "qllm_hf", "qllm-hf", partial(run_ours, method=method))
        for method in ("rtn", "awq", "gptq", "awq+gptq")
    ]
    compressors = [
        Peer("llm-compressor", method, "llmcompressor", "llmcompressor", partial(run_llm_compressor, method=method))
        for method in ("rtn", "awq", "gptq", "awq+gptq")
    ]
    gptqmodels = [
        Peer("GPTQModel", method, "gptqmodel", "gptqmodel", partial(run_gptqmodel, method=method))
        for method in ("gptq", "awq")
    ]
    rounds = partial(run_auto_round, iterations=ITERATIONS)
    return [
        *ours,
        Peer("quanto", "rtn", "optimum.quanto", "optimum-quanto", run_quanto),
        Peer("HQQ", "hqq", "hqq", "hqq", run_hqq, "axis 1; groups may go over the end of a row"),
        *compressors,
        *gptqmodels,
        Peer("AutoRound", "signround", "auto_round", "auto-round", rounds, f"{ITERATIONS} iterations; no amp"),
    ]


# Models and texts


def make_models(models: Path, data: Path, padded: Path, blocks: int, windows: int) -> list[Model]:
    stories, reference = models / "stories260K", Path(qllm_hf.reference_model())
    tokenizer = AutoTokenizer.from_pretrained(stories)
    calibration, test = (
        # the model's paragraph separator is one line break
        [text.replace("\n\n", "\n") for text in texts(data / folder, name)]
        for folder, name in (("calibration", "tinystories_calib"), ("basic_nlp", "tinystories"))
    )
    calibration_ids = read_calibration(calibration, tokenizer, samples=blocks, seqlen=LENGTH).ids
    test_ids = token_blocks(test, tokenizer, samples=windows, seqlen=LENGTH)
    expected = log_probabilities(load(stories), test_ids)
    pad_neurons(stories, padded)
    apart = (log_probabilities(load(padded), test_ids) - expected).abs().max().item()
    assert apart < 1e-3, apart
    scored = (test_ids, torch.ones_like(test_ids[:, 1:], dtype=torch.bool), expected)
    found = [
        Model("stories260K", stories, (32, 64, 128), calibration_ids, *scored),
        Model("stories260K padded", padded, (32, 64), calibration_ids, *scored),
    ]
    tokenizer = AutoTokenizer.from_pretrained(reference)
    calibration_ids = read_calibration("curriculum", tokenizer, samples=blocks, seqlen=LENGTH).ids
    test_ids, counted = held_out_windows(tokenizer, windows)
    scored = (test_ids, counted, log_probabilities(load(reference), test_ids))
    return [*found, Model("reference", reference, (32, 64, 128), calibration_ids, *scored)]


def held_out_windows(tokenizer: Any, windows: int) -> tuple[Tensor, Tensor]:
    """Test items of all short tasks, equally many of each, end to end: ids [windows, LENGTH], and which tokens after
    the first of a window belong to an answer. Calibration has the other keys of the same tasks."""
    tasks = [task for task in TASKS.values() if task.longest <= LENGTH]
    each, wanted = 32, windows * LENGTH
    while True:
        items = [item for task in tasks for item in held_out_items(task, each)]
        Random(0).shuffle(items)
        pieces = [piece for item in items for piece in (item.prompt, item.answer + END)]  # as in its training
        ids, answers = [], []
        for at, piece in enumerate(tokenizer(pieces, add_special_tokens=False)["input_ids"]):
            first = [] if at % 2 else [tokenizer.bos_token_id]
            ids += first + piece
            answers += [False] * len(first) + [bool(at % 2)] * len(piece)
        if len(ids) >= wanted:
            shape = (windows, LENGTH)
            return torch.tensor(ids[:wanted]).view(shape), torch.tensor(answers[:wanted]).view(shape)[:, 1:]
        each *= 2


@torch.no_grad()
def pad_neurons(source: Path, target: Path) -> None:
    """A checkpoint of the same function with MLPs of INNER neurons: those that are new give 0 and are multiplied
    by 0."""
    model = load(source)
    missing = INNER - model.config.intermediate_size
    for layer in model.model.layers:
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight = nn.Parameter(F.pad(projection.weight, (0, 0, 0, missing)))
            projection.out_features = INNER
        layer.mlp.down_proj.weight = nn.Parameter(F.pad(layer.mlp.down_proj.weight, (0, missing)))
        layer.mlp.down_proj.in_features = INNER
    model.config.intermediate_size = INNER
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


@torch.no_grad()
def log_probabilities(model: Any, windows: Tensor) -> Tensor:
    """Of every token after the first of each window: float32 [N, T - 1, V]."""
    found = [model(input_ids=ids, use_cache=False).logits[:, :-1].float() for ids in windows.split(BATCH)]
    return F.log_softmax(torch.cat(found), -1)


def mean_and_error(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    """The mean over all tokens, from sums and numbers of tokens of windows [N], and its standard error."""
    mean = (sums.sum() / counts.sum()).item()
    size = len(sums)
    return mean, ((sums - mean * counts).square().sum() * size / (size - 1)).sqrt().item() / counts.sum().item()


def score(quantized: Any, model: Model) -> dict[str, str]:
    """The columns that say how good a quantized model is."""
    found = log_probabilities(quantized, model.test)
    target = model.test[:, 1:, None]
    nats, expected = (-logs.gather(-1, target)[..., 0].double() * model.counted for logs in (found, model.expected))
    divergence = (model.expected.exp() * (model.expected - found)).sum(-1).double()
    counts, all_tokens = model.counted.sum(-1).double(), torch.full((len(found),), float(found.shape[1]))
    difference, stderr = mean_and_error((nats - expected).sum(-1), counts)
    kl, kl_stderr = mean_and_error(divergence.sum(-1), all_tokens.double())
    values = (nats.sum() / counts.sum(), difference, stderr, kl, kl_stderr)
    return {name: f"{value:.5f}" for name, value in zip(SCORES, values, strict=True)}


# The table


@contextmanager
def quiet() -> Iterator[None]:
    """Without the many lines that some libraries print."""
    logging.disable(logging.WARNING)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(logging.NOTSET)


def importable(peer: Peer) -> bool:
    try:
        with quiet():
            importlib.import_module(peer.module)
    except ImportError:
        return False
    return True


def version_of(package: str) -> str:
    return qllm_hf.__version__ if package == "qllm-hf" else version(package)  # ours may lie on the path uninstalled


def measure(model: Model, bits: int, group_size: int, peer: Peer) -> dict[str, Any]:
    """One row of the table; where a library cannot do what it is asked, with its own words for the reason."""
    row: dict[str, Any] = {"model": model.name, "scheme": f"W{bits}", "group_size": group_size}
    row |= {"library": peer.library, "method": peer.method}
    here = importable(peer)
    row |= {"version": version_of(peer.package) if here else "", "settings": peer.settings}
    row |= {"calibration_blocks": len(model.calibration), "windows": len(model.test)}
    row |= {"tokens": int(model.counted.sum()), "float_loss": float_loss(model)}
    row |= dict.fromkeys((*SCORES, "seconds", "remark"), "")
    if not here:
        return row | {"remark": NOT_HERE}
    torch.manual_seed(0)
    begin = time.perf_counter()
    try:
        with quiet():
            quantized = peer.run(Job(model.folder, bits, group_size, model.calibration))
    except (Exception, SystemExit) as error:  # of any library, of any kind: the reason is the result
        return row | {"remark": reason_of(error)}
    row["seconds"] = f"{time.perf_counter() - begin:.1f}"
    return row | score(quantized, model)


def float_loss(model: Model) -> str:
    nats = -model.expected.gather(-1, model.test[:, 1:, None])[..., 0].double()
    return f"{nats[model.counted].mean().item():.5f}"


def reason_of(error: BaseException) -> str:
    """The kind of an error and the first lines of what it says, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:160]


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def read_rows() -> dict[tuple[str, ...], dict[str, Any]]:
    path = RESULTS / f"{NAME}.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        return {key_of(row): dict(row) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--libraries", help="of the table, with commas between; all if not given")
    parser.add_argument("--only", help="models of the table, with commas between; all if not given")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.add_argument("--blocks", type=int, default=128, help=f"of calibration text, {LENGTH} tokens each")
    parser.add_argument("--windows", type=int, default=128, help=f"of test text, {LENGTH} tokens each")
    given = parser.parse_args()
    asked = [peer for peer in peers() if not given.libraries or peer.library in given.libraries.split(",")]
    rows = read_rows()
    with tempfile.TemporaryDirectory() as padded:
        models = make_models(given.models, given.data, Path(padded), given.blocks, given.windows)
        names = [model.name for model in models]
        order = [(n, f"W{b}", str(g)) for n in names for b in (4, 3) for g in (32, 64, 128)]
        places = [(peer.library, peer.method) for peer in peers()]
        for model in models:
            if given.only and model.name not in given.only.split(","):
                continue
            for bits in (4, 3):
                for group_size, peer in ((size, peer) for size in model.groups for peer in asked):
                    key = (model.name, f"W{bits}", str(group_size), peer.library, peer.method)
                    known = key in rows and rows[key]["remark"] != NOT_HERE
                    if known and not (given.again and importable(peer)):
                        continue
                    rows[key] = with_machine([measure(model, bits, group_size, peer)])[0]
                    shown = (*SCORES, "seconds", "remark")
                    print(*key, *(rows[key][name] for name in shown), flush=True)
                    ordered = sorted(rows, key=lambda k: (order.index(k[:3]), places.index(k[3:])))
                    write_rows(NAME, [rows[k] for k in ordered])
    print(RESULTS / f"{NAME}.csv")


if __name__ == "__main__":
    main()
