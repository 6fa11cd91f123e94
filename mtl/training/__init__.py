"""Everything that knows Lightning: the module, optimizers, callbacks, the run."""
