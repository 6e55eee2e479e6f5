"""What ``zoo list`` and the help of ``zoo fit`` show, read from a file so that neither loads torch.

``pytest tests/test_listings.py --update`` writes the file.
"""

import json
from pathlib import Path

_LISTED = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

MODELS: dict[str, dict[str, str]] = _LISTED["models"]  # of each, the guides that refuse it, with the latent site
GUIDES: list[str] = _LISTED["guides"]
LIKELIHOODS: list[str] = _LISTED["likelihoods"]
DATA: dict[str, dict[str, str]] = _LISTED["data"]  # of each, its source and its licence
