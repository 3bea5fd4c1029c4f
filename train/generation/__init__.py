"""What a policy writes: one token after the other, by a named engine, in blocks of prompts that processes share by files."""
