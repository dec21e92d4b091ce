# By hand, `make install` is:
#   python3 -m venv .venv
#   .venv/bin/pip install -e . -c constraints.txt
# and `make demo` is then:
#   .venv/bin/tuninglab demo

PYTHON ?= python3
PIP_ARGS ?=

.PHONY: install demo test test-all lint

# The stamp files are newer than what they were made from as long as the installation is current.
install: .venv/installed
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is \
	needed; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -e . -c constraints.txt $(PIP_ARGS)
	touch $@

.venv/installed-dev: .venv/installed
	.venv/bin/python -m pip install -e '.[dev]' -c constraints.txt $(PIP_ARGS)
	touch $@

demo: install
	.venv/bin/tuninglab demo

# A process for each core, as tests use one thread; more than four hold much memory (1 GiB each).
# They take tests in the order of the files, and the last ones from each other: what a file's tests
# share is mostly built once, and all end together.
PYTEST = .venv/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

# Without the slow ones: what to run while working.
test: .venv/installed-dev
	$(PYTEST) -m "not slow and not rate"

test-all: .venv/installed-dev
	$(PYTEST)

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python
