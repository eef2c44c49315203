# Needs Python 3.10 to 3.13 and GNU make; everything else is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
# Options of the torch install, for example an index that has the smaller CPU build.
TORCH_PIP ?=
# Processes that run the tests.
JOBS ?= 2
RUN ?= runs/demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types check install
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/smpq run --task digits --target ort-cpu --budget latency=0.8x --out $(RUN)
	@echo "The report is at $(RUN)/report.html"

test: $(STAMP)
	$(BIN)/pytest -n $(JOBS) --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

install: $(STAMP)

# torch comes first and alone, so that the build of this machine is chosen before anything else asks for torch.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_PIP) torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[rtx,dev]"
	touch $@
