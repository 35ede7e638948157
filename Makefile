PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

LABEL_STUDIO := .venv-label-studio
# none of our own where SAM4MLLM_LABEL_STUDIO names another's command
STUDIO := $(if $(SAM4MLLM_LABEL_STUDIO),,label-studio)
LABEL_STUDIO_ML := .venv-label-studio-ml
# label-studio-ml 1.0.9 pins a Flask of 2020 but runs on ours: its packages stand alone in a folder
LABEL_STUDIO_ML_PACKAGES := label-studio-ml==1.0.9 label-studio-tools redis rq croniter attrs appdirs colorama lxml requests urllib3 idna charset-normalizer

# two test processes and their servers on two cores: more threads wait for each other, and all are several times slower;
# and compiled modules are kept, for the tests start some two hundred processes that would each compile them again
FOR_TESTS := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
# what takes longest begins first, so that no file is left over for one core at the end; the learning run is timed and begins when they are over
LONGEST := tests/e2e/test_guides.py tests/e2e/test_wheel.py tests/e2e/test_doctor.py
TIMED := tests/e2e/test_learning.py

.PHONY: install label-studio label-studio-ml studios demo predict test check e2e e2e-untimed e2e-timed bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

label-studio: $(LABEL_STUDIO)/.installed

$(LABEL_STUDIO)/.installed:
	$(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/pip install --quiet label-studio==1.23.2
	touch $@

label-studio-ml: $(LABEL_STUDIO_ML)/.installed

$(LABEL_STUDIO_ML)/.installed: $(STAMP)
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(LABEL_STUDIO_ML) $(LABEL_STUDIO_ML_PACKAGES)
	touch $@

studios: install $(STUDIO) label-studio-ml

demo:
	$(MAKE) --no-print-directory -j2 install $(STUDIO)
	$(BIN)/sam4mllm demo out/demo

predict: install
	rm -rf out/scenes
	$(BIN)/sam4mllm scenes out/scenes --count 1 --seed 2014
	$(BIN)/sam4mllm predict "$$(ls out/scenes/images/*.png)" "the horse" "all burgers" "the drum" --out out/overlay.png

test: install
	$(FOR_TESTS) $(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/e2e

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples/*/*.py
	$(BIN)/lint-imports

e2e: e2e-untimed
	$(MAKE) --no-print-directory e2e-timed

e2e-untimed:
	$(MAKE) --no-print-directory -j2 studios
	$(FOR_TESTS) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(LONGEST) $(filter-out $(LONGEST) $(TIMED),$(wildcard tests/e2e/test_*.py))

e2e-timed: studios
	$(BIN)/python -m pytest $(TIMED)

bench: install
	$(BIN)/sam4mllm bench
	$(BIN)/python benchmarks/packing.py

clean:
	rm -rf out/scenes out/overlay.png build .mypy_cache .ruff_cache .pytest_cache .hypothesis
