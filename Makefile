# `make demo` and `make test` need nothing but make and Python >= 3.11; uv is used where it is.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	command -v $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= configs/fusemoe_mimic.py:synthetic
WORKDIR ?= runs/demo
RESULTS ?= runs/results
JOBS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test docs lint format lock sbom wheel clean reliability reliability-short

demo: $(VENV)/installed
	$(BIN)/python -m m4.main --config=$(CONFIG) --workdir=$(WORKDIR)
	@echo "open $(WORKDIR)/report.html; . $(BIN)/activate before commands of your own"

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --max-worker-restart=0

# The site, in build/site: strict, so that a broken link ends it. Notebooks' outputs are those of the
# last `make test`.
docs: $(VENV)/installed
	@$(BIN)/python -c "import mkdocs, material, mkdocstrings" 2>/dev/null || { \
		if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(BIN)/python -e ".[docs]"; \
		else $(BIN)/python -m pip install --quiet -e ".[docs]"; fi; }
	@mkdir -p build
	$(BIN)/python docs/site/picture.py
	$(BIN)/python -m m4.config.reference >build/configuration.md && mv build/configuration.md docs/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# Faults on purpose: the long form rewrites the table of docs/reliability.md.
reliability: $(VENV)/installed
	$(BIN)/python -m tests.faults --write=docs/reliability.md

reliability-short: $(VENV)/installed
	$(BIN)/python -m tests.faults --short --jobs=$(JOBS)

# Every table of docs/results.md as $(RESULTS)/<name>.md; TABLES="eicu-mortality ..." some of them.
# Raw files below M4_RAW_DIR; some five hours of one core, and it resumes.
results: $(VENV)/installed
	$(BIN)/python docs/site/tables.py --out=$(RESULTS) $(TABLES)

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What `pip install` gets; .ci/wheel tries it where there is no clone.
wheel: $(VENV)/installed
	@if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then \
		uv build --quiet --wheel --out-dir dist; \
	else \
		$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .; \
	fi
	@ls dist/m4_moe-*.whl

# Exact versions with hashes; the package itself is then linked in without touching them.
$(VENV)/installed: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "m4 needs Python >= 3.11 on PATH (or make PYTHON=...)"; exit 2; }
	@if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then \
		test -x $(BIN)/python || uv venv --python "$(PYTHON)" $(VENV); \
		uv pip install --compile-bytecode --python $(BIN)/python --require-hashes \
			-r requirements.lock && \
		uv pip install --python $(BIN)/python --no-deps -e .; \
	else \
		test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV); \
		$(BIN)/python -m pip install --require-hashes -r requirements.lock && \
		$(BIN)/python -m pip install --no-deps -e .; \
	fi
	@touch $@

# One version of everything, on Python 3.11 to 3.13: what is measured is what everybody runs.
lock:
	uv pip compile pyproject.toml --extra dev --extra tensorboard --universal \
		--python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--quiet --output-file requirements.lock

# Components, licences and dependencies of what is installed, as CycloneDX, less web addresses.
SBOM ?= build/sbom.json
sbom: $(VENV)/installed
	@mkdir -p build
	@if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then \
		uv venv --quiet --clear --python $(BIN)/python build/sbom-venv && \
		uv pip install --quiet --python build/sbom-venv/bin/python cyclonedx-bom==7.5.0; \
	else \
		$(BIN)/python -m venv --clear build/sbom-venv && \
		build/sbom-venv/bin/python -m pip install --quiet cyclonedx-bom==7.5.0; \
	fi
	@build/sbom-venv/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library \
		--output-reproducible $(BIN)/python | $(BIN)/python -c "import json, sys; \
		json.dump(json.load(sys.stdin, object_hook=lambda d: (d.pop('externalReferences', 0), d)[1]), \
		sys.stdout, indent=1)" >$(SBOM)
	@echo "$(SBOM)"

clean:
	rm -rf $(VENV) build dist *.egg-info
