"""What all parts of the configuration share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration. Keys it does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
