"""The type of every setting that is the path of a file or folder; whoever declares one with it need not think of `~`."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator

Place = Annotated[str, AfterValidator(os.path.expanduser)]
