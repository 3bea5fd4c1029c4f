"""What SFT, DPO and reward models share: the trainer's arguments, watching, checkpoints, saving."""
