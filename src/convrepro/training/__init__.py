"""The run itself: the LightningModule, optimizers, checkpoints, progress, sweeps."""
