"""What every section of the schema is: typed, finite, closed and unchanging."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from mtl.config.bounds import has_bool, takes_bool, text_problem

Part = dict[str, Any]


class Strict(BaseModel):
    """Refuses keys it does not know and values of the wrong type; nobody changes it once it is checked."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, defer_build=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _meaningful(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false as numbers, and texts that are empty or hold a line break."""
        if has_bool(value) and not takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("Expected no true or false here")
        if wrong := text_problem(value):
            raise ValueError(wrong)
        return value
