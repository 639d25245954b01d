# shellcheck shell=bash
# To be sourced: apt for packages that are unpacked and not installed.  It needs no root, has lists
# and sources of its own under $private, and an empty record of what is installed.  Mirrors are the
# ones that the machine's own apt has.
: "${private:?where the lists and sources of this apt are}"

private_apt() {
    local tool=$1
    shift
    "$tool" -q -o "Dir::State=$private/state" -o "Dir::State::status=$private/status" \
        -o "Dir::Cache=$private/cache" -o "Dir::Etc::SourceList=$private/sources.list" \
        -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::Preferences=/dev/null \
        -o Dir::Etc::PreferencesParts=/dev/null -o APT::Sandbox::User= \
        -o APT::Default-Release= -o APT::Install-Recommends=false "$@"
}

# Only the suite itself (and what backports build on): another release's libraries would be preferred
# where they are newer, and have other names.
prepare_apt() {
    local suites=("$1" "${1%-backports}") codename mirror key=/usr/share/keyrings/debian-archive-keyring.gpg signed=
    codename=$(release)
    mirror=$(apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE)' \
        'Created-By: Packages' | awk -v suite="$codename" '$2 == suite { print $1; exit }')
    [ -n "$mirror" ] || { say "apt is configured with no mirror of $codename"; return 1; }
    [ ! -e $key ] || signed="[signed-by=$key] "
    mkdir -p "$private"/state/lists/partial "$private"/cache/archives/partial
    : > "$private/status"
    for suite in "${suites[@]}"; do
        echo "deb $signed$mirror $suite main"
    done | sort -u > "$private/sources.list"
    private_apt apt-get -qq update || { say "cannot read the package lists of $mirror"; return 1; }
}

# This machine's release, by its codename.
release() { (. /etc/os-release && echo "${VERSION_CODENAME:?}"); }

version_of() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null; }

# The suite that this machine's QEMU and libvirt came from.
suite_of_libvirt() {
    local libvirt
    libvirt=$(version_of libvirt-clients) || { say "run make setup first"; return 1; }
    case $libvirt in
        *~bpo*) echo "$(release)-backports" ;;
        *) release ;;
    esac
}
