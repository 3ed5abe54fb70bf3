#!/usr/bin/env bash
# Trains or scores in one process per GPU, on one machine or several (docs/training.md).
#
#   bash scripts/launch.sh train CONFIG OUTPUT_DIR [FLAGS of main.py]
#   bash scripts/launch.sh test CONFIG OUTPUT_DIR CHECKPOINT [FLAGS of main.py]
#   bash scripts/launch.sh [--nproc N] SCRIPT [ARGUMENTS of SCRIPT]
#
# CONFIG is a name in configs/, without its folder and ending: vdit_ytvos. Relative paths are those of the caller's
# folder. Environment variables:
#
#   NPROC            processes on this machine; without it, one per visible GPU (CUDA_VISIBLE_DEVICES), or one on a CPU
#   NNODES           number of machines, 1 without it; each of them runs the same command
#   RDZV_ENDPOINT    HOST:PORT where they meet, on one of them, the same on all
#   RDZV_ID          a name of the run, the same on all; needed where several runs meet at one endpoint
#   NODE_RANK        optional: this machine's number, from 0, which is RDZV_ENDPOINT's; all machines have one, or none
#   LOCAL_ADDR       optional: this machine's address, where others cannot look up its name
#   OMP_NUM_THREADS  threads per process; without it, the machine's cores are shared out
#
# SIGTERM, SIGINT and SIGUSR1 reach every process. The exit status is that of the first one that failed, or 75 where a
# run was stopped and can go on: with the same command and --resume auto.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

help() { # the comment at the top of this file, and before it that of the script that the user has called
    local file
    for file in "$@"; do sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p;}' "$file"; done
    printf '\nEvery flag of main.py: python main.py --help\n'
}

task=${1:-}
case "$task" in
train | test)
    config=${2:-}
    [[ -f "$root/configs/$config.yaml" ]] || fail "there is no configs/$config.yaml; CONFIG is a name in configs/"
    script=scripts/dist_${task}_${config#*_}_${config%%_*}.sh
    needed=(OUTPUT_DIR)
    [[ "$task" == train ]] || needed+=(CHECKPOINT)
    if [[ -f "$root/$script" ]]; then
        usage="bash $script ${needed[*]} [FLAGS of main.py]"
        about=("$root/$script" "$root/scripts/launch.sh")
    else
        usage="bash scripts/launch.sh $task $config ${needed[*]} [FLAGS of main.py]"
        about=("$root/scripts/launch.sh")
    fi
    shift 2
    for word in "$@"; do
        [[ "$word" != -h && "$word" != --help ]] || { help "${about[@]}" && exit; }
    done
    for name in "${needed[@]}"; do
        [[ -n "${1:-}" && "$1" != -* ]] || fail "$name is missing; it is $usage"
        case "$name" in
        OUTPUT_DIR) words=(--output_dir "$1") ;;
        CHECKPOINT) words+=(--eval --resume "$1") ;;
        esac
        shift
    done
    set -- "$root/main.py" --config "$root/configs/$config.yaml" "${words[@]}" "$@"
    ;;
-h | --help) help "$root/scripts/launch.sh" && exit ;;
"") fail "nothing to do; bash scripts/launch.sh takes train, test or a script, and --help explains them" ;;
esac

bash "$root/scripts/setup.sh"
# The project's own modules are found from any folder, and no others that happen to lie there.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
exec "$root/.venv/bin/python" -m scripts.launch "$@"
