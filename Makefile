PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
DOCS_READY := $(VENV)/docs-ready

.PHONY: help demo test check format soak gpu docs

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: $(READY) ## Train the demo population on rendered images
	$(VENV)/bin/python experiments/pbt_in100.py --preset demo

# Compiled first: where Python writes no bytecode, each of hundreds of processes would compile the package for itself.
test: $(READY) ## Run all tests but the long ones
	$(VENV)/bin/python -m compileall -q adios_ray
	$(VENV)/bin/pytest --numprocesses 2 --dist loadgroup

soak: $(READY) ## Inject faults: kill every part of running populations, break their storage
	$(VENV)/bin/pytest -m long
	$(VENV)/bin/python tests/soak.py
	$(VENV)/bin/python tests/soak.py --storage s3 --rounds 10

gpu: $(READY) ## Run the tests that need a GPU, then measure speed and memory there
	$(VENV)/bin/pytest -m gpu -vv tests/test_gpu.py; tests=$$?; \
	$(VENV)/bin/python benchmarks/gpu.py --output build/gpu.json && exit $$tests

check: $(READY) ## Lint, type-check, and check the import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: $(DOCS_READY) ## Build the documents as a site, readable offline, in build/site
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict # the variable: no advertisement of a successor
	@echo build/site/index.html

format: $(READY) ## Format, and apply ruff's automatic fixes
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: adios_ray needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable ".[dev]"
	@touch $(READY)

$(DOCS_READY): $(READY)
	$(VENV)/bin/pip install --quiet --editable ".[docs]"
	@touch $(DOCS_READY)
