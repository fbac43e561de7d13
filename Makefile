# make demo     set up .venv and compare the rules
# make test     set up .venv and run the tests          (ARGS="-k name" goes to pytest)
# make lint     style and types
# make mutants  do the tests notice deliberate faults?  (ARGS="--only dfa" goes to the check)
# make clean    remove everything made here
# PYTHON=python3.12 picks the interpreter, MORE=plot,export adds extras of setup.cfg.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-compile -c constraints.txt
TORCH  := $(shell sed -n 's/^torch==//p' constraints.txt)
GPU    := $(shell command -v nvidia-smi 2>/dev/null)
comma  := ,
EXTRAS := torch,data,plot,sweep,test$(if $(GPU),$(comma)gpu)$(if $(MORE),$(comma)$(MORE))

.DEFAULT_GOAL := test
.PHONY: demo test lint mutants clean

demo: $(VENV)/.ready
	$(BIN)/python -m fflearn compare

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(ARGS)

# The links (git ignores them) let mypy and editors find fflearn.rules and fflearn.gpu.
lint: $(VENV)/.lint
	ln -sfn ../rules fflearn/rules
	ln -sfn ../gpu fflearn/gpu
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p fflearn

mutants: $(VENV)/.mutation
	$(BIN)/python -m benchmarks.mutation $(ARGS)

clean:
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info .coverage fflearn/rules fflearn/gpu

$(VENV)/.lint $(VENV)/.mutation: $(VENV)/.%: $(VENV)/.ready
	$(PIP) -e '.[$*]'
	@touch $@

# On Linux with no NVIDIA driver PyTorch is its CPU build ("+cpu", a version that only that build
# has), never the default one with its several GB of CUDA: from wherever pip is set up to look,
# else from PyTorch's own index.  Elsewhere the default build is the right one.
$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "fflearn needs $(PYTHON): install Python 3.11 or newer, or type make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fflearn needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv or no ensurepip, which make .venv: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if [ "$$(uname -s)" = Linux ] && [ -z "$(GPU)" ]; then \
	  $(PIP) 'torch==$(TORCH)+cpu' 2>/dev/null || \
	  $(PIP) --extra-index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)+cpu'; \
	fi
	$(PIP) -e '.[$(EXTRAS)]'
	@touch $@
