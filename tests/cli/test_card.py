"""`qllm-hf card`: what it says is true, can be run, and is read by huggingface_hub as it was written."""

from __future__ import annotations

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from publishing.models import change_recipe, quantized, results, run

from qllm_hf.publishing.merge import BEGIN, END
from qllm_hf.publishing.recipe import RECIPE
from qllm_hf.publishing.sections import renamed

pytestmark = pytest.mark.oldest


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The reference model as W4KV8, with a card that has scores."""
    folder = quantized(tmp_path_factory.mktemp("card") / "model-w4kv8")
    scores = results(tmp_path_factory.mktemp("scores") / "results", folder)
    run("card", folder, "--results", scores)
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """The same without a card."""
    folder = shutil.copytree(made, tmp_path / "model-w4kv8")
    (folder / "README.md").unlink()
    return folder


def rows(card: str, heading: str) -> dict[str, list[str]]:
    """{first cell: other cells} of the tables under a heading."""
    part = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.split("\n") if line.startswith("|")]
    return {row[0] if len(row) < 8 else row[1]: row for row in cells}


def test_front_matter(made):
    data = ModelCard.load(made / "README.md").data
    assert (
        data.to_dict().items()
        >= {
            "language": "en",
            "license": "apache-2.0",
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["qllm_hf", "quantized", "w4", "kv8", "4-bit", "kv-cache"],
        }.items()
    )
    assert data.base_model is None, "it is not on the Hub"
    found = {each.metric_config: each for each in data.eval_results}
    assert len(found) == 4, "every result"
    gsm8k = found["qllm_gsm8k"]
    assert (gsm8k.dataset_type, gsm8k.dataset_config, gsm8k.dataset_split) == ("openai/gsm8k", "main", "test")
    assert (gsm8k.metric_type, gsm8k.metric_value) == ("acc", 0.49)
    assert gsm8k.metric_args.items() >= {"stderr": 0.013, "items": 1319, "shots": 4, "scheme": "W4KV8"}.items()
    assert not any("partial" in each.metric_name for each in found.values())


def test_card_is_read_back_as_it_was_written(made):
    content = (made / "README.md").read_text(encoding="utf-8")
    assert ModelCard(content).content == content
    other = content.replace("license: apache-2.0", "license:   apache-2.0")
    assert ModelCard(other).content != other, "the comparison notices a changed form"


def test_same_inputs_same_bytes(made, tmp_path):
    other = shutil.copytree(made, tmp_path / "model-w4kv8")
    for name in ("README.md", ".eval_results/qllm_gsm8k.yaml", "qllm_results/records.jsonl"):
        (other / name).unlink()
    scores = results(tmp_path / "results", other)
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    run("card", other, "--results", scores)
    assert {path.relative_to(other): path.read_bytes() for path in other.rglob("*") if path.is_file()} == {
        path.relative_to(made): content for path, content in before.items()
    }
    run("card", other, "--results", scores)
    assert (other / "README.md").read_bytes() == before[made / "README.md"], "and over itself"


def test_example_runs(made, capsys):
    card = (made / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert 'name = "model-w4kv8"' in code
    exec(renamed(code, str(made)), {})
    said = capsys.readouterr().out
    assert said.startswith("Once upon a time ")
    assert "scheme W4KV8" in said


def test_numbers_are_those_of_the_files_and_the_report(made):
    card = (made / "README.md").read_text(encoding="utf-8")
    weights = (made / "model.safetensors").read_bytes()
    assert rows(card, "How it was made")["`model.safetensors`"][1:] == [
        f"{len(weights):,}",
        f"`{sha256(weights).hexdigest()}`",
    ]
    assert rows(card, "What it takes")["linear"][1:] == ["4", "128", "35", "2,949,120", "1.54 MB", "4.188"]
    assert "qllm-hf quantize reference --scheme W4KV8 --output model-w4kv8" in card
    assert "files:" in rows(card, "How it was made")["base model"][1]


def test_scores_are_next_to_those_of_the_float_model(made):
    card = (made / "README.md").read_text(encoding="utf-8")
    scores = rows(card, "What it can still do")
    gsm8k = next(row for name, row in scores.items() if "qllm_gsm8k" in name)
    assert gsm8k[2:] == [
        "acc", "0.5000 ± 0.0130", "0.4900 ± 0.0130", "-0.0100 ± 0.0184, within noise", "98.0 % ± 3.6", "1,319", "4",
        "0/1234",
    ]  # fmt: skip
    assert scores["emergent"][1] == "3"
    # (0.98 + (0.588 - 0.25) / 0.35 + (0.539 - 0.25) / 0.3) / 3
    assert scores["emergent"][4].startswith("97.0 %")
    assert rows(card, "Other schemes of the same model")["W3"][4].startswith("69.7 %")


def test_difference_beyond_noise_is_not_called_noise(copy, tmp_path):
    scores = results(tmp_path / "results", copy, stderr=0.001)
    run("card", copy, "--results", scores)
    assert "noise |" not in (copy / "README.md").read_text(encoding="utf-8").split("within two")[0]


def test_leaderboards_get_whole_benchmarks_only(made, copy, tmp_path):
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    (written,) = (made / ".eval_results").iterdir()
    entry = EvalResultEntry(
        dataset_id="openai/gsm8k",
        task_id="gsm8k",
        value=49.0,
        date="2026-01-01T00:00:00+00:00",
        notes="W4KV8, 4-shot, n=1319, acc in percent, qllm_hf 0.1.0",
    )
    assert yaml.safe_load(written.read_text()) == eval_result_entries_to_yaml([entry])
    shutil.rmtree(copy / ".eval_results")
    for scores in ({"limit": 200, "items": 200}, {"items": 1000}):
        run("card", copy, "--results", results(tmp_path / str(len(scores)), copy, **scores))
        assert not (copy / ".eval_results").exists()


def test_partial_scores_say_so_everywhere(copy, tmp_path):
    run("card", copy, "--results", results(tmp_path / "results", copy, limit=200, items=200))
    card = ModelCard.load(copy / "README.md")
    for each in card.data.eval_results:
        assert "partial: the first 200 items" in each.metric_name
        assert each.metric_args["partial"] is True
    assert "**Partial**: only the first 200 items" in card.text
    assert card.text.count("\\*") == 2 * 4 + 2 + 1, "each score, each mean, and the legend"


def test_evidence_has_no_paths(copy, tmp_path):
    hidden = tmp_path / "home" / "model"
    run("card", copy, "--results", results(tmp_path / "results", copy, model=str(hidden)))
    for path in (copy / "README.md", copy / "qllm_results" / "records.jsonl", copy / RECIPE):
        assert str(tmp_path) not in path.read_text(encoding="utf-8")
    lines = (copy / "qllm_results" / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["model"] for line in lines} == {"model"}
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"revision": "files:000000000000"}, "(files:000000000000), and 'model-w4kv8' was made from reference"),
        ({"quantization": {"quant_method": "qllm", "method": "awq"}}, "quantized otherwise: a was None"),
        ({"scheme": "W4"}, "are of FP16, W4, W3; 'model-w4kv8' is W4KV8"),
    ],
)
def test_results_of_something_else_are_refused(copy, tmp_path, changes, said):
    scores = results(tmp_path / "results", copy, **changes)
    message = run("card", copy, "--results", scores, code=1).stderr
    assert said in message and "qllm-hf evaluate" in message
    assert not (copy / "README.md").exists()


def test_abilities_are_compared_over_the_same_tasks(copy, tmp_path):
    scores = results(tmp_path / "results", copy)
    lines = (scores / "records.jsonl").read_text().splitlines()
    kept = [line for line in lines if not ('"W3"' in line and "qllm_mmlu" in line)]
    kept = [line for line in kept if not ('"W4KV8"' in line and "qllm_calibration" in line)]
    assert len(kept) == len(lines) - 2
    (scores / "records.jsonl").write_text("\n".join(kept) + "\n")
    run("card", copy, "--results", scores)
    card = (copy / "README.md").read_text(encoding="utf-8")
    # of GSM8K and MMLU, which were measured of both: (0.5 + 0.6) / 2
    assert rows(card, "What it can still do")["emergent"][2].startswith("0.5500")
    assert rows(card, "Other schemes of the same model")["W3"][4] == "-"


def test_results_of_the_folder_itself_have_no_baseline(copy, tmp_path):
    from qllm_hf.revision import revision_of

    scores = results(tmp_path / "results", copy, revision=revision_of(str(copy), None))
    lines = [line for line in (scores / "records.jsonl").read_text().splitlines() if '"W4KV8"' in line]
    (scores / "records.jsonl").write_text("\n".join(lines) + "\n")
    run("card", copy, "--results", scores)
    card = (copy / "README.md").read_text(encoding="utf-8")
    assert "The float model was not measured" in card
    assert "## Other schemes" not in card


def test_own_words_stay(copy):
    run("card", copy)
    place = copy / "README.md"
    first = place.read_text(encoding="utf-8")
    words = first.replace("tags:\n", "widget: mine\ntags:\n- mine\n").replace(BEGIN, f"# Mine\n\n{BEGIN}")
    place.write_text(words.replace("## Use", "## Old") + "Below\n", encoding="utf-8")
    run("card", copy)
    card = ModelCard.load(place)
    assert card.data.to_dict()["widget"] == "mine"
    assert card.data.tags[0] == "mine" and "qllm_hf" in card.data.tags
    assert card.text.startswith("# Mine\n\n<!--") and card.text.endswith("Below\n")
    assert "## Old" not in card.text and "## Use" in card.text
    place.write_text("No markers", encoding="utf-8")
    run("card", copy)
    assert ModelCard.load(place).text.startswith(f"No markers\n\n{BEGIN}")
    assert END in ModelCard.load(place).text


def test_licence_is_inherited_or_said_never_guessed(copy):
    change_recipe(copy, card={})
    message = run("card", copy, code=1).stderr
    assert "names no licence" in message and "--license other --license-name NAME --license-link URL" in message
    assert "Did you mean 'apache-2.0'" in run("card", copy, "--license", "Apache 2.0", code=1).stderr
    assert "needs license_name" in run("card", copy, "--license", "other", code=1).stderr
    assert "no licence" in run("card", copy, "--license-link", "https://x", code=1).stderr
    assert not (copy / "README.md").exists()
    run("card", copy, "--license", "other", "--license-name", "mine", "--license-link", "https://x")
    assert ModelCard.load(copy / "README.md").data.license_name == "mine"
    change_recipe(copy, card={"license": "other", "license_name": "theirs", "language": ["en", "de"]})
    assert "license_link" in run("card", copy, code=1).stderr
    (copy / "LICENSE").write_text("their terms")
    run("card", copy)
    assert ModelCard.load(copy / "README.md").data.license_link == "LICENSE"


def test_a_base_model_in_a_folder_hands_down_its_licence(stories, tmp_path):
    base = shutil.copytree(stories, tmp_path / "base", copy_function=shutil.copyfile)
    (base / "LICENSE.txt").write_text("MIT, whole text")
    folder = quantized(tmp_path / "out", base, "W4")
    shutil.rmtree(base)
    done = run("card", folder)
    assert "say its id: --base-model owner/name" in done.stderr
    assert ModelCard.load(folder / "README.md").data.license == "mit"
    assert (folder / "LICENSE").read_text() == "MIT, whole text"
    done = run("card", folder, "--base-model", "karpathy/tinyllamas")
    assert "was not read" in done.stderr, "there is no network, and the folder said the licence"
    data = ModelCard.load(folder / "README.md").data
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("karpathy/tinyllamas", "quantized")
    assert data.license == "mit"


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"---\nlicense: [\n---\n", {}),
        (b"\xff\xfe", {}),
        (b"---\nlicense: mit\nlanguage: [no, en]\ndatasets: 2024-01-01\n---\n",
         {"license": "mit", "language": ["no", "en"]}),
    ],
)  # fmt: skip
def test_a_damaged_card_of_the_base_model_stops_no_quantization(stories, tmp_path, content, kept):
    base = shutil.copytree(stories, tmp_path / "base", copy_function=shutil.copyfile)
    (base / "README.md").write_bytes(content)
    folder = quantized(tmp_path / "out", base, "W4", "--override", f"{'*' * 300}.q_proj=W8")
    assert json.loads((folder / RECIPE).read_text())["card"] == kept
    run("card", folder, code=0 if kept else 1)


def test_another_base_model_is_refused(copy, stories):
    message = run("card", copy, "--base-model", stories, code=1).stderr
    assert "was made from 'reference'" in message


def test_a_folder_without_recipe(copy):
    (copy / RECIPE).unlink()
    assert "does not say which model it was made from" in run("card", copy, code=1).stderr
    run("card", copy, "--base-model", "reference")
    card = (copy / "README.md").read_text(encoding="utf-8")
    assert "The command was not written down." in card
    (copy / RECIPE).write_text("{")
    assert "is damaged" in run("card", copy, code=1).stderr


def test_card_alone_in_a_file(copy, tmp_path):
    before = sorted(copy.rglob("*"))
    said = json.loads(run("card", copy, "-o", tmp_path / "new" / "card.md", "--repo", "a/b", "--json").stdout)
    assert sorted(copy.rglob("*")) == before
    assert said["card"] == str(tmp_path / "new" / "card.md")
    assert ModelCard.load(said["card"]).data.to_dict() == said["front_matter"]
    assert 'name = "a/b"' in Path(said["card"]).read_text(encoding="utf-8")


def test_what_is_no_quantized_model_is_refused(stories, tmp_path):
    assert "float model" in run("card", stories, code=1).stderr
    assert "there is no folder" in run("card", tmp_path / "none", code=1).stderr


def test_recipe_has_the_command_without_paths(stories, tmp_path):
    options = [
        "--w-group-size", "32", "--kv-symmetric", "--keep", "*.q_proj", "--override", "*.up_proj=W8",
        "--dtype", "bfloat16",
    ]  # fmt: skip
    folder = quantized(tmp_path / "deep" / "out", stories, "W4KV4", *options)
    recipe = json.loads((folder / RECIPE).read_text())
    assert recipe["command"] == [
        "qllm-hf", "quantize", "stories260K", "--scheme", "W4KV4", "--output", "out", *options,
    ]  # fmt: skip
    assert recipe["card"] == {"license": "mit"}
    assert (recipe["base"], recipe["kind"]) == ("stories260K", "folder")
