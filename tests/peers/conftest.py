"""These tests need SAELens and dictionary-learning: `make test-peers` runs them in .venv-peers."""

import importlib.util
import sys
import types

if importlib.util.find_spec("sae_lens") is None:
    collect_ignore_glob = ["test_*.py"]

# dictionary-learning imports nnsight for its activation buffer, which pulls torchvision and with it
# another torch. Its autoencoders and losses need neither.
sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=None))  # type: ignore[arg-type]
