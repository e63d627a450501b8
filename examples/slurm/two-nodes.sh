#!/bin/bash
# One run on two nodes: each node is a unit that shares batches, experts and parameters; the two are replicas.
#SBATCH --job-name=janus
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --output=janus-%j.out

# srun tells each rank its place; nothing else is needed. It does not pass on the number of cores by itself.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# Five minutes before the time is up all ranks get SIGUSR1, write a checkpoint and exit with 75.
srun janus-train train run.dir=runs/two-nodes run.device=cuda mesh.replica=2 mesh.unit=8 model.preset=S
code=$?
[ "$code" -eq 75 ] && echo "time is up; go on with the same script and 'janus-train resume runs/two-nodes'"
exit "$code"
