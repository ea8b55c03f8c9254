"""The paper's tables beside ours: what `reproduce.py` is asked for, runs, and reports."""
