# make demo    the main job: head only, LoRA and full fine-tuning side by side (more options: make demo ARGS="--seeds 3")
# make test    all checks and tests
# make check   the same without the tests
# make setup   the virtual environment in .venv, made anew only when the lock or the package's own settings changed

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test check lock clean

setup: $(READY)

# torch comes first and pinned: without it, another package's open requirement could bring several GB of CUDA builds.
$(READY): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make $@ PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up .venv (a few minutes the first time)"
	@if [ -x $(BIN)/python ] && $(BIN)/python -m pip --version >/dev/null 2>&1; then :; else "$(PYTHON)" -m venv --clear .venv; fi
	@$(BIN)/python -m pip install -qq --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@$(BIN)/python -m veneer compare --out runs/demo $(ARGS)

test: setup
	@scripts/check

check: setup
	@scripts/check --no-tests

# New exact versions, from pyproject.toml, in a fresh environment.
lock:
	rm -rf .venv/lock && "$(PYTHON)" -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet torch==2.13.0
	.venv/lock/bin/python -m pip install --quiet -e ".[tool,dev]"
	.venv/lock/bin/python -m pip freeze --exclude veneer | sed 's/+cpu$$//' > requirements.lock
	rm -rf .venv/lock

# Also the trained models in runs/.
clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
