"""report.html: one file that holds all of it, pictures and numbers, and asks nothing of the network."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from ..drawing import require_matplotlib
from ..figures.figure import Figure, Missing, inline_svg, save_figures
from ..figures.gallery import figures_of
from ..results import Results, read_results
from ..whole import write_whole
from . import html, sections

NAME: Final = "report.html"
FIGURES: Final = "figures"


def write_report(folder: Path, out: Path | None = None) -> Path:
    """The file that was written, and beside it figures/ with every picture as SVG and PNG and its numbers as CSV.

    Args:
        folder: with results.
        out: where the file goes; by default report.html in the folder.

    Raises:
        CheckpointError: the folder holds no results of one model.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    results = read_results(folder)
    figures, missing = figures_of(results)
    path = out or results.folder / NAME
    save_figures(figures, path.parent / FIGURES)
    write_whole(path, render(results, figures, missing).encode("utf-8"))
    return path


def render(results: Results, figures: list[Figure], missing: list[Missing]) -> str:
    """The page."""
    body = [sections.summary(results)]
    body += [_picture(figure) for figure in figures]
    body += [sections.sizes(results), sections.scores(results), sections.advice(results), sections.provenance(results)]
    if missing:
        rows = [["picture", "why it is not here"], *([each.title, each.reason] for each in missing)]
        body.append(html.section("Not drawn", html.table(rows)))
    titles = [part.partition("<h2>")[2].partition("</h2>")[0] for part in body if part]
    anchors = [part.partition('id="')[2].partition('"')[0] for part in body if part]
    links = " ".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in zip(anchors, titles, strict=True))
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Quantization of {html.text(sections.name_of(results))}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{sections.heading(results)}<nav>{links}</nav>\n{''.join(body)}</body>\n</html>\n"
    )


def _picture(figure: Figure) -> str:
    shown = f'<figure role="group" aria-label="{html.text(figure.title)}">{inline_svg(figure.name, figure.draw())}'
    shown += f"<figcaption>{html.text(figure.caption)}</figcaption></figure>\n"
    return html.section(figure.title, shown, html.folded("The numbers", html.table(figure.rows)))
