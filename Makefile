# Everything that is done to this project from the outside. `make help` lists it.

PYTHON ?= python3
SEEDS ?= 1 2 3
CORPUS ?=
RUNS ?= $(if $(CORPUS),runs/ws/$(notdir $(abspath $(CORPUS))),runs/ws/spoken)
EXPERIMENTS ?= rnnt_random rnnt_ws rnnt_ws_blind

# Of experiments on a corpus of one's own.
ifneq ($(CORPUS),)
DATA := --data data_modules.librispeech.LibriSpeechDataModule --data.init_args.root $(abspath $(CORPUS)) \
	--data.init_args.train_subsets [train-clean-100] --data.init_args.validation_subsets [dev-clean,test-other]
endif
comma := ,

BIN := .venv/bin
INSTALLED := .venv/installed
LIGHTNING := $(BIN)/lightning
# Networks as small as the demo's are fastest with one thread each, and when memory is kept for the next step. Threads
# that wait actively for each other are very slow on a machine that does anything else besides.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

.PHONY: help demo test lint bench peers ws las e2e e2e-ws e2e-figures ws-figures hybrid report dashboard \
	ds2 ds2-attention ds2-features ds2-extractors install
.DELETE_ON_ERROR:
.SECONDARY:

help: ## this list
	@echo "targets:"; sed -n 's/^\([a-z0-9-]*\):.*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18
	@echo "variables:"
	@echo "  PYTHON=python3      the Python (3.11 or newer) that .venv is made with"
	@echo "  SEEDS='1 2 3'       of every target but \`make demo\` that trains"
	@echo "  TEST_JOBS=2         processes of \`make test\`; TESTS='tests/nn …' takes a part of it"
	@echo "  CORPUS=FOLDER       of \`make ws\` and \`make ds2…\`: a LibriSpeech folder; the embedded corpora without it"
	@echo "  GROUP=…, FOLDERS=…  of \`make dashboard\` and \`make report\`: W&B groups, folders of runs; SAVE=1 publishes"
	@echo "  SCALE=full          of \`make ds2…\`: networks of full size, on KsponSpeech or CORPUS; demo without it"

install: $(INSTALLED) ## make .venv with everything in it

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": say PYTHON=...")'
	$(PYTHON) -m venv .venv
	@echo "installing into .venv ..."
	@export PIP_DISABLE_PIP_VERSION_CHECK=1; \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt uv \
		&& $(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --constraint constraints.txt --editable '.[development]' \
		|| $(BIN)/python -m pip install --constraint constraints.txt --editable '.[development]'
	@touch $@

# The demo: one seed of the paper's experiment on a small embedded corpus. A run that was interrupted goes on where its
# last checkpoint was written; a finished one is left alone. The student from random weights needs no teacher, and is
# trained beside it: both print a line per epoch, with the time that is left of each, and no progress bar.

DEMO := runs/demo
DEMO_RUNS := $(foreach run,rnnt_teacher rnnt_random rnnt_ws,$(DEMO)/$(run)/seed1)

demo: $(INSTALLED) ## teacher, student from random weights and from selected ones, table, picture and page
	@$(MAKE) --no-print-directory --jobs 2 $(DEMO)/rnnt.html
	@cat $(DEMO)/summary.txt
	@echo "Open $(abspath $(DEMO)/rnnt.html) in a browser"

$(DEMO)/rnnt.html: $(DEMO)/wer_per_epoch.png $(DEMO)/rnnt_ws/seed1/inside
	$(BIN)/python -m asr_lightning.tools.report $(DEMO_RUNS) --output $@ --title "RNN-T, weight selection" --baseline rnnt_random

$(DEMO)/wer_per_epoch.png: $(DEMO_RUNS:=/finished)
	$(BIN)/python -m asr_lightning.tools.compare $(DEMO_RUNS) --output $(DEMO) \
		--reference rnnt_teacher --baseline rnnt_random > $(DEMO)/summary.txt

$(DEMO)/rnnt_ws/seed1/finished: | $(DEMO)/rnnt_teacher/seed1/finished
$(DEMO_RUNS:=/finished): FLAGS += --trainer.enable_progress_bar false
$(DEMO)/%/finished: | $(INSTALLED)
	@mkdir -p $(@D)
	$(LIGHTNING) fit --config experiments/demo/$(*D).yaml --seed_everything $(subst seed,,$(*F)) \
		--trainer.default_root_dir $(@D) $(FLAGS) --ckpt_path last
	@touch $@

# Looks into a network that is trained: t-SNE of its layers, neighbours of its decoder's states, its alignments.
$(DEMO)/%/inside: $(DEMO)/%/finished
	tuned=$$(ls $(@D)/search.yaml 2> /dev/null); \
	$(LIGHTNING) test --config experiments/demo/$(*D)_inside.yaml $${tuned:+--config $$tuned} \
		--seed_everything $(subst seed,,$(*F)) --ckpt_path $(@D)/checkpoints/last.ckpt --trainer.default_root_dir $(@D) > $(@D)/inside.log 2>&1 \
		|| { tail -n 5 $(@D)/inside.log; exit 1; }
	@touch $@

# Attention decoders on the embedded corpus, over SEEDS.

SEEDED = $(foreach run,$(1),$(foreach seed,$(SEEDS),$(DEMO)/$(run)/seed$(seed)))
SUMMARIZE = $(BIN)/python -m asr_lightning.tools.summarize $(1) --output $(DEMO)/tables/$@
# The network of las_sampling, searched in other ways.
SEARCHES := las_beam las_joint_ctc las_fusion las_rescoring
LAS := las las_sampling $(SEARCHES) speech_transformer

las: $(addsuffix /finished,$(call SEEDED,$(LAS))) ## LAS with sampling, language models, CTC; and the Transformer
	$(call SUMMARIZE,$(call SEEDED,$(LAS)))

e2e: $(addsuffix /finished,$(call SEEDED,e2e_a e2e_b)) ## end-to-end models A and B
	$(call SUMMARIZE,$(call SEEDED,e2e_a e2e_b))

INSIDE := e2e_a e2e_b hybrid
$(DEMO)/hybrid/seed1/inside: $(DEMO)/hybrid/seed1/tuned
e2e-figures: $(foreach run,$(INSIDE),$(DEMO)/$(run)/seed1/inside) ## seed 000's figures 3 to 10 and table 2, as a page
	$(BIN)/python -m asr_lightning.tools.report $(addprefix $(DEMO)/,$(INSIDE)) --output $(DEMO)/e2e.html \
		--title "End-to-end models A and B, and the hybrid"

# The BLSTM-HMM hybrid [seed 000]: Gaussian mixtures align and tie states, networks learn from that, align anew, and learn
# from whole sentences. Alignments are measured against the exact phones of the embedded corpus.

HYBRID := $(DEMO)/hybrid
HYBRID_TOOL := $(BIN)/python -m asr_lightning.tools.hybrid
ALIGN = $(BIN)/python -m asr_lightning.tools.align --config experiments/demo/$(1).yaml --subsets test-clean

hybrid: $(addsuffix /tuned,$(call SEEDED,hybrid hybrid_mmi)) $(HYBRID)/boundaries ## the BLSTM-HMM hybrid, and how well it aligns
	$(call SUMMARIZE,$(call SEEDED,hybrid hybrid_mmi))

$(HYBRID)/states/HCLG.fst: | $(INSTALLED)
	$(HYBRID_TOOL) prepare --config experiments/demo/hybrid.yaml --lexicon data/spoken/lexicon.txt --output $(@D)
$(addsuffix /finished,$(call SEEDED,hybrid)): | $(HYBRID)/states/HCLG.fst

$(DEMO)/hybrid_mmi/states/HCLG.fst: $(HYBRID)/seed1/finished
	$(HYBRID_TOOL) realign --config experiments/demo/hybrid.yaml --checkpoint $(<D)/checkpoints/last.ckpt --output $(@D)
$(DEMO)/hybrid_mmi/%/finished: $(HYBRID)/%/finished $(DEMO)/hybrid_mmi/states/HCLG.fst
	$(LIGHTNING) fit --config experiments/demo/hybrid_mmi.yaml --seed_everything $(subst seed,,$*) \
		--trainer.default_root_dir $(@D) --trainer.callbacks.init_args.teacher $(<D)/checkpoints/last.ckpt \
		$(FLAGS) --ckpt_path last
	@touch $@

# The weight of the language model is chosen on dev-clean and dev-other.
HYBRID_EXPERIMENT = experiments/demo/$(notdir $(patsubst %/,%,$(dir $(@D)))).yaml
$(DEMO)/hybrid%/tuned: $(DEMO)/hybrid%/finished
	$(HYBRID_TOOL) tune --config $(HYBRID_EXPERIMENT) --subsets dev-clean dev-other \
		--checkpoint $(@D)/checkpoints/last.ckpt --output $(@D)/search.yaml > $(@D)/tuning.txt
	$(LIGHTNING) test --config $(HYBRID_EXPERIMENT) --config $(@D)/search.yaml \
		--seed_everything $(subst seed,,$(notdir $(@D))) --ckpt_path $(@D)/checkpoints/last.ckpt --trainer.default_root_dir $(@D)
	@touch $@

ALIGNED := mixtures blstm blstm_mmi
BOUNDARIES = $(BIN)/python -m asr_lightning.tools.boundaries \
	$(foreach one,$(1),$(HYBRID)/alignments/$(one)/test-clean.$(2).ctm) --names $(1) \
	--truth data/spoken/test-clean --output $(DEMO)/tables/boundaries_$(2)
$(HYBRID)/boundaries: $(HYBRID)/seed1/finished $(DEMO)/hybrid_mmi/seed1/finished $(DEMO)/e2e_a/seed1/finished
	$(call ALIGN,hybrid) --states $(HYBRID)/states --output $(@D)/alignments/mixtures
	$(call ALIGN,hybrid) --checkpoint $(HYBRID)/seed1/checkpoints/last.ckpt --output $(@D)/alignments/blstm
	$(call ALIGN,hybrid_mmi) --checkpoint $(DEMO)/hybrid_mmi/seed1/checkpoints/last.ckpt --output $(@D)/alignments/blstm_mmi
	$(call ALIGN,e2e_a) --checkpoint $(DEMO)/e2e_a/seed1/checkpoints/last.ckpt --output $(@D)/alignments/ctc
	$(call BOUNDARIES,$(ALIGNED),phones)
	$(call BOUNDARIES,$(ALIGNED) ctc,words) --lexicon data/spoken/lexicon.txt
	@touch $@

E2E_STUDENTS = $(call SEEDED,e2e_random e2e_ws)
e2e-ws: $(addsuffix /finished,$(E2E_STUDENTS)) ## students of A, from random weights and from selected ones
	$(BIN)/python -m asr_lightning.tools.compare $(DEMO)/e2e_a/seed1 $(E2E_STUDENTS) --output $(DEMO)/tables/$@ \
		--reference e2e_a --baseline e2e_random
$(foreach seed,$(SEEDS),$(DEMO)/e2e_ws/seed$(seed)/finished): | $(DEMO)/e2e_a/seed1/finished

define SEARCH
$(DEMO)/$(1)/%/finished: $(DEMO)/las_sampling/%/finished $(DEMO)/lm_char/seed1/finished
	$(LIGHTNING) test --config experiments/demo/$(1).yaml --seed_everything $$(subst seed,,$$*) --trainer.default_root_dir $$(@D) \
		--ckpt_path $$(DEMO)/las_sampling/$$*/checkpoints/last.ckpt
	@touch $$@
endef
$(foreach run,$(SEARCHES),$(eval $(call SEARCH,$(run))))
$(DEMO)/lm_char/seed1/finished: | $(DEMO)/las/seed1/finished

# Deep Speech 2, one thing changed at a time [seeds 003, 004]: one table each, over SEEDS, on the embedded Korean corpus, or
# on CORPUS in LibriSpeech's layout. SCALE=full takes the networks of full size, and KsponSpeech without a CORPUS. A variant
# is the base experiment with other values.

SCALE ?= demo
DS2 := runs/$(SCALE)/ds2$(if $(CORPUS),-$(notdir $(abspath $(CORPUS))))
DS2_EXPERIMENT := experiments/$(if $(filter full,$(SCALE)),$(if $(CORPUS),ds2,ds2_kspon),demo/ds2)
DS2_DATA := $(if $(CORPUS),$(DATA) --model.init_args.tokenizer asr_lightning.text.tokenizers.CharacterTokenizer)
ENCODER := --model.init_args.encoder.init_args
EXTRACTOR := $(ENCODER).extractor
ATTENTION := $(ENCODER).attention
FEATURES := --model.init_args.features asr_lightning.audio.features
BY_SCALE = $(if $(filter full,$(SCALE)),$(2),$(1))

VALUES_wide := $(ENCODER).hidden $(call BY_SCALE,187,1471)
VALUES_heads := $(ATTENTION) asr_lightning.nn.frame_attention.HeadAttention $(ATTENTION).init_args.heads $(call BY_SCALE,4,8)
VALUES_scaled := $(ATTENTION) asr_lightning.nn.frame_attention.TimeAttention $(ATTENTION).init_args.heads 1
VALUES_time := $(ATTENTION) asr_lightning.nn.frame_attention.TimeAttention $(ATTENTION).init_args.heads $(call BY_SCALE,4,8)
VALUES_positions := $(VALUES_time) $(ATTENTION).init_args.positions true
VALUES_temporal := $(VALUES_time) $(ATTENTION).init_args.decay true
VALUES_additive := $(ATTENTION) asr_lightning.nn.frame_attention.AdditiveTimeAttention
VALUES_location := $(VALUES_additive) $(ATTENTION).init_args.location true
VALUES_mfcc := $(FEATURES).MFCC $(EXTRACTOR).init_args.input_dimension 40
VALUES_spectrogram := $(FEATURES).PowerSpectrogram $(EXTRACTOR).init_args.input_dimension 161
VALUES_filter_bank := $(FEATURES).KaldiFilterBank
VALUES_vgg := $(EXTRACTOR) asr_lightning.nn.extractors.VGG \
	$(EXTRACTOR).init_args.channels $(call BY_SCALE,'[8$(comma)16]','[64$(comma)128]')
VALUES_one_dimension := $(EXTRACTOR) asr_lightning.nn.extractors.Convolutions1d \
	$(EXTRACTOR).init_args.channels $(call BY_SCALE,[160],[1280])
VALUES_no_batch_norm := $(ENCODER).batch_norm false $(EXTRACTOR).init_args.batch_norm false
VALUES_one_layer := $(ENCODER).layers 1
VALUES_five_layers := $(ENCODER).layers 5
VALUES_vanilla := $(ENCODER).kind vanilla
VALUES_lstm := $(ENCODER).kind lstm
VALUES_concatenate := $(ENCODER).directions $(call BY_SCALE,concatenate,sum)
VALUES_sorted := --data.init_args.sorted_epochs 1

VARIANTS_ds2 := base one_dimension no_batch_norm one_layer five_layers vanilla lstm concatenate sorted
VARIANTS_ds2-attention := base wide heads scaled time positions temporal additive location cross
VARIANTS_ds2-features := mfcc base spectrogram filter_bank
VARIANTS_ds2-extractors := base vgg
DS2_RUNS = $(foreach variant,$(VARIANTS_$(1)),$(foreach seed,$(SEEDS),$(DS2)/$(variant)/seed$(seed)))

ds2: $(addsuffix /finished,$(call DS2_RUNS,ds2)) ## Deep Speech 2: convolutions, BatchNorm, depth, units, SortaGrad
ds2-attention: $(addsuffix /finished,$(call DS2_RUNS,ds2-attention)) ## attention between its recurrent layers
ds2-features: $(addsuffix /finished,$(call DS2_RUNS,ds2-features)) ## four kinds of features
ds2-extractors: $(addsuffix /finished,$(call DS2_RUNS,ds2-extractors)) ## its convolutions and those of VGG
ds2 ds2-attention ds2-features ds2-extractors:
	$(BIN)/python -m asr_lightning.tools.summarize $(call DS2_RUNS,$@) --metrics cer wer --output $(DS2)/tables/$@

$(DS2)/%/finished: | $(INSTALLED)
	@mkdir -p $(@D)
	$(LIGHTNING) fit --config $(DS2_EXPERIMENT)$(if $(filter cross,$(*D)),_cross).yaml $(VALUES_$(*D)) $(DS2_DATA) \
		--seed_everything $(subst seed,,$(*F)) --trainer.default_root_dir $(@D) $(FLAGS) --ckpt_path last
	@touch $@

# The same with several seeds, on the embedded corpus or on a real one, and with selection blind to what axes mean.

WS_RUNS := $(foreach seed,$(SEEDS),$(foreach run,$(EXPERIMENTS),$(RUNS)/$(run)/seed$(seed)))

ws: $(WS_RUNS:=/finished) ## weight selection against random weights, over SEEDS, on CORPUS
	$(BIN)/python -m asr_lightning.tools.compare $(RUNS) --output $(RUNS) --reference rnnt_teacher --baseline rnnt_random

# $(1) experiment, $(2) seed
define RUN
$(RUNS)/$(1)/seed$(2)/finished: | $(INSTALLED) $(if $(filter rnnt_ws%,$(1)),$(RUNS)/rnnt_teacher/seed1/finished)
	$(LIGHTNING) fit --config experiments/demo/$(1).yaml --seed_everything $(2) \
		--trainer.default_root_dir $(RUNS)/$(1)/seed$(2) $(DATA) $(FLAGS) $(if $(filter rnnt_ws%,$(1)), \
		--trainer.callbacks.init_args.teacher $(RUNS)/rnnt_teacher/seed1/checkpoints/last.ckpt) --ckpt_path last
	@touch $$@
endef
$(eval $(call RUN,rnnt_teacher,1))
$(foreach seed,$(SEEDS),$(foreach run,$(EXPERIMENTS),$(eval $(call RUN,$(run),$(seed)))))

# The optimisation path of the demo's students: convergence curves, and the loss between their end points.

BETWEEN = --between $(DEMO)/$(1)/checkpoints/last.ckpt $(DEMO)/$(2)/checkpoints/last.ckpt
ws-figures: $(addsuffix /finished,$(DEMO_RUNS) $(call SEEDED,rnnt_random rnnt_ws)) ## how students converge, over SEEDS
	$(BIN)/python -m asr_lightning.tools.convergence $(call SEEDED,rnnt_random rnnt_ws) --output $(DEMO)/tables/$@
	$(BIN)/python -m asr_lightning.tools.path --output $(DEMO)/tables/$@ --error-rates \
		$(foreach seed,$(SEEDS),$(call BETWEEN,rnnt_random/seed$(seed),rnnt_ws/seed$(seed))) \
		--between $(DEMO)/rnnt_ws/seed1/checkpoints/initial.ckpt $(DEMO)/rnnt_ws/seed1/checkpoints/last.ckpt

GROUP ?= demo/rnnt_random demo/rnnt_ws
FOLDERS ?= $(addprefix runs/,$(GROUP))

report: $(INSTALLED) ## one HTML page of the runs in FOLDERS
	$(BIN)/python -m asr_lightning.tools.report $(FOLDERS) --output runs/report.html

dashboard: $(INSTALLED) ## W&B workspace and report of GROUP, checked against the runs in FOLDERS; SAVE=1 publishes them
	$(BIN)/python -m asr_lightning.tools.dashboard --group $(GROUP) --runs $(FOLDERS) \
		$(if $(SUBSETS),--subsets $(SUBSETS)) $(if $(SAVE),--save)

TEST_JOBS ?= 2
TESTS ?= tests
test: $(INSTALLED) ## the whole test suite, or TESTS
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) --numprocesses $(TEST_JOBS) --dist loadfile

lint: $(INSTALLED) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Other toolkits that are measured beside ours, apart from what this project installs. SpeechBrain's networks need no more
# of its dependencies than these.
PEERS := runs/peers
peers: $(PEERS)/installed ## what `make bench` measures beside ours, below runs/peers
$(PEERS)/installed: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --target $(PEERS) --no-deps speechbrain==1.1.2 hyperpyyaml ruamel.yaml joblib
	@touch $@

bench: $(PEERS)/installed demo ## one table of speed and memory beside the peers, of one run; see benchmarks/README.md
	PYTHONPATH=$(PEERS) OMP_NUM_THREADS=$$(nproc --all) $(BIN)/python benchmarks/table.py
