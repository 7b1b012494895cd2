"""How the viewer copes with as many answers as VQAv2 has questions: ``python tests/speed/viewer.py [FOLDER] [COUNT]``.

Makes 214,354 questions over 200 images, has the scripted model answer them (minutes, once; the folder is used again), then
measures: the time until the server answers, its memory, and, in Chromium, the time to the first row and of filters.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.viewing import need_chromium, viewing

QUESTIONS = 214_354
IMAGES = 200


def write_data(root: Path, count: int) -> None:
    """VQAv2's layout, with made-up questions and answers."""
    choose = random.Random(0)
    folder = root / "vqav2"
    words = [
        "what",
        "who",
        "where",
        "is",
        "are",
        "the",
        "a",
        "red",
        "blue",
        "dog",
        "cat",
        "man",
        "table",
        "on",
        "under",
        "how",
        "many",
        "color",
    ]
    for split, total in (("train", 4000), ("val", count)):
        images = folder / f"{split}2014"
        images.mkdir(parents=True, exist_ok=True)
        for n in range(IMAGES):
            color = tuple(choose.randrange(256) for _ in range(3))
            Image.new("RGB", (32, 32), color).save(images / f"COCO_{split}2014_{n:012d}.jpg")
        keys = [{"question_id": n, "image_id": n % IMAGES} for n in range(total)]
        questions = [{**key, "question": " ".join(choose.choices(words, k=7)) + "?"} for key in keys]
        annotations = [
            {**key, "question_type": choose.choice(words), "answer_type": choose.choice(["yes/no", "number", "other"]),
             "answers": [{"answer": choose.choice(["yes", "no", "red", "2", "a dog"]), "answer_id": i} for i in range(10)]}
            for key in keys
        ]  # fmt: skip
        (folder / f"v2_OpenEnded_mscoco_{split}2014_questions.json").write_text(json.dumps({"questions": questions}))
        (folder / f"v2_mscoco_{split}2014_annotations.json").write_text(json.dumps({"annotations": annotations}))


def run(folder: Path, count: int) -> Path:
    """The run, made if it is not there."""
    out = folder / "run"
    if not (out / "scores.json").exists():
        write_data(folder / "data", count)
        command = [sys.executable, "-m", "flamingo_eval", "vqav2", "--shots", "4", "--seeds", "42", "--num-samples", str(count), "--checkpoint",
                   "scripted", "--data-root", str(folder / "data"), "--out", str(out)]  # fmt: skip
        subprocess.run(command, check=True)
    return out


def memory(process: int) -> float:
    """Resident memory of a process and its children, in MB."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if int(lines["PPid"]) == process or int(lines["Pid"]) == process:
            total += int(lines.get("VmHWM", "0 kB").split()[0])
    return total / 1000


def main() -> None:
    """Prints the figures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    out = run(folder, int(sys.argv[2]) if len(sys.argv) > 2 else QUESTIONS)
    begin = time.perf_counter()
    with viewing(out) as address:
        print(f"server ready after {time.perf_counter() - begin:.1f} s")
        server = next(int(p.name) for p in Path("/proc").glob("[0-9]*") if _is_view(p))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=need_chromium(), args=["--no-sandbox"])
            page = browser.new_page()
            begin = time.perf_counter()
            page.goto(f"{address}#/answers")
            page.wait_for_selector("table.answers tbody tr")
            print(f"first row after {time.perf_counter() - begin:.2f} s")
            page.wait_for_function(
                "() => !document.getElementById('count').innerText.includes('on their way')", timeout=120_000
            )
            print(f"all rows after {time.perf_counter() - begin:.2f} s")
            for name, value in (("text", "red blue"), ("min", "100"), ("sort", "score-up"), ("kind", "yes/no")):
                seconds = page.evaluate(FILTER, [name, value])
                print(f"filter {name}={value}: {seconds / 1000:.2f} s")
            heap = page.evaluate("() => performance.memory.usedJSHeapSize") / 1e6
            print(f"memory: server {memory(server):.0f} MB, page's heap {heap:.0f} MB")
            browser.close()


FILTER = """([name, value]) => {
    const field = document.querySelector(`.filter [name="${name}"]`);
    field.value = value;
    const begin = performance.now();
    field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input", { bubbles: true }));
    document.body.offsetHeight;
    const took = performance.now() - begin;
    document.querySelector(".filter .button").click();
    return took;
}"""


def _is_view(process: Path) -> bool:
    try:
        return b"\0view\0" in (process / "cmdline").read_bytes() and int(process.name) != os.getpid()
    except OSError:
        return False


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
