#!/bin/bash
# One machine of a Slurm cluster with several GPUs. From the root of the repository, in its environment:
#
#   sbatch accelerate_configs/slurm/one_node.sh recipes/grpo_teacher.py --output_dir runs/mine
#   CONFIG=accelerate_configs/zero3.yaml sbatch accelerate_configs/slurm/one_node.sh recipes/grpo_teacher.py
#   DRY_RUN=1 HOSTS=a GPUS=8 bash accelerate_configs/slurm/one_node.sh recipes/grpo_teacher.py
#
# CONFIG is one of accelerate_configs/; common.sh says what else can be set. Killed or out of time, the same command
# goes on. Not yet run on a cluster: tests read what it starts.
#SBATCH --job-name=anyo-rl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail
source accelerate_configs/slurm/common.sh

train "${CONFIG:-accelerate_configs/zero2.yaml}" "${HOSTS[0]}" -- "$@"
