# make demo       the main job on the embedded tiny model: answers, audit, verdict, soak.html (DEVICE=cuda names a device)
# make gpu        everything that needs a GPU, with a table
# make measure    every figure that a GPU makes, into out/measure
# make test       all tests
# make faults     three faults tell their stories, each caught
# make museum     twenty faults past every detector, and a hundred sound engines past them all
# make incident   the diagnosis of the incident, replayed from its facts
# make reproduce  the incident once more: a soak that collapses and recovers, and the same one sound
# make guards     what each guard costs, in percent of decode time
# make torture    a thousand kills at random moments, each run resumed to the bytes of a whole one
# make bench      tokens a second on this machine, with intervals
# make lint       formatting and clippy, as CI runs them

CARGO ?= cargo
export PATH := $(CURDIR)/target/release:$(PATH)

.PHONY: build demo gpu measure test faults museum guards incident reproduce torture bench lint clean

build:
	$(CARGO) build --release --workspace --bins

demo: build
	$(if $(DEVICE),CUTE_DEVICE=$(DEVICE)) bash examples/pipeline.sh

gpu:
	bash tests/gpu/run.sh

measure:
	bash tests/gpu/measure.sh

test:
	$(CARGO) test --workspace

faults: build
	bash examples/faults.sh

museum: build
	museum

guards: build
	bash tests/guards/cost.sh

incident: build
	bash examples/incident/replay.sh

reproduce: build
	bash examples/incident/reproduce.sh

torture: export KILLS ?= 1000
torture: export SEED ?= $(shell date +%s)
torture:
	$(CARGO) test -p cute-generate --test survive -- --nocapture

bench:
	$(CARGO) bench -p cute-engine --bench decode

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features cute-engine/bench -- -D warnings

clean:
	$(CARGO) clean
	rm -rf out
