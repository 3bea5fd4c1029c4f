"""What SFT and DPO share: the trainer's arguments, watching, checkpoints, saving."""
