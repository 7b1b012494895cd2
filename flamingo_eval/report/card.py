"""Results for a model card on the Hugging Face hub."""

from __future__ import annotations

from flamingo_eval.core.benchmark import load_benchmark
from flamingo_eval.report.shown import Shown
from flamingo_eval.report.table import render_runs

_TASKS = {"cider": "image-to-text", "vqa_accuracy": "visual-question-answering"}
"""Metric -> the hub's name of the task; the other metrics are for rankings of class names."""


def model_card(shown: Shown, name: str | None = None) -> str:
    """``model-index`` as YAML between dashes, made by huggingface_hub's own classes, then the Markdown table.

    Args:
        shown: a run.
        name: the model's name; None for the checkpoint's.
    """
    from huggingface_hub import EvalResult, ModelCardData

    model = name or shown.run.checkpoint.name
    results = []
    for cell in shown.cells:
        benchmark = load_benchmark(cell.benchmark)
        spread = {} if cell.std is None else {"std": cell.std, "ddof": 0}
        about = {"shots": cell.shots, "selector": cell.selector, "protocol": cell.protocol, **spread,
                 "trials": len(cell.trials), "queries": cell.trials[0].queries, "complete": cell.complete,
                 "demo": bool(shown.run.demo)}  # fmt: skip
        results.append(
            EvalResult(
                task_type=_TASKS.get(benchmark.metric, "image-classification"),
                dataset_type=cell.benchmark,
                dataset_name=benchmark.title,
                dataset_split=cell.split,
                metric_type=benchmark.metric,
                metric_name=f"{cell.metric}, {cell.shots} shots",
                metric_value=round(cell.mean, 4),
                metric_args=about,
            )
        )
    header = ModelCardData(model_name=model, eval_results=results).to_yaml()
    return f"---\n{header}\n---\n\n{render_runs([shown], 'markdown')}"
