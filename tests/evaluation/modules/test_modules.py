"""The five metrics as `evaluate` loads them: from a path, without network, alone, together, and in two processes."""

import doctest
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import pytest
from huggingface_hub import metadata_load

from qllm_hf.errors import ConfigError
from qllm_hf.evaluation.modules import FOLDERS, module_path, page, task_table
from qllm_hf.evaluation.record import ABILITIES
from qllm_hf.evaluation.scoring.abilities import score_ability

FILES = {"README.md", "app.py", "requirements.txt"}
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


pytestmark = pytest.mark.usefixtures("metrics_cache")


def load(ability, **options):
    return evaluate.load(module_path(ability), **options)


def items(*abilities):
    """(predictions, references) of the rows that the pages start from."""
    rows = [row for ability in abilities for row in page.EXAMPLES[ability]]
    references = [
        {"task": task, "answers": [text.strip() for text in answers.split("|") if text.strip()], "group": group}
        for task, _, answers, group in rows
    ]
    return [row[1] for row in rows], references


def readme(ability):
    return (Path(module_path(ability)) / "README.md").read_text(encoding="utf-8")


def test_there_is_one_for_each_ability():
    assert tuple(FOLDERS) == ABILITIES
    for folder in FOLDERS.values():
        found = {path.name for path in (Path(module_path("nlp")).parent / folder).iterdir() if path.is_file()}
        assert found == FILES | {f"{folder}.py"}


def test_no_such_ability():
    with pytest.raises(ConfigError, match="mean 'dialogue'"):
        module_path("dialog")


@pytest.mark.parametrize("ability", ABILITIES)
def test_it_is_our_metric_and_gives_our_numbers(ability):
    metric = load(ability)
    assert (type(metric).ability, metric.name) == (ability, FOLDERS[ability])
    assert metric.description and "Quantized Large Language Models" in metric.citation
    assert "baseline_predictions" in metric.compute.__doc__
    predictions, references = items(ability)
    found = metric.compute(predictions=predictions, references=references)
    assert found == pytest.approx(score_ability(ability, predictions, references), nan_ok=True)
    assert found[f"{ability}_stderr"] >= 0


def test_a_baseline_is_an_argument_of_compute():
    predictions, references = items("emergent")
    found = load("emergent").compute(predictions=predictions, references=references, baseline_predictions=predictions)
    assert found["emergent_recovery"] == 1.0 and found["qllm_mmlu_change"] == 0.0


def test_one_by_one_and_in_batches():
    predictions, references = items("long")
    whole = load("long").compute(predictions=predictions, references=references)
    single = load("long")
    for prediction, reference in zip(predictions, references, strict=True):
        single.add(prediction=prediction, reference=reference)
    assert single.compute() == whole
    batches = load("long")
    batches.add_batch(predictions=predictions[:1], references=references[:1])
    batches.add_batch(predictions=predictions[1:], references=references[1:])
    assert batches.compute() == whole


def test_all_five_together_on_mixed_items():
    predictions, references = items(*ABILITIES)
    found = evaluate.combine([module_path(name) for name in ABILITIES]).compute(
        predictions=predictions[::-1], references=references[::-1]
    )
    for ability in ABILITIES:
        alone = score_ability(ability, *items(ability))
        assert {name: found[name] for name in alone} == pytest.approx(alone, nan_ok=True)
    # No name had to be prefixed.
    assert not [name for name in found if name.startswith(tuple(FOLDERS.values()))]


def test_together_with_a_baseline():
    predictions, references = items("nlp", "trust")
    found = evaluate.combine([module_path(name) for name in ("nlp", "trust", "long")]).compute(
        predictions=predictions, references=references, baseline_predictions=predictions
    )
    assert found["nlp_recovery"] == 1.0
    assert found["long_tasks"] == 0 and math.isnan(found["long_recovery"])


def test_two_processes(tmp_path):
    """The first one gets the scores of all items, in the order of the processes; threads serve as processes here."""
    predictions, references = items("nlp")

    def work(rank):
        metric = load("nlp", num_process=2, process_id=rank, experiment_id="two", cache_dir=str(tmp_path), timeout=30)
        half = slice(rank * 3, rank * 3 + 3)
        return metric.compute(
            predictions=predictions[half], references=references[half], baseline_predictions=predictions
        )

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert second is None
    assert first == pytest.approx(score_ability("nlp", predictions, references, predictions), nan_ok=True)


@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        ([], [], ConfigError, "no items"),
        (["1"], [{"task": "qllm_piq", "answers": ["1"], "group": ""}], ConfigError, "mean 'qllm_piqa'"),
        (["9.7"], [{"task": "wikitext", "answers": [], "group": ""}], ConfigError, "perplexity"),
        ([1], [{"task": "qllm_piqa", "answers": ["1"], "group": ""}], ValueError, "expected format"),
        (["1"], [], ValueError, "Mismatch"),
    ],
)
def test_what_cannot_be_scored(predictions, references, error, message):
    with pytest.raises(error, match=message):
        load("nlp").compute(predictions=predictions, references=references)


OFFLINE = """
import json, evaluate
from qllm_hf.evaluation.modules import FOLDERS, module_path
reference = {"task": "qllm_piqa", "answers": ["1"], "group": ""}
metric = evaluate.combine([module_path(ability) for ability in FOLDERS])
print(json.dumps(metric.compute(predictions=["1"], references=[reference])["nlp"]))
"""


@pytest.mark.slow
def test_a_fresh_installation_without_network(tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == 1.0


def test_a_class_in_the_namespace_would_be_taken_for_the_metric(tmp_path):
    """Why the files import a module: with the class itself, evaluate takes the base and finds no ability."""
    folder = tmp_path / "qllm_wrong"
    folder.mkdir()
    source = (Path(module_path("nlp")) / "qllm_basic_nlp.py").read_text(encoding="utf-8")
    source = source.replace("modules import metric", "modules.metric import AbilityMetric")
    (folder / "qllm_wrong.py").write_text(source.replace("metric.AbilityMetric", "AbilityMetric"), encoding="utf-8")
    assert not hasattr(evaluate.load(str(folder)), "ability")


@pytest.mark.parametrize("ability", ABILITIES)
def test_the_readme_is_a_card_of_a_space(ability):
    card = metadata_load(Path(module_path(ability)) / "README.md")
    assert {"title", "sdk", "sdk_version", "app_file", "tags", "description"} <= card.keys()
    assert (card["sdk"], card["app_file"], card["tags"]) == ("gradio", "app.py", ["evaluate", "metric"])
    assert re.search(r'^sdk_version: "6\.\d+\.\d+"$', readme(ability), re.MULTILINE)
    assert " ".join(card["description"].split()) in " ".join(type(load(ability)).__doc__.split())


@pytest.mark.parametrize("ability", ABILITIES)
def test_the_readme_lists_the_tasks_as_they_are(ability):
    assert task_table(ability) in readme(ability)


@pytest.mark.parametrize("ability", ABILITIES)
def test_the_readme_shows_what_comes_out(ability):
    reports = []
    (source,) = PYTHON.findall(readme(ability))
    example = doctest.DocTestParser().get_doctest(source, {}, ability, "README.md", 0)
    assert example.examples[-1].want
    doctest.DocTestRunner().run(example, out=reports.append)
    assert not reports, "".join(reports)


@pytest.mark.parametrize("ability", ABILITIES)
def test_rows_of_a_page_to_rows_of_scores(ability):
    rows = page.score_rows(ability, page.EXAMPLES[ability])
    assert all(len(row) == len(page.RESULTS) for row in rows)
    scores = score_ability(ability, *items(ability))
    assert rows[0][1] == f"{scores[ability]:.3f}"
    tasks = dict.fromkeys(row[0] for row in page.EXAMPLES[ability])
    assert tasks.keys() <= {row[0] for row in rows}


def test_rows_that_a_person_leaves_behind():
    rows = [[" qllm_piqa ", 1, " 1 ", None], ["", "", "", ""], [None, None, None, None]]
    assert page.score_rows("nlp", rows)[1] == ["qllm_piqa", "1.000", "", "1", "100%"]
    with pytest.raises(ConfigError, match="none of these items is of ability 'long'"):
        page.score_rows("long", rows)
    with pytest.raises(ConfigError, match="no items"):
        page.score_rows("nlp", rows[1:])


@pytest.mark.parametrize("ability", ABILITIES)
def test_the_page(ability):
    gradio = pytest.importorskip("gradio")
    blocks = page.build(ability)
    assert isinstance(blocks, gradio.Blocks)
    (callback,) = (entry.fn for entry in blocks.fns.values())
    assert callback(page.EXAMPLES[ability]) == page.score_rows(ability, page.EXAMPLES[ability])
    with pytest.raises(gradio.Error, match="mean 'qllm_piqa'"):
        callback([["qllm_piq", "1", "1", ""]])


def test_the_page_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install 'qllm-hf\[space\]'"):
        page.build("nlp")
