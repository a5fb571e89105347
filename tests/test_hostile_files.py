"""Files that are no checkpoints, damaged or made to do harm: a share of the campaign, and what it rests on."""

import importlib
import json
import os
import random
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from made_results import add, add_size

from qllm_hf.cli.output import answer, note
from qllm_hf.errors import CheckpointError, ConfigError
from qllm_hf.evaluation.judge.http import HttpJudge
from qllm_hf.evaluation.record import Record
from qllm_hf.files import check_file, read_bytes, read_text
from qllm_hf.page.html import text
from qllm_hf.results import read_results
from qllm_hf.shown import is_cut, printable, short
from qllm_hf.strict_json import parse_object, with_checksum, without_checksum
from qllm_hf.typed import fits, made_of

QUICK = ("results", "bench", "judge prompts", "judge cache", "sensitivity table", "awq result")


def make_results(folder: Path) -> None:
    """Results as a sweep leaves them, made without a model."""
    for task in ("mini_rules", "mini_arithmetic"):
        for scheme, values in (("FP16", [1.0, 1.0, 1.0, 0.0]), ("W4", [1.0, 0.0, 1.0, 0.0])):
            add(folder, scheme, task, values, [{"prompt": f"{task}?", "prediction": "yes"}] * 4)
            add_size(folder, scheme)


@pytest.fixture(scope="module")
def fuzz():
    """The campaign, as a module, with a cheap folder of results."""
    module = importlib.import_module("fuzz_files")
    before = module.SUBJECTS["results"]
    module.SUBJECTS["results"] = before._replace(make=make_results)
    yield module
    module.SUBJECTS["results"] = before


def test_a_share_of_the_campaign(fuzz):
    cases = [case for kind in QUICK for case in fuzz.some_cases(10, seed=3, only=kind)]
    outcomes = fuzz.campaign(cases)
    assert [outcome for outcome in outcomes if outcome.is_fault] == []
    assert {outcome.word for outcome in outcomes} == {"right", "refused", "other"}


@pytest.mark.parametrize(("plant", "kind"), [("line checksums", "judge cache"), ("page", "results")])
def test_the_campaign_finds_a_check_that_was_left_out(fuzz, plant, kind):
    outcomes = fuzz.campaign(fuzz.some_cases(30, seed=5, only=kind), plant=plant)
    assert any(outcome.is_fault for outcome in outcomes)


def test_every_damage_changes_something(fuzz, tmp_path):
    for suffix in (".json", ".jsonl", ".txt"):
        for name, damage in fuzz.DAMAGES.items():
            changed = 0
            for number in range(4):
                away = tmp_path / f"{suffix} {name} {number}"
                path = away / "inner" / "folder" / f"file{suffix}"
                path.parent.mkdir(parents=True)
                line = json.dumps(with_checksum({"a": "b", "format": 1, "list": [1, 2], "number": number}))
                other = json.dumps(with_checksum({"c": number, "format": 1, "d": "1"}))
                content = line if suffix == ".json" else f"{line}\n{other}\n"
                path.write_text(content)
                if not damage.suffixes or suffix in damage.suffixes:
                    damage.act(random.Random(number), path, away)
                    changed += not path.is_file() or path.is_symlink() or path.read_text("latin-1") != content
                else:
                    changed += 1
            assert changed, name


# What is read.


def test_only_a_file_is_read(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes("größe".encode("latin-1"))
    for name, what in {"folder": "a folder", "pipe": "a pipe", "zero": "a device", "loop": "cannot be read"}.items():
        with pytest.raises(CheckpointError, match=f"{name}.*{what}"):
            read_bytes(tmp_path / name)
    with pytest.raises(ConfigError, match="file has 5 bytes, where 4 are allowed"):
        check_file(tmp_path / "file", largest=4, error=ConfigError)
    with pytest.raises(CheckpointError, match="line 1: byte 0xf6 is no UTF-8"):
        read_text(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, 3, True),
        (int, 3, 3.0),
        (float, 3, "3"),
        (bool, True, 1),
        (str | None, None, 0),
        (Literal["a"], "a", "b"),
        (tuple[int, ...], (1, 2), (1, "2")),
        (tuple[int, str], (1, "a"), (1,)),
        (dict[str, int], {"a": 1}, {"a": "1"}),
        (list, [], {}),
    ],
)
def test_types(hint, right, wrong):
    assert fits(right, hint)
    assert not fits(wrong, hint)


def test_a_checksum_of_values():
    signed = with_checksum({"b": (1, 2), 3: 0.1})
    assert without_checksum(json.loads(json.dumps(signed))) == {"b": [1, 2], "3": 0.1}
    with pytest.raises(ValueError, match="of something else"):
        without_checksum({**json.loads(json.dumps(signed)), "b": [1, 3]})
    assert parse_object(b'{"a": NaN}', nan=True)["a"] != 0


# What is shown.


def test_nothing_acts_on_a_terminal_or_a_page(capsys):
    evil = "\x1b[31m\u202e<b>\ud800\r"
    answer({}, evil, as_json=False)
    note(evil)
    said = capsys.readouterr()
    assert said.out == said.err == "\\x1b[31m\\u202e<b>\\ud800\\r\n"
    assert text(evil) == "\\x1b[31m\\u202e&lt;b&gt;\\ud800\\r"
    assert printable("a\tb\nü") == "a\tb\nü"
    assert is_cut(evil) and not is_cut("ü")
    assert short(10**400) == "a number of 1329 bits" and len(short("x" * 1000)) == 200


# Results.


@pytest.fixture
def results(tmp_path) -> Path:
    make_results(tmp_path / "results")
    return tmp_path / "results"


def change(path: Path, **values) -> None:
    """Change the first line on purpose."""
    first, *others = path.read_text().splitlines()
    line = {**json.loads(first), **values}
    line.pop("crc32")
    path.write_text("\n".join([json.dumps(line), *others]) + "\n")


@pytest.mark.parametrize(
    "values",
    [
        {"scheme": "../../outside"},
        {"task": ".."},
        {"task": "/tmp/x"},
        {"metric": "$\\frac{1}{0}$"},
        {"value": 1.5},
        {"value": "1"},
        {"value": True},
        {"value": 0.5, "stderr": 1e308},
        {"items": 0},
        {"chance": 1.0},
        {"ability": "magic"},
        {"details": {"a": "b"}},
        {"answered": 2.0},
    ],
)
def test_a_record_that_no_measurement_makes(results, values):
    change(results / "records.jsonl", **values)
    with pytest.raises(CheckpointError, match=rf"records\.jsonl: a record is damaged: .*{next(iter(values))}"):
        read_results(results)


@pytest.mark.parametrize(
    "values", [{"weight_bytes": -1}, {"kv": [[1]]}, {"kv": 3}, {"coverage": 2.0}, {"elements": "1"}]
)
def test_a_size_that_cannot_be(results, values):
    change(results / "sizes.jsonl", **values)
    with pytest.raises(CheckpointError, match=r"sizes\.jsonl is damaged"):
        read_results(results)


@pytest.mark.parametrize("values", [{"id": []}, {"prompt": 3}, {"value": float("inf")}, {"likelihoods": [[1]]}])
def test_an_item_that_cannot_be(results, values):
    change(results / "samples" / "somebody_model" / "W4" / "mini_rules.jsonl", **values)
    with pytest.raises(CheckpointError, match=r"mini_rules\.jsonl: an item is damaged"):
        _ = read_results(results).change("W4", "mini_rules")


def test_a_record_is_still_read_as_it_was_written(results):
    record = read_results(results).records[0]
    assert Record.from_json(record.to_json()) == record


# A judge.


def test_a_judge_that_sends_a_byte_now_and_then_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(60):
                time.sleep(0.05)
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        threading.Thread(target=drip, daemon=True).start()
        judge = HttpJudge(f"http://127.0.0.1:{server.getsockname()[1]}", "slow", retries=0, timeout=0.3)
        begin = time.monotonic()
        with pytest.raises(ValueError, match=r"no answer within 0\.3 s"):
            judge.ask([{"role": "user", "content": "?"}])
        assert time.monotonic() - begin < 2.5


@dataclass
class Point:
    x: int
    y: int = 0


def test_made_of_names_what_is_wrong():
    assert made_of(Point, {"x": 1}) == Point(1)
    for values, message in (({"x": "1"}, "x is '1'"), ({"z": 1}, "'z', which is not known"), ({}, "missing")):
        with pytest.raises(ValueError, match=message):
            made_of(Point, values)
