"""Settings: declared once; what one may say of them on the command line, in the environment, in the file, in Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flamingo_eval
from flamingo_eval.cli import spec as specs
from flamingo_eval.cli.config import read_config
from flamingo_eval.cli.options import IN_ENVIRONMENT, ON_COMMAND_LINE, Given, GivenValue
from flamingo_eval.cli.options_page import reference
from flamingo_eval.core.errors import UserError
from flamingo_eval.core.run_settings import FORMATS, SETTINGS, RunSettings
from flamingo_eval.core.settings import BATCH, NAMES, SIZE, choice, integer, numbers
from tests.support.helpers import FAST, Cli, read_lines, run_scripted, write_coco_root

ROOT = Path(__file__).parents[2]

PLANTED = """    reverse: bool = declared(False, SWITCH, "Show demonstrations in reverse order.")
    format: str = declared("""
USED = """    if spec.reverse:
        shown = tuple(tuple(order[::-1] for order in orders) for orders in shown)
    unreadable = nearest.failed"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with a setting more, which is declared in one file and used in another one."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(ROOT / "flamingo_eval", folder / "flamingo_eval", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")
    shutil.copytree(ROOT / "results", folder / "results", ignore=shutil.ignore_patterns("runs", "demo-*"))
    for file, old, new in (("core/run_settings.py", "    format: str = declared(", PLANTED),
                           ("engine/plan.py", "    unreadable = nearest.failed", USED)):  # fmt: skip
        path = folder / "flamingo_eval" / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")
    write_coco_root(folder / "data", train=12, test=5)
    return folder


def call(planted: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "flamingo_eval", *map(str, arguments)]
    return subprocess.run(words, env={**os.environ, "PYTHONPATH": str(planted), **environment}, capture_output=True,
                          text=True, check=False)  # fmt: skip


def identity(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "run.json").read_text())["identity"]
    return found


@pytest.mark.slow
def test_a_planted_setting_is_everywhere(planted: Path) -> None:
    run = ("coco", "--checkpoint", "scripted", "--data-root", planted / "data", "--shots", "2", "--seeds", "42")
    assert "--reverse" in call(planted, "coco", "--help").stdout
    assert "--reverse" in call(planted, "plan", "--help").stdout
    table = subprocess.run([sys.executable, "-m", "flamingo_eval.cli.options_page"], capture_output=True, text=True,
                           env={**os.environ, "PYTHONPATH": str(planted)}, check=True).stdout  # fmt: skip
    assert "| `--reverse` | switch | off | yes | Show demonstrations in reverse order. |" in table
    assert call(planted, *run, "--out", "plain").returncode == 0
    assert call(planted, *run, "--reverse", "--out", "flag").returncode == 0
    assert call(planted, *run, "--out", "variable", FLAMINGO_EVAL_REVERSE="1").returncode == 0
    Path("flamingo-eval.toml").write_text("[coco]\nreverse = true\n")
    assert call(planted, *run, "--out", "file").returncode == 0
    assert call(planted, *run, "--no-reverse", "--out", "not").returncode == 0
    Path("flamingo-eval.toml").unlink()
    code = (f"import flamingo_eval; flamingo_eval.evaluate('scripted', 'coco', data_root={str(planted / 'data')!r}, "
            "shots=[2], seeds=[42], reverse=True, out='python')")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(planted)}, check=True,
                   capture_output=True)  # fmt: skip
    assert "reverse" not in identity("plain")
    assert identity("not") == identity("plain"), "what is as it always was is not named"
    output = {run: [row["raw"] for row in read_lines(Path(run, "journal.jsonl"))] for run in ("plain", "flag")}
    assert output["plain"] != output["flag"]
    for other in ("flag", "variable", "file", "python"):
        assert identity(other) == {**identity("plain"), "reverse": True}
        assert [row["raw"] for row in read_lines(Path(other, "journal.jsonl"))] == output["flag"]
        assert call(planted, "score", other).returncode == 0, "it is planned again as it was"
    refused = call(planted, *run, "--out", "flag")
    assert refused.returncode == 2
    assert "reverse is False here, True in that run" in refused.stderr


def test_the_documentations_table_is_that_of_the_settings() -> None:
    page = (ROOT / "docs/options.md").read_text(encoding="utf-8")
    assert page == reference(), "make docs writes it anew"


def test_formats_are_those_that_there_are() -> None:
    from flamingo_eval.report import table

    assert tuple(table.FORMATS) == FORMATS


def spec_of(text: str, benchmarks: tuple[str, ...], names: Any = specs.RUN, **output: Any) -> Any:
    Path("flamingo-eval.toml").write_text(text)
    given: Given = {name: GivenValue(value, ON_COMMAND_LINE, f"--{name}") for name, value in output.items()}
    return specs.make_spec(read_config(None), benchmarks, given, names)


def test_a_section_holds_for_every_command_that_runs_its_benchmark() -> None:
    text = 'shots = [8]\ndata-root = "demo"\n[coco]\nshots = [0, 4]\ntrials = 2\n[okvqa]\nseeds = [7]\n'
    spec = spec_of(text, ("coco", "okvqa"))
    assert (spec.of("coco").shots, spec.of("okvqa").shots) == ((0, 4), (8,))
    assert spec.of("coco").seeds_by((42, 43, 44)) == (42, 43)
    assert spec.of("okvqa").seeds_by((42, 43, 44)) == (7,)
    assert spec_of(text, ("coco",)).shots == (0, 4)
    assert spec_of(text, ("coco", "okvqa"), shots=(2,)).of("coco").shots == (2,), "the command line wins"


def test_what_a_run_of_several_benchmarks_cant_have_for_one_is_refused_by_name() -> None:
    text = "[hateful-memes]\nensemble = 6\n"
    with pytest.raises(
        UserError, match=r"ensemble in \[hateful-memes\] does not hold for coco, and several benchmarks"
    ):
        spec_of(text, ("coco", "hateful_memes"))
    assert spec_of(text, ("hateful_memes",)).ensemble == 6
    assert spec_of(text, ("coco", "hateful_memes"), ensemble=1).ensemble == 1
    assert spec_of("ensemble = 6\n" + text, ("coco", "hateful_memes")).ensemble == 6
    same = '[coco]\npool-size = 2048\nplain = false\nrices-model = "x"\n'
    assert spec_of(same, ("coco", "okvqa")).pool_size == 2048, "the default, said or not; what means nothing here"


def test_sections_hold_for_commands_about_runs(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run_scripted(cli, root)
    Path("flamingo-eval.toml").write_text('[coco]\nplain = true\nformat = "markdown"\n')
    assert "--plain does not apply to it" in cli("controls", "run").stderr
    assert cli("score", "run").stdout.startswith("| benchmark")
    assert not cli("score", "run", "--format", "table").stdout.startswith("|")
    monkeypatch.setenv("FLAMINGO_EVAL_FORMAT", "json")
    assert json.loads(cli("report", "run").stdout)["cells"]
    monkeypatch.setenv("FLAMINGO_EVAL_FORMAT", "pdf")
    assert "FLAMINGO_EVAL_FORMAT 'pdf': give table" in cli("report", "run").stderr
    monkeypatch.delenv("FLAMINGO_EVAL_FORMAT")
    monkeypatch.setenv("FLAMINGO_EVAL_DATA_ROOT", "/nowhere")
    assert cli("score", "run").returncode == 0, "the run says where its data is"
    assert cli("score", "run", "--data-root", "/nowhere").returncode == 2


def test_reproduce_goes_by_sections(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    asked: list[Any] = []

    def execute(spec: Any, *_: Any, **__: Any) -> Any:
        asked.append(spec)
        raise UserError("not here")

    monkeypatch.setattr("flamingo_eval.engine.run.execute", execute)
    Path("flamingo-eval.toml").write_text(
        "num-samples = 5\nbatch-size = 1\n[coco]\ndata-root = 'demo'\nnum-samples = 3\nbatch-size = 2\nshots = [0]\n"
    )
    cli("reproduce", "scripted", "--like", "OpenFlamingo-3B-vitl-mpt1b", "--benchmarks", "coco,vqav2")
    assert {(spec.benchmarks, spec.num_samples, spec.batch_size, spec.shots) for spec in asked} == {
        (("coco",), 3, 2, (0,))
    }


@pytest.mark.torch
def test_what_is_given_twice_is_refused(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ("plan", "coco", "--shots", "1", "--data-root", root)
    assert (
        "--query-set-size and --pool-size say the same thing"
        in cli(*plan, "--query-set-size", "3", "--pool-size", "4").stderr
    )
    run = ("coco", "--checkpoint", "scripted", "--data-root", root)
    assert "--no-plain and --plain say the same thing" in cli(*run, "--plain", "--no-plain").stderr
    with pytest.raises(UserError, match="query_set_size and pool_size say the same thing"):
        flamingo_eval.evaluate("scripted", "coco", data_root=root, pool_size=5, query_set_size=6)
    Path("flamingo-eval.toml").write_text("[hateful-memes]\nshots = [0]\n[hateful_memes]\nseeds = [7]\n")
    assert "two sections are about hateful_memes" in cli(*plan).stderr
    Path("flamingo-eval.toml").unlink()
    monkeypatch.setenv("FLAMINGO_EVAL_QUERY_SET_SIZE", "bad")
    assert cli(*plan, "--pool-size", "4").returncode == 0, "what is overridden is not read"
    assert "FLAMINGO_EVAL_QUERY_SET_SIZE 'bad': give an integer" in cli(*plan).stderr
    rices = cli(*plan, "--select", "rices", "--rices-model", "scripted", "--pool-size", "3")
    assert "--pool-size 3 has no effect" in rices.stderr


def test_what_evaluate_takes_may_be_numpys_or_a_generator(root: Path) -> None:
    import numpy as np

    cells = flamingo_eval.evaluate("scripted", ["coco"], data_root=root, shots=np.arange(2), seeds=(s for s in (42,)),
                                   num_samples=np.int64(3), image_formats=[])  # fmt: skip
    assert [cell.shots for cell in cells] == [0, 1]
    assert cells[0].trials[0].queries == 3
    for benchmarks in (None, [], [5]):
        with pytest.raises(UserError, match="give a name, or some"):
            flamingo_eval.evaluate("scripted", benchmarks, data_root=root)  # type: ignore[arg-type]


def test_an_identity_of_a_later_version_is_not_mixed_with_this_ones(root: Path, cli: Cli) -> None:
    run_scripted(cli, root)
    record = Path("run/run.json")
    table = json.loads(record.read_text())
    for change in (
        {"reverse": True},
        {"benchmarks": {"coco": {**table["identity"]["benchmarks"]["coco"], "later": 1}}},
    ):
        record.write_text(json.dumps({**table, "identity": {**table["identity"], **change}}))
        result = cli(*FAST, "--data-root", root, "--out", "run", "--shots", "3")
        assert result.returncode == 2
        assert "run/run.json: unknown key" in result.stderr
    record.write_text(json.dumps({**table, "later": {"a": 1}}))
    assert cli("score", "run").returncode == 0, "what does not decide answers is passed over"


def test_run_coco_is_coco(root: Path, cli: Cli) -> None:
    Path("flamingo-eval.toml").write_text("num-samples = 3\n[coco]\nshots = [1]\npool-size = 5\n")
    for command, out in (("coco", "one"), ("run", "several")):
        benchmark = ("coco",) if command == "run" else ()
        result = cli(
            command, *benchmark, "--seeds", "42", "--checkpoint", "scripted", "--data-root", root, "--out", out
        )
        assert result.returncode == 0, result.stderr
    assert read_lines(Path("one/journal.jsonl")) == read_lines(Path("several/journal.jsonl"))
    assert identity("one") == identity("several")
    assert identity("one")["query_set_size"] == 5
    assert len(read_lines(Path("one/journal.jsonl"))) == 3


def test_every_setting_can_stand_in_the_file() -> None:
    examples = {"shots": "0,4", "seeds": [42], "trials": 2, "data_root": "demo", "checkpoint": "demo", "split": "test",
                "protocol": "openflamingo", "num_samples": 3, "pool_size": 4, "ensemble": 1, "select": "random",
                "weights": "copies", "offline": True, "precision": "fp32", "device": "cpu", "image_formats": ["AVIF"],
                "batch_size": 8, "feature_cache": "1GB", "plain": True, "on_error": "skip", "process": "0/1",
                "executor": "local", "out": "run", "format": "json", "notes": True, "rendering": "chat", "system": "Be brief.",
                    "template_arg": ["enable_thinking=false"], "image_tokens": 64, "max_pixels": 4096, "device_map": "auto",
                    "workers": 8, "gpus_per_worker": 2, "address": "local", "ship_images": True,
                "base_url": "http://localhost:8000", "api_key_file": "key", "ca_file": "ca.pem", "concurrency": 4,
                "timeout": 30, "retries": 2, "max_requests": 100, "max_cost": 2.5, "price_in": 1, "price_out": 3.0}  # fmt: skip
    assert examples.keys() == SETTINGS.keys()
    text = "".join(f"{name.replace('_', '-')} = {json.dumps(value)}\n" for name, value in examples.items())
    os.environ.pop("HF_HUB_OFFLINE", None)
    try:
        spec = spec_of(text.replace("trials = 2\n", ""), ("coco",))
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    finally:
        os.environ.pop("HF_HUB_OFFLINE", None)
    assert spec.shots == (0, 4)
    assert spec.feature_cache == 1 << 30
    assert spec.out == Path("run")
    assert spec.plain
    with pytest.raises(UserError, match=r"seeds in the top level and .*trials in the top level both choose the trials"):
        spec_of(text, ("coco",))


def test_the_old_name_of_the_pool_size_still_holds(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ("plan", "coco", "--shots", "4", "--data-root", root, "--seeds", "42", "--json")
    new = cli(*plan, "--pool-size", "5").stdout
    assert cli(*plan).stdout != new
    assert cli(*plan, "--query-set-size", "5").stdout == new
    Path("flamingo-eval.toml").write_text("query-set-size = 5\n")
    assert cli(*plan).stdout == new
    Path("flamingo-eval.toml").unlink()
    monkeypatch.setenv("FLAMINGO_EVAL_QUERY_SET_SIZE", "5")
    assert cli(*plan).stdout == new
    assert "--query-set-size" not in cli("coco", "--help").stdout


def test_switches_can_be_switched_off(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_EVAL_PLAIN", "1")
    run = ("coco", "--shots", "0", "--seeds", "42", "--checkpoint", "scripted", "--data-root", root)
    result = cli(*run, "--out", "run")
    assert result.returncode == 2
    assert "--plain does not apply to it" in result.stderr
    assert cli(*run, "--out", "run", "--no-plain").returncode == 0


def test_seeds_come_from_each_benchmarks_own_protocol() -> None:
    from flamingo_eval.core.benchmark import load_benchmark
    from flamingo_eval.core.images import Images
    from flamingo_eval.core.protocols import DataSet
    from flamingo_eval.core.source import Source
    from flamingo_eval.engine.prepare import trial_keys_of

    sources = {name: Source(load_benchmark(name, protocol="openflamingo-2023-03"), Images(Path()), DataSet([], [], ()))
               for name in ("coco", "vqav2")}  # fmt: skip
    spec = spec_of("", ("coco", "vqav2"), shots=(4,))
    own = {name: source.benchmark.plan.seeds for name, source in sources.items()}
    keys = trial_keys_of(spec, sources)
    for name in sources:
        assert [seed for benchmark, _, seed in keys if benchmark == name] == list(own[name])


@pytest.mark.torch
def test_seeds_that_have_no_effect_are_reported(root: Path, cli: Cli) -> None:
    plan = ("plan", "coco", "--shots", "1", "--data-root", root, "--select", "rices", "--rices-model", "scripted")
    assert "one trial, seed 42; --seeds has no effect" in cli(*plan, "--seeds", "1,2").stderr
    assert "one trial, seed 42; --trials has no effect" in cli(*plan, "--trials", "5").stderr
    message = cli(*plan).stderr
    assert "one trial, seed 42" in message
    assert "no effect" not in message
    assert "no effect" not in cli(*plan, "--seeds", "1,2", "--num-samples", "3").stderr


@pytest.mark.torch
def test_features_take_a_selector_that_goes_by_images(root: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_EVAL_SELECT", "random")
    Path("flamingo-eval.toml").write_text('select = "random"\nrices-model = "scripted"\n')
    assert cli("features", "coco", "--data-root", root).returncode == 0
    refused = cli("features", "coco", "--data-root", root, "--select", "random")
    assert refused.returncode == 2
    assert "--select random uses no image features" in refused.stderr


def test_a_plan_is_of_the_checkpoints_rendering(root: Path, cli: Cli) -> None:
    plan = ("plan", "coco", "--shots", "1", "--data-root", root, "--json", "--seeds", "42")
    flamingo, scripted = (cli(*plan, *more).stdout for more in ((), ("--checkpoint", "scripted")))
    assert "<|endofchunk|>" in flamingo
    assert "<|endofchunk|>" not in scripted
    run = ("coco", "--shots", "1", "--seeds", "42", "--checkpoint", "scripted", "--data-root", root, "--out", "run")
    assert cli(*run).returncode == 0
    rows = [json.loads(line) for line in cli("samples", "run").stdout.splitlines()]
    assert [json.loads(line)["prompt"] for line in scripted.splitlines()] == [row["prompt"] for row in rows]


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        (numbers(9), "[0, 4]", (0, 4)), (numbers(9), 4, (4,)), (numbers(9), (4, 4, 0), (4, 0)), (numbers(9), "0 4", (0, 4)),
        (numbers(9), True, None), (numbers(9), [True], None), (numbers(9), [], None), (numbers(9), "10", None),
        (numbers(9), 1.0, None), (numbers(9), [0.5], None), (numbers(9), "", None), (numbers(9), {}, None),
        (integer(1), "3", 3), (integer(1), 3, 3), (integer(1), 0, None), (integer(1), "x", None), (integer(1), True, None),
        (integer(1), 2.0, None), (choice("a", "b"), "a", "a"), (choice("a", "b"), "c", None), (choice("a", "b"), ["a"], None),
        (BATCH, "auto", None), (BATCH, "8", 8), (BATCH, 8, 8), (SIZE, 5, 5), (SIZE, "2k", 2048), (SIZE, -1, None),
        (NAMES, "a,b", ("a", "b")), (NAMES, ["a"], ("a",)), (NAMES, [5], None), (NAMES, "", None), (NAMES, 5, None),
        (NAMES, [], ()), (NAMES, {"a": 1}, None), (numbers(9), {"2": 1}, None), (numbers(9), b"1", None),
    ],
)  # fmt: skip
def test_values_are_read_alike_wherever_they_stand(kind: Any, value: Any, read: Any) -> None:
    if read is None and value != "auto":
        with pytest.raises((ValueError, TypeError)):
            kind.read(value)
    else:
        assert kind.read(value) == read


def test_evaluates_settings_are_those_of_the_command_line(root: Path, cli: Cli) -> None:
    run_scripted(cli, root, "run", "--num-samples", "3", "--pool-size", "6")
    flamingo_eval.evaluate("scripted", "coco", shots="0,2", seeds=[42, 43], data_root=root, num_samples=3,
                           query_set_size=6, selector="random", out="python")  # fmt: skip
    assert identity("python") == identity("run")
    assert read_lines(Path("python/journal.jsonl")) == read_lines(Path("run/journal.jsonl"))
    for wrong, message in (
        ({"shots": ["four"]}, r"shots \['four'\]: give integers"),
        ({"num_samples": 0}, "num_samples 0: give an integer from 1 on"),
        ({"chekpoint": "x"}, "there is no setting 'chekpoint'; there are shots, "),
        ({"checkpoint": "x"}, "there is no setting 'checkpoint'"),
        ({"on_error": "go"}, "on_error 'go': give stop or skip"),
    ):
        with pytest.raises(UserError, match=message):
            flamingo_eval.evaluate("scripted", "coco", data_root=root, **wrong)
    with pytest.raises(UserError, match="plain is for a checkpoint that is named"):
        flamingo_eval.evaluate(flamingo_eval.core.protocols.ModelBase(), "coco", data_root=root, plain=True)


@pytest.mark.slow
def test_help_shows_every_option_in_full(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("coco", "run", "bench", "plan", "features", "controls", "reproduce", "score"):
        text = cli(command, "-h").stdout
        assert max(map(len, text.splitlines())) <= 80
        for name in {"coco": specs.RUN, "bench": specs.BENCH, "plan": specs.PLAN}.get(command, ()):
            assert f"{SETTINGS[name].option} " in text, (command, name)
        assert "…" not in text


def test_help_writes_defaults_as_they_are_given(cli: Cli) -> None:
    text = " ".join(cli("coco", "--help").stdout.replace("│", " ").split())
    assert "Default: 0,4,8,16,32." in text
    assert "Default: (" not in text, "no tuple of Python's"
    features = " ".join(cli("features", "--help").stdout.replace("│", " ").split())
    assert "(--num-samples). Default: rices." in features, "its own, not a run's"


def test_strength() -> None:
    given: Given = {
        "seeds": GivenValue((1,), IN_ENVIRONMENT, "x"),
        "trials": GivenValue(2, ON_COMMAND_LINE, "--trials"),
    }
    settings = specs.settings_for(read_config(None), (), given, specs.RUN)
    assert (settings.seeds, settings.trials) == (None, 2)
    assert RunSettings().seeds_by((5, 6)) == (5, 6)
    assert FAST[0] == "coco"
