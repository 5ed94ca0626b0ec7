"""The summary of a run, one row a method, and the table of all points, to read and to cite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from l0plane import tidy
from l0plane.figures.palette import assign_styles
from l0plane.files import replacing
from l0plane.series import at_l0, mean_over_seeds, require

_HEADINGS = {
    "label": "method",
    "nmse": "nMSE",
    "delta_ce": "delta CE",
    "dead_fraction": "dead latents",
    "relative_reconstruction_bias": "reconstruction bias",
    "seconds_per_million_tokens": "s per million tokens",
    "l0_target": "L0 asked",
    "l0": "L0",
    "kl": "KL",
    "ce_original": "CE of the model",
    "loss_recovered_zero": "loss recovered (zero)",
    "loss_recovered_mean": "loss recovered (mean)",
}


def summary(
    autoencoders: pd.DataFrame, methods: pd.DataFrame, n: int, levels: Sequence[float]
) -> pd.DataFrame:
    """Summarise the autoencoders with `n` latents, one row a method in the order of methods.csv.

    Columns: run, method, label, n; nmse_at_<L0> and delta_ce_at_<L0> for each of `levels`, from
    means over seeds, interpolated in both logarithms (prolonged by 5% at most, else NaN: `at_l0`);
    the means over all levels and seeds of dead_fraction, relative_reconstruction_bias (1 is
    unbiased, below 1 is shrinkage) and seconds_per_million_tokens (training); missing, how many
    autoencoders failed, and failed, the reasons; provenance, joined where rows differ.

    Raises:
        UserError: a missing column.
    """
    measured = ["l0_target", "l0", "nmse", "delta_ce", "dead_fraction"]
    measured += ["relative_reconstruction_bias", "training_seconds"]
    require(autoencoders, "autoencoders", ["run", "method", "n", *measured, *tidy.PROVENANCE])
    table = autoencoders[autoencoders["n"] == n]
    if "failed" not in table:  # of an earlier version
        table = table.assign(failed=None)
    styles = assign_styles(methods, autoencoders["method"])
    rows = []
    for method, look in styles.items():
        own = table[table["method"] == method]
        if own.empty:
            continue
        row: dict[str, object] = {"run": own["run"].iloc[0], "method": method}
        row |= {"label": look.label, "n": n}
        for metric in ("nmse", "delta_ce"):
            points = mean_over_seeds(own, ["l0_target"], metric)
            l0, values = points["l0"].to_numpy(), points["value"].to_numpy()
            row |= {f"{metric}_at_{level:g}": at_l0(l0, values, level) for level in levels}
        for name in ("dead_fraction", "relative_reconstruction_bias"):
            row[name] = own[name].mean()
        done = own[own["failed"].isna()]
        cost = done["training_seconds"] / done["training_tokens"] * 1e6
        row["seconds_per_million_tokens"] = cost.mean()
        row |= {"missing": len(own) - len(done), "failed": _joined(own["failed"])}
        row |= {name: _joined((own if done.empty else done)[name]) for name in tidy.PROVENANCE}
        rows.append(row)
    return pd.DataFrame(rows)


def points(autoencoders: pd.DataFrame, methods: pd.DataFrame) -> pd.DataFrame:
    """Return all of autoencoders.csv, labelled, ordered by method, n, asked L0 and seed."""
    styles = assign_styles(methods, autoencoders["method"])
    table = autoencoders.assign(_order=autoencoders["method"].map(list(styles).index))
    table = table.sort_values(["_order", "n", "l0_target", "seed"]).drop(columns="_order")
    labels = table["method"].map({method: look.label for method, look in styles.items()})
    table.insert(table.columns.get_loc("method") + 1, "label", labels)
    return table.reset_index(drop=True)


def write(table: pd.DataFrame, stem: str | Path) -> list[Path]:
    """Write `stem`.csv with every column, and `stem`.md and `stem`.tex with those for a reader.

    The readable ones leave out ids and provenance, what failed where nothing did, round to three
    digits, and set the lowest of each nMSE and delta CE column of a summary in bold, with all that
    read the same.
    """
    hidden = {"run", "method", "source", "weights_sha256", *tidy.PROVENANCE}
    if "failed" in table and table["failed"].fillna("").eq("").all():
        hidden |= {"missing", "failed"}
    shown = table[[c for c in table if c not in hidden and not c.endswith("_se")]]
    cells = {c: _cells(shown[c], bold="_at_" in c) for c in shown}
    headings = [_heading(c) for c in shown]
    rows = list(zip(*cells.values(), strict=True))
    about = f"Run {_joined(table['run'])}."
    if any("_at_" in c for c in shown):
        about += " Means over seeds; in bold the lowest error at each L0."
    texts = {"md": f"{about}\n\n{_markdown(headings, rows)}", "tex": _latex(headings, rows)}
    paths = [Path(f"{stem}.{suffix}") for suffix in ("csv", "md", "tex")]
    with replacing(paths[0]) as part:
        table.to_csv(part, index=False)
    for path, suffix in zip(paths[1:], texts, strict=True):
        with replacing(path) as part:
            part.write_text(texts[suffix], encoding="utf-8")
    return paths


def _joined(values: pd.Series) -> object:
    """Return the one value of a column, or all that occur, joined by semicolons."""
    unique = values.dropna().unique()
    return unique[0] if len(unique) == 1 else ";".join(sorted(str(value) for value in unique))


def _heading(column: str) -> str:
    metric, at, level = column.partition("_at_")
    name = _HEADINGS.get(metric, metric.replace("_", " "))
    return f"{name} at L0 {level}" if at else name


def _cells(column: pd.Series, bold: bool) -> list[tuple[str, bool]]:
    """Return (text, whether it is to be bold) for each value; a dash where there is none."""
    if not pd.api.types.is_float_dtype(column):
        return [("–" if pd.isna(value) else str(value), False) for value in column]
    best = _digits(column.min())
    texts = [_digits(value) for value in column]
    return [(text, bold and text == best != "–") for text in texts]


def _digits(value: float) -> str:
    """Three digits, also where the last ones are zeros; a dash for NaN."""
    if pd.isna(value):
        return "–"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def _markdown(headings: list[str], rows: list[tuple[tuple[str, bool], ...]]) -> str:
    lines = [
        "| " + " | ".join(headings) + " |",
        "| --- |" + " ---: |" * (len(headings) - 1),
        *(
            "| " + " | ".join(f"**{text}**" if bold else text for text, bold in row) + " |"
            for row in [[(text.replace("|", "\\|"), bold) for text, bold in row] for row in rows]
        ),
    ]
    return "\n".join(lines) + "\n"


def _latex(headings: list[str], rows: list[tuple[tuple[str, bool], ...]]) -> str:
    """Return a booktabs tabular."""

    def escape(text: str) -> str:
        for sign in "\\&%$#_{}":
            text = text.replace(sign, "\\" + sign if sign != "\\" else "/")
        return text.replace("–", "--").replace("L0", "$L_0$").replace("delta", r"$\Delta$")

    body = [
        " & ".join(rf"\textbf{{{escape(text)}}}" if bold else escape(text) for text, bold in row)
        for row in rows
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            r"\toprule",
            " & ".join(escape(heading) for heading in headings) + r" \\",
            r"\midrule",
            *(line + r" \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
