"""Published weights of timm: from the local cache, else from the hub, else a quick and clear refusal.

Left to itself a download without a network retries for most of a minute. The cache is asked first, then one short
request tells whether the hub answers at all.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mtl.core.errors import CheckpointError, ConfigError

TIMEOUT_SECONDS = 3.0
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def fetch(architecture: str) -> Path:
    """Return the file with the published weights of `architecture`, downloading it if need be.

    Raises:
        ConfigError: Nobody published weights under this name.
        CheckpointError: They are neither cached nor can they be downloaded.
    """
    import timm

    config = timm.get_pretrained_cfg(architecture)
    if config is None or not config.has_weights:
        family = architecture.split(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{family}.*")) or "none of this architecture"
        raise ConfigError(f"`backbone.pretrained=true`: no weights are published for `{architecture}`. With weights: {tags}.")
    cached = _cached(config)
    if cached is not None:
        return cached
    host = _host(config)
    if not reachable(host):
        raise unavailable(architecture, f"{host} does not answer" if host else "HF_HUB_OFFLINE is set")
    try:
        return _download(config)
    except Exception as error:
        raise unavailable(architecture, str(error).strip().split("\n")[0] or type(error).__name__) from error


def unavailable(architecture: str, reason: str) -> CheckpointError:
    """Return the error for weights that cannot be had."""
    return CheckpointError(
        f"The published weights of `{architecture}` are neither in the local cache nor could they be downloaded ({reason}). "
        "Give a local file with `backbone.weights=<file>` (.safetensors, .pth or an mtl checkpoint), or start from scratch "
        "with `backbone.pretrained=false`."
    )


def reachable(url: str | None) -> bool:
    """Return whether a server answers within `TIMEOUT_SECONDS`; proxies of the environment are respected."""
    if not url:
        return False
    answered: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT_SECONDS).close()
            answered.append(True)
        except urllib.error.HTTPError as error:
            answered.append(error.code < 500 and error.code != 407)
        except (OSError, ValueError):
            answered.append(False)

    # In a thread, since a name that cannot be resolved is not covered by the timeout of the request.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    return bool(answered and answered[0])


def _names(config: Any) -> tuple[str, ...]:
    return (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHT_FILES


def _cached(config: Any) -> Path | None:
    if config.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        found = (try_to_load_from_cache(config.hf_hub_id, name) for name in _names(config))
        return next((Path(path) for path in found if isinstance(path, str)), None)
    path = _torch_cache(config.url)
    return path if path.is_file() else None


def _download(config: Any) -> Path:
    if config.hf_hub_id:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        *preferred, last = _names(config)
        for name in preferred:
            try:
                return Path(hf_hub_download(config.hf_hub_id, name))
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(config.hf_hub_id, last))
    import torch

    path = _torch_cache(config.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(config.url, str(path), progress=False)
    return path


def _torch_cache(url: str) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / url.split("/")[-1]


def _host(config: Any) -> str | None:
    if not config.hf_hub_id:
        return config.url
    from huggingface_hub import constants

    return None if constants.HF_HUB_OFFLINE else constants.ENDPOINT
