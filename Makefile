# Needs git, make and Python 3.11, 3.12 or 3.13. Each target sets up what it needs.
#   make demo    train on images generated on the spot; writes runs/demo, starting it afresh each time
#   make test    the tests (slow ones: make test ARGS="-m slow")
#   make check   lint, formatting, types
#   make bench   images/s of the feature cache beside a plain loop
#   make test-smdebug   tests with SageMaker's smdebug, in .venv-smdebug; as root it installs a C compiler if there is none
#   make toolkit SageMaker's training toolkit, in .venv-toolkit, for tests of SageMaker jobs; as root it installs a C compiler if there is none
#   make local-aws   a local AWS that runs SageMaker jobs and endpoints as processes, until Ctrl-C; no account is needed
#   make story   from photos to an endpoint and back to nothing on that local AWS (DATA=PATH; else ../shared/data/dogs)
#   make test-torchserve  the tests under AWS's PyTorch serving stack, in .venv-torchserve; skipped where there is no Java
#   make test-schemathesis  schemathesis against the server's OpenAPI description, in .venv-schemathesis
#   make picture the README's picture of the report (of runs/demo; needs Chromium)
# Variables: PYTHON=python3.12 chooses the interpreter, VENV=DIR another environment,
# ARGS="..." is added to the target's command line.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules

VENV ?= .venv
PY := $(VENV)/bin/python
VENV_SMDEBUG ?= .venv-smdebug
VENV_TOOLKIT ?= .venv-toolkit
export VENV_TOOLKIT
VENV_TORCHSERVE ?= .venv-torchserve
VENV_SCHEMATHESIS ?= .venv-schemathesis
ARGS ?=
DEMO_DIR := runs/demo

# The stamp is named after the place and the content of what was installed, not after times: another
# branch and back installs nothing, and a checkout that was moved does not run its old copy's code.
STAMP := $(VENV)/installed-$(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | tr ' ' '-')

STAMP_SMDEBUG := $(VENV_SMDEBUG)/installed-$(shell { pwd; cat pyproject.toml constraints-smdebug.txt; } | cksum | tr ' ' '-')

STAMP_TOOLKIT := $(VENV_TOOLKIT)/installed-$(shell { pwd; cat pyproject.toml constraints.txt constraints-toolkit.txt; } | cksum | tr ' ' '-')

# What $(1) is built with, in a recipe's shell: installed where it is missing and may be.
define compiler
if ! command -v cc >/dev/null && ! command -v gcc >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing a C compiler."; \
	    apt-get update -qq; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc libc6-dev python3-dev >/dev/null; \
	  else \
	    echo "$(1) needs a C compiler; on Debian: apt-get install gcc libc6-dev python3-dev" >&2; \
	    exit 1; \
	  fi; \
	fi
endef

STAMP_TORCHSERVE := $(VENV_TORCHSERVE)/installed-$(shell { pwd; echo $(VENV); cat constraints.txt constraints-torchserve.txt; } | cksum | tr ' ' '-')

STAMP_SCHEMATHESIS := $(VENV_SCHEMATHESIS)/installed-$(shell { pwd; cat constraints-schemathesis.txt; } | cksum | tr ' ' '-')

.DEFAULT_GOAL := help
.PHONY: help environment environment-smdebug demo test check bench picture test-smdebug toolkit local-aws story test-torchserve test-schemathesis

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

environment: $(STAMP)

environment-smdebug: $(STAMP_SMDEBUG)

demo: $(STAMP)
	rm -rf $(DEMO_DIR)
	$(PY) train.py data=demo run_dir=$(DEMO_DIR) $(ARGS)

# In two processes, a file in one of them, and a thread of torch in each: two would wait for each other's core.
# One that crashes is not replaced: xdist 3.8 waits for ever after that.
test: $(STAMP)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n 2 --dist loadfile --max-worker-restart 0 $(ARGS)

check: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP)
	$(PY) -m benchmarks.features $(ARGS)

picture: demo
	$(PY) -m benchmarks.picture --run-dir $(DEMO_DIR)

# The stamp is written last: an install that failed or was interrupted is done again from the start.
# `set` says again what .SHELLFLAGS says, which make 3.81, macOS's, does not read.
$(STAMP):
	@set -euo pipefail; \
	is_supported() { "$$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }; \
	python=; \
	for candidate in $(or $(PYTHON),python3.11 python3 python3.12 python3.13); do \
	  if is_supported "$$candidate"; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "graft needs Python 3.11, 3.12 or 3.13; tried: $(or $(PYTHON),python3.11 python3 python3.12 python3.13)." \
	    "Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version), once. It downloads 3.4 GB (torch with CUDA," \
	  "OpenVINO; less where pip has them already), takes 7.2 GB of disk and a few minutes."; \
	rm -rf $(VENV); \
	"$$python" -m venv $(VENV) \
	  || { echo "$$python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }; \
	$(PY) -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[aws,serve,dev]' \
	  | sed -unE 's/^ *(Downloading|Using cached) (.*\/)?([^ ]+) (\([0-9]{2,}\.?[0-9]* MB\)|\([0-9.]+ GB\))$$/  \3 \4/p; s/^Installing collected packages.*/  installing/p'
	@touch $@
	@echo "$(VENV) is ready."

toolkit: $(STAMP_TOOLKIT)

local-aws: $(STAMP) $(STAMP_TOOLKIT)
	$(PY) -m tests.aws $(ARGS)

story: $(STAMP) $(STAMP_TOOLKIT)
	$(PY) -m tests.aws.story $(if $(DATA),--data $(DATA)) $(ARGS)

# Beside the main environment, whose packages it sees through a .pth file: torch is not installed twice, and the
# toolkit's own `pip install -r requirements.txt` finds all that a job needs.
$(STAMP_TOOLKIT): $(STAMP)
	@set -euo pipefail; \
	$(call compiler,SageMaker's training toolkit); \
	rm -rf $(VENV_TOOLKIT); \
	$(PY) -m venv --without-pip $(VENV_TOOLKIT); \
	packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(PY) -c "$$packages" > "$$($(VENV_TOOLKIT)/bin/python -c "$$packages")/graft-environment.pth"; \
	$(VENV_TOOLKIT)/bin/python -m pip install --disable-pip-version-check --no-input --quiet \
	  -c constraints.txt -c constraints-toolkit.txt sagemaker-training
	@touch $@
	@echo "$(VENV_TOOLKIT) is ready."

test-smdebug: $(STAMP_SMDEBUG)
	$(VENV_SMDEBUG)/bin/python -m pytest -m smdebug tests/test_smdebug.py $(ARGS)

# smdebug ends at Python 3.12, and pyinstrument, which it pins, is compiled on the spot.
$(STAMP_SMDEBUG):
	@set -euo pipefail; \
	is_supported() { "$$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }; \
	python=; \
	for candidate in $(or $(PYTHON),python3.11 python3 python3.12); do \
	  if is_supported "$$candidate"; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "smdebug needs Python 3.11 or 3.12; tried: $(or $(PYTHON),python3.11 python3 python3.12)." >&2; \
	  exit 1; \
	fi; \
	$(call compiler,smdebug); \
	echo "Setting up $(VENV_SMDEBUG) with $$("$$python" --version), once."; \
	rm -rf $(VENV_SMDEBUG); \
	"$$python" -m venv $(VENV_SMDEBUG); \
	$(VENV_SMDEBUG)/bin/python -m pip install --disable-pip-version-check --no-input --quiet \
	  -c constraints-smdebug.txt -e '.[smdebug]' pytest pytest-timeout
	@touch $@
	@echo "$(VENV_SMDEBUG) is ready."

# Without Java the tests are skipped, and say so.
test-torchserve: $(STAMP) $(if $(shell command -v java),$(STAMP_TORCHSERVE))
	GRAFT_TORCHSERVE=$(abspath $(VENV_TORCHSERVE)) $(PY) -m pytest -m torchserve tests/test_torchserve.py tests/test_local_aws.py $(ARGS)

# The stack imports torch, and the packed code OpenVINO and others: they are lent by the main environment's folder, at
# the end of the path, for 4 GB twice would be a waste.
$(STAMP_TORCHSERVE): $(STAMP)
	@set -euo pipefail; \
	echo "Setting up $(VENV_TORCHSERVE), once."; \
	rm -rf $(VENV_TORCHSERVE); \
	$(PY) -m venv $(VENV_TORCHSERVE); \
	$(VENV_TORCHSERVE)/bin/python -m pip install --disable-pip-version-check --no-input --quiet --no-deps \
	  -r constraints-torchserve.txt; \
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(VENV_TORCHSERVE)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth"
	@touch $@
	@echo "$(VENV_TORCHSERVE) is ready."

test-schemathesis: $(STAMP) $(STAMP_SCHEMATHESIS)
	PATH="$(abspath $(VENV_SCHEMATHESIS))/bin:$$PATH" $(PY) -m pytest -m slow -k schemathesis tests/test_inputs.py $(ARGS)

$(STAMP_SCHEMATHESIS): $(STAMP)
	@echo "Setting up $(VENV_SCHEMATHESIS), once."
	@rm -rf $(VENV_SCHEMATHESIS)
	@$(PY) -m venv $(VENV_SCHEMATHESIS)
	@$(VENV_SCHEMATHESIS)/bin/python -m pip install --disable-pip-version-check --no-input --quiet \
	  -r constraints-schemathesis.txt
	@touch $@
	@echo "$(VENV_SCHEMATHESIS) is ready."
