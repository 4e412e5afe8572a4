#!/bin/bash
# GRPO whose paths are sampled by vLLM on a machine of its own (the job's last one), and trained on all others: TRL's
# server mode. From the root of the repository, in an environment with the `vllm` extra:
#
#   MODEL=runs/mine/sft/teacher sbatch --nodes=3 accelerate_configs/slurm/vllm_server.sh recipes/grpo_teacher.py \
#       --sft_config "" --output_dir runs/mine-grpo
#   DRY_RUN=1 MODEL=TEACHER HOSTS="a b c" GPUS=8 bash accelerate_configs/slurm/vllm_server.sh recipes/grpo_teacher.py
#
# MODEL is a teacher that was saved by a recipe: its generation config says that sampling stops at the marker. After
# each update the weights go to the server by NCCL. TENSOR_PARALLEL GPUs of the server hold the model together, by
# default all: it must divide the model's attention heads. (vLLM refuses data parallelism for dense models.) CONFIG and
# the rest: see nodes.sh and common.sh.
# Not yet run on a cluster or a GPU: tests read what it starts.
#SBATCH --job-name=anyo-rl-vllm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
source accelerate_configs/slurm/common.sh

: "${MODEL:?set it to the teacher, the path that both vLLM and the recipe load}"
if (( ${#HOSTS[@]} < 2 )); then
    echo "error: ${#HOSTS[@]} machine, expected at least 2: one for vLLM, the others train" >&2
    exit 2
fi
TENSOR_PARALLEL="${TENSOR_PARALLEL:-$GPUS}"
if (( TENSOR_PARALLEL > GPUS )); then
    echo "error: TENSOR_PARALLEL=$TENSOR_PARALLEL, but the machine has $GPUS GPUs" >&2
    exit 2
fi
SERVER="${HOSTS[-1]}"
on "$SERVER" trl vllm-serve --model "$MODEL" --host 0.0.0.0 --port 8000 \
    --tensor_parallel_size "$TENSOR_PARALLEL"
train "${CONFIG:-accelerate_configs/zero3_nodes.yaml}" "${HOSTS[@]:0:${#HOSTS[@]}-1}" -- "$@" \
    --model_name_or_path "$MODEL" --use_vllm true --vllm_mode server --vllm_server_host "$SERVER" \
    --vllm_server_port 8000 --vllm_server_timeout 1800
