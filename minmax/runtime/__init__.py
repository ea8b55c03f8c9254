"""What every script runs on: devices, seeds, flags, run directories, checkpoints and reports."""
