"""What litellm makes pydantic say about litellm's own code. `filterwarnings = error` stays for everything else."""

from __future__ import annotations

import pytest

from backends.hosted import READ_ONLY_NOTE

ignore_litellm_warnings = [
    pytest.mark.filterwarnings(f"ignore:{READ_ONLY_NOTE}:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_(computed_)?fields' attribute:DeprecationWarning"),
]
"""`pytestmark = ignore_litellm_warnings` in a module that runs litellm."""
