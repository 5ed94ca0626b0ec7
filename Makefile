# `make` says what there is; `make reproduce` does all of it. The work itself is in Snakefile.

PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
# A stamp is newer than the lock that it was installed from.
INSTALLED := $(VENV)/installed
COMMITTED := results/reference/smoke
TEST_INSTALLED := $(VENV)/installed-test

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help reproduce report reference reference-gpu smoke verify verify-update language-model test test-gpu gpu test-kill test-peers test-slurm benchmark clean environment.yml

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
PIP := python -m pip install --quiet --quiet --disable-pip-version-check
SNAKEMAKE := snakemake --cores all

help: ## say what the targets do (the default)
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24
	@echo 'Another interpreter than python3: make reproduce PYTHON=python3.12'

reproduce: $(INSTALLED) ## install into .venv, then make every table, figure and claim
	$(SNAKEMAKE)

# $(call keep,RUN,WHERE,FIGURES): a run's tables and those of its figures, without what depends on the machine.
define keep
	mkdir -p results/$(2) figures/$(2)
	find results/$(1) -maxdepth 1 -name '*.csv' ! -name training.csv ! -name timing.csv -exec cp {} results/$(2)/ \;
	cp -R $(addprefix results/$(1)/,claims.md comparisons.md run.json tables) results/$(2)/
	find figures/$(1) -type f -name '$(3)' ! -name 'timing.*' -exec cp {} figures/$(2)/ \;
endef

reference: $(INSTALLED) ## make anew what is committed as the reference: the default with six seeds (an hour and a half)
	$(SNAKEMAKE) --configfile config/six_seeds.yaml
	$(call keep,six_seeds,reference,*)

reference-gpu: $(INSTALLED) ## the same of config/gpt2_embedded.yaml, on a GPU (minutes of a large one)
	$(SNAKEMAKE) --resources gpu=8 --configfile config/gpt2_embedded.yaml
	$(call keep,gpt2_embedded,reference/gpt2_embedded,*.png)
	rm -f figures/reference/gpt2_embedded/tuning*.png

report: $(INSTALLED) ## the same, and one HTML page of it all: report.html
	$(SNAKEMAKE)
	snakemake --report report.html

smoke: $(INSTALLED) ## the whole workflow at toy size, in minutes
	$(SNAKEMAKE) --configfile config/smoke.yaml

# Into a run of its own, from nothing: what is there from an earlier one would verify itself.
VERIFIED := $(addsuffix /verify,results figures logs)
verify: $(INSTALLED) ## run the smoke configuration anew and compare with the committed tables
	rm -rf $(VERIFIED)
	$(SNAKEMAKE) --configfile config/smoke.yaml --config run=verify
	python -m l0plane.verify results/verify $(COMMITTED)

verify-update: $(INSTALLED) ## commit to the numbers of the last `make verify` (see docs/reproducing.md)
	python -m l0plane.verify results/verify $(COMMITTED) --update

language-model: $(INSTALLED) ## train the embedded language model anew into resources/lm (an hour)
	$(SNAKEMAKE) language_model --config 'language_model={path: trained}'
	rm -rf resources/lm
	cp -R results/default/language_model resources/lm

test: $(TEST_INSTALLED) ## lint, types, workflow lint and tests
	ruff check
	ruff format --check
	snakefmt --check Snakefile workflow
	mypy
	snakemake --lint
	OMP_NUM_THREADS=1 pytest -n 2

# Triton is a gigabyte, so the locks leave it out; where PyTorch is a CUDA build it is there already.
test-gpu: $(TEST_INSTALLED) ## test the GPU kernels: on the GPU that is there, else in Triton's interpreter
	python -c 'import triton' 2>/dev/null || $(PIP) triton==3.9.0
	pytest tests/test_kernels_gpu.py

gpu: $(TEST_INSTALLED) $(PEERS)/installed ## on a GPU: kernel tests, speed, a model of GPT-2's size and a sweep (meant for minutes)
	python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("PyTorch sees no GPU here")'
	pytest tests/test_kernels_gpu.py
	python benchmarks/gpu.py results/gpu.csv --sparsify $(PEERS)/bin/python
	$(SNAKEMAKE) --resources gpu=8 --configfile config/gpt2_embedded.yaml

test-peers: $(PEERS)/installed ## compare with SAELens, dictionary-learning and sparsify, in their own environment
	$(PEERS)/bin/python -m pytest benchmarks/peers

test-kill: $(INSTALLED) ## kill the smoke run twenty times, resume it, compare it with an undisturbed one (15 minutes)
	python tests/kill/run.py

test-slurm: $(INSTALLED) ## run the smoke configuration through a Slurm started here (root, Debian's slurm-wlm; ten minutes)
	$(PIP) -r requirements-slurm.lock
	tests/slurm/run.sh

benchmark: $(INSTALLED) $(PEERS)/installed ## time training steps beside other libraries' (docs/performance.md)
	python benchmarks/training_step.py

clean: ## remove what the runs made (results/reference and figures/reference stay)
	rm -rf $(filter-out %/reference,$(wildcard results/* figures/*)) logs .snakemake report.html

environment.yml: requirements.lock
	{ sed '/- pip:/q' $@; sed -n 's/^[^#]/      - &/p' $<; } > $@.new
	mv $@.new $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
	    echo "l0plane needs Python 3.11 or 3.12; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	         "Name another: make reproduce PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# --no-build-isolation: the lock's own setuptools builds the project, so nothing unpinned is used.
$(INSTALLED): requirements.lock pyproject.toml | $(VENV)/bin/python
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	python -m l0plane.compile
	touch $@

$(PEERS)/installed: requirements-peers.lock
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/$(PIP) -r $<
	$(PEERS)/bin/$(PIP) --no-deps dictionary-learning==0.1.0 -e .
	touch $@

$(TEST_INSTALLED): requirements-test.lock $(INSTALLED)
	$(PIP) -r requirements-test.lock
	touch $@
