# A soak driven by make: one arm of arms.csv, several runs on one engine, each stage a file.
#
#   make -f examples/soak.mk ARM=2L_3_7 RUNS=5
#
# make itself exits 2 when anything fails; the verdict's own exit code is in $(OUT)/verdict.code.

ARM     ?= 2L_3_7
RUNS    ?= 5
MODEL   ?= examples/tiny-hybrid
PROMPTS ?= examples/arith-50.jsonl
ARMS    ?= examples/arms.csv
GATE    ?= correct>=45/50
OUT     ?= out/soak/$(ARM)

SHELL := /bin/bash
.SHELLFLAGS := -uo pipefail -c
.DELETE_ON_ERROR:
.PHONY: verdict clean

# name,fusion,"layers",wo_split,"expected coop layers",description
row      := $(shell grep '^$(ARM),' $(ARMS))
FUSION   := $(shell cut -d, -f2 <<< '$(row)')
LAYERS   := $(shell cut -d'"' -f2 <<< '$(row)')
WO_SPLIT := $(shell cut -d'"' -f3 <<< '$(row)' | tr -d ,)
EXPECT   := $(or $(shell cut -d'"' -f4 <<< '$(row)'),none)
ifeq ($(row),)
$(error no arm $(ARM) in $(ARMS))
endif

verdict: $(OUT)/audited.jsonl
	@cute-verdict --runs $(RUNS) --gate '$(GATE)' --gate errors=0 --gate findings=0 \
	    --report $(OUT)/soak.html < $< > $(OUT)/verdict.jsonl; code=$$?; \
	echo $$code > $(OUT)/verdict.code; \
	echo "$(ARM): verdict exit code $$code, picture $(OUT)/soak.html"; exit $$code

# exit 1 says that findings were made: evidence for the verdict, not a reason to stop
$(OUT)/audited.jsonl: $(OUT)/replies.jsonl
	@cute-audit --quiet --require-records --expect-coop-layers $(EXPECT) --dispatch $(OUT)/gen.log < $< > $@; \
	code=$$?; [ $$code -le 1 ] || exit $$code

$(OUT)/replies.jsonl: $(OUT)/model.jsonl $(PROMPTS)
	@CUTE_PHASE_E_FUSION=$(FUSION) CUTE_PHASE_E_LAYERS=$(LAYERS) CUTE_WO_SPLIT=$(WO_SPLIT) \
	    cute-generate --prompts $(PROMPTS) --runs $(RUNS) < $< > $@ 2> $(OUT)/gen.log || { cat $(OUT)/gen.log >&2; exit 2; }

$(OUT)/model.jsonl: $(MODEL)/config.json
	@mkdir -p $(OUT)
	@cute-load $(MODEL) > $@

clean:
	rm -rf $(OUT)
