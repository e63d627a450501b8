#!/bin/bash
# Four seeds, each of which goes on in a new job of the queue whenever its time is up or it is preempted.
#SBATCH --job-name=janus-seeds
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=janus-%A-%a.out

export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# A job that is queued again keeps its number: 'train' then takes up the run that it had begun.
# Without --kill-on-bad-exit, which would kill ranks because another one has just exited with 75.
seed=$SLURM_ARRAY_TASK_ID
srun janus-train train run.dir="runs/seed-$seed" run.seed="$seed" run.device=cuda mesh.unit=8
code=$?
[ "$code" -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
