# Set-up is part of every target: one virtual environment in .venv, torch first and alone.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
# pip compiles what it has installed one file after the other, the longest part of an installation; this takes all cores.
# Templates among the files are no Python.
INSTALL := $(BIN)/pip install --quiet --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib api_schemas chorale provenance service worker || true

# Tests start some hundred processes: none should compile our own modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test browser check format clean

demo: .venv/.installed
	$(BIN)/chorale generate "glowing orange lava" --size 2048x2048 --seamless both -o lava.png --dzi

test:
	@$(MAKE) --no-print-directory -j 2 .venv/.installed-dev browser
	$(BIN)/python -m tests.browser.chromium
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder  # two compute while the others wait for leases, kills and browsers

# Debian's package needs none of ours and comes while pip installs; what fails here is tried, and told, again.
browser:
	@$(PYTHON) -m tests.browser.chromium 2>/dev/null || true

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

.venv/.torch:
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "$(PYTHON) is no Python 3.11 or newer with venv: install one (Debian, Ubuntu: apt-get install python3-venv; macOS: brew install python), or name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(INSTALL) "$(TORCH)"
	touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(INSTALL) -e '.[all]'
	$(COMPILE)
	touch $@

.venv/.installed-dev: .venv/.torch pyproject.toml
	$(INSTALL) -e '.[dev]'
	$(COMPILE)
	touch $@ .venv/.installed
