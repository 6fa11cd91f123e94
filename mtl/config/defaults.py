"""Configurations that an earlier release stored, completed with what has been added since. Torch-free."""

from __future__ import annotations

import copy
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from mtl.config.data_schema import DataGenericConfig
from mtl.config.load import check_parts
from mtl.config.schema import RunConfig
from mtl.core.files import plain


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """Return a stored run configuration with the keys that it lacks at their defaults; what it holds stays as it is.

    A key added to the schema or to a part therefore needs a default under which older runs mean what they meant, and one that
    cannot have such a default, or replaces another, needs a line in `mtl.runs.stored`.

    Args:
        config: As a run stored it; nothing is checked, so that the model of a run whose data are read differently still loads.
    """
    full = copy.deepcopy(config)
    check_parts(full)
    full = _with_defaults(RunConfig, full)
    if isinstance(full.get("data"), dict):
        full["data"] = _with_defaults(DataGenericConfig, full["data"])
    merged: dict[str, Any] = _added(config, plain(full))
    return merged


def _with_defaults(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of a model and of the models inside it, wherever `values` has a mapping for them."""
    filled = dict(values)
    for key, field in model.model_fields.items():
        if key not in values:
            if not field.is_required():
                default = field.get_default(call_default_factory=True)
                filled[key] = default.model_dump() if isinstance(default, BaseModel) else copy.deepcopy(default)
        elif isinstance(values[key], dict) and (inner := _model_in(field.annotation)):
            many = get_origin(field.annotation) is dict
            filled[key] = (
                {name: _with_defaults(inner, entry) for name, entry in values[key].items() if isinstance(entry, dict)}
                if many
                else _with_defaults(inner, values[key])
            )
    return filled


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, alone, beside None or as the values of a mapping."""
    candidates = [annotation, *get_args(annotation)]
    return next((entry for entry in candidates if isinstance(entry, type) and issubclass(entry, BaseModel)), None)


def _added(own: Any, full: Any) -> Any:
    """Return `own` with the keys that only `full` has, at every depth."""
    if not isinstance(own, dict) or not isinstance(full, dict):
        return own
    return {key: _added(own[key], full[key]) if key in full else own[key] for key in own} | {
        key: value for key, value in full.items() if key not in own
    }
