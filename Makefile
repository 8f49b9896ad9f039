# Thin on purpose: every target is one line of the go command or one script.

# The go command may fetch the toolchain that go.mod asks for.
export GOTOOLCHAIN ?= auto

GO ?= go

.PHONY: build run test deps lint fuzz clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...

# Serves a 1 GiB device kept in ./disk.btt until Ctrl-C.
run: build
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

# Build output only; a disk.btt made by `make run` holds data and stays.
clean:
	rm -rf bin bttnbd.sock
