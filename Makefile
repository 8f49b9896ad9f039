# Thin on purpose: every target is one line of the go command or one script.

# The go command may fetch the toolchain that go.mod asks for.
export GOTOOLCHAIN ?= auto

GO ?= go

.PHONY: build help dist pictures run test deps lint fuzz soak bench vm-bench vm-test mutants mutants-models mutants-doc man clean

# Two static binaries in bin/; the default.
build: export GO := $(GO)
build:
	@scripts/build

# This list.
help:
	@awk '/^# / { text = text (text == "" ? "" : " ") substr($$0, 3); next } \
		/^[a-z-]+:/ && text != "" { sub(/:.*/, ""); printf "make %-15s %s\n", $$0, text } \
		{ text = "" }' $(firstword $(MAKEFILE_LIST))

# What is handed out, in out/: archives and Debian packages for amd64 and arm64.
dist:
	@scripts/dist

# Builds, and serves a 1 GiB image kept in ./disk.btt until Ctrl-C.
# Without a shell in between, so that who ends make ends the server.
run: export GO := $(GO)
run:
	@scripts/run

# The whole test run: what CI runs.
test:
	@scripts/test

# What `make test` needs beyond the Go toolchain, for Debian 12.
deps:
	@scripts/deps

# The part of `make test` that runs no test: formatting, vet, staticcheck, builds.
lint:
	@scripts/test static

# Every fuzz target for FUZZTIME each (default 1m).
fuzz:
	@scripts/fuzz -t $(or $(FUZZTIME),1m)

# Long lives in the simulator for SOAKTIME (default 1h), then hostile clients, ABUSE
# times as many as in a test run (default 20), then kills of the server under load,
# CYCLES times on each kind of image (default 1000).
soak:
	@scripts/deps
	BTTNBD_SAMPLE_TIME=$(or $(SOAKTIME),1h) $(GO) test ./fuzz -run 'TestSampled$$' -v -timeout 0
	BTTNBD_ABUSE=$(or $(ABUSE),20) $(GO) test ./nbd -run TestAbuse -v -timeout 0
	BTTNBD_KILL_CYCLES=$(or $(CYCLES),1000) $(GO) test ./test -run TestKillHistory -v -timeout 0

# Measures us beside our peers, in pairs; needs a quiet machine.
bench:
	@scripts/deps
	$(GO) run ./internal/bench -json docs/performance.json -svg docs/performance.svg $(BENCH)

# Measures an attached device beside the kernel's own BTT in a guest, KERNEL=6.12 also
# ublk; needs a quiet machine.
vm-bench:
	@scripts/vm-bench $(KERNEL)

# The part of `make test` that boots Linux guests; it needs no root and no KVM.
vm-test:
	@scripts/test vm

# Breaks the code in one place at a time: the tests must notice each time.
mutants:
	@$(GO) run ./internal/mutate $(if $(ONLY),-only '$(ONLY)')

# The same, and what tests with a weaker idea of a crash would notice; longer.
mutants-models:
	@$(GO) run ./internal/mutate -models

# The same, and docs/mutants.md written anew from what was seen.
mutants-doc:
	@$(GO) run ./internal/mutate -models -doc docs/mutants.md

# docs/man, from the command tree and two of the documents.
man:
	@$(GO) run ./internal/manual docs/man

# docs/pictures, from the layout, the table of package arrows and a text.
pictures:
	@$(GO) run ./internal/pictures docs/pictures

# Build output only; a disk.btt made by `make run` holds data and stays.
clean:
	rm -rf bin out bttnbd.sock
