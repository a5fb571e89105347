"""Pictures are drawn of what is there: every layer, every block, and the channels of the layer that was asked for."""

import pytest
import torch

from qllm_hf import CalibrationError
from qllm_hf.analysis.gathering import Row
from qllm_hf.analysis.noise import BITS
from qllm_hf.analysis.plots import _channels, layer_picture, save_plots
from qllm_hf.analysis.streaming import Stream

pytest.importorskip("matplotlib")


def row(kind, layer, block, *, widest=1.0, channels=8, readers=()):
    stream = Stream(layer, channels)
    x = torch.randn(50, channels)
    x[:, 3] *= widest
    stream.add(x)
    name = f"model.layers.{block}.{layer}"
    effect = {bits: 5.0 * bits for bits in BITS}
    measure = "logit_noise" if kind == "K" else "output_sqnr" if kind in "WA" else "sqnr"
    low, high = stream.channel_low, stream.channel_high
    return Row(kind, name, block, layer, tuple(readers), stream.summary(), effect, effect, measure, low, high)


@pytest.fixture
def rows():
    found = []
    for block in range(3):
        for layer in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
            found.append(row("W", layer, block))
        found.append(row("A", "self_attn.q_proj", block, readers=[f"model.layers.{block}.self_attn.k_proj"]))
        found.append(row("A", "mlp.down_proj", block, widest=30.0))
        found += [row(kind, "self_attn", block) for kind in "KV"]
    return found


def test_each_kind_has_a_column_and_each_layer_a_line(rows):
    axes = layer_picture(rows, "tiny").axes
    assert [axis.get_title() for axis in axes[:4]] == ["W, weights", "A, inputs", "K, keys", "V, values"]
    labels = [[line.get_label() for line in axis.get_lines()] for axis in axes[:4]]
    assert labels[:2] == [["q_proj", "k_proj", "down_proj"], ["q_proj/k_proj", "down_proj"]]
    absmax = [row.summary.absmax for row in rows if (row.kind, row.layer) == ("A", "mlp.down_proj")]
    line = axes[1].get_lines()[1]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 1, 2], absmax)
    same = [axes[0].get_lines()[2].get_color(), axes[1].get_lines()[1].get_color()]
    assert same[0] == same[1], "a layer has one color"
    assert same[0] != axes[0].get_lines()[0].get_color()
    assert len(layer_picture([row for row in rows if row.kind == "W"], "tiny").axes) == 4


def test_the_worst_layer_of_a_block_is_drawn(rows):
    axis = layer_picture(rows, "tiny").axes[-4]
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
    assert lines["4 bits"] == [20.0] * 3
    assert {"holds to here", "breaks from here"} < lines.keys()


def test_channels_are_those_of_the_widest_layer_or_of_the_one_asked_for(rows):
    axis = _channels(rows, "tiny", None).axes[0]
    assert axis.get_title() == "tiny: inputs of mlp.down_proj, each channel"
    picture = axis.get_images()[0].get_array()
    assert picture.shape == (3, 8)
    assert picture[1].argmax() == 3
    assert _channels(rows, "t", "k_proj").axes[0].get_title() == "t: inputs of self_attn.q_proj, each channel"
    with pytest.raises(CalibrationError, match=r"no layer of a block is called 'nose'. Give one of self_attn\.q_proj"):
        _channels(rows, "tiny", "nose")
    weights = [row for row in rows if row.kind == "W"]
    assert "weights of" in _channels(weights, "tiny", None).axes[0].get_title()


def test_more_channels_than_dots_show_the_largest():
    wide = [row("A", "mlp.down_proj", 0, widest=1000.0, channels=5000)]
    axis = _channels(wide, "tiny", None).axes[0]
    picture = axis.get_images()[0].get_array()
    assert picture.shape[1] < 1000
    assert float(picture.max()) == pytest.approx(wide[0].summary.absmax)
    assert "largest of" in axis.get_xlabel()


def test_files_are_whole_and_replaced(rows, tmp_path):
    (tmp_path / "layers.png").write_text("old")
    written = save_plots(tmp_path / ".", rows, "tiny")
    assert [path.name for path in written] == ["layers.png", "layers.svg", "channels.png", "channels.svg"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    for path in written:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start
