"""Ways to run a plan, here in order (`local`) or as a chain of jobs (`slurm`), and what became of it (`state`)."""
