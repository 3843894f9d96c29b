# `make help` lists the targets. Everything runs in .venv, which `setup` makes from the hashed locks.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
RECIPE ?= v4
SCALE ?= demo
IMAGE ?= coder-agent
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

# Nothing is resolved and nothing unhashed is fetched: the one package that comes as source only is built with
# the locked setuptools, which therefore goes in first.
INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	--no-build-isolation

COMPILE := uv pip compile requirements.in --universal --python-version 3.11 --generate-hashes --quiet \
	--custom-compile-command "make lock"

.PHONY: help setup repro show params pin chat review noise test bench lint lock image

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/ready ## make .venv: the CPU build of torch, or the CUDA one where nvidia-smi is found

.venv/ready: requirements.lock requirements-cpu.lock requirements-cpu-torch.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "Python %d.%d found; expected 3.11 or 3.12 (make PYTHON=python3.12 ...)" % v)'
	@echo "setup: installing the locked packages into .venv (a few minutes the first time)"
	@$(PYTHON) -m venv --clear .venv
	@sed -n '/^setuptools==/,/# via/p' requirements.lock > .venv/setuptools.lock && $(INSTALL) -r .venv/setuptools.lock
	@if command -v nvidia-smi > /dev/null; then $(INSTALL) -r requirements.lock; else \
	  $(INSTALL) --retries 1 --extra-index-url $(TORCH_CPU_INDEX) -r requirements-cpu-torch.lock && \
	  $(INSTALL) -r requirements-cpu.lock; fi
	@touch $@

repro: setup ## run what is out of date of the pipeline, then show base against tuned
	@dvc repro
	@python -m stages.report --show

show: setup ## print the table of the last run again
	@python -m stages.report --show

params: setup ## compose params.yaml for RECIPE=v2|v3|v4 and SCALE=demo|full, without running anything
	@python -c "from dvc.utils.hydra import compose_and_dump as compose; \
	  compose('params.yaml', '$(CURDIR)/conf', None, 'config', '', ['recipe=$(RECIPE)', 'scale=$(SCALE)'])"
	@echo "params.yaml: recipe $(RECIPE), scale $(SCALE)"

chat: setup ## talk to the trained model in the terminal
	@python -m tools.chat

review: setup ## let the trained model judge code: make review DIFF=main, or PATHS="src app.py"
	@python -m tools.review $(if $(PATHS),$(PATHS),--diff $(or $(DIFF),HEAD))

noise: setup ## measure how far trainings with another seed lie apart (a whole run for each of SEEDS="43 44")
	@python -m tools.noise --seeds $(or $(SEEDS),43 44)

pin: setup ## put commits and sha256s in place of the branches that conf/ names on the Hub
	@python -m conf.pin

test: setup ## unit tests, contracts, and the whole pipeline at a tiny size
	@python -m pytest

bench: setup ## data stages, near-duplicates, sandbox, generation and training against their peers (some minutes)
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r bench/requirements.lock
	@python -m bench.nearduplicates
	@python -m bench.data --peers
	@python -m bench.sandbox
	@python -m bench.generate
	@python -m bench.train

lint: setup ## ruff and mypy
	@ruff check . && ruff format --check . && mypy

lock: ## resolve requirements.in into the hashed locks (needs uv)
	$(COMPILE) --output-file requirements.lock
	$(COMPILE) --output-file requirements-cpu.lock --no-emit-package torch \
	  $$(grep -oE '^(nvidia-(cu|nc|nv)[a-z0-9-]+|cuda-[a-z]+|triton|liger-kernel)==' requirements.lock | sed 's/==//; s/^/--no-emit-package /')

	cd bench && uv pip compile requirements.in --constraint ../requirements.lock --universal --python-version 3.11 \
	  --generate-hashes --quiet --custom-compile-command "make lock" --no-emit-package numpy --output-file requirements.lock

image: ## build the container
	@docker build --tag $(IMAGE) .
