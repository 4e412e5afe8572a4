#!/bin/bash
# Several machines of a Slurm cluster, one launcher on each, one process for each GPU. From the root of the repository,
# in its environment, on a file system that all machines share:
#
#   sbatch --nodes=4 accelerate_configs/slurm/nodes.sh recipes/grpo_teacher.py --output_dir runs/mine
#   CONFIG=accelerate_configs/ddp.yaml sbatch --nodes=4 accelerate_configs/slurm/nodes.sh recipes/grpo_teacher.py
#   DRY_RUN=1 HOSTS="a b" GPUS=8 bash accelerate_configs/slurm/nodes.sh recipes/grpo_teacher.py
#
# CONFIG is one of accelerate_configs/; common.sh says what else can be set. Killed or out of time, the same command
# goes on. Where machines have several networks, name the fast one: export NCCL_SOCKET_IFNAME=ib0.
# Not yet run on a cluster: tests read what it starts.
#SBATCH --job-name=anyo-rl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail
source accelerate_configs/slurm/common.sh

train "${CONFIG:-accelerate_configs/zero3_nodes.yaml}" "${HOSTS[@]}" -- "$@"
