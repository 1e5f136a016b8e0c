"""What the commands share: printing, datasets, reward functions, tables of prompts, and what `train` launches."""
