#!/usr/bin/env bash
# Creates .venv in this project and installs requirements.txt with the exact versions of constraints.txt.
#
#   bash scripts/setup.sh                 what the project needs to run
#   bash scripts/setup.sh --dev           also what the tests need
#   bash scripts/setup.sh --web           also what the page in the browser needs (docs/web_demo.md)
#   bash scripts/setup.sh --torch cpu     PyTorch without CUDA; --torch cu128: with another CUDA (docs/install.md)
#
# --torch is remembered in .venv for later runs. TORCH_INDEX is a mirror of PyTorch's index. PYTHON=/path/to/python
# chooses the interpreter for .venv. The script can be repeated: it does nothing if nothing has changed, and continues
# after an interruption.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
unset PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX # each would install outside .venv

readonly PYTHON_NEEDED="3.11, 3.12 or 3.13"
readonly TORCH_INDEX="${TORCH_INDEX:-https://download.pytorch.org/whl}"

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

supported() { [[ "$1" =~ ^3\.1[123]\. ]]; }
version_of() { "$@" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
# Disk space for the installation: CUDA libraries take about 6 GiB, and 2 GiB of downloads while they are installed.
gib_needed() { if [[ "$TORCH" == cpu ]]; then echo 3; else echo 8; fi; }
free_gib() { df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }'; }

# Prints the first suitable interpreter, or fails and lists the unsuitable ones.
find_python() {
    local candidate version candidates=(python3 python python3.13 python3.12 python3.11) found=""
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if ! version=$(version_of "$candidate"); then
            [[ -z "${PYTHON:-}" ]] || fail "PYTHON=$PYTHON does not run; give the path of Python $PYTHON_NEEDED"
        elif ! supported "$version"; then
            found+="${found:+, }$candidate is $version"
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            found+="${found:+, }$candidate ($version) lacks the venv module"
            found+=" (on Debian and Ubuntu: apt install python${version%.*}-venv)"
        else
            printf '%s' "$candidate"
            return
        fi
    done
    fail "Python $PYTHON_NEEDED with its venv module is needed, but ${found:-no Python was found};" \
        "install it, or choose one: PYTHON=/path/to/python bash scripts/setup.sh"
}

make_venv() {
    local python
    python=$(find_python)
    say "creating .venv with Python $(version_of "$python")"
    "$python" -m venv .venv || fail "$python could not create .venv; its message is above"
}

is_usable() {
    supported "$(version_of .venv/bin/python)" &&
        { .venv/bin/python -m pip --version || .venv/bin/python -m ensurepip; } &>/dev/null
}

# The stamp of a list is a copy of everything that decides what is installed.
wanted() { version_of .venv/bin/python && cat "$1" && constraints; }
# With --torch: the same versions from PyTorch's index, where they end in +cpu or +cu128 and bring their own CUDA.
constraints() {
    if [[ -n "$TORCH" ]]; then
        sed -E -e '/^(nvidia-|cuda-|triton==)/d' -e "s/^(torch|torchvision)==.*/&+$TORCH/" constraints.txt
    else
        cat constraints.txt
    fi
}
stamp_of() { printf '.venv/.installed-%s' "$1"; }
is_installed() { [[ -f "$(stamp_of "$1")" && "$(wanted "$1")" == "$(<"$(stamp_of "$1")")" ]]; }
all_installed() {
    local list
    for list in "${LISTS[@]}"; do is_installed "$list" || return 1; done
}

install() {
    local list=$1 status=0 gib
    local index=(${TORCH:+--extra-index-url "$TORCH_INDEX/$TORCH"})
    say "installing $list"
    # pip writes RECORD last: a package without it was interrupted, and must not count as installed
    find .venv/lib -mindepth 3 -maxdepth 3 -name '*.dist-info' ! -exec test -e '{}/RECORD' \; -exec rm -rf '{}' +
    rm -rf .venv/tmp
    mkdir .venv/tmp # downloads stay on this disk: /tmp is often small
    constraints >.venv/tmp/constraints.txt
    TMPDIR="$PWD/.venv/tmp" .venv/bin/python -m pip install --disable-pip-version-check --no-compile \
        --requirement "$list" --constraint .venv/tmp/constraints.txt ${index[@]+"${index[@]}"} || status=$?
    rm -rf .venv/tmp
    if ((status != 0)); then
        gib=$(free_gib)
        ((gib > 0)) || fail "the disk of $PWD is full; free about $(gib_needed) GiB and run the same command again"
        fail "pip could not install $list (its message is above); fix the cause and run the same command again"
    fi
    wanted "$list" >.venv/.stamp
    mv .venv/.stamp "$(stamp_of "$list")"
}

main() {
    LISTS=(requirements.txt)
    TORCH=$(cat .venv/.torch 2>/dev/null) || TORCH=""
    while (($#)); do
        case "$1" in
        --dev) LISTS+=(requirements-dev.txt) ;;
        --web) LISTS+=(requirements-web.txt) ;;
        --torch)
            [[ "${2:-}" =~ ^(cpu|cu[0-9]+)$ ]] ||
                fail "--torch takes cpu, or cu and a number such as cu128, not '${2:-}'; docs/install.md names them"
            TORCH=$2
            shift
            ;;
        *) fail "unknown argument '$1'; bash scripts/setup.sh takes --dev, --web, --torch cpu, or nothing" ;;
        esac
        shift
    done
    ! all_installed || return 0

    # One setup at a time: others wait here and find the work done.
    if command -v flock >/dev/null; then
        exec 9<scripts/setup.sh
        flock --nonblock 9 || { say "waiting for another setup of this folder" && flock 9; }
        ! all_installed || return 0
    fi

    if [[ -e .venv || -L .venv ]] && ! is_usable; then
        say ".venv is broken, incomplete or of an unsupported Python; it is created again"
        rm -rf .venv
    fi
    local list gib needed
    gib=$(free_gib) needed=$(gib_needed)
    if ((gib < needed)) && ! compgen -G '.venv/lib/python3*/site-packages/torch' >/dev/null; then
        fail "the setup needs about $needed GiB on the disk of $PWD, but only $gib GiB are free;" \
            "free some space, or clone to another disk"
    fi
    [[ -d .venv ]] || make_venv
    [[ -z "$TORCH" ]] || printf '%s\n' "$TORCH" >.venv/.torch
    for list in "${LISTS[@]}"; do is_installed "$list" || install "$list"; done
    say "compiling the packages" # on all cores; pip uses one
    .venv/bin/python -m compileall -qq -j 0 .venv/lib || true # some packages contain files that cannot be compiled
    say "done: installed ${LISTS[*]}"
}

main "$@"
