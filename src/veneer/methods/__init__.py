"""What LoRA is compared with, and what it needs to know of a model family."""
