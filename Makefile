# What is done to this project from the outside. `make help` lists it, with these variables:
#   PYTHON=python3      the Python (3.11 or newer) that .venv is made with
#   SCALE=full          networks of full size and their corpora; demo without it, on embedded corpora
#   CORPUS=FOLDER       root of the corpus, in place of that of the experiments
#   SEEDS='1 2 3'       of ablations; JOBS=2 runs at a time
#   GROUP=…, FOLDERS=…  of `make dashboard` and `make report`: W&B groups, folders of runs; SAVE=1 publishes
#   TEST_JOBS=2         processes of `make test`; TESTS='tests/nn …' takes a part of it
PYTHON ?= python3
SCALE ?= demo
TESTS ?= tests
FOLDERS ?= runs/demo/weight_selection
BIN := .venv/bin
INSTALLED := .venv/installed
ABLATE = $(BIN)/asr ablate
OPTIONS = --scale $(SCALE) --jobs $(or $(JOBS),1) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(CORPUS),--set data.init_args.root=$(CORPUS))
# Small networks are fastest with one thread each, threads that sleep while they wait, and memory kept between steps.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))
.DELETE_ON_ERROR:
help: ## this list
	@echo "targets:"; sed -n 's/^\([a-z0-9-]*\):.*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18
	@echo "variables:"; sed -n 's/^#  \(.*\)/ \1/p' $(firstword $(MAKEFILE_LIST))
install: $(INSTALLED) ## make .venv with everything in it
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": say PYTHON=...")'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv ..."
	@export PIP_DISABLE_PIP_VERSION_CHECK=1; \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt uv \
		&& $(BIN)/uv pip install --quiet --compile-bytecode --system-certs --python $(BIN)/python --constraint constraints.txt --editable '.[development]' \
		|| $(BIN)/python -m pip install --constraint constraints.txt --editable '.[development]'
	@touch $@

demo: $(INSTALLED) ## teacher, student from random weights and from selected ones, table, picture and page
	@$(ABLATE) weight_selection --seeds 1 --variants random selected --jobs 2
ws: $(INSTALLED); $(ABLATE) weight_selection $(OPTIONS) ## weight selection against random weights, nine ways
distillation: $(INSTALLED); $(ABLATE) distillation $(OPTIONS) ## weights of a teacher, its predictions, or both
streaming: $(INSTALLED); $(ABLATE) streaming $(OPTIONS) ## students that write while one speaks: weights, chunks, delay
rnnt-loss: $(INSTALLED); $(ABLATE) rnnt_loss $(OPTIONS) ## the transducer's loss, exact and pruned
ws-lstm: $(INSTALLED); $(ABLATE) weight_selection_lstm $(OPTIONS) ## the same with LSTM encoders of full size; SCALE=full only
e2e: $(INSTALLED); $(ABLATE) e2e $(OPTIONS) ## end-to-end models A and B and the hybrid, and what their layers hold
e2e-ws: $(INSTALLED); $(ABLATE) e2e_students $(OPTIONS) ## students of A, from random weights and from selected ones
digits: $(INSTALLED); $(ABLATE) digits $(OPTIONS) ## weight selection and fine-tuning on genuine speech: spoken digits in data/fsdd
students: $(INSTALLED); $(ABLATE) ds2_students jasper_students transformer_students $(OPTIONS) ## the same of Deep Speech 2, Jasper and the Transformer
hybrid: $(INSTALLED); $(ABLATE) hybrid $(OPTIONS) ## the BLSTM-HMM hybrid, and how well it aligns
las: $(INSTALLED); $(ABLATE) las $(OPTIONS) ## Listen, Attend and Spell: sampling, language model, pyramid, attention, noise
las-search: $(INSTALLED); $(ABLATE) las_search $(OPTIONS) ## LAS beside CTC, searched with language models and CTC; and the Transformer
las-attention: $(INSTALLED); $(ABLATE) las_attention $(OPTIONS) ## five mechanisms of attention in LAS
ds2: $(INSTALLED); $(ABLATE) ds2_convolutions ds2_depth ds2_directions ds2_norms ds2_units ds2_training $(OPTIONS) ## parts of Deep Speech 2
ds2-attention: $(INSTALLED); $(ABLATE) ds2_attention $(OPTIONS) ## attention among the frames of Deep Speech 2
ds2-features: $(INSTALLED); $(ABLATE) ds2_features ds2_extractors $(OPTIONS) ## four kinds of features; its convolutions and those of VGG
kospeech: $(INSTALLED); $(ABLATE) kospeech $(OPTIONS) ## the report's training on ten folders of KsponSpeech, and its remedies; SCALE=full only
kspon: $(INSTALLED); $(ABLATE) kspon $(OPTIONS) ## six networks on KsponSpeech; SCALE=full only
architectures: $(INSTALLED); $(ABLATE) architectures $(OPTIONS) ## nine networks on LibriSpeech; SCALE=full only
rehearse: $(INSTALLED); $(ABLATE) $$(grep -l '$(SCALE):' experiments/ablations/*.yaml) --rehearse $(OPTIONS) ## two steps and a tiny evaluation of every run, at SCALE
sherpa: runs/demo/rnnt_export/seed1/checkpoints/last.ckpt ## from nothing to transcripts by sherpa-onnx: train, export, compare size, speed, WER
	$(BIN)/asr export $< --output runs/demo/rnnt_export/exported --int8
	$(BIN)/python benchmarks/deployment.py $< --root data/spoken_small --subset test-clean | tee runs/demo/rnnt_export/deployment.md
runs/demo/rnnt_export/seed1/checkpoints/last.ckpt: | $(INSTALLED)
	$(BIN)/lightning fit --config experiments/demo/rnnt_export.yaml --ckpt_path last
verdicts: $(INSTALLED); $(BIN)/asr verdicts --scale $(SCALE) ## table and page: which claims of the papers the ablations confirm
report: $(INSTALLED); $(BIN)/asr report $(FOLDERS) --output runs/report.html ## one HTML page of the runs in FOLDERS
dashboard: $(INSTALLED); $(BIN)/asr dashboard --group $(or $(GROUP),demo/weight_selection/random demo/weight_selection/selected) --runs $(FOLDERS) $(if $(SUBSETS),--subsets $(SUBSETS)) $(if $(SAVE),--save) ## W&B workspace and report of GROUP, checked against the runs in FOLDERS; SAVE=1 publishes them
docs: .venv/docs; NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet ## the documentation as a site in build/site
.venv/docs: $(INSTALLED)
	$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'
	@touch $@
test: $(INSTALLED) ## the whole test suite, or TESTS
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) --numprocesses $(or $(TEST_JOBS),2) --dist loadfile --no-loadscope-reorder
lint: $(INSTALLED); $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy ## style and types
bench: runs/peers/installed demo ## one table of speed and memory beside the peers, of one run; see benchmarks/README.md
	PYTHONPATH=runs/peers OMP_NUM_THREADS=$$(getconf _NPROCESSORS_ONLN) $(BIN)/python benchmarks/table.py
peers: runs/peers/installed ## what `make bench` measures beside ours; SpeechBrain needs no more than these
runs/peers/installed: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --target runs/peers --no-deps speechbrain==1.1.2 hyperpyyaml ruamel.yaml joblib
	@touch $@
