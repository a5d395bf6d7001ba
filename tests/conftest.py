"""What holds for every test: no network, one thread, no chatter of tokenizers. And the models that the tests of the hunt share."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of `hunting.models`."""
    from hunting import models  # heavy: most tests need no model

    return models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def duel(folders):
    """The pair of `hunting.moved_beside_base`."""
    from hunting import moved_beside_base

    return moved_beside_base(folders)
