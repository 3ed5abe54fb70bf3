#!/bin/sh
# Starts training, scoring or any script in one process per GPU, on one or several machines (docs/training.md).
#
#   sh scripts/launch.sh train CONFIG OUTPUT_DIR [FLAGS of main.py]
#   sh scripts/launch.sh test CONFIG OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#   sh scripts/launch.sh [--nproc N] SCRIPT [ARGUMENTS of SCRIPT]
#
# CONFIG is the name of a file in configs/ without .yaml, such as vdit_ytvos. Relative paths start at the current
# folder. Environment variables:
#
#   NPROC            processes on this machine; default: one per visible GPU (CUDA_VISIBLE_DEVICES), or one on the CPU
#   NNODES           number of machines, default 1; each of them runs the same command
#   RDZV_ENDPOINT    HOST:PORT on one of the machines, where they meet; the same on all
#   RDZV_ID          name of the run, the same on all; needed if several runs share an endpoint
#   NODE_RANK        optional: number of this machine, from 0, which is the host of RDZV_ENDPOINT; set it on all or none
#   LOCAL_ADDR       optional: address of this machine, if the others cannot resolve its name
#   OMP_NUM_THREADS  threads per process; default: the cores of the machine are shared out
#
# SIGTERM, SIGINT and SIGUSR1 are forwarded to every process. The exit status is that of the first process that failed,
# or 75 if a signal stopped the run with its work saved: repeat the command with --resume auto to continue.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

help() { # the comments at the top of the given scripts
    for file in "$@"; do
        sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p;}' "$root/scripts/$file.sh"
        echo
    done
    echo "Every flag of main.py: python main.py --help"
    exit
}

case "${1:-}" in
-h | --help) help launch ;;
"") fail "nothing to do; sh scripts/launch.sh takes train, test or a script (--help explains them)" ;;
train | test)
    task=$1 config=${2:-} usage="OUTPUT_DIR [FLAGS of main.py]"
    [ "$task" = train ] || usage="OUTPUT_DIR CHECKPOINT [FLAGS of main.py]"
    for word in "$@"; do
        recipe=dist_${task}_${config#*_}_${config%%_*}
        [ -f "$root/scripts/$recipe.sh" ] || recipe=dist_$task
        case "$word" in -h | --help) help "$recipe" launch ;; esac
    done
    [ -f "$root/configs/$config.yaml" ] ||
        fail "there is no configs/$config.yaml; the arguments are CONFIG $usage, and CONFIG is the name of a" \
            "file in configs/ without .yaml"
    shift 2
    case "${1:--}" in -*) fail "OUTPUT_DIR is missing; the arguments after $config are $usage" ;; esac
    output=$1
    shift
    if [ "$task" = test ]; then
        case "${1:--}" in -*) fail "CHECKPOINT is missing; the arguments after $config are $usage" ;; esac
        checkpoint=$1
        shift
        set -- --eval --resume "$checkpoint" "$@"
    fi
    set -- "$root/main.py" --config "$root/configs/$config.yaml" --output_dir "$output" "$@"
    ;;
esac

bash "$root/scripts/setup.sh"
# The project's modules are found from any folder, and modules in the current folder do not shadow them.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
exec "$root/.venv/bin/python" -m scripts.launch "$@"
