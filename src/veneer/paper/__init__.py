"""The LoRA paper's tables and figures, run again: one file each. `table_of_contents.py` lists them."""
