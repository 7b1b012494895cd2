"""The Python API: load a checkpoint, let it speak, evaluate it or a model of your own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flamingo_eval import registry
from flamingo_eval.benchmark import canonical_name, load_benchmark
from flamingo_eval.errors import UserError
from flamingo_eval.images import formats_with
from flamingo_eval.nouns import Cell
from flamingo_eval.ports import ModelSource
from flamingo_eval.runspec import DEMO, RunSpec

if TYPE_CHECKING:
    from flamingo_eval.models.flamingo.adapter import FlamingoModel


def load_model(
    checkpoint: str,
    *,
    weights: str | Path | None = None,
    data_root: str | Path = ".",
    device: str = "auto",
    precision: str = "auto",
) -> FlamingoModel:
    """Loads a checkpoint.

    Args:
        checkpoint: a known name, ``demo``, or the path of a TOML file.
        weights: a folder of copies to take a known checkpoint's files from.
        data_root: what paths of images given to ``generate`` are relative to.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto``, ``fp32``, ``bf16``, ``fp16``, ``amp_bf16``.

    Raises:
        UserError, CheckpointError: unknown, or not what it must be.
    """
    source: Any = registry.model_source(checkpoint, {} if weights is None else {"weights": Path(weights)})
    loaded: FlamingoModel = source.load(*source.resolve(device, precision))
    loaded.root = Path(data_root)
    return loaded


def evaluate(
    model: Any,
    benchmarks: str | Sequence[str],
    *,
    shots: Sequence[int] = (0, 4, 8, 16, 32),
    seeds: Sequence[int] | None = None,
    tokenizer: Any = None,
    transform: Callable[[Any], Any] | None = None,
    data_root: str | Path = DEMO,
    protocol: str = "openflamingo",
    split: str | None = None,
    selector: str = "random",
    num_samples: int | None = None,
    query_set_size: int = 2048,
    batch_size: int | None = None,
    image_formats: Sequence[str] = (),
    out: str | Path | None = None,
    name: str = "live model",
    **selection: Any,
) -> list[Cell]:
    """Evaluates a model in this process, and returns the cells of its table.

    Args:
        model: what :func:`load_model` returns; or any object that fulfils :class:`flamingo_eval.ports.Model`; or a live
            module in the released layout (``perceiver``,
            ``vision_encoder``, ``lang_encoder`` with its ``gated_cross_attn_layer``), as it stands, in training or
            not: its tensors are shared, and it is left as it was; or the name of a checkpoint.
        benchmarks: one or several.
        shots: numbers of demonstrations.
        seeds: one trial each; None for the protocol's.
        tokenizer: of a live module, with its special tokens.
        transform: of a live module: from a Pillow picture to a tensor.
        data_root: folder with one folder a benchmark, or ``demo``.
        protocol: whose rules.
        split: which split to query.
        selector: how demonstrations are picked; ``flamingo-eval coco --help`` lists the ways.
        num_samples: queries a trial; None for all.
        query_set_size: size of the pool of random demonstrations.
        batch_size: queries a batch; None for what the model suggests.
        image_formats: Pillow's names of image formats that are read besides the usual ones, such as ``AVIF``.
        out: run folder, to keep the answers and to resume; None to keep nothing.
        name: what to call a live module.
        selection: settings of the selector, by the names of its options.

    Raises:
        UserError, DataError, CheckpointError: as on the command line.
    """
    from flamingo_eval.demo.root import data_folder
    from flamingo_eval.engine.run import execute

    names = tuple(canonical_name(one) for one in ([benchmarks] if isinstance(benchmarks, str) else benchmarks))
    if not names:
        raise UserError("no benchmark is named")
    known = [setting.name for setting in registry.selector(selector).settings]
    strange = sorted(selection.keys() - set(known))
    if strange:
        raise UserError(f"{selector} has no setting {strange[0]!r}; it has: {', '.join(known) or 'none'}")
    for setting in registry.selector(selector).settings:
        setting.check(selection.get(setting.name, setting.default))
    spec = RunSpec(
        benchmarks=names,
        shots=tuple(shots),
        seeds=tuple(seeds) if seeds is not None else load_benchmark(names[0], protocol=protocol).plan.seeds,
        checkpoint=model if isinstance(model, str) else name,
        data_root=str(data_root),
        protocol=protocol,
        split=split,
        selector=selector,
        selection=selection,
        num_samples=num_samples,
        query_set_size=query_set_size,
        batch_size=batch_size,
        image_formats=formats_with([image_formats] if isinstance(image_formats, str) else image_formats),
    )

    with tempfile.TemporaryDirectory(prefix="flamingo-eval-") as scratch:
        folder = Path(scratch) / "run" if out is None else Path(out)
        with _left_as_it_was(model):
            return execute(spec, data_folder, folder, model_source=_source(model, tokenizer, transform, name)).cells


@contextmanager
def _left_as_it_was(model: Any) -> Iterator[None]:
    """A module in training goes on training afterwards; evaluation shares its parts and switches them."""
    torch = sys.modules.get("torch")  # without it there is no module
    before = {part: part.training for part in model.modules()} if torch and isinstance(model, torch.nn.Module) else {}
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


def _source(model: Any, tokenizer: Any, transform: Any, name: str) -> ModelSource:
    if isinstance(model, str):
        return registry.model_source(model)
    return registry.adopted(model, name, {"tokenizer": tokenizer, "transform": transform})
