PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test check e2e bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	rm -rf out/scenes
	$(BIN)/sam4mllm scenes out/scenes --count 1 --seed 2014
	$(BIN)/sam4mllm predict "$$(ls out/scenes/images/*.png)" "the horse" "all burgers" "the drum" --out out/overlay.png

test: install
	$(BIN)/python -m pytest --ignore tests/e2e

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

e2e: install
	$(BIN)/python -m pytest tests/e2e

bench: install
	$(BIN)/sam4mllm bench
	$(BIN)/python benchmarks/packing.py

clean:
	rm -rf out build .mypy_cache .ruff_cache .pytest_cache .hypothesis
