"""What every part of a topology file is: frozen data that knows no other keys than its own."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A closed, immutable part of a topology."""

    # Built when first used, and as a part of what contains it: most are only ever parts.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
