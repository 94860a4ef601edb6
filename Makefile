# `make repro` runs the whole pipeline, `make test` the tests; both install what is missing first.

PYTHON ?= python3
WITH_VENV = PATH="$(CURDIR)/.venv/bin:$$PATH"

.PHONY: repro test check bench
repro: .venv/installed
	$(WITH_VENV) dvc repro
	@echo "The report: $(CURDIR)/report/index.html"

test: .venv/installed
	$(WITH_VENV) python -m pytest

# Are dvc.lock and metrics/ those of this code and these params? Needs no data.
check: .venv/installed
	plan=$$($(WITH_VENV) dvc repro --dry --allow-missing) && echo "$$plan" && ! echo "$$plan" | grep -q "^Running stage"

# Our speed beside plain baselines: tables, and metrics/bench/*.json. Wants the machine to itself.
bench: .venv/installed
	$(WITH_VENV) python -m bench.input
	$(WITH_VENV) python -m bench.files
	$(WITH_VENV) python -m bench.crd
	$(WITH_VENV) python -m bench.step
	$(WITH_VENV) python -m bench.cache
	$(WITH_VENV) python -m bench.scaling
	$(WITH_VENV) python -m bench.overhead

.venv/installed: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "Python 3.11.4 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check -c requirements.txt -e '.[test]'
	touch $@
