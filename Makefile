# virtsnap: what people type.  Each target says what it does and ends with one line on how it went.
#
#   make demo     set up, build, and take a real guest through snapshots with unmodified virsh
#                 (KEEP=1 leaves daemon and guest running)
#   make test     set up, and run every test
#   make install  the daemon, its units and its group, virtsnap (PREFIX=/usr/local, DESTDIR=)
#   make conformance
#                 compare every recorded outcome of libvirt 11.3.0 with a live virtsnapd
#   make matrix   every cell of states, memory, disks, storage and flags, on a real QEMU
#   make fuzz SECONDS=60
#                 every fuzz target for so long (tests/fuzz/run.sh; TARGETS="xdr xml" for some)
#   make torture  SIGKILL at random points of virtsnapd and QEMU, ROUNDS=200 times (SEED= repeats)
#   make torture-control
#                 the same with recovery switched off, which must lose data
#   make soak     CONNECTIONS=20000 clients of every kind, and what the daemon takes before and after
#   make faults   QEMU killed at every call of every operation; file systems that run full; files that
#                 are damaged; the daemon killed where libvirt loses data: the whole sets
#   make faults-simulated
#                 every fault at every call of every operation, in recovery too, on the simulated
#                 hypervisor: how many of each kind were injected
#   make test-apparmor
#                 snapshots under AppArmor profiles, in a Debian host of its own under emulation
#   make test-xen the Xen driver, in a Xen host of its own under emulation (TEST=name for some)
#   make test-xen-all
#                 the same, and all that takes longer: what CI runs
#   make torture-xen
#                 virtsnapd killed inside operations there, ROUNDS=10 times (SEED= repeats)
#   make xen-bindings
#                 the committed binding of libxl again, from Debian's headers
#   make setup    only install what the above need (SETUP=ask asks first, SETUP=no only lists)

.SUFFIXES:
SHELL = /bin/bash
export SETUP
export KEEP
export SEED
CARGO ?= cargo
PREFIX ?= /usr/local
ROUNDS ?= 200
DESTDIR ?=

.PHONY: help demo test fuzz conformance matrix torture torture-control soak faults faults-simulated test-apparmor test-xen test-xen-all torture-xen xen-bindings setup guest sets agent-guest install
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

# A larger test guest, with a file system and Debian's guest agent: target/agent-guest.
agent-guest: guest sets
	@tests/agent-guest/build.sh

demo: guest
	@echo "demo: building virtsnapd"
	@$(CARGO) build --quiet --locked --package virtsnapd
	@tests/demo/demo.sh

test: agent-guest
	@tests/setup/test.sh

# In a host that is built from Debian's packages: target/host/apparmor.
test-apparmor: setup
	@tests/host/test.sh apparmor

# The same of Xen, driven from outside: target/host/xen.
# Many small ones, most of a guest that is off, and clients beside virsh are left to the other.
test-xen: guest
	@$(if $(TEST),,EXCEPT='consumers hazards kept long_merges options refused') tests/host/test.sh xen

test-xen-all: guest
	@tests/host/test.sh xen

# ROUNDS is 200 where nobody says otherwise, which is for machines that are not emulated.
torture-xen: guest
	@VIRTSNAP_TORTURE=$(if $(filter file,$(origin ROUNDS)),10,$(ROUNDS)) TEST=nothing_is_lost \
		tests/host/test.sh xen

# SECONDS is for each target. CI runs each for a few.
fuzz: setup
	@tests/fuzz/run.sh $(or $(SECONDS),60) $(TARGETS)

UNITS = virtsnapd.service virtsnapd.socket virtsnapd-ro.socket \
	virtsnapd-xen.service virtsnapd-xen.socket virtsnapd-xen-ro.socket
install:
	@echo "install: building virtsnapd"
	@$(CARGO) build --quiet --release --locked --package virtsnapd
	@install -D -m 755 target/release/virtsnapd $(DESTDIR)$(PREFIX)/sbin/virtsnapd
	@if pkg-config --exists libvirt 2>/dev/null; then \
	    echo "install: building virtsnap"; \
	    $(CARGO) build --quiet --release --locked --package virtsnap-cli && \
	    install -D -m 755 target/release/virtsnap $(DESTDIR)$(PREFIX)/bin/virtsnap; \
	else \
	    echo "install: without virtsnap, which needs libvirt-dev to be built"; \
	fi
	@for unit in $(UNITS); do \
	    mkdir -p $(DESTDIR)$(PREFIX)/lib/systemd/system && \
	    sed 's,/usr/sbin/,$(PREFIX)/sbin/,; s,/usr/share/doc/,$(PREFIX)/share/doc/,' \
	        driver/daemon/systemd/$$unit > $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit; \
	done
	@install -D -m 644 driver/daemon/systemd/virtsnap.sysusers \
	    $(DESTDIR)$(PREFIX)/lib/sysusers.d/virtsnap.conf
	@install -D -m 644 driver/daemon/apparmor/qemu \
	    $(DESTDIR)$(PREFIX)/share/doc/virtsnap/apparmor-qemu
	@install -D -m 644 README.md $(DESTDIR)$(PREFIX)/share/doc/virtsnap/README.md
	@install -D -m 644 docs/xen.md $(DESTDIR)$(PREFIX)/share/doc/virtsnap/xen.md
	@echo "install: done; then: systemd-sysusers && systemctl daemon-reload &&" \
	    "systemctl enable --now virtsnapd.socket virtsnapd-ro.socket;" \
	    "on a Xen host: virtsnapd-xen.socket virtsnapd-xen-ro.socket"

conformance: setup
	@echo "conformance: the recorded cases of fixtures/conformance, against a virtsnapd of its own"
	@VIRTSNAP_CONFORMANCE=all $(CARGO) test --quiet --locked --package virtsnap-tests \
		--test conformance -- --nocapture --format terse 2>&1 | grep --line-buffered "^UNEX\|^STALE\|^    \|^conf\|panick\|^error"; \
		exit $${PIPESTATUS[0]}

CONNECTIONS ?= 20000
soak: setup
	@echo "soak: $(CONNECTIONS) connections"
	@VIRTSNAP_SOAK=$(CONNECTIONS) $(CARGO) test --quiet --locked --package virtsnap-tests \
		--test soak clients_by_the_thousand -- --nocapture 2>&1 | grep "^.*soak:\|panick\|^error"; \
		exit $${PIPESTATUS[0]}

matrix: setup
	@echo "matrix: a snapshot taken, reverted to and deleted in each cell; this takes a while"
	@VIRTSNAP_MATRIX=all $(CARGO) test --quiet --locked --package virtsnap-tests \
		--test matrix -- --nocapture 2>&1 | grep --line-buffered "^WRONG\|^matrix\|panick\|^error"; \
		exit $${PIPESTATUS[0]}

TORTURE = $(CARGO) test --quiet --locked --package virtsnap-tests --test torture -- --nocapture
torture: guest
	@echo "torture: $(ROUNDS) rounds of SIGKILL in real operations"
	@VIRTSNAP_TORTURE=$(ROUNDS) $(TORTURE) 2>&1 | grep --line-buffered -v "^\.*$$\|^running \|^test "; \
		exit $${PIPESTATUS[0]}

CONTROLS ?= 30
torture-control: guest
	@echo "torture-control: building a virtsnapd without recovery, in target/without-recovery"
	@VIRTSNAP_TORTURE=$(CONTROLS) $(TORTURE) --ignored 2>&1 | \
		grep --line-buffered -v "^\.*$$\|^running \|^test "; exit $${PIPESTATUS[0]}

faults: guest
	@echo "faults: QEMU is killed at every call of every operation; this takes a while"
	@mkdir -p target && rm -f target/faults.figures
	@CRASHES=all CRASHES_FIGURES=$(CURDIR)/target/faults.figures $(CARGO) test --quiet --locked \
		--package virtsnap-qemu --test crashes guests
	@echo "faults: the daemon killed, file systems full, files damaged, clients gone, merges stuck"
	@VIRTSNAP_FAULTS=all $(CARGO) test --quiet --locked --package virtsnap-tests --test e2e -- \
		--nocapture killed:: full:: damaged:: vanished:: stalls:: tools:: perished:: 2>&1 | \
		grep --line-buffered "^faults\|panick\|^test result"; exit $${PIPESTATUS[0]}
	@awk '{ died += $$4; undone += $$6; done += $$8; later += $$10 } END { \
		printf "faults: QEMU died %d times in %d operations, ", died, NR; \
		printf "%d undone, %d done, %d by a later call; 0 lost\n", undone, done, later }' \
		target/faults.figures

# Optimised, since there are a million and more. It fails where one kind was never injected.
faults-simulated:
	@VIRTSNAP_FAULTS=all $(CARGO) test --quiet --release --locked --package virtsnap-engine \
	    --test faults -- --nocapture

xen-bindings:
	@driver/xen-sys/bindings.sh
