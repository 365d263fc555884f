#!/bin/bash
#SBATCH --job-name=adios
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120

# One Ray cluster for this job, on all of its nodes. Submitted again or requeued, the same command resumes the run.
# Needs: this package in the environment VENV on all nodes, STORAGE and DATA shared by them.
set -euo pipefail
: "${VENV:?}" "${STORAGE:?}" "${DATA:?}"
source "$VENV/bin/activate"

export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.ray/adios_token_$SLURM_JOB_ID"  # the home directory is shared by the nodes
mkdir -p "$HOME/.ray"
(umask 077; python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"  # short: Unix sockets below it have at most 107 characters
steps=()  # process IDs of the steps that run Ray

clean_up() {
    trap - EXIT  # once
    rm -f "$RAY_AUTH_TOKEN_PATH"
    kill "${steps[@]}" 2> /dev/null || true
    wait "${steps[@]}" || true  # Ray writes into its folder until it has ended
    # Not if RAY_TMPDIR above was changed to a folder that may hold other files.
    if [[ $RAY_TMPDIR == */ray-"${SLURM_JOB_ID:?}" ]]; then
        srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf -- "$RAY_TMPDIR" || true
    fi
}
trap clean_up EXIT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | cut -d ' ' -f 1)
port=$((20000 + SLURM_JOB_ID % 4000 * 3))  # the first of three; other jobs may share the node
# Given to each step, which since Slurm 22.05 does not inherit it from the job, and to Ray, which would count all CPUs of
# the node. Without --cpus-per-task above, Slurm leaves the variable unset and gives a task one CPU.
cpus=${SLURM_CPUS_PER_TASK:-1}

# The job's own steps: they end with the job. `ray stop` would stop the clusters of all of the user's jobs on the node.
srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$head" \
    ray start --head --node-ip-address="$address" --port="$port" --ray-client-server-port=$((port + 1)) \
    --dashboard-port=$((port + 2)) --dashboard-agent-listen-port=0 --num-cpus="$cpus" --block &
head_step=$!
steps+=("$head_step")
export RAY_ADDRESS="$address:$port"
until ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1; do
    kill -0 "$head_step" 2> /dev/null || { echo "error: Ray's head on $head has ended; see above" >&2; exit 1; }
    sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --cpus-per-task="$cpus" --exclude="$head" \
        ray start --address="$RAY_ADDRESS" --dashboard-agent-listen-port=0 --num-cpus="$cpus" --block &
    steps+=("$!")
fi

# In the background, so that signals reach this shell at once.
adios-ray train --preset in100s --data-dir "$DATA" --storage "$STORAGE" \
    --name in100s-pbt --population 16 &
run=$!
stop() {
    trap '' USR1 TERM  # once
    kill -TERM "$run" 2> /dev/null || true
    wait "$run" || true
    clean_up
}
# Before the time limit. Cleaned up first: the requeue ends this script, too.
trap 'stop; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1
trap 'stop; exit 143' TERM  # scancel: the job is not to come back
wait "$run"
