"""What every stage returns: pydantic models that `--json` prints as they are."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    """`schema_` names kind and version: pcrl.VERB/1."""

    model_config = ConfigDict(extra="forbid")

    schema_: str = Field(serialization_alias="schema")

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


class Plan(Result):
    """What a command would do (`--dry-run`)."""

    schema_: str = Field("pcrl.plan/1", serialization_alias="schema")
    verb: str
    out: Path
    state: str
    """new, to be continued, finished."""
    settings: dict[str, Any]
    figures: dict[str, Any] = {}
    """Counts and costs known beforehand."""
