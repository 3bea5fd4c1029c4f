#!/bin/bash
# Stage med42.answers.second (stage-0123456789abcdef), 2 x 8 GPUs
# Written by Rounds. What runs is in job.json beside this folder; what this job may wait for was said when it was submitted.
#SBATCH --job-name=med42.answers.second
#SBATCH --comment=rounds:stage-0123456789abcdef:574c1f4b
#SBATCH --output=/fsx/store/stage-0123456789abcdef/slurm/%j.txt
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --no-kill
set -euo pipefail

export STAGE=/fsx/store/stage-0123456789abcdef
rm -f "$STAGE/stop" "$STAGE/failed.json"

attempt="-- attempt ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID --"
echo "$attempt"

give_up() { # say in failed.json how the stage ended, as `rounds status` calls it, and why, unless a rank has said more
    [ -e "$STAGE/failed.json" ] ||
        printf '{"message": "%s", "state": "%s", "user_error": true}\n' "$2" "$1" >"$STAGE/failed.json"
}

preempted() { # else the signal says that the time is nearly over; without an answer the more hopeful, which costs an attempt
    local job
    job=$(scontrol show job "$SLURM_JOB_ID") || return 0
    [[ $job =~ PreemptTime=[0-9] ]] # None, or no such field where nobody preempts
}

again() { # start this same job anew; what waits for it keeps waiting
    echo "$(date +%T) again: $1"
    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) || state=RUNNING
    if [ "$state" = RUNNING ]; then # else it is being cancelled, or requeued by SLURM itself
        for seconds in 5 10 20 40 80 160 0; do # a controller that is away for minutes, as for an update, ends no run
            said=$(scontrol requeue "$SLURM_JOB_ID" 2>&1) && break
            echo "$said"
            if [ "$seconds" = 0 ] || ! grep -qiE 'contact|connect|timed out' <<<"$said"; then
                give_up failed "$1, and SLURM refuses to requeue the job: the same command goes on from its last block"
                break
            fi
            sleep "$seconds"
        done
    fi
    exit 75 # never 0: what waits for this stage would start on an unfinished one
}

stopping=
trap 'stopping="time limit"; touch "$STAGE/stop"; if preempted; then stopping=preempted; fi' USR1 # 300 s before the end: the ranks finish their block and leave

# The folder of submission is on no search path: files there may be named like modules. An empty part of PYTHONPATH, as modules
# and profiles leave behind, would mean that folder.
export PYTHONSAFEPATH=1
if [ -n "${PYTHONPATH:-}" ]; then
    PYTHONPATH=$(sed 's/::*/:/g; s/^://; s/:$//' <<<"$PYTHONPATH")
fi
export PYTHON=/venv/bin/python
export OMP_NUM_THREADS=1
export DISABLE_TELEMETRY=1
export DO_NOT_TRACK=1
export HF_HUB_DISABLE_TELEMETRY=1
export HF_UPDATE_DOWNLOAD_COUNTS=0
export WANDB_ERROR_REPORTING=false
export HF_DATASETS_DISABLE_PROGRESS_BARS=1
export OMP_WAIT_POLICY=PASSIVE
export TOKENIZERS_PARALLELISM=true
export TQDM_DISABLE=1

# A restart that finds no newer block than the start before it has got nowhere; several in a row are a crash loop.
newest_checkpoint() {
    (cd "$STAGE" && find cache/blocks -name '*.parquet' 2>/dev/null | wc -l) || true
}
newest=$(newest_checkpoint)
stuck=0
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && read -r count before 2>/dev/null <"$STAGE/slurm/restarts" && [ "$before" = "${newest:-none}" ]; then
    stuck=$((count + 1))
fi
echo "$stuck ${newest:-none}" >"$STAGE/slurm/restarts"
if [ "$stuck" -gt 5 ]; then
    give_up failed "restarted 5 times in a row without a new block, so it was given up. What ended the attempts is in slurm/*.txt and log.txt of its folder"
    exit 1
fi

# --wait=0, since rank 0 works on when the others are through: it reads back and hashes what it saved. A torchrun without it leaves
# in peace after 300 s (exit_barrier_timeout, which ends no rank); by a site's WaitTime rank 0 would be ended soon after that.
srun --kill-on-bad-exit=0 --wait=0 --export=ALL --cpus-per-task="$SLURM_CPUS_PER_TASK" --nodes=2 --ntasks-per-node=1 --no-kill bash -euc '
    exec "$PYTHON" -P \
        -m rounds.train.launch.apart "$STAGE/job.json" 8 "$SLURM_NODEID"' &
step=$!

code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends `wait`, not the step
    code=0
    wait "$step" || code=$?
done
if [ -e "$STAGE/done.json" ]; then # written last of all: how a rank ended behind it changes nothing
    rm -f "$STAGE/failed.json"
    exit 0
fi
if [ -n "$stopping" ] && [ ! -e "$STAGE/failed.json" ]; then
    if [ "$stopping" = "time limit" ] && [ "$(newest_checkpoint)" = "$newest" ]; then
        give_up "time limit" "its time was over before it had a new block: raise time in the cluster file"
        exit 1
    fi
    again "$stopping"
fi
printed() { # by this attempt
    sed "0,/^$attempt/d" "$STAGE/slurm/$SLURM_JOB_ID.txt"
}
# Ranks that lost each other are no mistake of the programme's: a node, a network. One that the kernel killed for its memory is.
if grep -qs '"lost_contact": true' "$STAGE/failed.json" && ! grep -qsi 'oom.kill' < <(printed); then
    again "ranks lost"
fi
# Whoever exits by itself, a rank or an agent, is the first cause; where all were ended by a signal, it came from outside: SLURM
# repeats to a node that comes back what it did not hear of an earlier attempt. An operator's signal is bounded as restarts are.
ended_from_outside() {
    ! grep -qE 'ChildFailedError|oom.kill' < <(printed) &&
        printed | awk '/SignalException: .*got signal: 15/ { left++ } /^srun: error: .*: Exited with exit code/ { left-- }
            /SignalException|^srun: error: .*: Terminated$/ { ended = 1 } END { exit !(ended && left >= 0) }'
}
if [ ! -e "$STAGE/failed.json" ] && ended_from_outside; then
    again "ended from outside"
fi
exit 1
