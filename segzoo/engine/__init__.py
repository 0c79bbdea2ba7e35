"""Training: the trainer and its hooks, checkpoints, launching of one or many processes, the command line."""
