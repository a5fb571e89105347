# make quickstart             one model under six schemes; MODEL=... for another than the one that comes along
# make test                   everything, in a fresh environment, on the newest and oldest transformers
# make test-gpu               kernels for GPUs, in Triton's interpreter and compiled; a part of `make test`
# make test-lowest            the suite with every dependency at its lower bound, torch too
# make canary                 what moved in the newest releases of the libraries below, and the tests that know them well
# make check | format         fast loop: lint and types, or reformat
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
# The lower bound in pyproject.toml; tests/test_packaging.py compares the two.
OLDEST := 5.17.0
# Without what brings compiled code of its own version (torch, tokenizers); CANARY="transformers==5.24.0" for one.
CANARY ?= transformers huggingface_hub accelerate safetensors peft datasets lm-eval compressed-tensors optimum
LOWEST := .venv-lowest
# Tests of one file stay together as long as they can, since they share fixtures; a worker without work takes half of
# another's. WORKERS=0 runs all in one process.
WORKERS ?= auto
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist worksteal

INSTALLED := $(VENV)/.installed
INSTALLED_OLDEST := $(VENV)/oldest/.installed
# With the folders themselves: their time changes when a file is removed.
SOURCES := pyproject.toml setup.py README.md \
	$(shell find qllm_hf kernels -not -path '*/__pycache__*' -not -name '*.so' -not -name build.json)

heading = @printf '\n== %s ==\n' '$(1)'

# pip is told not to compile what it installs, since most of it is never imported. Python has to keep what it compiles
# itself then, and not among the sources: some tests run the package from there, and a new folder changes their time.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/pycache

.PHONY: quickstart test test-gpu test-oldest test-lowest canary check format clean
.NOTPARALLEL:

quickstart: $(INSTALLED)
	$(call heading,Quickstart)
	$(BIN)/qllm-hf quickstart $(if $(MODEL),"$(MODEL)")

# A fresh environment: a forgotten dependency or package-data file must not hide behind an old one.
test:
	@rm -rf $(VENV)
	@$(MAKE) --no-print-directory $(INSTALLED)
	@$(MAKE) --no-print-directory check
	$(call heading,Tests with the newest supported transformers)
	$(PYTEST)
	@$(MAKE) --no-print-directory test-oldest
ifeq ($(shell uname -sm),Linux x86_64)
	@$(MAKE) --no-print-directory test-gpu
endif

# Kernels for GPUs in Triton's interpreter, which has to be chosen before anything is imported, and compiled for targets
# that are not here. Triton is no extra of the package: torch for CUDA wants the version that it comes with, and pip would
# look for another torch. The other tests run before, without Triton, as on most machines without a GPU.
test-gpu: $(INSTALLED)
	$(call heading,Kernels for GPUs in the interpreter)
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install --quiet --no-compile --no-deps "triton>=3.6,<3.7"
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels/gpu tests/kernels/test_local_kernel.py

# The old transformers shadows the installed one; torch and the rest stay, so nothing big is installed twice.
test-oldest: $(INSTALLED_OLDEST)
	$(call heading,Version-sensitive tests with transformers $(OLDEST))
	PYTHONPATH="$(CURDIR)/$(VENV)/oldest" QLLM_TEST_TRANSFORMERS=$(OLDEST) $(PYTEST) -m oldest

# Every lower bound of pyproject.toml at once. It is not a part of `make test`: the oldest torch is another large download,
# which on Linux brings CUDA unless pip is pointed to a build for CPUs.
test-lowest:
	$(call heading,Install the lowest versions into $(LOWEST))
	rm -rf $(LOWEST) build/lib build/bdist.* *.egg-info
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip packaging tomli
	$(LOWEST)/bin/python scripts/lower_bounds.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-compile -c $(LOWEST)/constraints.txt ".[test]"
	$(call heading,Tests with the lowest versions)
	$(LOWEST)/bin/pytest -n $(WORKERS) --dist worksteal

# Newest releases shadow the installed ones, as the oldest do above. A version that our bounds do not allow yet is the point
# here, so the test of the bounds stands aside.
canary: $(INSTALLED)
	$(call heading,Look at what is installed)
	$(BIN)/python scripts/canary.py --write $(VENV)/upstream.json
	rm -rf $(VENV)/canary
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --target $(VENV)/canary $(CANARY)
	$(call heading,What moved)
	-PYTHONPATH="$(CURDIR)/$(VENV)/canary" $(BIN)/python scripts/canary.py --compare $(VENV)/upstream.json
	$(call heading,Version-sensitive tests on top of it)
	PYTHONPATH="$(CURDIR)/$(VENV)/canary" $(PYTEST) -m oldest \
		--deselect tests/test_packaging.py::test_transformers_is_the_version_under_test

check: $(INSTALLED)
	$(call heading,Lint)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(call heading,Types)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed for real, not editable: tests and users then see the same files. setuptools keeps what it built
# in build/lib and would ship a module that was deleted since, hence the removal before and after.
$(INSTALLED): $(SOURCES)
	$(call heading,Install into $(VENV))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build/lib build/bdist.* *.egg-info
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile ".[test]"
	rm -rf build/lib build/bdist.* *.egg-info
	@touch $@

# huggingface_hub 1 needs httpx where 2 needs httpx2; everything else that both need is there already.
$(INSTALLED_OLDEST): Makefile | $(INSTALLED)
	$(call heading,Install transformers $(OLDEST) beside it)
	rm -rf $(VENV)/oldest
	$(BIN)/python -m pip install --quiet --no-compile --target $(VENV)/oldest httpx
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --target $(VENV)/oldest \
		"transformers==$(OLDEST)" "huggingface_hub<2"
	@touch $@
