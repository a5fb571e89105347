"""The report is one file that holds everything, shows what the records say, and runs nothing."""

import re
import shutil
from html.parser import HTMLParser

import pytest
from made_results import add, add_size, rewrite

from qllm_hf.errors import CheckpointError
from qllm_hf.page import html
from qllm_hf.page.write import write_report
from qllm_hf.results import read_results, write_command

VOID = {"meta", "br", "img", "input", "link", "hr"}
BEFORE, AFTER = [1.0] * 20, [1.0] * 15 + [0.0] * 5


class Page(HTMLParser):
    """Checks that what is opened is closed, and collects text, ids, links and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.fetched, self.tags = [], [], [], [], set()
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        given = dict(attributes)
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("href", "xlink:href", "src"):
            if name in given:
                (self.links if given[name].startswith("#") else self.fetched).append(given[name])
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "results"
    for scheme, values in (("FP16", BEFORE), ("W4", AFTER), ("KV4", BEFORE)):
        for task in ("mini_cloze", "mini_ethics", "mini_lines_256"):
            add(folder, scheme, task, values)
        add_size(folder, scheme)
    write_command(folder, "qllm-hf sweep model --schemes W4 -o 'my results'")
    return folder


@pytest.fixture(scope="module")
def shown(made, tmp_path_factory):
    """The page of results as they are, and its text: to draw its pictures takes longer than any look at them."""
    return page_of(shutil.copytree(made, tmp_path_factory.mktemp("shown") / "results"))


@pytest.fixture
def folder(made, tmp_path):
    """Results to change."""
    return shutil.copytree(made, tmp_path / "results")


def page_of(folder) -> tuple[Page, str]:
    text = write_report(folder).read_text(encoding="utf-8")
    return Page(text), text


def test_page_holds_everything_and_fetches_nothing(shown):
    page, text = shown
    assert all(each.startswith("data:image/png;base64,") for each in page.fetched), "heat maps are inside"
    assert not page.tags & {"script", "iframe", "object", "link", "form"}
    assert "@import" not in text and "url(http" not in text
    assert text.count("<svg") >= 5


def test_links_lead_somewhere_and_ids_are_unique(shown):
    page, _ = shown
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert "summary" in page.ids


def test_summary_says_what_the_results_say(shown, made):
    page, _ = shown
    summary = {row[0]: row for row in page.tables[0]}
    kept = read_results(made).recovery("W4")
    assert summary["W4"][5:] == [f"{100 * kept[name].value:.1f}±{100 * kept[name].stderr:.1f}" for name in kept]
    assert summary["KV4"][5] == "100.0±0.0" and summary["FP16"][5] == "100"
    assert summary["FP16 scores"][5] == "1.000"


def test_all_scores_are_there_with_noise_marked(shown):
    page, _ = shown
    (scores,) = (table for table in page.tables if table[0][:3] == ["scheme", "ability", "task"])
    assert len(scores) == 1 + 9
    rows = {(row[0], row[2]): row for row in scores}
    assert rows["W4", "mini_cloze"][4].startswith("0.7500±")
    assert rows["W4", "mini_cloze"][5].startswith("-0.2500±") and "noise" not in rows["W4", "mini_cloze"][5]
    assert rows["KV4", "mini_cloze"][5] == "+0.0000±0.0000 (noise)"


def test_what_was_typed_is_shown(shown):
    _, text = shown
    assert "qllm-hf sweep model --schemes W4 -o &#x27;my results&#x27;" in text


def test_whole_scores_are_not_called_partial_and_partial_ones_are(shown, folder):
    assert "PARTIAL" not in shown[1]
    rewrite(folder / "records.jsonl", lambda line: {**line, "limit": 20})
    assert "PARTIAL: only the first 20 items" in page_of(folder)[1]


def test_names_from_data_are_text(folder):
    bad = "<script>alert(1)</script>"
    rewrite(folder / "records.jsonl", lambda line: {**line, "model": bad, "data": {"origin": bad, "digest": bad}})
    rewrite(folder / "records.jsonl", lambda line: {**line, "versions": {bad: bad}})
    write_command(folder, bad)
    page, text = page_of(folder)
    assert "script" not in page.tags and bad not in text and html.text(bad) in text


def test_folders_above_the_model_are_not_told(folder):
    rewrite(folder / "records.jsonl", lambda line: {**line, "model": "/home/somebody/models/llama"})
    heading = re.search(r"<h1>(.*?)</h1>", page_of(folder)[1]).group(1)
    assert heading == "What quantization costs llama"


def test_missing_pictures_are_named(shown):
    page, _ = shown
    (missing,) = (table for table in page.tables if table[0] == ["picture", "why it is not here"])
    assert "What is lost by bits" in {row[0] for row in missing}


def test_page_goes_where_it_is_asked(folder, tmp_path):
    path = write_report(folder, tmp_path / "elsewhere" / "page.html")
    assert path == tmp_path / "elsewhere" / "page.html" and path.exists()
    assert (tmp_path / "elsewhere" / "figures" / "abilities.svg").exists()
    assert not (folder / "report.html").exists()
    assert [each.name for each in path.parent.iterdir() if each.name.startswith(".")] == []


def test_no_results(tmp_path):
    with pytest.raises(CheckpointError, match="no results"):
        write_report(tmp_path)
