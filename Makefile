# gcond: `make reproduce-table2` and `make test` are the two commands; `make help` lists the rest. Each target is one
# line of `gcond` (gcond --help), which has every option. Supported: Linux x86-64, Python 3.11 or later.

PYTHON   ?= python3
SCALE    ?= mini
BIN      := .venv/bin
READY    := .venv/.ready
GCOND    := $(BIN)/python -m gcond.cli
THREAD   := OMP_NUM_THREADS=1 $(BIN)/python
quoted    = '$(subst ','\'',$1)'
option    = $(if $($2),--$1 $(call quoted,$($2)))
options   = $(foreach each,$1,$(call option,$(shell echo $(each) | tr A-Z a-z),$(each)))
TRAINED  := $(if $(CT)$(filter study%,$(SCALE))$(filter reproduce-b-%,$(MAKECMDGOALS)),,data)# the public CT patients, where no other CT is named
WHERE     = $(call options,SCALE OUT DATASETS SEEDS STRATEGIES LR)
RUNS      = $(WHERE) $(call options,JOBS DEVICE LAUNCHER CT HEADNECK IMAGENET CAP) $(if $(MISSING),--missing) $(if $(MORE),--set $(MORE))
UNTRAINED:= $(addprefix reproduce-,table1 table3 table4 table5 toy)

.DEFAULT_GOAL := help
.PHONY: help setup data data-headneck data-ct $(UNTRAINED) plan status report study-queue dashboard bench methods test test-slow lint docs mutants torture

help: ## this list
	@grep -hE '^##|^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^## (.*)/\n\1/; s/^([a-z0-9%-]+):.*## (.*)/  \1\t\2/' | expand -t 20

## Begin
setup: $(READY) ## make the environment in .venv (once; 8 GB, 2 to 10 minutes)
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expected Python 3.11 or later, found $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "requirements.lock is for Linux x86-64, found $$(uname -sm): install with 'pip install -e .[study,torchjd,dev]' in an environment of your own"; exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); test -d .venv || test "$$free" -ge 8 || { echo "expected 8 GB of free disk (PyTorch with CUDA), found $$free"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
data: $(READY) ## fetch ten public CT patients (111 MB) into data/ct
	@test -e data/ct/facts.json || $(GCOND) data samples --out data/ct
data-headneck: $(READY) ## make data/headneck from OPENKBP=DIR, a clone of github.com/ababier/open-kbp
	@$(GCOND) data headneck --out $(call quoted,$(or $(HEADNECK),data/headneck)) $(if $(OPENKBP),--folder $(call quoted,open-kbp=$(OPENKBP)))
data-ct: $(READY) ## make CT=DIR from your archives: ICH=DIR CSPINE=DIR RADCURE=DIR (SIZE=416 pixels, else 256)
	@$(GCOND) data ct $(call options,ICH CSPINE RADCURE SIZE) --out $(call quoted,$(or $(CT),data/ct)) $(call option,workers,JOBS)

## Reproduce (SCALE=mini|sample|study|paper SEEDS= DATASETS= STRATEGIES= LR= OUT= DEVICE= JOBS= MISSING=1 MORE=overrides)
$(UNTRAINED): reproduce-%: $(READY)
	@$(GCOND) study run $* $(RUNS)
reproduce-%: $(READY) $(TRAINED) ## table1 … table5, b-table5, b-table6, figure1 … figure12, o1 … o10, conflict, ablations, windows, toy, all
	@$(GCOND) study run $* $(RUNS)
plan: $(READY) ## what reproduce-table2 (or NAME=…) would train, and its time, memory and disk
	@$(GCOND) study plan $(or $(NAME),table2) $(RUNS)
status: $(READY) ## the runs in runs/
	@$(GCOND) study status
report: $(READY) ## every page, table and figure from what is recorded, and what holds of the paper's claims
	@OMP_NUM_THREADS=1 $(GCOND) study report $(call options,OUT JOBS)
study-queue: $(READY) ## the study's own runs at idle priority, in order of value (PLAN=1: what is left)
	@$(GCOND) study $(if $(PLAN),plan,run) queue $(call options,OUT JOBS DEVICE HEADNECK) $(if $(MORE),--set $(MORE))
dashboard: $(READY) ## one HTML page of all runs: runs/dashboard.html
	@$(GCOND) dashboard

## Measure
bench: $(READY) data ## what a step costs in time, memory and data (hours on a CPU)
	@$(THREAD) bench/steps.py step convnext_tiny convnextv2_base table3 table4 resolve $(call options,DEVICE CAP) $(call option,results,OUT) && $(THREAD) bench/memory.py $(call option,results,OUT) $(call options,BUDGET) && $(THREAD) bench/data.py $(call options,DEVICE) $(call option,results,OUT)
methods: $(READY) ## which method has which property
	@$(THREAD) -m pytest tests/methods tests/strategy -q -m "oracle or measures" && PYTHONPATH=tests $(THREAD) -m methods.table $(call quoted,$(or $(OUT),reproduced))

## Develop
test: $(READY) ## the fast tests
	@$(THREAD) -m pytest -q -m "not slow" -n 2 --dist loadfile
test-slow: $(READY) ## all tests
	@$(THREAD) -m pytest -q
lint: $(READY) ## style, format and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
docs: $(READY) ## the site of all pages and the API, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
mutants: $(READY) ## show that the tests catch realistic mistakes (7 minutes)
	@$(THREAD) tools/mutants.py $(call options,JOBS)
torture: $(READY) data ## kill N=100 runs at random moments and go on with them
	@$(THREAD) tools/torture.py -n $(or $(N),100) $(call options,JOBS)
