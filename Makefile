# Each target makes its own .venv where there is none. `make demo` and `make test` need nothing installed but Python.
PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo

.PHONY: demo test check format bench clean

.venv/ready: pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/ready  ## index, score, fine-tune, score again and ask, on the sample domain
	rm -rf $(DEMO)
	$(BIN)/ragx init $(DEMO) --sample
	$(BIN)/ragx index -c $(DEMO)/ragx.yaml
	$(BIN)/ragx eval -c $(DEMO)/ragx.yaml --model base --set eval.gates={}
	$(BIN)/ragx finetune -c $(DEMO)/ragx.yaml
	$(BIN)/ragx eval -c $(DEMO)/ragx.yaml --baseline $(DEMO)/runs/saltmere/eval/test.base.report.json
	$(BIN)/ragx ask -c $(DEMO)/ragx.yaml "Which day do the knitters ride Old Porridge?"

check: .venv/ready  ## format, lint, types, fast tests
	$(BIN)/ruff format --check ragx tests benchmarks
	$(BIN)/ruff check ragx tests benchmarks
	$(BIN)/mypy
	$(BIN)/pytest -q -x -n 2 tests/unit tests/cli

test: .venv/ready  ## everything: unit, cli, oracle and integration tests, real weights included
	$(BIN)/ruff check ragx tests benchmarks
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist worksteal

format: .venv/ready
	$(BIN)/ruff format ragx tests benchmarks
	$(BIN)/ruff check --fix ragx tests benchmarks

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache
