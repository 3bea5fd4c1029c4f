"""The subcommands of `rounds`, one file each; `rounds.train.cli` lists them. Only what a command needs is imported."""
