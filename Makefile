# Each target sets up what it needs, once: system packages, a virtual environment in .venv, the build.
.PHONY: demo test test-matrix sanitize wheel bench docs lint format clean
.DELETE_ON_ERROR:

VENV_PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
SOURCES := $(wildcard csrc/*.cc csrc/*.h)
TEST_SOURCES := $(wildcard tests/amx/*.cc tests/amx/csrc/* tests/csrc/*.cc tests/csrc/*.h tests/csrc/objects/*)
# `make test PYTEST_ARGS="-k matmul"`
PYTEST_ARGS ?= -n 2

demo: $(INSTALLED)
	$(VENV_PYTHON) examples/digits.py

test: $(INSTALLED)
	$(VENV_PYTHON) -m pytest $(PYTEST_ARGS)

# csrc under ASan, UBSan and TSan (CONTRIBUTING.md)
sanitize: $(INSTALLED)
	tools/sanitize $(CURDIR)/$(VENV_PYTHON)

# `make test-matrix PAIRS="oldest 3.12-0.11"`
test-matrix: .venv/.bootstrapped
	$(VENV_PYTHON) tools/matrix.py $(PAIRS)

# Wheels that need nothing else, in dist/, and a trial of each (docs/releasing.md)
wheel: $(INSTALLED)
	tools/bootstrap archives
	$(VENV_PYTHON) tools/wheel.py
	$(VENV_PYTHON) tools/try_wheel.py

bench: $(INSTALLED)
	$(VENV_PYTHON) -m benchmarks

# The site, in build/docs; index.html is where to begin
docs: $(INSTALLED)
	$(VENV_PYTHON) -m sphinx -W --keep-going -q docs build/docs

lint: $(INSTALLED)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/clang-format --dry-run --Werror $(SOURCES) $(TEST_SOURCES)
	.venv/bin/pyright

format: $(INSTALLED)
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	.venv/bin/clang-format -i $(SOURCES) $(TEST_SOURCES)

clean:
	rm -rf .venv .venvs build dist

.venv/.bootstrapped: tools/bootstrap
	tools/bootstrap
	touch $@

# Without build isolation, so that a second build finds nanobind where the first one did and compiles only what changed.
$(INSTALLED): .venv/.bootstrapped pyproject.toml CMakeLists.txt $(SOURCES)
	$(VENV_PYTHON) tools/build_requirements.py | $(VENV_PYTHON) -m pip install -q -r /dev/stdin
	$(VENV_PYTHON) -m pip install -q --no-build-isolation -e '.[dev]'
	touch $@
