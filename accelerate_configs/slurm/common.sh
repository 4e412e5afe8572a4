# What the scripts beside this one share; they read it from the repository's root.
#
# HOSTS   the machines of the job, a space between them; by default Slurm's
# GPUS    GPUs, and so processes, on each machine; by default Slurm's
# PORT    where the first process listens; by default one that follows from the job's number, so that two jobs on one
#         machine do not meet
# DRY_RUN 1 prints what would be started on which machine, and starts nothing; works without Slurm

if [[ -z "${HOSTS:-}" ]]; then
    if [[ -z "${SLURM_JOB_NODELIST:-}" ]]; then
        echo "error: no job of Slurm's here: start this by sbatch, or DRY_RUN=1 HOSTS='a b' GPUS=8 bash $0 RECIPE" >&2
        exit 2
    fi
    HOSTS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')"
fi
read -r -a HOSTS <<< "$HOSTS"
GPUS="${GPUS:-${SLURM_GPUS_ON_NODE:-8}}"
PORT="${PORT:-$((20000 + ${SLURM_JOB_ID:-9500} % 10000))}"
# How long (s) processes that are told to end have to save and stop; by default 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
# srun does not take it over from sbatch.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-}"
[[ -n "$SRUN_CPUS_PER_TASK" ]] || unset SRUN_CPUS_PER_TASK

# on HOST COMMAND…: starts the command on the machine, in the background.
on() {
    local host="$1"
    shift
    if [[ "${DRY_RUN:-}" == 1 ]]; then
        echo "$host: ${*@Q}"
    else
        srun --nodes=1 --ntasks=1 --nodelist="$host" --gpus-per-node="$GPUS" "$@" &
    fi
}

# train CONFIG HOSTS… -- RECIPE FLAGS…: starts the recipe on the machines, with ranks in their order, and waits for all.
# One that fails ends the rest: they would wait for it in vain.
train() {
    local config="$1" hosts=() rank pids=() rest
    shift
    while [[ "$1" != -- ]]; do
        hosts+=("$1")
        shift
    done
    shift
    for rank in "${!hosts[@]}"; do
        on "${hosts[$rank]}" accelerate launch --config_file "$config" \
            --num_machines "${#hosts[@]}" --num_processes "$((${#hosts[@]} * GPUS))" \
            --machine_rank "$rank" --main_process_ip "${hosts[0]}" --main_process_port "$PORT" "$@"
        pids+=("${!:-}")
    done
    if [[ "${DRY_RUN:-}" != 1 ]]; then
        for rest in "${pids[@]}"; do
            wait -n "${pids[@]}" || { echo "error: a machine failed, the others are stopped" >&2; exit 1; }
        done
    fi
}

# What runs in the background ends with the script.
trap 'jobs -p | xargs -r kill 2> /dev/null || true' EXIT
