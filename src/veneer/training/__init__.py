"""Fine-tuning runs: from a configuration to a run folder."""
