# virtsnap: what people type.  Each target says what it does and ends with one line on how it went.
#
#   make demo     set up, build, and take a real guest through snapshots with unmodified virsh
#                 (KEEP=1 leaves daemon and guest running)
#   make test     set up, and run every test
#   make setup    only install what the above need (SETUP=ask asks first, SETUP=no only lists)

.SUFFIXES:
SHELL = /bin/bash
export SETUP
export KEEP
CARGO ?= cargo

.PHONY: help demo test setup guest sets
help:
	@sed -n 's/^#   /    /p' Makefile

setup:
	@tests/setup/setup.sh

# The test guest, from Debian's own kernel and busybox: target/guest.
guest: setup
	@tests/guest/build.sh

# Packages the tests use beside the installed ones: target/sets.
sets: setup
	@tests/setup/sets.sh

demo: guest
	@echo "demo: building virtsnapd"
	@$(CARGO) build --quiet --locked --package virtsnapd
	@tests/demo/demo.sh

test: guest sets
	@tests/setup/test.sh
