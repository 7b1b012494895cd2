"""What ``data where`` says of a folder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from flamingo_eval.core.benchmark import benchmark_names, load_benchmark
from flamingo_eval.core.layout import Piece, setting_at
from flamingo_eval.data.where import source_of
from tests.support.helpers import write_coco_root

Call = Callable[..., tuple[int, str, str]]


def test_what_is_missing_and_where_it_comes_from(call: Call, tmp_path: Path) -> None:
    """Each missing file with its owner's address, its size, and the command that gets it; exit code 2."""
    (tmp_path / "d").mkdir()
    code, out, err = call("data", "where", "vqav2", "--data-root", tmp_path / "d")
    assert code == 2
    assert "MISSING  v2_mscoco_val2014_annotations.json" in out
    assert "from https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/v2_Annotations_Val_mscoco.zip (10.5 MB)" in out
    assert f"To get what is missing: flamingo-eval data prepare vqav2 --data-root {tmp_path}/d" in out
    assert "or train2017/ and val2017/" in out
    assert "Owner: https://visualqa.org/download.html" in out
    assert "v2_mscoco_val2014_annotations.json" in err


def test_exit_codes(call: Call, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=2, test=2)
    code, out, _ = call("data", "where", "coco", "--data-root", root)
    assert code == 0, "what is optional may be absent"
    assert "found    dataset_coco.json" in out
    assert "absent   annotations/captions_val2014.json" in out
    assert call("data", "where", "all", "--data-root", root)[0] == 2
    for layout in (("--layout",), ("--layout", "--data-root", tmp_path / "nowhere")):
        code, out, _ = call("data", "where", "all", *layout)
        assert code == 0
        assert "MISSING" not in out
    assert call("data", "where", "coco")[0] == 0, "without a folder it is the layout"
    code, out, _ = call("data", "where", "coco", "okvqa", "--data-root", root)
    assert code == 2
    assert "COCO captions" in out
    assert "OK-VQA" in out
    code, out, _ = call("data", "where", "all", "--protocol", "openflamingo-2023-03")
    assert code == 0
    assert "imagenet: imagenet is not run under openflamingo-2023-03" in out


def test_an_empty_folder_is_missing(call: Call, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=2, test=2)
    for image in (root / "coco/val2014").iterdir():
        image.unlink()
    assert "MISSING  val2014/" in call("data", "where", "coco", "--data-root", root)[1]


@pytest.mark.parametrize("name", benchmark_names())
def test_settings_can_be_pasted(call: Call, tmp_path: Path, name: str) -> None:
    """The lines that are printed are a file that says what holds anyway."""
    out = call("data", "where", name, "--settings")[1]
    pasted = out[out.index(f"[{name}.data]") :]
    (tmp_path / "flamingo-eval.toml").write_text(pasted, encoding="utf-8")
    assert call("data", "where", name, "--settings")[1] == out
    own = tomllib.loads(pasted)[name]["data"]
    assert own["folder"] == load_benchmark(name).data.folder


def test_a_users_own_names(call: Call, tmp_path: Path) -> None:
    """A file that the settings name is looked for under that name."""
    root = write_coco_root(tmp_path / "d", train=2, test=2)
    (root / "coco/karpathy").mkdir()
    (root / "coco/dataset_coco.json").rename(root / "coco/karpathy/splits.json")
    assert call("data", "where", "coco", "--data-root", root)[0] == 2
    (tmp_path / "flamingo-eval.toml").write_text(
        '[coco.data]\nannotations = "karpathy/splits.json"\n', encoding="utf-8"
    )
    code, out, _ = call("data", "where", "coco", "--data-root", root)
    assert code == 0
    assert "found    karpathy/splits.json" in out


def test_images_below_another_folder(call: Call, tmp_path: Path) -> None:
    """The setting is a prefix of the paths in Karpathy's file; what is missing, and where it is put, follows it."""
    root = write_coco_root(tmp_path / "d", train=2, test=2)
    (root / "coco/jpgs").mkdir()
    for name in ("train2014", "val2014"):
        (root / "coco" / name).rename(root / "coco/jpgs" / name)
    assert "MISSING  train2014/" in call("data", "where", "coco", "--data-root", root)[1]
    (tmp_path / "flamingo-eval.toml").write_text('[coco.data]\nimages = "jpgs"\n', encoding="utf-8")
    code, out, _ = call("data", "where", "coco", "--data-root", root)
    assert code == 0
    assert "found    jpgs/train2014/" in out
    assert "missing" not in call("data", "check", "coco", "--data-root", root)[1]
    (tmp_path / "flamingo-eval.toml").write_text('[coco.data]\nimages = "../../jpgs"\n', encoding="utf-8")
    code, _, err = call("data", "where", "coco", "--data-root", root)
    assert code == 2
    assert "Traceback" not in err


def test_images_under_other_names(call: Call, tmp_path: Path) -> None:
    """A template of images stands for its folder."""
    (tmp_path / "flamingo-eval.toml").write_text('[okvqa.data.splits.val]\nimages = "pictures/val/{image_id}.jpg"\n')
    (tmp_path / "d").mkdir()
    assert "MISSING  pictures/val/" in call("data", "where", "okvqa", "--data-root", tmp_path / "d")[1]


OLDER = [(name, "openflamingo-2023-03") for name in ("coco", "flickr30k", "okvqa", "vqav2")]


@pytest.mark.parametrize(("name", "protocol"), [*((name, "openflamingo") for name in benchmark_names()), *OLDER])
def test_the_benchmarks_own_files(name: str, protocol: str) -> None:
    """Every file that a piece is taken from is listed, with its source; every setting exists."""
    benchmark = load_benchmark(name, protocol=protocol)
    pieces = [piece for piece in benchmark.data.layout if isinstance(piece, Piece)]
    assert pieces
    for piece in pieces:
        source = source_of(benchmark, piece)
        assert source is not None or piece.optional
        assert not piece.setting or isinstance(setting_at(benchmark.data.options, piece.setting), str)
        assert source is None or (source.address or source.steps), "it can be downloaded, or a person is told how"
    download = benchmark.download
    assert download is not None
    assert all(file.source for file in download.files)


def test_a_benchmark_that_names_no_pieces(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout of texts is shown as it is."""
    text = Path(__file__).parents[2].joinpath("benchmarks/coco.toml").read_text(encoding="utf-8")
    begin, end = text.index("layout = ["), text.index("\n]\n", text.index("layout = [")) + 3
    text = text[:begin] + 'layout = ["all.json   everything"]\n' + text[end:]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/own.toml").write_text(text.replace('name = "coco"', 'name = "own"', 1), encoding="utf-8")
    monkeypatch.setenv("FLAMINGO_EVAL_BENCHMARKS", str(tmp_path / "own"))
    from flamingo_eval.core import benchmark

    benchmark._files.cache_clear()
    try:
        code, out, _ = call("data", "where", "own", "--data-root", tmp_path)
        assert (code, "  all.json   everything" in out) == (0, True)
    finally:
        monkeypatch.undo()
        benchmark._files.cache_clear()


@pytest.mark.slow
def test_only_what_a_plan_needs(call: Call, tmp_path: Path) -> None:
    """A manifest lists it; a copy of it gives the same plan and the same run on a machine without the rest."""
    root = write_coco_root(tmp_path / "d", train=30, test=20)
    few = ("--num-samples", "3", "--shots", "2", "--seeds", "7", "--pool-size", "5")
    code, _, _ = call("plan", "coco", "--data-root", root, *few, "--manifest", tmp_path / "m.json")
    assert code == 0
    table = json.loads((tmp_path / "m.json").read_text())
    listed = {entry["path"] for entry in table["files"]}
    assert "coco/dataset_coco.json" in listed
    assert 3 < len(listed) <= 1 + 3 + 5
    copied = (
        "data",
        "prepare",
        "--from-manifest",
        tmp_path / "m.json",
        "--from",
        root,
        "--data-root",
        tmp_path / "new",
    )
    assert call(*copied)[0] == 0
    assert {
        str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new/coco").rglob("*") if path.is_file()
    } == listed
    plan = ("plan", "coco", *few, "--json", "--data-root")
    assert call(*plan, tmp_path / "new")[1] == call(*plan, root)[1]
    code, _, err = call("coco", "--checkpoint", "scripted", "--data-root", tmp_path / "new", *few, "--out", "run")
    assert code == 0, err
    assert call(*copied)[0] == 0, "again, with everything there"
    image = next(path for path in sorted(listed) if path.endswith(".png"))
    (root / image).write_bytes(b"other")
    (tmp_path / "new" / image).unlink()
    code, _, err = call(*copied)
    assert code == 2
    assert f"{root / image} has another content than when the manifest was written" in err
    assert not (tmp_path / "new" / image).exists()


def test_all_that_rices_compares(call: Call, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=6, test=2)
    arguments = ("plan", "coco", "--data-root", root, "--shots", "0", "--num-samples", "1", "--seeds", "1", "--manifest", "m.json")  # fmt: skip
    assert call(*arguments)[0] == 0
    assert len(json.loads(Path("m.json").read_text())["files"]) == 2, "no demonstration is shown at 0 shots"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"format": 1, "files": [{"path": "../x", "size": 1, "sha256": "0" * 64}]},
            "is not a path inside the data folder",
        ),
        ({"format": 1, "files": [{"path": "x", "size": 1, "sha256": "0"}]}, "files[0].sha256 is '0'"),
        ({"format": 2, "files": []}, "format is 2"),
    ],
)
def test_manifests_that_are_none(call: Call, tmp_path: Path, table: object, message: str) -> None:
    (tmp_path / "m.json").write_text(json.dumps(table))
    code, _, err = call("data", "prepare", "--from-manifest", "m.json", "--from", tmp_path, "--data-root", "new")
    assert code == 2
    assert message in err


def test_a_manifest_wants_both_roots(call: Call, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"format": 1, "files": []}')
    for more in (("--data-root", "new"), ("--from", tmp_path), ("coco", "--from", tmp_path, "--data-root", "new")):
        code, _, err = call("data", "prepare", "--from-manifest", "m.json", *more)
        assert code == 2
        assert "goes with --from OLD_DATA_ROOT and --data-root NEW" in err
