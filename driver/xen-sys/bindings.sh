#!/bin/bash
# Makes the committed binding of one libxl again, from the headers of Debian's libxen-dev: make
# xen-bindings. What it needs goes below target/xen-bindings; nothing is installed.
set -eu
cd "$(dirname "$0")/../.."
work=$PWD/target/xen-bindings
mkdir -p "$work/root"
cd "$work"
echo "xen-bindings: fetching libxl's headers, and libclang to read them"
apt-get download -qq libxen-dev libclang1-14
for package in *.deb; do dpkg-deb -x "$package" root; done
test -x bin/bindgen || cargo install --quiet --locked --root . bindgen-cli@0.73.2
soname=$(dpkg-deb -f libxen-dev_*.deb Version | sed -E 's/^([0-9]+)\.([0-9]+).*/\1_\2/')
functions=$(paste -sd'|' ../../driver/xen-sys/functions.txt)
LIBCLANG_PATH=$work/root/usr/lib/x86_64-linux-gnu bin/bindgen ../../driver/xen-sys/wrapper.h \
    --dynamic-loading Libxl --dynamic-link-require-all --use-core --no-layout-tests \
    --disable-header-comment --no-doc-comments --no-prepend-enum-name \
    --raw-line "//! libxl of Xen ${soname/_/.}, made by \`make xen-bindings\` from its headers." \
    --allowlist-function "$functions" \
    --allowlist-type 'xentoollog_.*|libxl_(shutdown_reason|domain_type|trigger|event_type)|libxl_error' \
    --allowlist-var 'LIBXL_(SUSPEND|SHUTDOWN|EVENT|DOMAIN_TYPE|TRIGGER|VERSION)[A-Z_]*|ERROR_.*' \
    -o "../../driver/xen-sys/src/v$soname.rs" -- \
    -I root/usr/include -I "$(gcc -print-file-name=include)"
echo "xen-bindings: driver/xen-sys/src/v$soname.rs is made"
