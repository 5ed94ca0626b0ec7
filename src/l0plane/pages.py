"""Pages to read: Markdown as HTML that needs no other file, and the page that says what was run."""

from __future__ import annotations

import re
from html import escape
from typing import Any

import yaml
from markdown_it import MarkdownIt

from l0plane.plan import FACTOR

# Every rule stays below .l0plane, so that a page can also be put into another.
_STYLE = """
.l0plane { font: 15px/1.5 system-ui, sans-serif; color: #1e293b; margin: 1.5rem; }
.l0plane h1 { font-size: 1.5rem; } .l0plane h2 { font-size: 1.15rem; margin-top: 2rem; }
.l0plane h1, .l0plane h2 { font-weight: 600; margin-bottom: .5rem; }
.l0plane ul { list-style: disc; padding-left: 1.5rem; }
.l0plane table { border-collapse: collapse; font-size: 13px; margin: 1rem 0; }
.l0plane th, .l0plane td { padding: .25rem .6rem; vertical-align: top; text-align: left;
  border-bottom: 1px solid #cbd5e1; }
.l0plane td:first-child, .l0plane td strong, .l0plane td.interval { white-space: nowrap; }
.l0plane th { position: sticky; top: 0; background: #f1f5f9; }
.l0plane pre { background: #f1f5f9; color: inherit; padding: .8rem; overflow: auto; }
.l0plane pre, .l0plane code { font-size: 12px; overflow-wrap: anywhere; }
"""


def to_html(markdown: str, title: str) -> str:
    """A Markdown page with tables as an HTML page; markup in the text is shown, not obeyed."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    head = f'<meta charset="utf-8">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>'
    body = f'<div class="l0plane">\n{parser.render(markdown)}</div>'
    # A cell such as 17.3 [15.9, 18.8] stays on one line.
    body = re.sub(r"<td>(?=-?[\d.,]+ \[)", '<td class="interval">', body)
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


def run_page(facts: dict[str, Any]) -> str:
    """What `run.json` says, as a Markdown page: hashes, machine, versions, methods, settings."""
    hashes = {
        "text (all splits)": f"`{facts['corpus_sha256']}`",
        "language model": f"`{facts['model_sha256']}`",
    }
    if "corpus_matches" in facts:
        same = "yes" if facts["corpus_matches"] else "**no: the text is another one**"
        hashes["text is the one that was expected"] = same
    versions = {"l0plane": facts["version"], "Python": facts["python"], **facts["packages"]}
    methods = [
        [name, about["label"], _in_line(about.get("hyperparameters"))]
        for name, about in facts["methods"].items()
    ]
    config = yaml.safe_dump(facts["config"], sort_keys=False, default_flow_style=None, width=100)
    lines = [
        f"# The run {facts['run']}",
        "",
        *_table(["SHA-256 of", ""], hashes.items()),
        *_table(["machine", ""], facts["machine"].items()),
        *_table(["version of", ""], versions.items()),
        *_table(["method", "label", "hyperparameters"], methods),
        "The configuration, with every default:",
        "",
        "```yaml",
        config.rstrip("\n"),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _in_line(values: dict[str, Any] | None) -> str:
    def said(name: str, value: Any) -> str:
        if not isinstance(value, dict):
            return f"{value:g}"
        level = "n" if name == FACTOR else "L0"
        return ", ".join(f"{number:g} at {level} {key}" for key, number in value.items())

    return "; ".join(f"{name} {said(name, value)}" for name, value in (values or {}).items())


def _table(headings: list[str], rows: Any) -> list[str]:
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    lines = [headings, ["---"] * len(headings), *cells]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return [f"| {' | '.join(line)} |" for line in escaped] + [""]
