"""Inputs that failed once, each in the shape in which people met it; the kinds are tested where the code is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import owners
from tests.support.helpers import FAST, Cli, write_coco_root

MARK = "\ufeff"


def scored(cli: Cli, *arguments: object) -> dict[str, Any]:
    result = cli("score", *map(str, arguments), "--format", "json")
    assert result.returncode == 0, result.stderr
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def windows(path: Path) -> None:
    """A text file as Windows programs save it."""
    text = path.read_text(encoding="utf-8")
    path.write_bytes((MARK + text.replace("\n", "\r\n")).encode())


def captions(*numbers: int) -> str:
    return json.dumps([{"image_id": n, "caption": f"a thing {n}"} for n in numbers])


def test_byte_order_marks_everywhere(cli: Cli, tmp_path: Path) -> None:
    """Annotations, predictions, JSON lines, the configuration, a benchmark's settings: read as if they had none."""
    root = write_coco_root(tmp_path / "d", train=4, test=3)
    for split in ("train", "dev_seen"):
        rows = [{"id": n, "img": f"img/{n:05d}.png", "label": n % 2, "text": "t"} for n in range(6)]
        (root / "hateful_memes/img").mkdir(parents=True, exist_ok=True)
        (root / f"hateful_memes/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for n in range(6):
        (root / f"hateful_memes/img/{n:05d}.png").write_bytes(owners.jpeg(n))
    Path("p.json").write_text(captions(500, 501, 502))
    Path("flamingo-eval.toml").write_text('[coco.data]\nannotations = "splits.json"\n')
    (root / "coco/dataset_coco.json").rename(root / "coco/splits.json")
    plain = scored(cli, "coco", "--predictions", "p.json", "--data-root", root)
    for path in (Path("p.json"), Path("flamingo-eval.toml"), root / "coco/splits.json", *root.glob("*/*.jsonl")):
        windows(path)
    assert scored(cli, "coco", "--predictions", "p.json", "--data-root", root) == plain
    run = (
        "hateful-memes",
        "--checkpoint",
        "scripted",
        "--data-root",
        str(root),
        "--shots",
        "0",
        "--seeds",
        "1",
        "--out",
        "run",
    )
    assert cli(*run).returncode == 0


def test_a_checkpoints_file_with_a_mark(cli: Cli, tmp_path: Path) -> None:
    """Read past the mark: it is the missing weights that are complained of."""
    Path("m.toml").write_text('name = "x"\ncheckpoint = "gone.pt"\ncross_attn_every_n_layers = 2\n[vision]\nmodel = "v"\n'
                              'pretrained = "p"\n[language]\nmodel = "l"\n')  # fmt: skip
    windows(Path("m.toml"))
    root = write_coco_root(tmp_path / "d", train=4, test=3)
    message = cli("coco", "--checkpoint", "m.toml", "--data-root", root, "--shots", "0", "--seeds", "1").stderr
    assert "gone.pt" in message
    assert "TOML" not in message


def test_cider_of_one_image(cli: Cli, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=4, test=1)
    Path("p.json").write_text(captions(500))
    found = scored(cli, "coco", "--predictions", "p.json", "--data-root", root)
    assert found["value"] == 0
    assert "CIDEr of one image is always 0" in found["notes"][0]


def test_images_of_coco_2017(cli: Cli, tmp_path: Path) -> None:
    """A validation image of 2014 may lie in train2017."""
    root = write_coco_root(tmp_path / "d", train=4, test=3)
    for year, other in (("train2014", "train2017"), ("val2014", "val2017")):
        (root / "coco" / other).mkdir()
        for image in (root / "coco" / year).iterdir():
            image.rename(
                root / "coco" / ("train2017" if "501" in image.name else other) / image.name.rpartition("_")[2]
            )
        (root / "coco" / year).rmdir()
    out = cli("data", "check", "coco", "--data-root", root, "--images").stdout
    assert "images from train2017 and val2017, by number" in out
    assert "ok     images opened" in out
    assert cli(*FAST, "--data-root", root, "--out", "run").returncode == 0


def test_scores_of_hateful_memes(cli: Cli, tmp_path: Path) -> None:
    """By hand: of 2 x 4 pairs of a hateful and another meme, 3 are in the right order; keys, ids and CSV as people have
    them."""
    scores, labels = {1: 0.9, 2: 0.4, 3: 0.3, 4: 0.8, 5: 0.35, 6: 0.1}, {2: 1, 3: 1}
    for split in ("train", "dev_seen"):
        rows = [{"id": n, "img": f"img/{n:05d}.png", "label": labels.get(n, 0), "text": "t"} for n in scores]
        (tmp_path / "d/hateful_memes/img").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"d/hateful_memes/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    forms = {
        "p.json": json.dumps([{"id": n, "score": s} for n, s in scores.items()]),
        "proba.json": json.dumps([{"id": n, "proba": s, "label": int(s > 0.5)} for n, s in scores.items()]),
        "padded.json": json.dumps([{"id": f"{n:05d}", "score": s} for n, s in scores.items()]),
        "submission.csv": "id,proba,label\n" + "".join(f"{n},{s},{int(s > 0.5)}\n" for n, s in scores.items()),
    }
    for name, text in forms.items():
        Path(name).write_text(text)
        found = scored(
            cli, "hateful-memes", "--predictions", name, "--data-root", tmp_path / "d", "--per-item", "items"
        )
        assert found["value"] == pytest.approx(100 * 3 / 8)
        items = [json.loads(line) for line in Path("items").read_text().splitlines()]
        assert [(item["score"], item["label"]) for item in items] == [(s, labels.get(n, 0)) for n, s in scores.items()]


def test_flat_validation_images(cli: Cli, tmp_path: Path) -> None:
    """A hidden folder is no class; images that lie side by side are said to, with what helps."""
    folder = tmp_path / "d/imagenet"
    for name in ("train/n01440764/a.JPEG", "train/n01443537/b.JPEG", "train/.ipynb_checkpoints/c.JPEG", "val/1.JPEG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(owners.jpeg(1))
    (folder / "class_names.json").write_text('{"n01440764": "tench", "n01443537": "goldfish"}')
    result = cli("data", "check", "imagenet", "--data-root", tmp_path / "d")
    assert result.returncode == 2
    assert "val holds images directly; they must lie in a folder per class" in result.stdout
    assert "`data prepare` puts them into a folder per class" in result.stdout
    assert "ipynb" not in result.stdout
    assert "is missing" not in result.stdout


def test_folders_by_number(cli: Cli, tmp_path: Path) -> None:
    """Names that sort otherwise than their numbers do would get each other's labels: refused."""
    for split in ("train", "val"):
        for number in range(12):
            path = tmp_path / f"d/imagenet/{split}/{number}/x.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(owners.jpeg(number))
    Path("p.json").write_text(json.dumps([{"id": n, "answer": "tench"} for n in range(12)]))
    result = cli("score", "imagenet", "--predictions", "p.json", "--data-root", tmp_path / "d")
    assert result.returncode == 2
    assert "are not the 1,000 ids that class names are known for" in result.stderr
    assert "class_names.json" in result.stderr


def test_predictions_a_line_each(cli: Cli, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=4, test=3)
    Path("p.json").write_text(captions(500, 501, 502))
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in json.loads(captions(500, 501, 502))))
    values = [
        scored(cli, "coco", "--predictions", f"p.{end}", "--data-root", root)["value"] for end in ("json", "jsonl")
    ]
    assert values[0] == values[1] > 0


def test_textvqa_as_mmf_scores_it(cli: Cli, tmp_path: Path) -> None:
    """A possessive and commas are told apart as its tokenisation does; each answer is what all ten annotators mean."""
    rows = [
        ("miller 's", ["miller's"] * 10),
        ("q r s", ["q r s"] * 5 + ["q, r, s"] * 5),
        ("ab", ["a,b"] * 4 + ["ab"] * 6),
    ]
    table = {"data": [{"question_id": n, "image_id": f"{n:016x}", "question": "?", "answers": answers}
                      for n, (_, answers) in enumerate(rows)]}  # fmt: skip
    (tmp_path / "d/textvqa").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / f"d/textvqa/TextVQA_0.5.1_{split}.json").write_text(json.dumps(table))
    Path("p.json").write_text(json.dumps([{"question_id": n, "answer": text} for n, (text, _) in enumerate(rows)]))
    arguments = ("textvqa", "--protocol", "official", "--predictions", "p.json", "--data-root", tmp_path / "d")
    assert scored(cli, *arguments)["value"] == 100


def test_keys_that_are_others(cli: Cli, tmp_path: Path) -> None:
    """The message names the keys that this benchmark takes, those that the record has, and a known id."""
    root = write_coco_root(tmp_path / "d", train=4, test=3)
    Path("p.json").write_text(json.dumps([{"image_name": "x", "prediction": "a thing"}]))
    message = cli("score", "coco", "--predictions", "p.json", "--data-root", root).stderr
    for part in ("'image_name', 'prediction'", "image_id", "caption", "500"):
        assert part in message
    Path("p.json").write_text(json.dumps([{"image_id": 500, "caption": 5}]))
    assert (
        "caption is 5; it has to be a text"
        in cli("score", "coco", "--predictions", "p.json", "--data-root", root).stderr
    )
