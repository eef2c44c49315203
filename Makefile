# Needs Python 3.10 to 3.13 and GNU make; everything else is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
# Options of the torch install, for example an index that has the smaller CPU build.
TORCH_PIP ?=
# Processes that run the tests. One more than cores: some tests wait for connections and processes.
JOBS ?= 3
RUN ?= runs/demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What tests/nvidia reads: TensorRT's Python bindings, and ONNX Runtime with providers for GPUs, without the libraries of NVIDIA that they
# link. They stand beside the environment's own packages, since of each only one version fits among those.
ON_LINUX := sys_platform == 'linux' and platform_machine == 'x86_64'
BESIDE = $(BIN)/python -m pip install --quiet --no-deps --upgrade --target

# Compiled modules are kept, even where the environment says otherwise: tests start many processes, and pytest rewrites assertions.
export PYTHONDONTWRITEBYTECODE :=
# glibc keeps memory that tests free: to take it from the kernel anew costs two fifths of the kernel's time, 4 % in all.
test test-quick: export MALLOC_TRIM_THRESHOLD_ := 4000000000
test test-quick: export MALLOC_MMAP_THRESHOLD_ := 4000000000
test test-quick: export MALLOC_TOP_PAD_ := 16777216

.PHONY: demo test test-quick trained lint types docs check install providers
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/smpq run --task digits --target ort-cpu --budget latency=0.8x --out $(RUN)
	@echo "The report is at $(RUN)/report.html"

test: install
	$(BIN)/pytest -n $(JOBS) --dist worksteal

# Most tests in about a minute on two idle cores: tests/slow_tests.py lists what is left out.
test-quick: install
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow"

# The built-in small models, which tests train on first use: those that start meanwhile would wait. One thread, as in the tests.
trained: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -c "from calib.tasks import load_task; [load_task(name, None, None).model() for name in ('digits', 'digits-vit')]"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

# A link that leads nowhere is an error (with --quiet it would not be). The variable silences what the theme prints about MkDocs 2.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict
	@echo "The documentation is at site/index.html"

$(VENV)/.docs-installed: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

check: lint types docs test

install: $(STAMP) $(VENV)/bindings/.installed

# 256 MB to download. The tests of ONNX Runtime's CUDA and TensorRT providers are skipped without.
providers: $(VENV)/providers/.installed

$(VENV)/providers/.installed: Makefile | $(BIN)/python
	$(BESIDE) $(@D) "onnxruntime-gpu==1.31.1; python_version >= '3.11' and $(ON_LINUX)"
	mkdir -p $(@D) && touch $@

$(VENV)/bindings/.installed: Makefile | $(BIN)/python
	$(BESIDE) $(@D)/10.3.0 "tensorrt_cu12_bindings==10.3.0; python_version < '3.13' and $(ON_LINUX)"
	$(BESIDE) $(@D)/10.16.0.72 "tensorrt_cu12_bindings==10.16.0.72; $(ON_LINUX)"
	$(BESIDE) $(@D)/11.4.0.106 "tensorrt_cu13_bindings==11.4.0.106; $(ON_LINUX)"
	mkdir -p $(@D) && touch $@

# torch comes first and alone, so that the build of this machine is chosen before anything else asks for torch.
$(STAMP): pyproject.toml constraints.txt Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_PIP) torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[rtx,dev]"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
