# One environment in .venv serves every goal; it is made on first use and again when the versions change. Another Python or torch
# gets an environment of its own beside it; another torch brings the Triton that it needs.
#   make export TARGET=jetson [MODEL=weights.pth CALIB=set or folder [EVAL=set or folder]]
#   make test PYTHON=python3.12
#   make test TORCH=2.14.1
#   make test-zoo

PYTHON ?= python3
VENV := .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))$(if $(TORCH),-torch$(TORCH))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
CONSTRAINTS := $(if $(TORCH),$(VENV)/constraints.txt,constraints.txt)
# Test files are shared out to as many processes as there are cores, the longest first (tests/conftest.py); with threads of their own
# processes would wait for each other. A process that dies ends the run, instead of a wait for tests that never come.
ON_ALL_CORES := -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0
ONE_THREAD := OMP_NUM_THREADS=1

# Without MODEL the network that ships in the package is exported: handwritten digits, with their own images.
ifndef MODEL
MODEL := digits
CALIB ?= digits
EVAL ?= digits_test
endif

.DEFAULT_GOAL := help
.PHONY: help setup export target-named test test-all test-zoo test-fast check fuzz crashes mutants bench docs clean

help:  ## List the goals
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: $(INSTALLED)  ## Make .venv and install the pinned versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "edgeconvnext needs Python 3.11 or later, and '$(PYTHON)' is not that." \
			"Name another one, for example: make setup PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),sed -e 's/^torch==.*/torch==$(TORCH)/' -e '/^triton==/d' constraints.txt >$(CONSTRAINTS))
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,dev]'
	@touch $(INSTALLED)

export: target-named $(INSTALLED)  ## Quantise and export: TARGET=onnx, openvino, android, jetson, rtx, gpu or coreml, with MODEL=, CALIB=, EVAL= (none: digits)
	$(BIN)/edgeconvnext export --target "$(TARGET)" --model "$(MODEL)" \
		$(if $(CALIB),--calib "$(CALIB)") $(if $(EVAL),--eval "$(EVAL)")

target-named:
	@test -n "$(TARGET)" || { echo "Name a target: make export TARGET=jetson (or onnx, openvino, android, rtx, gpu, coreml)" >&2; exit 2; }

test: $(INSTALLED)  ## Run the tests; PYTHON=python3.12 or TORCH=2.14.1: in an environment of its own
	$(ONE_THREAD) $(BIN)/python -m pytest $(ON_ALL_CORES) -m "not data and not exhaustive and not zoo"

test-all: $(INSTALLED)  ## Run all tests: also more cases, those on photographs (EDGECONVNEXT_DATA or ../shared/data) and kernels (installs Triton)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,dev,triton]'
	$(ONE_THREAD) $(BIN)/python -m pytest $(ON_ALL_CORES) -m "not zoo"

# The libraries of networks bring a torch of their own; the pins of everything else are those of constraints.txt.
ZOO_TORCH := 2.14.1
ZOO_LIBRARIES := torchvision==0.29.1 timm==1.0.31 transformers==5.24.0
ZOO_VENV := .venv$(addprefix -,$(filter-out python3,$(notdir $(PYTHON))))-zoo
ZOO := $(ZOO_VENV)/zoo-installed

$(ZOO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ZOO_VENV)
	sed -e 's/^torch==.*/torch==$(ZOO_TORCH)/' -e '/^triton==/d' constraints.txt >$(ZOO_VENV)/constraints.txt
	$(ZOO_VENV)/bin/python -m pip install --quiet --constraint $(ZOO_VENV)/constraints.txt --editable '.[dev]' \
		$(ZOO_LIBRARIES)
	@touch $(ZOO)

test-zoo: $(ZOO)  ## Run the tests on real modules of timm, torchvision and transformers, which it installs beside .venv
	$(ONE_THREAD) $(ZOO_VENV)/bin/python -m pytest $(ON_ALL_CORES) tests/zoo tests/model/test_modules.py

test-fast: $(INSTALLED)  ## Run the tests that take less than ten seconds each
	$(ONE_THREAD) $(BIN)/python -m pytest $(ON_ALL_CORES) -m "not slow and not data and not exhaustive and not zoo"

check: $(INSTALLED)  ## Run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(INSTALLED)  ## Give hostile files to every loader: SECONDS=600, or CASES=100000
	$(ONE_THREAD) $(BIN)/python tests/fuzz/run.py $(if $(CASES),--cases $(CASES),--seconds $(or $(SECONDS),600))

crashes: $(INSTALLED)  ## End commands at every stage, run them again and compare, into docs/crashes.md
	$(ONE_THREAD) $(BIN)/python tests/crashes/run.py

bench: $(INSTALLED)  ## Measure speed, calibration and stages on this machine, into benchmarks/results and benchmarks/README.md
	$(BIN)/python -m benchmarks.speed --again
	$(BIN)/python -m benchmarks.calibration --again
	$(BIN)/python -m benchmarks.pipeline --again
	$(BIN)/python -m benchmarks.speed --page

MUTATION := $(VENV)/mutation-installed

$(MUTATION): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	@touch $(MUTATION)

mutants: $(MUTATION)  ## Judge mutants by the tests of their modules, resume, write docs/mutants.md; MODULES="quantization/ranges sqnr": no page
	$(BIN)/python tests/mutants/run.py $(or $(MODULES),--page)

DOCS := $(VENV)/docs-installed

$(DOCS): $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $(DOCS)

docs: $(DOCS)  ## Build the documentation into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "Open build/site/index.html. The search needs a server: $(BIN)/mkdocs serve"

clean:  ## Remove .venv, build output and caches; runs/ stays
	rm -rf .venv* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .mutants
	find edgeconvnext tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
