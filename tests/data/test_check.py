"""The data check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.helpers import write_coco_root


def test_data_check(call: Any, tmp_path: Path) -> None:
    root = write_coco_root(tmp_path / "d", train=3, test=2)
    code, out, err = call("data", "check", "coco", "--data-root", root, "--images")
    assert code == 2, "three training images are not COCO's"
    assert "WRONG  train: 3 examples of 3 images, published are 82783" in out
    assert "ok     images opened" in out
    broken = root / "coco/val2014/COCO_val2014_000000000500.png"
    broken.write_bytes(broken.read_bytes()[:50])
    (root / "coco/val2014/COCO_val2014_000000000501.png").unlink()
    _, _, err = call("data", "check", "coco", "--data-root", root, "--images")
    assert "2 images are missing or unreadable" in err
    assert "501.png does not exist" in err
    assert "1 images are missing" in call("data", "check", "coco", "--data-root", root)[2], (
        "not opened without --images"
    )
