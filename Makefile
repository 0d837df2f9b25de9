# intaglio: `make run` sets everything up and does the main job; `make test` sets everything up and passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD ?= build
MODEL ?= models/burin
PRESET ?= desk
BOARD ?= ulx3s
SEED ?= 1
COUNT ?= 72
JOBS ?= 1
FIRST := 3000x16x512,1200x8x1024,100x2x4096
SPREAD := 120x2x2048@16384,100x2x2048@24576
MIXED := $(SPREAD)$(shell printf ',6x1x4096,5x2x2048@24576,1x1x16384%.0s' $$(seq 15))
LONG := -m intaglio.sim.train.decoder --out $(BUILD)/train-16k --warmup 20 --eager --threads 2
# Other programs than the environment's own: make test VERILATOR=/usr/local/bin/verilator CXX=g++-13
TOOLS := $(if $(VERILATOR),--tool verilator=$(VERILATOR)) $(if $(filter-out default,$(origin CXX)),--tool g++=$(CXX))
.DEFAULT_GOAL := help
.PHONY: help setup run test test-quick bench mutants board bench-board lint train train-long clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## make the virtual environment and install the project with everything it is tested with

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "intaglio needs Python 3.11 or later, not " + sys.version.split()[0])'
	@command -v $(CXX) >/dev/null || { echo "intaglio needs a C++ compiler, and there is no $(CXX): apt install g++"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

run: setup  ## the main job: the shipped model as Verilog, generating text in simulation, compared with the exact model
	@$(BIN)/python -m bench.main_job --model $(MODEL) --preset $(PRESET) --build $(BUILD) $(TOOLS)

test: setup lint  ## all tests
	@$(BIN)/python -m pytest -q --durations=10 $(TOOLS)

test-quick: setup  ## the tests that need no compiler run
	@$(BIN)/python -m pytest -q -m "not verilator and not slow" $(TOOLS)

bench: setup  ## measure every figure afresh; writes build/bench.json (PDK=DIR: also those that need a cell library)
	@$(BIN)/python -m bench --build $(BUILD) $(TOOLS) $(if $(PDK),--pdk $(PDK))

mutants: setup  ## change the RTL in one place at a time and see which test notices: SEED=1 COUNT=72 ONLY=room JOBS=1; half an hour or more
	@$(BIN)/python -m bench.mutants --build $(BUILD) --seed $(SEED) --count $(COUNT) --jobs $(JOBS) $(if $(ONLY),--only $(ONLY))

board: setup  ## place and route a board's bitstream with pip's tools: BOARD=ulx3s or ecpix5; up to half an hour for each seed the first time
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[boards]'
	@$(BIN)/intaglio board $(BOARD) --model $(MODEL) -o $(BUILD)/$(BOARD)

bench-board: board  ## figures of a placed board: BOARD=ulx3s; builds first what is not built; writes build/BOARD/bench.json
	@$(BIN)/python -m bench.board --board $(BOARD) --model $(MODEL) --build $(BUILD)

lint: setup  ## ruff (rules and format) and mypy (types)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@rm -rf $(BUILD)/types && mkdir -p $(BUILD)/types/intaglio
	@ln -s $(CURDIR)/intaglio/*.py $(addprefix $(CURDIR)/,boards gen host rtl sim) $(BUILD)/types/intaglio/
	@MYPYPATH=$(BUILD)/types $(BIN)/mypy --no-error-summary -p intaglio -p bench

train: setup  ## train the shipped model anew (hours); writes build/train
	@$(BIN)/python -m intaglio.sim.train.decoder --out $(BUILD)/train --schedule $(FIRST) --decay 1300
	@$(BIN)/python -m intaglio.sim.train.decoder --out $(BUILD)/train --resume $(BUILD)/train/latent.pt --schedule $(FIRST),500x2x4096 --decay 1600
	@$(BIN)/python -m intaglio.sim.train.export --latent $(BUILD)/train/latent.pt --out $(BUILD)/train/model

train-long: setup  ## train models/burin on for long contexts (half an hour on two free cores); writes build/train-16k
	@$(BIN)/python $(LONG) --from models/burin --theta 40000 --context 16384 --schedule $(SPREAD) --decay 1 --lr 0.005 --rename
	@$(BIN)/python $(LONG) --resume $(BUILD)/train-16k/latent.pt --schedule $(MIXED) --decay 180 --lr 0.005
	@$(BIN)/python -m intaglio.sim.train.export --latent $(BUILD)/train-16k/latent.pt --out $(BUILD)/train-16k/model

clean:  ## remove what was built (not the virtual environment, not the cache of simulations)
	rm -rf $(BUILD)
