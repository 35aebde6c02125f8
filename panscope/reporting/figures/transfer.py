"""The same coders on something they did not learn from, beside the evaluation that is drawn, which is mostly that on
held-out text: another text, a fine-tuned model, low precision, or in the form they were trained in.

Gemma Scope, Figures 8 (instruction-tuned model) and 10 (bfloat16); Llama Scope, Figures 6 and 11.
"""

from functools import partial

from panscope.reporting import charts, choice
from panscope.reporting.axes import DELTA_LOSS, FVU, L0, LAYER, MSE, Axis
from panscope.reporting.figure import Figure, Missing, Row
from panscope.reporting.rows import in_order, site_rows
from panscope.reporting.runs import CoderResults, Results
from panscope.runs.finished_coder import HELD_OUT, StoredEvaluation

_METRICS = ("l0", "fvu", "mse", "delta_loss", "tokens")
_ASPECTS = {
    "matter": ("text", "part", "packing", "context", "model", "chat"),
    "form": ("as_trained",),
    "precision": ("coder_dtype", "dtype"),
    "definition": ("splice",),
}
"""What two evaluations may differ in, by the fields of `evaluated_on` that tell."""


def transfer(results: Results) -> Figure | Missing:
    """L0, FVU and delta loss by layer on every other text or model."""
    rows, labels = _compared(results, "matter")
    if not labels:
        return Missing(
            f"the coders were evaluated on {_drawn_text(results)} only",
            f"run `panscope eval {results.folder} --text FILE --label text` for another text, and the same with "
            "`--model PATH --label instruct` for a fine-tuned model",
        )
    return _figure(rows, (L0, FVU, DELTA_LOSS), {results.label: _drawn_text(results)})


def inference(results: Results) -> Figure | Missing:
    """L0, MSE and delta loss by layer with the published threshold and with TopK as it was trained."""
    turned = {_name(coder) for coder in results.coders() if coder.facts.published != coder.facts.architecture}
    if not turned:
        return Missing(
            "no coder was converted from TopK to JumpReLU",
            'train one with `convert_to = "jumprelu"`, as the recipe `llama_scope` does',
        )
    rows, labels = _compared(results, "form")
    rows = [row for row in rows if (row["run"], row["coder"].removeprefix(f"{row['run']}/")) in turned]
    if not rows:
        return Missing(
            "no coder was evaluated in the form it was trained in",
            f"run `panscope eval {results.folder} --as-trained`",
        )
    words = {results.label: "as published (JumpReLU threshold)"} | dict.fromkeys(labels, "as trained (TopK)")
    return _figure(rows, (L0, MSE, DELTA_LOSS), words)


def precision(results: Results) -> Figure | Missing:
    """L0, FVU and delta loss by layer with coders in low precision."""
    rows, labels = _compared(results, "precision")
    if not labels:
        return Missing(
            "no coder was evaluated in low precision",
            f"run `panscope eval {results.folder} --coder-dtype bfloat16 --label bf16`",
        )
    return _figure(rows, (L0, FVU, DELTA_LOSS), {results.label: "full precision"})


def _drawn_text(results: Results) -> str:
    """In words."""
    return "held-out text" if results.label == HELD_OUT else f"the text of the evaluation {results.label!r}"


def _name(coder: CoderResults) -> tuple[str, str]:
    return coder.facts.run, coder.facts.name


def _differences(one: StoredEvaluation, other: StoredEvaluation) -> set[str]:
    """The aspects that two evaluations of a coder differ in."""
    return {
        aspect
        for aspect, fields in _ASPECTS.items()
        if any(one.about[name] != other.about[name] for name in fields if name in one.about and name in other.about)
    }


def _compared(results: Results, aspect: str) -> tuple[list[Row], list[str]]:
    """Rows of the drawn evaluation and of those that differ from it in this aspect alone; the labels of these."""
    pairs = {
        (*_name(coder), label)
        for coder in results.coders()
        for label, evaluation in coder.evaluations.items()
        if (drawn := results.drawn(coder)) and _differences(evaluation, drawn) == {aspect}
    }
    labels = sorted({label for *_, label in pairs})
    others = [
        row | {"label": label}
        for label in labels
        for row in site_rows(results, _METRICS, label)
        if (row["run"], row["coder"].removeprefix(f"{row['run']}/"), label) in pairs
    ]
    measured = {(row["coder"], row["site"]) for row in others}
    plain = [row for row in site_rows(results, _METRICS) if (row["coder"], row["site"]) in measured]
    return [row | {"label": results.label} for row in plain] + others, labels


def _figure(plain: list[Row], ys: tuple[Axis, ...], words: dict[str, str]) -> Figure:
    """By layer, the labels in colours; a label is called by its word."""
    rows = [row | {"text": words.get(row["label"], row["label"])} for row in plain]
    drawn = in_order(choice.few_variants(rows, 3))
    look = charts.Grid(
        x=LAYER,
        ys=ys,
        looks=charts.Looks(
            charts.name_colour(rows, "text", "evaluation"),
            charts.shape(drawn, "variant", "coder"),
            charts.dash(drawn, "variant", "coder"),
        ),
        series=("variant", "text"),
    )
    note = choice.note({row["variant"] for row in drawn}, {row["variant"] for row in rows}, "coder configurations")
    return Figure(rows, partial(charts.grid, drawn, look), f"{note} {_amounts(rows)}".strip(), drawn)


def _amounts(rows: list[Row]) -> str:
    """How much text each was measured on, where that differs."""
    tokens = {row["text"]: row["tokens"] for row in rows}
    if len(set(tokens.values())) == 1:
        return ""
    return (
        "Evaluated on different amounts of text: "
        + ", ".join(f"{name} {n:,} tokens" for name, n in tokens.items())
        + "."
    )
