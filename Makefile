# Two commands do everything on a fresh clone with Python, pip and make: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
JOBS ?= 3
comma = ,

# Where the environment forbids it, every start would compile TensorFlow's 3,000 modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-full test-resume test-backends test-oldest docs lint types clean
help:
	@echo "make demo       set up, then fine-tune the default backbone on the digits of scikit-learn"
	@echo "make test       set up, then lint, type check and the default tests"
	@echo "make test-resume  every place where a run can be killed, and a storm of kills"
	@echo "make test-backends  models of the zoo on JAX and PyTorch, which it installs"
	@echo "make test-oldest  the default tests with the oldest versions that setup.cfg allows"
	@echo "make docs       the pages of docs/, the reference and the commands as a site"
	@echo "make test-full  the demo, and every model of the zoo, against torch where that is installed"

# uv installs in half of pip's time; where it cannot be had, or finds no index, pip does it. What is
# never imported need not be compiled.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
UV = $(BIN)/uv pip install --quiet --python $(BIN)/python
install = $(UV) $(1) || $(PIP) $(1)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	-$(PIP) uv

$(VENV)/.ready: setup.cfg pyproject.toml | $(BIN)/python
	$(call install,-e .)
	touch $@

$(VENV)/.ready-test: setup.cfg pyproject.toml | $(BIN)/python
	$(call install,-e ".[test$(comma)lite]")
	touch $(VENV)/.ready $@

demo: $(VENV)/.ready
	$(BIN)/dlzoo finetune --data digits --fail-under 0.95

test: lint types
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not full and not long"

test-resume: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n $(JOBS) -m "long or not full" tests/resume tests/distributed

test-backends: $(VENV)/.ready-test
	$(call install,-e ".[jax$(comma)torch]")
	$(BIN)/python -m pytest tests/matrix/test_backends.py

test-oldest: setup.cfg
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)-oldest/bin/uv pip install --quiet --python $(VENV)-oldest/bin/python \
		--resolution lowest-direct -e ".[test,lite]"
	$(VENV)-oldest/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		-m "not full and not long"

test-full: lint types demo
	$(BIN)/python -m pytest -n $(JOBS) -m "not long"

docs: $(VENV)/.ready
	$(call install,-e ".[docs]")
	mkdir -p .typecheck && ln -sfn .. .typecheck/dlzoo
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The repository root is the package, so mypy is shown it under its name.
types: $(VENV)/.ready-test
	mkdir -p .typecheck && ln -sfn .. .typecheck/dlzoo
	cd .typecheck && MYPYPATH=. ../$(BIN)/mypy --config-file ../pyproject.toml \
		--python-executable ../$(BIN)/python -p dlzoo

clean:
	rm -rf $(VENV) .typecheck build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
