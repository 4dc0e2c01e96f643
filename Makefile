# Every target works after a bare clone and may be repeated. See README.md for the steps without make.
.PHONY: demo test setup lab book notebooks clean
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

demo: $(STAMP)  ## train and evaluate on the embedded benchmark; see runs/demo/report.html
	$(BIN)/dskd data procedural --out data/procedural
	$(BIN)/dskd train data/procedural --preset demo --out runs/demo

test: $(STAMP)  ## package tests, notebooks, the book with warnings as errors
	$(BIN)/python -m pytest -n auto --dist loadfile tests
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 \
		--nbval-sanitize-with tests/nbval_sanitize.cfg notebooks

setup: $(STAMP)  ## make .venv and install everything

lab: $(STAMP)  ## open the notebooks
	$(BIN)/jupyter lab notebooks

book: $(STAMP)  ## build the book; see _build/html/index.html
	$(BIN)/jupyter-book build . -W --keep-going

clean:  ## remove what the other targets made
	rm -rf .venv _build runs data

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: name one, as in: make PYTHON=python3.12 demo"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)
