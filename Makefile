# One command each: `make demo` to see it work, `make test` to check it. Both make .venv and install what they need.
PYTHON ?= python3
BIN := .venv/bin
# a plain `torch` can pull gigabytes of CUDA; this release has a CPU build
TORCH ?= torch==2.13.0
# what ropecli/dialects/model_types.json was made from; the package itself takes a range
TRANSFORMERS ?= transformers==5.24.0

FUZZ_SECONDS ?= 60

.PHONY: demo test lint audit fuzz clean

demo: .venv/demo-ready
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo.sh

test: .venv/test-ready .venv/browser-ready .venv-runtimes/ready lint
	$(BIN)/coverage run -m pytest
	PYTHONPATH=. .venv-runtimes/mlx/bin/python -m pytest tests/runtimes/test_mlx.py
	$(BIN)/coverage report

lint: .venv/test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive ropecli calibrate

# known holes of what is installed; asks an advisory service, so it is no part of `make test`. Not the one of PyPI: a mirror
# may have none, and then pip-audit leaves out every package and ends well
audit: .venv-audit/ready
	.venv-audit/bin/pip-audit --vulnerability-service osv --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# every door for FUZZ_SECONDS, in an environment of its own: atheris is not for every Python
fuzz: .venv-fuzz/ready
	for door in config params safetensors index gguf calibration text arguments; do \
		PYTHONPATH=. .venv-fuzz/bin/python tests/fuzz/fuzz.py $$door -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit 1; \
	done

.venv-audit/ready:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check "pip-audit>=2.7"
	touch $@

.venv-fuzz/ready:
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install --quiet --disable-pip-version-check "atheris>=3" "typer>=0.29" "rich>=13.9" numpy safetensors gguf huggingface_hub
	touch $@

.venv/demo-ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" "$(TRANSFORMERS)" -e .
	touch $@

.venv/test-ready: .venv/demo-ready
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" "$(TRANSFORMERS)" -e ".[test]"
	touch $@

# a browser for tests/test_report.py, which is skipped where there is none; about 300 MB
.venv/browser-ready: .venv/test-ready
	command -v chromium || command -v google-chrome || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } || \
		echo "no browser could be installed: the tests in one will be skipped"
	touch $@

# other runtimes (transformers 4, MLX-LM, llama.cpp), each where it cannot disturb ours, and SmolLM2: about 700 MB
.venv-runtimes/ready: .venv/test-ready tests/real_runtimes/environments.py
	$(BIN)/python tests/real_runtimes/environments.py
	touch $@

clean:
	rm -rf .venv .venv-runtimes .venv-audit .venv-fuzz build dist .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
