# `make help` lists the targets. Everything runs in .venv, which `setup` makes from the hashed locks; with
# IN=container in the image instead, on this checkout (the image says IN=image: its environment is there).

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
RECIPE ?= v4
SCALE ?= demo
IN ?= host
ENGINE ?= docker
IMAGE ?= coder-agent
DEVICE ?= $(if $(GPU),cuda,cpu)
GPU := $(shell command -v nvidia-smi)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

export PATH := $(if $(filter image,$(IN)),,$(CURDIR)/.venv/bin:)$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

# Nothing is resolved and nothing unhashed is fetched: the one package that comes as source only is built with
# the locked setuptools, which therefore goes in first. Bytecode comes last, from all cores (pip uses one);
# a package's file in the syntax of a later Python has none, and says nothing.
INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	--no-build-isolation --no-compile

# uv and the auditor have an environment of their own: nothing of theirs is the pipeline's.
TOOLS := $(if $(filter image,$(IN)),/tmp/tools,.venv/tools)
COMPILE := $(abspath $(TOOLS))/bin/uv pip compile requirements.in --universal --python-version 3.11 \
	--generate-hashes --quiet --custom-compile-command "make lock"

# The tag names all that decides the image's environment, so an old image is never taken for today's.
TAGGED = $(IMAGE):$(DEVICE)-$(shell cat Dockerfile requirements*.lock | sha256sum | cut -c1-12)
LOCKS := requirements.lock requirements-cpu.lock bench/requirements.lock .github/requirements.lock
CPU_LOCKS := requirements-cpu-torch.lock requirements-cpu.lock
# Handed over by name: what they hold stands neither in the image nor in a command.
PASSED := HF_TOKEN HF_ENDPOINT WANDB_API_KEY DVC_REMOTE_URL \
	AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_DEFAULT_REGION AWS_ENDPOINT_URL
PODMAN := $(findstring podman,$(ENGINE))
CONTAINER = $(if $(DVC_CACHE),mkdir -p .dvc/cache "$(DVC_CACHE)" && ) \
	$(ENGINE) run --rm --init --interactive $$(test -t 0 && echo --tty) \
	$(if $(GPU),$(if $(PODMAN),--device nvidia.com/gpu=all,--gpus all)) --shm-size 1g \
	--user "$$(id -u):$$(id -g)" $(if $(PODMAN),--userns keep-id) --security-opt label=disable \
	--volume "$(CURDIR):/workspace" $(if $(DVC_CACHE),--volume "$(DVC_CACHE):/workspace/.dvc/cache") \
	--volume "$(or $(HUB_CACHE),coder-agent-hub):/var/cache/hub" $(PASSED:%=--env %) --env MAKEFLAGS $(TAGGED)

.PHONY: help image shell

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

image: ## build the container's image (DEVICE=cuda or cpu, ENGINE=docker or podman)
	@$(ENGINE) build --tag $(IMAGE) --tag $(TAGGED) $(if $(filter cpu,$(DEVICE)),--build-arg LOCKS="$(CPU_LOCKS)") .

shell: ## open a shell in the image, on this checkout
	@$(ENGINE) image inspect $(TAGGED) > /dev/null 2>&1 || $(MAKE) --no-print-directory image
	@$(CONTAINER) bash

ifeq ($(IN),container)

.DEFAULT:
	@$(ENGINE) image inspect $(TAGGED) > /dev/null 2>&1 || $(MAKE) --no-print-directory image
	@$(CONTAINER) make $@ IN=image

bench: # a folder has this name, so it needs a rule; and the image's environment takes no peers
	@echo "bench: IN=container; expected it without, since it installs what it compares with into .venv" >&2; exit 2

else

.PHONY: setup repro show params pin chat review compare noise sweep verify hermetic test bench lint lock health current check audit

setup: $(if $(filter image,$(IN)),,.venv/ready) ## make .venv: the CPU build of torch, or the CUDA one where nvidia-smi is found

.venv/ready: requirements.lock requirements-cpu.lock requirements-cpu-torch.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:3]; sys.exit(0 if (3, 11, 4) <= v < (3, 13) else "Python %d.%d.%d found; expected 3.11 from 3.11.4 on, or 3.12 (make PYTHON=python3.12 ...)" % v)'
	@echo "setup: installing the locked packages into .venv (a few minutes the first time)"
	@$(PYTHON) -m venv --clear .venv
	@sed -n '/^setuptools==/,/# via/p' requirements.lock > .venv/setuptools.lock && $(INSTALL) -r .venv/setuptools.lock
	@if command -v nvidia-smi > /dev/null; then $(INSTALL) -r requirements.lock; else \
	  $(INSTALL) --retries 1 --extra-index-url $(TORCH_CPU_INDEX) -r requirements-cpu-torch.lock & torch=$$!; \
	  trap "kill $$torch 2> /dev/null" EXIT; \
	  $(INSTALL) -r requirements-cpu.lock && wait $$torch; fi
	@.venv/bin/python -m compileall -qq -j 0 .venv/lib || true
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

compare: setup ## compare runs: make compare REV=main, or REV=v1 WITH=v2 (intervals, tests, answers that flipped)
	@python -m tools.compare $(or $(REV),main) $(or $(WITH),workspace)

noise: setup ## measure how far trainings with another seed lie apart (a whole run for each of SEEDS="43 44")
	@python -m tools.noise --seeds $(or $(SEEDS),43 44)

verify: setup ## hash all that the last run left, cache and checkpoints too; MEND=1 puts damage right
	@python -m tools.verify $(if $(MEND),--mend)

hermetic: setup ## does any stage read, write or reach what dvc.yaml does not name? (all of it, tiny; or STAGE="mix filter")
	@python -m tools.hermetic $(STAGE)

sweep: setup ## search for better parameters (conf/sweep.yaml): make sweep TRIALS=20, then APPLY=1 for the best
	@python -m tools.sweep --name $(or $(NAME),sweep) $(if $(APPLY),--apply,--trials $(or $(TRIALS),20))

pin: setup ## put commits and sha256s in place of the branches that conf/ names on the Hub
	@python -m conf.pin

health: setup ## print versions, device and sandbox; fails where something is missing
	@python -m tools.health

test: setup ## unit tests, contracts, and the whole pipeline at a tiny size, in a process for each core, eight at most
	@python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

bench: setup ## data stages, near-duplicates, sandbox, generation and training against their peers (some minutes)
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r bench/requirements.lock
	@python -m bench.nearduplicates
	@python -m bench.data --peers
	@python -m bench.sandbox
	@python -m bench.generate
	@python -m bench.train

lint: setup ## ruff and mypy
	@ruff check . && ruff format --check . && mypy

current: setup ## fail unless dvc.lock is that of these files; works without their data
	@dvc repro --quiet program
	@told=$$(dvc repro --dry --allow-missing 2>&1) && ! grep -q '^Running stage' <<< "$$told" || { \
	  grep -v "didn't change" <<< "$$told" >&2; \
	  echo "dvc.lock: not of these files; expected a run (make repro), committed" >&2; exit 1; }

check: $(TOOLS)/ready ## hadolint and zizmor: the Dockerfile and the workflows
	@$(TOOLS)/bin/hadolint Dockerfile
	@$(TOOLS)/bin/zizmor --quiet --offline .github/workflows

audit: setup $(TOOLS)/ready ## vulnerabilities and licences of what is locked (CHECK=1: write nothing, and insist)
	@python -m tools.audit --auditor $(TOOLS)/bin/pip-audit $(if $(CHECK),--check --strict)

# A lock that says the same keeps its time, or all would be installed again.
lock: $(TOOLS)/ready ## resolve requirements.in into the hashed locks; what is pinned stays where it still fits
	@mkdir -p $(TOOLS)/before && cp --preserve --parents $(LOCKS) $(TOOLS)/before
	@$(COMPILE) --output-file requirements.lock
	@$(COMPILE) --output-file requirements-cpu.lock --no-emit-package torch \
	  $$(grep -oE '^(nvidia-(cu|nc|nv)[a-z0-9-]+|cuda-[a-z]+|triton|liger-kernel)==' requirements.lock | sed 's/==//; s/^/--no-emit-package /')
	@cd bench && $(COMPILE) --constraint ../requirements.lock --no-emit-package numpy --output-file requirements.lock
	@cd .github && $(COMPILE) --output-file requirements.lock
	@for lock in $(LOCKS); do if cmp --silent $$lock $(TOOLS)/before/$$lock; then mv $(TOOLS)/before/$$lock $$lock; fi; done

$(TOOLS)/ready: .github/requirements.lock
	@$(PYTHON) -m venv --clear $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

endif
