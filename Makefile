# `make demo` and `make test` do everything on a machine that has Python 3.11 and make.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/installed
ORGANISMS = examples/organisms

.PHONY: demo test lint organisms clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python examples/dependencies.py

organisms: $(STAMP)
	$(BIN)/python $(ORGANISMS)/build.py

# pip, not another installer: the constraint on torch is what keeps CUDA packages out.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo-report deployment-run forensics-runs forensics-probes .mypy_cache .ruff_cache .pytest_cache
