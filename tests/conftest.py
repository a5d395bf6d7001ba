"""What holds for every test: no network, one thread, no chatter of tokenizers. And the models that tests of the hunt, and of adapters, share."""

from __future__ import annotations

import os
from collections import Counter

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: two processes that share the files are then done at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Record and run folder of an organism's audit, made once each; see `audited.audits`."""
    from audited import audits  # heavy: most tests need no model

    with audits(tmp_path_factory.mktemp("organisms")) as make:
        yield make


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


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A base of each architecture of `adapting.MODULES`."""
    import tiny
    from adapting import MODULES

    folder = tmp_path_factory.mktemp("bases")
    return {kind: tiny.save(tiny.network(kind), folder / kind) for kind in MODULES}


@pytest.fixture
def llama(bases):
    """The llama of `bases`, opened."""
    from forensics.checkpoint import open_checkpoint

    return open_checkpoint(str(bases["llama"]))


@pytest.fixture
def lora(bases, tmp_path):
    """A plain adapter for the llama, to be damaged."""
    import tiny

    return tiny.adapter(bases["llama"], tmp_path / "lora", modules=["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def accepted(tmp_path_factory):
    """A run that may be deployed; see `monitored.gated`."""
    from monitored import gated

    return gated(tmp_path_factory.mktemp("accepted"), lost=3)


@pytest.fixture
def watch(accepted, tmp_path):
    """Makes a monitor on a store of its own; see `monitored.monitors`."""
    from monitored import monitors

    with monitors(accepted, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def postgres_server(tmp_path_factory):
    """A PostgreSQL server; see `databases.server`."""
    from databases import server

    with server(tmp_path_factory.mktemp("postgres")) as running:
        yield running


@pytest.fixture
def postgres(postgres_server):
    """URL of an empty database."""
    from databases import emptied

    return emptied(postgres_server.url)


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request, tmp_path):
    """Where a store may be made: a file, and an empty database."""
    return str(tmp_path / "watch.db") if request.param == "sqlite" else request.getfixturevalue("postgres")
