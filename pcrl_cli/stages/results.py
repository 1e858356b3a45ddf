"""What every stage returns: pydantic models that `--json` prints as they are."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Result(BaseModel):
    """`schema_name` names kind and version: pcrl.VERB/1; `--json` prints it as `schema`."""

    model_config = ConfigDict(extra="forbid")

    schema_name: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        return {"schema": self.schema_name, **self.model_dump(mode="json")}


class Plan(Result):
    """What a command would do (`--dry-run`)."""

    schema_name: ClassVar[str] = "pcrl.plan/1"
    verb: str
    out: Path
    state: str
    """new, to be continued, finished."""
    settings: dict[str, Any]
    figures: dict[str, Any] = {}
    """Counts and costs known beforehand."""
