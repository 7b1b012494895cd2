# Two commands for newcomers: make demo, make test. Everything happens in .venv.
PYTHON ?= python3
# how many processes test at once; 0: this one alone
PROCESSES ?= 2
# a file's tests stay in one process, which shares what they set up, and files keep their order
PYTEST = $(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-fast test-gpu gate lint docs screenshots check wheel clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/flamingo-eval coco --shots 0,4,8,16,32

test: $(READY)
	$(PYTEST)

test-fast: $(READY)
	$(PYTEST) -m "not torch and not slow"

# on a machine with a card; prints a table
test-gpu: $(READY)
	$(BIN)/pytest -m gpu tests/gpu

# the demos against their baselines: fails if a change costs more than a point, and significantly
gate: $(READY)
	$(BIN)/flamingo-eval run coco okvqa --shots 0,4,8 --trials 2 --device cpu --out results/runs/gate
	$(BIN)/flamingo-eval check results/runs/gate --baseline results/baselines/demo.json --max-drop 1.0
	$(BIN)/flamingo-eval okvqa --checkpoint demo-chat --shots 0,4,8 --trials 2 --device cpu --out results/runs/gate-chat
	$(BIN)/flamingo-eval check results/runs/gate-chat --baseline results/baselines/demo-chat.json --max-drop 1.0

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# docs/options.md from the code, then the site, strictly, into build/site
docs: $(READY)
	$(BIN)/python -m flamingo_eval.cli.options_page > docs/options.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml

# docs/images, by Chromium
screenshots: $(READY)
	$(BIN)/python docs/make_images.py

check: lint test gate

wheel: $(READY)
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf .venv dist build
