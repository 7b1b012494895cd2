"""Commands that compare a run with another: ``compare``, ``check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flamingo_eval.cli import options as opt
from flamingo_eval.cli.output import emit
from flamingo_eval.cli.reading import check_all_answered
from flamingo_eval.core.errors import GateError, UserError
from flamingo_eval.core.paths import exists, is_folder
from flamingo_eval.core.progress import note

if TYPE_CHECKING:
    from flamingo_eval.analysis.evidence import Evidence

Baseline = Annotated[
    Path, typer.Argument(parser=opt.path, metavar="BASELINE", help="A run folder, or a file that check --update wrote.")
]
MaxDrop = Annotated[
    float,
    typer.Option("--max-drop", min=0.0,
                 help="A cell fails if it drops by more than this many points and the drop is significant (5%)."),
]  # fmt: skip
Margin = Annotated[
    float | None,
    typer.Option("--margin", min=0.0,
                 help="Also fail a cell unless it is, with 95% confidence, at most this many points worse."),
]  # fmt: skip
RequirePower = Annotated[
    float | None,
    typer.Option("--require-power", min=0.5, max=0.999,
                 help="Also fail a cell that would not find a drop of --max-drop with this probability, such as 0.8."),
]  # fmt: skip
AllowUnpinned = Annotated[
    bool,
    typer.Option("--allow-unpinned",
                 help="Also check runs whose answers come from a server, which may not be what it was."),
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Adds this module's commands."""
    for command in (compare, check):
        app.command(rich_help_panel=opt.PANEL)(command)


def compare(
    run: opt.Run,
    baseline: Baseline,
    format: Annotated[
        str, typer.Option("--format", metavar="table|markdown|json", help="How it is printed.")
    ] = "table",
) -> None:
    """Compare two runs cell by cell over the same queries: difference, interval, p-value."""
    from flamingo_eval.analysis.compare import compare as compared
    from flamingo_eval.analysis.evidence import read_evidence
    from flamingo_eval.report.compare import FORMATS

    opt.check_format(format, FORMATS)
    emit(FORMATS[format](compared(read_evidence(run), read_evidence(baseline))), end="")


def check(
    context: typer.Context,
    run: opt.Run,
    baseline: Annotated[
        Path, typer.Option("--baseline", parser=opt.path,
                metavar="FILE|RUN", help="Baseline file or run folder to compare with.")
    ],
    max_drop: MaxDrop = 1.0,
    margin: Margin = None,
    require_power: RequirePower = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", parser=opt.path,
                metavar="FILE", help="Write a table for a pull request.")
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", parser=opt.path,
            metavar="FILE", help="Write JUnit XML.")] = None,
    allow_unpinned: AllowUnpinned = False,
    update: Annotated[
        bool, typer.Option("--update", help="Write the run as the new baseline, with its provenance; no check is made.")
    ] = False,
) -> None:  # fmt: skip
    """Fail (exit 1) if a run is worse than its baseline; 2 if they can't be compared, 4 if one is partial."""
    from flamingo_eval.analysis.compare import compare as compared
    from flamingo_eval.analysis.evidence import read_evidence
    from flamingo_eval.analysis.gate import failed, judge
    from flamingo_eval.report import gate
    from flamingo_eval.storage.outputs import write_output

    if update:
        idle = ("max_drop", "margin", "require_power", "markdown", "junit", "allow_unpinned")
        opt.refuse(context, idle, "has no effect with --update, which checks nothing")
    found = read_evidence(run)
    check_all_answered([run])
    if update:
        _update(found, run, baseline)
        return
    if not exists(baseline):
        raise UserError(f"{baseline} does not exist; --update writes it from this run")
    check_all_answered([baseline])
    comparison = compared(found, read_evidence(baseline), all_of_baseline=True)
    if comparison.unpinned and not allow_unpinned:
        raise UserError(
            f"{' and '.join(comparison.unpinned)}: the answers come from a server and are not reproducible by us, so a "
            "difference may be the server's; --allow-unpinned checks all the same"
        )
    verdicts = judge(comparison, max_drop=max_drop, margin=margin, require_power=require_power)
    for warning in (*comparison.demo, *comparison.warnings):
        note(warning)
    emit(gate.as_text(verdicts), end="")
    if markdown is not None:
        write_output(markdown, gate.as_markdown(comparison, verdicts))
    if junit is not None:
        write_output(junit, gate.as_junit(comparison, verdicts))
    bad = failed(verdicts)
    if bad:
        cells = "; ".join(f"{v.row.benchmark}, {v.row.shots} shots: {v.reason}" for v in bad)
        raise GateError(f"{run} does not pass against {baseline}: {cells}")


def _update(found: Evidence, run: Path, baseline: Path) -> None:
    """Writes a run as the new baseline."""
    from flamingo_eval.analysis.evidence import write_baseline

    if not found.cells:
        raise UserError(f"{run} has no scored cells to keep")
    if is_folder(baseline):
        raise UserError(f"{baseline} is a folder; --update writes a file")
    write_baseline(baseline, found)
    emit(f"{baseline} now holds {len(found.cells)} cells of {run}")
