# gcond: the two commands are `make reproduce-table2` and `make test`; `make help` lists the rest.
# Supported: Linux x86-64, Python 3.11 or later, make, git. CUDA is used where there is a GPU, else the CPU.

PYTHON   ?= python3
SCALE    ?= mini
SEEDS    ?= 11,42,2025
CT       ?= data/ct
IMAGENET ?=
HEADNECK ?= data/headneck
DEVICE   ?= auto
LAUNCHER ?=
EXPERIMENT ?= table2
DATASETS ?=
MISSING  ?=
MORE     ?=
JOBS     ?= $(if $(filter cuda%,$(DEVICE)),1,$(shell nproc 2>/dev/null || echo 1))
OUT      ?= reproduced

VENV     := .venv
BIN      := $(VENV)/bin
READY    := $(VENV)/.ready
NEEDS_GB := 8
PHOTOS   := $(if $(IMAGENET),imagenet256,photos)
ifeq ($(CT),data/ct)
CT_DATA  := data
endif
ifeq ($(SEEDS),10)
override SEEDS := 11,42,2025,1,2,3,4,5,6,7
endif

# What each artefact is made of: conf/experiment/NAME.yaml, and others where it says so here.
FIGURES   := $(addprefix figure,1 2 3 4 5 6 7 8 9 10 11 12)
comma     := ,
NO_PHOTOS := $(if $(DATASETS),$(if $(filter photos imagenet256,$(subst $(comma), ,$(DATASETS))),,yes))
DRAWN     := $(if $(NO_PHOTOS),$(filter-out figure10,$(FIGURES)),$(FIGURES))
ABLATIONS := $(basename $(notdir $(wildcard conf/experiment/ablation_*.yaml)))
QUESTIONS := o1 o2 o3 o4 o5 o6 o7 o8 o9 o10 conflict b1
RUNS_ablations := $(ABLATIONS)
RUNS_o1   := o1 o1_micro_batch o1_blocks
RUNS_o3   := o3 o3_lion
RUNS_o5   := figure1 o5
RUNS_o6   := table2
RUNS_o7   := table2
RUNS_o8   := o8_weights o8_single
RUNS_o9   := table2
RUNS_o10  := table2
RUNS_b1   := b1 b1_gradnorm
RUNS_conflict := conflict conflict_strength
TUNING    := $(if $(filter mini,$(SCALE)),o2_part,o2)
STUDY     := o1 o6 o10 table2 $(DRAWN) ablations $(TUNING) o3 o4 o5 o8 conflict b1
PAGES     := table2 $(DRAWN) ablations o1 o6 o7 o9 o10 conflict claims readme

unique    = $(if $1,$(firstword $1) $(call unique,$(filter-out $(firstword $1),$1)))
runs_of   = $(or $(RUNS_$1),$1)
datasets  = $(or $(DATASETS),$(subst photos,$(PHOTOS),$(shell sed -n 's/^ *dataset: *//p' conf/experiment/$1.yaml)))
# A word for the shell, whatever is in it; a path for Hydra, to which `,` `=` `(` and blanks mean something.
quoted    = '$(subst ','\'',$1)'
path      = $(call quoted,$1="$(subst ",\",$2)")
settings  = scale=$(SCALE) $(if $1,dataset=$1) seed=$(SEEDS) device=$(DEVICE) $(call path,paths.ct,$(CT)) $(call path,paths.headneck,$(HEADNECK)) \
            $(if $(IMAGENET),$(call path,paths.imagenet,$(IMAGENET))) $(if $(MISSING),$(call path,recorded,$(OUT))) $(MORE)
choices   = experiment=$1 $(call settings,$(call datasets,$1))
sweeper   = $(BIN)/python -m gcond.sweep --jobs $(JOBS) $(if $(LAUNCHER),--launcher $(LAUNCHER))
sweep     = $(sweeper) $(call choices,$1)
study     = status=0; $(foreach experiment,$1,echo "== $(experiment)"; $(call sweep,$(experiment)) || status=$$?;) $(call report,collect) || status=$$?
# A page that only reads what is recorded; those of O2 to O5, O8 and B1 are rows of the claims.
report    = $(BIN)/python -m gcond.report $(if $(filter o2 o3 o4 o5 o8 b1,$1),claims,$1) --results $(call quoted,$(OUT)) $(if $(filter table1 table5 readme,$1),,--scale $(SCALE)) \
            $(if $(filter table2,$1),--datasets $(call datasets,table2) --seeds $(SEEDS) $(patsubst optimizer.lr=%,--lr %,$(filter optimizer.lr=%,$(MORE)))) \
            $(if $(DATASETS),$(if $(filter o1 o6 o7 o9 o10 windows conflict ablations $(FIGURES),$1),--datasets $(DATASETS)))
# What else stands between the runs and the page.
before_o7 = $(BIN)/python -m gcond.linear_probe --scale $(SCALE) --results $(call quoted,$(OUT)) --device $(DEVICE) --ct $(call quoted,$(CT)) \
            $(if $(IMAGENET),--imagenet $(call quoted,$(IMAGENET))) $(if $(DATASETS),--datasets $(DATASETS)) || status=$$?;
before_o9 = frozen=$$($(BIN)/python -m gcond.report frozen --results $(call quoted,$(OUT)) --scale $(SCALE) $(if $(DATASETS),--datasets $(DATASETS))) && \
            printf '%s\n' "$$frozen" | xargs -r -L 1 $(sweeper) $(call settings) || status=$$?; $(call report,collect) || status=$$?;
paper_needs = $(if $(filter paper,$(SCALE)),$(if $(IMAGENET),,echo "SCALE=paper needs IMAGENET=DIR (and CT=DIR, a store of the CT archives)"; exit 1;))

.DEFAULT_GOAL := help
.PHONY: help setup data data-headneck data-ct reproduce-table2 plan reproduce-table3 reproduce-table4 sweep status plan-memory table2 methods mutants reproduce-toy dashboard bench bench-memory torture test test-slow lint format

help: ## this list
	@echo "Targets:"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | while IFS="$$(printf '\t')" read -r name words; do printf '  %-18s %s\n' "$$name" "$$words"; done
	@echo "  reproduce-figure1 … reproduce-figure12, reproduce-ablations, reproduce-o1 … o10, reproduce-conflict, reproduce-b1: one artefact each (conf/experiment)"
	@echo "Variables (make TARGET NAME=value):"
	@echo "  SCALE=mini|sample|study|sample_gpu|paper  how large a study; mini takes minutes, sample hours and study a day or more on two cores, the others need a GPU"
	@echo "  SEEDS=11,42,2025          one run per seed; SEEDS=10: ten, of which these three are the paper's"
	@echo "  DATASETS=ct               only these data sets (default: the experiment's own)"
	@echo "  MISSING=1                 leave out runs that OUT records as done, whichever machine made them"
	@echo "  MORE='optimizer.lr=1e-3'  further settings for every run"
	@echo "  CT=DIR                    a CT store (default data/ct: public samples, fetched on first use)"
	@echo "  IMAGENET=DIR              a copy of ImageNet-256 or a folder of JPEG files (default: the photos of scikit-image)"
	@echo "  DEVICE=auto|cpu|cuda      JOBS=N runs side by side (default: the number of cores, 1 on CUDA)"
	@echo "  LAUNCHER=joblib|local|slurm  where runs go (default joblib; docs/running.md)   EXPERIMENT=table2|o2|…"
	@echo "  OUT=DIR                   tables and records of what is run here (default reproduced, which git ignores)."
	@echo "                            results/ holds what this project recorded: OUT=results adds to that, for its maintainers"
	@echo "  ALL=1                     reproduce-toy: descend MGDA and Nash-MTL as well (an hour of a core)"

setup: $(READY) ## make the virtual environment (once; about 8 GB of disk, 2 to 10 minutes)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "expected Python 3.11 or later, found $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "requirements.lock is for Linux x86-64, found $$(uname -sm): install with 'pip install -e .[study,torchjd,dev]' in an environment of your own"; exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); echo "The environment takes about $(NEEDS_GB) GB (PyTorch with CUDA); $$free GB are free here."; \
	  test -d $(VENV) || test "$$free" -ge $(NEEDS_GB) || { echo "expected at least $(NEEDS_GB) GB of free disk, found $$free GB"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

data: $(READY) ## fetch the public CT samples (about 130 MB, licences printed) into data/ct
	@test -e data/ct/facts.json || $(BIN)/python data_prep/samples.py --out data/ct

data-headneck: $(READY) ## make HEADNECK=data/headneck, CT of 282 patients, from OPENKBP=DIR, a clone of github.com/ababier/open-kbp (docs/data.md)
	@test -e $(call quoted,$(HEADNECK)) -o -n $(call quoted,$(OPENKBP)) || { echo "expected OPENKBP=DIR, a clone of https://github.com/ababier/open-kbp (docs/data.md)"; exit 1; }
	@$(BIN)/python data_prep/samples.py --catalogue headneck --out $(call quoted,$(HEADNECK)) $(if $(OPENKBP),--folder $(call quoted,open-kbp=$(OPENKBP)))

data-ct: $(READY) ## make CT=DIR from the archives that you have: ICH=DIR CSPINE=DIR RADCURE=DIR (docs/data.md)
	@$(BIN)/python data_prep/ct.py $(if $(ICH),--ich $(call quoted,$(ICH))) $(if $(CSPINE),--cspine $(call quoted,$(CSPINE))) $(if $(RADCURE),--radcure $(call quoted,$(RADCURE))) \
	  --out $(call quoted,$(CT)) --workers $(JOBS)

reproduce-table2: $(READY) $(CT_DATA) ## train everything of Table 2 that is not finished yet, and print it
	@$(paper_needs) status=0; $(call sweep,table2) || status=$$?; $(call report,table2) || status=$$?; exit $$status

ARTEFACTS := $(FIGURES) ablations $(QUESTIONS)
.PHONY: $(ARTEFACTS:%=reproduce-%) reproduce-all
$(ARTEFACTS:%=reproduce-%): reproduce-%: $(READY) $(CT_DATA)
	@$(paper_needs) $(call study,$(call runs_of,$*)); $(before_$*) $(call report,$*) || status=$$?; exit $$status

reproduce-all: $(READY) $(CT_DATA) reproduce-table1 reproduce-table5 ## the whole study: plan it, run it (controls first), print every table, draw every figure (mini: six hours on two cores; SEEDS=11 two)
	@$(if $(NO_PHOTOS),echo "figure10 is left out: it shows photographs$(comma) and DATASETS=$(DATASETS) has none";) \
	  $(if $(filter o2_part,$(STUDY)),echo "O2 in small: 3 of the 21 settings; make reproduce-o2 runs them all";) \
	  $(paper_needs) $(BIN)/python -m gcond.sweep.study --jobs $(JOBS) \
	  $(foreach experiment,$(call unique,$(foreach artefact,$(STUDY),$(call runs_of,$(artefact)))),$(call quoted,$(call choices,$(experiment))))
	@$(call study,$(call unique,$(foreach artefact,$(STUDY),$(call runs_of,$(artefact))))); \
	  $(before_o9) $(before_o7) $(foreach page,$(PAGES),$(call report,$(page)) || status=$$?;) exit $$status

.PHONY: reproduce-windows
WINDOWED := baseline,gcond_stochastic
reproduce-windows: $(READY) $(CT_DATA) ## noise and signs of the conflict against K = 1 … 24, at the weights of finished runs (a minute a run; trains what is not there)
	@$(paper_needs) status=0; $(call sweep,table2) strategy=$(WINDOWED) || status=$$?; \
	  OMP_NUM_THREADS=1 $(BIN)/python -m gcond.study.window_noise --scale $(SCALE) --strategies $(WINDOWED) --seeds $(SEEDS) --datasets $(call datasets,table2) \
	    --device $(DEVICE) --ct $(call quoted,$(CT)) --headneck $(call quoted,$(HEADNECK)) $(if $(IMAGENET),--imagenet $(call quoted,$(IMAGENET))) --results $(call quoted,$(OUT)) || status=$$?; \
	  $(call report,collect) || status=$$?; $(call report,windows) || status=$$?; exit $$status

.PHONY: reproduce-table1 reproduce-table5
reproduce-table1: $(READY) ## GCond's zones, drawn and tabulated from the resolver itself (seconds; trains nothing)
	@$(BIN)/python -m gcond.study.zones --out $(call quoted,$(OUT)/table1) && $(call report,table1)

reproduce-table5: $(READY) ## the hyper-parameters as composed, differences to the paper's marked (seconds; trains nothing)
	@$(BIN)/python -m gcond.study.settings --out $(call quoted,$(OUT)/table5) && $(call report,table5)

sweep: $(READY) $(CT_DATA) ## run EXPERIMENT=o2 (or another of conf/experiment) without making a table
	@$(call sweep,$(EXPERIMENT))

status: $(READY) ## list the runs in runs/: running with time left, failed with the error, interrupted, done
	@$(BIN)/python -m gcond.sweep.status

.PHONY: study-queue
study-queue: $(READY) ## make the study's runs in order of value, at idle priority, and record each in results/study, or in OUT/study where OUT is given (PLAN=1: say what is left)
	@$(BIN)/python -m gcond.study --jobs $(JOBS) $(if $(PLAN),--plan) $(if $(filter-out file,$(origin OUT)),--results $(call quoted,$(OUT)/study)) $(call path,paths.headneck,$(HEADNECK)) $(MORE)

plan-memory: $(READY) ## what a step holds in memory: BUDGET=16GB CHOICES="model=convnext_tiny strategy=pcgrad dataset=ct batch=96"
	@OMP_NUM_THREADS=1 $(BIN)/python -m gcond.engine.plan_memory $(CHOICES) $(if $(BUDGET),--budget $(BUDGET))

plan: $(READY) ## say what reproduce-table2 (or EXPERIMENT) would run, for how long, and what memory and disk it needs
	@$(call sweep,$(EXPERIMENT)) --plan-only

table2: $(READY) ## print Table 2 again, of what was run here and of what results/ records; trains nothing
	@$(call report,table2) --recorded

.PHONY: claims
claims: $(READY) ## what holds of the paper's claims and what is open, and README.md, of the runs in OUT (SCALE=… for one scale); trains nothing
	@$(BIN)/python -m gcond.report claims --results $(call quoted,$(OUT)) $(if $(filter-out file,$(origin SCALE)),--scale $(SCALE))
	@$(call report,readme)

methods: $(READY) ## measure which method has which property, and write methods.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/methods tests/strategy -q -m "oracle or measures" --methods-table $(call quoted,$(OUT)/methods.md)

mutants: $(READY) ## show that the tests catch realistic mistakes in the strategy package (about 10 minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py --jobs $(JOBS)

reproduce-toy: $(READY) ## all methods on the two-dimensional conflict problem, the noisy quadratic, GradOPS's trade-off (15 minutes; ALL=1: 45)
	@status=0; OMP_NUM_THREADS=1 $(BIN)/python -m gcond.toy --jobs $(JOBS) --out $(call quoted,$(OUT)/toy) $(if $(ALL),--all) || status=$$?; \
	  $(BIN)/python -m gcond.report.toy --results $(call quoted,$(OUT)/toy) || status=$$?; exit $$status

dashboard: $(READY) ## one HTML page of all runs in runs/, or of those in results/ where there are none (runs/dashboard.html); no server
	@$(BIN)/python -m gcond.study.dashboard

MEASURE = OMP_NUM_THREADS=1 $(BIN)/python bench/$1.py $2 $(if $(filter memory,$1),,--device $(DEVICE)) --results $(call quoted,$(OUT))
bench: $(READY) data ## what a step costs in time, memory and data: OUT/bench.csv and bench.md (hours on a CPU)
	@$(call MEASURE,steps,step convnext_tiny convnextv2_base table3 table4 resolve processes $(if $(CAP),--cap $(CAP)))
	@$(call MEASURE,memory,$(if $(BUDGET),--budget $(BUDGET)))
	@$(call MEASURE,data,$(if $(CHROME),--chrome $(CHROME)))

bench-memory: $(READY) ## the memory part of it: planned, 15 minutes on any machine (BUDGET=16GB)
	@$(call MEASURE,memory,$(if $(BUDGET),--budget $(BUDGET)))

reproduce-table3 reproduce-table4: reproduce-%: $(READY) ## Tables 3 and 4: time and memory of a step (CPU: ratios only, 15 and 20 minutes; CAP=16GB)
	@$(call MEASURE,steps,$* $(if $(CAP),--cap $(CAP)))

.PHONY: rehearse-paper
rehearse-paper: $(READY) ## whether every experiment starts at SCALE=paper: settings, planned memory, a first step at micro-batch 2 (an hour on a core)
	@OMP_NUM_THREADS=1 $(BIN)/python tools/rehearse_paper.py --out runs/rehearsal.csv

torture: $(READY) data ## kill N=100 runs at random moments, go on, and count which end as if nothing had happened
	@OMP_NUM_THREADS=1 $(BIN)/python tools/torture.py -n $(or $(N),100) --jobs $(JOBS)

test: $(READY) ## the fast tests (5 to 12 minutes on two cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test-slow: $(READY) ## the slow tests as well
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

lint: $(READY) ## style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## format the code and mend what ruff can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
