"""Warnings of libraries that a user can do nothing about."""

from __future__ import annotations

import warnings

# (start of the message, start of the module's name); each is either advice that the run already follows or ignores on purpose,
# or a library talking to another library.
NOISE = (
    (r".*isinstance\(treespec, LeafSpec\).*", ""),  # Lightning's copy of a torch helper
    (r"The `srun` command is available on your system", "lightning"),
    (r"It is recommended to use `self.log\(.*sync_dist=True\)`", ""),  # every rank computes the same from all records
    (r"The '\w+' does not have many workers", ""),  # loading in the main process is the default here
    (r"Consider setting `persistent_workers=True`", ""),
    (r"Found \d+ module\(s\) in eval mode at the start of training", ""),  # frozen norm layers
    (r"The number of training batches .* is smaller than the logging interval", ""),
    (r"Trying to infer the `batch_size` from an ambiguous collection", ""),
    (r".*val_dataloader.*shuffling", ""),
    (r"You requested to overfit but enabled", ""),  # debug=overfit takes the first batches in order
    (r"Total length of `\w+` across ranks is zero", ""),
    (r"Checkpoint directory .* exists and is not empty", ""),
    (r"The dirpath has changed", ""),
    (r"You have overridden `transfer_batch_to_device`", ""),
    (r"GPU available but not used", ""),  # trainer=cpu was asked for
    (r"MPS available but not used", ""),
    (r"This process .* is multi-threaded, use of fork\(\) may lead to deadlocks", ""),
)


def ignore_noise() -> None:
    """Ignore the warnings of `NOISE`, in the filters of the surrounding `warnings.catch_warnings`."""
    for message, module in NOISE:
        warnings.filterwarnings("ignore", message=message, module=module)
